# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Checkpoints of a real Runner; this file is also the script that trains."""

import io
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

import mmattn  # noqa: F401 (registers the types)

try:
    from mmengine.evaluator import BaseMetric
    from mmengine.hooks import Hook
    from mmengine.logging import HistoryBuffer
    from mmengine.model import BaseModel
    from mmengine.runner import Runner
except ImportError:
    pytest.skip('mmengine is not installed', allow_module_level=True)

ROOT = pathlib.Path(__file__).parents[2]
unsafe_globals = getattr(
    torch.serialization, 'get_unsafe_globals_in_checkpoint', None
)
new_torch = pytest.mark.skipif(
    unsafe_globals is None, reason='torch < 2.6 loads everything'
)


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x, mode):
        out = self.layer(torch.stack(x) if isinstance(x, list) else x)
        return dict(loss=out.square().mean()) if mode == 'loss' else [out]


class Accuracy(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(float(data_samples[0].mean()))

    def compute_metrics(self, results):
        return dict(acc=np.float64(np.mean(results)))


class NoteNumpy(Hook):
    """Leaves numbers of numpy where other hooks of OpenMMLab do."""

    def after_train_iter(self, runner, **kwargs):
        runner.message_hub.update_info('seen', np.int64(runner.iter))
        runner.message_hub.update_info('sizes', np.ones((2, 3), np.float32))


class Points(torch.utils.data.Dataset):
    metainfo = dict(classes=('a', 'b'), palette=np.zeros((2, 3), np.uint8))

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(x=torch.randn(2))


def train(work_dir, epochs, resume):
    """Train the toy model with everything a checkpoint can hold."""
    loader = dict(
        dataset=Points(),
        batch_size=4,
        sampler=dict(type='DefaultSampler', shuffle=True),
    )
    runner = Runner(
        Toy(),
        work_dir=work_dir,
        train_dataloader=loader,
        val_dataloader=loader,
        val_evaluator=[Accuracy(prefix='toy')],
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        val_cfg=dict(),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=0.01),
            clip_grad=dict(max_norm=1),
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
            dict(type='MultiStepLR', milestones=[2]),
            dict(type='OneCycleLR', eta_max=0.1, total_steps=10),
        ],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(
                type='CheckpointHook', interval=1, save_best='toy/acc'
            ),
        ),
        custom_hooks=[dict(type='EMAHook'), NoteNumpy()],
        experiment_name='toy',
        default_scope='mmengine',
        resume=resume,
    )
    runner.train()
    _, counts = runner.message_hub.get_scalar('train/loss').data
    print('iterations', runner.iter, 'logged', len(counts))


