# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Draw curves of training runs, from the logs that mmengine keeps.

Losses, scores, learning rate, time and memory of several runs side by side::

    python tools/analysis_tools/plot_logs.py work_dirs/* --out curves.png

A run is a work_dir, whose newest run counts, joined with those that it has
resumed, or a scalars.json. For each a line says how long an iteration took on
average, and which was the best score of its validations. What users of mmdet
know as analyze_logs.
"""

import argparse
import csv
import io
import itertools
import json
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmattn.engine import one_line_errors
from mmattn.errors import ConfigError

LOG = 'vis_data/scalars.json'  # below the folder of a run
# The score of a run: those of these that its validation has, else all of it.
# With the decimals that are shown: some are fractions, some are percent.
SCORES = {
    'coco/bbox_mAP': 3,
    'coco/segm_mAP': 3,
    'pascal_voc/mAP': 3,
    'visdrone/AP': 2,
    'mIoU': 2,
    'accuracy/top1': 2,
}
# Drawn by default, beside losses and scores.
OTHERS = ('lr', 'time', 'memory')
# What does not scatter, and is not smoothed.
EXACT = ('lr', 'memory')
COLUMNS = ('run', 'key', 'iteration', 'epoch', 'value')


class Point(NamedTuple):
    """One value of a curve."""

    iteration: int  # for a validation the last one logged before it
    epoch: int | None  # None where the training counts iterations
    value: float

    def __str__(self) -> str:
        if self.epoch is None:
            return f'iteration {self.iteration}'
        return f'epoch {self.epoch}'


@dataclass
class Run:
    """What a training run has logged.

    Args:
        path: The work_dir or file it was read from.
        name: How it is called in legends.
        config: The name of its config, or of its folder if that is unknown.
        logs: Its files, more than one if it was resumed, oldest first.
        curves: Key -> values. What both training and validation have, such as
            ``time``, is ``val/time`` for the validation.
        validated: Keys of validations.
    """

    path: Path
    name: str
    config: str
    logs: list[Path]
    curves: dict[str, list[Point]]
    validated: set[str]


# ------------------------------------------------------------------- reading


def read_runs(
    paths: Sequence[Path], names: Sequence[str] | None = None
) -> list[Run]:
    """Read runs and give each a name of its own.

    Args:
        paths: Work_dirs or files.
        names: Their names, by default those of the configs.

    Raises:
        ConfigError: If a path has no log of a training, or the number of
            names is another.
        FileNotFoundError: If a path does not exist.
    """
    paths = list(dict.fromkeys(paths))
    if names and len(names) != len(paths):
        raise ConfigError(
            f'--legend has {len(names)} names for {len(paths)} runs'
        )
    runs = [read_run(path) for path in paths]
    for run, name in zip(runs, names or distinct_names(runs)):
        run.name = name
    return runs


def read_run(path: Path) -> Run:
    """Read the run of a work_dir or of a file; it has the config's name."""
    logs, records = join({log: read_records(log) for log in find_logs(path)})
    if not records:
        raise ConfigError(f'{path}: nothing was trained, there is no curve')
    name = config_name(path, logs[-1])
    curves, validated = curves_of(records)
    return Run(path, name, name, logs, curves, validated)


def find_logs(path: Path) -> list[Path]:
    """Return the log files of a work_dir, oldest first, or the file itself."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f'no run {path}')
    logs = sorted(path.glob(f'*/{LOG}'))
    if not logs:
        raise ConfigError(f'{path}: no run in it, which would be a */{LOG}')
    return logs


def read_records(path: Path) -> list[dict]:
    """Return the records of a log, but for one cut off at the end.

    Raises:
        ConfigError: If it is no such log.
    """
    records = []
    lines = path.read_text(errors='replace').splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            if number == len(lines) > 1:  # still being written, or killed
                break
            record = None
        if not isinstance(record, dict) or 'step' not in record:
            raise ConfigError(
                f'{path}: line {number} is no record of a log of mmengine'
            )
        records.append(record)
    return records


def is_training(record: dict) -> bool:
    """Tell the record of an iteration from that of a validation."""
    return 'iter' in record


