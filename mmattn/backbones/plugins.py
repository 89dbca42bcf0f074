# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Plugins: modules at named positions inside the blocks of a backbone.

The one mechanism by which mmattn's backbones take attention. A framework
builds the backbone; its blocks then become :class:`PluginBlock` ones, with
the same attributes and a forward that visits every position. The config
schema is mmdet's, plus ``blocks``::

    plugins=[
        dict(cfg=dict(type='mmattn.SCSA'), position='after_conv2',
             stages=(False, True, True, True), blocks=(-1,)),
    ]

Modules become children of the block, named by their ``_abbr_`` (plus
``postfix``), as mmdet names them: every key of the plain backbone stays.
"""

import itertools
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmattn.errors import ConfigError

from .blocks import PluginBlock, get_plugin_class

KEYS = ('cfg', 'position', 'stages', 'blocks')


def check_plugins(
    plugins: Sequence[dict], stages: Sequence[Sequence[PluginBlock]]
) -> None:
    """Refuse plugins that the mechanism would misread or crash on.

    Args:
        plugins: The backbone's ``plugins``.
        stages: Its blocks, stage by stage.

    Raises:
        ConfigError: If a key, type, position, ``stages`` or ``blocks`` is
            wrong; the message lists what exists.
    """
    if not isinstance(plugins, (list, tuple)):
        raise ConfigError(
            f'plugins={plugins!r} must be a list of dicts with cfg, position '
            'and, optionally, stages and blocks'
        )
    # MobileNetV2's first block has fewer.
    blocks = itertools.chain(*stages)
    positions = max((list(block.widths()) for block in blocks), key=len)
    for i, plugin in enumerate(plugins):
        where = f'plugins[{i}]'
        if not isinstance(plugin, dict) or not {'cfg', 'position'} <= set(
            plugin
        ):
            raise ConfigError(
                f'{where} must be a dict with cfg, position and, optionally, '
                f'stages and blocks, but is {plugin!r}'
            )
        unknown = sorted(set(plugin) - set(KEYS), key=str)
        if unknown:
            raise ConfigError(
                f'{where} has unknown keys {unknown}; it may have {KEYS}'
            )
        if not isinstance(plugin['cfg'], dict) or 'type' not in plugin['cfg']:
            raise ConfigError(
                f'{where} has no type in cfg={plugin["cfg"]!r}; it needs a '
                'dict with a type and the arguments of the module'
            )
        get_plugin_class(plugin['cfg']['type'])
        if plugin['position'] not in positions:
            raise ConfigError(
                f'{where} has position={plugin["position"]!r}; this backbone '
                f'has {", ".join(positions)}'
            )
        _check_choice(plugin, stages, where)


def _check_choice(
    plugin: dict, stages: Sequence[Sequence], where: str
) -> None:
    """Refuse ``stages`` and ``blocks`` that choose none or not these."""
    wanted, chosen = plugin.get('stages'), plugin.get('blocks')
    if wanted is not None and (
        not isinstance(wanted, (tuple, list))
        or len(wanted) != len(stages)
        or not any(wanted)
        or not all(w in (False, True) for w in wanted)
    ):
        raise ConfigError(
            f'{where} has stages={wanted!r}; it needs True or False for each '
            f'of the {len(stages)} stages, and one True'
        )
    if chosen is None:
        return
    sizes = [len(stage) for stage in _pick(stages, wanted)]
    if (
        not isinstance(chosen, (tuple, list))
        or not chosen
        or not all(type(j) is int for j in chosen)
        or not all(-size <= j < size for j in chosen for size in sizes)
    ):
        raise ConfigError(
            f'{where} has blocks={chosen!r}; it needs a tuple of numbers of '
            f'blocks, from 0 or, from the last, -1, and its stages have '
            f'{", ".join(map(str, sizes))}'
        )


def _pick(stages: Sequence, wanted: Sequence[bool] | None) -> list:
    return [s for i, s in enumerate(stages) if wanted is None or wanted[i]]


def _at(stage: Sequence, indices: Sequence[int]) -> list:
    return [b for i, b in enumerate(stage) if {i, i - len(stage)} & {*indices}]


class PluginBackbone:
    """Mixin for a backbone with plugins in its blocks; silent traps warn.

    A checkpoint without the plugins' keys, randomly initialised plugins that
    are frozen, and batch norms inside plugins under ``norm_eval`` each give
    one line that names the parameters.
    """

    #: The classes that the framework's blocks change to.
    block_classes: Mapping[type, type[PluginBlock]]

    def __init__(
        self,
        *args,
        plugins: Sequence[dict] | None = None,
        pretrained: str | None = None,
        init_cfg: dict | list[dict] | None = None,
        **kwargs,
    ) -> None:
        if pretrained is not None:  # mmseg writes it into the backbone
            if init_cfg is not None:
                raise ConfigError('give the backbone init_cfg or pretrained')
            init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        if init_cfg is not None:  # else the framework's own default
            kwargs['init_cfg'] = init_cfg
        try:
            super().__init__(*args, **kwargs)
        except TypeError as error:
            if 'unexpected keyword' not in str(error):
                raise
            base = next(
                c for c in type(self).__mro__ if c.__module__[:6] != 'mmattn'
            )
            raise ConfigError(
                f'mmattn.{type(self).__name__} takes the arguments of '
                f'{base.__module__}.{base.__name__}: {error}'
            ) from error
        stages = [list(stage) for stage in self.plugin_stages()]
        for block in itertools.chain(*stages):
            self.block_classes[type(block)].adopt(block)
        plugins = () if plugins is None else plugins
        check_plugins(plugins, stages)
        for i, plugin in enumerate(plugins):
            if not self._insert(plugin, stages):
                raise ConfigError(
                    f'plugins[{i}]: none of the chosen blocks has '
                    f'position={plugin["position"]!r}'
                )
        self._freeze_stages()
        #: Names of plugin weights and buffers that no checkpoint has set.
        self.fresh_plugin_state = {
            f'{name}.{key}'
            for name, plugin in self.named_plugins()
            for key in plugin.state_dict()
        }

    @abstractmethod
    def plugin_stages(self) -> list[Sequence[nn.Module]]:
        """Return the blocks of each stage."""

    def _insert(self, plugin: dict, stages: list[list[PluginBlock]]) -> int:
        """Put a plugin into the blocks that it chooses; return how many."""
        position, chosen = plugin['position'], plugin.get('blocks')
        blocks = [
            block
            for stage in _pick(stages, plugin.get('stages'))
            for block in (stage if chosen is None else _at(stage, chosen))
            if position in block.plugin_names  # MobileNetV2's first lacks some
        ]
        for block in blocks:
            block.add_plugin(plugin['cfg'], position)
        return len(blocks)

    def named_plugins(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield every plugin with its name, as ``named_modules`` does."""
        for name, block in self.named_modules():
            if isinstance(block, PluginBlock):
                for key in itertools.chain(*block.plugin_names.values()):
                    yield f'{name}.{key}', getattr(block, key)

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode; unlike the frameworks' own, return the module."""
        super().train(mode)
        return self

    def init_weights(self) -> None:
        """Initialise, then warn of what would silently stay random."""
        super().init_weights()
        for name, plugin in self.named_plugins():
            # mmengine's recursion ends at plain nn.Sequential stages.
            own = {f'{name}.{key}' for key, _ in plugin.named_parameters()}
            if own <= self.fresh_plugin_state and not getattr(
                plugin, 'is_init', True
            ):
                plugin.init_weights()
        frozen = [
            name
            for name, parameter in self.named_parameters()
            if name in self.fresh_plugin_state and not parameter.requires_grad
        ]
        if frozen:
            _warn(
                'frozen at random values',
                frozen,
                'leave the frozen stages out by stages=(False, True, ...), '
                'lower frozen_stages, or start from a backbone trained with '
                'the plugin',
            )
        norms = [
            f'{name}.{key}.running_mean'
            for name, plugin in self.named_plugins()
            for key, module in plugin.named_modules()
            if isinstance(module, _BatchNorm)
            and f'{name}.{key}.running_mean' in self.fresh_plugin_state
        ]
        if norms and getattr(self, 'norm_eval', False):
            _warn(
                'batch-norm statistics that norm_eval=True holds at (0, 1)',
                norms,
                'set norm_eval=False, use another norm in the plugin, or '
                'start from a backbone trained with the plugin',
            )

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if not any(key.startswith(prefix) for key in state_dict):
            return
        self.fresh_plugin_state = {
            key
            for key in self.fresh_plugin_state
            if prefix + key not in state_dict
        }
        missing = [
            name
            for name, _ in self.named_parameters()
            if name in self.fresh_plugin_state
        ]
        if missing:
            _warn(
                'not in the checkpoint and stay as initialised',
                missing,
                'expected when a plain backbone is the start; otherwise '
                'check that the checkpoint has the same plugins',
            )


def _warn(what: str, names: list[str], remedy: str) -> None:
    shown = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
    print_log(
        f'{len(names)} plugin parameters: {what} ({shown}); {remedy}.',
        logger='current',
        level=logging.WARNING,
    )