def run_training(work_dir, *arguments):
    return subprocess.run(
        [sys.executable, __file__, str(work_dir), *arguments],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """The work_dir of a finished training of two epochs."""
    folder = tmp_path_factory.mktemp('toy')
    result = run_training(folder, '2')
    assert result.returncode == 0, result.stderr
    return folder


def reload(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file)


@new_torch
@pytest.mark.parametrize('name', ['epoch_2.pth', 'best_toy_acc_epoch_*.pth'])
def test_checkpoint_of_a_runner_loads(work_dir, name):
    (path,) = sorted(work_dir.glob(name))[-1:]
    assert unsafe_globals(path) == []
    # Without mmattn torch refuses it, also for the reference to a method.
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        assert 'builtins.getattr' in unsafe_globals(path)
    finally:
        torch.serialization.add_safe_globals(allowed)

    hub = torch.load(path)['message_hub']
    history = hub['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.statistics('mean') == history.data[0].mean()
    assert type(hub['runtime_info']['best_score']) is np.float64
    assert hub['runtime_info']['sizes'].shape == (2, 3)


def test_resume(work_dir):
    result = run_training(work_dir, '3', '--resume')
    assert 'iterations 6 logged 6' in result.stdout, result.stderr


def test_schedule_resumes_with_its_curve(work_dir):
    schedulers = torch.load(work_dir / 'epoch_1.pth')['param_schedulers']
    curve = schedulers[-1]['anneal_func']
    assert curve(1.0, 0.0, 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(
    'value',
    [
        np.float64(0.25),
        np.float32(0.5),
        np.float16(0.5),
        np.int64(-3),
        np.uint8(200),
        np.bool_(True),
        np.str_('best'),
        np.arange(6).reshape(2, 3),
        np.ones(3, '>f4'),
        np.array(['a', 'bc']),
        np.zeros((0, 2), bool),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
    ids=repr,
)
def test_numpy_value_loads(value):
    loaded = reload(dict(value=value))['value']
    assert type(loaded) is type(value)
    assert loaded.dtype.str[1:] == value.dtype.str[1:]
    assert np.array_equal(loaded, value)


@pytest.mark.parametrize('core', ['core', '_core'])
def test_file_of_either_numpy_loads(work_dir, tmp_path, core):
    """numpy 1 writes `numpy.core`, numpy 2 `numpy._core`."""
    path = tmp_path / 'other.pth'
    written = np.float64(0).__reduce__()[0].__module__.encode()
    source = zipfile.ZipFile(work_dir / 'epoch_1.pth')
    with source, zipfile.ZipFile(path, 'w') as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith('data.pkl'):
                assert written in data
                other = f'numpy.{core}.multiarray'.encode()
                data = data.replace(written, other)
            target.writestr(name, data)
    if unsafe_globals is None and other != written:
        pytest.skip('torch < 2.6 asks numpy for the name')
    assert torch.load(path)['message_hub']['runtime_info']['seen'] == 1


class Reduced:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(path):
    """Objects that would create the file when they are unpickled, or could."""
    touch = Reduced(getattr, pathlib.Path(path), 'touch')
    return {
        'function': Reduced(os.mkdir, path),
        'builtin': Reduced(exec, f'open({path!r}, "w")'),
        'open': Reduced(open, path, 'w'),
        'method': touch,
        'array method': Reduced(getattr, np.ones(3), 'tofile'),
        'globals': Reduced(getattr, HistoryBuffer.mean, '__globals__'),
        'class attribute': Reduced(getattr, HistoryBuffer, '__init__'),
        'class of a class': Reduced(getattr, np.ndarray, '__class__'),
        'object array': np.array([Reduced(open, path, 'w')], dtype=object),
        'harmless objects': np.array([1, 'a'], dtype=object),
        'in a history': HistoryBuffer.__new__(HistoryBuffer),
    }


@new_torch
@pytest.mark.parametrize('name', attacks(''))
def test_malicious_file_is_refused(name, tmp_path):
    from pickle import UnpicklingError

    target = tmp_path / 'created'
    attack = attacks(str(target))[name]
    if name == 'in a history':
        attack.__dict__['_log_history'] = Reduced(open, str(target), 'w')
    with pytest.raises(UnpicklingError, match='Weights only load failed'):
        reload(dict(state_dict={}, meta=attack))
    assert not target.exists()


@new_torch
def test_scheduler_cannot_be_made_by_a_file():
    from pickle import UnpicklingError

    from mmengine.optim import OneCycleParamScheduler

    for attack in (
        Reduced(OneCycleParamScheduler, None),
        OneCycleParamScheduler.__new__(OneCycleParamScheduler),
    ):
        with pytest.raises(UnpicklingError, match='may not make'):
            reload(attack)


@new_torch
def test_full_loading_is_still_the_exception(tmp_path):
    """`weights_only=False` does what it says, and nobody else asks for it."""
    target = tmp_path / 'created'
    file = io.BytesIO()
    torch.save(Reduced(open, str(target), 'w'), file)
    file.seek(0)
    torch.load(file, weights_only=False).close()
    assert target.exists()
    assert 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' not in os.environ


def test_nothing_is_registered_with_an_old_torch(monkeypatch):
    from mmattn.compat import checkpoint

    monkeypatch.delattr(
        torch.serialization, 'get_unsafe_globals_in_checkpoint', False
    )
    added = []
    monkeypatch.setattr(
        torch.serialization, 'add_safe_globals', added.append, False
    )
    checkpoint.allow_checkpoint_types()
    assert added == []


if __name__ == '__main__':
    train(sys.argv[1], int(sys.argv[2]), '--resume' in sys.argv)
