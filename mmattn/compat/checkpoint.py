# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Checkpoints are read as weights, wherever mmengine reads one.

A checkpoint is a pickle, and a pickle can run any code when it is loaded.
mmengine leaves that to `torch.load`, which runs it on a torch older than 2.6;
`torch.hub`, which mmengine loads addresses with, runs it on any torch, and so
do the forks of mmengine, after a warning. The loaders of this module stand in
their place, in mmengine's own table of loaders. They read what
`torch.load(weights_only=True)` reads and the few types that a checkpoint of
mmengine's Runner holds besides: the logged scalars as `HistoryBuffer` objects,
which hold numpy arrays and references to their own methods, and numbers of
numpy, such as the best score. None of those runs code that a file chooses.
"""

import hashlib
import importlib
import io
import os
import pickle
import re
import sys
import tarfile
import tempfile
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from types import FunctionType, SimpleNamespace
from typing import Any, NoReturn
from urllib.parse import urlparse

from mmattn.errors import ConfigError

#: Element types that arrays and numbers may have: booleans, integers, floats
#: and strings. Not objects, which could be anything.
_DTYPES = '?bBhHiIlLqQefdU'

#: Names in a checkpoint that stand for something else than usual.
_GETATTR = 'builtins.getattr'
_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'

#: Eight or more digits of the file's SHA-256, at the end of its name.
_DIGITS = re.compile(r'-([0-9a-f]{8,64})\.[A-Za-z.]+$')
_FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'

_state = SimpleNamespace(trusted=False)


def allow_checkpoint_types() -> None:
    """Register the types in mmengine's checkpoints, and the loaders.

    From then on everything that reads a checkpoint by mmengine, such as
    `Runner`, `init_cfg` and the frameworks' model APIs, reads it by
    :func:`load`; `torch.load` itself can read the checkpoints of mmengine
    where torch is 2.6 or newer.

    Raises:
        ImportError: torch, numpy or mmengine is not installed.
        OSError: torch is installed but misses a library.
    """
    from mmengine.runner import CheckpointLoader
    from torch import serialization

    for prefixes, loader in _LOADERS.items():
        CheckpointLoader.register_scheme(prefixes, loader, force=True)
    if _torch_is_safe():
        serialization.add_safe_globals(_numpy_types() + _mmengine_types())


def trust_checkpoints() -> None:
    """Load everything from now on, whatever code it runs.

    For the whole process, and whatever the environment says. SHA-256 digits
    are not compared either.
    """
    os.environ.pop(_FORCE, None)
    _state.trusted = True


def trusts_checkpoints() -> bool:
    """Tell whether :func:`trust_checkpoints` was called."""
    return _state.trusted


def load(
    file: str | io.BytesIO, map_location: Any = None, name: str | None = None
) -> Any:
    """Load a checkpoint that holds weights, numbers and texts only.

    Args:
        file: Path of the file, or its content.
        map_location: Where to put the tensors, as for `torch.load`.
        name: What messages call the file. Default: its path.

    Raises:
        ConfigError: If there is anything else in it, says what; or if it
            cannot be read, like a part of a file.
    """
    name = name or str(file)
    try:
        return _load(file, map_location)
    except Exception as error:  # what is no checkpoint fails in any way
        refused = _refused(error)
        if refused and not _state.trusted:
            raise ConfigError(
                f'{name} is not loaded: it holds more than weights, '
                f'{refused}, and loading that can run any code; '
                '--trust-checkpoint loads it, if you trust who made it'
            ) from error
        where = '' if name == str(file) else f', cached as {file},'
        raise ConfigError(
            f'the checkpoint {name}{where} cannot be read; is it one, and '
            f'complete? {_reason(error)}'
        ) from error


def _load(file: str | io.BytesIO, map_location: Any) -> Any:
    import torch

    if _state.trusted or _torch_is_safe():
        return torch.load(
            file, map_location=map_location, weights_only=not _state.trusted
        )
    # What an older torch would not hand to the pickle module given.
    if _is_script(file) or isinstance(file, str) and tarfile.is_tarfile(file):
        raise UnpicklingError('a TorchScript or tar archive')
    forced = os.environ.pop(_FORCE, None)  # contradicts a pickle module
    try:
        return torch.load(
            file,
            map_location=map_location,
            pickle_module=SimpleNamespace(
                __name__='weights', Unpickler=_Unpickler, load=_unpickle
            ),
        )
    finally:
        if forced is not None:
            os.environ[_FORCE] = forced


def _torch_is_safe() -> bool:
    """Tell whether torch reads mmengine's checkpoints with weights only.

    This function came with 2.6, as did the pairs of object and name.
    """
    from torch import serialization

    return hasattr(serialization, 'get_unsafe_globals_in_checkpoint')


def _is_script(file: str | io.BytesIO) -> bool:
    """Tell whether `torch.load` would run a file as TorchScript."""
    import torch

    try:
        archive = torch._C.PyTorchFileReader(file)
    except RuntimeError:  # of the format before torch 1.6
        return False
    finally:
        if not isinstance(file, str):
            file.seek(0)
    return 'constants.pkl' in archive.get_all_records()


def _refused(error: Exception) -> str | None:
    """Say what in a file was refused, if anything was."""
    if not isinstance(error, UnpicklingError):
        return None
    named = re.search(r'GLOBAL (\S+)', str(error))
    if named:
        return named[1]
    # All else is said of what is no pickle, or the beginning of one.
    if re.search('may not|Can only|Trying to|archive', str(error)):
        return f'what it may not ({_reason(error)})'
    return None


def _reason(error: Exception) -> str:
    """Say in a line what an error is, without torch's advice around it."""
    text = str(error)
    text = text.partition('WeightsUnpickler error:')[2] or text
    line = text.strip().partition('\n')[0]
    return line if line[:1].isalpha() else f'{type(error).__name__} {line}'


