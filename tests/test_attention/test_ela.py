# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from mmattn.attention.ela import ELA

VARIANTS = {
    'T': dict(kernel_size=5, num_groups=32),
    'B': {},
    'S': dict(kernel_size=5, channels_per_group=8),
    'L': dict(channels_per_group=8),
}


def expected_gate(sequence, state, num_groups):
    """The gate of one direction of one image, ``(C, L)``, in numpy."""
    weight = state['conv.weight']
    channels, mixed, size = weight.shape
    out = []
    for c in range(channels):
        first = c // mixed * mixed
        out.append(
            sum(
                np.correlate(np.pad(row, size // 2), kernel, 'valid')
                for row, kernel in zip(sequence[first:], weight[c])
            )
        )
    groups = np.split(np.stack(out), num_groups)
    normal = [(g - g.mean()) / np.sqrt(g.var() + 1e-5) for g in groups]
    scale, shift = state['norm.weight'], state['norm.bias']
    return expit(np.concatenate(normal) * scale[:, None] + shift[:, None])


@pytest.mark.parametrize(
    ('kwargs', 'groups'),
    [
        (dict(in_channels=12, num_groups=3), 3),
        (dict(in_channels=12), 4),
        (dict(in_channels=12, kernel_size=5, channels_per_group=4), 4),
        (dict(in_channels=12, kernel_size=1, channels_per_group=12), 4),
        (dict(in_channels=7), 1),
    ],
)
@pytest.mark.parametrize('size', [(5, 9), (1, 3), (1, 1)])
def test_equals_the_formula(kwargs, groups, size):
    layer = ELA(**kwargs).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    state = {k: v.numpy() for k, v in layer.state_dict().items()}
    x = torch.randn(2, kwargs['in_channels'], *size, dtype=torch.float64)
    want = [
        image
        * expected_gate(image.mean(2), state, groups)[:, :, None]
        * expected_gate(image.mean(1), state, groups)[:, None, :]
        for image in x.numpy()
    ]
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)


def test_equals_the_recorded_module():
    with np.load(Path(__file__).with_name('ela_official.npz')) as data:
        oracle = {key: torch.from_numpy(data[key]) for key in data}
    layer = ELA(32).double()
    layer.load_state_dict(
        {
            'conv.weight': oracle['w:conv.weight'],
            'norm.weight': oracle['w:gn.weight'],
            'norm.bias': oracle['w:gn.bias'],
        }
    )
    x = oracle['x'].requires_grad_()
    y = layer(x)
    y.backward(oracle['g'])
    torch.testing.assert_close(y, oracle['y'], rtol=0, atol=1e-10)
    torch.testing.assert_close(x.grad, oracle['dx'], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ('variant', 'per_channel'), [('T', 7), ('B', 9), ('S', 42), ('L', 58)]
)
@pytest.mark.parametrize('width', [64, 256])
def test_parameters_of_the_variants(variant, per_channel, width):
    layer = ELA(width, **VARIANTS[variant])
    count = sum(p.numel() for p in layer.parameters())
    assert count == per_channel * width
    assert layer.norm.num_groups == (32 if variant == 'T' else 16)


@pytest.mark.parametrize(
    ('kwargs', 'name'),
    [
        (dict(in_channels=0), 'in_channels=0'),
        (dict(kernel_size=4), 'kernel_size=4'),
        (dict(kernel_size=-1), 'kernel_size=-1'),
        (dict(channels_per_group=0), 'channels_per_group=0'),
        (dict(channels_per_group=5), 'channels_per_group=5.*in_channels=32'),
        (dict(num_groups=0), 'num_groups=0'),
    ],
)
def test_wrong_arguments_are_named(kwargs, name):
    with pytest.raises(ValueError, match=name):
        ELA(**{'in_channels': 32, **kwargs})
