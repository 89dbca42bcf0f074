# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import gzip
import io
import json
import tarfile
from functools import partial
from pathlib import Path

import pytest
from helpers import boxes, coco, pack, picture, unpack
from PIL import Image

FOURTEEN = [
    'person', 'bike', 'car', 'motor', 'bus', 'train', 'truck', 'light',
    'hydrant', 'sign', 'skateboard', 'stroller', 'scooter', 'other vehicle',
]  # fmt: skip
NAMED = {
    1: 'person', 2: 'bike', 3: 'car', 4: 'motor', 6: 'bus', 7: 'train',
    8: 'truck', 10: 'light', 11: 'hydrant', 12: 'sign', 17: 'dog',
    37: 'skateboard', 73: 'stroller', 77: 'scooter', 79: 'other vehicle',
    80: 'deer',
}  # fmt: skip
CATEGORIES = [
    {'id': i, 'name': NAMED.get(i, f'unused {i}'), 'supercategory': 'unknown'}
    for i in range(80, 0, -1)
]
TOP = 'FLIR_ADAS_v2'
TRAIN = f'{TOP}/images_thermal_train'
VAL = f'{TOP}/images_thermal_val'
OUT = Path('data/flir')
NIGHT = {'hours': 'night', 'weather': 'clear'}


def frame(number):
    return f'video-Ab3-frame-{number:06}-xyz{number}.jpg'


def image(number, name, width, height, **more):
    return {
        'id': number,
        'file_name': f'data/{name}',
        'width': width,
        'height': height,
        **more,
    }


def thing(number, image_id, category_id, bbox, **more):
    return {
        'id': number,
        'image_id': image_id,
        'category_id': category_id,
        'bbox': bbox,
        'area': 1,
        'iscrowd': 0,
        'segmentation': [],
        'extra_info': {'occluded': 'no_(fully_visible)'},
        **more,
    }


def annotated(images, annotations, categories=CATEGORIES):
    data = {
        'info': {'version': '2.0.0'},
        'licenses': [],
        'categories': categories,
        'images': images,
        'annotations': annotations,
    }
    return json.dumps(data)


def grey(width, height):
    image, file = Image.open(io.BytesIO(picture(width, height))), io.BytesIO()
    image.convert('L').save(file, 'JPEG')
    return file.getvalue()


def part(folder, text, *images):
    files = {f'{folder}/coco.json': text, f'{folder}/index.json': '{}'}
    for name, content in images:
        files[f'{folder}/data/{name}'] = content
    return files


TRAIN_IMAGES = [
    image(0, frame(7), 80, 64, extra_info=NIGHT),
    image(1, frame(3), 90, 64),
    image(2, frame(5), 80, 66),
]
TRAIN_FILES = [
    (frame(7), grey(80, 64)),
    (frame(3), grey(90, 64)),
    (frame(5), grey(80, 66)),
]
TRAIN_THINGS = [
    thing(0, 0, 3, [10, 20, 30.126, 40]),
    thing(1, 1, 1, [0, 0, 90, 64], iscrowd=True),
    thing(2, 0, 79, [1.5, 2, 20, 30]),
    thing(3, 2, 17, [3, 4, 25, 26]),
    thing(4, 1, 12, [60, 30, 20, 20]),
    thing(5, 2, 2, [40, 31, 33, 34]),
    thing(6, 2, 80, [5, 6, 7, 8]),
]
VAL_PART = part(
    VAL,
    annotated(
        [image(4, frame(1), 70, 60), image(9, frame(2), 72, 60)],
        [
            thing(21, 9, 73, [10, 10, 40, 40]),
            thing(20, 4, 3, [5, 5, 45, 50]),
        ],
    ),
    (frame(1), grey(70, 60)),
    (frame(2), grey(72, 60)),
)
TRAIN_BOXES = [
    (frame(3), 'person', 0, 0, 90, 64, 1),
    (frame(3), 'sign', 60, 30, 20, 20, 0),
    (frame(5), 'bike', 40, 31, 33, 34, 0),
    (frame(7), 'car', 10, 20, 30.13, 40, 0),
    (frame(7), 'other vehicle', 1.5, 2, 20, 30, 0),
]
VAL_BOXES = [
    (frame(1), 'car', 5, 5, 45, 50, 0),
    (frame(2), 'stroller', 10, 10, 40, 40, 0),
]


