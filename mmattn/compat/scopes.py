# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Scopes of config bases (`_base_ = 'mmseg::...'`) that mmengine lacks."""

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
    from mmengine.config.utils import MODULE2PACKAGE

    # Named like no distribution, whose location would be site-packages and
    # not the source tree in an editable install; the module's folder is right.
    MODULE2PACKAGE.setdefault('mmattn', 'mmattn.version')
    if not _is_distribution('mmsegmentation') and find_spec('mmseg'):
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def _is_distribution(name: str) -> bool:
    """Tell whether a distribution of this name is installed."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
