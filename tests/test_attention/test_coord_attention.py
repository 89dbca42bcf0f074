# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from mmattn.attention.coord_attention import CoordAttention

OFFICIAL_NAMES = {
    'conv.conv': 'squeeze',
    'conv.bn': 'norm',
    'attn_h': 'expand_h',
    'attn_w': 'expand_w',
}


def expected(x, state, training=False):
    """Equations 4-9, position by position."""
    batch, _, height, width = x.shape
    squeeze = state['squeeze.weight'][:, :, 0, 0]
    bias = state.get('squeeze.bias', 0)
    hidden = np.stack(
        [
            [squeeze @ image[:, i].mean(1) + bias for i in range(height)]
            + [squeeze @ image[:, :, j].mean(1) + bias for j in range(width)]
            for image in x
        ]
    )  # (B, H + W, m)
    if training:
        mean, var = hidden.mean((0, 1)), hidden.var((0, 1))
    else:
        mean, var = state['norm.running_mean'], state['norm.running_var']
    hidden = (hidden - mean) / np.sqrt(var + 1e-5)
    hidden = hidden * state['norm.weight'] + state['norm.bias']
    hidden *= np.clip(hidden + 3, 0, 6) / 6

    out = np.empty_like(x)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                gates = [
                    expit(
                        state[f'{name}.weight'][:, :, 0, 0] @ hidden[b, k]
                        + state[f'{name}.bias']
                    )
                    for name, k in (('expand_h', i), ('expand_w', height + j))
                ]
                out[b, :, i, j] = x[b, :, i, j] * gates[0] * gates[1]
    return out


def randomise(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2)
    return {k: v.numpy() for k, v in module.state_dict().items()}


@pytest.mark.parametrize('conv_bias', [False, True])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('size', [(5, 8), (1, 4), (1, 1)])
def test_equals_the_formula(conv_bias, training, size):
    layer = CoordAttention(6, min_width=3, conv_bias=conv_bias).double()
    state = randomise(layer.train(training))
    state = {k: v.copy() for k, v in state.items()}
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    got = layer(x).detach().numpy()
    want = expected(x.numpy(), state, training)
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_equals_the_official_module():
    with np.load(Path(__file__).with_name('ca_official.npz')) as data:
        oracle = {key: torch.from_numpy(data[key]) for key in data}
    weights = {}
    for key, value in oracle.items():
        if key.startswith('w:'):
            module, name = key[2:].rsplit('.', 1)
            weights[f'{OFFICIAL_NAMES[module]}.{name}'] = value
    layer = CoordAttention(32).double().eval()
    layer.load_state_dict(weights)
    x = oracle['x'].requires_grad_()
    y = layer(x)
    y.backward(oracle['g'])
    torch.testing.assert_close(y, oracle['y'], rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, oracle['dx'], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ('kwargs', 'width'),
    [
        (dict(in_channels=512), 16),
        (dict(in_channels=144), 8),
        (dict(in_channels=144, reduction=4), 36),
        (dict(in_channels=144, min_width=1), 4),
        (dict(in_channels=7, min_width=2), 2),
    ],
)
def test_width_of_the_bottleneck(kwargs, width):
    layer = CoordAttention(**kwargs)
    c = kwargs['in_channels']
    assert layer.norm.num_features == width
    count = sum(p.numel() for p in layer.parameters())
    assert count == 3 * c * width + 2 * c + 2 * width
    biased = CoordAttention(**kwargs, conv_bias=True)
    assert sum(p.numel() for p in biased.parameters()) == count + width


@pytest.mark.parametrize('name', ['in_channels', 'reduction', 'min_width'])
def test_wrong_arguments_are_named(name):
    with pytest.raises(ValueError, match=f'{name}=0'):
        CoordAttention(**{'in_channels': 32, name: 0})
