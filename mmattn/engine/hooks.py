# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Hooks that keep the work of a run safe."""

import json
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as MMCheckpointHook
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import distributed

from mmattn.errors import DataError
from mmattn.registry import HOOKS

from .checkpoints import PREEMPTED, AtomicBackend

#: sysexits.h calls it a temporary failure: try again later.
TRY_AGAIN = 75


#: Room for the losses of a model.
MAX_SCALARS = 64


class Preempted(SystemExit):
    """A run was told to leave and has saved its state.

    The exit code is 75 in the main process and 0 in the others, which leave
    first: a launcher would kill them for an exit code, and report that.
    """

    def __init__(self) -> None:
        super().__init__(TRY_AGAIN if is_main_process() else 0)


class Agreement:
    """Lets all processes of a run know what one of them knows.

    The processes talk by gloo, whatever their gradients go by: what they say
    is no work for a GPU.
    """

    def __init__(self) -> None:
        self.group = None
        if distributed.is_initialized():
            # As long as the slowest process may take for an iteration.
            self.group = distributed.new_group(
                backend='gloo', timeout=timedelta(hours=1)
            )

    def any(self, flag: bool) -> bool:
        """Return whether the flag of any process is set; all must call it."""
        if self.group is None:
            return flag
        value = torch.tensor([flag], dtype=torch.uint8)
        distributed.all_reduce(
            value, distributed.ReduceOp.MAX, group=self.group
        )
        return bool(value.item())

    def mean(self, scalars: dict[str, float]) -> dict[str, float]:
        """Return the means over all processes; all must call it.

        Processes whose names or numbers of scalars differ get their own back.
        """
        if self.group is None:
            return scalars
        processes = distributed.get_world_size(self.group)
        names = sum(map(ord, ' '.join(scalars)))
        values = torch.full([MAX_SCALARS + 1], torch.nan, dtype=torch.float64)
        if len(scalars) <= MAX_SCALARS:
            row = torch.tensor([names, *scalars.values()])
            values[: len(row)] = row
        distributed.all_reduce(values, group=self.group)
        if values[0] != names * processes:
            return scalars
        return dict(zip(scalars, (values[1:] / processes).tolist()))


