# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from scipy.special import softmax

from mmattn.attention.double_attention import DoubleAttention


def randomise(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return {k: v.numpy() for k, v in module.state_dict().items()}


def expected(x, state):
    """Equations 2-6 for one image ``(C, H, W)``, pixel by pixel."""
    pixels = x.reshape(len(x), -1).T

    def conv(name, pixel):
        weight = state[f'{name}.weight'][:, :, 0, 0]
        return weight @ pixel + state.get(f'{name}.bias', 0)

    features = np.stack([conv('features', p) for p in pixels])  # (HW, m)
    scores = np.stack([conv('gather', p) for p in pixels])  # (HW, n)
    descriptors = [
        sum(w * f for w, f in zip(softmax(column), features))
        for column in scores.T
    ]
    out = []
    for pixel in pixels:
        weights = softmax(conv('distribute', pixel))
        z = sum(w * g for w, g in zip(weights, descriptors))
        out.append(pixel + conv('conv_out', z))
    return np.stack(out, axis=1).reshape(x.shape)


@pytest.mark.parametrize('widths', [(4, 5), (5, 4), (1, 3), (3, 1)])
@pytest.mark.parametrize('size', [(3, 7), (1, 1)])
def test_equals_the_formula(widths, size):
    layer = DoubleAttention(6, *widths).double()
    state = randomise(layer)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    want = np.stack([expected(i, state) for i in x.numpy()])
    np.testing.assert_allclose(layer(x).detach().numpy(), want, rtol=1e-9)


def test_starts_as_the_identity():
    layer = DoubleAttention(8)
    randomise(layer)
    layer.init_weights()
    x = torch.randn(2, 8, 3, 4)
    assert torch.equal(layer(x), x)


def test_widths_are_half_the_input_by_default():
    layer = DoubleAttention(10)
    assert layer.features.out_channels == 5
    assert layer.gather.out_channels == layer.distribute.out_channels == 5
    assert DoubleAttention(1).features.out_channels == 1


@pytest.mark.parametrize(('c', 'm', 'n'), [(8, 4, 4), (12, 3, 5)])
def test_number_of_parameters(c, m, n):
    count = sum(p.numel() for p in DoubleAttention(c, m, n).parameters())
    assert count == 2 * c * (m + n) + c + m + n


def test_adds_7_35m_parameters_to_a_resnet50():
    # Five blocks: two in stage 2, three in stage 3.
    with torch.device('meta'):
        blocks = [DoubleAttention(c) for c in (512, 512, 1024, 1024, 1024)]
    count = sum(p.numel() for b in blocks for p in b.parameters())
    assert round(count / 1e6, 2) == 7.35


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_averages_are_float32_under_autocast(dtype):
    layer = DoubleAttention(16)
    inputs = []
    layer.conv_out.register_forward_pre_hook(lambda _, x: inputs.extend(x))
    with torch.autocast('cpu', dtype=dtype):
        y = layer(torch.randn(1, 16, 6, 7).to(dtype))
    assert y.dtype == dtype
    assert not torch.equal(inputs[0].to(dtype).float(), inputs[0])


@pytest.mark.parametrize(
    ('kwargs', 'name'),
    [
        (dict(in_channels=0), 'in_channels=0'),
        (dict(in_channels=8, mid_channels=0), 'mid_channels=0'),
        (dict(in_channels=8, num_maps=-1), 'num_maps=-1'),
    ],
)
def test_wrong_arguments_are_named(kwargs, name):
    with pytest.raises(ValueError, match=name):
        DoubleAttention(**kwargs)
