# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What the shell scripts pass on, seen by stand-ins that record it."""

import os
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
RECORD = '#!/bin/sh\nprintf "%s\\n" "$@"\n'


@pytest.fixture
def run(tmp_path):
    """Run a script with stand-ins for srun and python, from elsewhere."""
    for name in ('srun', 'sbatch', 'scontrol', 'python'):
        (tmp_path / name).write_text(RECORD)
        (tmp_path / name).chmod(0o755)
    path = f'{tmp_path}:{os.environ["PATH"]}'
    plain = {
        key: value
        for key, value in os.environ.items()
        if key != 'PYTHON' and not key.startswith('SLURM')
    }

    def run(script, *words, **env):
        return subprocess.run(
            ['bash', TOOLS / script, *words],
            cwd=tmp_path,
            env={**plain, 'PATH': path, **env},
            capture_output=True,
            text=True,
        )

    return run


def test_slurm_train(run):
    result = run(
        'slurm_train.sh', 'gpu', 'my job', 'my config.py', '--amp',
        GPUS='16', SRUN_ARGS='--time 10 --requeue',
    )  # fmt: skip
    words = result.stdout.splitlines()
    assert words[:6] == [
        '--partition', 'gpu', '--job-name', 'my job', '--gres', 'gpu:8',
    ]  # fmt: skip
    assert words[words.index('--ntasks') + 1] == '16'
    assert words[words.index('--ntasks-per-node') + 1] == '8'
    assert words[words.index('--time') :] == [
        '--time', '10', '--requeue', '--kill-on-bad-exit=1',
        'python', '-u', f'{TOOLS}/train.py',
        'my config.py', '--launcher', 'slurm', '--amp',
    ]  # fmt: skip


JOB = ('slurm_train.sh', 'gpu', 'my job', 'my config.py', '--amp')


def test_slurm_requeue_submits_itself(run):
    result = run(*JOB, REQUEUE='300', GPUS='16', SRUN_ARGS='--time 10')
    words = result.stdout.splitlines()
    assert words[:2] == ['--partition', 'gpu'] and '--requeue' in words
    assert words[words.index('--time') + 1] == '10'
    assert words[words.index('--signal') + 1] == 'USR1@300'
    assert words[words.index('--ntasks') + 1] == '16'
    # What the job runs: the same command, word for word.
    assert words[-2] == '--wrap'
    shell = f'printf "%s\\n" {words[-1]}'
    again = subprocess.check_output(['bash', '-c', shell], text=True)
    assert again.splitlines() == [str(TOOLS / JOB[0]), *JOB[1:]]


@pytest.mark.parametrize('code', [0, 1, 75])
@pytest.mark.parametrize('restarts', ['', '0', '2'])
def test_slurm_requeues_what_was_preempted(code, restarts, run, tmp_path):
    (tmp_path / 'srun').write_text(f'{RECORD}exit {code}\n')
    env = dict(SLURM_JOB_ID='42', SLURM_RESTART_COUNT=restarts)
    result = run(*JOB, REQUEUE='300', **env)
    words = result.stdout.splitlines()
    assert result.returncode == code
    assert '--kill-on-bad-exit=1' in words and '--signal' not in words
    assert ('--resume' in words) == (restarts == '2')
    assert (words[-2:] == ['requeue', '42']) == (code == 75)
    # By hand, in an allocation, nobody else's job is requeued.
    assert 'requeue' not in run(*JOB, **env).stdout.splitlines()


def test_slurm_test(run):
    result = run('slurm_test.sh', 'gpu', 'job', 'c.py', 'x.pth', GPUS='2')
    words = result.stdout.splitlines()
    assert words[words.index('--gres') + 1] == 'gpu:2'
    assert words[-6:] == [
        '-u', f'{TOOLS}/test.py', 'c.py', 'x.pth', '--launcher', 'slurm',
    ]  # fmt: skip


def test_dist_train_on_several_machines(run):
    result = run(
        'dist_train.sh', 'my config.py', '8', '--cfg-options', 'a=b c',
        NNODES='2', NODE_RANK='1', MASTER_ADDR='node0', PORT='1234',
    )  # fmt: skip
    assert result.stdout.splitlines() == [
        '-m', 'torch.distributed.run', '--nnodes', '2', '--node_rank', '1',
        '--master_addr', 'node0', '--master_port', '1234',
        '--nproc_per_node', '8', f'{TOOLS}/train.py', 'my config.py',
        '--launcher', 'pytorch', '--cfg-options', 'a=b c',
    ]  # fmt: skip


def test_dist_test(run):
    result = run('dist_test.sh', 'c.py', 'x.pth', '4', '--tta')
    assert result.stdout.splitlines()[-8:] == [
        '--nproc_per_node', '4', f'{TOOLS}/test.py', 'c.py', 'x.pth',
        '--launcher', 'pytorch', '--tta',
    ]  # fmt: skip


@pytest.mark.parametrize(
    'script',
    ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'],
)
def test_too_few_words_print_the_usage(run, script):
    result = run(script, 'one')
    assert result.returncode == 2
    assert result.stderr.startswith('usage: ') and not result.stdout
