# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Plug-in attention for OpenMMLab models."""

from . import compat
from .version import __version__

compat.setup()

__all__ = ['__version__']