def files_of(images=TRAIN_IMAGES, things=TRAIN_THINGS, **more):
    text = annotated(images, things, **more)
    return part(TRAIN, text, *TRAIN_FILES) | VAL_PART


def report(out=OUT):
    return json.loads((out / 'report.json').read_text())['splits']


def told(split, word):
    return [
        where
        for what, places in report()[split]['notes'].items()
        for where in places
        if word in what
    ]


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(files):
        unpack(files, tmp_path)

    make(files_of())
    return make


@pytest.fixture
def refusal(refuse):
    return partial(refuse, 'flir')


def test_records_of_train(archive, convert):
    convert('flir', TOP, '--allow-incomplete')
    assert coco(OUT, 'train') == {
        'info': {
            'description': 'FLIR ADAS v2',
            'split': 'train',
            'protocol': 'thermal, 14 classes',
        },
        'categories': [
            {'id': number, 'name': name}
            for number, name in enumerate(FOURTEEN, start=1)
        ],
        'images': [
            {'id': 1, 'file_name': frame(3), 'width': 90, 'height': 64},
            {'id': 2, 'file_name': frame(5), 'width': 80, 'height': 66},
            {
                'id': 3,
                'file_name': frame(7),
                'width': 80,
                'height': 64,
                'extra_info': NIGHT,
            },
        ],
        'annotations': [
            {
                'id': 1,
                'image_id': 1,
                'category_id': 1,
                'bbox': [0, 0, 90, 64],
                'area': 5760,
                'iscrowd': 1,
            },
            {
                'id': 2,
                'image_id': 1,
                'category_id': 10,
                'bbox': [60, 30, 20, 20],
                'area': 400,
                'iscrowd': 0,
            },
            {
                'id': 3,
                'image_id': 2,
                'category_id': 2,
                'bbox': [40, 31, 33, 34],
                'area': 1122,
                'iscrowd': 0,
            },
            {
                'id': 4,
                'image_id': 3,
                'category_id': 3,
                'bbox': [10, 20, 30.13, 40],
                'area': 1205.2,
                'iscrowd': 0,
            },
            {
                'id': 5,
                'image_id': 3,
                'category_id': 14,
                'bbox': [1.5, 2, 20, 30],
                'area': 600,
                'iscrowd': 0,
            },
        ],
    }
    assert boxes(coco(OUT, 'val')) == VAL_BOXES
    assert not (OUT / 'annotations/instances_test.json').exists()
    link = OUT / 'images/train' / frame(7)
    assert link.readlink() == Path(TRAIN, 'data', frame(7)).resolve()
    assert told('train', 'not wanted') == [
        f'{TRAIN}/coco.json, annotation 3',
        f'{TRAIN}/coco.json, annotation 6',
    ]
    assert len(report()['train']['notes']) == 1
    assert not report()['val']['notes']


@pytest.mark.parametrize(
    ('choice', 'names', 'ids'),
    [
        ('3', FOURTEEN[:3], [1, 2, 3]),
        (
            '9',
            ['person', 'bike', 'car', 'motor', 'bus', 'truck', 'light',
             'hydrant', 'sign'],
            [1, 9, 2, 3],
        ),
        ('14', FOURTEEN, [1, 10, 2, 3, 14]),
        (
            '15',
            ['person', 'bike', 'car', 'motor', 'bus', 'train', 'truck',
             'light', 'hydrant', 'sign', 'dog', 'skateboard', 'stroller',
             'scooter', 'other vehicle'],
            [1, 10, 11, 2, 3, 15],
        ),
    ],
)  # fmt: skip
def test_classes(archive, convert, choice, names, ids):
    convert('flir', TOP, '--classes', choice, '--allow-incomplete')
    data = coco(OUT, 'train')
    assert [c['name'] for c in data['categories']] == names
    numbers = [c['id'] for c in data['categories']]
    assert numbers == list(range(1, len(names) + 1))
    assert [a['category_id'] for a in data['annotations']] == ids
    assert len(told('train', 'not wanted')) == 7 - len(ids)
    assert set(report()['train']['official']) == {'images', *names}
    assert data['info']['protocol'] == f'thermal, {choice} classes'


COUNTS = {
    ('thermal', 'train'): [10742, 50478, 7237, 73623, 1116, 2245, 5, 829,
                           16198, 1095, 20770, 4, 29, 15, 15, 1373],
    ('thermal', 'val'): [1144, 4470, 170, 7133, 55, 179, 0, 46, 2005, 94,
                         2472, 0, 3, 6, 0, 63],
    ('rgb', 'train'): [10318, 35007, 7560, 71281, 1837, 1879, 9, 1251, 18640,
                       990, 29531, 0, 412, 38, 41, 698],
    ('rgb', 'val'): [1085, 3223, 193, 7285, 77, 183, 0, 47, 2143, 126, 3581,
                     0, 4, 7, 0, 40],
}  # fmt: skip


