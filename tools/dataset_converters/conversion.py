# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What the converters of data sets share.

Cleaning boxes, counting what was found beside the official figures, and
writing all of it or nothing. It needs Pillow (image headers) and tqdm alone,
so a machine without torch can convert.
"""

import argparse
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from archives import ConversionError, Tree
from PIL import Image
from tqdm import tqdm

REPORT = 'report.json'
NOTES_SHOWN = 5  # of one kind, in the text of a report


class UnreadableError(Exception):
    """An annotation cannot be read at all; the message says why."""


# ------------------------------------------------------------------- boxes


class Sample(NamedTuple):
    """An image that is to be converted."""

    image: str  # name in the tree
    file_name: str  # in the converted data set
    annotation: Any = None  # what the data set's reader needs


class Box(NamedTuple):
    """An object in an image."""

    label: int  # index into the classes
    bbox: tuple[float, float, float, float]  # x, y, w, h in px, from 0
    where: str  # file and line, for the report
    crowd: bool = False  # scoring ignores what is found there


class Note(NamedTuple):
    """Something that a report tells."""

    what: str
    where: str
    malformed: bool = False  # --strict stops at it


class Split(NamedTuple):
    """A converted split."""

    name: str
    sources: list[str]  # name in the tree of each image
    images: list[dict]  # COCO's records
    annotations: list[dict]
    notes: list[Note]

    def counts(self, classes: Sequence[str]) -> dict[str, int]:
        """Count images, boxes, crowds, and the boxes of each class."""
        boxes = [a for a in self.annotations if not a['iscrowd']]
        by_class = Counter(box['category_id'] for box in boxes)
        return {
            'images': len(self.images),
            'boxes': len(boxes),
            'crowds': len(self.annotations) - len(boxes),
            **{name: by_class[i] for i, name in enumerate(classes, start=1)},
        }


#: Reads the annotation of a sample: (sample, width, height, notes) -> its
#: boxes, and what is to be added to COCO's record of the image; or raises
#: UnreadableError.
Reader = Callable[[Sample, int, int, list[Note]], tuple[list[Box], dict]]


def fit_box(box: Box, width: int, height: int, notes: list[Note]) -> Any:
    """Clip a box to its image.

    Args:
        box: The box.
        width: Width of the image, px.
        height: Height of the image, px.
        notes: Takes what was done.

    Returns:
        [x, y, w, h], or None if nothing is left that mmdet would train on
        and COCO could score.
    """
    x, y, w, h = box.bbox
    if not all(map(math.isfinite, box.bbox)):
        notes.append(Note('box dropped: not finite', box.where, True))
        return None
    if w <= 0 or h <= 0:
        notes.append(Note('box dropped: zero size', box.where))
        return None
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        notes.append(Note('box dropped: outside the image', box.where))
        return None
    if (left, top, right, bottom) == (x, y, x + w, y + h):
        fitted = [x, y, w, h]
    else:
        notes.append(Note('box clipped to the image', box.where))
        fitted = [left, top, right - left, bottom - top]
    if min(fitted[2:]) < 1:
        notes.append(Note('box dropped: less than a pixel', box.where))
        return None
    return [round(value, 2) for value in fitted]


def fill_split(
    split: Split,
    tree: Tree,
    samples: list[Sample],
    read: Reader,
    args: argparse.Namespace,
) -> None:
    """Read the images and annotations of a split.

    Args:
        split: Takes what is read.
        tree: Where they are.
        samples: The images, in the order that they are to have.
        read: Reads one annotation.
        args: ``workers`` and ``strict`` of the command line.

    Raises:
        ConversionError: With ``strict``, something is malformed.
    """

    def load(sample: Sample) -> tuple[dict | None, list, list[Note]]:
        notes: list[Note] = []
        try:
            width, height, orientation = tree.image_size(sample.image)
        except (OSError, Image.DecompressionBombError):
            note = Note('image left out: unreadable', sample.image, True)
            return None, [], [note]
        if orientation != 1:
            what = 'image with EXIF rotation, boxes are of the stored raster'
            notes.append(Note(what, f'{sample.image} ({orientation})'))
        try:
            boxes, extra = read(sample, width, height, notes)
        except UnreadableError as error:
            note = Note(f'image left out: {error}', sample.image, True)
            return None, [], [note]
        image = {
            'file_name': sample.file_name,
            'width': width,
            'height': height,
            **extra,
        }
        fitted = [(b, fit_box(b, width, height, notes)) for b in boxes]
        return image, [pair for pair in fitted if pair[1]], notes

    results = parallel(load, samples, args.workers, f'reading {split.name}')
    for sample, (image, boxes, notes) in zip(samples, results, strict=True):
        add_notes(split.notes, notes, args.strict)
        if image is None:
            continue
        split.sources.append(sample.image)
        split.images.append({'id': len(split.images) + 1, **image})
        for box, bbox in boxes:
            split.annotations.append(
                {
                    'id': len(split.annotations) + 1,
                    'image_id': len(split.images),
                    'category_id': box.label + 1,
                    'bbox': bbox,
                    'area': round(bbox[2] * bbox[3], 2),
                    'iscrowd': int(box.crowd),
                }
            )


def add_notes(notes: list[Note], new: list[Note], strict: bool) -> None:
    """Add notes to a list.

    Raises:
        ConversionError: With ``strict``, one of them is of malformed input.
    """
    notes.extend(new)
    for note in new:
        if strict and note.malformed:
            raise ConversionError(f'{note.where}: {note.what} (--strict)')


def parallel(
    function: Callable, items: Sequence, workers: int, title: str
) -> Iterator:
    """Yield what a function makes of each item, in order, with a bar."""
    pool = ThreadPoolExecutor(workers)
    try:
        results = pool.map(function, items)
        yield from tqdm(results, title, len(items), unit='img')
    finally:
        pool.shutdown(cancel_futures=True)


# ------------------------------------------------------------------ report


class Report:
    """What was found in each split, beside what should be there.

    Args:
        title: Name of the data set.
        protocol: Which of its splits and settings were taken.
    """

    def __init__(self, title: str, protocol: str) -> None:
        self.title, self.protocol = title, protocol
        self.splits: dict[str, dict] = {}

    def add(
        self,
        split: str,
        counts: dict[str, int],
        official: dict[str, int],
        notes: Iterable[Note],
    ) -> None:
        """Add a split: its counts, the official ones, what was noted."""
        told: dict[str, list[str]] = {}
        for note in notes:
            told.setdefault(note.what, []).append(note.where)
        self.splits[split] = {
            'counts': counts,
            'official': official,
            'differs': [
                key for key in official if counts.get(key, 0) != official[key]
            ],
            'notes': dict(sorted(told.items())),
        }

    def differences(self) -> int:
        """Return how many counts differ from the official ones."""
        return sum(len(split['differs']) for split in self.splits.values())

    def json(self) -> str:
        """Return the report as JSON."""
        report = {
            'dataset': self.title,
            'protocol': self.protocol,
            'splits': self.splits,
        }
        return json.dumps(report, indent=1, ensure_ascii=False) + '\n'

    def text(self) -> str:
        """Return the report as people read it."""
        lines = [f'{self.title} ({self.protocol})']
        for name, split in self.splits.items():
            lines += ['', f'{name:24}{"found":>10}{"official":>10}']
            for key in {**split['counts'], **split['official']}:
                lines.append(count_line(key, split))
            for what, where in split['notes'].items():
                some = ', '.join(where[:NOTES_SHOWN])
                more = ', ...' if len(where) > NOTES_SHOWN else ''
                lines.append(f'  {len(where):,} x {what}: {some}{more}')
        return '\n'.join(lines) + '\n'


def count_line(key: str, split: dict) -> str:
    """Return a line of a report: found, official, and whether they differ."""
    line = f'  {key:22}{split["counts"].get(key, 0):>10,}'
    if key in split['official']:
        line += f'{split["official"][key]:>10,}'
    return line + ('  differs' if key in split['differs'] else '')


def check_counts(report: Report, allow_incomplete: bool) -> None:
    """Print a report; stop if counts differ from the official ones.

    Raises:
        ConversionError: They differ and that is not allowed.
    """
    print(report.text())
    if (differ := report.differences()) and not allow_incomplete:
        raise ConversionError(
            f'{differ} of the counts above differ from the official ones; '
            'nothing was written (--allow-incomplete writes what there is)'
        )


# ------------------------------------------------------------------ output


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``out`` if all went well.

    It stands beside ``out`` (same disk, so the rename is one step) and
    vanishes on any failure, Ctrl-C included; an old ``out`` stays then.
    """
    target = out.resolve()  # a symbolic link stays one
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f'.{target.name}.', dir=target.parent
    ) as scratch:
        new, old = Path(scratch, 'new'), Path(scratch, 'old')
        new.mkdir()
        yield new
        try:
            if target.exists():
                target.rename(old)
            new.rename(target)
        except BaseException:
            if old.exists() and not target.exists():
                old.rename(target)
            raise


