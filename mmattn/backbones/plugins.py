# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Plugins: modules at named positions inside the blocks of a backbone.

The one mechanism by which mmattn's backbones take attention. A block mixes in
:class:`PluginBlock`, a backbone :class:`PluginBackbone`; the config schema is
mmdet's::

    plugins=[
        dict(cfg=dict(type='mmattn.SCSA'), position='after_conv2',
             stages=(False, True, True, True)),
    ]

Modules become children of the block, named by their ``_abbr_`` (plus
``postfix``), as mmdet names them: every key of the plain backbone stays.
"""

import inspect
import itertools
import logging
from collections.abc import Iterator, Sequence

from mmcv.cnn import build_plugin_layer
from mmengine.logging import print_log
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmattn.attention import list_attentions
from mmattn.errors import ConfigError
from mmattn.registry import MODELS

KEYS = ('cfg', 'position', 'stages')


def get_plugin_class(name: str | type) -> type:
    """Find a plugin's class in the active scope, then among mmattn's.

    Args:
        name: ``'mmattn.SCSA'``, another registered name, or a class.

    Raises:
        ConfigError: If the name is not registered.
    """
    if inspect.isclass(name):
        return name
    with MMENGINE_MODELS.switch_scope_and_registry(None) as registry:
        cls = registry.get(name) or MODELS.get(name)
    if cls is None:
        raise ConfigError(
            f'plugin type {name!r} is not registered; mmattn has '
            f'{", ".join(list_attentions())}; '
            "a module of your own needs custom_imports=dict(imports=['...'])"
        )
    return cls


def check_plugins(
    plugins: Sequence[dict], positions: Sequence[str], num_stages: int
) -> None:
    """Refuse plugins that the mechanism would misread or crash on.

    Args:
        plugins: The backbone's ``plugins``.
        positions: Positions that its blocks have.
        num_stages: Number of stages of the backbone.

    Raises:
        ConfigError: If a key, type, position or ``stages`` is wrong; the
            message lists what exists.
    """
    for i, plugin in enumerate(plugins):
        where = f'plugins[{i}]'
        if not isinstance(plugin, dict) or not {'cfg', 'position'} <= set(
            plugin
        ):
            raise ConfigError(
                f'{where} must be a dict with cfg, position and, optionally, '
                f'stages, but is {plugin!r}'
            )
        unknown = sorted(set(plugin) - set(KEYS))
        if unknown:
            raise ConfigError(
                f'{where} has unknown keys {unknown}; it may have {KEYS}'
            )
        if 'type' not in plugin['cfg']:
            raise ConfigError(f'{where} has no type in its cfg')
        get_plugin_class(plugin['cfg']['type'])
        if plugin['position'] not in positions:
            raise ConfigError(
                f'{where} has position={plugin["position"]!r}; this backbone '
                f'has {", ".join(positions)}'
            )
        stages = plugin.get('stages')
        if stages is not None and len(stages) != num_stages:
            raise ConfigError(
                f'{where} has stages={tuple(stages)}; it needs one entry for '
                f'each of the {num_stages} stages'
            )


class PluginBlock:
    """Mixin for a residual block: its forward visits every plugin position.

    For blocks with convolutions ``conv1..n``, ``norm1..n``, ``relu``,
    ``downsample`` and ``with_cp``. ``after_convK`` follows convolution, norm
    and activation, the last one the norm only, before the shortcut addition;
    ``before_normK`` lies between convolution and norm, ``before_actK``
    between norm and activation.
    """

    num_convs: int

    def __init__(
        self, *args, plugins: Sequence[dict] | None = None, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        self.plugin_names = {position: [] for position in self.positions()}
        for plugin in plugins or ():
            self._add_plugin(**plugin)
        self._keep_norms_behind_plugins_unfused()

    @classmethod
    def positions(cls) -> list[str]:
        """Return the names of the positions, in order of execution."""
        positions = []
        for k in range(1, cls.num_convs + 1):
            positions.append(f'before_norm{k}')
            if k < cls.num_convs:  # the last activation follows the addition
                positions.append(f'before_act{k}')
            positions.append(f'after_conv{k}')
        return positions

    def _add_plugin(self, cfg: dict, position: str) -> None:
        cfg = dict(cfg)
        postfix = cfg.pop('postfix', '')
        cfg['type'] = get_plugin_class(cfg['type'])
        width = getattr(self, f'conv{position[-1]}').out_channels
        try:
            name, layer = build_plugin_layer(
                cfg, postfix=postfix, in_channels=width
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f'plugin {cfg["type"].__name__} at {position}: {error}'
            ) from error
        if hasattr(self, name):
            raise ConfigError(
                f'two modules of a block would be named {name!r}; give the '
                f"plugin at {position} a postfix: cfg=dict(..., postfix='_2')"
            )
        self.add_module(name, layer)
        self.plugin_names[position].append(name)

    def _keep_norms_behind_plugins_unfused(self) -> None:
        # mmcv's fuse_conv_bn folds a norm into the convolution registered
        # before it, which is wrong where a plugin stands between the two. A
        # norm registered before any convolution is left alone.
        for k in range(1, self.num_convs + 1):
            if self.plugin_names[f'before_norm{k}']:
                name = getattr(self, f'norm{k}_name')
                first = {name: self._modules.pop(name)}
                rest = dict(self._modules)
                self._modules.clear()
                self._modules.update(first | rest)

    def _plug(self, x: Tensor, position: str) -> Tensor:
        for name in self.plugin_names[position]:
            x = getattr(self, name)(x)
        return x

    def _activate(self, x: Tensor, position: str) -> Tensor:
        if not self.plugin_names[position]:
            return self.relu(x)
        # Not in place: a plugin may have saved its output for backward.
        return F.relu(self._plug(x, position))

    def _branch(self, x: Tensor) -> Tensor:
        out = x
        for k in range(1, self.num_convs + 1):
            out = getattr(self, f'conv{k}')(out)
            out = self._plug(out, f'before_norm{k}')
            out = getattr(self, f'norm{k}')(out)
            if k < self.num_convs:
                out = self._activate(out, f'before_act{k}')
            out = self._plug(out, f'after_conv{k}')
        identity = x if self.downsample is None else self.downsample(x)
        return out + identity  # not in place, as above

    def forward(self, x: Tensor) -> Tensor:
        """Run the block, ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        if self.with_cp and x.requires_grad:
            out = checkpoint(self._branch, x, use_reentrant=False)
        else:
            out = self._branch(x)
        return self.relu(out)


class PluginBackbone:
    """Mixin for a backbone of plugin blocks: three silent traps warn.

    A checkpoint without the plugins' keys, randomly initialised plugins that
    are frozen, and batch norms inside plugins under ``norm_eval`` each give
    one line that names the parameters.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        #: Names of plugin weights and buffers that no checkpoint has set.
        self.fresh_plugin_state = {
            f'{name}.{key}'
            for name, plugin in self.named_plugins()
            for key in plugin.state_dict()
        }

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
