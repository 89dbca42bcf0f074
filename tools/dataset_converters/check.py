# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Check the data of a config before it is trained: files, classes, boxes.

For detectors, classifiers and segmentors::

    python tools/dataset_converters/check.py CONFIG

Each split is loaded through the config's own data set. Looked at are its
classes, whether every image and mask is there, can be opened and has the size
that is annotated, EXIF rotation, boxes that cannot be trained or scored,
labels without a class, and the number of images and boxes where the config
states the official ones. Printed are the boxes, images or pixels of each
class, and drawn are samples, as the config loads them::

    OUT/train.png, OUT/val.png, ...    with boxes, masks or labels

The exit code is 1 if something is wrong.
"""

import argparse
import colorsys
import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from archives import ORIENTATION
from conversion import parallel, positive
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.io import write_png
from torchvision.transforms.functional import resize
from torchvision.utils import (
    draw_bounding_boxes,
    draw_segmentation_masks,
    make_grid,
)

from mmattn.engine import one_line_errors, read_config
from mmattn.errors import ConfigError

SPLITS = ('train', 'val', 'test')
SHOWN = 5  # examples of a problem
TILE = 320  # px, side of a sample on the sheet
BAR = 40  # characters, the longest bar
TINY = 'boxes of less than a pixel, which are scored but not trained'
IGNORED = 255  # label of pixels that are not scored
FULL_ADE20K = re.compile(r'_seg\.png$')


class Found(NamedTuple):
    """What a split consists of."""

    counts: dict[str, int]  # images, boxes, annotations
    histogram: Counter  # class -> boxes, images or pixels
    problems: dict[str, list[str]]  # what is wrong -> where
    notes: dict[str, list[str]]  # what is worth knowing -> where


def add(told: dict[str, list[str]], what: str, where: Any) -> None:
    """Add a place to what is told."""
    told.setdefault(what, []).append(str(where))


# ------------------------------------------------------------------ loading


def splits_of(
    cfg: Config, wanted: Sequence[str]
) -> Iterator[tuple[str, dict]]:
    """Yield the name of each wanted split and the config of its data set.

    Wrappers such as RepeatDataset are taken off; what was yielded already, as
    where test is the same as val, is left out.
    """
    seen = []
    for split in wanted:
        data = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        while data and 'dataset' in data:
            data = data['dataset']
        if data and data not in seen:
            seen.append(data)
            yield split, data


def build(data: dict) -> Any:
    """Build a data set without its pipeline.

    Raises:
        ConfigError: It holds several data sets, each of which has to be
            checked alone.
    """
    if 'datasets' in data:
        raise ConfigError(
            f'{data["type"]} holds several data sets: check a config of each'
        )
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        return DATASETS.build({**data, 'pipeline': []})


def loads_rotated(data: dict) -> bool:
    """Tell whether a pipeline turns images as their EXIF data ask for."""
    loader = data['pipeline'][0]
    kind = str(loader.get('color_type', 'color'))
    return 'ignore_orientation' not in kind and kind != 'unchanged'


# ----------------------------------------------------------------- checking


class Opened(NamedTuple):
    """What one image is like."""

    size: tuple[int, int] | None  # width, height in px; None: unreadable
    rotated: bool  # by EXIF
    labels: dict[int, int] | None  # of the mask: label -> pixels
    mask_size: tuple[int, int] | None


def open_image(item: dict) -> Opened:
    """Open an image, and its mask if it has one.

    Args:
        item: What a data set tells of an image.
    """
    size, rotated, labels, mask_size = None, False, None, None
    try:
        with Image.open(item['img_path']) as image:
            size = image.size
            rotated = image.getexif().get(ORIENTATION, 1) != 1
    except (OSError, Image.DecompressionBombError):
        pass
    if item.get('seg_map_path'):
        try:
            with Image.open(item['seg_map_path']) as mask:
                mask_size, mode = mask.size, mask.mode
                pixels = np.asarray(mask)
            if mode in ('L', 'P'):
                values, times = np.unique(pixels, return_counts=True)
                labels = dict(zip(values.tolist(), times.tolist()))
        except OSError:
            pass
    return Opened(size, rotated, labels, mask_size)


def check_split(
    dataset: Any, data: dict, split: str, workers: int, classes: int | None
) -> Found:
    """Check all of a split.

    Args:
        dataset: The data set, built without a pipeline.
        data: Its config.
        split: Its name.
        workers: Number of threads that open images.
        classes: Number of classes of the model, None if it has no head.
    """
    names = dataset.metainfo.get('classes') or ()
    found = Found({'images': 0}, Counter(dict.fromkeys(names, 0)), {}, {})
    if classes is not None and names and len(names) != classes:
        what = f'the model has {classes} classes, the data {len(names)}'
        add(found.problems, what, type(dataset).__name__)
    if hasattr(dataset, 'cat_ids'):  # COCO's format
        annotations = json.loads(Path(dataset.ann_file).read_text())
        check_annotations(annotations, dataset, found)
        items = annotated_images(annotations, dataset)
    else:
        items = [dataset.get_data_info(i) for i in range(len(dataset))]
    found.counts['images'] = len(items)
    opened = parallel(open_image, items, workers, f'reading {split}')
    for item, image in zip(items, opened, strict=True):
        check_image(item, image, loads_rotated(data), found)
        if 'seg_map_path' in item:
            check_mask(item, image, names, found)
        elif 'gt_label' in item:
            label = int(item['gt_label'])
            found.histogram[names[label] if names else str(label)] += 1
    return found


def annotated_images(annotations: dict, dataset: Any) -> list[dict]:
    """Return all images of an annotation file, with their paths.

    A data set that is trained leaves those without boxes out.
    """
    root = Path(dataset.data_prefix['img'])
    return [
        {**image, 'img_path': str(root / image['file_name'])}
        for image in annotations['images']
    ]


def check_image(item: dict, image: Opened, turned: bool, found: Found) -> None:
    """Check an image's file, its size and its rotation."""
    path = item['img_path']
    if image.size is None:
        there = Path(path).is_file()
        what = 'unreadable images' if there else 'missing images'
        add(found.problems, what, path)
        return
    if 'width' in item and image.size != (item['width'], item['height']):
        what = 'images of another size than annotated'
        where = f'{path} ({image.size[0]} x {image.size[1]}, not '
        where += f'{item["width"]} x {item["height"]})'
        add(found.problems, what, where)
    if image.rotated:
        what = 'images with EXIF rotation'
        if turned and 'width' in item:
            what += ', which the pipeline applies and the boxes do not know'
            what += " (color_type='color_ignore_orientation')"
            add(found.problems, what, path)
        else:
            add(found.notes, what, path)


