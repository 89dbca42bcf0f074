# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from scipy.special import expit
from timm.layers import SEModule

from mmattn.attention.se import SE

BN = dict(type='BN')
RESNET50 = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
RESNET101 = [256] * 3 + [512] * 4 + [1024] * 23 + [2048] * 3


def randomise(module):
    for key, value in module.state_dict().items():
        if 'running_var' in key:
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_()
    return {k: v.clone().numpy() for k, v in module.state_dict().items()}


def expected(x, state, training=False):
    """Squeeze and excite a batch, one channel at a time, in numpy."""
    w1, w2 = (state[f'conv{i}.weight'][:, :, 0, 0] for i in (1, 2))
    b1, b2 = (state.get(f'conv{i}.bias', np.zeros(1)) for i in (1, 2))
    pooled = np.array([[c.sum() / c.size for c in image] for image in x])
    hidden = np.array([[row @ p for row in w1] for p in pooled]) + b1
    if 'norm.weight' in state:
        mean, var = state['norm.running_mean'], state['norm.running_var']
        if training:
            mean, var = hidden.mean(0), hidden.var(0)
        hidden = (hidden - mean) / np.sqrt(var + 1e-5)
        hidden = hidden * state['norm.weight'] + state['norm.bias']
    hidden = np.where(hidden > 0, hidden, 0)
    logits = np.array([[row @ h for row in w2] for h in hidden]) + b2
    return x * expit(logits)[:, :, None, None]


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('norm_cfg', [None, BN])
@pytest.mark.parametrize('bias', [False, True])
def test_equals_the_formula(bias, norm_cfg, training):
    layer = SE(12, reduction=4, bias=bias, norm_cfg=norm_cfg).double()
    state = randomise(layer)
    x = torch.randn(4, 12, 5, 7, dtype=torch.float64)
    got = layer.train(training)(x).detach().numpy()
    want = expected(x.numpy(), state, training)
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_equals_timm():
    theirs = SEModule(24, rd_channels=3).double()
    layer = SE(24, reduction=8, bias=True).double()
    randomise(theirs)
    weights = theirs.state_dict().items()
    layer.load_state_dict({k.replace('fc', 'conv'): v for k, v in weights})
    x = torch.randn(2, 24, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), theirs(x))


@pytest.mark.parametrize('size', [(1, 1), (5, 7)])
def test_one_image_trains_with_the_running_statistics(size):
    layer = SE(16, norm_cfg=BN).double()
    state = randomise(layer)
    x = torch.randn(1, 16, *size, dtype=torch.float64)
    want = expected(x.numpy(), state)
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)
    assert (
        layer.norm.running_mean.numpy() == state['norm.running_mean']
    ).all()


@pytest.mark.parametrize('norm_cfg', [None, BN])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype, norm_cfg):
    x = torch.full((2, 32, 40, 50), 200.0, dtype=dtype)
    y = SE(32, norm_cfg=norm_cfg).to(dtype)(x)
    assert y.dtype == dtype and y.isfinite().all() and (y > 0).all()


@pytest.mark.parametrize(
    ('kwargs', 'count'),
    [
        (dict(in_channels=64), 2 * 64 * 4),
        (dict(in_channels=64, bias=True), 2 * 64 * 4 + 4 + 64),
        (dict(in_channels=64, norm_cfg=BN), 2 * 64 * 4 + 2 * 4),
        # No bias before a norm.
        (dict(in_channels=64, bias=True, norm_cfg=BN), 2 * 64 * 4 + 8 + 64),
        (dict(in_channels=58, reduction=8), 2 * 58 * 7),
        (dict(in_channels=8), 2 * 8 * 1),
    ],
)
def test_parameter_count(kwargs, count):
    assert sum(p.numel() for p in SE(**kwargs).parameters()) == count


@pytest.mark.parametrize(
    ('plain', 'widths', 'norm_cfg', 'millions'),
    [
        (25_557_032, RESNET50, None, '28.07'),
        (44_549_160, RESNET101, None, '49.29'),
        (44_549_160, RESNET101, BN, '49.30'),
    ],
)
def test_resnet_has_the_published_size(plain, widths, norm_cfg, millions):
    layers = [SE(width, norm_cfg=norm_cfg) for width in widths]
    count = sum(p.numel() for layer in layers for p in layer.parameters())
    assert f'{(plain + count) / 1e6:.2f}' == millions


@pytest.mark.parametrize(
    ('kwargs', 'name'),
    [
        (dict(in_channels=0), 'in_channels=0'),
        (dict(in_channels=16, reduction=0), 'reduction=0'),
    ],
)
def test_wrong_arguments_are_named(kwargs, name):
    with pytest.raises(ValueError, match=name):
        SE(**kwargs)
