# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Train configs with several seeds each and compare their scores.

For detectors, classifiers and segmentors, on Linux and macOS::

    python tools/analysis_tools/study.py CONFIG... --seeds 0 1 2 --jobs 2

Every run is a process of tools/train.py in a folder of its own. The same
command again goes on where it was stopped: a finished run stays, an
interrupted one continues from its last checkpoint, and one whose settings
have changed is trained anew. Without a config nothing is trained, and table
and plot are made anew from results.csv. Result::

    WORK_DIR/<config>/seed0/    the run's checkpoints and logs, and run.json
    WORK_DIR/results.csv        one line a run, all finished runs of WORK_DIR
    WORK_DIR/table.md           mean and standard deviation over the seeds
    WORK_DIR/plot.png           the same, one panel a data set
"""

import argparse
import csv
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from mmengine.config import Config

from mmattn.engine import (
    add_run_arguments,
    innermost_test_dataset,
    load_config,
    one_line_errors,
)
from mmattn.engine.cost import build_model
from mmattn.errors import ConfigError

TRAIN = Path(__file__).resolve().parents[1] / 'train.py'
# The score of a run is the first of these that its validation has, with its
# name and decimals.
METRICS = {
    'coco/bbox_mAP': ('box AP', 3),
    'accuracy/top1': ('top-1', 2),
    'mIoU': ('mIoU', 2),
}
AP50 = 'coco/bbox_mAP_50'
COLUMNS = (
    'config',
    'attention',
    'dataset',
    'seed',
    'parameters',
    'metric',
    'score',
    'ap50',
    'train_seconds',
    'peak_mib',
    'device',
    'torch',
    'date',
)
RESULTS, TABLE, PLOT = 'results.csv', 'table.md', 'plot.png'


class RunError(Exception):
    """A run has failed; the message says why, in one line."""


class Run(NamedTuple):
    """One config with one seed."""

    config: str  # its name
    seed: int
    cfg: Config
    words: list[str]  # arguments of tools/train.py
    folder: Path

    def __str__(self) -> str:
        return f'{self.config} seed {self.seed}'

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.folder / 'train.log'


# ------------------------------------------------------------------ planning


def plan_runs(args: argparse.Namespace) -> list[Run]:
    """Read every config with every seed, as tools/train.py will.

    Raises:
        ConfigError: If two configs have one name, and so one folder, or a
            config cannot be used.
        FileNotFoundError: If a config does not exist.
    """
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    runs: dict[Path, Run] = {}
    for config in dict.fromkeys(args.configs):
        for seed in dict.fromkeys(args.seeds):
            folder = args.work_dir / Path(config).stem / f'seed{seed}'
            options = [*args.cfg_options, f'randomness.seed={seed}']
            words = [config, '--work-dir', str(folder)]
            words += ['--cfg-options', *options]
            if folder in runs:
                raise ConfigError(
                    f'{config} has the name of {runs[folder].words[0]}; '
                    'rename one, as a run is known by the name of its config'
                )
            cfg = load_config(parser.parse_args(words))
            runs[folder] = Run(Path(config).stem, seed, cfg, words, folder)
    return list(runs.values())


def settings_of(cfg: Config) -> dict:
    """Return a config as JSON would, without where its run is kept."""
    settings = cfg.to_dict()
    settings.pop('work_dir', None)
    return json.loads(json.dumps(settings, default=repr))


def prepare(run: Run) -> bool:
    """Make the folder of a run; put one of other settings out of the way.

    Returns:
        Whether the run is still to be trained, or trained on.
    """
    settings, record = settings_of(run.cfg), read_record(run.folder)
    if run.folder.exists() and record.get('settings') != settings:
        old = record.get('settings', {})
        keys = {**old, **settings}
        changed = [key for key in keys if old.get(key) != settings.get(key)]
        print(
            f'{run}: trained anew, as its settings differ '
            f'({", ".join(changed) if old else "none are recorded"}); '
            f'the old run is in {put_aside(run)}'
        )
        record = {}
    if 'row' in record:
        return False
    run.folder.mkdir(parents=True, exist_ok=True)
    write_record(run.folder, dict(settings=settings))
    return True


def put_aside(run: Run) -> Path:
    """Move the folder of a run to WORK_DIR/old and return where it is."""
    stamp = time.strftime('%Y%m%d_%H%M%S')
    folder = run.folder.parents[1] / 'old'
    folder.mkdir(exist_ok=True)
    name = f'{run.config}_{run.folder.name}_{stamp}'
    return run.folder.rename(folder / name)


def read_record(folder: Path) -> dict:
    """Return what is recorded of a run; empty if there is nothing."""
    try:
        return json.loads((folder / 'run.json').read_text())
    except FileNotFoundError:
        return {}


def write_record(folder: Path, record: dict) -> None:
    """Record the settings of a run, and its row once it has finished."""
    write(folder / 'run.json', json.dumps(record, indent=1).encode())


def write(path: Path, content: bytes) -> None:
    """Write a file at once or not at all."""
    new = path.with_name(f'.{path.name}.new')
    new.write_bytes(content)
    new.replace(path)


# ------------------------------------------------------------------ training


def train_all(runs: list[Run], jobs: int, threads: int) -> int:
    """Train the runs that have not finished, and tell of each.

    Args:
        runs: What is to be trained.
        jobs: Number of processes at once.
        threads: Number of threads of each, on the CPU.

    Returns:
        Number of runs that failed.
    """
    waiting = deque([run for run in runs if prepare(run)])
    collect(runs[0].folder.parents[1])
    total, done, failed = len(waiting), 0, 0
    print(f'{len(runs)} runs, {len(runs) - total} finished before', flush=True)
    env = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
    spent: list[float] = []
    running: dict[int, tuple[Run, subprocess.Popen, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.popleft()
                process = start(run, env)
                running[process.pid] = run, process, time.monotonic()
            pid, status, usage = os.wait4(-1, 0)
            if pid not in running:
                continue
            run, process, begun = running.pop(pid)
            process.returncode = os.waitstatus_to_exitcode(status)
            spent.append(time.monotonic() - begun)
            done += 1
            left = statistics.mean(spent) * (total - done) / jobs
            try:
                told = finish(run, process.returncode, usage, threads)
            except RunError as error:
                failed += 1
                told = f'failed: {error} (log: {run.log})'
            eta = f'; about {duration(left)} left' if done < total else ''
            print(f'[{done}/{total}] {run}: {told}{eta}', flush=True)
    finally:
        for _, process, _ in running.values():
            process.terminate()
            process.wait()
    return failed


def start(run: Run, env: dict[str, str]) -> subprocess.Popen:
    """Start the process of a run, from its last checkpoint if it has one."""
    command = [sys.executable, str(TRAIN), *run.words, '--resume']
    with run.log.open('ab') as log:
        return subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT
        )


def finish(run: Run, code: int, usage: Any, threads: int) -> str:
    """Record the results of a run whose process has ended.

    Args:
        run: The run.
        code: Exit code of its process.
        usage: What the process used, a ``resource.struct_rusage``.
        threads: Number of its threads.

    Returns:
        What to tell of it.

    Raises:
        RunError: If the process has failed or left no score.
    """
    if code < 0:
        raise RunError(f'ended by {signal.Signals(-code).name}')
    if code > 0:
        lines = run.log.read_text(errors='replace').strip().splitlines()
        last = lines[-1] if lines else f'exit code {code}'
        raise RunError(last.removeprefix('error: '))
    row = dict(
        config=run.config,
        attention=attention_of(run.cfg),
        dataset=dataset_of(run.cfg),
        seed=run.seed,
        parameters=sum(p.numel() for p in build_model(run.cfg).parameters()),
        **measured(run.folder, usage),
        device=torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f'CPU, {threads} thread{"s" * (threads > 1)}',
        torch=torch.__version__,
        date=time.strftime('%Y-%m-%d %H:%M'),
    )
    write_record(run.folder, dict(settings=settings_of(run.cfg), row=row))
    collect(run.folder.parents[1])
    label, decimals = METRICS[row['metric']]
    told = f'{label} {row["score"]:.{decimals}f}, training '
    told += duration(row['train_seconds'])
    return told + (f', {row["peak_mib"]:,} MiB' if row['peak_mib'] else '')


def measured(folder: Path, usage: Any) -> dict:
    """Read scores, time and memory of a run.

    The time is that of the training iterations alone, without the start of
    the process and without validation. The memory is the process's peak, on
    a GPU that of what torch has allocated there.

    Raises:
        RunError: If there is no score.
    """
    scores, steps, peak = {}, {}, None
    for log in sorted(folder.glob('*/vis_data/scalars.json')):
        records = list(read_scalars(log))
        # A continued run repeats steps: the later ones count.
        trained = {r['step']: r for r in records if 'lr' in r}
        steps.update(trained)
        for record in records:
            if any(metric in record for metric in METRICS):
                scores = record
        # One that was found complete has trained nothing to be measured.
        peak = peak_memory(trained.values(), usage) if trained else None
    metric = next((m for m in METRICS if m in scores), None)
    if metric is None:
        raise RunError(f'its validation has none of {", ".join(METRICS)}')
    seconds, before = 0.0, 0
    for step in sorted(steps):
        seconds += steps[step]['time'] * (step - before)
        before = step
    return dict(
        metric=metric,
        score=round(scores[metric], 4),
        ap50=scores.get(AP50),
        train_seconds=round(seconds, 1),
        peak_mib=peak,
    )


def read_scalars(path: Path) -> Iterable[dict]:
    """Yield the records of mmengine's log, but for one cut off at the end."""
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def peak_memory(records: Iterable[dict], usage: Any) -> int:
    """Return the peak memory of a process in MiB."""
    on_gpu = [record['memory'] for record in records if 'memory' in record]
    if on_gpu:
        return max(on_gpu)
    unit = 1 if sys.platform == 'darwin' else 1024  # bytes
    return round(usage.ru_maxrss * unit / 2**20)


