# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Measure what rotated and corrupted test images cost models.

Every model is evaluated on the test data of its config with the config's own
metric: on the images as they are, turned by 90, 180 and 270 degrees clockwise
and flipped upside down (classifiers only, GSCA's table 8), and with the 15
common corruptions of the package imagecorruptions at several severities::

    python tools/analysis_tools/robustness.py \\
        --model CONFIG CHECKPOINT --model CONFIG CHECKPOINT \\
        --rotations --corruptions fog snow --severities 1 3 5 --csv FILE.csv

Images are changed right after they were read. The noise depends on --seed and
on the number of the image alone, so all models see the same images, and an
image has the same noise at every severity. The table goes to standard output.
The CSV has a line for every metric of each evaluation and grows with each;
the same command goes on where it was stopped, and further models or
corruptions are added to what is there.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mmengine
import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.runner import Runner, autocast
from torch.utils.data import Subset
from tqdm import tqdm

from mmattn.compat import corruptions
from mmattn.engine import innermost_test_dataset, one_line_errors
from mmattn.errors import ConfigError
from mmattn.visualization.trained import (
    TrainedModel,
    add_device_arguments,
    add_models,
    build_test_data,
    check_model_arguments,
    evenly,
    load_models,
)

#: Quarter turns clockwise.
TURNS = {'rot90': 1, 'rot180': 2, 'rot270': 3}
ROTATIONS = (*TURNS, 'flip')
#: Metrics that get a table, if --metric does not say which.
METRICS = (
    'accuracy/top1',
    'accuracy/top5',
    'coco/bbox_mAP',
    'coco/segm_mAP',
    'mIoU',
)
COLUMNS = (
    'config',
    'checkpoint',
    'test',
    'severity',
    'metric',
    'score',
    'drop',
    'relative_drop',
    'images',
    'seed',
    'settings',
)


class Test(NamedTuple):
    """What is done to the images."""

    name: str = 'clean'
    severity: int = 0  # 1 to 5 for corruptions

    def __str__(self) -> str:
        return f'{self.name} {self.severity or ""}'.strip()


CLEAN = Test()


# -------------------------------------------------------------------- images


def change(image: np.ndarray, test: Test, seed: int | list[int]) -> np.ndarray:
    """Return what a test makes of an image.

    Args:
        image: Values ``(H, W, 3)``, uint8, BGR.
        test: What to do.
        seed: Seed of everything random in it.
    """
    if test == CLEAN:
        return image
    if test.name in TURNS:
        changed = np.rot90(image, -TURNS[test.name])
    elif test.name == 'flip':
        changed = np.flipud(image)
    else:
        rgb = image[..., ::-1]
        changed = corruptions.corrupt(rgb, *test, seed)[..., ::-1]
    return np.ascontiguousarray(changed)


class Change:
    """Step of a test pipeline that does this to the image just read.

    Args:
        test: What to do.
        seed: Seed; that of an image is the pair of it and of the number of
            the image, in whatever process it is read.
    """

    def __init__(self, test: Test, seed: int) -> None:
        self.test = test
        self.seed = seed

    def __call__(self, data: dict) -> dict:
        """Change the image and what is noted of its shape."""
        seed = [self.seed, data['sample_idx']]
        data['img'] = change(data['img'], self.test, seed)
        data['img_shape'] = data['ori_shape'] = data['img'].shape[:2]
        return data


# ---------------------------------------------------------------- evaluation


class Bench:
    """Evaluates a model on the test data of its config.

    Args:
        model: The model.
        limit: Number of images, evenly spread over the data; None for all.
        folder: Takes the annotations of fewer images, if a metric has them
            from a file.

    Raises:
        ConfigError: If the test pipeline reads no image, or there are no
            annotations of fewer images.
        FileNotFoundError: If the data is not there.
    """

    def __init__(
        self, model: TrainedModel, limit: int | None, folder: Path
    ) -> None:
        self.model = model
        self.data = build_test_data(model.cfg)
        self.steps = steps_of(self.data)
        self.start = self._start()
        meta = self.data.metainfo
        chosen = evenly(len(self.data), limit)
        self.images = len(chosen)
        metrics = model.cfg.test_evaluator
        if self.images < len(self.data):
            metrics = self._limit(metrics, chosen, folder)
            self.data = Subset(self.data, chosen)
        with quiet():
            self.evaluator = Evaluator(metrics)
        self.evaluator.dataset_meta = meta

    def _start(self) -> int:
        """Return the place right after the reading of the image."""
        names = [type(step).__name__ for step in self.steps]
        for place, name in enumerate(names, start=1):
            if name.startswith('Load') and 'Image' in name:
                return place
        raise ConfigError(
            f'{self.model.name}: its test pipeline reads no image; it has '
            f'{", ".join(names) or "no steps"}'
        )

    def _limit(
        self, metrics: dict | list[dict], chosen: list[int], folder: Path
    ) -> list[dict]:
        """Let metrics not miss the images that are left out."""
        metrics = metrics if isinstance(metrics, (list, tuple)) else [metrics]
        if not any(metric.get('ann_file') for metric in metrics):
            return metrics
        ids = {self.data.get_data_info(i)['img_id'] for i in chosen}
        return [
            {**metric, 'ann_file': thin_out(metric.ann_file, ids, folder)}
            if metric.get('ann_file')
            else metric
            for metric in metrics
        ]

    def evaluate(self, test: Test, seed: int, bar: tqdm) -> dict[str, float]:
        """Return what the config's metrics say of changed images.

        Args:
            test: What to do to the images.
            seed: Seed of everything random in it.
            bar: Moved on with the images.
        """
        cfg = self.model.cfg
        with quiet(), torch.no_grad():
            self.steps.insert(self.start, Change(test, seed))
            try:
                loader = Runner.build_dataloader(
                    {**cfg.test_dataloader, 'dataset': self.data}
                )
                half = (cfg.get('test_cfg') or {}).get('fp16', False)
                for batch in loader:
                    with autocast(enabled=half):
                        found = self.model.model.test_step(batch)
                    self.evaluator.process(found, batch)
                    bar.update(len(found))
            finally:
                del self.steps[self.start]
            metrics = self.evaluator.evaluate(self.images)
        return {
            name: float(value)
            for name, value in metrics.items()
            if np.ndim(value) == 0 and not isinstance(value, str)
        }


def steps_of(data: Any) -> list:
    """Return the steps of a data set's pipeline, if it has one.

    Args:
        data: The data set, perhaps in wrappers.
    """
    while hasattr(data, 'dataset'):
        data = data.dataset
    return getattr(getattr(data, 'pipeline', None), 'transforms', [])


def thin_out(path: str, ids: set[int], folder: Path) -> str:
    """Write the annotations of some images; return where they are.

    Args:
        path: Annotations in COCO's format.
        ids: Ids of the images that stay.
        folder: Where to write.

    Raises:
        ConfigError: If the file has another format.
    """
    try:
        data = mmengine.load(path)
        images = [i for i in data['images'] if i['id'] in ids]
        boxes = [a for a in data['annotations'] if a['image_id'] in ids]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f'--limit needs annotations in the format of COCO; {path} has '
            'another'
        ) from error
    file = folder / f'{len(list(folder.iterdir()))}.json'
    data = {**data, 'images': images, 'annotations': boxes}
    file.write_text(json.dumps(data))
    return str(file)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the frameworks say away from the table."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter('ignore', UserWarning)
            yield
    finally:
        logger.setLevel(level)


