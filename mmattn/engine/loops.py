# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""mmengine's loops, made to go on where they were interrupted.

A resumed run draws the same samples, augments them in the same way and gives
the model the same random numbers as an undisturbed one, so on a CPU it ends
with the same weights, bit by bit. It skips what was used before without
loading it.
"""

from collections.abc import Iterator

import mmengine.runner as mm
from mmengine.config import ConfigDict
from mmengine.dist import get_rank
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader

from mmattn.datasets import GuardedDataset, ResumableBatchSampler, seed_all
from mmattn.registry import LOOPS


def guarded(dataloader: dict | DataLoader, max_skipped: int = 0):
    """Wrap the data set of a data loader's config in a `GuardedDataset`.

    A data loader or a data set that is made already stays as it is.
    """
    if not isinstance(dataloader, dict):
        return dataloader
    dataset = dataloader['dataset']
    if not isinstance(dataset, dict):
        return dataloader
    wrapped = dict(
        type=GuardedDataset, dataset=dataset, max_skipped=max_skipped
    )
    return ConfigDict({**dataloader, 'dataset': wrapped})


def resumable(dataloader: dict | DataLoader, seed: int, max_skipped: int):
    """Guard a data loader's config and number its samples.

    Args:
        dataloader: The config; a data loader that is made already stays as
            it is, and a resumed run then begins its epoch anew.
        seed: Seed of the run.
        max_skipped: Damaged files that training bears.
    """
    if not isinstance(dataloader, dict):
        return dataloader
    dataloader = guarded(dataloader, max_skipped)
    batch_sampler = dict(
        type=ResumableBatchSampler,
        seed=seed,
        batch_sampler=dataloader.get('batch_sampler'),
        drop_last=dataloader.pop('drop_last', False),
    )
    return ConfigDict({**dataloader, 'batch_sampler': batch_sampler})


class _Resumable:
    """What both training loops share."""

    def _begin(self, epoch: int, start: int) -> None:
        """Set the data loader to a batch of an epoch."""
        sampler = getattr(self.dataloader, 'batch_sampler', None)
        if isinstance(sampler, ResumableBatchSampler):
            sampler.begin(epoch, start, self.runner.seed)

    def _seed_model(self) -> None:
        """Give the iteration random numbers of its own."""
        seed_all(self.runner.seed, get_rank(), self.iter)

    def _validate(self, due: bool) -> None:
        """Validate, and note it: checkpoints are saved before."""
        if due and self.runner.val_loop is not None:
            self.runner.val_loop.run()
            self.runner.message_hub.update_info('last_validation', self.iter)

    @property
    def _is_validated(self) -> bool:
        info = self.runner.message_hub.runtime_info
        return info.get('last_validation') == self.iter


@LOOPS.register_module()
class EpochBasedTrainLoop(_Resumable, mm.EpochBasedTrainLoop):
    """Trains for a number of epochs, and resumes in the midst of one.

    Args:
        runner: The runner.
        dataloader: The data loader or, to be resumable, its config.
        max_epochs: Number of epochs.
        max_skipped: Damaged images to skip before the run stops.
        kwargs: `val_begin`, `val_interval` and `dynamic_intervals` of
            mmengine's loop.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: dict | DataLoader,
        max_epochs: int,
        max_skipped: int = 10,
        **kwargs,
    ) -> None:
        dataloader = resumable(dataloader, runner.seed, max_skipped)
        super().__init__(runner, dataloader, max_epochs, **kwargs)

    def run(self) -> None:
        """Train; an evaluation that an interruption prevented comes first."""
        self.runner.call_hook('before_train')
        if self._epoch and self._begun.get('epoch') != self._epoch:
            self._decide_current_val_interval()
            self._validate(self._is_due() and not self._is_validated)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            self._validate(self._is_due())
        self.runner.call_hook('after_train')
        return self.runner.model

    def _is_due(self) -> bool:
        return self._epoch >= self.val_begin and (
            self._epoch % self.val_interval == 0
            or self._epoch == self._max_epochs
        )

    @property
    def _begun(self) -> dict[str, int]:
        """The epoch that was begun last, its first iteration and length."""
        return self.runner.message_hub.runtime_info.get('begun_epoch', {})

    def _find_start(self) -> int:
        """Return how many batches of the epoch have been used."""
        begun, length = self._begun, len(self.dataloader)
        if begun.get('epoch') != self._epoch:
            begun = dict(epoch=self._epoch, iter=self._iter, length=length)
            self.runner.message_hub.update_info('begun_epoch', begun)
        # The same share of it, should the number of processes have changed.
        return (self._iter - begun['iter']) * length // begun['length']

    def run_epoch(self) -> None:
        """Train on what is left of the epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        start = self._find_start()
        self._begin(self._epoch, start)
        for index, batch in enumerate(self.dataloader, start):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Train on one batch."""
        self._seed_model()
        super().run_iter(idx, data_batch)


@LOOPS.register_module()
class IterBasedTrainLoop(_Resumable, mm.IterBasedTrainLoop):
    """Trains for a number of iterations, and resumes at any.

    Args:
        runner: The runner.
        dataloader: The data loader or, to be resumable, its config.
        max_iters: Number of iterations.
        val_begin: The first iteration to validate after.
        val_interval: Iterations from one validation to the next.
        dynamic_intervals: Pairs of an iteration and the interval from there.
        max_skipped: Damaged images to skip before the run stops.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: dict | DataLoader,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
        max_skipped: int = 10,
    ) -> None:
        # Not mmengine's own, which begins to load before a run is resumed.
        dataloader = resumable(dataloader, runner.seed, max_skipped)
        BaseLoop.__init__(self, runner, dataloader)
        self._max_iters = max_iters
        self._max_epochs = 1
        self._epoch = self._iter = 0
        self.val_begin = val_begin
        self.val_interval = val_interval
        self.stop_training = False
        meta = getattr(self.dataloader.dataset, 'metainfo', None)
        runner.visualizer.dataset_meta = meta
        self.dynamic_milestones, self.dynamic_intervals = (
            mm.utils.calc_dynamic_intervals(val_interval, dynamic_intervals)
        )

    def run(self) -> None:
        """Train; an evaluation that an interruption prevented comes first."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        batches = self._batches()
        self._decide_current_val_interval()
        self._validate(self._is_due() and not self._is_validated)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._decide_current_val_interval()
            self._validate(self._is_due())
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _is_due(self) -> bool:
        return self._iter >= max(self.val_begin, 1) and (
            self._iter % self.val_interval == 0
            or self._iter == self._max_iters
        )

    def _batches(self) -> Iterator[dict]:
        """Yield batches, over and over, from where the run stands."""
        epoch, start = 0, self._iter
        while True:
            self._begin(epoch, start)
            yield from self.dataloader  # one of an infinite sampler: for ever
            epoch, start = epoch + 1, max(0, start - len(self.dataloader))

    def run_iter(self, data_batch: dict) -> None:
        """Train on one batch."""
        self._seed_model()
        super().run_iter(data_batch)


@LOOPS.register_module()
class ValLoop(mm.ValLoop):
    """Validates, and names the file that cannot be read."""

    def __init__(self, runner: Runner, dataloader, *args, **kwargs) -> None:
        super().__init__(runner, guarded(dataloader), *args, **kwargs)


@LOOPS.register_module()
class TestLoop(mm.TestLoop):
    """Tests, and names the file that cannot be read."""

    def __init__(self, runner: Runner, dataloader, *args, **kwargs) -> None:
        super().__init__(runner, guarded(dataloader), *args, **kwargs)
