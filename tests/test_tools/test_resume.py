# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""A run that was interrupted ends with the weights of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmattn.compat.checkpoint import load

ROOT = Path(__file__).parents[2]
#: What is random: the order, the pipeline, the sampling of boxes.
CONFIGS = {
    'detector': """
_base_ = '{root}/configs/demo/faster-rcnn_r18-scsa_fpn_15e_digits.py'
model = dict(backbone=dict(base_channels=8),
             neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
             rpn_head=dict(in_channels=16, feat_channels=16),
             roi_head=dict(
                 bbox_roi_extractor=dict(out_channels=16),
                 bbox_head=dict(in_channels=16, fc_out_channels=32)))
train_dataloader = dict(
    batch_size=2,
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='RandomResize', scale=[(64, 64), (96, 96)]),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs')]))
train_cfg = dict(max_epochs=3, val_interval=1)
default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=2), logger=dict(interval=1))
custom_hooks = [dict(type='EMAHook'), dict(type='DisturbHook')]
""",
    'segmentor': """
_base_ = '{root}/configs/demo/upernet_r18-scsa_15e_digits.py'
model = dict(backbone=dict(base_channels=8),
             decode_head=dict(in_channels=[8, 16, 32, 64], channels=16),
             auxiliary_head=dict(in_channels=32, channels=8))
train_dataloader = dict(
    batch_size=2, num_workers=1, persistent_workers=True,
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='RandomCrop', crop_size=(64, 64)),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackSegInputs')]))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=12,
                 val_interval=6)
param_scheduler = [dict(type='PolyLR', by_epoch=False, end=12)]
optim_wrapper = dict(accumulative_counts=2)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=4))
custom_hooks = [dict(type='EMAHook'), dict(type='DisturbHook')]
""",
}


@HOOKS.register_module()
class DisturbHook(Hook):
    """Does something to the run before an iteration, or in a validation."""

    train = val = None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.train and runner.iter == self.train[0]:
            self.train[1]()

    def after_val_iter(self, runner, batch_idx, **_):
        if self.val and runner.iter == self.val[0]:
            self.val[1]()


def crash():
    raise MemoryError('disturbed')


def term():
    os.kill(os.getpid(), signal.SIGTERM)


def usr1():
    os.kill(os.getpid(), signal.SIGUSR1)


