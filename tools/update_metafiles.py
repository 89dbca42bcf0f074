# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Write what can be computed of the configs' READMEs and metafiles anew.

The prose of a folder of configs stands in its README.md, written by hand.
From it, from the built models and from configs/paper-tables.yml come the table
between the README's marks, metafile.yml and model-index.yml. A score that was
measured is written by hand into metafile.yml, as `Metrics` of its task; it
stays there, and the table shows it.
"""

import argparse
import re
import warnings
from pathlib import Path

from mmengine import dump, load
from mmengine.registry import MODELS, DefaultScope
from tqdm import tqdm

from mmattn import __version__
from mmattn.engine import one_line_errors, read_config
from mmattn.errors import ConfigError

ROOT = Path(__file__).parents[1]
REMEDY = 'run python tools/update_metafiles.py'
MARKS = '<!-- configs -->', '<!-- end of configs -->'
HEADER = """\
# Written by tools/update_metafiles.py. What it leaves as it is: `Metrics` of a
# task, and keys that it does not write, such as `Weights`.
"""
# By the last part of a config's name, without a crop size.
DATASETS = {
    'ade20k': 'ADE20K',
    'coco': 'COCO',
    'digits': 'Digits',
    'digits-dark': 'Digits, dark',
    'digits-tiny': 'Digits, tiny',
    'exdark': 'ExDark',
    'flir': 'FLIR ADAS v2',
    'in1k': 'ImageNet-1k',
    'mini-imagenet': 'Mini-ImageNet',
    'visdrone': 'VisDrone2019-DET',
    'voc0712': 'Pascal VOC 2007 and 2012',
}
TASKS = {
    'mmdet': 'Object Detection',
    'mmpretrain': 'Image Classification',
    'mmseg': 'Semantic Segmentation',
}
PAPERS = {'gsca': "GSCA paper's", 'scsa': "SCSA paper's"}
# The one score of a row that the READMEs show, by its key.
SCORES = {'top1': 'top-1 {:.2f}', 'ap': 'box AP {:.1f}', 'miou': 'mIoU {:.2f}'}
MASK_TABLES = {('gsca', 7), ('scsa', 6)}
OTHER_KEYS = {
    'row', 'part', 'config', 'dataset', 'differs', 'params', 'flops',
    'top5', 'ap50', 'ap75', 'ap_s', 'ap_m', 'ap_l',
}  # fmt: skip
NOTES = """\
`parameters` counts all of the built model, frozen stages and auxiliary heads
included."""
PAPER_NOTES = """ The papers' columns repeat what they print, in percent; their
sizes and costs stand in [paper-tables.md](../../docs/paper-tables.md), beside
what is built. An empty cell under `measured`: not trained here."""


def folders() -> list[Path]:
    """Return the folders that hold configs to train, not parts of them."""
    paths = (ROOT / 'configs').iterdir()
    return sorted(p for p in paths if p.is_dir() and p.name != '_base_')


def configs_of(folder: Path) -> list[Path]:
    """Return a folder's configs by name, those of its subfolders last."""
    paths = folder.rglob('*.py')
    return sorted(paths, key=lambda path: (len(path.parts), path.stem))


def dataset_of(path: Path) -> str:
    """Return the data set that a config's name ends with.

    Raises:
        ConfigError: If this tool has no name for it.
    """
    key = re.sub(r'-\d+x\d+$', '', path.stem.split('_')[-1])
    if key not in DATASETS:
        raise ConfigError(
            f'{path.relative_to(ROOT)}: its name ends with {key!r}, not with '
            f'one of {", ".join(DATASETS)}; rename it or extend DATASETS in '
            'tools/update_metafiles.py'
        )
    return DATASETS[key]


