# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Compare what the configs build, and score, with the papers' tables.

Builds the model of every row of configs/paper-tables.yml, without weights and
without data, and puts its parameters and FLOPs beside the printed ones. Scores
are those of runs in the work dirs; a row without one has none.
"""

import argparse
import csv
import html
import io
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import yaml
from tqdm import tqdm

from mmattn.engine import one_line_errors, read_config
from mmattn.engine.cost import Cost, build_model, count
from mmattn.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / 'configs'
TABLES = yaml.safe_load((CONFIGS / 'paper-tables.yml').read_text())
MASKS = (('gsca', 7), ('scsa', 6))  # the tables whose AP is that of masks
PREFACE = """# The papers' tables, printed and built

Written by `python tools/analysis_tools/paper_tables.py --out
docs/paper-tables.md` from `configs/paper-tables.yml`. "Printed" is the paper's
figure, "built" is what the config builds, counted without weights or data.
Scores are in percent: the paper's, and those of runs in `work_dirs`, the last
one and the best, where there are any.

FLOPs are multiply-adds of one image of 224 x 224 pixels (classifiers), 800 x
1280 (detectors) or 1024 x 2048 (UperNet), in the convention of
`mmengine.analysis`. "Above the baseline" is the difference from the row of the
same model without attention.
"""
NOTES = {
    ('gsca', 5): 'Parameters are those that training changes. The printed '
    'FLOPs are those of an older counter, 0.1% above.',
    ('scsa', 3): 'The printed FLOPs are averages over images of COCO; compare '
    'what is above the baseline.',
    ('scsa', 4): 'The paper names no detector, no splits and no classes: see '
    '[reproduction-notes.md](reproduction-notes.md).',
    ('scsa', 5): 'Parameters are those without the auxiliary head.',
}
METRICS = {
    'top1': 'accuracy/top1',
    'ap': 'coco/bbox_mAP',
    'miou': 'mIoU',
}
COLUMNS = {
    'row': '',
    'config': '',
    'params': 'parameters (M) printed',
    'built_params': 'built',
    'flops': 'FLOPs (G) printed',
    'built_flops': 'built',
    'added': 'above the baseline printed',
    'built_added': 'built',
    'score': 'score printed',
    'measured': 'measured here',
    'differs': 'why it differs',
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='PAPER/TABLE',
        help='Tables to compare, such as scsa/3. Default: all.',
    )
    parser.add_argument(
        '--format',
        choices=list(FORMATS),
        default='markdown',
        help='How to write them. Default: markdown.',
    )
    parser.add_argument('--out', help='File to write instead of printing.')
    parser.add_argument(
        '--work-dirs',
        default='work_dirs',
        help='Folder with a work dir for each config, by its name. Default: '
        'work_dirs.',
    )
    return parser.parse_args(argv)


def select(only: list[str] | None) -> list[tuple[str, int]]:
    """Return paper and number of the wanted tables, by default of all.

    Raises:
        ConfigError: If one does not exist.
    """
    known = {
        f'{p}/{n}': (p, n) for p, numbers in TABLES.items() for n in numbers
    }
    for name in only or ():
        if name not in known:
            raise ConfigError(
                f'--only {name}: no such table; there are {", ".join(known)}'
            )
    return [known[name] for name in only or known]


@cache
def cost_of(config: str) -> Cost:
    """Count the model of a config, on the images of its paper's FLOPs."""
    shape = (224, 224)
    if '_fpn_' in config:
        shape = (800, 1280)
    elif '_ade20k' in config:
        shape = (1024, 2048)
    return count(build_model(read_config(str(CONFIGS / config))), shape)


def title_of(paper: str, number: int) -> str:
    """Return the heading of a table."""
    return f'{paper.upper()}, table {number}'


def millions(paper: str, cost: Cost) -> float:
    """Return the parameters as a paper counts them."""
    if paper == 'gsca':
        return cost.trainable / 1e6
    auxiliary = cost.by_module.get('auxiliary_head')
    return (cost.params - (auxiliary.params if auxiliary else 0)) / 1e6


def baseline_of(config: str, rows: Iterable[dict]) -> dict | None:
    """Return the row of the same table and model without attention."""
    for row in rows:
        start, attention, end = row['config'].partition('-none')
        start = start.removeprefix('none/') + '-'
        name = Path(config).name
        if attention and name.startswith(start) and name.endswith(end):
            return row
    return None