# ------------------------------------------------------------------- results


class Run(NamedTuple):
    """A model as the CSV knows it."""

    config: str
    checkpoint: str
    images: str
    seed: str
    settings: str  # digest of all that the scores depend on


def digest(model: TrainedModel, images: int, seed: int) -> str:
    """Return a short text that changes with whatever changes the scores."""
    cfg = model.cfg.to_dict()
    loader = cfg['test_dataloader']
    for key in ('num_workers', 'persistent_workers', 'pin_memory'):
        loader.pop(key, None)
    keys = ('model', 'test_dataloader', 'test_evaluator', 'test_cfg')
    used = [{key: cfg.get(key) for key in keys}, images, seed]
    text = json.dumps(used, sort_keys=True, default=repr)
    state = hashlib.sha256(text.encode())
    for name, value in model.model.state_dict().items():
        state.update(name.encode())
        flat = value.detach().cpu().reshape(-1).contiguous()
        state.update(flat.view(torch.uint8).numpy())
    return state.hexdigest()[:12]


class Results:
    """The scores, in a CSV file if there is one.

    Args:
        path: The file; it need not exist. None keeps the scores in memory.

    Raises:
        ConfigError: If the file is not of this tool.
    """

    def __init__(self, path: str | None) -> None:
        self.path = Path(path) if path else None
        self.rows: list[dict[str, str]] = []
        if self.path is None or not self.path.exists():
            return
        with self.path.open(newline='', encoding='utf-8') as file:
            try:
                reader = csv.DictReader(file)
                self.rows = list(reader)
            except (UnicodeDecodeError, csv.Error):
                reader = None
        if reader is None or tuple(reader.fieldnames or ()) != COLUMNS:
            raise ConfigError(
                f'--csv {path} was not written by this tool, or by another '
                'version of it; name another file'
            )

    def forget(self, run: Run) -> int:
        """Drop the scores of a model that is no more what it was.

        Returns:
            Number of evaluations that were dropped.
        """
        known = run._asdict()
        settings = known.pop('settings')
        stale, kept = [], []
        for row in self.rows:
            same = all(row[key] == value for key, value in known.items())
            changed = same and row['settings'] != settings
            (stale if changed else kept).append(row)
        self.rows = kept
        return len({(row['test'], row['severity']) for row in stale})

    def scores(self, run: Run, test: Test) -> dict[str, float]:
        """Return a model's score by metric; nothing if there is none."""
        wanted = (run.settings, test.name, str(test.severity))
        return {
            row['metric']: float(row['score'])
            for row in self.rows
            if (row['settings'], row['test'], row['severity']) == wanted
        }

    def add(self, run: Run, test: Test, scores: dict[str, float]) -> None:
        """Note the scores of an evaluation and write the file anew."""
        clean = self.scores(run, CLEAN) or scores
        for metric, before in clean.items():
            # A detector that finds nothing at all gets no score from mmdet.
            score = scores.get(metric, min(before, 0.0))
            drop, relative = drops(before, score)
            self.rows.append(
                {
                    **run._asdict(),
                    'test': test.name,
                    'severity': str(test.severity),
                    'metric': metric,
                    'score': repr(score),
                    'drop': f'{drop:.6g}',
                    'relative_drop': f'{relative:.6g}',
                }
            )
        if self.path:
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
            writer.writeheader()
            writer.writerows(self.rows)
            partial = self.path.with_name(f'.{self.path.name}.partial')
            partial.write_text(text.getvalue(), encoding='utf-8')
            os.replace(partial, self.path)


