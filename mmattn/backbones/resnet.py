# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""ResNet and ResNeXt with plugins, for all three frameworks.

Subclasses of mmdet's: same arguments, same state-dict keys, and without
plugins the same outputs to the bit.
"""

from collections.abc import Sequence

from mmdet.models.backbones import resnet, resnext
from torch import Tensor, nn

from mmattn.errors import ConfigError
from mmattn.registry import MODELS

from .blocks import ConvPluginBlock, Step
from .plugins import PluginBackbone


class ResidualBlock(ConvPluginBlock):
    """Mixin for a block of ``num_convs`` convolutions and a shortcut."""

    num_convs: int

    def steps(self) -> dict[int, Step]:
        """Return the convolutions by their number."""
        return {
            k: Step(
                getattr(self, f'conv{k}'),
                self,
                getattr(self, f'norm{k}_name'),
                self.relu if k < self.num_convs else None,
            )
            for k in range(1, self.num_convs + 1)
        }

    def _residual(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        identity = x if self.downsample is None else self.downsample(x)
        return out + identity  # a plugin may have saved either

    def forward(self, x: Tensor) -> Tensor:
        """Run the block, ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        out = self.relu(self.checkpointed(self._residual, x))
        return self.plug(out, 'after_block')


class BasicBlock(ResidualBlock, resnet.BasicBlock):
    """The block of ResNet-18 and -34."""

    num_convs = 2


class Bottleneck(ResidualBlock, resnet.Bottleneck):
    """The block of ResNet-50 and deeper."""

    num_convs = 3


class ResNeXtBottleneck(ResidualBlock, resnext.Bottleneck):
    """The bottleneck with a grouped spatial convolution."""

    num_convs = 3


class _PluginResNet(PluginBackbone):
    """What :class:`ResNet` and :class:`ResNeXt` add to mmdet's classes."""

    block_classes = {
        resnet.BasicBlock: BasicBlock,
        resnet.Bottleneck: Bottleneck,
        resnext.Bottleneck: ResNeXtBottleneck,
    }

    def __init__(
        self,
        depth: int,
        *,
        norm_eval: bool = False,
        contract_dilation: bool = False,
        **kwargs,
    ) -> None:
        if depth not in self.arch_settings:
            raise ConfigError(
                f'{type(self).__name__} has no depth={depth}; it has '
                f'{", ".join(map(str, self.arch_settings))}'
            )
        self.contract_dilation = contract_dilation
        self.from_scratch = not (
            kwargs.get('init_cfg') or kwargs.get('pretrained')
        )
        super().__init__(depth=depth, norm_eval=norm_eval, **kwargs)

    def plugin_stages(self) -> list[Sequence[nn.Module]]:
        """Return the blocks of each stage."""
        return [getattr(self, name) for name in self.res_layers]

    def make_res_layer(self, **kwargs) -> nn.Module:
        """Build a stage, with mmseg's ``contract_dilation``."""
        layer = super().make_res_layer(**kwargs)
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
            ``after_conv2`` for depths 18 and 34, ``after_conv3`` for others,
            and ``after_block``.
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


@MODELS.register_module()
class ResNeXt(_PluginResNet, resnext.ResNeXt):
    """ResNeXt-50 to -152 with plugins; arguments as :class:`ResNet`.

    Args:
        depth: 50, 101 or 152.
        groups: Groups of the spatial convolution.
        base_width: Channels of a group in the first stage.
        kwargs: Arguments of :class:`ResNet`.
    """

    def make_res_layer(self, **kwargs) -> nn.Module:
        """Build a stage; from scratch its residual branches start at zero."""
        if self.zero_init_residual and self.from_scratch:
            # mmdet compares block classes by identity and so skips ResNeXt's.
            last = dict(name='norm3')
            kwargs['init_cfg'] = dict(type='Constant', val=0, override=last)
        return super().make_res_layer(**kwargs)
