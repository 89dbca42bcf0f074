# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import argparse

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


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_other_launchers_need_a_gpu(load, launcher):
    with pytest.raises(ConfigError, match=launcher):
        load(gpu=False, launcher=launcher)


def test_amp_switches_the_wrapper_only_with_a_gpu(monkeypatch):
    for gpu, want in ((True, 'AmpOptimWrapper'), (False, 'OptimWrapper')):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda gpu=gpu: gpu)
        cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper')))
        launch.enable_amp(cfg)
        assert cfg.optim_wrapper.type == want


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


def test_the_rate_of_a_run_without_scaling_and_papers():
    cfg = Config({k: RATES[k] for k in ('train_dataloader', 'optim_wrapper')})
    line = launch.describe_learning_rate(cfg, 4)
    assert line == '4 x 2 images a step, learning rate 0.02'