def drops(clean: float, score: float) -> tuple[float, float]:
    """Return what is lost, and what share of it in percent."""
    drop = clean - score
    return drop, 100 * drop / clean if clean else float('nan')


# --------------------------------------------------------------------- table


def table(
    metric: str, names: list[str], scores: dict[Test, list[float]], images: int
) -> str:
    """Return the table of a metric in Markdown.

    Args:
        metric: Name of the metric.
        names: Titles of the models.
        scores: Score of each model in each test.
        images: Number of images.
    """
    clean = scores[CLEAN]
    digits = 3 if max(clean) <= 1 else 2
    lines = [
        f'{metric} on {images} images: score (drop, relative drop)',
        '',
        f'| test | {" | ".join(names)} |',
        f'| --- |{" ---: |" * len(names)}',
    ]
    cells = [f'{value:.{digits}f}' for value in clean]
    lines.append(f'| clean | {" | ".join(cells)} |')
    for label, tests in groups([test for test in scores if test != CLEAN]):
        cells = []
        for before, *after in zip(clean, *(scores[test] for test in tests)):
            score = float(np.mean(after))
            drop, relative = drops(before, score)
            share = f'{relative:.1f}%' if before else '-'
            cells.append(f'{score:.{digits}f} ({drop:.{digits}f}, {share})')
        lines.append(f'| {label} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def groups(tests: list[Test]) -> Iterator[tuple[str, list[Test]]]:
    """Yield the lines of a table: a label, and the tests it is the mean of."""
    turned = [test for test in tests if test.name in ROTATIONS]
    noisy = [test for test in tests if test.name not in ROTATIONS]
    severities = sorted({test.severity for test in noisy})
    yield from ((test.name, [test]) for test in turned)
    if len(turned) > 1:
        yield 'mean of rotations', turned
    for name in dict.fromkeys(test.name for test in noisy):
        yield name, [test for test in noisy if test.name == name]
    if len(severities) > 1:
        for severity in severities:
            same = [test for test in noisy if test.severity == severity]
            yield f'corruptions of severity {severity}', same
    if len({test.name for test in noisy}) > 1:
        yield 'mean of corruptions', noisy


def metrics_of(scores: Iterable[str], wanted: list[str] | None) -> list[str]:
    """Return the metrics that get a table.

    Args:
        scores: The metrics that there are.
        wanted: Those of ``--metric``; None for the usual ones.

    Raises:
        ConfigError: If there is no such metric.
    """
    there = list(scores)
    for name in wanted or ():
        if name not in there:
            raise ConfigError(
                f'--metric {name}: there is none; the models have '
                f'{", ".join(there)}'
            )
    usual = [name for name in METRICS if name in there]
    return wanted or usual or there[:1]


# -------------------------------------------------------------- command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n')[0], allow_abbrev=False
    )
    add_models(parser)
    parser.add_argument(
        '--rotations',
        nargs='*',
        metavar='NAME',
        help=f'Turn and flip images, of classifiers: {", ".join(ROTATIONS)}. '
        'Without names all of them.',
    )
    parser.add_argument(
        '--corruptions',
        nargs='*',
        metavar='NAME',
        help='Corrupt images: '
        f'{", ".join(corruptions.CORRUPTIONS)}. Without names all of them.',
    )
    parser.add_argument(
        '--severities',
        nargs='+',
        type=int,
        default=list(corruptions.SEVERITIES),
        metavar='N',
        help='Severities of the corruptions. Default: 1 2 3 4 5.',
    )
    parser.add_argument(
        '--limit',
        type=int,
        metavar='N',
        help='Evaluate on N images only, evenly spread over the data.',
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        metavar='N',
        help='Seed of the noise. Default: %(default)s.',
    )
    parser.add_argument(
        '--metric',
        nargs='+',
        metavar='NAME',
        help='Metrics that get a table. Default: top-1 and top-5, box and '
        'mask AP or mIoU, whatever there is. The CSV has all.',
    )
    parser.add_argument(
        '--csv',
        metavar='FILE',
        help='Note all scores here, each as soon as it is known; those that '
        'are in the file are not computed again.',
    )
    add_device_arguments(parser)
    return parser.parse_args(argv)


