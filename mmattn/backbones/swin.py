# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Swin Transformer with plugins, a subclass of mmpretrain's."""

from collections.abc import Mapping, Sequence

from mmpretrain.models.backbones import swin_transformer
from torch import Tensor, nn

from mmattn.registry import MODELS

from .blocks import PluginBlock
from .plugins import PluginBackbone


class SwinBlock(PluginBlock, swin_transformer.SwinBlock):
    """Window attention and feed-forward network; plugins see maps.

    ``after_attn`` is the end of the attention branch, before stochastic depth
    and its shortcut; ``after_block`` follows the whole block.
    """

    def widths(self) -> dict[str, int]:
        """Return the channels at each position, in order of execution."""
        channels = self.norm1.normalized_shape[0]
        return dict(after_attn=channels, after_block=channels)

    def add_plugin(self, cfg: Mapping, position: str) -> None:
        """Build a module and put it at a position, see the base class."""
        super().add_plugin(cfg, position)
        if position == 'after_attn' and not hasattr(self, 'drop_path'):
            # What the plugin makes of the attention is dropped as a whole.
            self.drop_path, self.attn.drop = self.attn.drop, nn.Identity()

    def _plug_tokens(
        self, x: Tensor, hw_shape: tuple[int, int], position: str
    ) -> Tensor:
        """Run plugins on tokens, ``(B, H * W, C)`` to the same."""
        if not self.plugin_names[position]:
            return x
        maps = x.transpose(1, 2).unflatten(2, hw_shape)  # (B, C, H, W)
        return self.plug(maps, position).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Run the block, ``(B, H * W, C)`` to the same."""

        def run(x: Tensor) -> Tensor:
            out = self.attn(self.norm1(x), hw_shape)
            if self.plugin_names['after_attn']:
                out = self._plug_tokens(out, hw_shape, 'after_attn')
                out = self.drop_path(out)
            x = out + x
            return self.ffn(self.norm2(x), identity=x)

        out = self.checkpointed(run, x)
        return self._plug_tokens(out, hw_shape, 'after_block')


@MODELS.register_module()
class SwinTransformer(PluginBackbone, swin_transformer.SwinTransformer):
    """Swin Transformer with plugins in its blocks.

    Takes every argument of mmpretrain's ``SwinTransformer``, has its
    state-dict keys and, without plugins, its outputs to the bit. Input ``(B,
    3, H, W)``, output a tuple of ``(B, C_i, H_i, W_i)``, one for each of
    ``out_indices``. Plugins take and return maps; the tokens are laid out as
    one before and flattened after them.

    Args:
        plugins: See :mod:`mmattn.backbones.plugins`. Positions are
            ``after_attn`` (the attention's branch, before its shortcut) and
            ``after_block``.
        pretrained: Checkpoint path, short for a ``Pretrained`` init_cfg.
        init_cfg: mmengine initialisation; default as in mmpretrain.
        kwargs: Further arguments of mmpretrain's ``SwinTransformer``.

    Raises:
        ConfigError: If a plugin is wrong.
    """

    block_classes = {swin_transformer.SwinBlock: SwinBlock}

    def plugin_stages(self) -> list[Sequence[nn.Module]]:
        """Return the blocks of each stage."""
        return [stage.blocks for stage in self.stages]

    def _load_from_state_dict(self, state_dict, prefix, metadata, *args):
        # mmpretrain converts old checkpoints for its own class only.
        version = metadata.get('version') or 0
        last = f'norm{len(self.stages) - 1}.'
        for key in [k for k in state_dict if k.startswith(prefix)]:
            name = key.removeprefix(prefix)
            if version < 2 and name.startswith('norm.'):
                new = prefix + name.replace('norm.', last)
                state_dict[new] = state_dict.pop(key)
            elif version < 3 and 'attn_mask' in name:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)
