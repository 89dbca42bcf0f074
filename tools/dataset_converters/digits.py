# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Make the built-in ``digits`` data set: real digits on real photographs.

Handwritten digits (UCI, 1,797 images of 8x8 pixels) are scaled up, tinted,
turned a little and blended onto crops of two photographs. Both come with
scikit-learn, so nothing is downloaded::

    python tools/dataset_converters/digits.py --out data/digits

Train and val share no digit image and no background pixel. Every image
depends on the seed, its split and its number alone, so the same settings
(and library versions) give the same bytes. Two variants are harder::

    python tools/dataset_converters/digits.py --variant dark
    python tools/dataset_converters/digits.py --variant tiny

``dark`` is the same scenes in little light, with a camera's noise, ``tiny``
more and smaller digits; they go to data/digits-dark and data/digits-tiny.
Result::

    OUT/images/{train,val}/000001.png             scenes, 8-bit RGB
    OUT/annotations/instances_{train,val}.json    COCO boxes and masks
    OUT/masks/{train,val}/000001.png              0 background, digit d is d+1
    OUT/classification/{train,val}/<digit>/000001.png    32x32, one digit each
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from conversion import OneLineParser, check_out, replacing
from pycocotools import mask as coco_mask
from tqdm import tqdm

DESCRIPTION = 'mmattn digits: handwritten digits on photographs'
CLASSES = tuple('0123456789')
SPLITS = ('train', 'val')
VAL_FRACTION = 0.25
# Columns (start, stop) of each photograph that a split may show, about 2:1.
# Both cuts go through the main object, so that val is like train and new.
PHOTO_COLUMNS = {
    'china.jpg': {'train': (224, 640), 'val': (0, 224)},
    'flower.jpg': {'train': (0, 384), 'val': (384, 640)},
}
CROP_RANGE = (96, 192)  # side of a background crop, photo px
DIGIT_SHARE = 0.4375  # largest digit, of the scene's side: 56 px of 128
MAX_ANGLE = 12.0  # degrees, either way
MAX_OVERLAP = 0.05  # of the smaller of two boxes
MIN_CONTRAST = 45.0  # luminance, of 255, between tint and its surroundings
ICON_SIZE = 32  # classification image, px
LICENSES = [
    {
        'id': 1,
        'name': 'CC BY 4.0, digits: E. Alpaydin and C. Kaynak, UCI',
        'url': 'https://doi.org/10.24432/C50P49',
    },
    {
        'id': 2,
        'name': 'CC BY 2.0, china.jpg: danielbuechele',
        'url': 'https://www.flickr.com/photos/danielbuechele/6061409035/',
    },
    {
        'id': 3,
        'name': 'CC BY 2.0, flower.jpg: vultilion',
        'url': 'https://www.flickr.com/photos/vultilion/6056698931/',
    },
]


class Variant(NamedTuple):
    """How scenes look."""

    count: tuple[int, int] = (1, 6)  # digits per scene
    sides: tuple[int, int] = (20, 56)  # of a digit before it is turned, px
    icon_sides: tuple[int, int] = (20, 28)  # the same for classification
    light: tuple[float, float] = (1.0, 1.0)  # share of it that is left
    noise: float = 0.0  # standard deviation, of 255


VARIANTS = {
    'plain': Variant(),
    'dark': Variant(light=(0.1, 0.4), noise=6.0),
    'tiny': Variant(count=(6, 16), sides=(8, 20), icon_sides=(8, 12)),
}


class Sources(NamedTuple):
    """What the scenes are made of."""

    glyphs: np.ndarray  # (N, 12, 12) float32, sharpened ink, about 0 to 1
    labels: np.ndarray  # (N, ) int, the digit
    photos: dict[str, np.ndarray]  # name -> (H, W, 3) uint8, BGR


class Instance(NamedTuple):
    """One digit in a scene."""

    digit: int  # index into ``Sources.glyphs``
    label: int
    mask: np.ndarray  # (H, W) bool
    box: tuple[int, int, int, int]  # x, y, w, h, tight around the mask


class Scene(NamedTuple):
    """A picture and what is in it."""

    image: np.ndarray  # (H, W, 3) uint8, BGR
    instances: list[Instance]
    photo: str
    crop: tuple[int, int, int, int]  # x, y, w, h in the photograph


