# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from scipy.special import expit, softmax

from mmattn.attention.ema import EMA


def expected_group(x, state):
    """The module on one group of one image, ``(C / groups, H, W)``."""
    mix, bias = state['conv1x1.weight'][:, :, 0, 0], state['conv1x1.bias']
    u, v = np.empty_like(x), np.empty_like(x)
    rows = expit(mix @ x.mean(2) + bias[:, None])
    columns = expit(mix @ x.mean(1) + bias[:, None])
    for c in range(len(x)):
        gated = x[c] * np.outer(rows[c], columns[c])
        normal = (gated - gated.mean()) / np.sqrt(gated.var() + 1e-5)
        u[c] = normal * state['norm.weight'][c] + state['norm.bias'][c]
        v[c] = state['conv3x3.bias'][c] + sum(
            correlate2d(plane, kernel, 'same')
            for plane, kernel in zip(x, state['conv3x3.weight'][c])
        )
    logits = np.tensordot(softmax(u.mean((1, 2))), v, 1)
    logits += np.tensordot(softmax(v.mean((1, 2))), u, 1)
    return x * expit(logits)


@pytest.mark.parametrize(
    ('channels', 'wanted', 'groups'),
    [(12, 3, 3), (12, 1, 1), (12, 32, 4), (5, 32, 1), (6, 6, 6)],
)
@pytest.mark.parametrize('size', [(5, 7), (1, 3), (1, 1)])
def test_equals_the_formula(channels, wanted, groups, size):
    layer = EMA(channels, wanted).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    state = {k: v.numpy() for k, v in layer.state_dict().items()}
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    got = layer(x).detach().numpy()
    want = [
        np.concatenate(
            [expected_group(g, state) for g in np.split(image, groups)]
        )
        for image in x.numpy()
    ]
    np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize(
    ('channels', 'groups'), [(64, 32), (58, 2), (144, 16), (512, 32), (7, 1)]
)
def test_number_of_groups_and_parameters(channels, groups):
    layer = EMA(channels)
    width = channels // groups
    assert layer.groups == groups
    count = sum(p.numel() for p in layer.parameters())
    assert count == 10 * width**2 + 4 * width


@pytest.mark.parametrize('name', ['in_channels', 'groups'])
def test_wrong_arguments_are_named(name):
    with pytest.raises(ValueError, match=f'{name}=0'):
        EMA(**{'in_channels': 32, name: 0})
