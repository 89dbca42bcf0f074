# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Convert Pascal VOC 2007 and 2012 to COCO's format.

SRC holds VOCtrainval_06-Nov-2007, VOCtest_06-Nov-2007 and
VOCtrainval_11-May-2012, as .tar archives or unpacked (VOCdevkit)::

    python tools/dataset_converters/voc.py SRC

The split train is trainval of both years, test is 2007's test. Objects marked
difficult become crowds: VOC's and COCO's scoring ignore them.
"""

from functools import partial
from xml.etree import ElementTree

from archives import ConversionError, Tree
from conversion import (
    Box,
    Note,
    Sample,
    UnreadableError,
    check_out,
    convert_detection,
    has_report_of,
    make_parser,
    one_line_errors,
)

TITLE = 'Pascal VOC'
CLASSES = (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat',
    'chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person',
    'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
)  # fmt: skip
# Images, boxes, and boxes with the difficult ones.
COUNTS = {
    ('2007', 'trainval'): (5011, 12608, 15662),
    ('2012', 'trainval'): (11540, 27450, 31561),
    ('2007', 'test'): (4952, 12032, 14976),
}


def official_of(parts: list[tuple[str, str]]) -> dict[str, int]:
    """Return what should be found in parts (year, set) together."""
    images, boxes, all_boxes = map(sum, zip(*(COUNTS[p] for p in parts)))
    return {'images': images, 'boxes': boxes, 'crowds': all_boxes - boxes}


def find(
    tree: Tree, splits: dict[str, list[tuple[str, str]]]
) -> tuple[dict, dict]:
    """Find the images and annotations of each split.

    Args:
        tree: The official files.
        splits: Split -> the parts (year, set) that it consists of.

    Returns:
        Split -> samples, whose annotation is the name of a file, and split
        -> notes.

    Raises:
        ConversionError: There is no list of any part.
    """
    root = r'(?:^|/)VOC(2007|2012)/'
    images = tree.index(root + r'JPEGImages/([^/]+)\.jpe?g$')
    texts = tree.index(root + r'Annotations/([^/]+)\.xml$')
    lists = tree.index(root + r'ImageSets/Main/(trainval|test)\.txt$')
    if not lists:
        raise ConversionError(
            'no VOC2007/ImageSets/Main/trainval.txt; found instead: '
            f'{tree.describe() or "nothing"}'
        )
    samples: dict[str, list[Sample]] = {}
    notes: dict[str, list[Note]] = {}
    for split, parts in splits.items():
        samples[split], notes[split] = [], []
        for year, part in parts:
            if (year, part) not in lists:
                what = 'part left out: no list'
                where = f'VOC{year}/ImageSets/Main/{part}.txt'
                notes[split].append(Note(what, where, True))
                continue
            for stem in sorted(tree.text(lists[year, part]).split()):
                image = images.get((year, stem.lower()))
                text = texts.get((year, stem.lower()))
                if image and text:
                    name = image.split('/')[-1]
                    samples[split].append(Sample(image, name, text))
                    continue
                missing = 'annotation file' if image else 'image'
                what = f'image left out: listed, but no {missing}'
                where = f'VOC{year}, {stem}'
                notes[split].append(Note(what, where, True))
    return samples, notes


def read(
    tree: Tree,
    inclusive: bool,
    sample: Sample,
    width: int,
    height: int,
    notes: list[Note],
) -> tuple[list[Box], dict]:
    """Read an annotation file.

    The coordinates count from 1 and include the last pixel; two files have
    fractions. The order of tags varies, and parts of an object (a head) have
    boxes of their own that are not read.

    Args:
        tree: The official files.
        inclusive: Whether a box includes its last pixel.
        sample: The image.
        width: Its width, px.
        height: Its height, px.
        notes: Takes what was left out.

    Raises:
        UnreadableError: It is no XML.
    """
    name, boxes = sample.annotation, []
    try:
        root = ElementTree.fromstring(tree.members[name].read())
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise UnreadableError(f'{name} is no XML, {error}') from error
    for number, item in enumerate(root.findall('object'), start=1):
        where = f'{name}, object {number}'
        label = (item.findtext('name') or '').strip()
        if label not in CLASSES:
            what = f'object skipped: no class {label or "given"}'
            notes.append(Note(what, where, True))
            continue
        try:
            xmin, ymin, xmax, ymax = (
                float(item.findtext(f'bndbox/{side}', ''))
                for side in ('xmin', 'ymin', 'xmax', 'ymax')
            )
        except ValueError:
            what = 'object skipped: bndbox without four numbers'
            notes.append(Note(what, where, True))
            continue
        w, h = xmax - xmin + inclusive, ymax - ymin + inclusive
        difficult = (item.findtext('difficult') or '0').strip() == '1'
        box = (xmin - 1, ymin - 1, w, h)
        boxes.append(Box(CLASSES.index(label), box, where, difficult))
    return boxes, {}


def main(argv: list[str] | None = None) -> None:
    """Convert from the command line."""
    parser = make_parser(__doc__, 'data/voc0712')
    parser.add_argument(
        '--years',
        nargs='+',
        choices=('2007', '2012'),
        default=['2007', '2012'],
        help='Years whose trainval sets are for training. Default: both.',
    )
    parser.add_argument(
        '--exclusive',
        action='store_true',
        help="Boxes end before their last pixel, as in mmdet's converter: "
        'a pixel smaller. For comparisons with tables that were made so.',
    )
    args = parser.parse_args(argv)
    with one_line_errors(args.out):
        check_out(args.out, args.force, has_report_of(TITLE), TITLE)
        years = sorted(set(args.years))
        splits = {
            'train': [(year, 'trainval') for year in years],
            'test': [('2007', 'test')],
        }
        tree = Tree(args.source)
        samples, notes = find(tree, splits)
        official = {
            split: official_of(parts) for split, parts in splits.items()
        }
        protocol = f'trainval {" and ".join(years)}, test 2007'
        protocol += ', boxes a pixel smaller' if args.exclusive else ''
        reader = partial(read, tree, not args.exclusive)
        convert_detection(
            TITLE, protocol, CLASSES, tree, samples, notes, reader, official,
            args,
        )  # fmt: skip


if __name__ == '__main__':
    main()