@HOOKS.register_module()
class CheckpointHook(MMCheckpointHook):
    """mmengine's hook, which never leaves a run without a whole checkpoint.

    A file gets its name when it is on the disk, and the one that it supersedes
    is removed after that, not before.

    Args:
        args: All of mmengine's hook.
        backend_args: Of mmengine's hook; files of a storage of your own are
            left to it.
        kwargs: Of mmengine's hook.
    """

    def __init__(
        self, *args, backend_args: dict | None = None, **kwargs
    ) -> None:
        if kwargs.get('file_client_args') is None:
            backend_args = backend_args or dict(backend='mmattn_atomic')
        super().__init__(*args, backend_args=backend_args, **kwargs)

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict
    ) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        runner.message_hub.update_info('saved_iter', meta['iter'])
        self._clear()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self._clear()

    def _clear(self) -> None:
        if isinstance(self.file_backend, AtomicBackend):
            self.file_backend.clear()


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Saves and leaves when the run is told to, by SIGTERM or SIGUSR1.

    The iteration is finished, `preempted.pth` is saved in the run's folder,
    and all processes leave, the main one with exit code 75. In the midst of
    an accumulation of gradients it goes on to its end, as gradients are not
    saved. In a validation one process leaves at once if the state before it
    is saved, and validates anew when it is resumed; else it is finished first.
    """

    priority = 'LOWEST'  # after all that changes the state
    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict = {}

    def _receive(self, number: int, frame: object) -> None:
        self.received = signal.Signals(number)

    def before_train(self, runner: Runner) -> None:
        """Begin to listen."""
        self._agreement = Agreement()
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)

    def after_train(self, runner: Runner) -> None:
        """Listen no more, and remove what a finished run needs not."""
        while self._previous:
            signal.signal(*self._previous.popitem())
        if is_main_process():
            Path(runner.work_dir, PREEMPTED).unlink(missing_ok=True)

    def after_train_iter(self, runner: Runner, batch_idx: int, **_) -> None:
        """Leave if any process was told to."""
        stop = self._agreement.any(self.received is not None)
        wrapper = runner.optim_wrapper
        if stop and (
            not isinstance(wrapper, OptimWrapper) or wrapper.should_update()
        ):
            self._save(runner, runner.iter + 1)
            self._leave(runner)

    def after_val_iter(self, runner: Runner, batch_idx: int, **_) -> None:
        """Leave if nothing is lost, and nobody waits for the results.

        The state cannot be saved here: an average of the weights may stand in
        their place.
        """
        info = runner.message_hub.runtime_info
        if (
            self.received is not None
            and self._previous
            and self._agreement.group is None
            and info.get('saved_iter') == runner.iter
        ):
            self._leave(runner)

    def after_val(self, runner: Runner) -> None:
        """Leave after a validation of the training."""
        if self._previous and self._agreement.any(self.received is not None):
            runner.message_hub.update_info('last_validation', runner.iter)
            self._save(runner, runner.iter)
            self._leave(runner)

    def _leave(self, runner: Runner) -> None:
        runner.logger.info(
            f'{runner.work_dir}: to go on, run the same command with --resume '
            f'(exit code {TRY_AGAIN})'
        )
        runner.call_hook('after_run')  # closes the logs
        preempted = Preempted()
        if self._agreement.group is not None:
            distributed.barrier(self._agreement.group)
            distributed.destroy_process_group()
            time.sleep(2 if preempted.code else 0)
        raise preempted

    def _save(self, runner: Runner, iteration: int) -> None:
        name = self.received.name if self.received else 'another process'
        runner.logger.info(f'{name}: saving {PREEMPTED} at {iteration}')
        runner.save_checkpoint(
            runner.work_dir,
            PREEMPTED,
            meta=dict(epoch=runner.epoch, iter=iteration),
            by_epoch=False,
            backend_args=dict(backend='mmattn_atomic'),
        )


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Skips batches whose loss is not finite, and stops after some in a row.

    Such a batch changes no weight: in all processes the step is left out if
    the loss of one is NaN or infinite. The images of each are noted in
    `invalid_loss.jsonl` in the run's folder, a line a batch and process, and
    the state of a run that stops is saved as `invalid_loss.pth`: resumed from
    that, it meets the last one again.

    Args:
        patience: Batches in a row that stop the run.
    """

    priority = 'HIGHEST'  # before the losses of the processes are averaged

    def __init__(self, patience: int = 5) -> None:
        self.patience = patience
        self.count = 0
        self._skipped = False
        self._batch: dict = {}

    def before_train(self, runner: Runner) -> None:
        """Stand between the loss and the optimiser."""
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper):
            return  # of several optimisers: the model decides how to step
        agreement = Agreement()
        update = wrapper.update_params

        def update_if_finite(loss: torch.Tensor, *args, **kwargs) -> None:
            finite = bool(torch.isfinite(loss.detach()).all())
            self._skipped = agreement.any(not finite)
            if self._skipped:
                self._skip(runner)
            else:
                update(loss, *args, **kwargs)

        wrapper.update_params = update_if_finite

    def before_train_iter(self, runner: Runner, batch_idx: int, **_) -> None:
        """Keep the statistics of norms, which the forward pass changes."""
        self._buffers = [b.clone() for b in runner.model.buffers()]

    def _skip(self, runner: Runner) -> None:
        for buffer, before in zip(runner.model.buffers(), self._buffers):
            buffer.copy_(before)
        wrapper = runner.optim_wrapper
        wrapper._inner_count += 1  # as the backward pass does
        if wrapper._accumulative_counts == 1 or not wrapper.should_update():
            return
        groups = wrapper.param_groups
        if any(p.grad is not None for g in groups for p in g['params']):
            wrapper.step()
            wrapper.zero_grad()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: dict,
    ) -> None:
        """Count, note the images, and stop if there were too many.

        Raises:
            DataError: The loss was not finite `patience` times in a row.
        """
        if not self._skipped:
            self.count = 0
            return
        self._skipped = False
        self.count += 1
        path = Path(runner.work_dir, 'invalid_loss.jsonl')
        images = _image_paths(data_batch)
        losses = _as_numbers(outputs)
        with open(path, 'a') as file:
            row = dict(iter=runner.iter + 1, losses=losses, images=images)
            file.write(json.dumps(row) + '\n')
        runner.logger.warning(
            f'iteration {runner.iter + 1}: the loss is {losses["loss"]}, '
            f'no weight was changed; images: {", ".join(images)}'
        )
        if self.count >= self.patience:
            runner.save_checkpoint(
                runner.work_dir,
                'invalid_loss.pth',
                meta=dict(epoch=runner.epoch, iter=runner.iter),
                by_epoch=False,
                backend_args=dict(backend='mmattn_atomic'),
            )
            raise DataError(
                f'the loss was not finite for {self.count} batches in a row; '
                f'their images are in {path}'
            )


@HOOKS.register_module()
class MeanLossHook(Hook):
    """Logs the mean loss of all processes, not that of the main one.

    With equal batches that is the loss of one process with all of them.
    """

    priority = 'HIGHEST'  # before the hook that logs

    def before_train(self, runner: Runner) -> None:
        """Meet the other processes."""
        self._agreement = Agreement()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: dict
    ) -> None:
        """Replace the losses by their means."""
        if self._agreement.group is not None:
            outputs.update(self._agreement.mean(_as_numbers(outputs)))


def _as_numbers(outputs: dict) -> dict[str, float]:
    return {k: torch.as_tensor(v).item() for k, v in outputs.items()}


def _image_paths(batch: dict) -> list[str]:
    return [s.get('img_path', '?') for s in batch['data_samples']]