def check_out(
    out: Path, force: bool, is_ours: Callable[[Path], bool], title: str
) -> None:
    """Refuse a target that exists, unless it may be replaced.

    Args:
        out: The target.
        force: Whether a folder of the data set may be replaced.
        is_ours: Whether a folder was made by the converter of this data set.
        title: Name of the data set.

    Raises:
        FileExistsError: ``out`` exists and ``force`` is not set, or it is
            set and ``out`` holds something else than this data set.
    """
    if not out.exists():
        return
    if not force:
        raise FileExistsError(
            f'--out {out}: exists already; --force replaces it'
        )
    empty = out.is_dir() and not any(out.iterdir())
    if not empty and not is_ours(out):
        raise FileExistsError(
            f'--out {out}: is not a {title} data set, which is all that '
            '--force replaces; name another folder'
        )


def has_report_of(title: str) -> Callable[[Path], bool]:
    """Return a test of whether a folder holds a converted data set."""

    def test(folder: Path) -> bool:
        try:
            report = json.loads((folder / REPORT).read_text('utf-8'))
            return report['dataset'] == title
        except (OSError, ValueError, KeyError, TypeError):
            return False

    return test


def write_report(report: Report, root: Path) -> None:
    """Write a report as text and as JSON."""
    (root / REPORT).write_text(report.json(), 'utf-8')
    (root / 'report.txt').write_text(report.text(), 'utf-8')