# ---------------------------------------------------------------- sources


def sharpen_digits(images: np.ndarray) -> np.ndarray:
    """Prepare the 8x8 digits for scaling up.

    Each digit gets a blank border of two cells and an unsharp mask: at 8x8
    the holes of 6, 8 and 9 are often only a lighter cell, and faint strokes
    would break. Against the local mean, the first open and the second stay.

    Args:
        images: Ink of each cell, (N, 8, 8).

    Returns:
        (N, 12, 12) float32, about 0 (paper) to 1 (ink), can go beyond.
    """
    glyphs = []
    for image in images.astype(np.float32):
        ink = np.pad(image / image.max(), 2)
        glyphs.append(ink + 1.2 * (ink - cv2.GaussianBlur(ink, (0, 0), 1.2)))
    return np.stack(glyphs)


def load_sources() -> Sources:
    """Read scikit-learn's digits and photographs.

    Raises:
        ModuleNotFoundError: scikit-learn is missing; says how to get it.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_image
    except ModuleNotFoundError as err:
        raise ModuleNotFoundError(
            'the digits come with scikit-learn, which is not installed '
            f'({err}): pip install scikit-learn'
        ) from err
    digits = load_digits()
    try:
        photos = {
            # RGB to BGR, the order OpenCV writes.
            name: np.ascontiguousarray(load_sample_image(name)[..., ::-1])
            for name in PHOTO_COLUMNS
        }
    except ImportError as err:
        raise ModuleNotFoundError(
            'scikit-learn needs Pillow to read its photographs: '
            'pip install pillow'
        ) from err
    return Sources(sharpen_digits(digits.images), digits.target, photos)


def split_digits(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Share the digit images out between train and val, class by class.

    Args:
        labels: Digit of every image, (N, ).
        seed: Seed of the data set.

    Returns:
        Split name -> sorted indices into ``labels``; disjoint, and together
        all of them. A quarter of every class is in val.
    """
    rng = np.random.default_rng([seed, 0])
    parts: dict[str, list[int]] = {split: [] for split in SPLITS}
    for label in range(len(CLASSES)):
        members = rng.permutation(np.flatnonzero(labels == label))
        cut = round(len(members) * VAL_FRACTION)
        parts['val'].extend(members[:cut])
        parts['train'].extend(members[cut:])
    return {split: np.sort(part) for split, part in parts.items()}


