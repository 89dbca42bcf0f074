# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch

from mmattn.attention import GSCA

PRECISIONS = [torch.float32, torch.float16, torch.bfloat16]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def expected(x, num_heads, alpha=2.0, reverse=True):
    """Equations 3-8 by numpy's correlation coefficient, pixel by pixel."""
    batch, channels, height, width = x.shape
    size = channels // num_heads
    out = np.empty_like(x)
    for b in range(batch):
        for h in range(num_heads):
            part = x[b, h * size : (h + 1) * size]
            key = part.mean(axis=(1, 2))
            for i in range(height):
                for j in range(width):
                    rho = np.corrcoef(part[:, i, j], key)[0, 1]
                    a = sigmoid(-rho) if reverse else sigmoid(rho)
                    out[b, h * size : (h + 1) * size, i, j] = (
                        a**alpha * part[:, i, j]
                    )
    return out


# All sizes differ: the paper's own listing runs, wrongly, where they agree.
@pytest.mark.parametrize('num_heads', [1, 2, 3])
@pytest.mark.parametrize('alpha', [1.0, 1.5, 2.0])
@pytest.mark.parametrize('reverse', [True, False])
def test_equals_pearson_correlation(num_heads, alpha, reverse):
    x = torch.randn(2, 12, 5, 7, dtype=torch.float64)
    layer = GSCA(12, num_heads=num_heads, alpha=alpha, reverse=reverse)
    want = expected(x.numpy(), num_heads, alpha, reverse)
    np.testing.assert_allclose(layer(x).numpy(), want, rtol=1e-5)


def test_dot_similarity_is_the_unscaled_product():
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    key = x.numpy().mean(axis=(2, 3), keepdims=True)
    dot = (x.numpy() * key).sum(1, keepdims=True)
    want = sigmoid(-dot) ** 2 * x.numpy()
    got = GSCA(6, similarity='dot')(x).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_gradient_is_that_of_the_formula():
    x = torch.randn(1, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(GSCA(8, num_heads=2), x)


def test_weights_lie_in_the_range_of_the_exponent():
    x = torch.rand(2, 64, 9, 9) + 0.1
    weight = GSCA(64)(x) / x
    low, high = sigmoid(-1) ** 2, sigmoid(1) ** 2
    assert low - 1e-6 <= weight.min() and weight.max() <= high + 1e-6


@pytest.mark.parametrize('scale', [1e-6, 1e4])
def test_scale_of_the_map_does_not_change_the_weights(scale):
    x = torch.randn(1, 16, 6, 6)
    layer = GSCA(16)
    torch.testing.assert_close(layer(x * scale), layer(x) * scale)


def test_offset_of_a_pixel_hardly_changes_its_weight():
    x = torch.randn(1, 16, 6, 6, dtype=torch.float64)
    layer = GSCA(16)
    weight = layer(x + 10) / (x + 10)
    torch.testing.assert_close(weight, layer(x) / x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('dtype', PRECISIONS)
@pytest.mark.parametrize('similarity', ['correlation', 'dot'])
@pytest.mark.parametrize(
    'fill', [0.0, 1e-6, 0.1, 100.0, 'half zero', 'zero but one']
)
def test_constant_and_zero_pixels_are_finite(dtype, similarity, fill):
    if fill == 'half zero':
        x = torch.randn(2, 64, 4, 5).relu()
        x[:, :, :2] = 0
    elif fill == 'zero but one':
        x = torch.zeros(2, 64, 4, 5)
        x[:, :, 1, 1] = torch.randn(64)
    else:
        x = torch.full((2, 64, 4, 5), fill)
    x = x.to(dtype).requires_grad_()
    y = GSCA(64, similarity=similarity)(x)
    y.float().sum().backward()
    assert y.dtype == dtype
    assert y.isfinite().all() and x.grad.isfinite().all()


def test_constant_pixel_counts_as_uncorrelated():
    x = torch.randn(1, 8, 2, 2)
    x[..., 0, 0] = 3.0
    got = GSCA(8)(x)[..., 0, 0]
    torch.testing.assert_close(got, torch.full_like(got, 3 * 0.25))


@pytest.mark.parametrize(
    ('width', 'heads'),
    [(16, 1), (58, 1), (64, 1), (96, 2), (144, 2), (512, 8), (960, 15)],
)
def test_heads_hold_about_64_channels(width, heads):
    assert GSCA(width).num_heads == heads


@pytest.mark.parametrize(
    'norm', [torch.nn.BatchNorm2d, torch.nn.InstanceNorm2d]
)
def test_gradient_stays_bounded_where_the_key_vanishes(norm):
    # One image, centred: its average is zero but for rounding.
    model = torch.nn.Sequential(norm(64, affine=True), GSCA(64))
    model(torch.randn(1, 64, 20, 30)).square().sum().backward()
    assert model[0].bias.grad.abs().max() < 1e5


def test_has_no_parameters():
    assert not GSCA(64).state_dict()


@pytest.mark.parametrize(
    ('kwargs', 'names'),
    [
        (dict(in_channels=0), ['in_channels=0']),
        (dict(in_channels=163), ['channels_per_head=64', 'in_channels=163']),
        (dict(in_channels=64, num_heads=3), ['num_heads=3', 'in_channels=64']),
        (dict(in_channels=64, num_heads=0), ['num_heads=0']),
        (dict(in_channels=64, channels_per_head=0), ['channels_per_head=0']),
        (dict(in_channels=64, alpha=0), ['alpha=0']),
        (dict(in_channels=64, alpha=float('nan')), ['alpha=nan']),
        (dict(in_channels=64, similarity='cosine'), ["'cosine'", "'dot'"]),
        (dict(in_channels=64, eps=0), ['eps=0']),
    ],
)
def test_wrong_arguments_are_named(kwargs, names):
    with pytest.raises(ValueError) as error:
        GSCA(**kwargs)
    assert all(name in str(error.value) for name in names)
