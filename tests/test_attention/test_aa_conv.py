# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import copy
import pickle

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones import ResNet
from scipy.signal import correlate2d
from scipy.special import softmax

from mmattn.attention.aa_conv import AAConv2d


def build(*args, **kwargs):
    settings = dict(padding=1, num_heads=2, min_head_dim=3, rel_size=4)
    return AAConv2d(*args, **{**settings, **kwargs})


def randomise(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return {k: v.numpy() for k, v in module.state_dict().items()}


def resize(values, size):
    """Resize the first axis linearly, by the centres of its cells."""
    length = len(values)
    where = (np.arange(size) + 0.5) * length / size - 0.5
    return np.apply_along_axis(
        lambda v: np.interp(where, np.arange(length), v), 0, values
    )


def pool(x):
    """Average the pixels around every second one, ``(C, H, W)``."""
    _, height, width = x.shape
    return np.stack(
        [
            np.stack(
                [
                    x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean(
                        (1, 2)
                    )
                    for j in range(0, width, 2)
                ],
                axis=1,
            )
            for i in range(0, height, 2)
        ],
        axis=1,
    )


def attention(x, state, heads, stride):
    """Equations 1-4 for one image ``(C, H, W)``, pair by pair of pixels."""
    x = x[:, ::stride, ::stride]
    _, height, width = x.shape
    pixels = [(i, j) for i in range(height) for j in range(width)]
    dv, (_, dk) = len(state['project.weight']), state['rel_h'].shape
    rel_h = resize(state['rel_h'], 2 * height - 1)
    rel_w = resize(state['rel_w'], 2 * width - 1)
    weight = state['qkv.weight'][:, :, 0, 0]
    out = np.empty((dv, height, width))
    for h in range(heads):
        q = weight[h * dk : (h + 1) * dk]
        k = weight[(heads + h) * dk : (heads + h + 1) * dk]
        values = slice(h * dv // heads, (h + 1) * dv // heads)
        v = weight[2 * heads * dk :][values]
        for i, j in pixels:
            query = q @ x[:, i, j]
            logits = [
                query
                @ (
                    k @ x[:, a, b]
                    + rel_h[a - i + height - 1]
                    + rel_w[b - j + width - 1]
                )
                / np.sqrt(dk)
                for a, b in pixels
            ]
            out[values, i, j] = sum(
                w * (v @ x[:, a, b])
                for w, (a, b) in zip(softmax(logits), pixels)
            )
    return out


def expected(x, state, heads, stride=1, pooled=False):
    """The whole layer for one image, with a 3x3 convolution."""
    conv = np.stack(
        [
            sum(
                correlate2d(plane, kernel, 'same')
                for plane, kernel in zip(x, w)
            )
            for w in state['conv.weight']
        ]
    )[:, ::stride, ::stride]
    conv += state['conv.bias'][:, None, None]
    values = attention(pool(x) if pooled else x, state, heads, stride)
    if pooled:
        values = resize(values.swapaxes(0, 1), conv.shape[1]).swapaxes(0, 1)
        values = resize(values.swapaxes(0, 2), conv.shape[2]).swapaxes(0, 2)
    project = state['project.weight'][:, :, 0, 0]
    values = np.tensordot(project, values, 1)
    return np.concatenate(
        [conv, values + state['project.bias'][:, None, None]]
    )


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('pooled_width', [0, 16])
@pytest.mark.parametrize('size', [(4, 4), (3, 6), (5, 1), (1, 1), (8, 7)])
def test_equals_the_formula(stride, pooled_width, size):
    layer = build(
        5, 16, 3, stride, value_ratio=0.26, pooled_width=pooled_width
    ).double()
    state = randomise(layer)
    assert layer.project.out_channels == 4
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    want = np.stack(
        [expected(i, state, 2, stride, pooled_width > 0) for i in x.numpy()]
    )
    got = layer(x).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('pooled_width', [0, 8])
def test_gradient_is_that_of_the_formula(pooled_width):
    layer = build(
        2, 4, 3, num_heads=1, rel_size=2, pooled_width=pooled_width
    ).double()
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), x)

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


@pytest.mark.parametrize(
    ('width', 'keys', 'values', 'pooled'),
    [(128, 160, 8, True), (256, 160, 24, False), (512, 160, 48, False)],
)
def test_widths_in_a_resnet(width, keys, values, pooled):
    layer = AAConv2d(width, width, 3, padding=1, bias=False)
    assert layer.head_dim * layer.num_heads == keys
    assert layer.project.out_channels == values
    assert layer.pooled == pooled
    assert sum(p.numel() for p in layer.parameters()) == (
        9 * width * (width - values)
        + width * (2 * keys + values)
        + values**2
        + 2 * 27 * keys // 8
    )


@pytest.mark.parametrize(('depth', 'millions'), [(50, 25.81), (101, 45.39)])
def test_replaces_the_3x3_convolutions_of_a_resnet(depth, millions):
    with torch.device('meta'):
        model = ResNet(
            depth,
            dcn=dict(type='mmattn.AAConv2d'),
            stage_with_dcn=(False, True, True, True),
        )
    assert not isinstance(model.layer1[0].conv2, AAConv2d)
    assert isinstance(model.layer2[0].conv2, AAConv2d)
    # 2.049M in the classifier.
    count = sum(p.numel() for p in model.parameters()) + 2_049_000
    assert round(count / 1e6, 2) == millions


