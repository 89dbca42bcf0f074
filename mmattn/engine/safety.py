# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Running what others made: `--trust-checkpoint` and `--safe-config`.

Checkpoints are read as weights unless they are trusted
(:mod:`mmattn.compat.checkpoint`). Config files are code, unless a tool is told
to read only those that are not.
"""

import argparse
import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import yaml
from mmengine.config import Config
from mmengine.fileio import PickleHandler, YamlHandler, register_handler

from mmattn.compat.checkpoint import trust_checkpoints, trusts_checkpoints
from mmattn.errors import ConfigError

#: Suffixes of configs that are no code.
FORMATS = ('.yml', '.yaml', '.json')

#: Packages whose registries a safe config can name.
PACKAGES = ('mmattn', 'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg')

#: Settings that import or run what a config names.
REFUSED = ('_base_', 'custom_imports', 'sys_path', 'trust_remote_code')

#: Calls, and expressions that hide one. Some modules of the frameworks, such
#: as mmcv's NMS, evaluate strings of the config as Python.
CODE = re.compile(r'\(|\blambda\b|[\[{].*\bfor\b', re.DOTALL)


class _Switch(argparse.Action):
    """An option without a value that calls ``const`` when it is met."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, nargs=0, default=False, **kwargs)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        *args: Any,
    ) -> None:
        setattr(namespace, self.dest, True)
        self.const()


def add_safety_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint`` and ``--safe-config``.

    Each works for the whole process from when the command line is read.
    """
    add_trust_argument(parser)
    add_safe_config_argument(parser)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``, for tools that read no config."""
    parser.add_argument(
        '--trust-checkpoint',
        action=_Switch,
        const=trust_checkpoints,
        help='Load checkpoints that hold more than weights, and so can run '
        'any code. Only for files of people you trust.',
    )


def add_safe_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--safe-config``, for tools that read no checkpoint."""
    parser.add_argument(
        '--safe-config',
        action=_Switch,
        const=run_no_configs,
        help='Read only configs that are no code: YAML or JSON, as '
        'tools/dump_config.py writes them.',
    )


def run_no_configs() -> None:
    """Let no config of this process run code that it brings or names.

    Configs are read by :func:`read_plain_config`; their types are looked up
    in registries and nowhere else; pickles that they name are refused.
    """
    registry = importlib.import_module('mmengine.registry.registry')
    registry.get_object_from_string = _no_object
    registry.import_module = _import_known
    Config.fromfile = staticmethod(read_plain_config)
    register_handler(['pkl', 'pickle'])(_NoPickles)
    register_handler(['yml', 'yaml'])(_PlainYaml)
    if not trusts_checkpoints():
        # For modules that call torch.load themselves.
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


def read_plain_config(path: str | Path, *args: Any, **kwargs: Any) -> Config:
    """Read a config that is no code, in place of ``Config.fromfile``.

    Nothing in it is replaced: neither variables of the environment nor names
    of files. What else ``Config.fromfile`` takes is without effect.

    Args:
        path: A file in YAML or JSON that stands for itself, without bases.

    Raises:
        ConfigError: If it has another format or a setting that could run
            code; names it.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigError(
            f'--safe-config: {path} would be run as code; where you trust '
            f'it, python tools/dump_config.py {path} {path.stem}.yml makes '
            'what can be read'
        )
    try:
        settings = _parse(path.read_text(encoding='utf-8'), path.suffix)
    except (ValueError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise ConfigError(f'--safe-config: {path}: {reason}') from error
    if not isinstance(settings, dict):
        raise ConfigError(f'--safe-config: {path} holds no settings')
    for key, value in _walk(settings):
        problem = _problem(key.rpartition('.')[2], value)
        if problem:
            raise ConfigError(f'--safe-config: {path}: {key} {problem}')
    return Config(settings, filename=str(path))


def dump_plain_config(cfg: Config, path: str | Path) -> None:
    """Write a config for :func:`read_plain_config`, tuples as tuples.

    Args:
        cfg: The config.
        path: A file whose suffix is one of ``FORMATS``.

    Raises:
        ConfigError: If it has another suffix, or the config holds what is no
            text, number or list.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigError(f'{path} must end in {", ".join(FORMATS)}')
    settings = cfg.to_dict()
    try:
        if path.suffix == '.json':
            text = json.dumps(_mark_tuples(settings), indent=1) + '\n'
        else:
            text = yaml.dump(settings, sort_keys=False)
            _parse(text, path.suffix)
    except (TypeError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise ConfigError(
            f'the config cannot be written to {path}: {reason}'
        ) from error
    path.write_text(text, encoding='utf-8')


def _mark_tuples(node: Any) -> Any:
    """Replace tuples, which JSON has not, by what :func:`_parse` reads."""
    if isinstance(node, dict):
        return {key: _mark_tuples(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        items = [_mark_tuples(value) for value in node]
        return {'_tuple_': items} if isinstance(node, tuple) else items
    return node


def _parse(text: str, suffix: str) -> Any:
    """Read what a text in one of ``FORMATS`` says."""
    if suffix != '.json':
        return yaml.load(text, _Loader)
    return json.loads(
        text,
        object_hook=lambda node: (
            tuple(node['_tuple_']) if list(node) == ['_tuple_'] else node
        ),
    )


def _walk(node: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """Yield everything below a setting with its dotted key."""
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    else:
        return
    for name, value in items:
        full = f'{key}.{name}' if key else str(name)
        yield full, value
        yield from _walk(value, full)


def _problem(key: str, value: Any) -> str | None:
    """Say what about a setting could run code, if anything could."""
    if key in REFUSED and value:
        return 'runs code; a dump of the config has it not'
    if CODE.search(key) or isinstance(value, str) and CODE.search(value):
        return f'holds what could be evaluated as Python: {value!r}'
    scopes = ('_scope_', 'default_scope')
    if key in scopes and value is not None and value not in PACKAGES:
        return f'is {value!r}, none of {", ".join(PACKAGES)}'
    return None


class _Loader(yaml.SafeLoader):
    """Reads tuples besides what is safe, for configs are full of them."""


_Loader.add_constructor(
    'tag:yaml.org,2002:python/tuple',
    lambda loader, node: tuple(loader.construct_sequence(node, deep=True)),
)


class _PlainYaml(YamlHandler):
    """Reads YAML without making objects that it names."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        """Read a file."""
        return super().load_from_fileobj(file, Loader=_Loader)


class _NoPickles(PickleHandler):
    """Writes pickles, such as predictions, and reads none."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> NoReturn:
        """Refuse a file."""
        name = getattr(file, 'name', 'a pickle that the config names')
        raise ConfigError(f'--safe-config: {name} could run code: not read')


def _no_object(name: str) -> None:
    """Find nothing, in place of importing what a type's name says."""


def _import_known(name: str) -> ModuleType:
    """Import a registry of the frameworks, and no other module."""
    if name.partition('.')[0] not in PACKAGES:
        raise ModuleNotFoundError(f'--safe-config: no import of {name}')
    return importlib.import_module(name)