def describe(path: Path, dataset: str) -> dict:
    """Build a config's model; return its metadata and results, unmeasured."""
    cfg = read_config(str(path))
    with (
        DefaultScope.overwrite_default_scope(cfg.default_scope),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')  # advice on training
        model = MODELS.build(cfg.model)
    loop = cfg.train_cfg
    length = (
        {'Epochs': loop.max_epochs}
        if 'max_epochs' in loop
        else {'Iterations': loop.max_iters}
    )
    size = sum(parameter.numel() for parameter in model.parameters())
    tasks = [TASKS[cfg.default_scope]]
    if getattr(model, 'with_mask', False):
        tasks.append('Instance Segmentation')
    return {
        'Metadata': {**length, 'Parameters': size},
        'Results': [{'Task': task, 'Dataset': dataset} for task in tasks],
    }


def recorded(folder: Path) -> dict[str, dict]:
    """Return the entries of a folder's metafile by name, none without it."""
    path = folder / 'metafile.yml'
    models = load(path)['Models'] if path.is_file() else ()
    return {model['Name']: model for model in models}


def with_metrics(new: dict, old: dict) -> dict:
    """Return a new entry with what was added by hand to the old one."""
    metrics = {
        (result['Task'], result['Dataset']): {'Metrics': result['Metrics']}
        for result in old.get('Results', ())
        if 'Metrics' in result
    }
    results = [
        {**result, **metrics.get((result['Task'], result['Dataset']), {})}
        for result in new['Results']
    ]
    added = {key: value for key, value in old.items() if key not in new}
    return {**new, 'Results': results, **added}


def collection(folder: Path) -> dict:
    """Return a folder's collection, as its README's first lines say.

    Raises:
        ConfigError: If there is no README, or it has no title or no marks.
    """
    path = folder / 'README.md'
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text() if path.is_file() else ''
    title = re.match(r'# (.+)\n', text)
    if not title or [text.count(mark) for mark in MARKS] != [1, 1]:
        raise ConfigError(
            f'{name}: must begin with "# Title" and hold {MARKS[0]} and '
            f'{MARKS[1]} once; the other folders show how'
        )
    entry = {'Name': title[1], 'README': name}
    paper = re.search(r'^> (?:\[(.+)\]\((\S+)\)|(.+))$', text, re.M)
    if paper:
        entry['Paper'] = {'Title': paper[1] or paper[3]}
        if paper[2]:
            entry['Paper']['URL'] = paper[2]
    code = re.search(r'\]\(\.\./\.\./(mmattn/\S+)\)', text)
    if code:
        entry['Code'] = {'URL': code[1], 'Version': f'v{__version__}'}
    return entry


def papers_scores() -> dict[str, dict[str, dict[str, list[str]]]]:
    """Return the papers' scores: config, paper, score -> its tables."""
    found = {}
    papers = load(ROOT / 'configs/paper-tables.yml')
    for paper, tables in papers.items():
        for table, rows in tables.items():
            for row in rows:
                score = main_score(row)
                if not score:  # a row of sizes alone
                    continue
                if (paper, table) in MASK_TABLES:
                    score = score.replace('box', 'mask')
                cells = found.setdefault(row['config'], {})
                numbers = cells.setdefault(paper, {}).setdefault(score, [])
                numbers.append(f'{table}{row.get("part", "")}')
    return found


def main_score(row: dict) -> str:
    """Return a row's score with its name and what it was taken under."""
    named = [text.format(row[k]) for k, text in SCORES.items() if k in row]
    # A key that no other table has: a condition, or a figure of its own.
    rest = row.keys() - OTHER_KEYS - SCORES.keys()
    named += [f'{key} {row[key]}' for key in sorted(rest)]
    return ' at '.join(named)


def paper_cell(scores: dict[str, list[str]]) -> str:
    """Return a paper's scores of a config, each with its tables."""
    return ', '.join(
        f'{score} (table{"s" * (len(tables) > 1)} {", ".join(tables)})'
        for score, tables in scores.items()
    )


def schedule(model: dict) -> str:
    """Return how long a model is trained, and the batch its name states."""
    data = model['Metadata']
    length = (
        f'{data["Epochs"]} epochs'
        if 'Epochs' in data
        else f'{data["Iterations"] // 1000}k iterations'
    )
    batch = re.search(r'_(\d+)xb(\d+)', model['Name'])
    return f'{length}, {batch[1]} x {batch[2]} images' if batch else length


def table(folder: Path, models: list[dict], scores: dict) -> str:
    """Return a folder's table as Markdown, a row for each config."""
    base = folder.relative_to(ROOT).as_posix() + '/'
    figures = {
        model['Name']: scores.get(model['Config'].removeprefix('configs/'), {})
        for model in models
    }
    used = {paper for cells in figures.values() for paper in cells}
    papers = [paper for paper in PAPERS if paper in used]
    head = ['config', 'data set', 'schedule', 'parameters']
    head += [PAPERS[paper] for paper in papers] + ['measured']
    rows = [head, ['---'] * len(head)]
    for model in models:
        results = model['Results']
        measured = [
            f'{name} {value}'
            for result in results
            for name, value in result.get('Metrics', {}).items()
        ]
        rows.append([
            f'[{model["Name"]}]({model["Config"].removeprefix(base)})',
            results[0]['Dataset'],
            schedule(model),
            f'{model["Metadata"]["Parameters"] / 1e6:.2f}M',
            *(paper_cell(figures[model['Name']].get(p, {})) for p in papers),
            ', '.join(measured),
        ])  # fmt: skip
    lines = [f'| {" | ".join(row)} |' for row in rows]
    notes = NOTES + (PAPER_NOTES if papers else '')
    return '\n'.join([*lines, '', notes])


def generated(described: dict[Path, dict]) -> dict[Path, str]:
    """Return the text of every generated file.

    Args:
        described: What :func:`describe` returns, by the config's path.
    """
    texts, scores = {}, papers_scores()
    for folder in folders():
        about, old = collection(folder), recorded(folder)
        models = [
            with_metrics(
                {
                    'Name': path.stem,
                    'In Collection': about['Name'],
                    'Config': path.relative_to(ROOT).as_posix(),
                    **described[path],
                },
                old.get(path.stem, {}),
            )
            for path in configs_of(folder)
        ]
        readme = folder / 'README.md'
        before, rest = readme.read_text().split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        rows = table(folder, models, scores)
        texts[readme] = f'{before}{MARKS[0]}\n\n{rows}\n\n{MARKS[1]}{after}'
        content = {'Collections': [about], 'Models': models}
        texts[folder / 'metafile.yml'] = HEADER + as_yaml(content)
    index = [
        path.relative_to(ROOT).as_posix()
        for path in texts
        if path.suffix == '.yml'
    ]
    texts[ROOT / 'model-index.yml'] = as_yaml({'Import': index})
    return texts


def as_yaml(content: dict) -> str:
    """Return YAML in the order of the keys, a value a line."""
    return dump(content, file_format='yaml', sort_keys=False, width=200)


def build_all() -> dict[Path, dict]:
    """Describe every config by building its model."""
    for folder in folders():
        collection(folder)  # its errors before minutes of building
    paths = [path for folder in folders() for path in configs_of(folder)]
    datasets = {path: dataset_of(path) for path in paths}
    return {
        path: describe(path, dataset)
        for path, dataset in tqdm(datasets.items(), unit='model')
    }


def recall_all() -> dict[Path, dict]:
    """Describe every config by its metafile, without building.

    Raises:
        ConfigError: If a config is in none.
    """
    described = {}
    for folder in folders():
        known = recorded(folder)
        for path in configs_of(folder):
            if path.stem not in known:
                raise ConfigError(
                    f'{path.relative_to(ROOT)} is not in the metafile.yml of '
                    f'its folder; {REMEDY}'
                )
            entry = known[path.stem]
            described[path] = {k: entry[k] for k in ('Metadata', 'Results')}
    return described


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(f'{path.name}.new')
    new.write_text(text)
    new.replace(path)


def main() -> None:
    """Rewrite the files, or only say whether they are current."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--check',
        action='store_true',
        help='Write and build nothing; exit with 1 if a file does not fit '
        "the configs, the papers' tables and what metafile.yml records.",
    )
    args = parser.parse_args()
    with one_line_errors():
        texts = generated(recall_all() if args.check else build_all())
        stale = [
            path
            for path, text in texts.items()
            if not path.is_file() or path.read_text() != text
        ]
        if args.check and stale:
            names = [path.relative_to(ROOT).as_posix() for path in stale]
            raise ConfigError(f'{", ".join(names)} not current; {REMEDY}')
    for path in stale:
        write(path, texts[path])
    print(f'{len(texts)} files are current, {len(stale)} of them new')


if __name__ == '__main__':
    main()
