# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""`attention_weights` says what a module multiplies its input by."""

import weakref

import numpy as np
import pytest
import torch
from probes import ATTENTIONS

from mmattn.attention import GSCA, Attention, NonLocal
from mmattn.registry import MODELS

WIDTH = 32
ROWS = dict(rows=(WIDTH, 1, 0), columns=(WIDTH, 0, 1))
CHANNEL = dict(channel=(WIDTH, 0, 0))

# Names of the weights, in order, with their number of groups and whether they
# run along the height and the width.
EXPECTED = {
    'CBAM': CHANNEL | dict(spatial=(1, 1, 1)),
    'CoordAttention': ROWS,
    'ECA': CHANNEL,
    'ELA': ROWS,
    'EMA': dict(spatial=(WIDTH, 1, 1)),
    'EMA+groups': dict(spatial=(8, 1, 1)),
    'FCA': CHANNEL,
    'GSCA': dict(weight=(1, 1, 1)),
    'GSCA+heads': dict(weight=(4, 1, 1)),
    'GSCA+dot': dict(weight=(2, 1, 1)),
    'GSoP': CHANNEL,
    'PCSA': CHANNEL,
    'PCSA+shuffle': CHANNEL,
    'SCSA': ROWS | CHANNEL,
    'SCSA+shuffle': ROWS | CHANNEL,
    'SCSA+channel': CHANNEL | ROWS,
    'SCSA+both': CHANNEL | ROWS,
    'SE': CHANNEL,
    'SMSA': ROWS,
    'ShuffleAttention': dict(weight=(WIDTH, 1, 1)),
    'ShuffleAttention+odd': dict(weight=(WIDTH, 1, 1)),
}
SETTINGS = {
    'EMA+groups': dict(groups=8),
    'GSCA+heads': dict(num_heads=4, reverse=False, alpha=0.7),
    'GSCA+dot': dict(num_heads=2, similarity='dot'),
    'PCSA+shuffle': dict(num_heads=4, shuffle=True, gate='softmax'),
    'SCSA+shuffle': dict(num_heads=4, shuffle=True),
    'SCSA+channel': dict(channel_first=True),
    'SCSA+both': dict(channel_first=True, num_heads=4, shuffle=True),
    'ShuffleAttention+odd': dict(groups=1),
}
# How many parts of the channels the module interleaves at its end.
INTERLEAVED = {
    'PCSA+shuffle': 4,
    'SCSA+shuffle': 4,
    'SCSA+both': 4,
    'ShuffleAttention': 2,
    'ShuffleAttention+odd': 2,
}
# Those that do not multiply their input; tested on their own.
OTHERS = {'CPCA', 'DoubleAttention', 'NonLocal'}

over_all = pytest.mark.parametrize('name', sorted({*EXPECTED, *OTHERS}))


def build(name):
    """A module in evaluation mode whose weights are far from uniform."""
    layer = MODELS.get(name.split('+')[0])(WIDTH, **SETTINGS.get(name, {}))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer.double().eval()


def image(*size):
    return torch.randn(2, WIDTH, *(size or (15, 22)), dtype=torch.float64)


def test_every_attention_says_what_it_returns():
    tested = {name.split('+')[0] for name in EXPECTED} | OTHERS
    assert {f'mmattn.{name}' for name in tested} == set(ATTENTIONS)


@pytest.mark.parametrize('size', [(15, 22), (1, 8), (8, 1), (1, 1)], ids=str)
@pytest.mark.parametrize('name', EXPECTED)
def test_shapes_are_those_documented(name, size):
    weights = build(name).attention_weights(image(*size))
    want = {
        key: (2, groups, size[0] if rows else 1, size[1] if columns else 1)
        for key, (groups, rows, columns) in EXPECTED[name].items()
    }
    assert [(k, tuple(w.shape)) for k, w in weights.items()] == [*want.items()]