def place_images(
    tree: Tree, targets: dict[Path, str], args: argparse.Namespace
) -> None:
    """Link, copy or unpack images to their targets, with a bar.

    Args:
        tree: Where the images are.
        targets: Target -> name in the tree.
        args: ``copy`` and ``workers`` of the command line.
    """
    for folder in sorted({target.parent for target in targets}):
        folder.mkdir(parents=True, exist_ok=True)
    for _ in parallel(
        lambda item: tree.place(item[1], item[0], args.copy),
        list(targets.items()),
        args.workers,
        'images',
    ):
        pass


def write_coco(
    tree: Tree,
    splits: list[Split],
    classes: Sequence[str],
    report: Report,
    args: argparse.Namespace,
) -> None:
    """Write a detection data set.

    The result is ``images/<split>/``, ``annotations/instances_<split>.json``,
    ``report.json`` and ``report.txt`` below ``args.out``.

    Args:
        tree: Where the images are.
        splits: What was read. One without images is not written.
        classes: Names of the classes; their category ids count from 1.
        report: The report.
        args: ``out``, ``copy`` and ``workers`` of the command line.
    """
    with replacing(args.out) as root:
        (root / 'annotations').mkdir()
        for split in splits:
            if not split.images:
                continue
            data = {
                'info': {
                    'description': report.title,
                    'split': split.name,
                    'protocol': report.protocol,
                },
                'categories': [
                    {'id': i, 'name': name}
                    for i, name in enumerate(classes, start=1)
                ],
                'images': split.images,
                'annotations': split.annotations,
            }
            path = root / 'annotations' / f'instances_{split.name}.json'
            path.write_text(json.dumps(data) + '\n', 'utf-8')
            folder = root / 'images' / split.name
            names = [folder / image['file_name'] for image in split.images]
            place_images(tree, dict(zip(names, split.sources)), args)
        write_report(report, root)
    print(f'written to {args.out}: images/, annotations/, report.txt')