@pytest.mark.parametrize('modality', ['thermal', 'rgb'])
def test_official_figures(tmp_path, archive, convert, modality):
    for split in ('train', 'val'):
        Path(TOP, f'images_thermal_{split}').rename(
            Path(TOP, f'images_{modality}_{split}')
        )
    convert(
        'flir', TOP, '--modality', modality, '--classes', '15',
        '--allow-incomplete',
    )  # fmt: skip
    names = ['images', *FOURTEEN[:10], 'dog', *FOURTEEN[10:]]
    for split in ('train', 'val'):
        official = dict(zip(names, COUNTS[modality, split]))
        assert report()[split]['official'] == official


def test_rgb(tmp_path, archive, convert):
    files = part(
        f'{TOP}/images_rgb_train',
        annotated(
            [image(1, 'day.jpg', 50, 40)], [thing(1, 1, 1, [1, 2, 3, 4])]
        ),
        ('day.jpg', picture(50, 40)),
    ) | part(
        f'{TOP}/images_rgb_val',
        annotated(
            [image(1, 'eve.jpg', 40, 50)], [thing(1, 1, 3, [5, 6, 7, 8])]
        ),
        ('eve.jpg', picture(40, 50)),
    )
    unpack(files, tmp_path)
    convert('flir', TOP, '--modality', 'rgb', '--allow-incomplete')
    data = coco(OUT, 'train')
    assert boxes(data) == [('day.jpg', 'person', 1, 2, 3, 4, 0)]
    assert data['info']['protocol'] == 'rgb, 14 classes'
    assert boxes(coco(OUT, 'val')) == [('eve.jpg', 'car', 5, 6, 7, 8, 0)]


def test_video_is_the_test_split(tmp_path, archive, convert):
    files = part(
        f'{TOP}/video_thermal_test',
        annotated(
            [image(1, frame(88), 60, 50)],
            [thing(1, 1, 6, [1, 2, 3, 4], track_id=12)],
        ),
        (frame(88), grey(60, 50)),
    )
    files[f'{TOP}/rgb_to_thermal_vid_map.json'] = '{}'
    unpack(files, tmp_path)
    convert('flir', TOP, '--video', '--allow-incomplete')
    assert boxes(coco(OUT, 'train')) == TRAIN_BOXES
    assert boxes(coco(OUT, 'test')) == [(frame(88), 'bus', 1, 2, 3, 4, 0)]
    assert (OUT / 'images/test' / frame(88)).exists()
    assert report()['test']['official'] == {'images': 3749}


def test_video_that_is_not_there(archive, refusal):
    message = refusal(TOP, '--video', '--allow-incomplete')
    assert 'video_thermal_test/coco.json' in message
    assert f'{TOP}/images_thermal_train' in message


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_archives(tmp_path, convert, kind):
    if kind == 'zip':
        pack(files_of(), tmp_path / 'FLIR_ADAS_v2.zip')
    else:
        unpack(files_of(), tmp_path)
        with tarfile.open(tmp_path / 'FLIR_ADAS_v2.tar', 'w') as file:
            file.add(tmp_path / TOP, TOP)
    convert('flir', tmp_path / f'FLIR_ADAS_v2.{kind}', '--allow-incomplete')
    assert boxes(coco(OUT, 'train')) == TRAIN_BOXES
    assert boxes(coco(OUT, 'val')) == VAL_BOXES
    found = OUT / 'images/train' / frame(5)
    assert not found.is_symlink() and found.read_bytes() == grey(80, 66)


def test_copies_and_same_bytes_for_workers(archive, convert):
    contents = []
    for workers in ('1', '7'):
        out = Path(f'out{workers}')
        convert(
            'flir', TRAIN, VAL, '--allow-incomplete', '--workers', workers,
            '--out', out, '--copy',
        )  # fmt: skip
        assert not (out / 'images/train' / frame(7)).is_symlink()
        files = sorted(p for p in out.rglob('*') if p.is_file())
        contents.append([(p.relative_to(out), p.read_bytes()) for p in files])
    assert contents[0] == contents[1] and len(contents[0]) == 9