def deal_digits(
    labels: np.ndarray,
    members: np.ndarray,
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw digit images evenly: class counts differ by one at most.

    Args:
        labels: Digit of every image, (N, ).
        members: Indices to draw from; each class must occur.
        count: How many to draw. An image comes again only after all others
            of its class came.
        rng: Source of randomness.

    Returns:
        Indices into ``labels``, (count, ).
    """
    rounds = -(-count // len(CLASSES))
    stacks = []
    for label in range(len(CLASSES)):
        own = members[labels[members] == label]
        laps = -(-rounds // len(own))
        stack = np.concatenate([rng.permutation(own) for _ in range(laps)])
        stacks.append(stack[:rounds])
    drawn = np.stack(stacks, axis=1)
    return rng.permuted(drawn, axis=1).reshape(-1)[:count]


# ------------------------------------------------------------- composition


def crop_background(
    photos: dict[str, np.ndarray],
    split: str,
    size: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, str, tuple[int, int, int, int]]:
    """Cut a square out of the split's part of a photograph.

    Contrast is lowered and brightness varied, so that digits stand out and
    two photographs look like more.

    Args:
        photos: Name -> (H, W, 3) uint8.
        split: ``'train'`` or ``'val'``.
        size: Side of the result, px.
        rng: Source of randomness.

    Returns:
        The background (size, size, 3) float32 in 0..255, the photograph's
        name, and the crop (x, y, w, h) in it.
    """
    name = str(rng.choice(list(PHOTO_COLUMNS)))
    start, stop = PHOTO_COLUMNS[name][split]
    low, high = CROP_RANGE
    side = int(
        rng.integers(min(low, size), min(high, 3 * size), endpoint=True)
    )
    x = int(rng.integers(start, stop - side, endpoint=True))
    y = int(rng.integers(0, len(photos[name]) - side, endpoint=True))
    crop = photos[name][y : y + side, x : x + side].astype(np.float32)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    shrinks = size < side
    crop = cv2.resize(
        crop,
        (size, size),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    mean = crop.mean((0, 1))
    crop = mean + rng.uniform(0.5, 0.8) * (crop - mean)
    crop = crop * rng.uniform(0.75, 1.15) + rng.uniform(-10, 20)
    return np.clip(crop, 0, 255), name, (x, y, side, side)


def render_digit(glyph: np.ndarray, side: float, angle: float) -> np.ndarray:
    """Scale a digit up smoothly and turn it.

    Args:
        glyph: (12, 12) float32, one of :func:`sharpen_digits`.
        side: Height of the eight rows that hold the digit, px.
        angle: Degrees, counter-clockwise.

    Returns:
        Opacity (h, w) float32 in 0..1, cut to where it is not 0; above one
        half is the digit's mask.
    """
    length = round(len(glyph) * side / 8)
    ink = cv2.resize(glyph, (length, length), interpolation=cv2.INTER_CUBIC)
    centre = ((length - 1) / 2, (length - 1) / 2)
    turn = cv2.getRotationMatrix2D(centre, angle, 1.0)
    ink = cv2.warpAffine(ink, turn, (length, length), flags=cv2.INTER_LINEAR)
    alpha = np.clip((ink - 0.33) / 0.25, 0, 1)
    alpha[~_solid(alpha > 0)] = 0
    x, y, w, h = _tight_box(alpha > 0)
    return alpha[y : y + h, x : x + w]


def _solid(mask: np.ndarray) -> np.ndarray:
    """Drop specks, parts under 5 % of a mask: they would widen the box."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    areas = stats[:, cv2.CC_STAT_AREA]
    keep = areas >= 0.05 * mask.sum()
    keep[0] = False  # the background
    return keep[parts]


def _tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Box (x, y, w, h) in px of the true pixels; there must be one."""
    rows = np.flatnonzero(mask.any(1))
    cols = np.flatnonzero(mask.any(0))
    x, y = int(cols[0]), int(rows[0])
    return x, y, int(cols[-1]) + 1 - x, int(rows[-1]) + 1 - y


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Intersection of two boxes (x, y, w, h) over the smaller area."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0) / min(a[2] * a[3], b[2] * b[3])


def place_digit(
    glyph: np.ndarray,
    sides: tuple[int, int],
    taken: np.ndarray,
    boxes: list[tuple[int, int, int, int]],
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Find a place for one more digit, smaller when there is little room.

    Args:
        glyph: (12, 12) float32.
        sides: Smallest and largest digit, px.
        taken: (H, W) bool, where digits are already.
        boxes: Boxes (x, y, w, h) of those digits.
        rng: Source of randomness.

    Returns:
        Opacity (H, W) float32 of the digit: inside the image, on no other
        digit, its box next to free of the others. None if nothing was found.
    """
    size = len(taken)
    wanted = rng.uniform(*sides)
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE)
    for shrink in (1.0, 0.8, 0.65, 0.5, 0.35):
        alpha = render_digit(glyph, max(wanted * shrink, sides[0]), angle)
        h, w = alpha.shape
        if max(h, w) > size:
            continue
        for _ in range(25):
            x = int(rng.integers(0, size - w, endpoint=True))
            y = int(rng.integers(0, size - h, endpoint=True))
            if any(_overlap((x, y, w, h), b) > MAX_OVERLAP for b in boxes):
                continue
            spot = taken[y : y + h, x : x + w]
            if not (spot & (alpha > 0)).any():
                full = np.zeros(taken.shape, np.float32)
                full[y : y + h, x : x + w] = alpha
                return full
    return None


