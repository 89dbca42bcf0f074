# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""A study trains what it should, once, and its figures are right."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'tools/analysis_tools/study.py'
FASTER = ROOT / 'configs/study/faster-rcnn_r18-scsa_fpn_8e_digits.py'
RESNET = ROOT / 'configs/demo/resnet18-none_30e_digits.py'
ONE_EPOCH = ('--cfg-options', 'train_cfg.max_epochs=1')
BROKEN = (
    f"_base_ = '{RESNET}'\n"
    "model = dict(backbone=dict(plugins=[dict(cfg=dict(type='mmattn.SE'), "
    "position='after_conv9')]))\n"
)


def study(folder, *words):
    """Start a study as a user does, but without Python's warnings."""
    env = {'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, words)],
        cwd=folder,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell ignores it for what it starts in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def read_rows(work_dir):
    with (work_dir / 'results.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory):
    """A study of two configs that work and one that does not, two seeds."""
    work_dir = tmp_path_factory.mktemp('study')
    broken = work_dir / 'broken.py'
    broken.write_text(BROKEN)
    process = study(
        digits, broken, FASTER, RESNET, '--seeds', 0, 5, '--jobs', 2,
        '--work-dir', work_dir, *ONE_EPOCH,
    )  # fmt: skip
    output = process.communicate(timeout=500)[0]
    return SimpleNamespace(
        folder=work_dir, output=output, code=process.returncode
    )


def test_a_failing_run_is_told_and_the_others_finish(trained):
    assert trained.code == 1
    lines = trained.output.splitlines()
    assert lines[-1] == 'error: 2 of 6 runs failed'
    assert 'Traceback' not in trained.output
    failed = [line[6:] for line in lines if 'broken seed' in line]
    for seed, line in zip((0, 5), sorted(failed)):
        assert line.startswith(f'broken seed {seed}: failed: ')
        log = re.search(r'log: (\S+)\)', line)[1]
        assert "'after_conv9'" in line and Path(log).is_file()
    assert len(failed) == 2 and lines[0] == '6 runs, 0 finished before'
    assert sum('left' in line for line in lines) == 5


def test_each_finished_run_has_its_row(trained):
    rows = read_rows(trained.folder)
    assert [(row['config'], row['seed']) for row in rows] == [
        (FASTER.stem, '0'),
        (FASTER.stem, '5'),
        (RESNET.stem, '0'),
        (RESNET.stem, '5'),
    ]
    for row in rows:
        detector = row['config'] == FASTER.stem
        metric = 'coco/bbox_mAP' if detector else 'accuracy/top1'
        attention, dataset = 'none', 'digits/classification'
        if detector:
            attention, dataset = 'SCSA', 'digits'
        assert row['attention'] == attention and row['dataset'] == dataset
        assert row['metric'] == metric and row['torch'] == torch.__version__
        folder = trained.folder / row['config'] / f'seed{row["seed"]}'
        # What the runs themselves wrote for people to read.
        (log,) = folder.glob('*/*.log')
        score = re.search(rf'{metric}: ([\d.]+)', log.read_text())[1]
        assert float(row['score']) == pytest.approx(float(score), abs=1e-3)
        seconds = re.search(r'\[1/1\].* time: ([\d.]+)', log.read_text())[1]
        assert float(row['train_seconds']) == pytest.approx(
            float(seconds), abs=0.06
        )
        assert bool(row['ap50']) == detector
        used = Config.fromfile(folder / f'{row["config"]}.py')
        assert used.randomness.seed == int(row['seed'])
        file = str(folder / 'epoch_1.pth')
        state = CheckpointLoader.load_checkpoint(file, 'cpu')
        learnt = [
            value.numel()
            for key, value in state['state_dict'].items()
            if not re.search('running_|num_batches', key)
        ]
        assert sum(learnt) == int(row['parameters'])
        assert 100 < int(row['peak_mib']) < 100_000


def test_finished_runs_stay(trained, digits):
    before = files(trained.folder / FASTER.stem)
    process = study(
        digits, FASTER, RESNET, '--seeds', 5, 0,
        '--work-dir', trained.folder, *ONE_EPOCH,
    )  # fmt: skip
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert output.startswith('4 runs, 4 finished before\n\n|')
    assert files(trained.folder / FASTER.stem) == before


def test_an_interrupted_run_goes_on(digits, tmp_path):
    words = (
        RESNET, '--seeds', 3, '--work-dir', tmp_path, '--cfg-options',
        'train_cfg.max_epochs=40', 'default_hooks.checkpoint.interval=1',
    )  # fmt: skip
    folder = tmp_path / RESNET.stem / 'seed3'
    process = study(digits, *words)
    for _ in range(3000):
        if (folder / 'last_checkpoint').exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and 'Traceback' not in output
    assert output.splitlines()[-1].startswith('error: stopped')
    assert read_rows(tmp_path) == []
    left = files(folder)
    time.sleep(1.5)
    assert files(folder) == left  # the run does not go on alone
    process = study(digits, *words)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    (row,) = read_rows(tmp_path)
    assert float(row['score']) > 0 and row['seed'] == '3'
    resumed = re.search(
        'resumed epoch: (\\d+)', (folder / 'train.log').read_text()
    )
    assert int(resumed[1]) >= 1
    assert len(list(folder.glob('*/vis_data'))) == 2


# What follows trains nothing: a script writes the logs of a training.
TRAINER = """
import json, os, signal, sys, time
from pathlib import Path
config, _, folder, *options = sys.argv[1:]
name = Path(config).stem
if name == 'killed':
    os.kill(os.getpid(), signal.SIGKILL)
now = time.time()
time.sleep(0.5)
log = Path(folder) / '20300101_000000' / 'vis_data' / 'scalars.json'
log.parent.mkdir(parents=True)
threads = int(os.environ['OMP_NUM_THREADS'])
records = [{'lr': 1, 'step': 10, 'time': 0.2}, {'accuracy/top1': threads}]
records = records[: 1 if name == 'mute' else 2]
log.write_text('\\n'.join(map(json.dumps, records)))
(Path(folder) / 'span').write_text(f'{now} {time.time()}')
"""


@pytest.fixture
def tool(load_tool, monkeypatch, tmp_path):
    """The study with another trainer, and configs a.py, b.py, ... of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 6)
    module = load_tool('analysis_tools/study.py')
    module.TRAIN = tmp_path / 'trainer.py'
    module.TRAIN.write_text(TRAINER)
    for name in ('a', 'b', 'c', 'mute', 'killed'):
        Path(f'{name}.py').write_text(f"_base_ = '{RESNET}'\n")
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words):
        monkeypatch.setattr(sys, 'argv', ['study.py', *map(str, words)])
        module.main()

    yield SimpleNamespace(run=run, module=module)
    signal.signal(signal.SIGTERM, handler)


def spans(work_dir):
    texts = [path.read_text() for path in work_dir.glob('*/seed*/span')]
    return sorted(tuple(map(float, text.split())) for text in texts)


@pytest.mark.parametrize(('jobs', 'threads'), [(1, 6), (2, 3), (4, 1)])
def test_jobs_run_at_once_and_share_the_cores(tool, jobs, threads):
    tool.run(
        'a.py', 'b.py', '--seeds', 0, 1, '--jobs', jobs, '--work-dir', 'w'
    )
    times = spans(Path('w'))
    assert len(times) == 4
    together = max(
        sum(start <= moment < end for start, end in times)
        for moment, _ in times
    )
    assert together == jobs
    rows = read_rows(Path('w'))
    assert {row['score'] for row in rows} == {f'{threads}'}
    assert {row['device'] for row in rows} == {
        f'CPU, {threads} thread{"s" * (threads > 1)}'
    }


def test_the_users_number_of_threads_counts(tool, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '5')
    tool.run('a.py', '--seeds', 0, '--jobs', 3, '--work-dir', 'w')
    assert read_rows(Path('w'))[0]['score'] == '5'


def test_changed_settings_are_trained_anew(tool, capsys):
    tool.run('a.py', 'b.py', '--seeds', 0, '--work-dir', 'w')
    first = spans(Path('w'))
    Path('b.py').write_text(
        f"_base_ = '{RESNET}'\ntrain_cfg = dict(max_epochs=7)\n"
    )
    capsys.readouterr()
    tool.run('a.py', 'b.py', '--seeds', 0, '--work-dir', 'w')
    output = capsys.readouterr().out
    assert (
        'b seed 0: trained anew, as its settings differ (train_cfg)' in output
    )
    assert '2 runs, 1 finished before' in output
    second = spans(Path('w'))
    assert first[0] == second[0] and first[1] != second[1]
    (kept,) = Path('w/old').iterdir()
    assert str(kept) in output and (kept / 'span').is_file()
    assert len(read_rows(Path('w'))) == 2


def test_a_folder_of_unknown_settings_is_not_gone_on_with(tool, capsys):
    Path('w/a/seed0').mkdir(parents=True)
    Path('w/a/seed0/epoch_9.pth').write_text('mine')
    tool.run('a.py', '--seeds', 0, '--work-dir', 'w')
    assert 'none are recorded' in capsys.readouterr().out
    (kept,) = Path('w/old').iterdir()
    assert (kept / 'epoch_9.pth').read_text() == 'mine'


def test_reasons_of_failures(tool, capsys):
    with pytest.raises(SystemExit, match='^error: 2 of 3 runs failed'):
        tool.run('mute.py', 'killed.py', 'a.py', '--seeds', 0)
    output = capsys.readouterr().out
    assert 'mute seed 0: failed: its validation has none of coco' in output
    assert 'killed seed 0: failed: ended by SIGKILL' in output
    rows = read_rows(Path('work_dirs/study'))
    assert [row['config'] for row in rows] == ['a']


def log_of(folder, name, *records, end=''):
    path = folder / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(map(json.dumps, records)) + end)


def test_time_and_score_of_a_continued_run(tool, tmp_path):
    train = [
        dict(lr=1, step=step, time=seconds)
        for step, seconds in [(25, 0.1), (50, 0.2), (75, 4.0)]
    ]
    log_of(
        tmp_path, '20300101_000000', *train,
        {'coco/bbox_mAP': 0.1, 'step': 1}, end='\n{"lr": 1, "st',
    )  # fmt: skip
    again = [dict(train[2], time=0.4), dict(train[2], step=85, time=0.5)]
    last = {'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_50': 0.5, 'step': 2}
    log_of(tmp_path, '20300101_000001', *again, last)
    usage = SimpleNamespace(ru_maxrss=1536 * 1024)
    got = tool.module.measured(tmp_path, usage)
    assert (got['score'], got['ap50']) == (0.25, 0.5)
    # 75 was trained twice; what was thrown away does not count.
    want = 25 * 0.1 + 25 * 0.2 + 25 * 0.4 + 10 * 0.5
    assert got['train_seconds'] == pytest.approx(want)
    if sys.platform == 'linux':  # where ru_maxrss is in KiB
        assert got['peak_mib'] == 1536
    log_of(tmp_path, '20300101_000002', last)
    assert tool.module.measured(tmp_path, usage)['peak_mib'] is None


def test_memory_on_a_gpu_is_torchs(tool, tmp_path):
    records = [
        dict(lr=1, step=step, time=1, memory=memory)
        for step, memory in [(1, 700), (2, 900), (3, 800)]
    ]
    log_of(tmp_path, '20300101_000000', *records, {'mIoU': 30.0, 'step': 3})
    usage = SimpleNamespace(ru_maxrss=10**9)
    assert tool.module.measured(tmp_path, usage)['peak_mib'] == 900


COLUMNS = (
    'config,attention,dataset,seed,parameters,metric,score,ap50,'
    'train_seconds,peak_mib,device,torch,date'
)
RESULTS = """
r18-none_x,none,x,0,1000,coco/bbox_mAP,0.501,0.9,61,1000,CPU,2,2030-01-01
r18-none_x,none,x,1,1000,coco/bbox_mAP,0.512,0.8,72,1100,CPU,2,2030-01-01
r18-none_x,none,x,2,1000,coco/bbox_mAP,0.531,0.7,80,1050,CPU,2,2030-01-01
r18-se_x,SE,x,0,1234567,coco/bbox_mAP,0.6,0.95,90,,CPU,2,2030-01-01
r18-ga_y,GSCA,y,0,10,accuracy/top1,91.5,,5,10,CPU,2,2030-01-01
r18-gb_y,GSCA,y,0,10,accuracy/top1,92.5,,5,10,CPU,2,2030-01-01
r18-gb_y,GSCA,y,1,10,accuracy/top1,92.0,,5,10,CPU,2,2030-01-01
"""


def test_table_and_plot_of_written_results(tool, tmp_path, capsys):
    (tmp_path / 'results.csv').write_text(COLUMNS + RESULTS)
    tool.run('--work-dir', tmp_path)
    text = (tmp_path / 'table.md').read_text()
    assert text in capsys.readouterr().out
    cells = {
        line.split(' | ')[0].strip('| '): line.strip('| ').split(' | ')[1:]
        for line in text.splitlines()
        if line
    }

    def stated(values, digits):
        mean, std = np.mean(values), np.std(values, ddof=1)
        return f'{mean:,.{digits}f} ± {std:.{digits}f}'

    assert cells['none'] == [
        '3',
        stated([0.501, 0.512, 0.531], 3),
        stated([0.9, 0.8, 0.7], 3),
        '1,000',
        stated([61, 72, 80], 0),
        stated([1000, 1100, 1050], 0),
    ]
    assert cells['SE'][:5] == ['1', '0.600', '0.950', '1,234,567', '90']
    # Two configs with one attention go by their names; no AP50, no column.
    assert cells['r18-ga_y'] == ['1', '91.50', '10', '5', '10']
    assert cells['r18-gb_y'][:2] == ['2', stated([92.5, 92.0], 2)]
    assert cells['y'][1] == 'top-1' and 'AP50' not in cells['y']
    plot = cv2.imread(str(tmp_path / 'plot.png'))
    assert plot.shape[1] > 1.5 * plot.shape[0] and plot.std() > 5


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['gone.py'], 'error: no config gone.py'),
        (['a.py', 'more/a.py'], 'error: more/a.py has the name of a.py'),
        (['syntax.py'], 'error: syntax.py or a base'),
        ([], 'error: no work_dirs/study/results.csv'),
        (['--work-dir', 'bad'], 'error: bad/results.csv: has no column ap50'),
        (['mute.py', '--seeds', '0'], 'error: .*: no run has finished'),
    ],
)
def test_bad_input_is_one_line(tool, tmp_path, words, message):
    (tmp_path / 'more').mkdir()
    (tmp_path / 'more/a.py').write_text('')
    (tmp_path / 'syntax.py').write_text('model = dict(\n')
    (tmp_path / 'bad').mkdir()
    (tmp_path / 'bad/results.csv').write_text(COLUMNS.replace(',ap50', ''))
    with pytest.raises(SystemExit, match=message) as error:
        tool.run(*words)
    assert '\n' not in error.value.code


@pytest.mark.parametrize(
    'words', [['--jobs', '0'], ['--seeds', '-1'], ['--cfg-options', 'a']]
)
def test_impossible_arguments(tool, words, capsys):
    with pytest.raises(SystemExit, match='2'):
        tool.run('a.py', *words)
    assert f'{words[0]} {words[1]}: must be ' in capsys.readouterr().err
