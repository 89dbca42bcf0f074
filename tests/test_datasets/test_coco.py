# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import json
import re
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, DefaultScope

from mmattn.datasets import CocoDataset
from mmattn.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / 'configs'
NAMES = ('cat', 'dog', 'owl')


def write(path, names=NAMES, found=(1, 2, 3), images=2):
    """Write a file with a box of each class of ``found`` in image 1."""
    data = {
        'images': [
            {'id': i, 'file_name': f'{i}.jpg', 'width': 64, 'height': 48}
            for i in range(1, images + 1)
        ],
        'categories': [
            {'id': i, 'name': name} for i, name in enumerate(names, 1)
        ],
        'annotations': [
            {
                'id': number,
                'image_id': 1,
                'category_id': category,
                'bbox': [category, 2, 10, 20],
                'area': 200,
                'iscrowd': 0,
            }
            for number, category in enumerate(found, 1)
        ],
    }
    path.write_text(json.dumps(data))
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / 'train.json')


PREFIX = {'img': ''}


def build(file, classes=NAMES, **kwargs):
    meta = {'classes': classes}
    return CocoDataset(file, metainfo=meta, data_prefix=PREFIX, **kwargs)


def seen(data, index=0):
    """Return the label and the left edge of each box of an image."""
    instances = data.get_data_info(index)['instances']
    return [(item['bbox_label'], item['bbox'][0]) for item in instances]


def test_classes_of_the_file(file):
    data = build(file)
    assert len(data) == 2
    assert seen(data) == [(0, 1), (1, 2), (2, 3)]
    assert data.metainfo['classes'] == NAMES


@pytest.mark.parametrize(
    ('classes', 'want'),
    [
        (('cat', 'owl'), [(0, 1), (1, 3)]),
        (['dog', 'owl'], [(0, 2), (1, 3)]),
        (('dog',), [(0, 2)]),
    ],
)
def test_some_classes_of_the_file(file, classes, want):
    assert seen(build(file, classes)) == want


@pytest.mark.parametrize(
    ('classes', 'wrong'),
    [
        (('dog', 'cat', 'owl'), 'another order'),
        (('owl', 'cat'), 'another order'),
        (('cat', 'dgo', 'owl'), "no class 'dgo'"),
        (('cat', 'dog ', 'owl'), "no class 'dog '"),
        (('cat', 'Dog', 'owl'), "no class 'Dog'"),
        (('cat', 'dog', 'owl', 'fox'), "no class 'fox'"),
        (('ape', 'dog', 'fox'), "no class 'ape', 'fox'"),
    ],
)
def test_other_classes(file, classes, wrong):
    with pytest.raises(ConfigError) as caught:
        build(file, classes)
    assert str(caught.value) == (
        f'{file} has {wrong}; classes of the config: {", ".join(classes)}; '
        'of the file: cat, dog, owl'
    )


def test_trailing_blank_in_the_file(tmp_path):
    file = write(tmp_path / 'a.json', ('cat', 'dog ', 'owl'))
    with pytest.raises(ConfigError, match="no class 'dog';"):
        build(file)


def test_classes_of_coco_by_default(file):
    data = CocoDataset(file, data_prefix=PREFIX, lazy_init=True)
    with pytest.raises(ConfigError) as caught:
        data.full_init()
    message = str(caught.value)
    assert "no class 'person', 'bicycle'" in message
    assert 'config: person, bicycle, car, ' in message
    assert message.endswith('of the file: cat, dog, owl')


def test_lazy_init_reads_nothing(tmp_path):
    file = tmp_path / 'late.json'
    data = build(str(file), lazy_init=True)
    write(file)
    assert len(data) == 2


@pytest.mark.parametrize('classes', ['cat', 'cat, dog, owl'])
@pytest.mark.parametrize('make', [dict, ConfigDict])
def test_single_string(file, classes, make):
    with pytest.raises(ConfigError) as caught:
        CocoDataset(file, metainfo=make(classes=classes), lazy_init=True)
    assert f'({classes!r}, )' in str(caught.value)


def test_arguments_are_mmdets_by_position_too(file):
    folder, name = Path(file).parent, Path(file).name
    data = CocoDataset(name, {'classes': ('owl',)}, str(folder), PREFIX)
    assert seen(data) == [(0, 3)]
    with pytest.raises(ConfigError, match="no class 'fox'"):
        CocoDataset(file, {'classes': ('fox',)})
    with pytest.raises(ConfigError, match='with a comma'):
        CocoDataset(file, {'classes': 'cat'})


def test_missing_file(tmp_path):
    path = f'{tmp_path}/annotations/train.json'
    with pytest.raises(FileNotFoundError) as caught:
        build('annotations/train.json', data_root=str(tmp_path))
    assert path in str(caught.value)
    assert 'docs/datasets.md' in str(caught.value)
    with pytest.raises(FileNotFoundError):
        build(str(tmp_path))


@pytest.mark.parametrize('text', [b'', b'{"images": [', b'\xff\xd8\xff\xe0'])
def test_no_json(tmp_path, text):
    path = tmp_path / 'train.json'
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=f'^{path} is no JSON: '):
        build(str(path))


def test_no_images(tmp_path):
    path = tmp_path / 'train.json'
    path.write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(ConfigError, match=f'^{path} lists no images$'):
        build(str(path))


