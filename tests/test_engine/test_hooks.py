# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The hooks in runs of a model of one weight."""

import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.utils.data import Dataset

from mmattn.compat.checkpoint import load
from mmattn.engine import launch
from mmattn.engine.checkpoints import newest_checkpoint
from mmattn.engine.hooks import MAX_SCALARS, Agreement
from mmattn.errors import DataError


class Numbers(Dataset):
    def __init__(self, bad=()):
        self.bad = bad

    def __len__(self):
        return 8

    def __getitem__(self, index):
        value = float('nan') if index in self.bad else float(index)
        sample = BaseDataElement(metainfo=dict(img_path=f'{index}.jpg'))
        return dict(inputs=torch.tensor([value]), data_samples=sample)


class Line(BaseModel):
    """A weight that falls by the mean of its inputs."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        # Its output is not used; it keeps statistics.
        self.norm = torch.nn.BatchNorm1d(1, affine=False)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = torch.stack(inputs) if isinstance(inputs, list) else inputs
        if len(x) > 1:
            self.norm(x)
        return dict(loss=(x * self.weight + x * 0).mean(), part=torch.ones(()))


class Do(Hook):
    """Calls a function after each iteration."""

    priority = 'NORMAL'

    def __init__(self, function):
        self.function = function

    def after_train_iter(self, runner, batch_idx, **_):
        self.function(runner)


@pytest.fixture
def make(tmp_path, request):
    """Make the runner of a line: 4 batches of 2 an epoch, in order."""
    count = iter(range(100))

    def make(data=None, do=None, loop=None, batch_size=2, **more):
        cfg = Config(
            dict(
                train_cfg=loop or dict(by_epoch=True, max_epochs=2),
                default_hooks=more.pop('default_hooks', {}),
            )
        )
        launch.keep_safe(cfg)
        return Runner(
            model=Line(),
            work_dir=str(tmp_path / 'run'),
            train_dataloader=dict(
                dataset=data or Numbers(),
                sampler=dict(type='DefaultSampler', shuffle=False),
                batch_size=batch_size,
                num_workers=0,
            ),
            train_cfg=cfg.train_cfg,
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=1.0), **more.pop('wrapper', {})
            ),
            default_hooks=cfg.default_hooks.to_dict(),
            custom_hooks=[Do(do)] if do else None,
            randomness=dict(seed=0),
            experiment_name=f'{request.node.name}{next(count)}',
            **more,
        )

    return make


def weight(runner):
    return runner.model.weight.item()


MEANS = [0.5, 2.5, 4.5, 6.5]  # of the batches of an epoch


def test_batches_without_a_finite_loss_change_nothing(make):
    seen = []
    runner = make(Numbers(bad=[3]), do=lambda r: seen.append(weight(r)))
    runner.train()
    steps = [0.5, 0, 4.5, 6.5] * 2
    assert seen == [-sum(steps[: i + 1]) for i in range(8)]
    expected = torch.nn.BatchNorm1d(1, affine=False)
    for batch in ([0, 1], [4, 5], [6, 7]) * 2:
        expected(torch.tensor(batch)[:, None].float())
    found = runner.model.norm.state_dict()
    assert found == expected.state_dict() and len(found) == 3
    rows = Path(runner.work_dir, 'invalid_loss.jsonl').read_text().splitlines()
    rows = [json.loads(row) for row in rows]
    assert [row['iter'] for row in rows] == [2, 6]
    assert all(row['images'] == ['2.jpg', '3.jpg'] for row in rows)
    assert all(row['losses']['part'] == 1 for row in rows)


@pytest.mark.parametrize('patience', [1, 2])
def test_too_many_in_a_row_stop(patience, make):
    runner = make(
        Numbers(bad=[2, 5]),
        default_hooks=dict(invalid_loss=dict(patience=patience)),
    )
    with pytest.raises(DataError, match=f'{patience} batches in a row.*jsonl'):
        runner.train()
    assert runner.iter == patience
    state = load(f'{runner.work_dir}/invalid_loss.pth')
    assert state['state_dict']['weight'].item() == -0.5
    assert state['meta']['iter'] == patience  # to meet the last one again


def test_a_skipped_batch_is_missing_from_its_accumulation(make):
    seen = []
    runner = make(
        Numbers(bad=[3, 6]),
        do=lambda r: seen.append(weight(r)),
        wrapper=dict(accumulative_counts=2),
    )
    runner.train()
    # Of batches 0.5, (2.5) and 4.5, (6.5): the halves of the first ones.
    assert seen[:4] == [0, -0.25, -0.25, -2.5]


def test_finite_losses_in_between_start_the_count_anew(make):
    runner = make(
        Numbers(bad=[2, 6]), default_hooks=dict(invalid_loss=dict(patience=2))
    )
    runner.train()
    assert weight(runner) == -2 * (0.5 + 4.5)


def leave_at(iteration, number):
    def do(runner):
        if runner.iter + 1 == iteration:
            os.kill(os.getpid(), number)

    return do


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize('iteration', [1, 4, 6, 8])
def test_a_signal_saves_and_leaves_with_75(make, iteration, number, capfd):
    runner = make(do=leave_at(iteration, number))
    with pytest.raises(SystemExit) as left:
        runner.train()
    assert left.value.code == 75
    path = newest_checkpoint(runner.work_dir)
    assert path.endswith('preempted.pth')
    meta = load(path)['meta']
    assert (meta['epoch'], meta['iter']) == ((iteration - 1) // 4, iteration)
    seen = []
    resumed = make(
        do=lambda r: seen.append(weight(r)), resume=True, load_from=path
    )
    resumed.train()
    expected = [-sum((MEANS * 2)[: i + 1]) for i in range(iteration, 8)]
    assert seen == expected
    assert not Path(path).exists()
    assert Path(runner.work_dir, 'epoch_2.pth').exists()


@pytest.mark.parametrize(
    ('leave', 'expected'),
    [
        # Of 4 batches of two: half of an epoch, the second one begun anew.
        (leave_at(2, signal.SIGTERM), [4, 5, 6, 7, *range(8)]),
        (None, [*range(8)]),
    ],
)
def test_another_size_of_batch_goes_on_at_the_same_share(
    make, leave, expected
):
    runner = make(
        do=leave, loop=dict(by_epoch=True, max_epochs=2 - (not leave))
    )
    with pytest.raises(SystemExit) if leave else nullcontext():
        runner.train()
    seen = []
    resumed = make(
        do=lambda r: seen.append(weight(r)),
        batch_size=1,
        resume=True,
        load_from=newest_checkpoint(runner.work_dir),
    )
    resumed.train()
    used = -torch.tensor(seen).diff(
        prepend=torch.tensor([-3.0 if leave else -14.0])
    )
    assert used.tolist() == expected


def test_a_run_listens_while_it_lasts(make):
    def handlers():
        numbers = (signal.SIGTERM, signal.SIGUSR1)
        return [signal.getsignal(number) for number in numbers]

    before, during = handlers(), []
    make(do=lambda runner: during.append(handlers())).train()
    assert handlers() == before and during[0] != before


def test_accumulated_gradients_are_not_lost(make):
    runner = make(
        do=leave_at(2, signal.SIGTERM), wrapper=dict(accumulative_counts=3)
    )
    with pytest.raises(SystemExit):
        runner.train()
    state = load(newest_checkpoint(runner.work_dir))
    assert state['meta']['iter'] == 3
    assert state['state_dict']['weight'].item() == pytest.approx(-2.5)


def test_an_iteration_based_run_resumes_over_epochs(make):
    loop = dict(by_epoch=False, max_iters=10)
    hooks = dict(checkpoint=dict(by_epoch=False, interval=100))
    runner = make(
        do=leave_at(6, signal.SIGUSR1), loop=loop, default_hooks=hooks
    )
    with pytest.raises(SystemExit):
        runner.train()
    seen = []
    make(
        do=lambda r: seen.append(weight(r)),
        loop=loop,
        default_hooks=hooks,
        resume=True,
        load_from=newest_checkpoint(runner.work_dir),
    ).train()
    assert seen == [-sum((MEANS * 3)[: i + 1]) for i in range(6, 10)]


class Failing:
    """Fails to save once, at a named file."""

    def __init__(self, monkeypatch, name):
        from mmattn.engine.checkpoints import AtomicBackend

        put = AtomicBackend.put

        def fail(backend, obj, filepath):
            if Path(filepath).name == name:
                raise OSError(28, 'No space left on device', str(filepath))
            put(backend, obj, filepath)

        monkeypatch.setattr(AtomicBackend, 'put', fail)


def test_a_full_disk_keeps_the_last_checkpoint(make, monkeypatch):
    Failing(monkeypatch, 'epoch_2.pth')
    runner = make(
        default_hooks=dict(checkpoint=dict(interval=1, max_keep_ckpts=1))
    )
    with pytest.raises(OSError, match='No space left'):
        runner.train()
    assert newest_checkpoint(runner.work_dir).endswith('epoch_1.pth')


def test_superseded_checkpoints_are_removed(make):
    runner = make(
        default_hooks=dict(checkpoint=dict(interval=1, max_keep_ckpts=1))
    )
    runner.train()
    found = sorted(path.name for path in Path(runner.work_dir).glob('*.pth'))
    assert found == ['epoch_2.pth']


def _mean(rank, file, queue):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{file}', rank=rank, world_size=2
    )
    agreement = Agreement()
    many = range(MAX_SCALARS + 1)
    queue.put(
        (
            rank,
            agreement.any(rank == 1),
            agreement.any(False),
            agreement.mean(dict(loss=float(rank), other=2.0)),
            agreement.mean({f'loss{rank}': float(rank)}),
            agreement.mean(dict.fromkeys(map(str, many), float(rank))),
        )
    )
    torch.distributed.destroy_process_group()


def test_processes_agree(tmp_path):
    context = torch.multiprocessing.get_context('fork')
    queue = context.Queue()
    processes = [
        context.Process(target=_mean, args=(rank, tmp_path / 'store', queue))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for rank, some, none, mean, other, many in [queue.get(), queue.get()]:
        assert some and not none
        assert mean == dict(loss=0.5, other=2.0)
        assert other == {f'loss{rank}': rank}
        assert set(many.values()) == {rank}
    for process in processes:
        process.join()
        assert process.exitcode == 0