def attention_of(cfg: Config) -> str:
    """Return the types of the backbone's plugins, as a table shows them."""
    backbone = cfg.model.get('backbone') or {}
    types = [plugin['cfg']['type'] for plugin in backbone.get('plugins') or ()]
    # What is no plugin stands in a setting of its own, such as AAConv2d.
    types += [
        node['type']
        for node in backbone.values()
        if isinstance(node, dict)
        and str(node.get('type')).startswith('mmattn.')
    ]
    names = [str(kind).split('.')[-1] for kind in types]
    return ' + '.join(dict.fromkeys(names)) or 'none'


def dataset_of(cfg: Config) -> str:
    """Return the folder of the data, as a table shows it."""
    data = innermost_test_dataset(cfg)
    root = Path(data.get('data_root') or cfg.get('data_root') or data.type)
    if root.is_absolute():
        return root.name
    return root.as_posix().removeprefix('data/')


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f'{minutes} min {seconds:02} s'
    return f'{minutes // 60} h {minutes % 60:02} min'


# ----------------------------------------------------------------- reporting


def collect(work_dir: Path) -> None:
    """Write the rows of all finished runs to results.csv, baselines first."""
    folders = sorted(path.parent for path in work_dir.glob('*/seed*/run.json'))
    records = [read_record(folder) for folder in folders]
    rows = [record['row'] for record in records if 'row' in record]
    rows.sort(
        key=lambda row: (
            row['dataset'],
            row['attention'] != 'none',
            row['config'],
            row['seed'],
        )
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write(work_dir / RESULTS, text.getvalue().encode())


def report(work_dir: Path) -> str:
    """Write table and plot of results.csv, and return the table.

    Raises:
        ConfigError: If there are no results, or a column is missing.
    """
    path = work_dir / RESULTS
    if not path.is_file():
        raise ConfigError(f'no {path}; name the configs to train')
    with path.open(newline='') as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        for column in COLUMNS:
            if column not in (reader.fieldnames or ()):
                raise ConfigError(f'{path}: has no column {column}')
    if not rows:
        raise ConfigError(f'{path}: no run has finished')
    panels = group(rows)
    text = '\n'.join(table(*key, lines) for key, lines in panels.items())
    write(work_dir / TABLE, text.encode())
    write(work_dir / PLOT, plot(panels))
    return text


def group(rows: list[dict[str, str]]) -> dict:
    """Sort rows of results.csv by what may be compared.

    Returns:
        (data set, metric) -> label -> rows. The label is the attention, or
        the config where several have the same attention.
    """
    configs = {
        row['config']: (*panel_of(row), row['attention']) for row in rows
    }
    times = Counter(configs.values())
    panels: dict[tuple[str, str], dict[str, list]] = {}
    for row in rows:
        alone = times[configs[row['config']]] == 1
        label = row['attention'] if alone else row['config']
        panel = panels.setdefault(panel_of(row), {})
        panel.setdefault(label, []).append(row)
    return panels


def panel_of(row: dict[str, str]) -> tuple[str, str]:
    """Return data set and metric of a row."""
    return row['dataset'], row['metric']


def numbers(rows: list[dict[str, str]], column: str) -> list[float]:
    """Return a column without its empty cells."""
    return [float(row[column]) for row in rows if row[column]]


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation, 0 for a single value."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.mean(values), spread


def table(dataset: str, metric: str, lines: dict[str, list]) -> str:
    """Return one data set's Markdown table, a line for each label."""
    score, decimals = METRICS[metric]
    columns = {
        'score': (score, decimals),
        'ap50': ('AP50', decimals),
        'parameters': ('parameters', 0),
        'train_seconds': ('training, s', 0),
        'peak_mib': ('peak memory, MiB', 0),
    }
    if not any(row['ap50'] for rows in lines.values() for row in rows):
        del columns['ap50']  # it is of detectors
    heads = [dataset, 'seeds', *(head for head, _ in columns.values())]
    text = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
    for label, rows in lines.items():
        cells = [label, str(len(rows))]
        for column, (_, decimals) in columns.items():
            shown = rows[:1] if column == 'parameters' else rows
            cells.append(cell(numbers(shown, column), decimals))
        text.append(f'| {" | ".join(cells)} |')
    return '\n'.join(text) + '\n'


def cell(values: list[float], decimals: int) -> str:
    """Return mean ± standard deviation, or what there is of it."""
    if not values:
        return ''
    mean, spread = mean_and_spread(values)
    text = f'{mean:,.{decimals}f}'
    return text if len(values) == 1 else f'{text} ± {spread:,.{decimals}f}'


def plot(panels: dict) -> bytes:
    """Draw mean, standard deviation and every seed's score; return a PNG."""
    figure = Figure(figsize=(3.6 * len(panels), 3.4), layout='constrained')
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, ((dataset, metric), lines) in zip(grid, panels.items()):
        for x, (label, rows) in enumerate(lines.items()):
            scores = numbers(rows, 'score')
            mean, spread = mean_and_spread(scores)
            axes.plot([x] * len(scores), scores, '.', color='silver')
            axes.errorbar(
                x, mean, spread, fmt='o', capsize=4, color='tab:blue'
            )
            if label == 'none':
                axes.axhline(mean, color='grey', lw=0.8, ls=':')
        axes.set_xticks(range(len(lines)), lines, rotation=45, ha='right')
        axes.set(title=dataset, ylabel=METRICS[metric][0])
    picture = io.BytesIO()
    figure.savefig(picture, format='png', dpi=150)
    return picture.getvalue()


# -------------------------------------------------------------- command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('configs', nargs='*', help='The config files.')
    parser.add_argument(
        '--seeds',
        nargs='+',
        type=int,
        default=[0, 1, 2],
        help='Seeds to train each config with. Default: 0 1 2.',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/study'),
        help='Folder for runs and results. Default: %(default)s.',
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=1,
        help='Number of runs at once. They share the CPU cores evenly, '
        'unless OMP_NUM_THREADS says how many threads each is to have. '
        'Default: %(default)s.',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        help='Override settings of all configs, as in tools/train.py.',
    )
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: must be at least 1')
    if min(args.seeds) < 0:
        parser.error(f'--seeds {min(args.seeds)}: must be at least 0')
    for option in args.cfg_options:
        if '=' not in option:
            parser.error(f'--cfg-options {option}: must be key=value')
    return args


def count_threads(jobs: int) -> int:
    """Return the number of CPU threads that each of the runs is to have."""
    wanted = os.environ.get('OMP_NUM_THREADS')
    return int(wanted) if wanted else max(1, (os.cpu_count() or 1) // jobs)


def main() -> None:
    """Train what has not been trained, and compare."""
    args = parse_args()
    # What ends a batch job ends the runs too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = 0
    with one_line_errors():
        try:
            if runs := plan_runs(args):
                threads = count_threads(args.jobs)
                failed = train_all(runs, args.jobs, threads)
        except KeyboardInterrupt:
            raise SystemExit(
                'error: stopped; the same command goes on from here'
            ) from None
        print(f'\n{report(args.work_dir)}')
    print(f'written to {args.work_dir}: {RESULTS}, {TABLE}, {PLOT}')
    if failed:
        raise SystemExit(f'error: {failed} of {len(runs)} runs failed')


if __name__ == '__main__':
    main()
