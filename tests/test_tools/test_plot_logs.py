# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Curves are those of the logs, of resumed runs too."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TOOL = 'analysis_tools/plot_logs.py'
RESNET = 'resnet18-gsca_30e_digits'
LONG = 'default_hooks.logger.interval=1'


@pytest.fixture
def tool(load_tool):
    return load_tool(TOOL)


def step(number, loss, per_epoch=4, **more):
    """Return the record of an iteration, as mmengine writes it."""
    epoch = {'epoch': (number - 1) // per_epoch + 1} if per_epoch else {}
    return {
        'lr': 0.1 / number,
        'loss': loss,
        'time': 0.5,
        'data_time': 0.25,
        **more,
        **epoch,
        'iter': number,
        'step': number,
    }


def validation(number, score, key='coco/bbox_mAP'):
    """Return the record of a validation; the number is of the epoch."""
    return {key: score, 'data_time': 9.0, 'time': 8.0, 'step': number}


def epochs(first, last, sign=1):
    """Return the records of epochs of 4 iterations, every second logged.

    The loss is the number of the iteration, the score a tenth of the epoch.
    """
    records = []
    for epoch in range(first, last + 1):
        for number in (4 * epoch - 2, 4 * epoch):
            records.append(step(number, sign * number))
        records.append(validation(epoch, sign * epoch / 10))
    return records


def write(folder, records, stamp='20260102_030405', config='cat.py'):
    """Write the log of a run into a work_dir; return the work_dir."""
    data = folder / stamp / 'vis_data'
    data.mkdir(parents=True)
    text = ''.join(f'{json.dumps(record)}\n' for record in records)
    (data / 'scalars.json').write_text(text)
    if config:
        (folder / config).touch()
    return folder


def values(run, key='loss'):
    return [point.value for point in run.curves[key]]


def rows_of(path):
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


# -------------------------------------------------------------- a single run


def test_values_and_the_line_of_a_run(run_tool, tmp_path, capsys):
    write(
        tmp_path / 'run',
        [
            step(2, 3.5, loss_cls=3.0, grad_norm=7),
            step(4, 2.5, loss_cls=2.0, grad_norm=6),
            validation(1, 0.25),
            step(6, 1.5, loss_cls=1.0, grad_norm=5, time=0.25),
            step(8, 0.5, loss_cls=0.5, grad_norm=4),
            validation(2, 0.125),
        ],
    )
    file = tmp_path / 'curves.csv'
    keys = ['loss', 'coco/bbox_mAP', 'val/time']
    run_tool(TOOL, tmp_path / 'run', '--csv', file, '--keys', *keys)
    assert capsys.readouterr().out == (
        'cat: 0.438 s an iteration, best coco/bbox_mAP 0.250 at epoch 1\n'
    )
    assert file.read_text() == (
        'run,key,iteration,epoch,value\n'
        'cat,loss,2,1,3.5\n'
        'cat,loss,4,1,2.5\n'
        'cat,loss,6,2,1.5\n'
        'cat,loss,8,2,0.5\n'
        'cat,coco/bbox_mAP,4,1,0.25\n'
        'cat,coco/bbox_mAP,8,2,0.125\n'
        'cat,val/time,4,1,8.0\n'
        'cat,val/time,8,2,8.0\n'
    )


def test_a_training_by_iterations(tool, tmp_path):
    records = [step(n, n, per_epoch=0) for n in (50, 100)]
    records.append(validation(100, 30.0, 'mIoU'))
    records += [step(n, n, per_epoch=0) for n in (150, 200)]
    records.append(validation(200, 44.5, 'mIoU'))
    run = tool.read_run(write(tmp_path, records))
    assert run.curves['mIoU'] == [(100, None, 30.0), (200, None, 44.5)]
    assert tool.describe(run) == (
        'cat: 0.500 s an iteration, best mIoU 44.50 at iteration 200'
    )
    (panel,) = tool.draw([run], ['mIoU']).axes
    assert panel.get_xlabel() == 'iteration'
    assert list(panel.lines[0].get_xdata()) == [100, 200]


def test_epochs_of_training_and_iterations_of_validation(tool, tmp_path):
    # log_metric_by_epoch=False, with a log_processor that counts epochs.
    records = [step(4, 1), validation(4, 0.5), step(8, 1), validation(8, 0.4)]
    run = tool.read_run(write(tmp_path, records))
    assert run.curves['coco/bbox_mAP'] == [(4, None, 0.5), (8, None, 0.4)]
    assert [p.epoch for p in run.curves['loss']] == [1, 2]


def test_a_log_with_prefixes(tool, tmp_path):
    # What log_processor=dict(log_with_hierarchy=True) writes.
    train = {'train/loss': 2.0, 'train/lr': 0.1, 'train/time': 0.5}
    val = {'val/mIoU': 5.0, 'val/loss': 1.0, 'val/time': 7.0, 'step': 1}
    records = [{**train, 'epoch': 1, 'iter': 4, 'step': 4}, val]
    run = tool.read_run(write(tmp_path, records))
    assert set(run.curves) == {
        'loss', 'lr', 'time', 'mIoU', 'val/loss', 'val/time'
    }  # fmt: skip
    assert tool.main_scores(run) == ['mIoU'] and values(run, 'time') == [0.5]


def test_what_the_best_score_is(tool, tmp_path):
    records = [step(4, 1)]
    for epoch, score in enumerate([float('nan'), 0.5, -1, 0.7, 0.7, 0.6]):
        records.append(step(4 * epoch + 4, 1))
        records.append(validation(epoch + 1, score))
        records[-1]['loss'] = 3.0 - abs(epoch - 2)
    run = tool.read_run(write(tmp_path, records))
    assert tool.best(run, 'coco/bbox_mAP') == (16, 4, 0.7)
    assert tool.best(run, 'val/loss').value == 0.0
    assert tool.best(run, 'mIoU') is None


def test_scores_nobody_knows_count_too(tool, tmp_path):
    records = [step(2, 1), {**validation(1, 3.0, 'my/F1'), 'my/AUC': 2.0}]
    run = tool.read_run(write(tmp_path, records))
    assert tool.main_scores(run) == ['my/AUC', 'my/F1']
    assert tool.choose_keys([run]) == [
        'loss', 'my/AUC', 'my/F1', 'lr', 'time'
    ]  # fmt: skip


def test_a_run_without_scores(tool, tmp_path):
    run = tool.read_run(write(tmp_path, [step(2, 1), step(4, 1)]))
    assert tool.describe(run) == 'cat: 0.500 s an iteration, no score'
    assert tool.choose_keys([run]) == ['loss', 'lr', 'time']


def test_a_log_cut_off_is_read_so_far(tool, tmp_path):
    folder = write(tmp_path, epochs(1, 2))
    (log,) = folder.glob('*/vis_data/*')
    log.write_text(log.read_text()[:-9])
    run = tool.read_run(folder)
    assert values(run) == [2, 4, 6, 8]
    assert values(run, 'coco/bbox_mAP') == [0.1]


# ------------------------------------------------------------ several of one


def test_a_resumed_run_is_joined(tool, tmp_path):
    # Stopped in the fourth epoch, after its third was validated, and resumed
    # from the checkpoint of the second.
    before = [*epochs(1, 3), step(14, 14)]
    write(tmp_path, before, '20260102_000000')
    write(tmp_path, epochs(3, 4, -1), '20260102_000001')
    run = tool.read_run(tmp_path)
    assert values(run) == [2, 4, 6, 8, -10, -12, -14, -16]
    assert values(run, 'coco/bbox_mAP') == [0.1, 0.2, -0.3, -0.4]
    assert [p.epoch for p in run.curves['coco/bbox_mAP']] == [1, 2, 3, 4]
    assert [log.parts[-3][-1] for log in run.logs] == ['0', '1']
    assert tool.describe(run).endswith('at epoch 2, 2 logs joined')


def test_a_new_run_stands_for_itself(tool, tmp_path):
    write(tmp_path, epochs(1, 4), '20260102_000000')
    write(tmp_path, epochs(1, 1, -1), '20260102_000001')
    run = tool.read_run(tmp_path)
    assert values(run) == [-2, -4] and len(run.logs) == 1


def test_only_what_was_resumed_is_joined(tool, tmp_path):
    write(tmp_path, epochs(1, 4, 3), '20260102_000000')
    write(tmp_path, epochs(1, 1), '20260102_000001')
    write(tmp_path, epochs(2, 2, -1), '20260102_000002')
    # One that was found complete, one that was stopped before it began.
    write(tmp_path, [validation(0, 0.9)], '20260102_000003')
    write(tmp_path, [], '20260102_000004')
    assert values(tool.read_run(tmp_path)) == [2, 4, -6, -8]


@pytest.mark.parametrize('first', [2, 10])
def test_a_run_of_one_record(tool, tmp_path, first):
    write(tmp_path, epochs(1, 3), '20260102_000000')
    write(tmp_path, [step(first, -1)], '20260102_000001')
    resumed = [2, 4, 6, 8] if first == 10 else []
    assert values(tool.read_run(tmp_path)) == [*resumed, -1]


@pytest.mark.parametrize('interval', [1, 3, 10, 12, 50])
@pytest.mark.parametrize('last_too', [False, True])
def test_resumed_is_told_from_new(tool, interval, last_too):
    # As mmengine logs: every so many iterations of an epoch of 12, and the
    # last one if there are no more of them or ignore_last=False.
    logged = [
        12 * epoch + i
        for epoch in range(5)
        for i in range(1, 13)
        if i % interval == 0 or (i == 12 and (last_too or interval >= 12))
    ]
    before = [step(number, 1, 12) for number in logged]
    assert not tool.is_resumed(logged, before)
    assert tool.is_resumed([n for n in logged if n > 12], before)
    assert tool.is_resumed([n for n in logged if n > 48], before)


def test_mmengine_resumes_as_is_assumed(
    run_tool, tool, demo, digits, tmp_path, monkeypatch
):
    words = ['train.py', demo / f'{RESNET}.py', '--work-dir', tmp_path]
    monkeypatch.chdir(digits)
    run_tool(*words, '--cfg-options', 'train_cfg.max_epochs=1', LONG)
    one = tool.read_run(tmp_path)
    run_tool(
        *words, '--resume', '--cfg-options', 'train_cfg.max_epochs=2', LONG
    )
    two = tool.read_run(tmp_path)
    assert len(one.logs) == 1 and len(two.logs) == 2
    assert two.curves['loss'][: len(one.curves['loss'])] == one.curves['loss']
    assert [p.iteration for p in two.curves['loss']] == list(
        range(1, 2 * len(one.curves['loss']) + 1)
    )
    assert {p.epoch for p in two.curves['loss']} == {1, 2}


# -------------------------------------------------------------- several runs


@pytest.fixture
def three(tmp_path):
    """Three runs, two of them of one config."""
    longer = [*epochs(1, 2), step(10, 10, loss_bbox=1.0)]
    return [
        write(tmp_path / 'study' / 'cat' / 'a', epochs(1, 2)),
        write(tmp_path / 'study' / 'cat' / 'seed1', epochs(1, 3, -1)),
        write(tmp_path / 'dog', longer, config='dog.py'),
    ]


def test_names(tool, three):
    names = [run.name for run in tool.read_runs(three)]
    assert names == ['cat (a)', 'cat (seed1)', 'dog']
    assert [run.name for run in tool.read_runs(three[1:])] == ['cat', 'dog']
    named = tool.read_runs(three, ['a', 'b', 'c'])
    assert [run.name for run in named] == ['a', 'b', 'c']


def test_names_of_files(tool, three, tmp_path):
    logs = [next(folder.glob('*/vis_data/*')) for folder in three]
    names = [run.name for run in tool.read_runs(logs)]
    assert names == [
        'cat (a/20260102_030405)', 'cat (seed1/20260102_030405)', 'dog'
    ]  # fmt: skip
    for name in ('moved.json', 'far/scalars.json'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(logs[0].read_bytes())
    moved = [tmp_path / 'moved.json', tmp_path / 'far/scalars.json']
    runs = tool.read_runs(moved)
    assert [run.name for run in runs] == ['moved', 'far']
    assert values(runs[0]) == [2, 4, 6, 8]


def test_of_two_configs_the_log_tells_the_name(tool, three):
    folder = three[2]
    (folder / 'zebra.py').touch()
    assert tool.read_run(folder).name == 'dog'  # after its folder
    log = folder / '20260102_030405' / '20260102_030405.log'
    log.write_text('x - INFO - Exp name: zebra_20260102_030405\n')
    assert tool.read_run(folder).name == 'zebra'


def test_keys(tool, three):
    runs = tool.read_runs(three)
    usual = ['loss', 'coco/bbox_mAP', 'loss_bbox', 'lr', 'time']
    assert tool.choose_keys(runs) == usual
    assert tool.choose_keys(runs, ['*_bbox', 'val/*', 'loss*']) == [
        'loss_bbox', 'val/data_time', 'val/time', 'loss'
    ]  # fmt: skip


def test_losses_of_parts_are_losses(tool):
    losses = ['loss', 'loss_cls', 'decode.loss_ce', 's0.loss_bbox']
    others = ['acc', 'decode.acc_seg', 'glossy', 'grad_norm']
    found = [key for key in losses + others if tool.is_loss(key)]
    assert found == losses


@pytest.mark.parametrize('width', [1, 2, 3, 5, 100])
def test_smoothing_is_a_mean(tool, width):
    curve = np.random.default_rng(0).random(20)
    found = tool.smoothed(list(curve), width)
    half = min(width // 2, 9)
    inner = np.convolve(curve, np.ones(2 * half + 1), 'valid')
    assert found[half : 20 - half] == pytest.approx(inner / (2 * half + 1))
    # At the ends no value counts that has no counterpart on the other side.
    assert (found[0], found[-1]) == (curve[0], curve[-1])
    second = curve[:3].mean() if half else curve[1]
    assert found[1] == pytest.approx(second)


def test_what_is_drawn(tool, three):
    runs = tool.read_runs(three)
    keys = ['loss', 'coco/bbox_mAP', 'loss_bbox', 'lr']
    figure = tool.draw(runs, keys, smooth=3)
    assert [axes.get_title() for axes in figure.axes] == keys
    loss, score, bbox, lr = figure.axes
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == ['iteration', 'epoch', 'iteration', 'iteration']
    # The values themselves, and the means, of each run.
    assert len(loss.lines) == 6 and len(lr.lines) == 3
    assert list(loss.lines[2].get_ydata()) == [-2, -4, -6, -8, -10, -12]
    assert list(loss.lines[2].get_xdata()) == [2, 4, 6, 8, 10, 12]
    assert list(score.lines[1].get_xdata()) == [1, 2, 3]
    assert list(score.lines[1].get_ydata()) == [-0.1, -0.2, -0.3]
    # The only run that has it, in its colour.
    colors = {line.get_color() for line in bbox.lines}
    assert colors == {lr.lines[2].get_color()}
    assert len({line.get_color() for line in lr.lines}) == 3
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ['cat (a)', 'cat (seed1)', 'dog']


def test_strange_names_are_drawn_as_they_are(tool, three):
    names = [r'$\frac{$', '_hidden', 'a $5 or $6']
    figure = tool.draw(tool.read_runs(three, names), ['loss'])
    assert tool.picture(figure).startswith(b'\x89PNG')
    shown = [
        text._preprocess_math(text.get_text())
        for text in figure.legends[0].get_texts()
    ]
    assert [text.strip() for text, _ in shown] == names
    assert not any(math for _, math in shown)


def test_many_runs_have_a_legend_each(tool, tmp_path):
    folders = [
        write(tmp_path / f'{n}', epochs(1, 2), config=f'{"x" * n}.py')
        for n in range(1, 24)
    ]
    figure = tool.draw(tool.read_runs(folders), ['loss', 'lr'])
    assert len(figure.legends[0].get_texts()) == 23
    colors = {line.get_color() for line in figure.axes[0].lines}
    assert len(colors) == 20  # matplotlib has no more that differ


# ---------------------------------------------------------------- a real run


def test_a_trained_run(trained, run_tool, tmp_path, capsys):
    work_dir = trained(RESNET).parent
    file, picture = tmp_path / 'curves.csv', tmp_path / 'curves.png'
    run_tool(TOOL, work_dir, '--csv', file, '--out', picture, '--smooth', 5)
    rows = rows_of(file)
    # What the run itself wrote for people to read.
    log = max(work_dir.glob('2*/2*.log')).read_text()
    told = re.findall(r'Epoch\(train\).* loss: ([\d.]+)', log)
    found = [float(row['value']) for row in rows if row['key'] == 'loss']
    assert found == pytest.approx([float(loss) for loss in told], abs=1e-4)
    score = re.search(r'accuracy/top1: ([\d.]+)', log)[1]
    (row,) = [row for row in rows if row['key'] == 'accuracy/top1']
    assert float(row['value']) == pytest.approx(float(score), abs=1e-3)
    assert row['run'] == RESNET and row['epoch'] == '1'
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.startswith(f'{RESNET}: ')
    assert printed.endswith(
        f'best accuracy/top1 {float(score):.2f} at epoch 1'
    )
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert sorted(tmp_path.iterdir()) == [file, picture]


# --------------------------------------------------------- other ways to log


def test_tensorboard_by_two_lines(
    demo, digits, run_tool, tool, tmp_path, monkeypatch
):
    events = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator'
    )
    config = tmp_path / 'tensorboard.py'
    config.write_text(
        f"_base_ = '{demo / RESNET}.py'\n"
        "visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), "
        "dict(type='TensorboardVisBackend')])\n"
    )
    monkeypatch.chdir(digits)
    run_tool(
        'train.py', config, '--work-dir', tmp_path / 'run', '--cfg-options',
        'train_cfg.max_epochs=1', LONG,
    )  # fmt: skip
    (file,) = (tmp_path / 'run').glob('*/vis_data/events.out.tfevents.*')
    board = events.EventAccumulator(str(file))
    board.Reload()
    losses = tool.read_run(tmp_path / 'run').curves['loss']
    found = [(event.step, event.value) for event in board.Scalars('loss')]
    assert found == [(p.iteration, pytest.approx(p.value)) for p in losses]
    assert len(board.Scalars('accuracy/top1')) == 1


def test_other_loggers_are_not_imported(demo, digits, tmp_path):
    code = (
        'import runpy, sys\n'
        'sys.argv = sys.argv[1:]\n'
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "print('others:', *names & {'tensorboard', 'tensorboardX', 'wandb'})\n"
    )
    words = [ROOT / 'tools' / 'train.py', demo / f'{RESNET}.py']
    words += ['--work-dir', tmp_path, '--cfg-options']
    words += ['train_cfg.max_epochs=1']
    result = subprocess.run(
        [sys.executable, '-c', code, *map(str, words)],
        cwd=digits,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == 'others:'
    assert list(tmp_path.glob('*/vis_data/scalars.json'))


# ----------------------------------------------------------------- bad input


BAD = {
    'no run': (['nowhere'], 'no run nowhere'),
    'no log': (['{tmp}/empty'], 'empty: no run in it'),
    'nothing trained': (['{tmp}/tested'], 'tested: nothing was trained'),
    'no json': (['{tmp}/cat.py'], 'cat.py: line 1 is no record'),
    'a number': (['{tmp}/number.json'], 'number.json: line 2 is no record'),
    'broken': (['{tmp}/broken.json'], 'broken.json: line 1 is no record'),
    'key': (['{run}', '--keys', 'loss', 'los'], '--keys los: no run has it; '
            'there are lr, loss, time, data_time, coco/bbox_mAP, val/data'),
    'legends': (['{run}', '--legend', 'a', 'b'], '2 names for 1 runs'),
    'twins': (['{run}', '{tmp}/b', '--legend', 'a', 'a'], 'same name'),
    'smooth': (['{run}', '--smooth', '0'], '--smooth 0'),
    'folder': (['{run}', '--csv', 'gone/a.csv'], '--csv gone/a.csv'),
    'suffix': (['{run}', '--out', 'a.svg'], '--out a.svg: must be a file'),
}  # fmt: skip


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line(case, run_tool, tmp_path, monkeypatch, capsys):
    source, here = tmp_path / 'source', tmp_path / 'here'
    run = write(source / 'run', epochs(1, 1))
    write(source / 'b', epochs(1, 1))
    write(source / 'tested', [validation(1, 0.5)])
    (source / 'empty').mkdir()
    (source / 'cat.py').write_text('model = None\n')
    (source / 'number.json').write_text('{"iter": 1, "step": 1}\n3\n')
    (source / 'broken.json').write_text('{"iter": \n{"iter": 1}\n')
    here.mkdir()
    monkeypatch.chdir(here)
    words, wanted = BAD[case]
    words = [w.replace('{tmp}', str(source)) for w in words]
    words = [w.replace('{run}', str(run)) for w in words]
    outputs = ['--out', 'ok.png', '--csv', 'ok.csv']
    with pytest.raises(SystemExit) as error:
        run_tool(TOOL, *outputs, *words)
    message = error.value.code
    assert message.startswith('error: ') and '\n' not in message.strip()
    assert wanted in message
    assert not list(here.iterdir()) and not capsys.readouterr().out
