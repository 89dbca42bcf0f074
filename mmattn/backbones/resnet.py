# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""ResNet and ResNeXt with plugins, for all three frameworks.

Subclasses of mmdet's: same arguments, same state-dict keys, and without
plugins the same outputs to the bit.
"""

from collections.abc import Sequence

from mmdet.models.backbones import resnet, resnext
from torch import nn

from mmattn.errors import ConfigError
from mmattn.registry import MODELS

from .plugins import PluginBackbone, PluginBlock, check_plugins


class BasicBlock(PluginBlock, resnet.BasicBlock):
    """The block of ResNet-18 and -34."""

    num_convs = 2


class Bottleneck(PluginBlock, resnet.Bottleneck):
    """The block of ResNet-50 and deeper."""

    num_convs = 3


class ResNeXtBottleneck(PluginBlock, resnext.Bottleneck):
    """The bottleneck with a grouped spatial convolution."""

    num_convs = 3


class _PluginResNet(PluginBackbone):
    """What :class:`ResNet` and :class:`ResNeXt` add to mmdet's classes."""

    def __init__(
        self,
        depth: int,
        plugins: Sequence[dict] | None = None,
        norm_eval: bool = False,
        contract_dilation: bool = False,
        pretrained: str | None = None,
        init_cfg: dict | list[dict] | None = None,
        **kwargs,
    ) -> None:
        if depth not in self.arch_settings:
            raise ConfigError(
                f'{type(self).__name__} has no depth={depth}; it has '
                f'{", ".join(map(str, self.arch_settings))}'
            )
        positions = self.arch_settings[depth][0].positions()
        check_plugins(plugins or (), positions, kwargs.get('num_stages', 4))
        self.contract_dilation = contract_dilation
        self._from_scratch = init_cfg is None and pretrained is None
        super().__init__(
            depth=depth,
            plugins=plugins,
            norm_eval=norm_eval,
            pretrained=pretrained,
            init_cfg=init_cfg,
            **kwargs,
        )

    def make_res_layer(self, block: type, **kwargs) -> nn.Module:
        """Build a stage, with two settings that mmdet's does not pass on."""
        if self.zero_init_residual and self._from_scratch:
            # mmdet compares block classes by identity and so skips ours.
            last = dict(name=f'norm{block.num_convs}')
            kwargs['init_cfg'] = dict(type='Constant', val=0, override=last)
        layer = super().make_res_layer(block=block, **kwargs)
        if self.contract_dilation:
            for conv in (layer[0].conv1, layer[0].conv2):
                half = max(1, conv.dilation[0] // 2)
                if half < conv.dilation[0]:
                    conv.dilation = conv.padding = (half, half)
        return layer


@MODELS.register_module()
class ResNet(_PluginResNet, resnet.ResNet):
    """ResNet-18 to -152 with plugins, for detectors, segmentors, classifiers.

    Takes every argument of mmdet's ``ResNet``. Input ``(B, 3, H, W)``, output
    a tuple of ``(B, C_i, H_i, W_i)``, one for each of ``out_indices``.

    Args:
        depth: 18, 34, 50, 101 or 152.
        plugins: See :mod:`mmattn.backbones.plugins`. Positions are
            ``before_norm1``, ``before_act1``, ``after_conv1``, ... up to
            ``after_conv2`` for depths 18 and 34, ``after_conv3`` for others.
        norm_eval: Whether batch norms keep their statistics in training.
            False unless stated, as in mmseg and mmpretrain; mmdet's own
            default is True, and its configs state it.
        contract_dilation: Whether the first block of a dilated stage has half
            the dilation, an argument of mmseg's ResNet.
        pretrained: Deprecated checkpoint path, as in mmdet.
        init_cfg: mmengine initialisation. Without one (and without
            ``pretrained``) the last norm of each block starts at zero, unless
            ``zero_init_residual=False``.
        kwargs: Further arguments of mmdet's ``ResNet``.

    Raises:
        ConfigError: If the depth or a plugin is wrong.
    """

    arch_settings = {
        depth: (BasicBlock if depth < 50 else Bottleneck, blocks)
        for depth, (_, blocks) in resnet.ResNet.arch_settings.items()
    }


@MODELS.register_module()
class ResNeXt(_PluginResNet, resnext.ResNeXt):
    """ResNeXt-50 to -152 with plugins; arguments as :class:`ResNet`.

    Args:
        depth: 50, 101 or 152.
        groups: Groups of the spatial convolution.
        base_width: Channels of a group in the first stage.
        kwargs: Arguments of :class:`ResNet`.
    """

    arch_settings = {
        depth: (ResNeXtBottleneck, blocks)
        for depth, (_, blocks) in resnext.ResNeXt.arch_settings.items()
    }
