# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from scipy.special import expit

from mmattn.attention.shuffle_attention import ShuffleAttention


def expected(x, state, groups):
    """Equations 1-3 and the shuffle, channel by channel."""
    batch, channels = x.shape[:2]
    width = channels // (2 * groups)
    out = np.empty_like(x)
    for b in range(batch):
        for c in range(channels):
            pixels, k = x[b, c], c % width
            if c // width % 2 == 0:
                source, kind = pixels.mean(), 'channel'
            else:
                source = (pixels - pixels.mean()) / np.sqrt(
                    pixels.var() + 1e-5
                )
                source = (
                    source * state['norm.weight'][k] + state['norm.bias'][k]
                )
                kind = 'spatial'
            scale = state[f'{kind}_scale'][k, 0, 0]
            shift = state[f'{kind}_shift'][k, 0, 0]
            half, place = divmod(c, channels // 2)
            gated = pixels * expit(source * scale + shift)
            out[b, 2 * place + half] = gated
    return out


@pytest.mark.parametrize(
    ('channels', 'wanted', 'groups'),
    [(12, 2, 2), (12, 1, 1), (12, 64, 2), (20, 64, 2), (16, 64, 8)],
)
@pytest.mark.parametrize('size', [(5, 7), (1, 3), (1, 1)])
def test_equals_the_formula(channels, wanted, groups, size):
    layer = ShuffleAttention(channels, wanted).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    state = {k: v.numpy() for k, v in layer.state_dict().items()}
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    got = layer(x).detach().numpy()
    np.testing.assert_allclose(got, expected(x.numpy(), state, groups), 1e-9)


@pytest.mark.parametrize(
    ('channels', 'groups'),
    [(2, 1), (58, 1), (64, 32), (144, 8), (256, 64), (2048, 64)],
)
def test_number_of_groups_and_parameters(channels, groups):
    layer = ShuffleAttention(channels)
    assert layer.groups == groups
    count = sum(p.numel() for p in layer.parameters())
    assert count == 3 * channels // groups


def test_gates_start_at_the_sigmoid_of_one():
    layer = ShuffleAttention(8, groups=2)
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    layer.init_weights()
    x = torch.randn(1, 8, 3, 4)
    shuffled = x[:, [0, 4, 1, 5, 2, 6, 3, 7]]
    torch.testing.assert_close(layer(x), shuffled * expit(1.0))


@pytest.mark.parametrize(
    ('kwargs', 'name'),
    [
        (dict(in_channels=0), 'in_channels=0'),
        (dict(in_channels=33), 'in_channels=33'),
        (dict(in_channels=32, groups=0), 'groups=0'),
    ],
)
def test_wrong_arguments_are_named(kwargs, name):
    with pytest.raises(ValueError, match=name):
        ShuffleAttention(**kwargs)
