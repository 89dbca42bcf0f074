# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, softmax

from mmattn.attention import PCSA, SCSA, SMSA
from mmattn.ops import scsa as ops


@pytest.fixture(scope='module')
def oracle():
    """Weights, input, output and gradients of the official module."""
    with np.load(Path(__file__).with_name('scsa_official.npz')) as data:
        return {key: torch.from_numpy(data[key]) for key in data}


def group_norm(x, groups, weight, bias):
    """Normalise ``(C, ...)`` in groups of contiguous channels."""
    grouped = x.reshape(groups, -1)
    mean = grouped.mean(1, keepdims=True)
    std = np.sqrt(grouped.var(1, keepdims=True) + 1e-5)
    shape = (-1,) + (1,) * (x.ndim - 1)
    normal = ((grouped - mean) / std).reshape(x.shape)
    return normal * weight.reshape(shape) + bias.reshape(shape)


def expected_smsa(x, state, kernels, gate_of=expit, norm=group_norm):
    """Equations 1-7 for one image ``(C, H, W)``, in numpy."""

    def convolve(sequence, convs):
        out = []
        for i, part in enumerate(np.split(sequence, len(kernels))):
            weight, bias = (
                state[f'{convs}.{i}.weight'],
                state[f'{convs}.{i}.bias'],
            )
            for row, w, b in zip(part, weight, bias):
                padded = np.pad(row, kernels[i] // 2)
                out.append(np.correlate(padded, w[0], 'valid') + b)
        return np.stack(out)

    def gate(sequence, direction):
        unshared = direction == 'w' and 'convs_w.0.weight' in state
        out = convolve(sequence, 'convs_w' if unshared else 'convs')
        name = f'norm_{direction}'
        weights = state.get(f'{name}.weight'), state.get(f'{name}.bias')
        return gate_of(norm(out, len(kernels), *weights))

    rows, columns = gate(x.mean(2), 'h'), gate(x.mean(1), 'w')
    return x * rows[:, :, None] * columns[:, None, :]


def expected_pcsa(x, state, window, heads, scale='channels'):
    """Equations 8-12 for one image ``(C, H, W)``, in numpy."""
    c, h, w = x.shape
    kh, kw = min(window, h), min(window, w)
    pooled = np.stack(
        [
            x[:, i : i + kh, j : j + kw].mean((1, 2))
            for i in range(0, h - kh + 1, kh)
            for j in range(0, w - kw + 1, kw)
        ],
        axis=1,
    )
    pooled = group_norm(pooled, 1, state['norm.weight'], state['norm.bias'])
    q, k, v = (pooled * state[f'{n}.weight'][:, 0, 0] for n in 'qkv')
    out = []
    for part in np.split(np.arange(c), heads):
        divisor = c / heads if scale == 'channels' else q.shape[1]
        scores = q[part] @ k[part].T / np.sqrt(divisor)
        out.append((softmax(scores, axis=1) @ v[part]).mean(1))
    return x * expit(np.concatenate(out))[:, None, None]


def randomise(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return {k: v.numpy() for k, v in module.state_dict().items()}


@pytest.mark.parametrize('kernels', [(3, 5, 7, 9), (3, 7), (1,)])
def test_smsa_equals_the_formula(kernels):
    layer = SMSA(8, kernels).double()
    state = randomise(layer)
    x = torch.randn(2, 8, 6, 11, dtype=torch.float64)
    want = np.stack([expected_smsa(i, state, kernels) for i in x.numpy()])
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)


def test_smsa_softmax_gate_equals_the_formula():
    layer = SMSA(8, gate='softmax').double()
    state = randomise(layer)
    x = torch.randn(1, 8, 6, 11, dtype=torch.float64)

    def over_channels(logits):
        return softmax(logits, axis=0)

    want = expected_smsa(x[0].numpy(), state, (3, 5, 7, 9), over_channels)
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), want, rtol=1e-9)


def layer_norm(x, groups, weight, bias):
    """Normalise the channels of each position of ``(C, L)``."""
    normal = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    return normal * weight[:, None] + bias[:, None]


