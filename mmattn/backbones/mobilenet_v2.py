# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""MobileNetV2 with plugins, a subclass of mmpretrain's."""

from collections.abc import Sequence

from mmpretrain.models.backbones import mobilenet_v2
from torch import Tensor, nn

from mmattn.registry import MODELS

from .blocks import ConvPluginBlock, Step
from .plugins import PluginBackbone


class InvertedResidual(ConvPluginBlock, mobilenet_v2.InvertedResidual):
    """Expansion, depthwise and linear projection: convolutions 1, 2, 3.

    The first block of the network does not expand and has no convolution 1.
    """

    def steps(self) -> dict[int, Step]:
        """Return the convolutions by their number."""
        first = 4 - len(self.conv)
        return {k: Step.of(m) for k, m in enumerate(self.conv, first)}

    def _residual(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        return x + out if self.use_res_connect else out

    def forward(self, x: Tensor) -> Tensor:
        """Run the block, ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        return self.plug(self.checkpointed(self._residual, x), 'after_block')


@MODELS.register_module()
class MobileNetV2(PluginBackbone, mobilenet_v2.MobileNetV2):
    """MobileNetV2 with plugins in its inverted residuals.

    Takes every argument of mmpretrain's ``MobileNetV2``, has its state-dict
    keys and, without plugins, its outputs to the bit. Input ``(B, 3, H, W)``,
    output a tuple of ``(B, C_i, H_i, W_i)``, one for each of ``out_indices``.

    Args:
        plugins: See :mod:`mmattn.backbones.plugins`. ``stages`` has seven
            entries, the lines of the network's table. Positions are those of
            three convolutions (expansion, depthwise, projection) and
            ``after_block``; the block of the first line has no expansion.
        pretrained: Checkpoint path, short for a ``Pretrained`` init_cfg.
        init_cfg: mmengine initialisation; default as in mmpretrain.
        kwargs: Further arguments of mmpretrain's ``MobileNetV2``.

    Raises:
        ConfigError: If a plugin is wrong.
    """

    block_classes = {mobilenet_v2.InvertedResidual: InvertedResidual}

    def plugin_stages(self) -> list[Sequence[nn.Module]]:
        """Return the blocks of each line."""
        lines = len(self.arch_settings)
        return [getattr(self, f'layer{i + 1}') for i in range(lines)]