def join(logs: dict[Path, list[dict]]) -> tuple[list[Path], list[dict]]:
    """Return the newest run, with those that it has resumed.

    Args:
        logs: File -> records, oldest first. One without any training counts
            for nothing: that is a run that was found complete.

    Returns:
        Its files and its records. What a run did after the checkpoint from
        which it was resumed is left out.
    """
    files: list[Path] = []
    joined: list[dict] = []
    for file, records in logs.items():
        steps = [r['step'] for r in records if is_training(r)]
        if not steps:
            continue
        kept = until(joined, steps[0]) if is_resumed(steps, joined) else []
        files = [*files, file] if kept else [file]
        joined = kept + records
    return files, joined


def is_resumed(steps: list[int], before: list[dict]) -> bool:
    """Tell a resumed run from a new one by the iterations that it logged.

    A new one logs for the first time after no more iterations than lie between
    two of its records, a resumed one after more.

    Args:
        steps: Of the run.
        before: Records of the run before it.
    """
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    # One that stopped after a single record is compared with the first.
    gaps = gaps or [r['step'] for r in before[:1] if is_training(r)]
    return bool(gaps) and steps[0] > max(gaps)


def until(records: list[dict], step: int) -> list[dict]:
    """Return the records before the training reached an iteration."""
    return list(
        itertools.takewhile(
            lambda r: not is_training(r) or r['step'] < step, records
        )
    )


def curves_of(
    records: Iterable[dict],
) -> tuple[dict[str, list[Point]], set[str]]:
    """Sort records by what they tell of; return curves and validated keys."""
    trained: dict[str, list[Point]] = {}
    validated: dict[str, list[Point]] = {}
    iteration, epoch = 0, None
    for record in records:
        if is_training(record):
            iteration, epoch = record['step'], record.get('epoch')
            add(trained, record, 'train/', iteration, epoch)
            continue
        step = record['step']
        # It is the epoch, or the iteration where these are counted.
        if epoch is not None and step <= epoch:
            add(validated, record, 'val/', iteration, step)
        else:
            add(validated, record, 'val/', step, None)
    own = {
        f'val/{key}' if key in trained else key: points
        for key, points in validated.items()
    }
    return {**trained, **own}, set(own)


def add(
    curves: dict[str, list[Point]],
    record: dict,
    prefix: str,
    iteration: int,
    epoch: int | None,
) -> None:
    """Append the numbers of a record to the curves."""
    for key, value in record.items():
        if key in ('epoch', 'iter', 'step'):
            continue
        if isinstance(value, (int, float)):
            # Where log_with_hierarchy is set the keys have the prefix.
            points = curves.setdefault(key.removeprefix(prefix), [])
            points.append(Point(iteration, epoch, float(value)))


# -------------------------------------------------------------------- naming


def config_name(path: Path, log: Path) -> str:
    """Return the name of the config of a run.

    Args:
        path: Its work_dir, or its log itself.
        log: Its last log.
    """
    if log.parent.name != 'vis_data':  # a file that was moved
        own = log.stem
        return log.resolve().parent.name if own == 'scalars' else own
    folder = log.resolve().parents[1]
    configs = sorted(folder.parent.glob('*.py'))
    if len(configs) == 1:
        return configs[0].stem
    told = re.search(
        rf'Exp name: (.+)_{re.escape(folder.name)}$', text_log(log), re.M
    )
    return told[1] if told else folder.parent.name


def text_log(log: Path) -> str:
    """Return what a run has printed; nothing if that is not kept."""
    folder = log.resolve().parents[1]
    try:
        return (folder / f'{folder.name}.log').read_text(errors='replace')
    except FileNotFoundError:
        return ''


def distinct_names(runs: Sequence[Run]) -> list[str]:
    """Return the configs' names, with the folder where several have one."""
    times = Counter(run.config for run in runs)
    names = []
    for run in runs:
        if times[run.config] > 1:
            others = [r for r in runs if r.config == run.config]
            names.append(f'{run.config} ({place(run, others)})')
        else:
            names.append(run.config)
    return names


def place(run: Run, others: Sequence[Run]) -> str:
    """Return where a run is, below the folder that it shares with others."""
    common = os.path.commonpath([other.path.resolve() for other in others])
    relative = run.path.resolve().relative_to(common)
    kept = [part for part in relative.parts if part not in LOG.split('/')]
    return '/'.join(kept) or Path(common).name


# ---------------------------------------------------------------- describing


def main_scores(run: Run) -> list[str]:
    """Return the keys of a run's scores, the most telling first."""
    known = [key for key in SCORES if key in run.validated]
    if known:
        return known
    return sorted(k for k in run.validated if not k.endswith('time'))


