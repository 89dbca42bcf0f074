# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import picture, unpack
from PIL import Image

CONFIGS = Path(__file__).parents[3] / 'configs'
DETECTION = """
default_scope = 'mmdet'
model = dict(bbox_head=dict(num_classes=2))
data = dict(
    type='mmattn.CocoDataset',
    ann_file='data/instances.json',
    data_prefix=dict(img='data/images/'),
    metainfo=dict(classes=('cat', 'dog')),
    pipeline=[dict(type='LoadImageFromFile')],
)
train_dataloader = dict(
    dataset=dict(type='RepeatDataset', times=2, dataset=data)
)
val_dataloader = dict(dataset=data)
official_counts = dict(train=dict(images=2, boxes=2))
"""
SEGMENTATION = """
default_scope = 'mmseg'
model = dict(decode_head=dict(num_classes=2))
val_dataloader = dict(dataset=dict(
    type='BaseSegDataset',
    data_prefix=dict(img_path='data/images', seg_map_path='data/masks'),
    metainfo=dict(classes=('sky', 'sea')),
    reduce_zero_label=True,
    pipeline=[dict(type='LoadImageFromFile')],
))
"""


def annotations(**changes):
    data = {
        'categories': [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}],
        'images': [
            {'id': 1, 'file_name': 'a.jpg', 'width': 60, 'height': 40},
            {'id': 2, 'file_name': 'b.jpg', 'width': 50, 'height': 50},
        ],
        'annotations': [
            box(1, image_id=1, bbox=[10, 10, 20, 20], category_id=1),
            box(2, image_id=2, bbox=[0, 0, 50, 50], category_id=2),
            box(3, image_id=2, bbox=[5, 5, 9, 9], category_id=2, iscrowd=1),
        ],
    }
    return {**data, **changes}


def box(number, **values):
    return {'id': number, 'area': 9, 'iscrowd': 0, **values}


@pytest.fixture
def check(tmp_path, monkeypatch, run_tool, capsys):
    """Check a config of two images; return what is printed and the error."""
    monkeypatch.chdir(tmp_path)
    images = {'a.jpg': picture(60, 40), 'b.jpg': picture(50, 50)}
    unpack(images, tmp_path / 'data' / 'images')

    def run(config=DETECTION, data=None, words=()):
        Path('config.py').write_text(config)
        Path('data/instances.json').write_text(
            json.dumps(data or annotations())
        )
        error = ''
        try:
            run_tool('dataset_converters/check.py', 'config.py', *words)
        except SystemExit as exit_:
            error = str(exit_)
        return capsys.readouterr().out, error

    return run


def test_good_data(check):
    printed, error = check()
    assert error == '' and 'WRONG' not in printed
    assert 'train: 2 images, 2 boxes, 3 annotations\n' in printed
    assert 'val: ' not in printed  # it is the same
    lines = [line.split() for line in printed.splitlines()]
    assert ['cat', '1', '#' * 40] in lines and ['dog', '1', '#' * 40] in lines
    with Image.open('work_dirs/config/check/train.png') as sheet:
        assert sheet.size == (4 + 2 * 324, 4 + 324)
        pixels = np.asarray(sheet)
    # The cat's box, 10 to 30 px of 60, in a tile of 320: red, at 4 + 53 px.
    assert (pixels[4 + 53 : 4 + 160, 57:59, 0] > 200).all()
    assert (pixels[4 + 70 : 4 + 150, 57:59, 1:] < 60).all()


@pytest.mark.parametrize(
    ('change', 'wrong'),
    [
        ({'bbox': [10, 10, 52, 20]}, 'reach out of their image'),
        ({'bbox': [10, 10, float('nan'), 20]}, 'not finite'),
        ({'image_id': 7}, 'boxes of no image: 1'),
        ({'category_id': 7}, 'boxes of no category: 1'),
        ({'id': 0}, 'annotation id 0'),
        ({'iscrowd': 1}, 'counts that differ: 1 boxes, official 2'),
    ],
)
def test_bad_boxes(check, change, wrong):
    data = annotations()
    data['annotations'][0] |= change
    printed, error = check(data=data)
    assert wrong in printed
    assert error == 'error: 1 of the splits above are wrong'


def test_box_of_less_than_a_pixel_is_noted(check):
    data = annotations()
    data['annotations'][0]['bbox'] = [10, 10, 20, 0.5]
    printed, error = check(data=data)
    assert 'note: 1 x boxes of less than a pixel' in printed and error == ''


def test_ids_that_occur_twice(check):
    data = annotations()
    data['annotations'][2]['id'] = 1
    # mmdet itself refuses them.
    with pytest.raises(AssertionError, match='not unique'):
        check(data=data)


def test_bad_images(check):
    unpack({'c.jpg': 'no image'}, Path('data/images'))
    data = annotations()
    for number, name in ((3, 'c.jpg'), (4, 'd.jpg')):
        image = {'id': number, 'file_name': name, 'width': 9, 'height': 9}
        data['images'].append(image)
    data['images'][1]['height'] = 51
    printed, error = check(data=data)
    assert '1 x unreadable images: data/images/c.jpg' in printed
    assert '1 x missing images: data/images/d.jpg' in printed
    assert 'another size than annotated: data/images/b.jpg (50 x 50' in printed
    assert '4 images, official 2' in printed
    assert error


