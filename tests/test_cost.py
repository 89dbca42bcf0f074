# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Costs by hand, by formula, and as mmengine counts them in a real run."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.analysis import ActivationAnalyzer, FlopAnalyzer
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from probes import ATTENTIONS
from torch import nn
from torchvision.ops import deform_conv2d

from mmattn.attention import FCA, SCSA
from mmattn.engine.cost import (
    Count,
    build_model,
    count,
    count_call,
    default_shape,
)
from mmattn.errors import ConfigError
from mmattn.registry import MODELS

CONFIGS = Path(__file__).parents[1] / 'configs'
DEMO = CONFIGS / 'demo'
FASTER = 'demo/faster-rcnn_r18-scsa_fpn_15e_digits.py'
MASK = 'demo/mask-rcnn_r18-scsa_fpn_15e_digits.py'
RETINA = 'demo/retinanet_r18-scsa_fpn_15e_digits.py'
RESNET = 'demo/resnet18-scsa_30e_digits.py'
UPERNET = 'demo/upernet_r18-scsa_15e_digits.py'


def read(file, **options):
    cfg = Config.fromfile(CONFIGS / file)
    cfg.merge_from_dict(options)
    return cfg


def on_cpu(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return ROOT_MODELS.build(cfg.model)


class Call(nn.Module):
    """A module that does one thing."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def attend(x):
    return (x @ x.transpose(1, 2)).softmax(2) @ x


def gram(x):
    return torch.einsum('bnd,bmd->bnm', x, x)


# What runs on which shape: multiply-adds, elements of their results, other
# operations, and those of the latter that mmengine counts.
BY_HAND = {
    'convolution': (
        nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 9, 11),
        8 * 5 * 6 * 3 * 9, 8 * 5 * 6, 0, 0,
    ),
    'depthwise': (
        nn.Conv2d(6, 6, 3, groups=6), (2, 6, 5, 5),
        2 * 6 * 9 * 9, 2 * 6 * 9, 0, 0,
    ),
    'grouped 1D': (
        nn.Conv1d(8, 4, 5, padding=2, groups=2), (1, 8, 7),
        4 * 7 * 4 * 5, 4 * 7, 0, 0,
    ),
    'transposed': (
        nn.ConvTranspose2d(6, 4, 2, stride=2), (1, 6, 3, 5),
        6 * 3 * 5 * 4 * 4, 4 * 6 * 10, 0, 0,
    ),
    'linear': (nn.Linear(5, 7), (2, 3, 5), 6 * 5 * 7, 6 * 7, 0, 0),
    'linear of a vector': (nn.Linear(5, 7), (5,), 5 * 7, 7, 0, 0),
    'attention': (
        Call(attend), (2, 10, 4),
        2 * (10 * 10 * 4 + 10 * 10 * 4), 2 * (10 * 10 + 10 * 4),
        5 * 2 * 10 * 10, 0,
    ),
    'fused attention': (
        Call(lambda x: F.scaled_dot_product_attention(x, x, x)), (2, 1, 10, 4),
        2 * 2 * 10 * 10 * 4, 2 * (10 * 10 + 10 * 4), None, 0,
    ),
    'einsum': (Call(gram), (2, 10, 4), 2 * 10 * 10 * 4, 2 * 100, 0, 0),
    'vector': (Call(lambda x: x @ x[0]), (6, 4), 6 * 4, 6, 0, 0),
    'relu': (nn.ReLU(inplace=True), (2, 3, 5), 0, 0, 30, 0),
    'sum of two': (Call(lambda x: x + x[:, :1]), (2, 3, 5), 0, 0, 30, 0),
    'mean': (Call(lambda x: x.mean(2)), (2, 3, 5), 0, 0, 30, 0),
    'max pooling': (
        nn.MaxPool2d(3, 2, 1), (1, 2, 8, 8), 0, 0, 9 * 2 * 16, 0,
    ),
    'average pooling': (nn.AvgPool2d(2), (1, 2, 8, 8), 0, 0, 128, 0),
    'global pooling': (
        nn.AdaptiveAvgPool2d(1), (1, 2, 8, 8), 0, 0, 128, 128,
    ),
    'batch norm': (nn.BatchNorm2d(3), (1, 3, 4, 5), 0, 0, 120, 120),
    'batch norm without scale': (
        nn.BatchNorm2d(3, affine=False), (1, 3, 4, 5), 0, 0, 60, 60,
    ),
    'group norm': (nn.GroupNorm(2, 4), (1, 4, 5), 0, 0, 100, 100),
    'layer norm': (nn.LayerNorm(5), (4, 5), 0, 0, 100, 100),
    'layer norm without scale': (
        nn.LayerNorm(5, elementwise_affine=False), (4, 5), 0, 0, 80, 80,
    ),
    'instance norm': (nn.InstanceNorm2d(4), (1, 4, 5, 5), 0, 0, 400, 400),
    'bilinear': (
        nn.Upsample(scale_factor=2, mode='bilinear'), (1, 3, 4, 5),
        0, 0, 4 * 240, 4 * 240,
    ),
    'nearest': (nn.Upsample(scale_factor=2), (1, 3, 4, 5), 0, 0, 240, 240),
    'copies': (
        Call(lambda x: F.pad(torch.cat([x, x.flip(1)[:, 1:2]], 1), (1, 1))
             .roll(1, 2).clone().permute(0, 2, 1).reshape(2, -1)),
        (2, 3, 5), 0, 0, 0, 0,
    ),
    'integers': (
        Call(lambda x: x[:, torch.arange(2) * 1 + 1]), (2, 3), 0, 0, 0, 0,
    ),
    'new tensors': (
        Call(lambda x: (torch.linspace(0, 1, 9), x.new_ones(4))), (2, 3),
        0, 0, 0, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', BY_HAND)
def test_operation_by_hand(case):
    module, shape, flops, activations, elementwise, mmengine = BY_HAND[case]
    cost = count_call(module, torch.empty(shape))
    assert cost.flops == flops
    assert cost.activations == activations
    assert elementwise is None or cost.elementwise == elementwise
    assert cost.mmengine == flops + mmengine


@pytest.mark.skipif(
    not torch._C._dispatch_has_kernel_for_dispatch_key(
        'torchvision::deform_conv2d', 'Meta'
    ),
    reason='this torchvision cannot deform shapes alone',
)
def test_deformable_convolution_by_hand():
    def deform(x):
        offset, weight = x.new_zeros(1, 18, 8, 8), x.new_zeros(6, 4, 3, 3)
        return deform_conv2d(x, offset, weight, padding=1)

    cost = count_call(Call(deform), torch.empty(1, 4, 8, 8))
    assert cost.flops == cost.mmengine == 6 * 8 * 8 * 4 * 9
    assert cost.activations == 6 * 8 * 8


@pytest.mark.parametrize(('height', 'width'), [(14, 21), (15, 20), (7, 7)])
def test_scsa_by_its_formula(height, width):
    channels, window = 32, 7
    cost = count_call(SCSA(channels), torch.empty(1, channels, height, width))
    ends = height + width
    pixels = channels * height * width
    cells = (height // window) * (width // window)
    # Kernels 3, 5, 7, 9 are one of 9; the channels with each other; their
    # weights with the values.
    assert cost.flops == (
        9 * channels * ends + 2 * channels * channels * cells
    )
    # Two means, three gates; norm and gate of both directions; pooling, norm,
    # query, key, value, scale and mean; softmax over all pairs; the last gate.
    assert cost.elementwise == (
        5 * pixels
        + (5 + 1) * channels * ends
        + (window**2 + 5 + 3 + 1 + 1) * channels * cells
        + 5 * channels * channels
        + channels
    )
    assert cost.activations == (
        channels * ends + channels * cells + channels * channels
    )


@pytest.mark.parametrize('size', [7, 14])
def test_fca_by_its_formula(size):
    channels, height, width, frequencies = 64, 20, 15, 16
    cost = count_call(
        FCA(channels, dct_size=size), torch.empty(1, channels, height, width)
    )
    hidden = channels // 16
    # The cosines of each axis, the transform of every channel, two layers.
    assert cost.flops == (
        frequencies * size * (height + width)
        + channels * height * width
        + 2 * channels * hidden
    )
    assert cost.params == 2 * channels * hidden


def by_mmengine(analyzer, model, inputs):
    """Count a real run as mmengine does."""
    counter = analyzer(model.eval(), inputs)
    counter.unsupported_ops_warnings(False)
    counter.uncalled_modules_warnings(False)
    return counter.total()


# What mmengine misses: where all groups have one first factor in common, it
# counts the product of one group. EMA has 32 groups of two channels.
MISSED = {'mmattn.EMA': 31 * 2 * 14 * 21}


@pytest.mark.filterwarnings('ignore:Converting a tensor')
@pytest.mark.parametrize('name', ATTENTIONS)
def test_every_attention_is_counted_as_mmengine_does(name):
    layer = MODELS.get(name.removeprefix('mmattn.'))(64)
    x = torch.randn(1, 64, 14, 21)
    cost = count_call(layer, x)
    flops = by_mmengine(FlopAnalyzer, layer, x) + MISSED.get(name, 0)
    assert cost.mmengine == flops
    assert cost.activations == by_mmengine(ActivationAnalyzer, layer, x)
    assert cost.params == sum(p.numel() for p in layer.parameters())
    assert cost.elementwise >= x.numel()


@pytest.mark.filterwarnings('ignore:Converting a tensor')
@pytest.mark.parametrize('file', [RESNET, UPERNET, RETINA])
def test_thin_models_cost_what_mmengine_counts(file):
    cfg = read(file)
    flops = by_mmengine(FlopAnalyzer, on_cpu(cfg), torch.randn(1, 3, 64, 96))
    assert count(build_model(cfg), (64, 96)).mmengine == flops


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('file', [FASTER, MASK, 'cascade'])
def test_thin_two_stage_detectors_cost_what_mmengine_counts(file):
    # So few that all are found, and as many final boxes as mmdet's mask heads
    # get in this mode.
    limits = {
        'model.test_cfg.rpn.max_per_img': 100,
        'model.test_cfg.rcnn.max_per_img': 100,
    }
    cfg = thin_cascade() if file == 'cascade' else read(file)
    cfg.merge_from_dict(limits)
    shape = (128, 160)
    model = on_cpu(cfg)
    model.forward = partial(model.forward, data_samples=[sample(shape)])
    flops = by_mmengine(FlopAnalyzer, model, torch.randn(1, 3, *shape))
    assert count(build_model(cfg), shape).mmengine == flops


def sample(shape):
    info = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    return DetDataSample(metainfo=info)


def thin_cascade():
    cfg = read('none/cascade-rcnn_r50-none_fpn_1x_coco.py')
    model = read(FASTER).model
    for name in ('backbone', 'neck', 'rpn_head'):
        cfg.model[name] = model[name]
    cfg.model.roi_head.bbox_roi_extractor.out_channels = 64
    for head in cfg.model.roi_head.bbox_head:
        head.update(in_channels=64, fc_out_channels=32, num_classes=10)
    return cfg


# mmengine's figures for these at 800 x 1280, and the sizes.
DETECTORS = {
    'faster-rcnn': (206.81, 41.753, 41.528),
    'mask-rcnn': (259.79, 44.396, 44.171),
    'retinanet': (238.99, 37.969, 37.743),
    'cascade-rcnn': (234.44, 69.395, 69.169),
}


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_have_their_known_costs(name):
    model = build_model(read(f'none/{name}_r50-none_fpn_1x_coco.py'))
    assert default_shape(model) == (800, 1280)
    cost = count(model)
    found = cost.mmengine / 1e9, cost.params / 1e6, cost.trainable / 1e6
    assert found == pytest.approx(DETECTORS[name], abs=0.006)


def test_resnet50_has_its_known_cost():
    cost = count(build_model(read('none/resnet50-none_1xb128_in1k.py')))
    assert cost.mmengine == pytest.approx(4.1115e9, rel=1e-4)
    assert cost.params == 25557032


@pytest.mark.parametrize(
    'file',
    [
        FASTER,
        'none/swin-tiny-none_1xb128_in1k.py',  # built on the CPU
        'none/resnet50-none_2xb50-coslr_mini-imagenet.py',
    ],
)
def test_model_is_built_without_weights_but_whole(file):
    cfg = read(file)
    model = build_model(cfg)
    real = on_cpu(cfg)
    assert all(p.is_meta for p in model.parameters())
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in real.state_dict().items()
    }
    params = sum(p.numel() for p in real.parameters())
    assert count(model, (224, 224)).params == params


def test_frozen_stages_are_not_trainable():
    cfg = read(RESNET, **{'model.backbone.frozen_stages': 2})
    model = on_cpu(cfg)
    frozen = [
        getattr(model.backbone, name)
        for name in ('conv1', 'bn1', 'layer1', 'layer2')
    ]
    frozen = sum(p.numel() for part in frozen for p in part.parameters())
    cost = count(build_model(cfg))
    assert frozen > 0
    assert cost.trainable == cost.params - frozen
    parts = cost.by_module
    assert parts['backbone.layer2'].trainable == 0
    assert parts['backbone.layer3'].trainable == (
        parts['backbone.layer3'].params
    )


def total(*parts):
    return [sum(getattr(p, key) for p in parts) for key in vars(Count())]


def test_modules_add_up_to_the_model():
    cost = count(build_model(read(RESNET)), (64, 64))
    parts = cost.by_module
    assert total(cost) == total(
        *(parts[name] for name in ('backbone', 'neck', 'head'))
    )
    block = parts['backbone.layer1.0']
    inside = [
        parts[name]
        for name in parts
        if name.startswith('backbone.layer1.0.') and name.count('.') == 3
    ]
    assert block.flops == sum(part.flops for part in inside) > 0
    # The shortcut addition is the block's own: 24 channels, 16 x 16 pixels.
    own = block.elementwise - sum(part.elementwise for part in inside)
    assert own == 24 * 16 * 16


def test_head_shared_by_levels_counts_for_each():
    cost = count(build_model(read(RETINA)), (128, 128))
    pixels = 16 * 16 + 8 * 8 + 4 * 4
    assert cost.by_module['bbox_head.cls_convs.0.conv'].flops == (
        64 * 64 * 9 * pixels
    )


def test_attention_is_all_that_a_plugin_adds():
    plain = count(build_model(read('demo/resnet18-none_30e_digits.py')))
    scsa = count(build_model(read(RESNET)))
    plugins = [
        part for name, part in scsa.by_module.items() if name.endswith('.scsa')
    ]
    assert len(plugins) == 8
    assert total(scsa) == total(plain, *plugins)


def test_regions_are_those_of_test_cfg():
    def heads(**limits):
        options = {
            f'model.test_cfg.{key}.max_per_img': number
            for key, number in limits.items()
        }
        parts = count(build_model(read(MASK, **options)), (64, 64)).by_module
        return [
            parts[f'roi_head.{name}_head'].flops for name in ('bbox', 'mask')
        ]

    few = heads(rpn=20, rcnn=10)
    assert heads(rpn=60, rcnn=10) == [3 * few[0], few[1]]
    assert heads(rpn=20, rcnn=50) == [few[0], 5 * few[1]]
    # Two layers on 64 x 7 x 7 features, and two linear predictors.
    layers = 64 * 49 * 256 + 256 * 256 + 256 * (11 + 40)
    assert few[0] == 20 * layers


def test_default_shapes():
    assert default_shape(build_model(read(RESNET))) == (224, 224)
    assert default_shape(build_model(read(UPERNET))) == (128, 128)
    file = 'none/upernet_r50-none_4xb4-80k_ade20k-512x512.py'
    assert default_shape(build_model(read(file))) == (512, 512)


def test_model_is_left_as_it_is():
    cfg = read(RESNET)
    model = on_cpu(cfg).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cost = count(model, (64, 64))
    assert cost == count(build_model(cfg), (64, 64))
    assert model.training and model.backbone.layer1.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert not model.backbone.conv1._forward_hooks


class Custom(nn.Module):
    pass


def test_other_models_are_refused():
    with pytest.raises(ConfigError, match='Custom .*TwoStageDetector'):
        count(Custom())
    options = {'model.roi_head.type': 'DoubleHeadRoIHead'}
    cfg = read(FASTER, **options)
    cfg.model.roi_head.update(reg_roi_scale_factor=1.3)
    with pytest.raises(ConfigError, match='DoubleHeadRoIHead'):
        count(build_model(cfg))
    extractor = 'model.roi_head.bbox_roi_extractor.type'
    cfg = read(FASTER, **{extractor: 'GenericRoIExtractor'})
    with pytest.raises(ConfigError, match='GenericRoIExtractor'):
        count(build_model(cfg))
    with pytest.raises(ConfigError, match='no model'):
        build_model(Config(dict(default_scope='mmdet')))


def test_shapes_that_cannot_be_are_refused():
    model = build_model(read(UPERNET))
    with pytest.raises(ConfigError, match='shape 0 32 must be'):
        count(model, (0, 32))
    model.data_preprocessor.size = None
    with pytest.raises(ConfigError, match='--shape'):
        count(model)
    swin = build_model(read('none/swin-tiny-none_1xb128_in1k.py'))
    with pytest.raises(ConfigError, match='shape 32 32; it is too small'):
        count(swin, (32, 32))