def test_other_counts_write_nothing(archive, refusal, capsys):
    message = refusal(TOP)
    assert 'counts' in message and '--allow-incomplete' in message
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['images', '3', '10,742', 'differs'] in lines
    assert ['car', '1', '73,623', 'differs'] in lines
    assert ['scooter', '0', '0'] in lines


def test_right_counts_need_no_flag(archive, load_tool, monkeypatch):
    tool = load_tool('dataset_converters/flir.py')
    train = (0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1)
    val = (0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0)
    counts = {('thermal', 'train'): (3, train), ('thermal', 'val'): (2, val)}
    monkeypatch.setattr(tool, 'COUNTS', counts)
    tool.main([TOP])
    assert boxes(coco(OUT, 'train')) == TRAIN_BOXES


@pytest.mark.parametrize(
    ('bad', 'word'),
    [
        (thing(77, 5, 1, [1, 1, 9, 9]), 'no image 5'),
        (thing(77, 0, 0, [1, 1, 9, 9]), 'no category 0'),
        (thing(77, 0, 81, [1, 1, 9, 9]), 'no category 81'),
        (thing(77, 0, 1, [1, 1, 9]), 'four numbers'),
        (thing(77, 0, 1, [1, 1, float('nan'), 9]), 'finite'),
        (thing(77, 0, 1, [1, 1, float('inf'), 9]), 'finite'),
    ],
)
def test_a_bad_annotation_is_told_and_dropped(
    archive, convert, refusal, bad, word
):
    archive(files_of(things=[bad, *TRAIN_THINGS]))
    convert('flir', TOP, '--allow-incomplete')
    assert boxes(coco(OUT, 'train')) == TRAIN_BOXES
    where = f'{TRAIN}/coco.json, annotation 77'
    assert told('train', word) == [where]
    assert where in refusal(TOP, '--allow-incomplete', '--force', '--strict')


def test_empty_and_outside_boxes(archive, convert):
    odd = [
        thing(70, 1, 2, [10, 10, 0, 20]),
        thing(71, 1, 2, [10, 10, 20, 0]),
        thing(72, 1, 2, [90, 10, 20, 20]),
        thing(73, 1, 2, [80, -10, 20, 30]),
        thing(74, 1, 2, [89.5, 10, 20, 20]),
    ]
    archive(files_of(things=odd))
    convert('flir', TOP, '--allow-incomplete', '--strict')
    data = coco(OUT, 'train')
    assert boxes(data) == [(frame(3), 'bike', 80, 0, 10, 20, 0)]
    assert data['annotations'][0]['id'] == 1
    assert data['annotations'][0]['area'] == 200
    name = f'{TRAIN}/coco.json, annotation'
    assert told('train', 'zero size') == [f'{name} 70', f'{name} 71']
    assert told('train', 'outside') == [f'{name} 72']
    assert told('train', 'than a pixel') == [f'{name} 74']
    assert told('train', 'clipped') == [f'{name} 73', f'{name} 74']


def test_an_image_listed_but_missing(archive, convert, refusal):
    Path(TRAIN, 'data', frame(5)).unlink()
    convert('flir', TOP, '--allow-incomplete')
    data = coco(OUT, 'train')
    assert boxes(data) == TRAIN_BOXES[:2] + TRAIN_BOXES[3:]
    assert [item['id'] for item in data['images']] == [1, 2]
    missing = f'{TRAIN}/data/{frame(5)}'
    assert told('train', 'listed') == [missing]
    assert missing in refusal(TOP, '--allow-incomplete', '--force', '--strict')


def test_an_unreadable_image_is_left_out(archive, convert):
    Path(TRAIN, 'data', frame(3)).write_bytes(b'\xff\xd8')
    convert('flir', TOP, '--allow-incomplete')
    assert boxes(coco(OUT, 'train')) == TRAIN_BOXES[2:]
    assert told('train', 'unreadable') == [f'{TRAIN}/data/{frame(3)}']


def test_a_size_that_coco_json_has_wrong(archive, convert):
    images = [image(0, frame(7), 640, 512), *TRAIN_IMAGES[1:]]
    archive(files_of(images))
    convert('flir', TOP, '--allow-incomplete')
    found = coco(OUT, 'train')['images'][2]
    assert (found['width'], found['height']) == (80, 64)
    (where,) = told('train', 'another size')
    assert f'{TRAIN}/data/{frame(7)}' in where