def test_allow_incomplete(check):
    data = annotations()
    del data['annotations'][0]
    assert check(data=data)[1]
    assert check(data=data, words=['--allow-incomplete'])[1] == ''


def test_chosen_splits(check):
    config = DETECTION + "test_dataloader = dict(dataset=dict(type='Absent'))"
    assert 'Absent' in check(config)[1]
    printed, error = check(config, words=['--splits', 'train', 'val'])
    assert 'train: 2 images' in printed and error == ''
    printed, error = check(words=['--splits', 'val'])  # the same as train
    assert 'val: 2 images' in printed and error == ''


@pytest.mark.parametrize('ignored', [False, True])
def test_exif_rotation(check, ignored):
    unpack({'a.jpg': picture(60, 40, orientation=6)}, Path('data/images'))
    config = DETECTION
    if ignored:
        config = config.replace(
            "'LoadImageFromFile'",
            "'LoadImageFromFile', color_type='color_ignore_orientation'",
        )
    printed, error = check(config)
    assert (
        'WRONG: 1 x images with EXIF rotation, which' in printed
    ) != ignored
    assert ('note: 1 x images with EXIF rotation: data' in printed) == ignored
    assert bool(error) != ignored


def test_class_order_shows_both_lists(check):
    data = annotations()
    data['categories'].reverse()
    _, error = check(data=data)
    assert 'of the config: cat, dog; of the file: dog, cat' in error


def test_model_of_other_classes(check):
    printed, error = check(DETECTION.replace('num_classes=2', 'num_classes=3'))
    assert 'the model has 3 classes, the data 2' in printed and error


def test_several_data_sets(check):
    config = DETECTION.replace(
        "dict(type='RepeatDataset', times=2, dataset=data)",
        "dict(type='ConcatDataset', datasets=[data, data])",
    )
    assert 'ConcatDataset holds several data sets' in check(config)[1]


def masks(a, b):
    for name, rows in (('a', a), ('b', b)):
        path = Path(f'data/masks/{name}.png')
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.array(rows, np.uint8)).save(path)


def test_masks(check):
    masks(np.full((40, 60), 1), [[0] * 50] * 30 + [[2] * 50] * 20)
    printed, error = check(SEGMENTATION)
    lines = [line.split()[:2] for line in printed.splitlines()]
    assert error == ''
    assert ['sky', '2,400'] in lines and ['sea', '1,000'] in lines


def test_bad_masks(check):
    masks(np.full((40, 60), 3), np.zeros((50, 40)))
    printed, error = check(SEGMENTATION)
    assert 'WRONG: 1 x masks with a label 2: data/masks/a.png' in printed
    assert 'WRONG: 1 x masks of another size than the image' in printed
    assert 'note: 1 x masks without a pixel that is scored' in printed
    assert error
    Path('data/masks/a.png').unlink()
    assert 'missing masks: data/masks/a.png' in check(SEGMENTATION)[0]


def test_full_ade20k_is_refused(check):
    unpack({'x_seg.png': picture(9, 9, suffix='.png')}, Path('data/images'))
    config = SEGMENTATION.replace(
        'pipeline', "img_suffix='_seg.png', pipeline"
    )
    assert 'full ADE20K' in check(config)[1]


def test_classifier_of_the_digits(digits, monkeypatch, run_tool, capsys):
    monkeypatch.chdir(digits)
    config = CONFIGS / 'demo' / 'resnet18-none_30e_digits.py'
    run_tool('dataset_converters/check.py', config, '--out', 'sheets')
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for digit in '0123456789':
        assert lines.count([digit, '2', '#' * 40]) == 1  # train
        assert lines.count([digit, '1', '#' * 40]) == 1  # val
    with Image.open('sheets/val.png') as sheet:
        assert sheet.size == (4 + 4 * 324, 4 + 3 * 324)


@pytest.mark.parametrize(
    'mask',
    [
        [[10, 10, 30, 10, 30, 30, 10, 30]],  # polygon
        # Columns of 40 pixels: 10 empty ones, then 20 with rows 10 to 29.
        {
            'size': [40, 60],
            'counts': [410, *[20, 20] * 19, 20, 1210],
        },
    ],
    ids=['polygon', 'run lengths'],
)
def test_masks_of_objects_are_drawn(check, mask):
    check()
    plain = np.asarray(Image.open('work_dirs/config/check/train.png'))
    data = annotations()
    data['annotations'][0]['segmentation'] = mask
    check(data=data)
    drawn = np.asarray(Image.open('work_dirs/config/check/train.png'))
    rows, columns = np.nonzero((plain != drawn).any(-1))
    # 10 to 30 px of an image that is enlarged from 60 px to 320.
    assert abs(rows.min() - 4 - 10 * 320 / 60) < 5
    assert abs(rows.max() - 4 - 30 * 320 / 60) < 5
    assert abs(columns.min() - 4 - 10 * 320 / 60) < 5
    assert abs(columns.max() - 4 - 30 * 320 / 60) < 5
    assert len(rows) > 0.8 * (20 * 320 / 60) ** 2