# Loaders, by what a name begins with: those of mmengine, up to where they
# would call torch.load. mmengine prints their names from the eleventh letter.


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Load a file of this machine."""
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f'no checkpoint {filename}')
    return load(filename, map_location)


def load_from_http(filename: str, map_location: Any = None) -> Any:
    """Load what is at an address, from the cache if it is there."""
    from mmengine.dist import barrier, get_rank

    # One process fetches it, the others find it in the cache; or meet the
    # same error, for which they do not wait in vain.
    path = None
    try:
        if get_rank() == 0:
            path = _fetch(filename)
    finally:
        barrier()
    return load(path or _fetch(filename), map_location, filename)


def load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """Load weights of torchvision by the name of the model."""
    from mmengine.runner.checkpoint import get_torchvision_models

    url = _look_up(filename, get_torchvision_models())
    return load_from_http(url, map_location)


def load_from_openmmlab(filename: str, map_location: Any = None) -> Any:
    """Load weights by their name in OpenMMLab's list."""
    from mmengine.runner import checkpoint

    old = checkpoint.get_deprecated_model_names()
    prefix, _, model = filename.partition('://')
    filename = f'{prefix}://{old.get(model, model)}'
    url = _look_up(filename, checkpoint.get_external_models())
    if '://' in url:
        return load_from_http(url, map_location)
    home = checkpoint._get_mmengine_home()
    return load_from_local(os.path.join(home, url), map_location)


def load_from_mmcls(filename: str, map_location: Any = None) -> Any:
    """Load the backbone of a classifier by its name in OpenMMLab's list."""
    from mmengine.runner import checkpoint

    url = _look_up(filename, checkpoint.get_mmcls_models())
    loaded = load_from_http(url, map_location)
    return checkpoint._process_mmcls_checkpoint(loaded)


def load_from_ceph(filename: str, map_location: Any = None) -> Any:
    """Load an object of a store that mmengine's petrel backend reads."""
    from mmengine.fileio import get_file_backend

    backend = get_file_backend(filename, backend_args={'backend': 'petrel'})
    return load(io.BytesIO(backend.get(filename)), map_location, filename)


def load_from_pavi(filename: str, map_location: Any = None) -> Any:
    """Load a model of the service that the package pavi reads."""
    modelcloud = importlib.import_module('pavi.modelcloud')
    model = modelcloud.get(filename.partition('://')[2])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, model.name)
        model.download(path)
        return load(path, map_location, filename)