def pick_tint(around: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose a random colour that stands out.

    Args:
        around: Background pixels at the digit, (n, 3) BGR in 0..255.
        rng: Source of randomness.

    Returns:
        BGR colour (3, ) float32, darker or lighter than 80 % of the pixels
        by ``MIN_CONTRAST`` at least; black or white where none does it.
    """
    weights = np.array([0.114, 0.587, 0.299], np.float32)
    dark, light = np.percentile(around @ weights, (10, 90))
    tints = rng.uniform(0, 255, (40, 3)).astype(np.float32)
    luma = tints @ weights
    gap = np.maximum(dark - luma, luma - light)
    good = np.flatnonzero(gap >= MIN_CONTRAST)
    if len(good):
        return tints[good[0]]
    return np.full(3, 255.0 if 255 - light > dark else 0.0, np.float32)


def take_light(
    canvas: np.ndarray, variant: Variant, rng: np.random.Generator
) -> np.ndarray:
    """Leave a variant's share of the light and add its noise.

    Args:
        canvas: (H, W, 3) float32 in 0..255.
        variant: Look of the scene.
        rng: Source of randomness; where nothing changes none is drawn.
    """
    if (variant.light, variant.noise) == ((1.0, 1.0), 0.0):
        return canvas
    noise = rng.normal(0, variant.noise, canvas.shape)
    return canvas * rng.uniform(*variant.light) + noise


def compose_scene(
    sources: Sources,
    digits: np.ndarray,
    split: str,
    size: int,
    sides: tuple[int, int],
    variant: Variant,
    rng: np.random.Generator,
) -> Scene:
    """Draw digits on a photograph.

    Args:
        sources: Digits and photographs.
        digits: Indices of the digits to draw; one that finds no room (in
            practice only in scenes much smaller than 128 px) is left out.
        split: ``'train'`` or ``'val'``.
        size: Side of the scene, px.
        sides: Smallest and largest digit, px.
        variant: Look of the scene; gives the light.
        rng: Source of randomness.
    """
    canvas, photo, crop = crop_background(sources.photos, split, size, rng)
    taken = np.zeros((size, size), bool)
    instances: list[Instance] = []
    for digit in digits.tolist():
        boxes = [instance.box for instance in instances]
        alpha = place_digit(sources.glyphs[digit], sides, taken, boxes, rng)
        if alpha is None:
            continue
        x, y, w, h = _tight_box(alpha > 0)
        around = canvas[y : y + h, x : x + w].reshape(-1, 3)
        tint = pick_tint(around, rng)
        blend = alpha[..., None] * np.float32(rng.uniform(0.85, 1.0))
        canvas = canvas + blend * (tint - canvas)
        taken |= alpha > 0
        mask = alpha > 0.5
        label = int(sources.labels[digit])
        instances.append(Instance(digit, label, mask, _tight_box(mask)))
    canvas = take_light(canvas, variant, rng)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Scene(image, instances, photo, crop)


# ------------------------------------------------------------------ output


def _write_png(path: Path, image: np.ndarray) -> None:
    """Write a picture; unlike ``cv2.imwrite`` fail loudly (OSError)."""
    path.write_bytes(cv2.imencode('.png', image)[1].tobytes())


def _annotation(instance: Instance, number: int, image_id: int) -> dict:
    """COCO record of one digit; the RLE keeps the holes of 0, 6, 8, 9."""
    rle = coco_mask.encode(np.asfortranarray(instance.mask, np.uint8))
    return {
        'id': number,
        'image_id': image_id,
        'category_id': instance.label + 1,
        'bbox': list(instance.box),
        'area': int(instance.mask.sum()),
        'iscrowd': 0,
        'segmentation': {
            'size': list(instance.mask.shape),
            'counts': rle['counts'].decode('ascii'),
        },
        'digit_index': instance.digit,
    }


def _write_scenes(
    root: Path,
    split: str,
    sources: Sources,
    members: np.ndarray,
    settings: dict[str, Any],
    variant: Variant,
    bar: Any,
) -> tuple[list[int], int]:
    """Write one split's scenes, masks and COCO file.

    Args:
        root: Folder of the data set.
        split: ``'train'`` or ``'val'``.
        sources: Digits and photographs.
        members: Indices of the split's digits.
        settings: The arguments of :func:`make_digits` by name.
        variant: Look of the scenes.
        bar: tqdm bar, moved on by one a scene.

    Returns:
        Number of boxes of each class, and of digits that found no room.
    """
    size, seed, scenes = settings['size'], settings['seed'], settings[split]
    stream = 1 + SPLITS.index(split)
    rng = np.random.default_rng([seed, stream])
    counts = rng.integers(*variant.count, scenes, endpoint=True)
    dealt = deal_digits(sources.labels, members, int(counts.sum()), rng)
    hands = np.split(dealt, np.cumsum(counts)[:-1])
    low, high = variant.sides
    sides = (low, min(high, int(size * DIGIT_SHARE)))
    image_dir, mask_dir = root / 'images' / split, root / 'masks' / split
    image_dir.mkdir(parents=True)
    mask_dir.mkdir(parents=True)
    images: list[dict] = []
    annotations: list[dict] = []
    boxes = [0] * len(CLASSES)
    for image_id, hand in enumerate(hands, start=1):
        rng = np.random.default_rng([seed, stream, image_id])
        scene = compose_scene(sources, hand, split, size, sides, variant, rng)
        name = f'{image_id:06d}.png'
        semantic = np.zeros((size, size), np.uint8)
        for instance in scene.instances:
            semantic[instance.mask] = instance.label + 1
            boxes[instance.label] += 1
            annotations.append(
                _annotation(instance, len(annotations) + 1, image_id)
            )
        _write_png(image_dir / name, scene.image)
        _write_png(mask_dir / name, semantic)
        images.append(
            {
                'id': image_id,
                'file_name': name,
                'width': size,
                'height': size,
                'photo': scene.photo,
                'photo_crop': list(scene.crop),
            }
        )
        bar.update()
    _write_coco(root, split, images, annotations, settings)
    return boxes, len(dealt) - sum(boxes)


def _write_coco(
    root: Path,
    split: str,
    images: list[dict],
    annotations: list[dict],
    settings: dict[str, Any],
) -> None:
    """Write the JSON; no time stamps, so that its bytes repeat."""
    info = {
        'description': DESCRIPTION,
        'version': '1.0',
        'split': split,
        'settings': settings,
    }
    data = {
        'info': info,
        'licenses': LICENSES,
        'categories': [
            {'id': number, 'name': name, 'supercategory': 'digit'}
            for number, name in enumerate(CLASSES, start=1)
        ],
        'images': images,
        'annotations': annotations,
    }
    path = root / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data) + '\n', encoding='utf-8')


def _write_icons(
    root: Path,
    split: str,
    sources: Sources,
    members: np.ndarray,
    settings: dict[str, Any],
    variant: Variant,
    bar: Any,
) -> int:
    """Write one split's image folder; arguments as :func:`_write_scenes`.

    Returns:
        Number of images.
    """
    seed, per_class = settings['seed'], settings[f'cls_{split}']
    stream = 3 + SPLITS.index(split)
    rng = np.random.default_rng([seed, stream])
    total = per_class * len(CLASSES)
    written = [0] * len(CLASSES)
    for name in CLASSES:
        (root / 'classification' / split / name).mkdir(parents=True)
    for digit in deal_digits(sources.labels, members, total, rng):
        label = int(sources.labels[digit])
        written[label] += 1
        rng = np.random.default_rng([seed, stream, label, written[label]])
        scene = compose_scene(
            sources,
            np.array([digit]),
            split,
            ICON_SIZE,
            variant.icon_sides,
            variant,
            rng,
        )
        folder = root / 'classification' / split / CLASSES[label]
        _write_png(folder / f'{written[label]:06d}.png', scene.image)
        bar.update()
    return total


def _is_digits(path: Path) -> bool:
    """Whether a folder was made by this script."""
    try:
        text = (path / 'annotations/instances_train.json').read_text('utf-8')
        return json.loads(text)['info']['description'] == DESCRIPTION
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_number(
    flag: str, value: int, low: int, high: int | None = None
) -> None:
    """Raise ValueError unless ``value`` is a whole number in the range."""
    good = isinstance(value, int) and low <= value
    if not good or (high is not None and value > high):
        right = f'at least {low}' if high is None else f'{low} to {high}'
        raise ValueError(f'{flag} {value}: must be a whole number, {right}')


def make_digits(
    out: str | os.PathLike,
    train: int = 600,
    val: int = 200,
    size: int = 128,
    seed: int = 0,
    cls_train: int = 200,
    cls_val: int = 50,
    variant: str = 'plain',
    force: bool = False,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Make the data set.

    Args:
        out: Folder to make; appears only when all of it is written.
        train: Number of train scenes, at least 1.
        val: Number of val scenes, at least 1.
        size: Side of a scene, 64 to 1024 px.
        seed: Seed of everything random, at least 0.
        cls_train: Train images for classification of each class.
        cls_val: Val images for classification of each class.
        variant: ``'plain'``, ``'dark'`` or ``'tiny'``.
        force: Replace ``out`` if it is a digits data set or empty.
        progress: Show a progress bar on standard error.

    Returns:
        For ``'train'`` and ``'val'``: ``scenes`` (int), ``boxes`` (list of
        int, one a class), ``left_out`` (int, digits that found no room) and
        ``icons`` (int, classification images).

    Raises:
        ValueError: A number is out of range, or a variant unknown; names
            flag and value.
        FileExistsError: ``out`` is there and may not be replaced.
        ModuleNotFoundError: A needed package is missing; says which.
    """
    settings = {
        'seed': seed,
        'size': size,
        'train': train,
        'val': val,
        'cls_train': cls_train,
        'cls_val': cls_val,
    }
    _check_number('--seed', seed, 0)
    _check_number('--size', size, 64, 1024)
    for name in ('train', 'val', 'cls_train', 'cls_val'):
        _check_number(f'--{name.replace("_", "-")}', settings[name], 1)
    if variant not in VARIANTS:
        known = ', '.join(VARIANTS)
        raise ValueError(f'--variant {variant}: must be one of {known}')
    if variant != 'plain':  # whose files are older than the variants
        settings['variant'] = variant
    look = VARIANTS[variant]
    check_out(Path(out), force, _is_digits, 'digits')
    sources = load_sources()
    members = split_digits(sources.labels, seed)
    total = train + val + len(CLASSES) * (cls_train + cls_val)
    stats: dict[str, dict[str, Any]] = {}
    with (
        replacing(Path(out)) as root,
        tqdm(total=total, unit='img', disable=not progress) as bar,
    ):
        for split in SPLITS:
            task = (root, split, sources, members[split], settings, look, bar)
            boxes, left_out = _write_scenes(*task)
            icons = _write_icons(*task)
            stats[split] = {
                'scenes': settings[split],
                'boxes': boxes,
                'left_out': left_out,
                'icons': icons,
            }
    return stats


# ----------------------------------------------------------- command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(
        description='Make the built-in digits data set (no download).',
        allow_abbrev=False,
    )
    parser.add_argument(
        '--out',
        help='Folder to make (default: data/digits, and data/digits-VARIANT '
        'for the other variants).',
    )
    parser.add_argument(
        '--variant',
        choices=VARIANTS,
        default='plain',
        help='Look of the scenes: plain, dark (little light, noise) or tiny '
        '(more and smaller digits). Default: %(default)s.',
    )
    numbers = {
        'train': (600, 'Number of train scenes'),
        'val': (200, 'Number of val scenes'),
        'size': (128, 'Side of a scene in px, 64 to 1024'),
        'cls-train': (200, 'Train images of each class, classification'),
        'cls-val': (50, 'Val images of each class, classification'),
        'seed': (0, 'Seed; the same seed gives the same bytes'),
    }
    for name, (default, text) in numbers.items():
        parser.add_argument(
            f'--{name}',
            type=int,
            default=default,
            metavar='N',
            help=f'{text} (default: %(default)s).',
        )
    parser.add_argument(
        '--force',
        action='store_true',
        help='Replace OUT if it is a digits data set or an empty folder.',
    )
    args = parser.parse_args(argv)
    if args.out is None:
        suffix = '' if args.variant == 'plain' else f'-{args.variant}'
        args.out = f'data/digits{suffix}'
    return args


def main(argv: list[str] | None = None) -> None:
    """Make the data set from the command line and say what was made."""
    args = parse_args(argv)
    try:
        stats = make_digits(**vars(args), progress=True)
    except (ValueError, OSError, ModuleNotFoundError) as err:
        raise SystemExit(f'error: {err}') from err
    except KeyboardInterrupt:
        raise SystemExit(f'error: stopped; {args.out} not written') from None
    for split, stat in stats.items():
        boxes, left_out = stat['boxes'], stat['left_out']
        note = f'; {left_out} digits found no room' if left_out else ''
        print(
            f'{split}: {stat["scenes"]} scenes, {sum(boxes)} boxes '
            f'({min(boxes)} to {max(boxes)} of each class), '
            f'{stat["icons"]} classification images{note}'
        )
    print(
        f'written to {args.out}: images/, masks/, classification/, '
        'annotations/instances_{train,val}.json'
    )


if __name__ == '__main__':
    main()