@pytest.mark.parametrize('size', [(15, 22), (4, 3)], ids=str)
@pytest.mark.parametrize('name', EXPECTED)
def test_their_product_with_the_input_is_the_output(name, size):
    x, layer = image(*size), build(name)
    product = x.clone()
    for weight in layer.attention_weights(x).values():
        assert weight.std() > 1e-4  # or a wrong order would not show
        product *= weight.repeat_interleave(WIDTH // weight.shape[1], 1)
    if name in INTERLEAVED:
        parts = product.unflatten(1, (INTERLEAVED[name], -1))
        product = parts.transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(layer(x), product, rtol=1e-9, atol=1e-12)


@over_all
def test_input_and_module_stay_as_they_are(name):
    x, layer = image(), build(name)
    given, state = x.clone(), {k: [*vars(m)] for k, m in layer.named_modules()}
    with torch.no_grad():
        before = layer(x)
        weights = layer.attention_weights(x)
        assert torch.equal(layer(x), before)
    assert torch.equal(x, given)
    assert {k: [*vars(m)] for k, m in layer.named_modules()} == state
    alive = [weakref.ref(w) for w in weights.values()]
    del weights
    assert not any(ref() is not None for ref in alive)


@over_all
def test_forward_computes_and_keeps_nothing_for_it(name, monkeypatch):
    def refuse(self, x):
        raise AssertionError('forward asked for the weights')

    layer = build(name)
    monkeypatch.setattr(type(layer), 'attention_weights', refuse)
    held = {k: [*vars(m)] for k, m in layer.named_modules()}
    y = layer(image())
    assert {k: [*vars(m)] for k, m in layer.named_modules()} == held
    ref = weakref.ref(y)
    del y
    assert ref() is None


@over_all
def test_half_precision_gives_the_same(name):
    x, layer = image().float(), build(name).float()
    want = layer.attention_weights(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got = layer.attention_weights(x)
    for key, weight in layer.half().attention_weights(x.half()).items():
        for other, limit in ((weight, 0.01), (got[key], 0.1)):
            error = (other.float() - want[key]).abs().mean()
            assert error <= limit * want[key].abs().mean()


# ------------------------------------------------------------------- numbers


@pytest.mark.parametrize('reverse', [True, False])
@pytest.mark.parametrize('similarity', ['correlation', 'dot'])
def test_weights_of_gsca_are_the_formula(reverse, similarity):
    layer = GSCA(20, num_heads=2, reverse=reverse, similarity=similarity)
    x = torch.randn(1, 20, 3, 4, dtype=torch.float64)
    got = layer.attention_weights(x)['weight'][0].numpy()
    assert got.shape == (2, 3, 4)
    for head, part in enumerate(x[0].numpy().reshape(2, 10, 3, 4)):
        key = part.mean(axis=(1, 2))
        for row, column in np.ndindex(3, 4):
            pixel = part[:, row, column]
            s = np.corrcoef(pixel, key)[0, 1]
            s = s if similarity == 'correlation' else pixel @ key
            sigma = 1 / (1 + np.exp(-s))
            want = (1 - sigma if reverse else sigma) ** 2
            np.testing.assert_allclose(got[head, row, column], want, 1e-5)


@pytest.mark.parametrize('name', ['DoubleAttention', 'NonLocal'])
def test_what_is_added_is_relative_to_the_pixel(name):
    x, layer = image(), build(name)
    (added,) = layer.attention_weights(x).values()
    want = (layer(x) - x).norm(dim=1) / x.norm(dim=1)
    torch.testing.assert_close(added[:, 0], want)
    layer.init_weights()  # an identity
    assert layer.attention_weights(x)['added'].eq(0).all()


def test_gates_of_cpca_are_those_inside_it():
    x, layer = image(), build('CPCA')
    weights = layer.attention_weights(x)
    shapes = {key: tuple(w.shape) for key, w in weights.items()}
    assert shapes == dict(channel=(2, WIDTH, 1, 1), spatial=(2, WIDTH, 15, 22))
    z = torch.nn.functional.gelu(layer.mix(x))
    want = layer.mix(z * weights['channel'] * weights['spatial'])
    torch.testing.assert_close(layer(x), want)


class Halve(Attention):
    """Says nothing about its weights; the right half it leaves as it is."""

    _abbr_ = 'halve'

    def forward(self, x):
        return torch.cat([x[..., :2] * -0.5, x[..., 2:]], 3)


@pytest.mark.parametrize('scale', [1.0, 1e-6, 1e4])
def test_the_default_is_the_ratio_of_norms(scale):
    x = torch.rand(2, 5, 3, 4) * scale + 0.1 * scale
    weights = Halve().attention_weights(x)
    assert [*weights] == ['ratio']
    want = torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(2, 1, 3, 4)
    torch.testing.assert_close(weights['ratio'], want)


def test_ratios_of_empty_pixels_are_finite():
    for x in (torch.zeros(1, 8, 4, 4), torch.ones(1, 8, 4, 4)):
        x[..., 0] = 0
        layer = NonLocal(8)
        torch.nn.init.constant_(layer.conv_out.conv.bias, 1.0)
        for module in (layer, Halve()):
            for weight in module.attention_weights(x).values():
                assert weight.isfinite().all()
        assert Halve().attention_weights(x)['ratio'][..., 0].eq(0).all()
