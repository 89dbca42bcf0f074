# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""RepVGG with plugins, a subclass of mmpretrain's."""

from collections.abc import Sequence

from mmpretrain.models.backbones import repvgg
from torch import Tensor, nn

from mmattn.registry import MODELS

from .blocks import PluginBlock
from .plugins import PluginBackbone


class RepVGGBlock(PluginBlock, repvgg.RepVGGBlock):
    """Parallel 3x3, 1x1 and identity branches that deploy as convolution 1.

    Plugins stand behind the sum of the branches, so that the deployed block
    has them too.
    """

    def widths(self) -> dict[str, int]:
        """Return the channels at each position, in order of execution."""
        positions = ('before_act1', 'after_conv1', 'after_block')
        return dict.fromkeys(positions, self.out_channels)

    def add_plugin(self, cfg: dict, position: str) -> None:
        """Build a module and put it at a position, see the base class."""
        super().add_plugin(cfg, position)
        if position == 'before_act1' and hasattr(self.act, 'inplace'):
            # The plugin may have saved its output for backward.
            self.act.inplace = False

    def _sum_of_branches(self, x: Tensor) -> Tensor:
        if self.deploy:
            out = self.branch_reparam(x)
        else:
            identity = 0 if self.branch_norm is None else self.branch_norm(x)
            out = self.branch_3x3(x) + self.branch_1x1(x) + identity
        # mmpretrain's own block loses its SE layer when deployed.
        return out if self.se_layer is None else self.se_layer(out)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block, ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        out = self.checkpointed(self._sum_of_branches, x)
        out = self.act(self.plug(out, 'before_act1'))
        return self.plug(self.plug(out, 'after_conv1'), 'after_block')


@MODELS.register_module()
class RepVGG(PluginBackbone, repvgg.RepVGG):
    """RepVGG with plugins in the blocks of its four stages.

    Takes every argument of mmpretrain's ``RepVGG``, has its state-dict keys
    and, without plugins, its outputs to the bit. Input ``(B, 3, H, W)``,
    output a tuple of ``(B, C_i, H_i, W_i)``, one for each of ``out_indices``.
    ``switch_to_deploy`` keeps the plugins.

    Args:
        plugins: See :mod:`mmattn.backbones.plugins`. Positions are
            ``before_act1``, ``after_conv1`` and, the same place,
            ``after_block``. The stem has none.
        pretrained: Checkpoint path, short for a ``Pretrained`` init_cfg.
        init_cfg: mmengine initialisation; default as in mmpretrain.
        kwargs: Further arguments of mmpretrain's ``RepVGG``.

    Raises:
        ConfigError: If a plugin is wrong.
    """

    block_classes = {repvgg.RepVGGBlock: RepVGGBlock}

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        RepVGGBlock.adopt(self.stem)  # for its SE layer, when deployed

    def plugin_stages(self) -> list[Sequence[nn.Module]]:
        """Return the blocks of each stage."""
        return [getattr(self, name) for name in self.stages]