def best(run: Run, key: str) -> Point | None:
    """Return the best value of a score, the first of equals.

    The highest, but of a loss the lowest. None if it is no number ever.
    """
    points = [p for p in run.curves.get(key, ()) if math.isfinite(p.value)]
    sign = -1 if 'loss' in key else 1
    return max(points, key=lambda p: sign * p.value, default=None)


def mean_time(run: Run) -> float | None:
    """Return the seconds of an iteration, on average over the training."""
    points = run.curves.get('time')
    return statistics.fmean(p.value for p in points) if points else None


def describe(run: Run) -> str:
    """Return a line on a run: time of an iteration, best score and when."""
    seconds = mean_time(run)
    parts = [] if seconds is None else [f'{seconds:.3f} s an iteration']
    for key in main_scores(run)[:1]:
        if point := best(run, key):
            parts.append(f'best {key} {shown(key, point.value)} at {point}')
    if len(parts) < 2:
        parts.append('no time' if seconds is None else 'no score')
    if len(run.logs) > 1:
        parts.append(f'{len(run.logs)} logs joined')
    return f'{run.name}: {", ".join(parts)}'


def shown(key: str, score: float) -> str:
    """Write a score with as many decimals as it deserves."""
    return f'{score:.{SCORES.get(key, 3 if abs(score) <= 1 else 2)}f}'


def all_keys(runs: Sequence[Run]) -> list[str]:
    """Return the keys of all runs, in the order in which they came."""
    return list(dict.fromkeys(key for run in runs for key in run.curves))


def is_loss(key: str) -> bool:
    """Tell a loss, also of a part of the model, such as decode.loss_ce."""
    return key.rpartition('.')[2].startswith('loss')


def choose_keys(runs: Sequence[Run], wanted: Sequence[str] = ()) -> list[str]:
    """Return which keys to draw.

    Args:
        runs: What there is to choose from.
        wanted: Keys, or patterns like ``loss_*``; none for the usual ones.

    Raises:
        ConfigError: If no run has one of them.
    """
    keys = all_keys(runs)
    if not wanted:
        scores = dict.fromkeys(k for run in runs for k in main_scores(run))
        losses = [key for key in keys if is_loss(key) and key != 'loss']
        usual = ['loss', *scores, *losses, *OTHERS]
        return [key for key in usual if key in keys] or keys
    chosen = []
    for word in wanted:
        found = [word] if word in keys else []
        found = found or [key for key in keys if fnmatchcase(key, word)]
        if not found:
            raise ConfigError(
                f'--keys {word}: no run has it; there are {", ".join(keys)}'
            )
        chosen += found
    return list(dict.fromkeys(chosen))


# ------------------------------------------------------------------- drawing


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Return the means over ``width`` values around each.

    Near the ends over as many on both sides as there are.
    """
    means = []
    for index in range(len(values)):
        reach = min(width // 2, index, len(values) - 1 - index)
        means.append(
            statistics.fmean(values[index - reach : index + reach + 1])
        )
    return means


def draw(runs: Sequence[Run], keys: Sequence[str], smooth: int = 1) -> Figure:
    """Draw a panel for each key, with a curve for each run that has it."""
    columns = min(3, len(keys))
    lines = math.ceil(len(keys) / columns)
    # Of wide names fewer stand beside each other.
    widest = max(len(run.name) for run in runs)
    beside = max(1, min(len(runs), columns * 50 // (widest + 8)))
    legend = math.ceil(len(runs) / beside)
    figure = Figure(
        figsize=(4 * columns, 2.7 * lines + 0.2 * legend + 0.2),
        layout='constrained',
    )
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    handles = {}
    for panel, key in itertools.zip_longest(panels, keys):
        if key is None:
            panel.remove()
            continue
        handles.update(draw_panel(panel, runs, key, smooth))
    figure.legend(
        [handles[i] for i in sorted(handles)],
        [plain(runs[i].name) for i in sorted(handles)],
        loc='outside lower center',
        ncols=beside,
        frameon=False,
    )
    return figure


def draw_panel(
    panel: Axes, runs: Sequence[Run], key: str, smooth: int
) -> dict:
    """Draw the curves of a key; return the lines by index of their runs."""
    having = [run for run in runs if key in run.curves]
    of_validation = any(key in run.validated for run in having)
    by_epoch = of_validation and all(
        point.epoch is not None for run in having for point in run.curves[key]
    )
    width = 1 if of_validation or key in EXACT else smooth
    handles = {}
    for index, run in enumerate(runs):
        points = run.curves.get(key)
        if not points:
            continue
        x = [p.epoch if by_epoch else p.iteration for p in points]
        y = [p.value for p in points]
        style = dict(
            color=color(index, len(runs)),
            marker='.' if of_validation or len(points) == 1 else '',
        )
        if width > 1:
            panel.plot(x, y, lw=0.6, alpha=0.3, **style)
        handles[index] = panel.plot(x, smoothed(y, width), lw=1.3, **style)[0]
    panel.set_title(plain(key), fontsize='medium')
    panel.set_xlabel('epoch' if by_epoch else 'iteration')
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panel.grid(alpha=0.25)
    panel.spines[['top', 'right']].set_visible(False)
    return handles


def color(index: int, number: int) -> tuple[float, ...]:
    """Return a colour of a run's own, as long as there are some."""
    colors = colormaps['tab10' if number <= 10 else 'tab20'].colors
    return colors[index % len(colors)]


