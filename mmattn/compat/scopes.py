# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Scopes of config bases (`_base_ = 'mmseg::...'`) that mmengine lacks."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec


def complete_scopes() -> None:
    """Make `mmattn::` and, for every distribution of mmseg, `mmseg::` work.

    mmengine maps a scope to a package that it looks up first as a
    distribution and then as a module. For mmseg it knows only the
    distribution `mmsegmentation`, so a fork with the module `mmseg` under
    another distribution name is "not installed"; mapping the scope to the
    module's name finds it.

    Raises:
        ImportError: mmengine is not installed.
    """
    from mmengine.config import Config
    from mmengine.config.utils import MODULE2PACKAGE

    # Named like no distribution, whose location would be site-packages and
    # not the source tree in an editable install; the module's folder is right.
    MODULE2PACKAGE.setdefault('mmattn', 'mmattn.version')
    if not _is_distribution('mmsegmentation') and find_spec('mmseg'):
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    look_up = getattr(Config, '_get_cfg_path', None)
    if look_up is not None and not hasattr(look_up, 'unscoped'):
        Config._get_cfg_path = staticmethod(_without_scope(look_up))


def _without_scope(look_up: Callable) -> Callable:
    """Wrap mmengine's look-up of a base so that `mmattn::` adds no scope.

    The types of a base found by `mmdet::` are then looked up in mmdet. Those
    of mmattn's configs belong to the framework that their `default_scope`
    names, and mmattn's own have its prefix.
    """

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        path, scope = look_up(cfg_path, filename)
        return path, None if scope == 'mmattn' else scope

    get_cfg_path.unscoped = True
    return get_cfg_path


def _is_distribution(name: str) -> bool:
    """Tell whether a distribution of this name is installed."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