def tests_of(args: argparse.Namespace) -> list[Test]:
    """Return the tests that the command line asks for, the clean one first.

    Raises:
        ConfigError: If there are none, or a name or number is wrong.
    """
    if args.rotations is None and args.corruptions is None:
        raise ConfigError('nothing to test: add --rotations or --corruptions')
    names = {}
    known = {
        'rotations': ROTATIONS,
        'corruptions': corruptions.CORRUPTIONS,
        'severities': corruptions.SEVERITIES,
    }
    for key, all_of_them in known.items():
        given = getattr(args, key)
        for name in given or ():
            if name not in all_of_them:
                raise ConfigError(
                    f'--{key} {name}: must be of '
                    f'{", ".join(map(str, all_of_them))}'
                )
        # Without names it is all, without the flag it is none.
        names[key] = all_of_them if given == [] else dict.fromkeys(given or ())
    return [
        CLEAN,
        *(Test(name) for name in names['rotations']),
        *(
            Test(name, severity)
            for name in names['corruptions']
            for severity in names['severities']
        ),
    ]


def check_args(args: argparse.Namespace) -> None:
    """Raise ConfigError for what cannot be done, before any work."""
    # That is where something is written, as check_model_arguments calls it.
    args.out_dir = Path(args.csv or '.').absolute().parent
    if args.csv and Path(args.csv).is_dir():
        raise ConfigError(f'--csv {args.csv} is a folder; name a file')
    if not args.out_dir.is_dir():
        raise ConfigError(f'--csv {args.csv}: there is no such folder')
    check_model_arguments(args)
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f'--limit {args.limit}: must be 1 or more')
    if args.seed < 0:
        raise ConfigError(f'--seed {args.seed}: must be 0 or more')
    if args.corruptions is not None:
        corruptions.load()


