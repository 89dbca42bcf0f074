# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Convert ExDark (Exclusively Dark) to COCO's format.

SRC holds ExDark, ExDark_Annno (its name, with three n) and
imageclasslist.txt, the first two as archives or unpacked::

    python tools/dataset_converters/exdark.py SRC

The boxes were drawn on the images as they are stored, without the rotation
that EXIF asks for: load them with color_type='color_ignore_orientation'.
"""

from functools import partial
from pathlib import Path

from archives import ConversionError, Tree
from conversion import (
    Box,
    Note,
    Sample,
    check_out,
    convert_detection,
    has_report_of,
    make_parser,
    one_line_errors,
)

TITLE = 'ExDark'
#: Their numbers in the list are 1 to 12.
CLASSES = (
    'Bicycle',
    'Boat',
    'Bottle',
    'Bus',
    'Car',
    'Cat',
    'Chair',
    'Cup',
    'Dog',
    'Motorbike',
    'People',
    'Table',
)
SPLITS = ('train', 'val', 'test')  # their numbers in the list are 1 to 3
LIGHTS = (
    'Low', 'Ambient', 'Object', 'Single', 'Weak', 'Strong', 'Screen',
    'Window', 'Shadow', 'Twilight',
)  # fmt: skip
LIST = 'imageclasslist.txt'
# Boxes in the order of CLASSES, by the label of each box.
BOXES = {
    'train': (463, 530, 654, 333, 1238, 311, 1138, 864, 335, 490, 3271, 754),
    'val': (239, 344, 506, 209, 770, 173, 630, 436, 193, 340, 1954, 418),
    'test': (418, 515, 433, 164, 919, 425, 609, 356, 490, 242, 2235, 311),
}
IMAGES = {'train': 3000, 'val': 1800, 'test': 2563}
OFFICIAL = {
    split: {
        'images': IMAGES[split],
        'boxes': sum(boxes),
        **dict(zip(CLASSES, boxes)),
    }
    for split, boxes in BOXES.items()
}


def read_list(text: str, name: str) -> tuple[dict[str, list], list[Note]]:
    """Read which image is in which split.

    A line has a file name and four numbers: class, light, indoors or
    outdoors, split. The first line may be a header.

    Args:
        text: The list.
        name: Its name, for notes.

    Returns:
        Split -> (stem in lower case, what is added to COCO's record), sorted;
        and notes.

    Raises:
        ConversionError: An image is listed twice.
    """
    listed: dict[str, tuple[str, dict]] = {}
    notes: list[Note] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or (number == 1 and '|' in line):
            continue
        try:
            image, kind, light, place, split = words[0], *map(int, words[1:])
            if not 1 <= kind <= len(CLASSES) or min(light, place, split) < 1:
                raise ValueError
            place = ('indoor', 'outdoor')[place - 1]
            extra = {'light': LIGHTS[light - 1], 'place': place}
            split = SPLITS[split - 1]
        except (ValueError, IndexError):
            what = 'line skipped: not a name and class, light, place, split'
            notes.append(Note(what, f'{name}:{number}', True))
            continue
        stem = Path(image).stem.lower()
        if stem in listed:
            raise ConversionError(f'{name}:{number}: {image} is listed twice')
        listed[stem] = split, extra
    by_split: dict[str, list] = {split: [] for split in SPLITS}
    for stem, (split, extra) in sorted(listed.items()):
        by_split[split].append((stem, extra))
    return by_split, notes


def find(tree: Tree, listed: dict[str, list]) -> tuple[dict, dict]:
    """Find the images and annotations of each split.

    File extensions and their letter case differ between list, images and
    annotations, so all are matched by the stem, which is unique.

    Args:
        tree: The official files.
        listed: Of :func:`read_list`.

    Returns:
        Split -> samples, whose annotation is the name of a file and what is
        added to COCO's record, and split -> notes.

    Raises:
        ConversionError: There are no images or annotations at all, two of
            one stem, or none that is listed.
    """
    inside = rf'/(?:.*/)?(?:{"|".join(CLASSES)})/([^/]+)'
    images = tree.index(rf'(?:^|/)ExDark{inside}\.(?:jpe?g|png)$')
    folders = r'(?:^|/)(?:ExDark_Annno|ExDark_Anno|Groundtruth)'
    texts = tree.index(rf'{folders}{inside}\.[a-z]+\.txt$')
    if not images or not texts:
        missing = 'ExDark/<Class>/*' if not images else (
            'ExDark_Annno/<Class>/*.txt'
        )  # fmt: skip
        raise ConversionError(
            f'no {missing}; found instead: {tree.describe() or "nothing"}'
        )
    samples: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    notes: dict[str, list[Note]] = {split: [] for split in SPLITS}
    known = {stem for lines in listed.values() for stem, _ in lines}
    for split, lines in listed.items():
        for stem, extra in lines:
            image, text = images.get((stem,)), texts.get((stem,))
            if image is None:
                what = 'image left out: listed, but not there'
                notes[split].append(Note(what, stem, True))
            elif text is None:
                what = 'image left out: no annotation file'
                notes[split].append(Note(what, image, True))
            else:
                sample = Sample(image, image.split('/')[-1], (text, extra))
                samples[split].append(sample)
    if not any(samples.values()):
        raise ConversionError(
            f'the list names {len(known)} images, none of which is there '
            'with its annotation'
        )
    notes['train'] += [
        Note('image left out: not listed', image)
        for (stem,), image in images.items()
        if stem not in known
    ]
    return samples, notes


def read(
    tree: Tree,
    offset: int,
    sample: Sample,
    width: int,
    height: int,
    notes: list[Note],
) -> tuple[list[Box], dict]:
    """Read an annotation file of Piotr Dollar's toolbox (bbGt version 3).

    A line is a label and eleven numbers, of which the first four are left,
    top, width and height in px. The label decides the class, not the folder.

    Args:
        tree: The official files.
        offset: Where the first pixel is, 0 or 1.
        sample: The image.
        width: Its width, px.
        height: Its height, px.
        notes: Takes what was left out.
    """
    name, extra = sample.annotation
    boxes: list[Box] = []
    for number, line in enumerate(tree.text(name).splitlines(), start=1):
        words = line.split()
        if not words or line.startswith('%'):
            continue
        where = f'{name}:{number}'
        try:
            x, y, w, h = map(float, words[1:5])
        except ValueError:
            what = 'line skipped: not a label and four numbers'
            notes.append(Note(what, where, True))
            continue
        if words[0] not in CLASSES:
            what = f'line skipped: no class {words[0]}'
            notes.append(Note(what, where, True))
            continue
        box = (x - offset, y - offset, w, h)
        boxes.append(Box(CLASSES.index(words[0]), box, where))
    return boxes, extra


def main(argv: list[str] | None = None) -> None:
    """Convert from the command line."""
    parser = make_parser(__doc__, 'data/exdark')
    parser.add_argument(
        '--list',
        type=Path,
        metavar='FILE',
        help=f'Another list of the form of {LIST}, for other splits; the '
        'counts are not checked then.',
    )
    parser.add_argument(
        '--one-based',
        action='store_true',
        help='Take the boxes to count pixels from 1, as Matlab does. '
        'Default: from 0, as other converters do.',
    )
    args = parser.parse_args(argv)
    with one_line_errors(args.out):
        check_out(args.out, args.force, has_report_of(TITLE), TITLE)
        tree = Tree(args.source)
        lists = tree.index(rf'(?:^|/)({LIST})$')
        if args.list is None and not lists:
            raise ConversionError(
                f'no {LIST} in {" ".join(args.source)}; it is in the folder '
                'Groundtruth of the repository of the data set'
            )
        name = args.list or lists[(LIST,)]
        if args.list:  # a mark of byte order is none of its words
            text = args.list.read_text('utf-8-sig', 'replace')
        else:
            text = tree.text(name)
        listed, notes = read_list(text, str(name))
        samples, more = find(tree, listed)
        more['train'] = notes + more['train']
        protocol = 'official splits' if args.list is None else str(args.list)
        protocol += ', boxes from 1' if args.one_based else ''
        reader = partial(read, tree, int(args.one_based))
        official = OFFICIAL if args.list is None else {}
        convert_detection(
            TITLE, protocol, CLASSES, tree, samples, more, reader, official,
            args,
        )  # fmt: skip


if __name__ == '__main__':
    main()
