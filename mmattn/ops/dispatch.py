# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Which of its paths a function of this package takes."""

import os

import torch
from torch import Tensor

from mmattn.compat.compiling import is_compiling
from mmattn.compat.library import HAS_CUSTOM_OPS

VARIABLE = 'MMATTN_OPS'
PATHS = ('reference', 'eager')


def choose(x: Tensor, refusal: str, faster: bool) -> str:
    """Return the path for a map, by the variable ``MMATTN_OPS``.

    ``auto``, the default, takes ``eager`` where it can be taken and is
    faster. Compilers and exporters get ``reference``: they fuse its steps
    themselves.

    Args:
        x: The map.
        refusal: Why the function itself cannot take ``eager``, if so.
        faster: Whether ``eager`` is the faster path for this map.

    Raises:
        RuntimeError: The variable names no path, or one that cannot be
            taken; says why.
    """
    if is_compiling() or torch.jit.is_tracing():
        return 'reference'
    wanted = os.environ.get(VARIABLE, 'auto')
    if wanted not in ('auto', *PATHS):
        raise RuntimeError(
            f'{VARIABLE}={wanted}: must be auto or one of {", ".join(PATHS)}'
        )
    if wanted == 'reference':
        return wanted
    if not refusal and x.device.type != 'cpu':
        refusal = f'it is for the CPU, and the map is on {x.device}'
    if not refusal and not HAS_CUSTOM_OPS:
        refusal = f'it needs torch 2.4 or newer, this is {torch.__version__}'
    if refusal and wanted == 'eager':
        raise RuntimeError(f'{VARIABLE}=eager cannot be taken: {refusal}')
    wins = faster or wanted == 'eager'
    return 'eager' if wins and not refusal else 'reference'
