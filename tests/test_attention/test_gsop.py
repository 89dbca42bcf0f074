# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from scipy.special import expit

from mmattn.attention.gsop import GSoP


def randomise(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    for name, buffer in module.named_buffers():
        if name.endswith(('mean', 'var')):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    return {k: v.numpy() for k, v in module.state_dict().items()}


def expected(x, state, stride=1, slope=1.0):
    """The gated image ``(C, H, W)`` by numpy's covariance, row by row."""

    def norm(name, row, values):
        weight, bias, mean, var = (
            state[f'{name}.{key}'][row]
            for key in ('weight', 'bias', 'running_mean', 'running_var')
        )
        return (values - mean) / np.sqrt(var + 1e-5) * weight + bias

    pixels = np.maximum(x[:, ::stride, ::stride], 0).reshape(len(x), -1)
    reduced = state['reduce.weight'][:, :, 0, 0] @ pixels
    reduced += state['reduce.bias'][:, None]
    z = [np.maximum(norm('norm', i, row), 0) for i, row in enumerate(reduced)]
    values = []
    for i, row in enumerate(np.cov(z, bias=True)):
        row = norm('row_norm', i, row)
        expansion = len(state['row_conv.weight']) // len(z)
        for j in range(i * expansion, (i + 1) * expansion):
            value = state['row_conv.weight'][j, 0, :, 0] @ row
            value += state['row_conv.bias'][j]
            values.append(value if value > 0 else slope * value)
    logits = state['expand.weight'][:, :, 0, 0] @ values + state['expand.bias']
    return x * expit(logits)[:, None, None]


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('slope', [1.0, 0.1])
@pytest.mark.parametrize('expansion', [4, 3])
def test_equals_the_formula(stride, slope, expansion):
    layer = GSoP(6, 5, expansion, stride, slope).double().eval()
    state = randomise(layer)
    # A small last layer keeps the gates away from 0 and 1.
    state['expand.weight'] *= 0.01
    x = torch.randn(2, 6, 4, 7, dtype=torch.float64)
    want = np.stack([expected(i, state, stride, slope) for i in x.numpy()])
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)


def test_a_map_of_one_pixel_has_zero_covariance():
    layer = GSoP(6, 5).eval()
    randomise(layer)
    x = torch.rand(2, 6, 1, 1) + 0.5
    gate = layer(x) / x
    torch.testing.assert_close(gate[0], gate[1])
    assert not torch.allclose(gate[0, 0], gate[0, 1])


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('size', [(1, 1), (1, 2), (5, 3)])
def test_trains_on_any_batch_and_size(batch, size):
    x = torch.randn(batch, 6, *size, requires_grad=True)
    y = GSoP(6, 5, stride=2)(x)
    y.square().sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


def test_adds_2_73m_parameters_to_a_resnet50():
    with torch.device('meta'):
        modules = [GSoP(c) for c in (256, 512, 1024, 2048)]
    count = sum(p.numel() for m in modules for p in m.parameters())
    assert round(count / 1e6, 2) == 2.73


@pytest.mark.parametrize(('c', 'd', 'r'), [(8, 5, 4), (6, 7, 3)])
def test_number_of_parameters(c, d, r):
    count = sum(p.numel() for p in GSoP(c, d, r).parameters())
    assert count == c * (d + r * d + 1) + d * (5 + r * d + r)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_covariances_are_float32_under_autocast(dtype):
    layer = GSoP(16, 8)
    rows = []
    layer.row_norm.register_forward_pre_hook(lambda _, x: rows.extend(x))
    with torch.autocast('cpu', dtype=dtype):
        y = layer(torch.randn(1, 16, 6, 7).to(dtype))
    assert y.dtype == dtype
    assert not torch.equal(rows[0].to(dtype).float(), rows[0])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_norms_may_stay_in_float32(dtype):
    layer = GSoP(16, 8).to(dtype)
    layer.norm.float()
    layer.row_norm.float()
    assert layer(torch.randn(1, 16, 6, 7).to(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ('kwargs', 'name'),
    [
        (dict(in_channels=0), 'in_channels=0'),
        (dict(in_channels=8, mid_channels=0), 'mid_channels=0'),
        (dict(in_channels=8, row_expansion=0), 'row_expansion=0'),
        (dict(in_channels=8, stride=0), 'stride=0'),
    ],
)
def test_wrong_arguments_are_named(kwargs, name):
    with pytest.raises(ValueError, match=name):
        GSoP(**kwargs)