@pytest.mark.parametrize(
    ('kwargs', 'norm'),
    [
        (dict(norm=None), lambda x, *_: x),
        (dict(norm='layer'), layer_norm),
        (dict(shared=False), group_norm),
    ],
)
def test_smsa_ablations_equal_the_formula(kwargs, norm):
    layer = SMSA(8, **kwargs).double()
    state = randomise(layer)
    x = torch.randn(1, 8, 6, 11, dtype=torch.float64)
    want = expected_smsa(x[0].numpy(), state, (3, 5, 7, 9), norm=norm)
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), want, rtol=1e-9)


def test_smsa_batch_norm_is_over_images_and_positions():
    layer = SMSA(8, norm='batch').double()
    state = randomise(layer)
    x = torch.randn(3, 8, 6, 11, dtype=torch.float64)
    gates = {}
    for name, axis in dict(norm_h=3, norm_w=2).items():
        parts = x.mean(axis).chunk(4, dim=1)
        out = [f(p) for f, p in zip(layer.convs, parts)]
        out = torch.cat(out, dim=1).detach().numpy()
        mean = out.mean((0, 2), keepdims=True)
        std = np.sqrt(out.var((0, 2), keepdims=True) + 1e-5)
        weight = state[f'{name}.weight'][:, None]
        bias = state[f'{name}.bias'][:, None]
        gates[name] = expit((out - mean) / std * weight + bias)
    want = x.numpy() * gates['norm_h'][..., None]
    want *= gates['norm_w'][:, :, None, :]
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)


def test_smsa_norm_first_normalises_what_is_convolved():
    layer = SMSA(8, norm_first=True).double()
    state = randomise(layer)
    x = torch.randn(1, 8, 10, 11, dtype=torch.float64)
    gates = []
    for name, axis in dict(h=2, w=1).items():
        norm = state[f'norm_{name}.weight'], state[f'norm_{name}.bias']
        sequence = group_norm(x[0].numpy().mean(axis), 4, *norm)
        rows = []
        for i, part in enumerate(np.split(sequence, 4)):
            weight, bias = state[f'convs.{i}.weight'], state[f'convs.{i}.bias']
            for row, w, b in zip(part, weight[:, 0], bias):
                rows.append(np.convolve(row, w[::-1], 'same') + b)
        gates.append(expit(np.stack(rows)))
    want = x[0].numpy() * gates[0][:, :, None] * gates[1][:, None, :]
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), want, rtol=1e-9)


def test_pcsa_scale_by_pixels_equals_the_formula():
    layer = PCSA(8, scale='pixels').double()
    state = randomise(layer)
    x = torch.randn(1, 8, 14, 23, dtype=torch.float64)
    want = expected_pcsa(x[0].numpy(), state, 7, 1, scale='pixels')
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), want, rtol=1e-9)


def test_shuffle_interleaves_the_heads():
    x = torch.randn(1, 8, 9, 9)
    plain, shuffled = PCSA(8, num_heads=2), PCSA(8, num_heads=2, shuffle=True)
    shuffled.load_state_dict(plain.state_dict())
    want = plain(x)[:, [0, 4, 1, 5, 2, 6, 3, 7]]
    assert torch.equal(shuffled(x), want)


def test_channel_first_exchanges_the_two_parts():
    x = torch.randn(2, 8, 9, 15)
    layer = SCSA(8, channel_first=True)
    assert torch.equal(layer(x), layer.smsa(layer.pcsa(x)))
    assert not torch.equal(layer(x), layer.pcsa(layer.smsa(x)))


@pytest.mark.parametrize(
    ('kwargs', 'parameters'),
    [
        (dict(norm=None), 12),
        (dict(norm='batch'), 16),
        (dict(norm='layer'), 16),
        (dict(shared=False), 23),  # the paper: 7 more a channel
        (dict(kernel_sizes=(3,)), 13),
        (dict(num_heads=4, shuffle=True), 16),
        (dict(channel_first=True, norm_first=True, scale='pixels'), 16),
    ],
)
def test_ablations_have_their_parameters(kwargs, parameters):
    layer = SCSA(32, **kwargs)
    assert sum(p.numel() for p in layer.parameters()) == 32 * parameters


@pytest.mark.parametrize('heads', [1, 2, 4])
@pytest.mark.parametrize('size', [(14, 23), (7, 7), (5, 9), (3, 2), (1, 1)])
def test_pcsa_equals_the_formula(heads, size):
    layer = PCSA(8, num_heads=heads).double()
    state = randomise(layer)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    want = np.stack([expected_pcsa(i, state, 7, heads) for i in x.numpy()])
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)


