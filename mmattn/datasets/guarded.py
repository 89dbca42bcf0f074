# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""A data set that survives damaged files, and says which they are."""

import atexit
import logging
import multiprocessing
import os
import signal
import weakref

import torch
from mmengine.dataset import Compose
from mmengine.logging import print_log
from torch.utils.data import Dataset, get_worker_info

from mmattn.errors import DataError
from mmattn.registry import DATASETS

from .draws import seed_all

#: Seconds that a worker outlives a SIGTERM, for its process to finish.
GRACE = 120
#: Workers of a data loader whose process ends are killed, up to so many.
MAX_WORKERS = 256


@DATASETS.register_module()
class GuardedDataset(Dataset):
    """Wraps a data set so that a damaged sample is reported, not fatal.

    A sample that cannot be read, or has a box that is not finite, is skipped:
    another one takes its place, chosen by the randomness of the draw, and one
    warning names the file. When more than `max_skipped` files were skipped,
    in all workers of a process together, the run stops.

    A sample asked for by a `Draw` is augmented with randomness of its own.
    Everything else is asked of the wrapped data set.

    Args:
        dataset: Config of the data set, or the data set.
        max_skipped: Damaged files that the run bears; none in an evaluation,
            whose score would be that of other data.

    Raises:
        DataError: A sample cannot be read, and cannot be skipped.
    """

    def __init__(self, dataset: dict | Dataset, max_skipped: int = 10) -> None:
        if isinstance(dataset, dict):
            dataset = DATASETS.build(dataset)
        self.dataset = dataset
        self.max_skipped = max_skipped
        # One flag an image, which all workers see.
        self.bad = torch.zeros(len(dataset), dtype=torch.bool)
        self.bad.share_memory_()
        self.workers = torch.zeros(MAX_WORKERS, dtype=torch.int64)
        self.workers.share_memory_()
        self._in_worker = False
        _guarded.add(self)

    def __getattr__(self, name: str):
        # While it is unpickled there is none yet.
        if name.startswith('__') or 'dataset' not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @property
    def pipeline(self) -> Compose:
        """The transforms, which hooks exchange."""
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Compose) -> None:
        self.dataset.pipeline = pipeline

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        worker = get_worker_info()
        if not self._in_worker and worker is not None:
            self._in_worker = True
            self.workers[worker.id % MAX_WORKERS] = os.getpid()
            outlive_signals()
        key = getattr(index, 'key', None)
        for attempt in range(len(self)):
            if key is not None:
                seed_all(*key, attempt)
            # Before a damaged file may have used the generator, or not.
            substitute = int(torch.randint(len(self), ()))
            if not self.bad[int(index)]:
                try:
                    sample = self.dataset[int(index)]
                    check_boxes(sample)
                    return sample
                except MemoryError:
                    raise
                # Decoders raise whatever they like on a damaged file.
                except Exception as error:
                    self._report(int(index), error)
            index = substitute
        raise DataError('no image of the data set can be read')

    def _report(self, index: int, error: Exception) -> None:
        """Note a damaged sample, and stop if it is one too many."""
        reason = str(error).strip().splitlines() or ['']
        text = f'{self.name_of(index)}: {type(error).__name__}: {reason[-1]}'
        known = {
            self.name_of(i) for i in self.bad.nonzero().flatten().tolist()
        }
        self.bad[index] = True
        count = len(known | {self.name_of(index)})
        if count > self.max_skipped:
            raise DataError(
                f'{text} (damaged images: {count}, allowed: max_skipped='
                f'{self.max_skipped})'
            ) from error
        if count == len(known):  # a data set may repeat an image
            return
        print_log(
            f'skipped {count} of at most {self.max_skipped}: {text}',
            logger='current',
            level=logging.WARNING,
        )

    def name_of(self, index: int) -> str:
        """Return the path of an image, or its number if it has none."""
        try:
            return self.dataset.get_data_info(index)['img_path']
        except (AttributeError, KeyError, TypeError):
            return f'image {index}'


_guarded: weakref.WeakSet[GuardedDataset] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """Kill the workers that still run when their process ends.

    Python would terminate them, which they outlive, and wait.
    """
    pids = {pid for data in _guarded for pid in data.workers.tolist()}
    workers = [w for w in multiprocessing.active_children() if w.pid in pids]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise
    for worker in workers:
        worker.kill()


def check_boxes(sample: object) -> None:
    """Raise ValueError if a box of a packed sample is not finite."""
    packed = sample.get('data_samples') if isinstance(sample, dict) else None
    truth = getattr(packed, 'gt_instances', {})
    boxes = truth['bboxes'] if 'bboxes' in truth else torch.zeros(0, 4)
    boxes = torch.as_tensor(getattr(boxes, 'tensor', boxes))
    if not torch.isfinite(boxes).all():
        wrong = boxes[~torch.isfinite(boxes).all(-1)][0].tolist()
        raise ValueError(f'the box {wrong} is not finite')


def outlive_signals() -> None:
    """Let a worker go on until its process, signalled too, has finished.

    Schedulers signal every process of a job. A worker that ended at once
    would take its process with it before that has saved anything.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
