# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Lets `torch.load(weights_only=True)` read the checkpoints of mmengine.

Since torch 2.6 this is the default, and a checkpoint of mmengine's Runner is
refused: it holds the logged scalars as `HistoryBuffer` objects, which hold
numpy arrays and references to their own methods, and numbers of numpy, such
as the best score. The types named here are the whole difference, and none of
them runs code that a file chooses.
"""

from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, NoReturn

#: Element types that arrays and numbers may have: booleans, integers, floats
#: and strings. Not objects, which could be anything.
_DTYPES = '?bBhHiIlLqQefdU'

#: Names in a checkpoint that stand for something else than usual.
_GETATTR = 'builtins.getattr'
_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'


def allow_checkpoint_types() -> None:
    """Register the types in mmengine's checkpoints as safe with torch.

    Does nothing on a torch older than 2.6, which loads them anyway.

    Raises:
        ImportError: torch, numpy or mmengine is not installed.
        OSError: torch is installed but misses a library.
    """
    from torch import serialization

    # This function came with 2.6, as did the pairs of object and name.
    if hasattr(serialization, 'get_unsafe_globals_in_checkpoint'):
        serialization.add_safe_globals(_numpy_types() + _mmengine_types())


def _numpy_types() -> list[type | tuple[Callable, str]]:
    """List what the arrays and numbers of numpy need to be read."""
    import numpy as np

    functions = {
        '_reconstruct': np.empty(0).__reduce__()[0],
        'scalar': np.float64(0).__reduce__()[0],
    }
    # numpy 2 renamed the module, and a file names that of its writer.
    named = [
        (function, f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')
        for name, function in functions.items()
    ]
    return [
        np.ndarray,
        np.dtype,
        bytes,  # of an empty array
        *{type(np.dtype(c)) for c in _DTYPES},
        *named,
    ]


def _mmengine_types() -> list[type | tuple[Callable, str]]:
    """List what the message hub and the schedulers need to be read."""
    from mmengine.logging import HistoryBuffer

    return [HistoryBuffer, (_OneCycle, _ONE_CYCLE), (_method, _GETATTR)]


class _OneCycle:
    """Stands for `OneCycleParamScheduler` while a checkpoint is read.

    A file only refers to the class to name the function it anneals with, so
    nothing else of it is offered, and mmengine's optimisers are not imported
    before they are needed.
    """

    def __new__(cls, *args: Any) -> NoReturn:
        raise UnpicklingError('a checkpoint may not make a scheduler')


def _method(owner: Any, name: str) -> Callable:
    """Look up a method for a checkpoint, in place of `getattr`.

    A method is pickled as a call of `getattr`, and the real one would reach
    everything that any of the allowed types refers to.

    Args:
        owner: The class, as the file's names were resolved.
        name: The method: a statistic of `HistoryBuffer`, or a curve of
            `OneCycleParamScheduler`.

    Raises:
        UnpicklingError: Anything else is asked for.
    """
    from mmengine.logging import HistoryBuffer

    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(owner, name)
    if owner is _OneCycle and name in ('_annealing_cos', '_annealing_linear'):
        from mmengine.optim import OneCycleParamScheduler

        return getattr(OneCycleParamScheduler, name)
    raise UnpicklingError(f'a checkpoint may not use {name!r} of {owner}')