def test_a_category_that_is_not_listed(archive, convert):
    fewer = [c for c in CATEGORIES if c['name'] != 'scooter']
    archive(files_of(categories=fewer))
    convert('flir', TOP, '--allow-incomplete')
    data = coco(OUT, 'train')
    assert [c['name'] for c in data['categories']] == FOURTEEN
    assert boxes(data) == TRAIN_BOXES
    assert told('train', 'scooter') == [f'{TRAIN}/coco.json']


WITHOUT_BOX = thing(1, 0, 1, [1, 2, 3, 4])
del WITHOUT_BOX['bbox']


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{"images": [',
        'person 1 2 3 4',
        b'\xff\xfe\xfd',
        '[]',
        '3',
        'null',
        '{}',
        '{"images": [], "annotations": []}',
        '{"images": [], "categories": []}',
        '{"categories": [], "annotations": []}',
        '{"images": 1, "categories": [], "annotations": []}',
        '{"images": [{"id": 1}], "categories": [], "annotations": []}',
        '{"images": [3], "categories": [], "annotations": []}',
        '{"images": [], "categories": ["car"], "annotations": []}',
        annotated(TRAIN_IMAGES, [WITHOUT_BOX]),
        annotated(TRAIN_IMAGES, [thing(1, 0, 1, 'wide')]),
        annotated(TRAIN_IMAGES, [thing(1, 0, 1, [1, 2, None, 4])]),
        annotated(TRAIN_IMAGES, [thing(1, 0, 1, 5)]),
        annotated(TRAIN_IMAGES, [thing(1, [], 1, [1, 2, 3, 4])]),
    ],
)
def test_what_is_no_coco(archive, refusal, text):
    archive({f'{TRAIN}/coco.json': text})
    message = refusal(TOP, '--allow-incomplete')
    assert f'{TRAIN}/coco.json' in message


def test_another_layout(tmp_path, refusal):
    unpack({'holiday/beach/sea.jpg': b'blue'}, tmp_path)
    message = refusal('holiday')
    assert 'images_thermal_train/coco.json' in message
    assert 'holiday/beach' in message


V1 = {
    'train/thermal_annotations.json': '{"images": [1]}',
    'val/thermal_annotations.json': '{"images": []}',
    'train/thermal_8_bit/FLIR_00001.jpeg': picture(60, 50),
    'train/thermal_8_bit/FLIR_00002.jpeg': picture(70, 50),
    'val/thermal_8_bit/FLIR_08863.jpeg': picture(80, 50),
}
ALIGNED = {
    'JPEGImages/FLIR_00002_PreviewData.jpeg': picture(60, 50),
    'JPEGImages/FLIR_00003_PreviewData.jpeg': picture(70, 50),
    'JPEGImages/FLIR_00002_RGB.jpg': picture(80, 50),
    'Annotations/FLIR_00002_PreviewData.xml': '<annotation/>',
    'align_train.txt': 'FLIR_00002_PreviewData\n',
}


@pytest.mark.parametrize(
    ('files', 'release'), [(V1, 'v1.3'), (ALIGNED, 'aligned')]
)
@pytest.mark.parametrize('zipped', [False, True])
def test_other_releases(tmp_path, refusal, files, release, zipped):
    unpack(files, tmp_path / 'FLIR')
    pack(files, tmp_path / 'FLIR.zip')
    message = refusal('FLIR.zip' if zipped else 'FLIR', '--allow-incomplete')
    assert release in message and 'images_thermal_train' in message


def test_a_packed_tar_is_refused_with_advice(tmp_path, refusal):
    (tmp_path / 'FLIR_ADAS_v2.tar.gz').write_bytes(gzip.compress(b'tar'))
    message = refusal('FLIR_ADAS_v2.tar.gz')
    assert 'FLIR_ADAS_v2.tar.gz' in message and 'unpack' in message


def test_a_truncated_zip(tmp_path, refusal):
    pack(files_of(), tmp_path / 'flir.zip')
    whole = (tmp_path / 'flir.zip').read_bytes()
    (tmp_path / 'flir.zip').write_bytes(whole[:-40])
    message = refusal('flir.zip', '--allow-incomplete')
    assert 'flir.zip' in message and 'load it anew' in message


def test_train_and_score(archive, convert, train_once):
    convert('flir', TOP, '--allow-incomplete')
    scores = train_once('faster-rcnn_r50-none_fpn_1x_flir.py')
    assert 0 <= scores['coco/bbox_mAP'] <= 1