def test_window_of_none_pools_everything():
    layer = PCSA(8, window_size=None).double()
    state = randomise(layer)
    x = torch.randn(1, 8, 9, 15, dtype=torch.float64)
    want = expected_pcsa(x[0].numpy(), state, 100, 1)
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), want, rtol=1e-9)


def test_equals_the_official_module(oracle, official_to_mmattn):
    layer = SCSA(16).double()
    weights = {k[2:]: v for k, v in oracle.items() if k.startswith('w:')}
    layer.load_state_dict(official_to_mmattn(weights))
    x = oracle['x'].requires_grad_()
    y = layer(x)
    y.backward(oracle['g'])
    torch.testing.assert_close(y, oracle['y'], rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, oracle['dx'], rtol=0, atol=1e-10)


def test_softmax_gates_sum_to_one_over_channels():
    x = torch.rand(2, 8, 9, 10) + 0.5
    gate = PCSA(8, gate='softmax')(x) / x
    torch.testing.assert_close(gate.sum(1), torch.ones(2, 9, 10))


@pytest.mark.parametrize('width', [16, 64, 256])
def test_has_16_parameters_a_channel(width):
    assert sum(p.numel() for p in SCSA(width).parameters()) == 16 * width


def test_attention_dropout_only_acts_in_training():
    x = torch.randn(1, 16, 14, 14)
    layer = SCSA(16, attn_drop=0.9)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    plain = SCSA(16).eval()
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), plain(x))


def test_init_weights_restores_what_a_backbone_overwrote():
    layer = SCSA(16)
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    layer.init_weights()
    assert all((p != 7).all() for p in layer.parameters())
    assert (layer.pcsa.norm.weight == 1).all()


@pytest.mark.parametrize('cls', [PCSA, SCSA])
def test_own_init_cfg_comes_after_the_modules_start(cls):
    layer = cls(8, init_cfg=dict(type='Constant', val=0.5, layer='Conv2d'))
    torch.nn.init.constant_(getattr(layer, 'pcsa', layer).norm.weight, 7.0)
    layer.init_weights()
    part = getattr(layer, 'pcsa', layer)
    assert all((conv.weight == 0.5).all() for conv in (part.q, part.v))
    assert (part.norm.weight == 1).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_loses_only_the_rounding_of_the_map(dtype):
    # Stage 1 of a detector: scores are sums over 28 x 47 windows.
    layer = PCSA(64)
    x = torch.randn(1, 64, 200, 334).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        half = layer(x)
    assert half.dtype == dtype
    gate, want = half.float() / x.float(), layer(x.float()) / x.float()
    near = x.float().abs() > 0.5
    error = (gate - want)[near].abs().max()
    assert error < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ('cls', 'kwargs', 'name'),
    [
        (SMSA, dict(in_channels=18), 'in_channels=18'),
        (SMSA, dict(in_channels=16, kernel_sizes=(3, 4)), '(3, 4)'),
        (SMSA, dict(in_channels=16, kernel_sizes=()), 'kernel_sizes=()'),
        (SMSA, dict(in_channels=16, gate='relu'), "gate='relu'"),
        (PCSA, dict(in_channels=0), 'in_channels=0'),
        (PCSA, dict(in_channels=16, window_size=0), 'window_size=0'),
        (PCSA, dict(in_channels=16, num_heads=3), 'num_heads=3'),
        (PCSA, dict(in_channels=16, attn_drop=1.0), 'attn_drop=1.0'),
        (PCSA, dict(in_channels=16, gate='tanh'), "gate='tanh'"),
        (PCSA, dict(in_channels=16, scale='width'), "scale='width'"),
        (PCSA, dict(in_channels=16, shuffle=True), 'shuffle=True'),
        (SMSA, dict(in_channels=16, norm='instance'), "norm='instance'"),
        (SCSA, dict(in_channels=30), 'in_channels=30'),
    ],
)
def test_wrong_arguments_are_named(cls, kwargs, name):
    with pytest.raises(ValueError) as error:
        cls(**kwargs)
    assert name in str(error.value)


def test_small_maps_pool_as_a_whole():
    x = torch.randn(1, 8, 3, 5)
    torch.testing.assert_close(ops.pool(x, 7), F.adaptive_avg_pool2d(x, 1))