def check_mask(
    item: dict, image: Opened, names: tuple[str, ...], found: Found
) -> None:
    """Check a mask: its file, its size and its labels.

    Raises:
        ConfigError: It is of the full ADE20K, which is another data set.
    """
    path = item['seg_map_path']
    if FULL_ADE20K.search(item['img_path']) or FULL_ADE20K.search(path):
        raise ConfigError(
            f'{path} is of the full ADE20K, with thousands of classes; the '
            'configs are for ADEChallengeData2016'
        )
    if image.labels is None:
        there = Path(path).is_file()
        what = 'masks that are no 8-bit image' if there else 'missing masks'
        add(found.problems, what, path)
        return
    if image.size and image.mask_size != image.size:
        add(found.problems, 'masks of another size than the image', path)
    labels = image.labels
    if item['reduce_zero_label']:
        labels = {(k - 1 if k else IGNORED): n for k, n in labels.items()}
    if labels.keys() <= {IGNORED}:
        add(found.notes, 'masks without a pixel that is scored', path)
    for label, pixels in labels.items():
        if label < len(names):
            found.histogram[names[label]] += pixels
        elif label != IGNORED:
            add(found.problems, f'masks with a label {label}', path)


def check_annotations(data: dict, dataset: Any, found: Found) -> None:
    """Check the boxes of an annotation file of COCO's format.

    Args:
        data: What the file holds.
        dataset: The data set that it is of.
        found: Takes what is found.
    """
    images = {image['id']: image for image in data['images']}
    names = {
        category['id']: category['name'] for category in data['categories']
    }
    ids = Counter(item['id'] for item in data['annotations'])
    for number, times in ids.items():
        if times > 1:
            add(found.problems, 'annotation ids that occur twice', number)
    if 0 in ids:
        what = 'annotation id 0, which pycocotools scores as missed'
        add(found.problems, what, dataset.ann_file)
    wanted = [a for a in data['annotations'] if a['category_id'] in names]
    for item in data['annotations']:
        if item['image_id'] not in images:
            add(found.problems, 'boxes of no image', item['id'])
        elif item['category_id'] not in names:
            add(found.problems, 'boxes of no category', item['id'])
        elif what := wrong_box(item, images[item['image_id']]):
            # Even COCO has two of them.
            told = found.notes if what == TINY else found.problems
            add(told, what, item['id'])
    boxes = [item for item in wanted if not item.get('iscrowd')]
    found.counts['boxes'] = len(boxes)
    found.counts['annotations'] = len(data['annotations'])
    labels = [names[item['category_id']] for item in boxes]
    used = set(dataset.metainfo['classes'])
    found.histogram.update(name for name in labels if name in used)


