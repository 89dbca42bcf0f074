# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dctn
from scipy.special import expit

from mmattn.attention.fca import FCA
from mmattn.attention.se import SE

# The official tables, vertical and horizontal.
OFFICIAL = {
    'top': (
        '00600114513000324635526553342261',
        '01052020060463526333511242113053',
    ),
    'low': (
        '00110221203401301234501234561234',
        '01012012230043154321065432106543',
    ),
    'bot': (
        '61332412445146256162243355625536',
        '64466314456522514350311242115333',
    ),
}
SIZES = [(14, 21), (7, 7), (23, 17), (10, 8), (3, 12), (5, 2), (1, 1)]


def coefficients(x, frequencies, size):
    """Pool, then multiply by explicit cosines, channel by channel."""
    kind, count = frequencies[:3], int(frequencies[3:])
    pooled = F.adaptive_avg_pool2d(x, size).numpy()
    scale = size // 7
    out = np.zeros(x.shape[:2])
    for c in range(x.shape[1]):
        group = c * count // x.shape[1]
        u, v = (int(row[group]) * scale for row in OFFICIAL[kind])
        for i in range(size):
            for j in range(size):
                out[:, c] += (
                    pooled[:, c, i, j]
                    * np.cos(np.pi * u * (i + 0.5) / size)
                    * np.cos(np.pi * v * (j + 0.5) / size)
                )
        out[:, c] *= np.sqrt((2 if u else 1) * (2 if v else 1)) / size
    return out


def expected(x, layer):
    w1, w2 = (w.detach().numpy() for w in layer.parameters())
    z = coefficients(x, layer.frequencies, layer.dct_size)
    gate = expit(np.maximum(z @ w1.T, 0) @ w2.T)
    return x.numpy() * gate[:, :, None, None]


def double(*args, **kwargs):
    layer = FCA(*args, **kwargs).double()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    return layer


@pytest.mark.parametrize('dct_size', [7, 14])
@pytest.mark.parametrize('size', SIZES, ids=str)
def test_equals_pooling_and_cosines(size, dct_size):
    layer = double(32, reduction=5, dct_size=dct_size)
    x = torch.randn(2, 32, *size, dtype=torch.float64)
    got = layer(x).detach().numpy()
    np.testing.assert_allclose(got, expected(x, layer), rtol=1e-9)


@pytest.mark.parametrize('kind', ['top', 'low', 'bot'])
@pytest.mark.parametrize('count', [1, 2, 4, 8, 16, 32])
def test_every_selection_is_the_official_one(kind, count):
    layer = double(32, frequencies=f'{kind}{count}', dct_size=9)
    x = torch.randn(1, 32, 9, 11, dtype=torch.float64)
    got = layer(x).detach().numpy()
    np.testing.assert_allclose(got, expected(x, layer), rtol=1e-9)


@pytest.mark.parametrize('dct_size', [7, 14])
def test_coefficients_are_those_of_the_orthonormal_dct(dct_size):
    x = torch.randn(1, 32, dct_size, dct_size, dtype=torch.float64)
    got = double(32, frequencies='bot32', dct_size=dct_size)._coefficients(x)
    want = dctn(x[0].numpy(), axes=(1, 2), norm='ortho')
    for c, (u, v) in enumerate(zip(*OFFICIAL['bot'])):
        step = dct_size // 7
        coefficient = want[c, int(u) * step, int(v) * step]
        np.testing.assert_allclose(got[0, c], coefficient, rtol=1e-9)


@pytest.mark.parametrize('dct_size', [7, 14])
def test_one_frequency_is_average_pooling(dct_size):
    layer = double(20, reduction=4, frequencies='top1', dct_size=dct_size)
    plain = SE(20, reduction=4).double()
    with torch.no_grad():
        # The transform of a constant is its side times larger.
        plain.conv1.weight.copy_(dct_size * layer.fc1.weight[..., None, None])
        plain.conv2.weight.copy_(layer.fc2.weight[..., None, None])
    x = torch.randn(2, 20, 14, 28, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_transformed_in_float32(dtype):
    layer = FCA(32).to(dtype)
    x = torch.randn(2, 32, 60, 50).to(dtype)
    seen = []
    layer.fc1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    layer(x)
    want = coefficients(x.double(), 'top16', 7)
    np.testing.assert_allclose(
        seen[0].double().numpy(),
        want,
        rtol=torch.finfo(dtype).eps,
        atol=1e-5,
    )


def test_checkpoints_hold_the_two_layers_only():
    layer = FCA(64, reduction=8)
    assert list(layer.state_dict()) == ['fc1.weight', 'fc2.weight']
    assert sum(p.numel() for p in layer.parameters()) == 2 * 64 * 8
    assert FCA(8, frequencies='low8').fc1.out_features == 1


def test_repr_shows_the_settings():
    text = repr(FCA(64, frequencies='low8', dct_size=28))
    assert "frequencies='low8', dct_size=28" in text


@pytest.mark.parametrize(
    ('kwargs', 'names'),
    [
        (dict(in_channels=0), ['in_channels=0']),
        (dict(in_channels=24), ['in_channels=24', "frequencies='top16'"]),
        (dict(in_channels=32, reduction=0), ['reduction=0']),
        (dict(in_channels=32, frequencies='top3'), ["'top3'", "'bot32'"]),
        (dict(in_channels=32, frequencies='mid8'), ["'mid8'"]),
        (dict(in_channels=32, dct_size=6), ['dct_size=6']),
    ],
)
def test_wrong_arguments_are_named(kwargs, names):
    with pytest.raises(ValueError) as error:
        FCA(**kwargs)
    assert all(name in str(error.value) for name in names)