@pytest.fixture(scope='module')
def configs(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp('resume')
    for name, text in CONFIGS.items():
        path = folder / f'{name}.py'
        path.write_text(text.format(root=ROOT))
    return folder


@pytest.fixture
def train(configs, digits, run_tool, monkeypatch):
    """Train a config, disturbed or not; return the run's folder."""
    monkeypatch.chdir(digits)

    def train(name, folder, *words, at=None, val=None):
        monkeypatch.setattr(DisturbHook, 'train', at)
        monkeypatch.setattr(DisturbHook, 'val', val)
        run = f'visualizer.name={folder.name}{time.time_ns()}'
        run_tool(
            'train.py', configs / f'{name}.py', '--work-dir', folder, *words,
            '--cfg-options', run,
        )  # fmt: skip
        return final(folder)

    return train


def final(folder):
    (path,) = [*folder.glob('epoch_3.pth'), *folder.glob('iter_12.pth')]
    state = load(str(path))
    del state['meta'], state['message_hub']  # times
    return state


@pytest.fixture
def undisturbed(train, finished, tmp_path):
    """The final state of a run without disturbance."""

    def undisturbed(name):
        if name not in finished:
            finished[name] = train(name, tmp_path / 'undisturbed')
        return finished[name]

    return undisturbed


@pytest.fixture(scope='module')
def finished():
    return {}


def differences(one, two, path=''):
    """List where two checkpoints differ, bit by bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, two) else [path]
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return [path]
        pairs = [(k, one[k], two[k]) for k in one]
    elif isinstance(one, (list, tuple)):
        if len(one) != len(two):
            return [path]
        pairs = [(i, *pair) for i, pair in enumerate(zip(one, two))]
    else:
        return [] if one == two else [path]
    return [
        place
        for k, a, b in pairs
        for place in differences(a, b, f'{path}.{k}')
    ]


def logs(folder):
    return sorted(folder.glob('*/*.log'), key=os.path.getmtime)


def leave(train, code, *words, **disturbance):
    """Train until it is disturbed; return the last log."""
    kind = SystemExit if code else MemoryError
    with pytest.raises(kind) as caught:
        train(*words, **disturbance)
    assert getattr(caught.value, 'code', None) == code
    return logs(words[1])[-1].read_text()


def test_a_detector_ends_with_the_same_bits(train, undisturbed, tmp_path):
    expected, run = undisturbed('detector'), tmp_path / 'run'
    words = ('detector', run, '--resume')  # 3 epochs of 4 iterations
    text = leave(train, 75, *words, at=(2, term))
    assert 'resumed epoch' not in text
    text = leave(train, None, *words, at=(6, crash))
    assert 'resumed epoch: 0, iter: 3' in text
    text = leave(train, 75, *words, val=(8, usr1))
    assert 'resumed epoch: 1, iter: 4' in text
    for name in ('preempted.pth', 'epoch_2.pth'):
        path = run / name
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SystemExit, match='preempted.pth is damaged'):
        train('detector', run, '--resume', run / 'preempted.pth')
    assert differences(expected, train(*words)) == []
    assert 'resumed epoch: 1, iter: 4' in logs(run)[-1].read_text()


def test_a_segmentor_ends_with_the_same_bits(train, undisturbed, tmp_path):
    expected, run = undisturbed('segmentor'), tmp_path / 'run'
    words = ('segmentor', run, '--resume')  # 12 iterations
    leave(train, None, *words, at=(5, crash))
    # The validation is finished, as there is no checkpoint of 6.
    text = leave(train, 75, *words, val=(6, term))
    assert 'resumed epoch: 0, iter: 4' in text and 'mIoU: ' in text
    text = leave(train, 75, *words, at=(6, usr1))  # goes on to 8
    assert 'resumed epoch: 0, iter: 6' in text and 'mIoU: ' not in text
    text = leave(train, 75, *words, val=(12, term))
    assert 'resumed epoch: 0, iter: 8' in text
    assert differences(expected, train(*words)) == []
    # The validation that was broken off.
    text = logs(run)[-1].read_text()
    assert 'mIoU: ' in text and 'Iter(train)' not in text


def test_a_killed_run_ends_with_the_same_bits(
    configs, digits, train, undisturbed, tmp_path
):
    run = tmp_path / 'run'
    process = subprocess.Popen(
        [sys.executable, ROOT / 'tools/train.py', configs / 'detector.py',
         '--work-dir', run,
         '--cfg-options', 'custom_hooks.1.type=IterTimerHook'],
        cwd=digits,
        env={
            **os.environ,
            'PYTHONPATH': str(ROOT),
            # Another number of threads adds up in another order.
            'OMP_NUM_THREADS': str(torch.get_num_threads()),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    for _ in range(6000):
        if (run / 'epoch_1.pth').exists() or process.poll() is not None:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    found = train('detector', run, '--resume')
    assert differences(undisturbed('detector'), found) == []


def test_the_same_command_gives_the_same_bits(train, undisturbed, tmp_path):
    again = train('segmentor', tmp_path / 'again', '--deterministic')
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    assert differences(undisturbed('segmentor'), again) == []
    other = train('segmentor', tmp_path / 'other', '--seed', '5')
    assert differences(undisturbed('segmentor'), other)
    record = json.loads(next(tmp_path.glob('other/*/run.json')).read_text())
    assert record['seed'] == 5 and '--seed 5' in record['command']
    assert record['packages']['torch'] == torch.__version__.split('+')[0]
    assert next(tmp_path.glob('other/*/vis_data/config.py')).stat().st_size
