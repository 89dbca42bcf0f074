# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Plugins that show what a backbone does with them."""

from mmdet.models import backbones as mmdet_backbones
from mmengine.model import BaseModule
from mmpretrain.models import backbones as mmpretrain_backbones
from torch import nn

from mmattn.attention import Attention, list_attentions
from mmattn.registry import MODELS

#: The package's own, before this file adds to the registry.
ATTENTIONS = list_attentions()


@MODELS.register_module()
class Recorder(BaseModule):
    """Returns what it is given and remembers it."""

    _abbr_ = 'recorder'

    def __init__(self, in_channels, init_cfg=None):
        super().__init__(init_cfg)
        self.in_channels = in_channels

        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.seen = x.detach().clone()
        return x


@MODELS.register_module()
class Exp(BaseModule):
    """Needs its own output, untouched, for backward."""

    _abbr_ = 'exp'

    def __init__(self, in_channels, init_cfg=None):
        super().__init__(init_cfg)

    def forward(self, x):
        return (-x.square()).exp()


@MODELS.register_module()
class Add(BaseModule):
    """Adds a number."""

    _abbr_ = 'add'

    def __init__(self, in_channels, value, init_cfg=None):
        super().__init__(init_cfg)
        self.value = value

    def forward(self, x):
        return x + self.value


@MODELS.register_module()
class Quarter(Attention):
    """Starts at one quarter."""

    _abbr_ = 'quarter'

    def __init__(self, in_channels, init_cfg=None):
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(in_channels, in_channels, 1)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.constant_(self.conv.weight, 0.25)

    def forward(self, x):
        return self.conv(x)


@MODELS.register_module()
class NormPlugin(BaseModule):
    _abbr_ = 'norm_plugin'

    def __init__(self, in_channels, init_cfg=None):
        super().__init__(init_cfg)
        self.bn = nn.BatchNorm2d(in_channels)

    def forward(self, x):
        return self.bn(x)


def plugin(name, position, stages=None, blocks=None, **kwargs):
    cfg = dict(cfg=dict(type=f'mmattn.{name}', **kwargs), position=position)
    chosen = dict(stages=stages, blocks=blocks)
    return cfg | {k: v for k, v in chosen.items() if v is not None}


def randomise_norms(module):
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.normal_(child.bias)
            nn.init.normal_(child.running_mean)
            nn.init.uniform_(child.running_var, 0.5, 1.5)
    return module


#: A thin form of every backbone, and the class that it adds plugins to.
THIN = {
    'ResNet': (mmdet_backbones.ResNet, dict(depth=50, base_channels=8)),
    'ResNeXt': (
        mmdet_backbones.ResNeXt,
        dict(depth=50, groups=4, base_width=4, base_channels=8),
    ),
    'MobileNetV2': (
        mmpretrain_backbones.MobileNetV2,
        dict(widen_factor=0.25, out_indices=(0, 3, 6)),
    ),
    'ShuffleNetV2': (
        mmpretrain_backbones.ShuffleNetV2,
        dict(widen_factor=0.5, out_indices=(0, 1, 2)),
    ),
    'RepVGG': (
        mmpretrain_backbones.RepVGG,
        dict(
            arch=dict(
                num_blocks=[1, 2, 2, 1],
                width_factor=[1, 1, 1, 1],
                group_layer_map=None,
                se_cfg=None,
            ),
            base_channels=16,
            out_indices=(1, 3),
        ),
    ),
    'SwinTransformer': (
        mmpretrain_backbones.SwinTransformer,
        dict(
            arch=dict(
                embed_dims=16, depths=[2, 2, 2, 1], num_heads=[1, 2, 2, 4]
            ),
            pad_small_map=True,
            drop_path_rate=0.0,
            out_indices=(1, 3),
        ),
    ),
}


def thin(name, plugins=None, **kwargs):
    return MODELS.get(name)(**{**THIN[name][1], **kwargs}, plugins=plugins)


def positions(name):
    """Return the positions of the backbone's fullest block."""
    blocks = [b for stage in thin(name).plugin_stages() for b in stage]
    return max((list(block.widths()) for block in blocks), key=len)