def wrong_box(item: dict, image: dict) -> str:
    """Say what is wrong with a box, empty if nothing is."""
    x, y, w, h = item['bbox']
    if not np.isfinite(item['bbox']).all():
        return 'boxes that are not finite'
    if min(w, h) < 1:
        return TINY
    over = max(x + w - image['width'], y + h - image['height'], -x, -y)
    if over > 1:
        return 'boxes that reach out of their image by more than a pixel'
    return ''


def check_counts(official: dict, found: Found) -> None:
    """Compare what was counted with the official numbers."""
    for key, number in official.items():
        if found.counts.get(key) != number:
            where = f'{found.counts.get(key, 0):,} {key}, official {number:,}'
            add(found.problems, 'counts that differ', where)


# ------------------------------------------------------------------ drawing


def draw_sheet(dataset: Any, data: dict, count: int) -> torch.Tensor:
    """Draw samples of a split, evenly spread over it.

    Args:
        dataset: The data set, built without a pipeline.
        data: Its config, whose pipeline loads the images.
        count: Number of samples.

    Returns:
        A picture, (3, H, W) uint8.

    Raises:
        ConfigError: Not one image can be loaded.
    """
    load = TRANSFORMS.build(data['pipeline'][0])
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset)))
    tiles = []
    for i in chosen.round().astype(int).tolist():
        item = dataset.get_data_info(i)
        try:
            pixels = load(dict(item))['img']
        except (OSError, AssertionError):  # told as missing or unreadable
            continue
        tiles.append(draw_tile(pixels, item, dataset.metainfo))
    if not tiles:
        raise ConfigError(f'none of {len(dataset):,} images can be loaded')
    return make_grid(torch.stack(tiles), nrow=4, padding=4, pad_value=255)


