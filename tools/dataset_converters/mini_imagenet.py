# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Make the 100-way classification set of Mini-ImageNet: 500 and 100 a class.

SRC holds the 60,000 images in folders of their classes (WordNet ids), or in
one folder images/ beside the few-shot lists train.csv, val.csv and test.csv,
as an archive or unpacked::

    python tools/dataset_converters/mini_imagenet.py SRC

The few-shot lists split by class and are of no use for classification, so
all images of a class are sorted by name: the first 500 are for training, the
rest for validation. Images that SRC has as train/<class> and val/<class>, with
the same classes in both, stay where they are. Result::

    OUT/{train,val}/<class>/<image>
    OUT/meta/{train,val}.txt            lines of <class>/<image> and index
    OUT/report.json, OUT/report.txt     counts, and the rule of the split
"""

import argparse
import csv
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from archives import ConversionError, Tree
from conversion import (
    Note,
    Report,
    add_notes,
    check_counts,
    check_out,
    has_report_of,
    make_parser,
    one_line_errors,
    parallel,
    place_images,
    replacing,
    write_report,
)
from PIL import Image

TITLE = 'Mini-ImageNet'
#: Ravi and Larochelle's, sorted: the index of a class is its label.
CLASSES = tuple(
    """
    n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01855672
    n01910747 n01930112 n01981276 n02074367 n02089867 n02091244 n02091831
    n02099601 n02101006 n02105505 n02108089 n02108551 n02108915 n02110063
    n02110341 n02111277 n02113712 n02114548 n02116738 n02120079 n02129165
    n02138441 n02165456 n02174001 n02219486 n02443484 n02457408 n02606052
    n02687172 n02747177 n02795169 n02823428 n02871525 n02950826 n02966193
    n02971356 n02981792 n03017168 n03047690 n03062245 n03075370 n03127925
    n03146219 n03207743 n03220513 n03272010 n03337140 n03347037 n03400231
    n03417042 n03476684 n03527444 n03535780 n03544143 n03584254 n03676483
    n03770439 n03773504 n03775546 n03838899 n03854065 n03888605 n03908618
    n03924679 n03980874 n03998194 n04067472 n04146614 n04149813 n04243546
    n04251144 n04258138 n04275548 n04296562 n04389033 n04418357 n04435653
    n04443257 n04509417 n04515003 n04522168 n04596742 n04604644 n04612504
    n06794110 n07584110 n07613480 n07697537 n07747607 n09246464 n09256479
    n13054560 n13133613
    """.split()
)
TRAIN, VAL = 500, 100  # images a class
WORDNET_ID = re.compile(r'n\d{8}')
IMAGE = re.compile(r'\.(jpe?g|png)$', re.IGNORECASE)
MIN_SIDE = 100  # px; copies for few-shot learning have 84


class Picture(NamedTuple):
    """An image of a class."""

    name: str  # in the tree
    kind: str  # its class, a WordNet id
    folder: str  # train, val or test, if it lies below one

    @property
    def file(self) -> str:
        """Its file name."""
        return self.name.split('/')[-1]


def find(tree: Tree) -> tuple[list[Picture], list[Note]]:
    """Find the images and the class of each, sorted by name.

    Raises:
        ConversionError: There are none, or two that have one name differ.
    """
    images = [name for name in sorted(tree.members) if IMAGE.search(name)]
    found = []
    for name in images:
        *folders, kind, _ = ['', *name.split('/')]
        if WORDNET_ID.fullmatch(kind):
            splits = [f for f in folders if f in ('train', 'val', 'test')]
            found.append(Picture(name, kind, splits[-1] if splits else ''))
    if found:
        return leave_out_copies(tree, found), []
    found, notes = find_listed(tree, images)
    if not found:
        raise ConversionError(
            'no images in folders named n01532829 and so on, nor in images/ '
            'beside train.csv, val.csv and test.csv; found instead: '
            f'{tree.describe() or "nothing"}'
        )
    return leave_out_copies(tree, found), notes


def leave_out_copies(tree: Tree, pictures: list[Picture]) -> list[Picture]:
    """Keep one of each, as when an archive lies beside its folder.

    Raises:
        ConversionError: Two that have one name differ.
    """
    kept: dict[tuple[str, ...], Picture] = {}
    for picture in pictures:
        key = picture.folder, picture.kind, picture.file
        first = kept.setdefault(key, picture).name
        if tree.members[first].size != tree.members[picture.name].size:
            raise ConversionError(
                f'{first} and {picture.name} have one name and differ; '
                'leave one of them out'
            )
    return list(kept.values())


def find_listed(
    tree: Tree, images: list[str]
) -> tuple[list[Picture], list[Note]]:
    """Find the images that the few-shot lists name.

    Args:
        tree: The files.
        images: Names of the images among them.
    """
    by_file = {name.split('/')[-1]: name for name in images}
    found, notes = [], []
    lists = tree.index(r'(?:^|/)((?:train|val|test)\.csv)$')
    for name in lists.values():
        rows = csv.reader(io.StringIO(tree.text(name)))
        for number, row in enumerate(rows, start=1):
            if number == 1 and row[:1] == ['filename']:
                continue
            where = f'{name}:{number}'
            if len(row) != 2 or not WORDNET_ID.fullmatch(row[1]):
                what = 'line skipped: not a file name and a WordNet id'
                notes.append(Note(what, where, True))
            elif row[0] not in by_file:
                what = 'image left out: listed, but not there'
                notes.append(Note(what, f'{where}, {row[0]}', True))
            else:
                found.append(Picture(by_file[row[0]], row[1], ''))
    return found, notes


def split(pictures: list[Picture]) -> tuple[dict[str, list[Picture]], str]:
    """Share the images out between train and val.

    Returns:
        Split -> images, by class and file name; and the rule, in words.
    """
    kinds = {
        folder: {p.kind for p in pictures if p.folder == folder}
        for folder in ('train', 'val')
    }
    ordered = sorted(pictures, key=lambda p: (p.kind, p.file))
    if kinds['train'] and kinds['train'] == kinds['val']:
        splits = {
            folder: [p for p in ordered if p.folder == folder]
            for folder in kinds
        }
        return splits, 'train and val as they were given'
    by_kind: dict[str, list[Picture]] = defaultdict(list)
    for picture in ordered:
        by_kind[picture.kind].append(picture)
    splits = {'train': [], 'val': []}
    for members in by_kind.values():
        # A class that is not complete is shared out in the same ratio.
        cut = len(members) * TRAIN // (TRAIN + VAL)
        splits['train'] += members[:cut]
        splits['val'] += members[cut:]
    rule = f'file names of a class sorted, first {TRAIN} train, rest val'
    return splits, rule


def check_images(
    tree: Tree, pictures: list[Picture], args: argparse.Namespace
) -> tuple[list[Picture], list[Note]]:
    """Leave unreadable images out, and measure the others.

    Raises:
        ConversionError: Most are too small for training at 224 px, or
            something is malformed and ``--strict`` is set.
    """

    def side(picture: Picture) -> int | None:
        try:
            return min(tree.image_size(picture.name)[:2])
        except (OSError, Image.DecompressionBombError):
            return None

    sides = list(parallel(side, pictures, args.workers, 'reading'))
    good = [p for p, length in zip(pictures, sides) if length is not None]
    notes = [
        Note('image left out: unreadable', picture.name, True)
        for picture, length in zip(pictures, sides)
        if length is None
    ]
    lengths = sorted(length for length in sides if length is not None)
    middle = lengths[len(lengths) // 2] if lengths else 0
    if good and middle < MIN_SIDE and not args.small:
        raise ConversionError(
            f'the images have {middle} px (median of the shorter side): a '
            'copy that was shrunk for few-shot learning, of no use at 224 px; '
            '--small converts it nevertheless'
        )
    return good, notes


def count(pictures: list[Picture]) -> dict[str, int]:
    """Count images and classes, and the images of each class."""
    kinds = [picture.kind for picture in pictures]
    return {
        'images': len(kinds),
        'classes': len(set(kinds)),
        **{kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }


def write_folders(
    tree: Tree,
    splits: dict[str, list[Picture]],
    report: Report,
    args: argparse.Namespace,
) -> None:
    """Write the image folders, the lists and the report."""
    kinds = sorted({p.kind for pictures in splits.values() for p in pictures})
    with replacing(args.out) as root:
        (root / 'meta').mkdir()
        targets: dict[Path, str] = {}
        for name, pictures in splits.items():
            lines = []
            for picture in pictures:
                inside = f'{picture.kind}/{picture.file}'
                targets[root / name / inside] = picture.name
                lines.append(f'{inside} {kinds.index(picture.kind)}\n')
            (root / 'meta' / f'{name}.txt').write_text(''.join(lines))
        place_images(tree, targets, args)
        write_report(report, root)
    print(f'written to {args.out}: train/, val/, meta/, report.txt')


def main(argv: list[str] | None = None) -> None:
    """Convert from the command line."""
    parser = make_parser(__doc__, 'data/mini-imagenet')
    parser.add_argument(
        '--small',
        action='store_true',
        help=f'Take images of less than {MIN_SIDE} px too.',
    )
    args = parser.parse_args(argv)
    with one_line_errors(args.out):
        check_out(args.out, args.force, has_report_of(TITLE), TITLE)
        tree = Tree(args.source)
        pictures, found = find(tree)
        good, unreadable = check_images(tree, pictures, args)
        notes: list[Note] = []
        add_notes(notes, found + unreadable, args.strict)
        splits, rule = split(good)
        report = Report(TITLE, rule)
        for name, each in (('train', TRAIN), ('val', VAL)):
            official = {'images': each * len(CLASSES), 'classes': 100}
            official |= dict.fromkeys(CLASSES, each)
            report.add(name, count(splits[name]), official, notes)
            notes = []
        check_counts(report, args.allow_incomplete)
        write_folders(tree, splits, report, args)


if __name__ == '__main__':
    main()
