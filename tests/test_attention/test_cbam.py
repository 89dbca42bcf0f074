# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from scipy.special import expit
from timm.layers.cbam import CbamModule

from mmattn.attention.cbam import CBAM

BN = dict(type='BN', momentum=0.01)
RESNET50 = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
RESNET101 = [256] * 3 + [512] * 4 + [1024] * 23 + [2048] * 3
# Hidden widths of the inverted residuals.
MOBILENETV2 = (
    [32, 96] + [144] * 2 + [192] * 3 + [384] * 4 + [576] * 3 + [960] * 3
)


def randomise(module):
    for key, value in module.state_dict().items():
        if 'running_var' in key:
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_()
    return {k: v.clone().numpy() for k, v in module.state_dict().items()}


def expected(x, state, training=False):
    """Equations 1-3 for a batch, in numpy."""
    w1, w2 = (state[f'conv{i}.weight'][:, :, 0, 0] for i in (1, 2))
    b1, b2 = (state.get(f'conv{i}.bias', 0) for i in (1, 2))
    kernels = state['spatial.weight'][0]
    side = kernels.shape[1] // 2
    gated, logits = [], []
    for image in x:
        flat = image.reshape(len(image), -1)
        score = 0
        for pooled in (flat.mean(1), flat.max(1)):
            score = score + w2 @ np.maximum(w1 @ pooled + b1, 0) + b2
        image = image * expit(score)[:, None, None]
        maps = np.pad(
            [image.mean(0), image.max(0)], ((0, 0), (side,) * 2, (side,) * 2)
        )
        gated.append(image)
        logits.append(
            sum(correlate2d(m, k, 'valid') for m, k in zip(maps, kernels))
        )
    gated, logits = np.stack(gated), np.stack(logits)
    if 'norm.weight' in state:
        mean, var = state['norm.running_mean'], state['norm.running_var']
        if training:
            mean, var = logits.mean(), logits.var()
        logits = (logits - mean) / np.sqrt(var + 1e-5)
        logits = logits * state['norm.weight'] + state['norm.bias']
    return gated * expit(logits)[:, None]


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('norm_cfg', [None, BN])
@pytest.mark.parametrize(('bias', 'kernel_size'), [(False, 7), (True, 3)])
def test_equals_the_formula(bias, kernel_size, norm_cfg, training):
    layer = CBAM(12, 4, kernel_size, bias, norm_cfg).double()
    state = randomise(layer)
    x = torch.randn(2, 12, 8, 5, dtype=torch.float64)
    got = layer.train(training)(x).detach().numpy()
    want = expected(x.numpy(), state, training)
    np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('bias', [False, True])
def test_equals_timm(bias, training):
    theirs = CbamModule(24, rd_ratio=1 / 8, mlp_bias=bias).double()
    layer = CBAM(24, reduction=8, bias=bias, norm_cfg=BN).double()
    randomise(theirs)
    names = {
        'channel.fc': 'conv',
        'spatial.conv.conv': 'spatial',
        'spatial.conv.bn': 'norm',
    }
    weights = theirs.state_dict()
    for old, new in names.items():
        weights = {k.replace(old, new): v for k, v in weights.items()}
    layer.load_state_dict(weights)
    x = torch.randn(2, 24, 9, 5, dtype=torch.float64)
    got, want = layer.train(training)(x), theirs.train(training)(x)
    torch.testing.assert_close(got, want)


def test_one_pixel_trains_with_the_running_statistics():
    layer = CBAM(16, norm_cfg=BN).double()
    state = randomise(layer)
    x = torch.randn(1, 16, 1, 1, dtype=torch.float64)
    want = expected(x.numpy(), state)
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)


@pytest.mark.parametrize('norm_cfg', [None, BN])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype, norm_cfg):
    x = torch.full((2, 32, 40, 50), 200.0, dtype=dtype)
    y = CBAM(32, norm_cfg=norm_cfg).to(dtype)(x)
    assert y.dtype == dtype and y.isfinite().all()


@pytest.mark.parametrize(
    ('kwargs', 'count'),
    [
        (dict(in_channels=64), 2 * 64 * 4 + 98),
        (dict(in_channels=64, bias=True), 2 * 64 * 4 + 4 + 64 + 98),
        (dict(in_channels=64, norm_cfg=BN), 2 * 64 * 4 + 98 + 2),
        (dict(in_channels=58, reduction=8), 2 * 58 * 7 + 98),
        (dict(in_channels=8, kernel_size=3), 2 * 8 * 1 + 18),
    ],
)
def test_parameter_count(kwargs, count):
    assert sum(p.numel() for p in CBAM(**kwargs).parameters()) == count


@pytest.mark.parametrize(
    ('plain', 'widths', 'millions'),
    [
        (25_557_032, RESNET50, '28.07'),
        (44_549_160, RESNET101, '49.30'),
        (3_504_872, MOBILENETV2, '4.071'),
    ],
)
def test_backbone_has_the_published_size(plain, widths, millions):
    layers = [CBAM(width) for width in widths]
    count = sum(p.numel() for layer in layers for p in layer.parameters())
    assert f'{(plain + count) / 1e6:#.4g}' == millions


@pytest.mark.parametrize(
    ('kwargs', 'name'),
    [
        (dict(in_channels=0), 'in_channels=0'),
        (dict(in_channels=16, reduction=0), 'reduction=0'),
        (dict(in_channels=16, kernel_size=6), 'kernel_size=6'),
        (dict(in_channels=16, kernel_size=-1), 'kernel_size=-1'),
    ],
)
def test_wrong_arguments_are_named(kwargs, name):
    with pytest.raises(ValueError, match=name):
        CBAM(**kwargs)


def test_the_hidden_layer_keeps_a_width():
    assert CBAM(32, min_width=8).conv1.out_channels == 8
    assert CBAM(256, min_width=8).conv1.out_channels == 16