def test_serves_as_a_convolution_of_mmcv():
    layer = ConvModule(
        6,
        16,
        3,
        stride=2,
        padding=2,
        dilation=2,
        groups=2,
        conv_cfg=dict(type='mmattn.AAConv2d', num_heads=2),
        norm_cfg=dict(type='BN'),
    )
    layer.init_weights()
    assert layer.out_channels == 16 and layer.stride == (2, 2)
    assert layer(torch.randn(2, 6, 7, 5)).shape == (2, 16, 4, 3)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('fill', [0.0, 100.0, None])
def test_half_precision_is_finite(dtype, fill):
    x = (
        torch.randn(2, 4, 5, 7)
        if fill is None
        else torch.full((2, 4, 5, 7), fill)
    )
    x = x.to(dtype).requires_grad_()
    layer = build(4, 8, 3, 2).to(dtype)
    y = layer(x)
    y.float().square().mean().backward()
    assert y.dtype == dtype
    grads = [x.grad, *(p.grad for p in layer.parameters())]
    assert all(t.isfinite().all() for t in (y, *grads))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_averages_are_float32_under_autocast(dtype):
    layer = build(4, 8, 3)
    inputs = []
    layer.project.register_forward_pre_hook(lambda _, x: inputs.extend(x))
    x = torch.randn(2, 4, 9, 7).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype
    assert not torch.equal(inputs[0].to(dtype).float(), inputs[0])
    want = layer(x.float())
    torch.testing.assert_close(y.float(), want, rtol=0.05, atol=0.05)


def test_gradient_reaches_every_parameter():
    layer = build(4, 8, 3)
    layer(torch.randn(2, 4, 9, 7)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_copies_give_the_same():
    layer = build(4, 8, 3)
    x = torch.randn(2, 4, 5, 7)
    restored = build(4, 8, 3)
    restored.load_state_dict(layer.state_dict())
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    assert all(torch.equal(o(x), layer(x)) for o in (restored, *others))
    y = layer(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, layer(x))
    assert 'num_heads=2' in repr(layer)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('pooled_width', [0, 8])
def test_compiles_and_exports(stride, pooled_width):
    torch._dynamo.reset()
    layer = build(4, 8, 3, stride, pooled_width=pooled_width).eval()
    dims = [
        torch.export.Dim(d, min=lo, max=64) for d, lo in zip('bhw', (2, 5, 5))
    ]
    program = torch.export.export(
        layer,
        (torch.randn(2, 4, 6, 9),),
        dynamic_shapes=({0: dims[0], 2: dims[1], 3: dims[2]},),
    ).module()
    compiled = torch.compile(layer, fullgraph=True, backend='eager')
    for size in ((2, 4, 6, 9), (3, 4, 7, 6), (2, 4, 5, 5)):
        x = torch.randn(size)
        torch.testing.assert_close(program(x), layer(x))
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ('kwargs', 'names'),
    [
        (dict(in_channels=0), ['in_channels=0']),
        (dict(out_channels=0), ['out_channels=0']),
        (dict(padding=0), ['padding=0', 'kernel_size=3']),
        (dict(kernel_size=2), ['padding=1', 'kernel_size=2']),
        (dict(dilation=2), ['padding=1', 'dilation=2']),
        (dict(groups=0), ['groups=0']),
        (dict(groups=3), ['groups=3', 'in_channels=8']),
        (dict(num_heads=0), ['num_heads=0']),
        (dict(num_heads=16), ['value_ratio=0.1', 'num_heads=16']),
        (dict(key_ratio=0), ['key_ratio=0']),
        (dict(value_ratio=0), ['value_ratio=0']),
        (dict(value_ratio=1.0), ['value_ratio=1.0', 'out_channels=16']),
        (dict(min_head_dim=0), ['min_head_dim=0']),
        (dict(rel_size=0), ['rel_size=0']),
    ],
)
def test_wrong_arguments_are_named(kwargs, names):
    settings = dict(in_channels=8, out_channels=16, kernel_size=3)
    with pytest.raises(ValueError) as error:
        build(**{**settings, **kwargs})
    assert all(name in str(error.value) for name in names)


def test_groups_of_a_resnext_divide_what_is_left_to_the_convolution():
    layer = AAConv2d(256, 256, 3, padding=1, groups=32)
    assert layer.conv.out_channels == 224 and layer.conv.groups == 32
    assert layer(torch.randn(1, 256, 4, 5)).shape == (1, 256, 4, 5)


def test_a_backbone_can_set_the_dilation():
    layer = AAConv2d(16, 16, 3, padding=4, dilation=4)
    layer.dilation = layer.padding = (2, 2)
    assert layer.conv.dilation == layer.conv.padding == (2, 2)
    assert layer(torch.randn(1, 16, 9, 8)).shape == (1, 16, 9, 8)
