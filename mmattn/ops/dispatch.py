# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Which of its paths a function of this package takes."""

import functools
import importlib
import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor

from mmattn.compat.compiling import is_compiling
from mmattn.compat.library import HAS_CUSTOM_OPS

VARIABLE = 'MMATTN_OPS'
#: What computes it: plain torch as in the paper, plain torch piece by piece
#: (CPU), and kernels written in Triton (GPU).
PATHS = ('reference', 'eager', 'triton')
# The oldest GPUs that Triton compiles for, by compute capability.
TRITON_GPUS = (7, 0)


def wanted() -> str:
    """Return the value of the variable ``MMATTN_OPS``, ``auto`` by default.

    Raises:
        RuntimeError: It names no path.
    """
    path = os.environ.get(VARIABLE, 'auto')
    if path not in ('auto', *PATHS):
        raise RuntimeError(
            f'{VARIABLE}={path}: must be auto or one of {", ".join(PATHS)}'
        )
    return path


def precision_of(x: Tensor) -> torch.dtype:
    """Return what a map is computed in: float32 for half precision."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half else x.dtype


def dense(x: Tensor) -> Tensor:
    """Return a map contiguous or ``channels_last``, which kernels know."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return x if last else x.contiguous()


def choose(x: Tensor, refusal: str = '') -> str:
    """Return the path for a map, by the variable ``MMATTN_OPS``.

    ``auto``, the default, takes ``eager`` on a CPU and ``triton`` on a GPU
    where these can be taken. Compilers and exporters get ``reference``: they
    fuse its steps themselves.

    Args:
        x: The map.
        refusal: Why the function can only take ``reference``, if so.

    Raises:
        RuntimeError: The variable names no path, or one that cannot be
            taken; says why.
    """
    if is_compiling() or torch.jit.is_tracing():
        return 'reference'
    path = wanted()
    if path == 'reference':
        return path
    fast = 'triton' if x.is_cuda else 'eager'
    refusal = refusal or refusal_of(x)
    if path not in ('auto', fast):
        place = {'eager': 'the CPU', 'triton': 'a GPU'}[path]
        refusal = f'it is for {place}, and the map is on {x.device}'
    if refusal and path != 'auto':
        raise RuntimeError(f'{VARIABLE}={path} cannot be taken: {refusal}')
    return 'reference' if refusal else fast


def refusal_of(x: Tensor) -> str:
    """Say why the fast path for the device of a map cannot be taken."""
    if x.device.type not in ('cpu', 'cuda'):
        return f'it is for the CPU and for GPUs, and the map is on {x.device}'
    if not HAS_CUSTOM_OPS:
        return f'it needs torch 2.4 or newer, this is {torch.__version__}'
    if x.device.type == 'cpu':
        return ''
    if not _has_triton():
        return 'triton is not installed; pip install triton'
    if torch.cuda.get_device_capability(x.device) < TRITON_GPUS:
        name = torch.cuda.get_device_name(x.device)
        return f'triton does not compile for {name}'
    return ''


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec('triton') is not None


def kernels(x: Tensor, name: str) -> ModuleType:
    """Return the module with a function's kernels for the device of a map."""
    path = 'triton' if x.is_cuda else 'eager'
    return importlib.import_module(f'mmattn.ops.{name}_{path}')
