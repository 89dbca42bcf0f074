# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Reduce Teledyne FLIR ADAS v2 to the classes of a study, in COCO's format.

SRC holds FLIR_ADAS_v2, as an archive or unpacked::

    python tools/dataset_converters/flir.py SRC

Its annotations are COCO's already but list 80 categories, most of them empty,
under names of their own; here only the wanted ones are left, in order, and
checked. train and val are the thermal images; --video adds the frames of the
video test as split test, --modality rgb takes the visible ones.
"""

import json
import re
from collections import defaultdict
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

TITLE = 'FLIR ADAS v2'
NINE = (
    'person', 'bike', 'car', 'motor', 'bus', 'truck', 'light', 'hydrant',
    'sign',
)  # fmt: skip
#: Those that occur in the visible images.
FOURTEEN = (
    'person', 'bike', 'car', 'motor', 'bus', 'train', 'truck', 'light',
    'hydrant', 'sign', 'skateboard', 'stroller', 'scooter', 'other vehicle',
)  # fmt: skip
#: Those that its README names, by their ids.
FIFTEEN = (*FOURTEEN[:10], 'dog', *FOURTEEN[10:])
CLASSES = {'3': NINE[:3], '9': NINE, '14': FOURTEEN, '15': FIFTEEN}
# Images, then boxes in the order of FIFTEEN.
COUNTS = {
    ('thermal', 'train'): (
        10742,
        (50478, 7237, 73623, 1116, 2245, 5, 829, 16198, 1095, 20770, 4, 29,
         15, 15, 1373),
    ),
    ('thermal', 'val'): (
        1144,
        (4470, 170, 7133, 55, 179, 0, 46, 2005, 94, 2472, 0, 3, 6, 0, 63),
    ),
    ('rgb', 'train'): (
        10318,
        (35007, 7560, 71281, 1837, 1879, 9, 1251, 18640, 990, 29531, 0, 412,
         38, 41, 698),
    ),
    ('rgb', 'val'): (
        1085,
        (3223, 193, 7285, 77, 183, 0, 47, 2143, 126, 3581, 0, 4, 7, 0, 40),
    ),
}  # fmt: skip
VIDEO_IMAGES = 3749
# Folders and files of other releases.
OTHER_RELEASES = {
    'v1.3': r'(^|/)thermal_(8_bit/|annotations\.json$)',
    'v1 "aligned"': r'_PreviewData\.jpe?g$',
}


def official_of(modality: str, classes: tuple[str, ...]) -> dict[str, dict]:
    """Return what should be found: split -> images, boxes of each class."""
    official = {}
    for split in ('train', 'val'):
        images, boxes = COUNTS[modality, split]
        wanted = dict(zip(FIFTEEN, boxes))
        official[split] = {'images': images} | {
            name: wanted[name] for name in classes
        }
    return official | {'test': {'images': VIDEO_IMAGES}}


def check_release(tree: Tree) -> None:
    """Refuse older releases.

    Raises:
        ConversionError: It is one.
    """
    for release, pattern in OTHER_RELEASES.items():
        search = re.compile(pattern, re.IGNORECASE).search
        if any(map(search, tree.members)):
            raise ConversionError(
                f'this is FLIR ADAS {release}, with other images, classes and '
                'annotations; v2 has images_thermal_train/coco.json'
            )


def find(
    tree: Tree, folders: dict[str, str], classes: tuple[str, ...]
) -> tuple[dict, dict]:
    """Find the images and annotations of each split.

    Args:
        tree: The official files.
        folders: Split -> its folder.
        classes: Names of the classes.

    Returns:
        Split -> samples, whose annotation is a list of boxes and what is
        added to COCO's record, and split -> notes.

    Raises:
        ConversionError: A folder or its coco.json is missing or no COCO.
    """
    check_release(tree)
    samples, notes = {}, {}
    for split, folder in folders.items():
        # A key is a group; the empty one finds the file itself.
        found = tree.index(rf'(?:^|/){folder}/()coco\.json$')
        if not found:
            raise ConversionError(
                f'no {folder}/coco.json; found instead: '
                f'{tree.describe() or "nothing"}'
            )
        (name,) = found.values()
        try:
            data = json.loads(tree.members[name].read())
            samples[split], notes[split] = find_split(
                tree, name, data, classes
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConversionError(
                f'{name}: is not of COCO, {type(error).__name__}: {error}'
            ) from error
    return samples, notes


def find_split(
    tree: Tree, name: str, data: dict, classes: tuple[str, ...]
) -> tuple[list[Sample], list[Note]]:
    """Sort the annotations of a split by image; see :func:`find`."""
    labels = {
        category['id']: classes.index(category['name'])
        for category in data['categories']
        if category['name'] in classes
    }
    names = {category['name'] for category in data['categories']}
    notes = [
        Note(f'class {wanted} is not among the categories', name, True)
        for wanted in classes
        if wanted not in names
    ]
    known = {image['id'] for image in data['images']}
    ids = {category['id'] for category in data['categories']}
    boxes: dict[int, list[Box]] = defaultdict(list)
    for item in data['annotations']:
        where = f'{name}, annotation {item["id"]}'
        if item['image_id'] not in known:
            what = f'box dropped: no image {item["image_id"]}'
            notes.append(Note(what, where, True))
        elif item['category_id'] not in ids:
            what = f'box dropped: no category {item["category_id"]}'
            notes.append(Note(what, where, True))
        elif item['category_id'] not in labels:
            notes.append(Note('box dropped: class not wanted', where))
        elif len(item['bbox']) != 4:
            notes.append(Note('box dropped: not four numbers', where, True))
        else:
            x, y, w, h = map(float, item['bbox'])
            label, crowd = labels[item['category_id']], item.get('iscrowd')
            box = Box(label, (x, y, w, h), where, bool(crowd))
            boxes[item['image_id']].append(box)
    samples = []
    folder = name.removesuffix('coco.json')
    for image in sorted(data['images'], key=lambda i: i['file_name']):
        path = folder + image['file_name']
        if path in tree.members:
            found = boxes[image['id']], image
            samples.append(Sample(path, Path(path).name, found))
        else:
            what = 'image left out: listed, but not there'
            notes.append(Note(what, path, True))
    return samples, notes


def read(
    sample: Sample, width: int, height: int, notes: list[Note]
) -> tuple[list[Box], dict]:
    """Return the boxes of an image, found before, and what it was taken in.

    Args:
        sample: The image.
        width: Its width, px.
        height: Its height, px.
        notes: Takes a size that is another in coco.json.
    """
    boxes, image = sample.annotation
    if (image.get('width'), image.get('height')) != (width, height):
        what = 'image of another size than coco.json says'
        where = f'{sample.image} ({width} x {height})'
        notes.append(Note(what, where))
    extra = image.get('extra_info')
    return boxes, {'extra_info': extra} if extra else {}


def main(argv: list[str] | None = None) -> None:
    """Convert from the command line."""
    parser = make_parser(__doc__, 'data/flir')
    parser.add_argument(
        '--modality',
        choices=('thermal', 'rgb'),
        default='thermal',
        help='Which images. Default: %(default)s.',
    )
    parser.add_argument(
        '--classes',
        choices=CLASSES,
        default='14',
        help='3: person, bike, car; 9: those with enough data; 14: those of '
        'the visible images, what configs/ are for; 15: with dog. Default: '
        '%(default)s.',
    )
    parser.add_argument(
        '--video',
        action='store_true',
        help='Convert the video test too, as split test.',
    )
    args = parser.parse_args(argv)
    classes = CLASSES[args.classes]
    with one_line_errors(args.out):
        check_out(args.out, args.force, has_report_of(TITLE), TITLE)
        folders = {
            split: f'images_{args.modality}_{split}'
            for split in ('train', 'val')
        }
        if args.video:
            folders['test'] = f'video_{args.modality}_test'
        tree = Tree(args.source)
        samples, notes = find(tree, folders, classes)
        official = official_of(args.modality, classes)
        protocol = f'{args.modality}, {args.classes} classes'
        convert_detection(
            TITLE, protocol, classes, tree, samples, notes, read, official,
            args,
        )  # fmt: skip


if __name__ == '__main__':
    main()
