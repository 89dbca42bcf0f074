# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""ShuffleNetV2 with plugins, a subclass of mmpretrain's."""

from collections.abc import Sequence

import torch
from mmpretrain.models.backbones import shufflenet_v2
from mmpretrain.models.utils import channel_shuffle
from torch import Tensor, nn

from mmattn.registry import MODELS

from .blocks import ConvPluginBlock, Step
from .plugins import PluginBackbone


class InvertedResidual(ConvPluginBlock, shufflenet_v2.InvertedResidual):
    """Convolutions 1, 2 (depthwise), 3 of the main branch.

    The other branch, the identity or the down-sampling, has no positions.
    """

    def steps(self) -> dict[int, Step]:
        """Return the convolutions by their number."""
        return {k: Step.of(m) for k, m in enumerate(self.branch2, 1)}

    def block_width(self) -> int:
        """Return the channels of the block's output: of both branches."""
        return 2 * super().block_width()

    def _both_branches(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            pair = (self.branch1(x), self.branch(x))
        else:
            left, right = x.chunk(2, dim=1)
            pair = (left, self.branch(right))
        return channel_shuffle(torch.cat(pair, dim=1), 2)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block, ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        out = self.checkpointed(self._both_branches, x)
        return self.plug(out, 'after_block')


@MODELS.register_module()
class ShuffleNetV2(PluginBackbone, shufflenet_v2.ShuffleNetV2):
    """ShuffleNetV2 with plugins in the main branch of its units.

    Takes every argument of mmpretrain's ``ShuffleNetV2``, has its state-dict
    keys and, without plugins, its outputs to the bit. Input ``(B, 3, H, W)``,
    output a tuple of ``(B, C_i, H_i, W_i)``, one for each of ``out_indices``.

    Args:
        plugins: See :mod:`mmattn.backbones.plugins`. ``stages`` has three
            entries. Positions are those of three convolutions, the second
            depthwise, and ``after_block``, behind the channel shuffle.
        pretrained: Checkpoint path, short for a ``Pretrained`` init_cfg.
        init_cfg: mmengine initialisation; default as in mmpretrain.
        kwargs: Further arguments of mmpretrain's ``ShuffleNetV2``.

    Raises:
        ConfigError: If a plugin is wrong.
    """

    block_classes = {shufflenet_v2.InvertedResidual: InvertedResidual}

    def plugin_stages(self) -> list[Sequence[nn.Module]]:
        """Return the units of each stage."""
        return list(self.layers)[:-1]  # the last is a convolution