def measured_score(work_dir: Path, metric: str) -> str:
    """Return the last and the best score of the runs in a work dir.

    Args:
        work_dir: A config's work dir.
        metric: Name of the score in the logs.

    Returns:
        Percent, such as ``'38.90 (best 39.10)'``; empty without a run.
    """
    scores = []
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        entries = map(json.loads, log.read_text().splitlines())
        scores += [entry[metric] for entry in entries if metric in entry]
    if metric.startswith('coco/'):
        scores = [100 * score for score in scores]
    if not scores:
        return ''
    best = f' (best {max(scores):.2f})' if max(scores) > scores[-1] else ''
    return f'{scores[-1]:.2f}{best}'


def compare(paper: str, number: int, row: dict, work_dirs: Path) -> dict:
    """Return the cells of a row, by the keys of :data:`COLUMNS`."""
    config = row['config']
    cells = {key: row.get(key, '') for key in COLUMNS}
    score = next((key for key in METRICS if key in row), None)
    if score:
        metric = METRICS[score]
        if (paper, number) in MASKS:
            metric = 'coco/segm_mAP'
        cells['score'] = row[score]
        work_dir = work_dirs / Path(config).stem
        cells['measured'] = measured_score(work_dir, metric)
    cost = cost_of(config)
    cells['built_params'] = f'{millions(paper, cost):.3f}'
    cells['built_flops'] = f'{cost.mmengine / 1e9:.2f}'
    base = baseline_of(config, TABLES[paper][number])
    if base is not None and base is not row:
        added = cost.mmengine - cost_of(base['config']).mmengine
        cells['built_added'] = f'{added / 1e9:.3f}'
        if 'flops' in row:
            cells['added'] = f'{row["flops"] - base["flops"]:.2f}'
    return cells


def write_markdown(tables: dict[str, list[dict]]) -> str:
    """Write the tables as Markdown, each under its title."""
    lines = [PREFACE]
    titles = [COLUMNS[key] or key for key in COLUMNS]
    notes = {title_of(*table): note for table, note in NOTES.items()}
    for title, rows in tables.items():
        lines += [f'## {title}', '']
        if title in notes:
            lines += [notes[title], '']
        lines += ['| ' + ' | '.join(titles) + ' |', '|---' * len(titles) + '|']
        for row in rows:
            lines.append('| ' + ' | '.join(map(str, row.values())) + ' |')
        lines.append('')
    return '\n'.join(lines[:-1]) + '\n'


def write_csv(tables: dict[str, list[dict]]) -> str:
    """Write the tables as one CSV, with the table in its first column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(['table', *COLUMNS])
    for title, rows in tables.items():
        writer.writerows([title, *row.values()] for row in rows)
    return out.getvalue()


def write_html(tables: dict[str, list[dict]]) -> str:
    """Write the tables as a page of HTML."""
    parts = ['<!doctype html>', '<meta charset="utf-8">']
    parts.append("<title>The papers' tables</title>")
    for title, rows in tables.items():
        cells = [[COLUMNS[key] or key for key in COLUMNS]]
        cells += [row.values() for row in rows]
        parts += [f'<h2>{html.escape(title)}</h2>', '<table border="1">']
        for line in cells:
            texts = (html.escape(str(cell)) for cell in line)
            parts.append('<tr><td>' + '<td>'.join(texts))
        parts.append('</table>')
    return '\n'.join(parts) + '\n'


FORMATS = dict(markdown=write_markdown, csv=write_csv, html=write_html)


def main() -> None:
    """Compare the tables."""
    args = parse_args()
    with one_line_errors():
        wanted = select(args.only)
        rows = [(p, n, row) for p, n in wanted for row in TABLES[p][n]]
        tables = {}
        for paper, number, row in tqdm(rows, desc='rows', delay=1):
            cells = compare(paper, number, row, Path(args.work_dirs))
            tables.setdefault(title_of(paper, number), []).append(cells)
    text = FORMATS[args.format](tables)
    if args.out is None:
        print(text, end='')
    else:
        partial = Path(f'{args.out}.part')
        partial.write_text(text)
        partial.replace(args.out)


if __name__ == '__main__':
    main()
