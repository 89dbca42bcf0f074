# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Write one HTML page on a set of training runs, complete in itself.

A table of scores and costs to sort, curves, pictures of results, and for each
run its environment, its config and the commands that repeat it. The page
needs nothing beside it: it can be mailed, archived, or kept as an artifact::

    python tools/analysis_tools/report.py work_dirs/* --out report.html

A run is what it is for plot_logs.py. Pictures are those in folders of the
work_dir, as tools/demo.py leaves them, or of the folder that --pictures
names, such as one of tools/infer.py or tools/test.py --show-dir.
"""

import argparse
import base64
import hashlib
import html
import io
import os
import re
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from get_flops import quiet
from mmengine.config import Config
from PIL import Image
from plot_logs import (
    Run,
    add_run_arguments,
    best,
    check_output,
    check_run_arguments,
    choose_keys,
    draw,
    main_scores,
    mean_time,
    read_runs,
    shown,
    text_log,
    write,
)

from mmattn.engine import one_line_errors, read_config
from mmattn.engine.cost import Cost, build_model, count, default_shape
from mmattn.engine.safety import add_safe_config_argument
from mmattn.errors import ConfigError

SUFFIXES = ('.png', '.jpg', '.jpeg')
SIDE = 640  # of a picture, in px; larger ones are scaled down

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2024;
  --soft: #60646c; --line: #d9dce1; --panel: #f5f6f8; --mark: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --back: #15171a;
  --text: #e6e8eb; --soft: #a3a8b0; --line: #363b42; --panel: #1f2226;
  --mark: #7db8f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem 1.5rem 4rem;
  background: var(--back); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; }
h2, tbody th, dd, figcaption { overflow-wrap: anywhere; }
a { color: var(--mark); }
.soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .5rem; }
th, td { padding: .4rem .5rem; border-bottom: 1px solid var(--line);
  text-align: left; }
thead th { padding: 0; vertical-align: bottom; }
tbody th { font-weight: normal; min-width: 13rem; }
td { white-space: nowrap; }
td.number, th.number button { text-align: right;
  font-variant-numeric: tabular-nums; }
td.best { font-weight: bold; }
tbody tr:hover { background: var(--panel); }
th button { width: 100%; font: inherit; font-weight: 600; color: inherit;
  text-align: left; background: none; border: 0; padding: .4rem .5rem;
  cursor: pointer; }
th button:hover { background: var(--panel); }
th button::after { content: "\\2195"; padding-left: .35em; opacity: .35; }
th[aria-sort] button::after { opacity: 1; color: var(--mark); }
th[aria-sort="ascending"] button::after { content: "\\2191"; }
th[aria-sort="descending"] button::after { content: "\\2193"; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: -2px; }
.curves svg { display: block; width: 100%; height: auto; }
.curves svg text { fill: currentColor; }
dl { display: grid; grid-template-columns: max-content 1fr;
  gap: .15rem 1rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; }
pre { background: var(--panel); border: 1px solid var(--line);
  border-radius: .3rem; padding: .7rem .9rem; margin: .4rem 0;
  overflow-x: auto; font-size: .85rem; line-height: 1.45; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
details pre { max-height: 30rem; overflow: auto; }
details { margin: .6rem 0; }
summary { cursor: pointer; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; max-width: 20rem; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; color: var(--soft); }
@media print { th button::after { content: ""; } }
"""

SCRIPT = """
'use strict';
const table = document.querySelector('table');
const heads = [...table.tHead.rows[0].cells];
const body = table.tBodies[0];
const text = new Intl.Collator('en', {numeric: true});

function sort(head) {
  const column = heads.indexOf(head);
  const first = head.dataset.first;
  const other = first === 'ascending' ? 'descending' : 'ascending';
  const order = head.ariaSort === first ? other : first;
  const sign = order === 'ascending' ? 1 : -1;
  const value = (row) => row.cells[column].dataset.value;
  const compare = head.classList.contains('number')
    ? (a, b) => Number(a) - Number(b) : text.compare;
  // Cells without a value stay last, whatever the order.
  const rows = [...body.rows].sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    if (!left || !right) return Boolean(right) - Boolean(left);
    return sign * compare(left, right);
  });
  body.append(...rows);
  heads.forEach((other) => other.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', order);
}

for (const head of heads) {
  head.firstElementChild.addEventListener('click', () => sort(head));
}
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1></header>
<main>
{main}
</main>
<script>{script}</script>
</body>
</html>
"""


@dataclass
class Entry:
    """What the page tells of a run.

    Args:
        run: Its logs.
        environment: What mmengine has logged of the machine.
        config_file: The file of its resolved config, if that is kept.
        config: The config itself, if it can be read.
        first_config: That of the run that was resumed, else the same.
        cost: What the model costs, if that can be counted.
        shape: Height and width of the image for which it is counted.
        notes: What is missing, and why.
        pictures: Of its results.
    """

    run: Run
    environment: str = ''
    config_file: Path | None = None
    config: Config | None = None
    first_config: Config | None = None
    cost: Cost | None = None
    shape: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)
    pictures: list['Picture'] = field(default_factory=list)

    @property
    def folder(self) -> Path | None:
        """The work_dir, if the log lies in one."""
        log = self.run.logs[-1]
        if self.run.path.is_dir():
            named = self.run.path.name not in ('', '..')
            return self.run.path if named else self.run.path.resolve()
        if log.parent.name != 'vis_data':
            return None
        return Path(os.path.relpath(log.resolve().parents[2]))

    @property
    def begun(self) -> str:
        """When it was started first, as far as its folder tells."""
        stamp = self.run.logs[0].resolve().parents[1].name
        if not re.fullmatch(r'\d{8}_\d{6}', stamp):
            return ''
        day, clock = stamp[:8], stamp[9:13]
        return f'{day[:4]}-{day[4:6]}-{day[6:]} {clock[:2]}:{clock[2:]}'


class Picture(NamedTuple):
    """A picture as it goes into the page."""

    name: str
    uri: str


class Column(NamedTuple):
    """A column of the table of runs.

    Args:
        title: Its head.
        values: One a run; None where there is none.
        texts: The same as shown.
        first: The order that the first click gives.
        best: Which of the values is the best, if that can be said.
    """

    title: str
    values: Sequence[Any]
    texts: Sequence[str]
    first: str = 'ascending'
    best: float | None = None


# ---------------------------------------------------------------- collecting


def collect(
    run: Run, shape: tuple[int, int] | None, costs: dict[str, Any]
) -> Entry:
    """Gather what is known of a run, but for its pictures.

    Args:
        run: The run.
        shape: Height and width of the image for which costs are counted.
        costs: What is counted already; seeds share a model.
    """
    entry = Entry(run)
    entry.environment = environment(text_log(run.logs[0]))
    entry.config_file = config_file(entry)
    entry.config = read(run.logs[-1], entry)
    if entry.config is None:
        return entry
    resumed = len(run.logs) > 1
    entry.first_config = read(run.logs[0], entry) if resumed else entry.config
    model = repr(entry.config.get('model'))
    if model not in costs:
        costs[model] = count_model(entry.config, shape)
    found = costs[model]
    if isinstance(found, str):
        entry.notes.append(f'parameters and FLOPs were not counted: {found}')
    else:
        entry.cost, entry.shape = found
    return entry


def environment(log: str) -> str:
    """Return the block on the environment of what mmengine has logged."""
    rule = r'^-{20,}$'
    block = re.search(
        rf'{rule}\n(System environment:\n.*?)\n{rule}', log, re.M | re.S
    )
    return block[1] if block else ''


def config_file(entry: Entry) -> Path | None:
    """Return the resolved config of a run, by its own name if that is kept.

    The work_dir has it by that name, but of the last run in it, which may
    have been one of tools/test.py with other settings.
    """
    used = entry.run.logs[-1].with_name('config.py')
    if not used.is_file() or entry.folder is None:
        return None
    named = entry.folder / f'{entry.run.config}.py'
    same = named.is_file() and named.read_bytes() == used.read_bytes()
    return named if same else Path(os.path.relpath(used))


def read(log: Path, entry: Entry) -> Config | None:
    """Return the config that lies beside a log, if it can be read."""
    try:
        return read_config(str(log.with_name('config.py')))
    except Exception as error:  # whatever the modules it imports raise
        note = f'the config was not read: {one_line(error)}'
        if note not in entry.notes:
            entry.notes.append(note)
        return None


def count_model(
    cfg: Config, shape: tuple[int, int] | None
) -> tuple[Cost, tuple[int, int]] | str:
    """Return the cost of a config's model and for which shape, or why not."""
    try:
        with quiet():
            model = build_model(cfg)
            shape = shape or default_shape(model)
            return count(model, shape), shape
    except Exception as error:  # whatever a model's own code raises
        return one_line(error)


def one_line(error: Exception) -> str:
    """Return the first line of an error's message, or else its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint to test: the best one kept, else the last."""
    kept = sorted(folder.glob('best_*.pth'), key=lambda p: p.stat().st_mtime)
    if kept:
        return kept[-1]
    last = folder / 'last_checkpoint'
    if last.is_file():
        # What is written there is where it was, not where it may be now.
        path = folder / Path(last.read_text().strip()).name
        return path if path.is_file() else None
    return None


# ------------------------------------------------------------------ commands


def commands(entry: Entry) -> list[tuple[str, str]]:
    """Return what repeats a run: the purpose and the command of each."""
    if entry.config_file is None:
        return []
    config, folder = str(entry.config_file), entry.folder
    train = ['python', 'tools/train.py', config]
    cfg = entry.config or Config()
    if cfg.get('launcher', 'none') != 'none':
        number = re.search(r'GPU number: (\d+)', entry.environment)
        processes = number[1] if number else '1'
        train = ['bash', 'tools/dist_train.sh', config, processes]
    train += ['--work-dir', f'{folder}-again']
    if options := overrides(entry):
        train += ['--cfg-options', *options]
    found = [('Train', shlex.join(train))]
    if weights := checkpoint(folder):
        test = ['python', 'tools/test.py', config, str(weights)]
        test += ['--work-dir', str(folder / 'test')]
        found.append(('Test', shlex.join(test)))
    return found


def overrides(entry: Entry) -> list[str]:
    """Return the settings by which a run starts as it did the first time."""
    if entry.config is None or entry.first_config is None:
        return []
    cfg, options = entry.config, []
    if cfg.get('resume'):
        options.append('resume=False')
    start = entry.first_config.get('load_from')
    if not entry.first_config.get('resume') and start != cfg.get('load_from'):
        options.append(f'load_from={start}')
    drawn = re.search(r'^ *seed: (\d+)$', entry.environment, re.M)
    if drawn and (cfg.get('randomness') or {}).get('seed') is None:
        options.append(f'randomness.seed={drawn[1]}')
    return options


# ------------------------------------------------------------------ pictures


def add_pictures(
    entries: Sequence[Entry], named: Sequence[str], limit: int
) -> None:
    """Give every run its pictures.

    Args:
        entries: The runs.
        named: NAME=FOLDER of those whose pictures are elsewhere.
        limit: Number of pictures a run at most.

    Raises:
        ConfigError: If there is no such run, or no picture in a folder.
    """
    folders = {}
    names = [entry.run.name for entry in entries]
    for word in named:
        # Both may have a = of their own.
        name = next((n for n in names if word.startswith(f'{n}=')), None)
        if name is None:
            raise ConfigError(
                f'--pictures {word}: must be NAME=FOLDER with one of the '
                f'names {", ".join(names)}'
            )
        folder = Path(word[len(name) + 1 :])
        if not (files := find_pictures(folder, '*')):
            raise ConfigError(f'--pictures {folder}: no PNG or JPEG in it')
        folders[name] = files
    for entry in entries:
        files = folders.get(entry.run.name)
        if files is None and entry.folder:
            files = find_pictures(entry.folder, '*/**/*')
        for file in (files or [])[:limit]:
            try:
                entry.pictures.append(Picture(file.name, data_uri(file)))
            except OSError as error:
                note = f'{file} is no picture: {one_line(error)}'
                entry.notes.append(note)


def find_pictures(folder: Path, pattern: str) -> list[Path]:
    """Return the pictures of a folder, sorted."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )


def data_uri(path: Path) -> str:
    """Return a picture as it can stand in a page, scaled down if large.

    Raises:
        OSError: If it is none.
    """
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        kind = image.format
        image.load()
        if max(image.size) > SIDE:
            image.thumbnail((SIDE, SIDE))
            scaled = io.BytesIO()
            image.save(scaled, format=kind)
            content = scaled.getvalue()
    text = base64.b64encode(content).decode()
    return f'data:image/{kind.lower()};base64,{text}'


# --------------------------------------------------------------------- table


def columns(entries: Sequence[Entry]) -> list[Column]:
    """Return the columns of the table, but for the names of the runs."""
    runs = [entry.run for entry in entries]
    keys = dict.fromkeys(key for run in runs for key in main_scores(run))
    found = [score_column(key, runs) for key in keys]
    points = [
        next(filter(None, (best(run, k) for k in main_scores(run))), None)
        for run in runs
    ]
    found.append(
        Column(
            'best at',
            [p and (p.epoch or p.iteration) for p in points],
            [p and str(p) for p in points],
        )
    )
    costs = [entry.cost for entry in entries]
    memory = [
        max((p.value for p in run.curves.get('memory', ())), default=None)
        for run in runs
    ]
    found += [
        number('parameters, M', [c and c.params for c in costs], 1e6, 2),
        number('FLOPs, G', [c and c.flops for c in costs], 1e9, 2),
        number('s/iteration', [mean_time(run) for run in runs], 1, 3),
        number('memory, MiB', memory, 1, 0),
    ]
    return [column for column in found if any(column.texts)]


def score_column(key: str, runs: Sequence[Run]) -> Column:
    """Return the column of a score, each run's best."""
    points = [best(run, key) for run in runs]
    values = [point and point.value for point in points]
    low = 'loss' in key
    there = [value for value in values if value is not None]
    return Column(
        key,
        values,
        [value is not None and shown(key, value) for value in values],
        'ascending' if low else 'descending',
        (min if low else max)(there, default=None),
    )


def number(
    title: str, values: Sequence[float | None], unit: float, digits: int
) -> Column:
    """Return a column of numbers, shown in a unit."""
    texts = [
        value is not None and f'{value / unit:,.{digits}f}' for value in values
    ]
    return Column(title, values, texts)


# ---------------------------------------------------------------------- HTML


def esc(text: object) -> str:
    """Return a text as it stands in HTML, also in an attribute."""
    return html.escape(str(text))


def table(entries: Sequence[Entry]) -> str:
    """Return the table of runs."""
    found = columns(entries)
    heads = [head('run', 'text', 'ascending')]
    heads += [head(c.title, 'number', c.first) for c in found]
    heads.append(head('begun', 'text', 'ascending'))
    rows = []
    for index, entry in enumerate(entries):
        name = esc(entry.run.name)
        cells = [
            f'<th scope="row" data-value="{name}">'
            f'<a href="#run-{index + 1}">{name}</a></th>'
        ]
        cells += [cell(column, index) for column in found]
        begun = esc(entry.begun)
        cells.append(f'<td data-value="{begun}">{begun}</td>')
        rows.append(f'<tr>{"".join(cells)}</tr>')
    lines = '\n'.join(rows)
    return (
        '<div class="scroll" role="region" aria-label="Runs" tabindex="0">\n'
        '<table>\n<caption>Scores are the best of all validations, bold the '
        'best of all runs. A click on a head sorts.</caption>\n'
        f'<thead><tr>{"".join(heads)}</tr></thead>\n'
        f'<tbody>\n{lines}\n</tbody>\n</table>\n</div>'
    )


def head(title: str, kind: str, first: str) -> str:
    """Return the head of a column, a button that sorts."""
    return (
        f'<th scope="col" class="{kind}" data-first="{first}">'
        f'<button type="button">{esc(title)}</button></th>'
    )


def cell(column: Column, index: int) -> str:
    """Return a cell with its value, or an empty one."""
    value, text = column.values[index], column.texts[index]
    if not text:
        return '<td class="number"></td>'
    kind = 'number best' if value == column.best else 'number'
    return f'<td class="{kind}" data-value="{value}">{esc(text)}</td>'


def curves(runs: Sequence[Run], keys: Sequence[str], smooth: int) -> str:
    """Return the curves, drawn in the colour of the page's text."""
    file = io.StringIO()
    settings = {'svg.fonttype': 'none', 'svg.hashsalt': 'mmattn'}
    with matplotlib.rc_context(settings):
        figure = draw(runs, keys, smooth)
        figure.patch.set_visible(False)
        for panel in figure.axes:
            panel.patch.set_visible(False)
        about = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
        figure.savefig(file, format='svg', metadata=about)
    text = file.getvalue()
    svg = text[text.index('<svg') :].replace('#000000', 'currentColor')
    label = esc(f'Curves of {", ".join(keys)}')
    svg = svg.replace('<svg', f'<svg role="img" aria-label="{label}"', 1)
    return f'<div class="curves">\n{svg}</div>'


def section(index: int, entry: Entry) -> str:
    """Return the part of the page on one run."""
    run = entry.run
    logs = ', '.join(str(log) for log in run.logs)
    facts = {
        'config': run.config,
        'begun': entry.begun,
        'logs': f'{logs} (resumed, joined)' if len(run.logs) > 1 else logs,
    }
    if entry.cost:
        facts['FLOPs'] = (
            f'multiply-adds of one image of {entry.shape[0]} x '
            f'{entry.shape[1]} pixels: {entry.cost.flops:,}'
        )
        facts['parameters'] = f'{entry.cost.params:,}'
    if entry.notes:
        facts['notes'] = '; '.join(entry.notes)
    listed = ''.join(
        f'<dt>{esc(name)}</dt><dd>{esc(fact)}</dd>\n'
        for name, fact in facts.items()
        if fact
    )
    parts = [
        f'<section id="run-{index}">\n<h2>{esc(run.name)}</h2>',
        f'<dl>\n{listed}</dl>',
        *(
            f'<h3>{title}</h3>\n<pre class="command"><code>{esc(words)}</code>'
            '</pre>'
            for title, words in commands(entry)
        ),
        figures(entry),
        folded('Environment', textwrap.dedent(entry.environment)),
        folded('Config', config_text(entry)),
    ]
    return '\n'.join(filter(None, parts)) + '\n</section>'


def config_text(entry: Entry) -> str:
    """Return the resolved config as mmengine has written it."""
    file = entry.config_file
    return file.read_text(errors='replace') if file else ''


def folded(title: str, text: str) -> str:
    """Return a text that is shown on demand; nothing if there is none."""
    if not text:
        return ''
    return (
        f'<details><summary>{title}</summary>\n'
        f'<pre tabindex="0"><code>{esc(text)}</code></pre></details>'
    )


def figures(entry: Entry) -> str:
    """Return the pictures of a run; nothing if there are none."""
    if not entry.pictures:
        return ''
    listed = '\n'.join(
        f'<figure><img src="{esc(picture.uri)}" alt="'
        f'{esc(f"Result of {entry.run.name} for {picture.name}")}">'
        f'<figcaption>{esc(picture.name)}</figcaption></figure>'
        for picture in entry.pictures
    )
    return f'<h3>Pictures</h3>\n<div class="pictures">\n{listed}\n</div>'


def page(title: str, entries: Sequence[Entry], drawn: str) -> str:
    """Return the page.

    Args:
        title: Of the page.
        entries: The runs.
        drawn: The curves, as HTML.
    """
    digest = hashlib.sha256(SCRIPT.encode()).digest()
    return PAGE.format(
        title=esc(title),
        style=STYLE,
        script=SCRIPT,
        # Nothing is loaded, and no script runs but the page's own.
        policy="default-src 'none'; img-src data:; style-src 'unsafe-inline';"
        f" script-src 'sha256-{base64.b64encode(digest).decode()}'",
        main='\n'.join(
            [
                table(entries),
                f'<section>\n<h2>Curves</h2>\n{drawn}</section>',
                *(section(i, entry) for i, entry in enumerate(entries, 1)),
            ]
        ),
    )


# -------------------------------------------------------------- command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_arguments(parser)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('report.html'),
        metavar='FILE',
        help='File for the page. Default: %(default)s.',
    )
    parser.add_argument(
        '--title',
        default='Training runs',
        help='Title of the page. Default: %(default)s.',
    )
    parser.add_argument(
        '--pictures',
        nargs='+',
        default=(),
        metavar='NAME=FOLDER',
        help='Folders of pictures, by the names of the runs in the legend. '
        "Default: those in the runs' folders.",
    )
    parser.add_argument(
        '--show-limit',
        type=int,
        default=6,
        metavar='N',
        help='Number of pictures a run at most. Default: %(default)s.',
    )
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        metavar='SIZE',
        help='Image for which FLOPs are counted, as in get_flops.py.',
    )
    add_safe_config_argument(parser)
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Raise ConfigError for what cannot be done, before any work."""
    check_run_arguments(args)
    check_output('--out', args.out, '.html')
    if args.show_limit < 0:
        raise ConfigError(f'--show-limit {args.show_limit}: must not be < 0')
    if args.shape and (len(args.shape) > 2 or min(args.shape) < 1):
        raise ConfigError(
            f'--shape {" ".join(map(str, args.shape))}: one or two sizes are '
            'wanted, height and width in pixels'
        )


def main() -> None:
    """Write the page."""
    args = parse_args()
    with one_line_errors():
        check_args(args)
        runs = read_runs(args.runs, args.legend)
        keys = choose_keys(runs, args.keys)
        # A single size stands for both.
        shape = args.shape and (args.shape[0], args.shape[-1])
        costs: dict[str, Any] = {}
        entries = [collect(run, shape, costs) for run in runs]
        add_pictures(entries, args.pictures, args.show_limit)
    for entry in entries:
        for note in entry.notes:
            print(f'{entry.run.name}: {note}')
    text = page(args.title, entries, curves(runs, keys, args.smooth))
    write(args.out, text.encode())
    print(f'{args.out}: {len(runs)} runs, {len(text) / 1e6:.1f} MB')


if __name__ == '__main__':
    main()
