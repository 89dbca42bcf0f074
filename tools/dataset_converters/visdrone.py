# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Convert VisDrone2019-DET to COCO's format.

SRC holds VisDrone2019-DET-{train,val,test-dev}, as archives or unpacked::

    python tools/dataset_converters/visdrone.py SRC

test-dev becomes the split test; test-challenge has no labels and is left
out. The ignored regions stand in the record of each image, for VisDrone's own
metric; with --ignored-regions crowd they also are crowds of every class, in
which neither COCO's metric nor training counts a detection as wrong.
"""

from functools import partial

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

TITLE = 'VisDrone2019-DET'
#: Their ids in the files are 1 to 10.
CLASSES = (
    'pedestrian',
    'people',
    'bicycle',
    'car',
    'van',
    'truck',
    'tricycle',
    'awning-tricycle',
    'bus',
    'motor',
)
IGNORED, OTHERS = 0, 11  # categories that are no classes
SPLITS = {'train': 'train', 'val': 'val', 'test': 'test-dev'}
# Boxes in the order of CLASSES; train without its one car of zero height.
BOXES = {
    'train': (79337, 27059, 10480, 144866, 24956, 12875, 4812, 3246, 5926,
              29647),
    'val': (8844, 5125, 1287, 14064, 1975, 750, 1045, 532, 251, 4886),
    'test': (21006, 6376, 1302, 28074, 5771, 2659, 530, 599, 2940, 5845),
}  # fmt: skip
IMAGES = {'train': 6471, 'val': 548, 'test': 1610}
OFFICIAL = {
    split: {
        'images': IMAGES[split],
        'boxes': sum(boxes),
        **dict(zip(CLASSES, boxes)),
    }
    for split, boxes in BOXES.items()
}


def find(tree: Tree) -> tuple[dict, dict]:
    """Find the images and annotations of each split.

    Returns:
        Split -> samples, whose annotation is the name of a file, and split
        -> notes. A split of which nothing is there has no samples.

    Raises:
        ConversionError: There is nothing of any split.
    """
    samples: dict[str, list[Sample]] = {}
    notes: dict[str, list[Note]] = {}
    for split, part in SPLITS.items():
        root = rf'(?:^|/){TITLE}-{part}/(?:.*/)?'
        images = tree.index(root + r'images/([^/]+)\.jpe?g$')
        texts = tree.index(root + r'annotations/([^/]+)\.txt$')
        samples[split] = [
            Sample(image, image.split('/')[-1], texts[key])
            for key, image in images.items()
            if key in texts
        ]
        notes[split] = [
            Note('image left out: no annotation file', images[key], True)
            for key in images.keys() - texts.keys()
        ] + [
            Note('annotation left out: no image', texts[key], True)
            for key in texts.keys() - images.keys()
        ]
        notes[split].sort()
    if not any(samples.values()):
        raise ConversionError(
            f'no {TITLE}-{{train,val,test-dev}}/images/*.jpg with '
            f'annotations/*.txt; found instead: {tree.describe() or "nothing"}'
        )
    return samples, notes


def read(
    tree: Tree,
    crowd: bool,
    sample: Sample,
    width: int,
    height: int,
    notes: list[Note],
) -> tuple[list[Box], dict]:
    """Read an annotation file: a line an object, of eight whole numbers.

    They are left, top, width and height in px from 0, score, category,
    truncation and occlusion. Some lines end in a comma, some files in an
    empty line.

    Args:
        tree: The official files.
        crowd: Whether ignored regions are also crowds of every class.
        sample: The image.
        width: Its width, px.
        height: Its height, px.
        notes: Takes what was left out.
    """
    boxes: list[Box] = []
    crowds: list[Box] = []
    regions: list[list[int]] = []
    lines = tree.text(sample.annotation).splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f'{sample.annotation}:{number}'
        try:
            x, y, w, h, _, category, _, _ = map(int, line.split(',')[:8])
        except ValueError:
            what = 'line skipped: not eight whole numbers'
            notes.append(Note(what, where, True))
            continue
        if category == IGNORED:
            if w > 0 and h > 0:
                regions.append([x, y, w, h])
                crowds += [
                    Box(label, (x, y, w, h), where, crowd=True)
                    for label in range(len(CLASSES) if crowd else 0)
                ]
            else:
                notes.append(Note('ignored region of zero size', where))
        elif category == OTHERS:
            notes.append(Note('box dropped: category others', where))
        elif 1 <= category <= len(CLASSES):
            boxes.append(Box(category - 1, (x, y, w, h), where))
        else:
            what = f'line skipped: no category {category}'
            notes.append(Note(what, where, True))
    return boxes + crowds, {'ignored_regions': regions}


def main(argv: list[str] | None = None) -> None:
    """Convert from the command line."""
    parser = make_parser(__doc__, 'data/visdrone')
    parser.add_argument(
        '--ignored-regions',
        choices=('drop', 'crowd'),
        default='drop',
        help='What COCO boxes there are of them: none, as in papers that '
        'print COCO AP, or crowds of every class. Default: %(default)s.',
    )
    args = parser.parse_args(argv)
    crowd = args.ignored_regions == 'crowd'
    with one_line_errors(args.out):
        check_out(args.out, args.force, has_report_of(TITLE), TITLE)
        tree = Tree(args.source)
        samples, notes = find(tree)
        protocol = 'train, val, test-dev; ignored regions '
        protocol += 'are crowds' if crowd else 'are no boxes'
        reader = partial(read, tree, crowd)
        convert_detection(
            TITLE, protocol, CLASSES, tree, samples, notes, reader, OFFICIAL,
            args,
        )  # fmt: skip


if __name__ == '__main__':
    main()
