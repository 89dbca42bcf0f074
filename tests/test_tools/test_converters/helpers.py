# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Archives for the tests of the converters, and what came of them."""

import io
import json
import zipfile

import numpy as np
from PIL import Image


def picture(width, height, orientation=None, suffix='.jpg'):
    """Return the bytes of an image of noise, with an EXIF orientation."""
    rng = np.random.default_rng([width, height])
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    image, file = Image.fromarray(pixels), io.BytesIO()
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(file, 'JPEG' if suffix.lower() != '.png' else 'PNG', exif=exif)
    return file.getvalue()


def unpack(files, root):
    """Write files, path -> text or bytes, below a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            content.encode() if isinstance(content, str) else content
        )


def pack(files, path):
    """Write files, path -> text or bytes, into a zip archive."""
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def coco(out, split):
    """Read an annotation file that a converter has written."""
    return json.loads(
        (out / 'annotations' / f'instances_{split}.json').read_text()
    )


def boxes(data):
    """Return what is annotated: (file, class, x, y, w, h, crowd), in order."""
    files = {image['id']: image['file_name'] for image in data['images']}
    names = {c['id']: c['name'] for c in data['categories']}
    return [
        (
            files[item['image_id']],
            names[item['category_id']],
            *item['bbox'],
            item['iscrowd'],
        )
        for item in data['annotations']
    ]


def below(folder, files):
    """Return files with all paths below a folder."""
    return {f'{folder}/{name}': content for name, content in files.items()}


def contents(root):
    """Return path -> bytes of all files below a folder."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def records(data):
    """Return the annotations as tuples, which have no other key."""
    keys = ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd')
    for item in data['annotations']:
        assert item.keys() == set(keys)
    return [tuple(item[key] for key in keys) for item in data['annotations']]


def read_report(out):
    """Read the report of a converter."""
    return json.loads((out / 'report.json').read_text())