def convert_detection(
    title: str,
    protocol: str,
    classes: Sequence[str],
    tree: Tree,
    samples: dict[str, list[Sample]],
    notes: dict[str, list[Note]],
    read: Reader,
    official: dict[str, dict[str, int]],
    args: argparse.Namespace,
) -> None:
    """Convert a detection data set to COCO's format.

    Args:
        title: Name of the data set.
        protocol: Which of its splits and settings are taken.
        classes: Names of the classes, in order.
        tree: The official files.
        samples: The images of each split.
        notes: What was noted of a split while its images were found.
        read: Reads the annotation of an image.
        official: What should be found: split -> ``'images'``, ``'boxes'``,
            ``'crowds'`` or a class -> number.
        args: The command line, of :func:`make_parser`.

    Raises:
        ConversionError: Counts differ from the official ones and that is not
            allowed, or something is malformed and ``--strict`` is set.
    """
    report = Report(title, protocol)
    splits = []
    for name in samples:
        split = Split(name, [], [], [], [])
        add_notes(split.notes, notes.get(name, []), args.strict)
        fill_split(split, tree, samples[name], read, args)
        splits.append(split)
        counts = split.counts(classes)
        report.add(name, counts, official.get(name, {}), split.notes)
    check_counts(report, args.allow_incomplete)
    write_coco(tree, splits, classes, report, args)


# ------------------------------------------------------------ command line


class OneLineParser(argparse.ArgumentParser):
    """Ends with one line, not with the usage of every flag."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        raise SystemExit(f'error: {message} (--help lists the flags)')


def make_parser(description: str, out: str) -> argparse.ArgumentParser:
    """Return a parser of what all converters take.

    Args:
        description: What the converter does.
        out: The folder that it makes if it is not told another.
    """
    parser = OneLineParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        'source',
        nargs='+',
        metavar='SRC',
        help='The official archives (.zip, .tar), or folders that hold them '
        'or what was unpacked from them.',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path(out),
        help='Folder to make. Default: %(default)s.',
    )
    parser.add_argument(
        '--copy',
        action='store_true',
        help='Copy the images. Default: links to those of SRC; what is in '
        'an archive is unpacked.',
    )
    parser.add_argument(
        '--workers',
        type=positive,
        default=min(8, os.cpu_count() or 1),
        metavar='N',
        help='Threads that read and write. Default: %(default)s.',
    )
    parser.add_argument(
        '--strict',
        action='store_true',
        help='Stop at the first malformed line, unreadable image or missing '
        'file. Default: skip, count and report it.',
    )
    parser.add_argument(
        '--allow-incomplete',
        action='store_true',
        help='Write what there is though counts differ from the official '
        'ones. Default: write nothing, exit code 1.',
    )
    parser.add_argument(
        '--force',
        action='store_true',
        help='Replace OUT if it is this data set, or an empty folder.',
    )
    return parser


def positive(text: str) -> int:
    """Read a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a number from 1')
    return int(text)


@contextmanager
def one_line_errors(out: Path) -> Iterator[None]:
    """Turn what the user can mend into one line and exit code 1."""
    try:
        yield
    except (ConversionError, OSError) as error:
        raise SystemExit(f'error: {error}') from error
    except KeyboardInterrupt:
        raise SystemExit(f'error: stopped; {out} not written') from None