def draw_tile(pixels: np.ndarray, item: dict, meta: dict) -> torch.Tensor:
    """Draw an image and what is annotated of it.

    Args:
        pixels: The image, (H, W) or (H, W, 3), BGR.
        item: What the data set tells of it.
        meta: The data set's classes.

    Returns:
        A square of TILE px, (3, TILE, TILE) uint8.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None].repeat(3, axis=2)
    height, width = pixels.shape[:2]
    scale = TILE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    picture = torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)
    picture = resize(picture, size, antialias=True)
    names = meta.get('classes') or ()
    if 'instances' in item:
        picture = draw_objects(picture, item['instances'], scale, names)
    elif 'seg_map_path' in item:
        picture = draw_mask(picture, item, names)
    else:
        label = int(item['gt_label'])
        whole = torch.tensor([[0, 0, size[1] - 1, size[0] - 1]])
        name = names[label] if names else str(label)
        picture = draw_bounding_boxes(picture, whole, [name], colors='white')
    square = torch.full((3, TILE, TILE), 128, dtype=torch.uint8)
    square[:, : size[0], : size[1]] = picture
    return square


def color(label: int, classes: int) -> tuple[int, int, int]:
    """Return a bright colour of a class."""
    hue = label / max(classes, 1)
    return tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 1, 1))


def draw_objects(
    picture: torch.Tensor,
    instances: list[dict],
    scale: float,
    names: tuple[str, ...],
) -> torch.Tensor:
    """Draw boxes, and masks where there are some.

    Args:
        picture: The image, scaled, (3, H, W) uint8.
        instances: Its objects, as mmdet's data sets tell of them.
        scale: How much it was scaled.
        names: Names of the classes.
    """
    for instance in instances:
        label = instance['bbox_label']
        ignored = instance['ignore_flag']
        shade = (255, 255, 255) if ignored else color(label, len(names))
        if 'mask' in instance:
            mask = torch.from_numpy(decode(instance['mask'], picture, scale))
            mask = resize(mask[None], picture.shape[1:]) > 0
            picture = draw_segmentation_masks(picture, mask, 0.4, shade)
        picture = draw_bounding_boxes(
            picture,
            torch.tensor([instance['bbox']]) * scale,
            [names[label] + (' (ignored)' if ignored else '')],
            colors=shade,
            width=2,
        )
    return picture


def decode(mask: Any, picture: torch.Tensor, scale: float) -> np.ndarray:
    """Return a mask of COCO, polygons or run lengths, as (H, W) uint8."""
    height, width = (round(side / scale) for side in picture.shape[1:])
    if isinstance(mask, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
    elif isinstance(mask['counts'], list):
        mask = coco_mask.frPyObjects(mask, *mask['size'])
    return coco_mask.decode(mask)


def draw_mask(
    picture: torch.Tensor, item: dict, names: tuple[str, ...]
) -> torch.Tensor:
    """Draw a mask of classes onto an image, (3, H, W) uint8."""
    try:
        with Image.open(item['seg_map_path']) as image:
            size = picture.shape[:0:-1]  # width, height
            labels = np.asarray(image.resize(size, Image.Resampling.NEAREST))
    except OSError:  # told as missing
        return picture
    labels = labels.astype(int)
    if item['reduce_zero_label']:
        labels = np.where(labels == 0, IGNORED, labels - 1)
    for label in np.unique(labels[labels < len(names)]).tolist():
        mask = torch.from_numpy(labels == label)
        shade = color(label, len(names))
        picture = draw_segmentation_masks(picture, mask, 0.4, shade)
    return picture


# ------------------------------------------------------------------- report


def describe(split: str, found: Found) -> str:
    """Return what was found in a split as people read it."""
    counts = ', '.join(f'{n:,} {key}' for key, n in found.counts.items())
    lines = [f'{split}: {counts}']
    most = max(found.histogram.values(), default=0)
    width = max(map(len, found.histogram), default=0)
    for name, number in found.histogram.items():
        bar = '#' * round(BAR * number / max(most, 1))
        lines.append(f'  {name:{width}} {number:>12,}  {bar}'.rstrip())
    for title, told in (('note', found.notes), ('WRONG', found.problems)):
        for what, where in told.items():
            some = ', '.join(where[:SHOWN])
            more = ', ...' if len(where) > SHOWN else ''
            lines.append(f'  {title}: {len(where):,} x {what}: {some}{more}')
    return '\n'.join(lines)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='The config file.')
    parser.add_argument(
        '--out',
        type=Path,
        help='Folder for the pictures. Default: work_dirs/<config>/check.',
    )
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=SPLITS,
        default=SPLITS,
        help='What to check. Default: all that the config has.',
    )
    parser.add_argument(
        '--samples',
        type=positive,
        default=12,
        help='Images on each picture. Default: %(default)s.',
    )
    parser.add_argument(
        '--workers',
        type=positive,
        default=4,
        help='Threads that open images. Default: %(default)s.',
    )
    parser.add_argument(
        '--allow-incomplete',
        action='store_true',
        help='Do not compare counts with the official ones.',
    )
    return parser.parse_args(argv)


def classes_of(cfg: Config) -> int | None:
    """Return the number of classes that the model of a config tells apart."""
    model = cfg.model
    head = model.get('roi_head', {}).get('bbox_head')
    head = head or model.get('bbox_head') or model.get('decode_head')
    head = head or model.get('head') or {}
    if isinstance(head, (list, tuple)):
        head = head[0]
    return head.get('num_classes')


def check(cfg: Config, args: argparse.Namespace) -> int:
    """Check the splits of a config; return how many have problems."""
    wrong = 0
    args.out.mkdir(parents=True, exist_ok=True)
    for split, data in splits_of(cfg, args.splits):
        dataset = build(data)
        found = check_split(
            dataset, data, split, args.workers, classes_of(cfg)
        )
        if not args.allow_incomplete:
            official = cfg.get('official_counts', {}).get(split, {})
            check_counts(official, found)
        print(describe(split, found))
        picture = args.out / f'{split}.png'
        write_png(draw_sheet(dataset, data, args.samples), str(picture))
        print(f'  samples: {picture}\n')
        wrong += bool(found.problems)
    return wrong


def main(argv: list[str] | None = None) -> None:
    """Check from the command line."""
    args = parse_args(argv)
    name = Path(args.config).stem
    args.out = args.out or Path('work_dirs', name, 'check')
    with one_line_errors():
        cfg = read_config(args.config)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            wrong = check(cfg, args)
    if wrong:
        raise SystemExit(f'error: {wrong} of the splits above are wrong')


if __name__ == '__main__':
    main()
