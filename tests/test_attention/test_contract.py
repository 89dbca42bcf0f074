# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What every registered attention module promises, tested for all of them."""

import copy
import pickle

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from probes import ATTENTIONS
from torch.utils.checkpoint import checkpoint

from mmattn.registry import MODELS

WIDTH = 32
SIZES = [(14, 21), (7, 7), (9, 5), (1, 8), (8, 1), (1, 1)]

# Settings that change what is computed, beside the defaults of every module.
VARIANTS = {
    'mmattn.SE+norm': dict(norm_cfg=dict(type='BN')),
    'mmattn.CBAM+norm': dict(norm_cfg=dict(type='BN'), bias=True),
    'mmattn.FCA+size': dict(dct_size=56),
    'mmattn.GSCA+dot': dict(similarity='dot', num_heads=4),
    'mmattn.SCSA+batch': dict(norm='batch', shared=False),
    'mmattn.SCSA+layer': dict(norm='layer', norm_first=True),
    'mmattn.SCSA+heads': dict(num_heads=4, shuffle=True, scale='pixels'),
}

pytestmark = pytest.mark.parametrize('name', [*ATTENTIONS, *VARIANTS])


def class_of(name):
    return MODELS.get(name.split('+')[0].removeprefix('mmattn.'))


def build(name):
    return class_of(name)(WIDTH, **VARIANTS.get(name, {}))


def image(*size, batch=2, dtype=torch.float32):
    return torch.randn(batch, WIDTH, *(size or (14, 21))).to(dtype)


def test_first_argument_is_in_channels_and_abbr_is_final(name):
    cls = class_of(name)
    assert isinstance(cls(in_channels=WIDTH), torch.nn.Module)
    assert '_abbr_' in vars(cls) and cls._abbr_.isidentifier()


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('batch', [1, 2])
def test_keeps_the_shape_at_any_size(name, size, batch):
    x = image(*size, batch=batch)
    for layer in (build(name), build(name).eval()):
        assert layer(x).shape == x.shape
        assert layer(x).isfinite().all()


def test_images_do_not_mix(name):
    x = image()
    layer = build(name).eval()
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]))


def test_gradient_reaches_input_and_every_parameter(name):
    # Few hidden units may all be dead for few images.
    x = image(batch=8).requires_grad_()
    layer = build(name)
    for parameter in layer.parameters():
        # A last layer that starts at zero keeps gradients from the others.
        torch.nn.init.normal_(parameter, std=0.5)
    layer(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64]
)
@pytest.mark.parametrize('fill', [0.0, 1.0, 100.0, 'random', 'rectified'])
def test_is_finite_in_every_precision(name, dtype, fill):
    x = (
        torch.zeros_like(image())
        if isinstance(fill, str)
        else (torch.full_like(image(), fill))
    )
    if isinstance(fill, str):
        x = image().relu() if fill == 'rectified' else image()
    x = x.to(dtype).requires_grad_()
    layer = build(name).to(dtype)
    y = layer(x)
    y.float().mean().backward()
    assert y.dtype == dtype
    grads = [x.grad, *(p.grad for p in layer.parameters())]
    assert all(t.isfinite().all() for t in (y, *grads))


def test_autocast_stays_near_float32(name):
    x = image()
    layer = build(name).eval()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_copies_give_the_same(name):
    x = image()
    layer = build(name).eval()
    restored = build(name).eval()
    restored.load_state_dict(layer.state_dict())
    others = [
        restored,
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
    ]
    for other in others:
        assert torch.equal(other(x), layer(x))


def test_repr_names_the_module(name):
    assert class_of(name).__name__ in repr(build(name))


def test_init_weights_starts_afresh(name):
    layer = build(name)
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    layer.init_weights()
    assert all((p != 7).any() for p in layer.parameters())


def test_channels_last_gives_the_same(name):
    x = image()
    layer = build(name).eval()
    y = layer(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, layer(x))


def test_activation_checkpointing_gives_the_same_gradient(name):
    layer = build(name)
    grads = []
    x = image()
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        x = x.detach().requires_grad_()
        run(x).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def test_compiles_as_one_graph(name):
    torch._dynamo.reset()
    layer = build(name).eval()
    compiled = torch.compile(layer, fullgraph=True, backend='eager')
    for size in SIZES[:3]:
        x = image(*size)
        torch.testing.assert_close(compiled(x), layer(x))


def test_exports_with_dynamic_sizes(name):
    layer = build(name).eval()
    dims = [
        torch.export.Dim(d, min=lo, max=256)
        for d, lo in zip('bhw', (2, 14, 14))
    ]
    program = torch.export.export(
        layer,
        (image(),),
        dynamic_shapes=({0: dims[0], 2: dims[1], 3: dims[2]},),
    ).module()
    for x in (image(), image(15, 34, batch=3), image(14, 14)):
        torch.testing.assert_close(program(x), layer(x))


def test_fusing_norms_keeps_the_output(name):
    layer = build(name).double().eval()
    for module in layer.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean)
    x = image(dtype=torch.float64)
    want = layer(x)
    torch.testing.assert_close(fuse_conv_bn(layer)(x), want)


def test_rejects_a_width_of_zero(name):
    cls = class_of(name)
    with pytest.raises(ValueError, match='in_channels=0'):
        cls(0)
