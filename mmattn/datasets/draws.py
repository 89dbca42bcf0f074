# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Data that can be drawn again: by any process, from any point of a run.

Every sample that training draws has a number, counted over all processes.
The randomness of its augmentation comes from the seed of the run, the epoch
and that number alone, so neither the number of processes and workers nor an
interruption changes what a model is trained on.
"""

import random
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from mmengine.dist import get_dist_info
from torch.utils.data import BatchSampler, Sampler

from mmattn.registry import DATA_SAMPLERS


def seed_all(*key: int) -> None:
    """Seed Python, numpy and torch, on every device, with a tuple.

    Args:
        key: Whole numbers from 0. Tuples that differ anywhere give streams
            without visible relation.
    """
    # With the length, as numpy fills a short key up with zeros.
    words = np.random.SeedSequence((len(key), *key)).generate_state(2)
    random.seed(int(words[0]))
    np.random.seed(words[0])
    seed = int(words[0]) << 32 | int(words[1])
    # torch.manual_seed notes the stack for a later start of CUDA: 100 us.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


class Draw(int):
    """Index of a sample in its data set, with the key of its randomness.

    Args:
        index: The index.
        key: For :func:`seed_all`.
    """

    key: tuple[int, ...]

    def __new__(cls, index: int, key: tuple[int, ...]) -> 'Draw':  # noqa: D102
        draw = super().__new__(cls, index)
        draw.key = key
        return draw

    def __reduce__(self) -> tuple:
        return Draw, (int(self), self.key)


class NumberedSampler(Sampler):
    """Makes the indices of a sampler :class:`Draw` objects.

    The sampler must deal its indices out to the processes in turn, as those
    of mmengine do.

    Args:
        sampler: Sampler of one process.
        seed: Seed of the run.
    """

    def __init__(self, sampler: Sampler, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed

    @property
    def dataset(self):
        """The data set, which batch samplers look into."""
        return self.sampler.dataset

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which the order of the samples depends on."""
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator:
        rank, processes = get_dist_info()
        epoch = getattr(self.sampler, 'epoch', 0)
        for count, index in enumerate(self.sampler):
            if not isinstance(index, int):  # of a video, say
                yield index
                continue
            number = count * processes + rank
            yield Draw(index, (self.seed, epoch, number))


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler:
    """Batches of numbered samples that can begin in the midst of an epoch.

    Args:
        sampler: Sampler of one process.
        batch_size: Samples of a batch.
        seed: Seed of the run.
        batch_sampler: Config of the batch sampler to use in place of torch's.
        drop_last: Leave out a last batch that is not full; of torch's.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        seed: int,
        batch_sampler: dict | None = None,
        drop_last: bool = False,
    ) -> None:
        self.sampler = NumberedSampler(sampler, seed)
        self.start = 0
        if batch_sampler is None:
            self.batches = BatchSampler(self.sampler, batch_size, drop_last)
        else:
            self.batches = DATA_SAMPLERS.build(
                batch_sampler,
                default_args=dict(sampler=self.sampler, batch_size=batch_size),
            )

    @property
    def batch_size(self) -> int:
        """Samples of a batch."""
        return self.batches.batch_size

    def begin(self, epoch: int, start: int, seed: int) -> None:
        """Say where the next iteration over the batches begins.

        Args:
            epoch: Number of the epoch, from 0.
            start: Number of batches that have been used in it.
            seed: Seed of the run; a resumed one brings its own.
        """
        if seed != self.sampler.seed:
            self.sampler.seed = self.sampler.sampler.seed = seed
        self.sampler.set_epoch(epoch)
        self.start = start

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list]:
        # When the first one is asked for: data loaders make spare iterators.
        start, self.start = self.start, 0
        yield from islice(iter(self.batches), start, None)
