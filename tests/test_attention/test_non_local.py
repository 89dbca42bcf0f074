# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from mmcv.cnn import NonLocal2d
from scipy.special import softmax

from mmattn.attention.non_local import MODES, NonLocal


def randomise(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    for name, buffer in module.named_buffers():
        if name.endswith(('mean', 'var')):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    return module.state_dict()


def expected(x, state, mode, scale=1.0):
    """Equations 1-6 for one image ``(C, H, W)``, pixel by pixel."""
    pixels = x.reshape(len(x), -1).T

    def conv(name, values):
        weight, bias = (state[f'{name}.conv.{k}'] for k in ('weight', 'bias'))
        return values @ weight[:, :, 0, 0].T + bias

    g = conv('g', pixels)
    out = []
    for i in range(len(pixels)):
        scores = []
        for j in range(len(pixels)):
            if mode == 'gaussian':
                scores.append(pixels[i] @ pixels[j])
                continue
            theta, phi = conv('theta', pixels[i]), conv('phi', pixels[j])
            if mode == 'concatenation':
                weight = state['concat_project.conv.weight'].ravel()
                scores.append(max(0, weight @ np.concatenate([theta, phi])))
            else:
                scores.append(scale * (theta @ phi))
        gaussian = mode.endswith('gaussian')
        weights = softmax(scores) if gaussian else np.array(scores) / len(g)
        out.append(weights @ g)
    return x + conv('conv_out', np.stack(out)).T.reshape(x.shape)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('use_scale', [True, False])
def test_equals_the_formula(mode, use_scale):
    layer = NonLocal(6, reduction=3, mode=mode, use_scale=use_scale).double()
    state = {k: v.numpy() for k, v in randomise(layer).items()}
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    scaled = use_scale and mode == 'embedded_gaussian'
    scale = 2**-0.5 if scaled else 1.0
    want = np.stack([expected(i, state, mode, scale) for i in x.numpy()])
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('sub_sample', [True, False])
@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN')])
def test_loads_and_equals_mmcv(mode, sub_sample, norm_cfg):
    kwargs = dict(mode=mode, sub_sample=sub_sample, norm_cfg=norm_cfg)
    mmcv = NonLocal2d(8, **kwargs).double().eval()
    layer = NonLocal(8, **kwargs).double().eval()
    layer.load_state_dict(randomise(mmcv))
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), mmcv(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN')])
@pytest.mark.parametrize('sub_sample', [True, False])
def test_starts_as_the_identity(norm_cfg, sub_sample):
    layer = NonLocal(8, norm_cfg=norm_cfg, sub_sample=sub_sample)
    randomise(layer)
    layer.init_weights()
    x = torch.randn(2, 8, 3, 4)
    assert torch.equal(layer(x), x)
    assert layer.theta.conv.weight.std() < 0.02
    assert not layer.theta.conv.bias.any()


def test_own_init_cfg_comes_after_the_modules_start():
    layer = NonLocal(8, init_cfg=dict(type='Constant', val=5, layer='Conv2d'))
    layer.init_weights()
    assert all((p == 5).all() for p in layer.conv_out.conv.weight)


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (2, 1)])
@pytest.mark.parametrize('batch', [1, 2])
def test_sub_samples_and_normalises_maps_of_one_pixel(size, batch):
    layer = NonLocal(8, sub_sample=True, norm_cfg=dict(type='BN'))
    torch.nn.init.ones_(layer.conv_out.norm.weight)
    x = torch.randn(batch, 8, *size)
    assert layer(x).shape == x.shape and layer(x).isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('mode', MODES)
def test_averages_are_float32_under_autocast(dtype, mode):
    layer = NonLocal(16, mode=mode)
    inputs = []
    out = layer.conv_out.conv
    out.register_forward_pre_hook(lambda _, x: inputs.extend(x))
    with torch.autocast('cpu', dtype=dtype):
        y = layer(torch.randn(1, 16, 6, 7).to(dtype))
    assert y.dtype == dtype
    assert not torch.equal(inputs[0].to(dtype).float(), inputs[0])


def test_exports_with_dynamic_sizes_when_sub_sampling():
    layer = NonLocal(8, sub_sample=True).eval()
    torch.nn.init.normal_(layer.conv_out.conv.weight)
    h, w = (torch.export.Dim(d, min=4, max=64) for d in 'hw')
    x = torch.randn(1, 8, 6, 9)
    program = torch.export.export(
        layer, (x,), dynamic_shapes=({2: h, 3: w},)
    ).module()
    for size in ((6, 9), (7, 4)):
        x = torch.randn(1, 8, *size)
        torch.testing.assert_close(program(x), layer(x))


@pytest.mark.parametrize(('width', 'reduction'), [(32, 2), (30, 3)])
def test_number_of_parameters(width, reduction):
    inner = width // reduction
    count = sum(p.numel() for p in NonLocal(width, reduction).parameters())
    assert count == 4 * width * inner + 3 * inner + width


@pytest.mark.parametrize(
    ('kwargs', 'name'),
    [
        (dict(in_channels=0), 'in_channels=0'),
        (dict(in_channels=8, reduction=0), 'reduction=0'),
        (dict(in_channels=8, mode='dot'), "mode='dot'"),
    ],
)
def test_wrong_arguments_are_named(kwargs, name):
    with pytest.raises(ValueError, match=name):
        NonLocal(**kwargs)
