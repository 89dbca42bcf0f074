# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from scipy.special import expit, ndtr

from mmattn.attention.cpca import CPCA


def pointwise(x, state, name):
    """A 1x1 convolution of ``(C, ...)``."""
    weight, bias = state[f'{name}.weight'], state[f'{name}.bias']
    return (np.tensordot(weight[:, :, 0, 0], x, 1).T + bias).T


def depthwise(x, state, name):
    """A depthwise convolution of ``(C, H, W)``."""
    weight, bias = state[f'{name}.weight'], state[f'{name}.bias']
    planes = zip(x, weight, bias)
    return np.stack([correlate2d(p, w[0], 'same') + b for p, w, b in planes])


def expected(x, state):
    """The module on one image, ``(C, H, W)``, in numpy."""
    z = pointwise(x, state, 'mix')
    z *= ndtr(z)
    gate = 0
    for descriptor in (z.mean((1, 2)), z.max((1, 2))):
        hidden = np.maximum(pointwise(descriptor, state, 'squeeze'), 0)
        gate = gate + expit(pointwise(hidden, state, 'expand'))
    prior = z * gate[:, None, None]
    local = depthwise(prior, state, 'local')
    context = local.copy()
    for i in range(3):
        strip = depthwise(local, state, f'strips.{i}.0')
        context += depthwise(strip, state, f'strips.{i}.1')
    return pointwise(prior * pointwise(context, state, 'mix'), state, 'mix')


@pytest.mark.parametrize(
    ('channels', 'reduction'), [(8, 2), (8, 4), (6, 16), (5, 2)]
)
@pytest.mark.parametrize('size', [(13, 24), (3, 2), (1, 1)])
def test_equals_the_formula(channels, reduction, size):
    layer = CPCA(channels, reduction).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    state = {k: v.numpy() for k, v in layer.state_dict().items()}
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    want = [expected(image, state) for image in x.numpy()]
    got = layer(x).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_kernels_are_rows_then_columns():
    shapes = [
        tuple(conv.weight.shape[2:])
        for pair in CPCA(8).strips
        for conv in pair
    ]
    assert shapes == [(1, 7), (7, 1), (1, 11), (11, 1), (1, 21), (21, 1)]


@pytest.mark.parametrize(
    ('channels', 'reduction', 'width'),
    [(64, 16, 4), (64, 4, 16), (58, 16, 3), (8, 16, 1)],
)
def test_number_of_parameters(channels, reduction, width):
    count = sum(p.numel() for p in CPCA(channels, reduction).parameters())
    want = channels**2 + 2 * channels * width + width + 112 * channels
    assert count == want


@pytest.mark.parametrize('name', ['in_channels', 'reduction'])
def test_wrong_arguments_are_named(name):
    with pytest.raises(ValueError, match=f'{name}=0'):
        CPCA(**{'in_channels': 32, name: 0})
