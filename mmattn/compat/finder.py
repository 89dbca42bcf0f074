# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Finds `mmcv._ext` where mmcv came without its compiled extension."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

EXTENSION = 'mmcv._ext'
_SOURCE = Path(__file__).with_name('mmcv_ext.py')


class ExtensionFinder(MetaPathFinder):
    """Serves `mmcv_ext.py` of this folder under the name `mmcv._ext`.

    It stands last in `sys.meta_path`, so a compiled extension, also one that
    is found but fails to load, is never replaced. The spec is an ordinary
    one: `find_spec('mmcv._ext')`, by which mmcv and mmengine ask whether the
    ops exist, answers without importing anything.
    """

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the spec of `mmcv._ext` and None for any other name."""
        if fullname != EXTENSION:
            return None
        return spec_from_file_location(EXTENSION, _SOURCE)


def install() -> None:
    """Append the finder to `sys.meta_path` unless one is there."""
    if not any(isinstance(f, ExtensionFinder) for f in sys.meta_path):
        sys.meta_path.append(ExtensionFinder())


def ops_source() -> str:
    """Tell where `mmcv.ops` gets its ops from, importing neither.

    Returns:
        'compiled' for mmcv's own extension (which may still fail to load),
        'torchvision' for mmattn's, 'none' where mmcv, or torchvision for
        mmattn's ops, is not installed.
    """
    mmcv = find_spec('mmcv')
    if mmcv is None:
        return 'none'
    folders = mmcv.submodule_search_locations
    if PathFinder.find_spec(EXTENSION, folders) is not None:
        return 'compiled'
    return 'none' if find_spec('torchvision') is None else 'torchvision'
