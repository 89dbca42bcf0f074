# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The base class of attention modules."""

from mmengine.model import BaseModule
from torch import nn

from mmattn.registry import MODELS


def _reset_children(module: nn.Module) -> None:
    for child in module.children():
        if hasattr(child, 'reset_parameters'):
            child.reset_parameters()
        else:
            _reset_children(child)


class Attention(BaseModule):
    """A module that keeps its own initialisation inside any backbone.

    A backbone's ``init_cfg`` is applied to every layer below it, so a module
    that relies on a special start (a zero layer, say) would lose it. This
    class calls :meth:`reset_parameters` after that, and before the module's
    own ``init_cfg`` if it has one.

    A subclass sets ``_abbr_`` (the name in checkpoints, final once weights
    exist), takes ``in_channels`` first and returns the shape and dtype it was
    given. One with a special start overrides :meth:`reset_parameters`, calls
    ``super()`` in it, and calls it at the end of ``__init__``.
    """

    _abbr_: str

    def reset_parameters(self) -> None:
        """Initialise every layer by its own ``reset_parameters``."""
        _reset_children(self)

    def init_weights(self) -> None:
        """Start afresh, whatever a parent's ``init_cfg`` did before."""
        if not self.is_init:
            self.reset_parameters()
            for module in self.modules():
                # Starting afresh later they would undo this one's init_cfg.
                if isinstance(module, Attention) and module is not self:
                    module.is_init = not module.init_cfg
        super().init_weights()


def list_attentions() -> list[str]:
    """Return the registered attention modules as configs name them, sorted."""
    return sorted(
        f'mmattn.{name}'
        for name, module in MODELS.module_dict.items()
        if isinstance(module, type) and issubclass(module, Attention)
    )