@pytest.mark.parametrize(
    ('found', 'classes', 'filter_cfg'),
    [
        ((), NAMES, {'filter_empty_gt': True}),
        ((2,), ('cat', 'owl'), {'filter_empty_gt': True, 'min_size': 32}),
        ((1, 2), NAMES, {'filter_empty_gt': False, 'min_size': 49}),
    ],
)
def test_no_image_left(tmp_path, found, classes, filter_cfg):
    file = write(tmp_path / 'a.json', found=found)
    with pytest.raises(ConfigError) as caught:
        build(file, classes, filter_cfg=filter_cfg)
    message = str(caught.value)
    assert message.startswith(f'{file}: filter_cfg={filter_cfg} leaves none')
    assert 'of its 2 images' in message and ', '.join(classes) in message
    # Neither without filter_cfg nor in a test is anything left out.
    assert len(build(file, classes)) == 2
    assert len(build(file, classes, filter_cfg=filter_cfg, test_mode=True))


def test_filter_keeps_images_with_boxes(file):
    data = build(file, filter_cfg={'filter_empty_gt': True, 'min_size': 48})
    assert len(data) == 1 and data.get_data_info(0)['img_id'] == 1


def dataset(file, classes=NAMES):
    return {
        'type': 'mmattn.CocoDataset',
        'ann_file': file,
        'metainfo': {'classes': classes},
        'data_prefix': PREFIX,
    }


@pytest.fixture
def in_mmdet():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.mark.usefixtures('in_mmdet')
def test_repeated_and_joined(file, tmp_path):
    other = write(tmp_path / 'other.json', found=(3,), images=1)
    both = [dataset(file), dataset(other)]
    data = DATASETS.build({'type': 'ConcatDataset', 'datasets': both})
    assert len(data) == 3 and data.metainfo['classes'] == NAMES
    assert seen(data, 2) == [(2, 3)]
    data = DATASETS.build(
        {'type': 'RepeatDataset', 'times': 3, 'dataset': dataset(file)}
    )
    assert len(data) == 6 and data.metainfo['classes'] == NAMES
    assert seen(data, 4) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.usefixtures('in_mmdet')
def test_wrong_classes_in_wrappers(file):
    wrong = dataset(file, ('dog', 'cat', 'owl'))
    with pytest.raises(ConfigError, match='another order; .*dog, cat, owl'):
        DATASETS.build({'type': 'RepeatDataset', 'times': 2, 'dataset': wrong})
    both = [dataset(file), wrong]
    with pytest.raises(ConfigError, match='another order; .*dog, cat, owl'):
        DATASETS.build({'type': 'ConcatDataset', 'datasets': both})


BASES = CONFIGS / '_base_'
MODELS = {BASES / name for name in ('detectors', 'classifiers', 'segmentors')}
DETECTORS = sorted(BASES.glob('detectors/*.py'))


def chain(file):
    """Return a config and its bases, down to the first of a model."""
    if file.parent in MODELS:
        return [file]
    text = file.read_text()
    bases = re.search(r'^_base_ = (\[.*?\]|\S+)$', text, re.S | re.M)
    names = re.findall(r"'(.+?)'", bases[1]) if bases else []
    below = [chain((file.parent / name).resolve()) for name in names]
    return [file, *sum(below, [])]


# So the detectors of _base_ stand for all configs made from them.
def test_configs_leave_the_data_to_a_base():
    for file in CONFIGS.rglob('*.py'):
        if BASES in file.parents:
            continue
        files = chain(file)
        assert [path.parent in MODELS for path in files].count(True) == 1
        for path in files:
            if path.parent not in MODELS:
                text = path.read_text()
                words = 'dataloader|evaluator|default_scope|::'
                assert not re.search(words, text), path


@pytest.mark.parametrize('file', DETECTORS, ids=lambda file: file.stem)
def test_detectors_check_their_classes(file):
    cfg = Config.fromfile(file)
    assert cfg.default_scope == 'mmdet'
    for split in ('train', 'val', 'test'):
        data = cfg[f'{split}_dataloader'].dataset
        while data.type in ('RepeatDataset', 'ConcatDataset'):
            data = data.get('dataset') or data.datasets[0]
        assert data.type == 'mmattn.CocoDataset', split
    for split in ('val', 'test'):
        metrics = cfg[f'{split}_evaluator']
        metrics = metrics if isinstance(metrics, list) else [metrics]
        types = [metric.type for metric in metrics]
        assert 'mmattn.CocoMetric' in types, split
        assert 'CocoMetric' not in types, split


@pytest.mark.parametrize('bad', [float('nan'), float('-inf')])
def test_images_with_boxes_that_are_not_finite(bad, tmp_path, monkeypatch):
    file = write(tmp_path / 'a.json', images=3)
    content = json.loads(Path(file).read_text())
    content['annotations'][1]['bbox'][3] = bad
    Path(file).write_text(json.dumps(content))
    lines = []
    monkeypatch.setattr(
        'mmattn.datasets.coco.print_log', lambda text, *_: lines.append(text)
    )
    kept = build(file)
    assert [kept.get_data_info(i)['img_id'] for i in range(len(kept))] == [
        2,
        3,
    ]
    (line,) = lines
    assert file in line and 'in 1 images (allowed: 10), such as 1.jpg' in line
    for settings in (dict(max_skipped=0), dict(test_mode=True)):
        with pytest.raises(ConfigError, match=r'in 1 images \(allowed: 0\)'):
            build(file, **settings)