_LOADERS = {
    '': load_from_local,
    ('http://', 'https://'): load_from_http,
    ('modelzoo://', 'torchvision://'): load_from_torchvision,
    ('open-mmlab://', 'openmmlab://'): load_from_openmmlab,
    'mmcls://': load_from_mmcls,
    (r'(\S+\:)?s3://', r'(\S+\:)?petrel://'): load_from_ceph,
    'pavi://': load_from_pavi,
}


def _look_up(name: str, urls: dict[str, str]) -> str:
    """Find the address of a model named like `torchvision://resnet50`."""
    scheme, _, model = name.partition('://')
    if model not in urls:
        raise ConfigError(f'no weights {name}: {scheme} has no {model!r}')
    return urls[model]


def _fetch(url: str) -> str:
    """Return the path of an address's file in the cache of `torch.hub`.

    Raises:
        ConfigError: If it cannot be had, or is another file than its name
            says, which is then removed.
    """
    from torch import hub

    folder = Path(hub.get_dir(), 'checkpoints')
    path = folder / Path(urlparse(url).path).name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            hub.download_url_to_file(
                url, str(path), progress=sys.stderr.isatty()
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f'{url} cannot be had: {error}') from error
    digits = _digits_in(path.name)
    if digits and not _state.trusted:
        found = _sha256(path)
        if not found.startswith(digits):
            path.unlink(missing_ok=True)
            raise ConfigError(
                f'{url} is not the file that its name says: its SHA-256 '
                f'begins with {found[: len(digits)]}, not with {digits}; '
                f'removed from the cache {folder}'
            )
    return str(path)


def _digits_in(name: str) -> str | None:
    """Return the digits of the SHA-256 in a file's name, if it has them.

    `resnet50-0676ba61.pth` has them, `best-20210101.pth` has a date.
    """
    match = _DIGITS.search(name)
    if match is None:
        return None
    try:
        date = datetime.strptime(match[1], '%Y%m%d')
    except ValueError:
        return match[1]
    return None if 2000 <= date.year < 2100 else match[1]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# The types beside tensors.


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


# For torch 2.1 to 2.5, whose own unpickler of weights takes no types besides.


class _Unpickler(pickle._Unpickler):
    """Resolves only the names that it knows.

    The one in Python, as torch's own for weights is: it lets the state of an
    object be set, but not that of a class or a function.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name in a checkpoint stands for."""
        # Files of protocol 2 have the names of Python 2.
        module = {'__builtin__': 'builtins'}.get(module, module)
        try:
            return _known_names()[f'{module}.{name}']
        except KeyError:
            raise UnpicklingError(f'GLOBAL {module}.{name}') from None

    def load_build(self) -> None:
        """Set the state of an object."""
        if isinstance(self.stack[-2], (type, FunctionType)):
            raise UnpicklingError('a checkpoint may not change a class')
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _unpickle(file: Any, **kwargs: Any) -> Any:
    return _Unpickler(file, **kwargs).load()


@lru_cache
def _known_names() -> dict[str, Any]:
    """List what may be in a checkpoint, by name."""
    import _codecs
    from collections import Counter

    import torch
    from torch._weights_only_unpickler import _get_allowed_globals

    names = {
        str(dtype): dtype
        for dtype in vars(torch).values()
        if isinstance(dtype, torch.dtype)
    }
    names.update(_get_allowed_globals())
    for kind in (
        *(Counter, set, bytearray, complex, torch.device, _codecs.encode),
        *_numpy_types(),
        *_mmengine_types(),
    ):
        if isinstance(kind, tuple):
            kind, name = kind
        else:
            name = f'{kind.__module__}.{kind.__qualname__}'
        names[name] = kind
    names['numpy.dtype'] = _dtype
    return names


def _dtype(code: str, *flags: bool) -> Any:
    """Make an element type of numpy, in place of `numpy.dtype`.

    Raises:
        UnpicklingError: For a type of objects or records.
    """
    import numpy as np

    dtype = np.dtype(code, *flags)
    if dtype.char not in _DTYPES:
        raise UnpicklingError(f'GLOBAL numpy.dtype({code!r})')
    return dtype
