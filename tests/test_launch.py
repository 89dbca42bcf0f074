# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import argparse
import errno

import pytest
import torch
from mmengine.config import Config

from mmattn.engine import launch
from mmattn.errors import ConfigError

CONFIG = """
model = dict(
    backbone=dict(norm_cfg=dict(type='SyncBN')),
    heads=[dict(norm_cfg=dict(type='SyncBN')), dict(norm_cfg=dict(type='GN'))])
optim_wrapper = dict(
    type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16',
    optimizer=dict(type='SGD', lr=0.1))
sync_bn = 'torch'
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load the config above as on a machine with or without a GPU."""
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)

    def load(gpu, launcher):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
        args = argparse.Namespace(
            config=str(path),
            work_dir=None,
            cfg_options=None,
            launcher=launcher,
            local_rank=0,
        )
        return launch.load_config(args)

    return load


def test_with_a_gpu_the_config_stays_as_it_is(load, tmp_path):
    cfg = load(gpu=True, launcher='slurm')
    plain = Config.fromfile(tmp_path / 'config.py')
    assert cfg.model == plain.model
    assert cfg.optim_wrapper == plain.optim_wrapper
    assert 'model_wrapper_cfg' not in cfg


def test_without_a_gpu_mixed_precision_becomes_float32(load):
    cfg = load(gpu=False, launcher='none')
    assert cfg.optim_wrapper.to_dict() == dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)
    )
    assert cfg.model.backbone.norm_cfg.type == 'SyncBN'  # one process: fine


def test_cpu_processes_get_what_they_can_do(load):
    cfg = load(gpu=False, launcher='pytorch')
    assert cfg.model.backbone.norm_cfg.type == 'BN'
    assert [h.norm_cfg.type for h in cfg.model.heads] == ['BN', 'GN']
    assert 'sync_bn' not in cfg
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.model_wrapper_cfg.type == 'MMDistributedDataParallel'


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_processes_without_ranks_are_told_how_to_start(
    load, launcher, monkeypatch
):
    for names in (*launch.RANKS.values(), ('RANK',)):
        for name in names:
            monkeypatch.delenv(name, raising=False)
    cfg = load(gpu=False, launcher=launcher)
    with pytest.raises(ConfigError, match=f'{launcher}: .*RANK|PROCID'):
        launch.build_runner(cfg)


SAFE = """
train_cfg = dict(by_epoch=True, max_epochs=2)
val_cfg = dict()
test_cfg = dict(type='OwnLoop')
default_hooks = dict(checkpoint=dict(interval=3), mean_loss=None,
                     invalid_loss=dict(patience=2))
"""


def test_loops_and_hooks_are_the_safe_ones(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(SAFE)
    cfg = Config.fromfile(path)
    launch.keep_safe(cfg)
    assert cfg.train_cfg.to_dict() == dict(
        type='mmattn.EpochBasedTrainLoop', max_epochs=2
    )
    assert cfg.val_cfg.type == 'mmattn.ValLoop'
    assert cfg.test_cfg.type == 'OwnLoop'
    assert cfg.default_hooks.to_dict() == dict(
        checkpoint=dict(type='mmattn.CheckpointHook', interval=3),
        preemption=dict(type='mmattn.PreemptionHook'),
        invalid_loss=dict(type='mmattn.InvalidLossHook', patience=2),
    )
    assert cfg.randomness.seed == 0


@pytest.mark.parametrize('seed', [-1, 0.5])
def test_seeds_are_whole_numbers_from_0(seed):
    with pytest.raises(ConfigError, match=f'whole number from 0, not {seed}'):
        launch.keep_safe(Config(dict(randomness=dict(seed=seed))))


@pytest.mark.parametrize(
    ('hooks', 'kept'),
    [
        (dict(checkpoint=None), None),
        (dict(checkpoint=dict(type='Own')), dict(type='Own')),
    ],
)
def test_other_checkpoint_hooks_stay(hooks, kept):
    cfg = Config(dict(default_hooks=hooks, randomness=dict(seed=3)))
    launch.keep_safe(cfg)
    assert cfg.default_hooks.checkpoint == kept
    assert cfg.randomness.seed == 3


def test_a_full_disk_is_one_line():
    with pytest.raises(SystemExit) as caught, launch.one_line_errors():
        raise OSError(errno.ENOSPC, 'No space left on device', 'x/epoch_1.pth')
    assert str(caught.value).startswith('error: [Errno 28] No space left')
    assert "'x/epoch_1.pth'" in str(caught.value)
    assert '--resume' in str(caught.value)
    with pytest.raises(OSError), launch.one_line_errors():
        raise OSError(errno.EIO, 'broken')


def test_ctrl_c_is_one_line(capsys):
    with pytest.raises(SystemExit) as caught, launch.one_line_errors():
        raise KeyboardInterrupt
    assert caught.value.code == 130
    assert capsys.readouterr().err == 'interrupted\n'


def test_unrelated_errors_keep_their_traceback():
    with pytest.raises(KeyError), launch.one_line_errors():
        raise KeyError('something else')
    with pytest.raises(ValueError), launch.one_line_errors():
        raise ValueError('not a ConfigError')


RATES = Config(
    dict(
        train_dataloader=dict(batch_size=2),
        optim_wrapper=dict(optimizer=dict(lr=0.02)),
        auto_scale_lr=dict(enable=True, base_batch_size=16),
        papers=dict(
            GSCA=dict(batch_size=8, lr=0.01),
            SCSA=dict(batch_size=2, lr=0.0025),
        ),
    )
)


@pytest.mark.parametrize(
    ('processes', 'line'),
    [
        (1, '1 x 2 images a step, learning rate 0.0025 '),
        (4, '4 x 2 images a step, learning rate 0.01 '),
    ],
)
def test_the_rate_of_a_run_is_said_beside_the_papers(processes, line):
    papers = '(papers: GSCA 0.01 for 8, SCSA 0.0025 for 2)'
    assert launch.describe_learning_rate(RATES, processes) == line + papers


def test_several_optimisers_have_no_one_rate():
    cfg = Config(
        dict(
            train_dataloader=dict(batch_size=2),
            optim_wrapper=dict(constructor='Own', a=dict(), b=dict()),
        )
    )
    line = launch.describe_learning_rate(cfg, 4)
    assert line == '4 x 2 images a step, several optimisers'


def test_the_rate_of_a_run_without_scaling_and_papers():
    cfg = Config({k: RATES[k] for k in ('train_dataloader', 'optim_wrapper')})
    line = launch.describe_learning_rate(cfg, 4)
    assert line == '4 x 2 images a step, learning rate 0.02'
