# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from scipy.special import expit
from timm.layers import EcaModule

from mmattn.attention.eca import ECA

STAGES = (256, 512, 1024, 2048)
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def kernel_of(layer):
    return layer.conv.kernel_size[0]


@pytest.mark.parametrize('kernel_size', [1, 3, 5, 9])
def test_equals_the_formula(kernel_size):
    layer = ECA(6, kernel_size).double()
    torch.nn.init.normal_(layer.conv.weight)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    weight = layer.conv.weight.detach().numpy().ravel()
    want = np.empty(x.shape)
    for b, image in enumerate(x.numpy()):
        for c in range(6):
            logit = 0
            for tap, w in enumerate(weight):
                neighbour = c + tap - kernel_size // 2
                if 0 <= neighbour < 6:
                    logit += w * image[neighbour].sum() / 35
            want[b, c] = image[c] * expit(logit)
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)


@pytest.mark.parametrize('kernel_size', [3, 7])
def test_equals_timm(kernel_size):
    theirs = EcaModule(kernel_size=kernel_size).double()
    layer = ECA(20, kernel_size).double()
    layer.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 20, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), theirs(x))


@pytest.mark.parametrize('width', [1, 2, 8, 9, 24, 128, 129, 2048, 2049, 8192])
def test_kernel_is_the_nearest_odd_number(width):
    # (log2(C) + 1) / 2 is at most an even 2m where C is at most 2^(4m - 1).
    want = next(2 * m - 1 for m in range(1, 9) if width <= 2 ** (4 * m - 1))
    assert kernel_of(ECA(width)) == want


@pytest.mark.parametrize(
    ('width', 'kernel'),
    [(2, 1), (8, 3), (32, 3), (127, 3), (128, 5), (512, 5), (2048, 7)],
)
def test_official_rounding_truncates_then_raises(width, kernel):
    assert kernel_of(ECA(width, kernel_rule='up')) == kernel


def test_gamma_and_beta():
    assert kernel_of(ECA(64, gamma=1)) == 7
    assert kernel_of(ECA(64, gamma=1, beta=3)) == 9
    assert kernel_of(ECA(64, beta=-20)) == 1


@pytest.mark.parametrize(
    ('depth', 'rule', 'count'),
    [
        (50, 'nearest', 80),
        (101, 'nearest', 165),
        (152, 'nearest', 250),
        (50, 'up', 86),
    ],
)
def test_resnet_has_the_published_count(depth, rule, count):
    layers = [
        ECA(width, kernel_rule=rule)
        for width, blocks in zip(STAGES, DEPTHS[depth])
        for _ in range(blocks)
    ]
    got = sum(p.numel() for layer in layers for p in layer.parameters())
    assert got == count


@pytest.mark.parametrize(
    ('kwargs', 'name'),
    [
        (dict(in_channels=0), 'in_channels=0'),
        (dict(in_channels=16, kernel_size=4), 'kernel_size=4'),
        (dict(in_channels=16, kernel_size=0), 'kernel_size=0'),
        (dict(in_channels=16, kernel_size=-3), 'kernel_size=-3'),
        (dict(in_channels=16, gamma=0), 'gamma=0'),
        (dict(in_channels=16, kernel_rule='down'), "kernel_rule='down'"),
    ],
)
def test_wrong_arguments_are_named(kwargs, name):
    with pytest.raises(ValueError, match=name):
        ECA(**kwargs)


@pytest.mark.parametrize(
    ('width', 'kernel'), [(16, 1), (64, 1), (95, 1), (96, 3), (2048, 3)]
)
def test_two_sizes_turn_at_96_channels(width, kernel):
    assert kernel_of(ECA(width, kernel_rule='two_sizes')) == kernel
