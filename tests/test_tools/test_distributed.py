# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Processes of every launcher do together what one does alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmattn.compat.checkpoint import load

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'
RESNET = ROOT / 'configs/demo/resnet18-scsa_30e_digits.py'
FASTER = ROOT / 'configs/demo/faster-rcnn_r18-scsa_fpn_15e_digits.py'
#: Two epochs of five steps on four images each: 20 in all. Without the
#: statistics of a process's own batch; order and augmentation are random.
TRAIN = (
    'train_cfg.max_epochs=2', 'train_cfg.val_interval=2',
    'default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1',
    'log_processor.window_size=1', 'model.backbone.norm_eval=True',
    'model.backbone.zero_init_residual=False', 'param_scheduler=[]',
    'optim_wrapper.optimizer.type=SGD', 'optim_wrapper.optimizer.lr=0.05',
    'auto_scale_lr.enable=False',
)  # fmt: skip

pytestmark = [
    pytest.mark.usefixtures('in_workspace'),
    pytest.mark.skipif(torch.cuda.is_available(), reason='uses the CPU'),
]


@pytest.fixture
def in_workspace(digits, monkeypatch):
    monkeypatch.chdir(digits)


def free_port():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


def start(*words, **env):
    return subprocess.Popen(
        [str(word) for word in words],
        env={
            **os.environ,
            'PYTHONPATH': str(ROOT),
            'PYTHON': sys.executable,
            'OMP_NUM_THREADS': '1',
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    for process, output in zip(processes, outputs):
        assert process.returncode == 0, output[-3000:]
    return outputs


def results(folder):
    """Return the losses of all steps, the score, and the weights."""
    (path,) = folder.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    state = load(str(folder / 'epoch_2.pth'))
    return (
        torch.tensor([row['loss'] for row in rows if 'loss' in row]),
        [row['accuracy/top1'] for row in rows if 'accuracy/top1' in row],
        state['state_dict'],
    )


@pytest.fixture(scope='module')
def alone(digits, load_tool, tmp_path_factory):
    """The results of one process with the whole batch."""
    folder = tmp_path_factory.mktemp('alone')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(digits)
        words = ['--work-dir', folder, '--cfg-options', *TRAIN]
        words += ['train_dataloader.batch_size=4', 'visualizer.name=alone']
        patch.setattr(sys, 'argv', ['train.py', RESNET, *words])
        sys.argv = [str(word) for word in sys.argv]
        load_tool('train.py').main()
    return results(folder)


def check_same(found, expected):
    assert len(expected[0]) == 10 and expected[0].std() > 0.01
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1] == expected[1] and len(expected[1]) == 1
    torch.testing.assert_close(found[2], expected[2], rtol=1e-4, atol=1e-5)


def test_two_nodes_of_two_equal_one_process(alone, tmp_path):
    port = free_port()
    finish(
        *(
            start(
                'bash', TOOLS / 'dist_train.sh', RESNET, 2,
                '--work-dir', tmp_path, '--cfg-options', *TRAIN,
                'train_dataloader.batch_size=1',
                NNODES='2', NODE_RANK=str(rank), PORT=port,
            )
            for rank in (0, 1)
        )
    )  # fmt: skip
    check_same(results(tmp_path), alone)


def test_a_signal_to_the_script_saves_and_ends_with_75(tmp_path):
    process = start(
        'bash', TOOLS / 'dist_train.sh', RESNET, 2, '--work-dir', tmp_path,
        '--cfg-options', *TRAIN, 'train_cfg.max_epochs=10000',
        'train_dataloader.num_workers=1',
        'train_dataloader.persistent_workers=True',
        PORT=free_port(),
    )  # fmt: skip
    for line in process.stdout:
        if 'Epoch(train)' in line:
            break
    process.send_signal(signal.SIGUSR1)
    started = time.time()
    output = process.communicate(timeout=200)[0]
    # torchrun kills what has not left after 30 seconds.
    assert process.returncode == 75, output[-3000:]
    assert time.time() - started < 29 and 'exiting via' not in output
    state = load(str(tmp_path / 'preempted.pth'))
    assert state['meta']['iter'] >= 1


SRUN = """#!/usr/bin/env python3
# Starts the processes that srun would start, on this machine.
import os, subprocess, sys
words = sys.argv[1:]
count = int(words[words.index('--ntasks') + 1])
command = words[words.index('-u') - 1:]
open('srun.txt', 'w').write('\\n'.join(words))
tasks = [
    subprocess.Popen(command, env={
        **os.environ, 'SLURM_PROCID': str(rank), 'SLURM_LOCALID': str(rank),
        'SLURM_NTASKS': str(count), 'SLURM_STEP_NODELIST': 'localhost'})
    for rank in range(count)
]
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = '#!/bin/sh\necho "$@" >>scontrol.txt; echo localhost\n'


@pytest.fixture
def slurm(tmp_path):
    """A folder with stand-ins for Slurm's commands, for PATH."""
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL)):
        path = tmp_path / 'bin' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return f'{tmp_path}/bin:{os.environ["PATH"]}'


def test_two_tasks_of_slurm_equal_one_process(alone, slurm, tmp_path):
    finish(
        start(
            'bash', TOOLS / 'slurm_train.sh', 'cpu', 'job', RESNET,
            '--work-dir', tmp_path / 'run', '--cfg-options', *TRAIN,
            'train_dataloader.batch_size=2',
            PATH=slurm, GPUS='2', MASTER_PORT=free_port(),
        )
    )  # fmt: skip
    check_same(results(tmp_path / 'run'), alone)


def test_three_processes_of_mpi_score_like_one(
    trained, run_tool, capsys, tmp_path
):
    checkpoint = trained('faster-rcnn_r18-scsa_fpn_15e_digits')
    # So little trained it finds few objects, and ranks them badly.
    options = ['--cfg-options', 'model.test_cfg.rcnn.score_thr=0.0']
    options += ['test_evaluator.metric_items=[mAP,mAP_50,AR@1000]']
    words = [FASTER, checkpoint, '--work-dir', tmp_path, *options]
    run_tool('test.py', *words, 'visualizer.name=mpi')
    port = free_port()
    finish(
        *(
            start(
                sys.executable, TOOLS / 'test.py', *words, '--launcher', 'mpi',
                OMPI_COMM_WORLD_RANK=str(rank), OMPI_COMM_WORLD_SIZE='3',
                OMPI_COMM_WORLD_LOCAL_RANK=str(rank), MASTER_PORT=port,
            )
            for rank in range(3)
        )
    )  # fmt: skip
    scores = []
    for path in sorted(tmp_path.glob('*/*.json')):
        score = json.loads(path.read_text())
        scores.append({k: v for k, v in score.items() if 'bbox' in k})
    assert len(scores) == 2 and scores[0] == scores[1]
    assert 0 < scores[0]['coco/bbox_AR@1000'] < 1