def plain(text: str) -> str:
    """Return a text that matplotlib shows as it is.

    It takes what stands between two dollars for a formula, and before version
    3.10 leaves out of a legend what starts with an underscore.
    """
    text = text.replace('$', r'\$')
    return f' {text}' if text.startswith('_') else text


def picture(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format='png', dpi=100)
    return file.getvalue()


def table(runs: Sequence[Run], keys: Sequence[str]) -> bytes:
    """Return the curves as CSV, a line for each value, nothing smoothed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(COLUMNS)
    for run in runs:
        for key in keys:
            for iteration, epoch, value in run.curves.get(key, ()):
                row = [run.name, key, iteration, epoch, value]
                writer.writerow('' if cell is None else cell for cell in row)
    return text.getvalue().encode()


# -------------------------------------------------------------- command line


def check_output(option: str, path: Path | None, suffix: str) -> None:
    """Refuse a file that cannot be written, before any work.

    Args:
        option: What has named it.
        path: The file; None for none.
        suffix: How its name has to end, as nothing else will be written.

    Raises:
        ConfigError: If it ends otherwise, or is in no folder.
    """
    if path is None:
        return
    if path.suffix.lower() != suffix or path.is_dir():
        raise ConfigError(f'{option} {path}: must be a file, *{suffix}')
    if not path.absolute().parent.is_dir():
        raise ConfigError(f'{option} {path}: there is no such folder')


def write(path: Path, content: bytes) -> None:
    """Write a file at once or not at all."""
    new = path.with_name(f'.{path.name}.new')
    new.write_bytes(content)
    new.replace(path)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for choosing runs and curves."""
    parser.add_argument(
        'runs',
        nargs='+',
        type=Path,
        metavar='RUN',
        help='Folders of runs (work_dirs), or their scalars.json.',
    )
    parser.add_argument(
        '--legend',
        nargs='+',
        metavar='NAME',
        help='Names of the runs. Default: those of their configs.',
    )
    parser.add_argument(
        '--keys',
        nargs='+',
        default=(),
        metavar='KEY',
        help="What to draw; 'loss_*' stands for all that begin so. Default: "
        'losses, scores, lr, time and memory.',
    )
    parser.add_argument(
        '--smooth',
        type=int,
        default=1,
        metavar='N',
        help='Draw losses and the like as means over N records, with the '
        'records themselves in the background. Default: %(default)s.',
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_arguments(parser)
    parser.add_argument(
        '--out', type=Path, metavar='FILE', help='File for the plot, a PNG.'
    )
    parser.add_argument(
        '--csv',
        type=Path,
        metavar='FILE',
        help='File for the values, as they were logged.',
    )
    return parser.parse_args(argv)


def check_run_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for what cannot be done, before any work."""
    if args.smooth < 1:
        raise ConfigError(f'--smooth {args.smooth}: must be at least 1')
    if args.legend and len(set(args.legend)) < len(args.legend):
        raise ConfigError('--legend: two runs have the same name')


def main() -> None:
    """Describe the runs, and write what is asked for."""
    args = parse_args()
    with one_line_errors():
        check_run_arguments(args)
        check_output('--out', args.out, '.png')
        check_output('--csv', args.csv, '.csv')
        runs = read_runs(args.runs, args.legend)
        keys = choose_keys(runs, args.keys)
    for run in runs:
        print(describe(run))
    if args.csv:
        write(args.csv, table(runs, keys))
    if args.out:
        write(args.out, picture(draw(runs, keys, args.smooth)))


if __name__ == '__main__':
    main()
