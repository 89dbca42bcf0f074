# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Blocks with positions for plugins.

A framework's block becomes one of these by :meth:`PluginBlock.adopt`: the
same attributes, and a forward that visits every position.
"""

import contextlib
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mmcv.cnn import ConvModule, build_plugin_layer
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmattn.attention import list_attentions
from mmattn.attention.base import is_traced
from mmattn.errors import ConfigError
from mmattn.registry import MODELS

NO_ACTIVATION = nn.Identity()


def get_plugin_class(name: str | type) -> type:
    """Find a plugin's class in the active scope, then among mmattn's.

    Args:
        name: ``'mmattn.SCSA'``, another registered name, or a class.

    Raises:
        ConfigError: If the name is not registered, or not as a module.
    """
    cls = name if inspect.isclass(name) else _look_up(name)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise ConfigError(f'plugin type {name!r} is no class of modules')
    return cls


def _look_up(name: str) -> object:
    if not isinstance(name, str):
        raise ConfigError(f'plugin type {name!r} must be a name or a class')
    found = None
    with (
        contextlib.suppress(RuntimeError),  # mmengine's for no name at all
        MMENGINE_MODELS.switch_scope_and_registry(None) as registry,
    ):
        found = registry.get(name) or MODELS.get(name)
    if found is None:
        raise ConfigError(
            f'plugin type {name!r} is not registered; mmattn has '
            f'{", ".join(list_attentions())}; '
            "a module of your own needs custom_imports=dict(imports=['...'])"
        )
    return found


def _build(
    cfg: Mapping, position: str, in_channels: int
) -> tuple[str, nn.Module]:
    """Build a plugin and its name in the block."""
    settings = dict(cfg)
    cls = get_plugin_class(settings.pop('type'))
    postfix = settings.pop('postfix', '')
    if not isinstance(postfix, (int, str)) or '.' in str(postfix):
        raise ConfigError(
            f'plugin {cls.__name__} at {position}: postfix={postfix!r} must '
            'be a string without a dot, or a number'
        )
    try:
        return build_plugin_layer(
            dict(settings, type=cls), postfix=postfix, in_channels=in_channels
        )
    # Modules of others refuse arguments by any kind of error.
    except Exception as error:
        shown = ', '.join(
            f'{key}={value!r}' for key, value in settings.items()
        )
        kind = '' if isinstance(error, ValueError) else type(error).__name__
        raise ConfigError(
            f'plugin {cls.__name__}({shown}) at {position}, in_channels='
            f'{in_channels}: {": ".join(filter(None, (kind, str(error))))}'
        ) from error


class PluginBlock:
    """Mixin for a backbone's block: plugins at named positions."""

    @classmethod
    def adopt(cls, block: nn.Module) -> None:
        """Change the class of a framework's block to this one, in place.

        The frameworks name the classes of their blocks in the middle of
        their constructors; this way none of that is copied.
        """
        block.__class__ = cls
        block.plugin_names = {position: [] for position in block.widths()}

    @abstractmethod
    def widths(self) -> dict[str, int]:
        """Return the channels at each position, in order of execution."""

    def add_plugin(self, cfg: Mapping, position: str) -> None:
        """Build a module and put it behind those at the same position.

        Args:
            cfg: Its ``type``, arguments and, optionally, ``postfix``.
            position: A key of :meth:`widths`.

        Raises:
            ConfigError: If it cannot be built or its name is taken.
        """
        name, layer = _build(cfg, position, self.widths()[position])
        if hasattr(self, name):
            raise ConfigError(
                f'two modules of a block would be named {name!r}; give the '
                f"plugin at {position} a postfix: cfg=dict(..., postfix='_2')"
            )
        self.add_module(name, layer)
        self.plugin_names[position].append(name)

    def plug(self, x: Tensor, position: str) -> Tensor:
        """Run the plugins of a position, ``(B, C, H, W)`` to the same."""
        for name in self.plugin_names[position]:
            out = getattr(self, name)(x)
            if not is_traced() and getattr(out, 'shape', None) != x.shape:
                got = out.shape if isinstance(out, Tensor) else type(out)
                raise ConfigError(
                    f'plugin {name} at {position} must return a map as the '
                    f'one it is given, of {x.shape}, but returns {got}'
                )
            x = out
        return x

    def checkpointed(
        self, branch: Callable[[Tensor], Tensor], x: Tensor
    ) -> Tensor:
        """Run a branch; ``with_cp`` trades its memory for a second run."""
        if self.with_cp and x.requires_grad:
            return checkpoint(branch, x, use_reentrant=False)
        return branch(x)


class Step(NamedTuple):
    """A convolution of a block with its norm and activation."""

    conv: nn.Module
    owner: nn.Module  # the module that has the norm ...
    norm_name: str | None  # ... under this name
    act: nn.Module | None  # None if it follows the shortcut addition

    @classmethod
    def of(cls, module: ConvModule) -> 'Step':
        """Take an mmcv ``ConvModule`` apart."""
        act = module.activate if module.with_activation else NO_ACTIVATION
        return cls(module.conv, module, module.norm_name, act)


class ConvPluginBlock(PluginBlock):
    """Mixin for a block whose main branch is convolutions 1 to n in a row.

    ``after_convK`` follows convolution, norm and activation; ``before_normK``
    lies between convolution and norm, ``before_actK`` between norm and
    activation (where the convolution has no activation, both coincide).
    ``after_block`` follows the shortcut and its activation.
    """

    @abstractmethod
    def steps(self) -> dict[int, Step]:
        """Return the convolutions by their number."""

    def block_width(self) -> int:
        """Return the channels of the block's output."""
        return list(self.steps().values())[-1].conv.out_channels

    def widths(self) -> dict[str, int]:
        """Return the channels at each position, in order of execution."""
        widths = {}
        for k, step in self.steps().items():
            width = step.conv.out_channels
            if step.norm_name is not None:
                widths[f'before_norm{k}'] = width
            if step.act is not None:
                widths[f'before_act{k}'] = width
            widths[f'after_conv{k}'] = width
        return widths | dict(after_block=self.block_width())

    def add_plugin(self, cfg: Mapping, position: str) -> None:
        """Build a module and put it at a position, see the base class."""
        super().add_plugin(cfg, position)
        if position == 'after_block':
            return
        step = self.steps()[int(position[-1])]
        if position.startswith('before_act') and hasattr(step.act, 'inplace'):
            # The plugin may have saved its output for backward.
            step.act.inplace = False
        if position.startswith('before_norm'):
            _register_first(step.owner, step.norm_name)

    def branch(self, x: Tensor) -> Tensor:
        """Run the convolutions, ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        for k, (conv, owner, norm_name, act) in self.steps().items():
            x = self.plug(conv(x), f'before_norm{k}')
            if norm_name is not None:
                x = getattr(owner, norm_name)(x)
            if act is not None:
                x = act(self.plug(x, f'before_act{k}'))
            x = self.plug(x, f'after_conv{k}')
        return x


def _register_first(owner: nn.Module, name: str) -> None:
    # mmcv's fuse_conv_bn folds a norm into the convolution registered before
    # it, which is wrong where a plugin stands between the two. A norm
    # registered before any convolution is left alone.
    first = {name: owner._modules.pop(name)}
    rest = dict(owner._modules)
    owner._modules.clear()
    owner._modules.update(first | rest)