def check_models(models: list[TrainedModel], tests: list[Test]) -> None:
    """Raise ConfigError unless the models can stand in one table."""
    first = models[0]
    for model in models:
        for key, mine in data_of(model.cfg).items():
            its = data_of(first.cfg)[key]
            if mine != its:
                raise ConfigError(
                    f'{model.name} and {first.name} are not tested alike: '
                    f'{key} is {mine} and {its}'
                )
    if first.scope != 'mmpretrain' and any(t.name in ROTATIONS for t in tests):
        raise ConfigError(
            '--rotations are for classifiers: they turn the image, but not '
            f'the ground truth of {first.name}'
        )


def data_of(cfg: Config) -> dict[str, Any]:
    """Return what the models of one table must have in common."""
    data = innermost_test_dataset(cfg)
    keys = ('data_root', 'ann_file', 'data_prefix')
    return {
        'default_scope': cfg.default_scope,
        **{key: data.get(key) for key in keys},
    }


def plan(
    benches: list[Bench], args: argparse.Namespace, results: Results
) -> list[Run]:
    """Identify the models and drop what the file has of older ones."""
    runs = []
    for bench, (config, checkpoint) in zip(benches, args.model):
        settings = digest(bench.model, bench.images, args.seed)
        numbers = str(bench.images), str(args.seed)
        run = Run(config, checkpoint, *numbers, settings)
        count = results.forget(run)
        if count:
            print(
                f'{bench.model.name}: {count} evaluations in {args.csv} are '
                'of other weights or settings and are made anew',
                file=sys.stderr,
            )
        runs.append(run)
    return runs


def evaluate_all(
    benches: list[Bench],
    runs: list[Run],
    tests: list[Test],
    results: Results,
    seed: int,
) -> None:
    """Make the evaluations that are missing in the results.

    Raises:
        ConfigError: If an image cannot be changed, or a model has no score.
    """
    missing = {
        (run.settings, test): (bench, run)
        for bench, run in zip(benches, runs)
        for test in tests
        if not results.scores(run, test)
    }
    known = len(runs) * len(tests) - len(missing)
    if known:
        print(f'{known} evaluations need not be made again', file=sys.stderr)
    images = sum(bench.images for bench, _ in missing.values())
    with tqdm(total=images, unit='image', disable=not missing) as bar:
        for (_, test), (bench, run) in missing.items():
            bar.set_description(f'{bench.model.name}: {test}')
            try:
                scores = bench.evaluate(test, seed, bar)
            except ConfigError as error:
                # A loader's process puts its traceback in front.
                last = str(error).strip().splitlines()[-1]
                last = last.rpartition('ConfigError: ')[2]
                raise ConfigError(f'{bench.model.name}: {last}') from error
            if test == CLEAN and not scores:
                raise ConfigError(
                    f'{bench.model.name} has no score on its test data'
                )
            results.add(run, test, scores)


def main() -> None:
    """Evaluate and print the tables."""
    args = parse_args()
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        tests = tests_of(args)
        check_args(args)
        results = Results(args.csv)
        with quiet():
            models = load_models(args)
        check_models(models, tests)
        benches = [Bench(m, args.limit, Path(folder)) for m in models]
        runs = plan(benches, args, results)
        try:
            evaluate_all(benches, runs, tests, results, args.seed)
        except KeyboardInterrupt:
            kept = f'; {args.csv} has what is finished' if args.csv else ''
            raise SystemExit(f'error: stopped{kept}') from None
        names = [model.name for model in models]
        there = results.scores(runs[0], CLEAN)
        tables = []
        for metric in metrics_of(there, args.metric):
            scores = {
                test: [results.scores(run, test)[metric] for run in runs]
                for test in tests
            }
            tables.append(table(metric, names, scores, benches[0].images))
        print('\n\n'.join(tables))


if __name__ == '__main__':
    main()
