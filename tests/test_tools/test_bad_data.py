# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Damaged data in runs of the tools: skipped and named, or one line."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from mmattn.compat.checkpoint import load

NAMES = {
    'faster': 'faster-rcnn_r18-scsa_fpn_15e_digits',
    'mask': 'mask-rcnn_r18-scsa_fpn_15e_digits',
    'retinanet': 'retinanet_r18-scsa_fpn_15e_digits',
    'upernet': 'upernet_r18-scsa_15e_digits',
    'resnet': 'resnet18-scsa_30e_digits',
}


@pytest.fixture
def data(digits, tmp_path, monkeypatch):
    """A copy of the digits, to be damaged; runs start beside it."""
    shutil.copytree(digits / 'data', tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'data' / 'digits'


@pytest.fixture
def train(run_tool, demo, short):
    """Train a demo; return its log and final weights."""

    def train(name, *options):
        name = NAMES[name]
        run_tool(
            'train.py', demo / f'{name}.py', '--work-dir', 'run',
            '--cfg-options', *short, 'default_hooks.logger.interval=1',
            # Two runs of one second would share the log of the first.
            f'experiment_name=run{time.time_ns()}', *options,
        )  # fmt: skip
        weights = load('run/epoch_1.pth')
        assert all(
            torch.isfinite(value).all()
            for value in weights['state_dict'].values()
        )
        return next(Path('run').glob('*/*.log')).read_text()

    return train


def images(data, split='train'):
    return sorted((data / 'images' / split).glob('*'))


def edit(data, change, split='train'):
    path = data / 'annotations' / f'instances_{split}.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def damage(data, split='train', count=3):
    """Damage images in three ways; return their paths."""
    paths = images(data, split)[:count]
    for path, keep in zip(paths, (0, 99, 1000)):
        path.write_bytes(path.read_bytes()[:keep])
    return paths


@pytest.mark.parametrize(('name', 'workers'), [('faster', 0), ('upernet', 2)])
def test_damaged_images_are_skipped_and_named(name, workers, data, train):
    paths = damage(data)
    if name == 'faster':  # mmseg lists what is in the folder
        paths[0].unlink()
    text = train(
        name,
        f'train_dataloader.num_workers={workers}',
        f'train_dataloader.persistent_workers={workers > 0}',
    )
    lines = [line for line in text.splitlines() if ' of at most ' in line]
    assert len(lines) == 3 and 'skipped 3 of at most 10' in lines[-1]
    for path in paths:
        assert sum(path.name in line for line in lines) == 1


@pytest.mark.parametrize('workers', [0, 2])
def test_too_many_damaged_images_are_one_line(workers, data, train):
    paths = damage(data)
    with pytest.raises(SystemExit) as caught:
        train(
            'upernet', 'train_cfg.max_skipped=2',
            f'train_dataloader.num_workers={workers}',
            f'train_dataloader.persistent_workers={workers > 0}',
        )  # fmt: skip
    line = str(caught.value)
    assert line.startswith('error: data/') and '\n' not in line
    assert any(path.name in line for path in paths)
    assert line.endswith('(damaged images: 3, allowed: max_skipped=2)')


def test_an_evaluation_bears_none(data, train, trained, run_tool, demo):
    checkpoint = trained(NAMES['faster'])
    (path,) = damage(data, 'val', count=1)
    with pytest.raises(SystemExit, match=f'error: data/.*{path.name}: '):
        run_tool('test.py', demo / f'{NAMES["faster"]}.py', checkpoint)


def test_an_image_of_a_class_is_named(data, train):
    path = next((data / 'classification' / 'train').glob('*/*'))
    path.write_bytes(path.read_bytes()[:50])
    text = train('resnet')
    assert 'skipped 1 of at most 10' in text and path.name in text


def test_boxes_that_are_not_finite(data, train):
    def change(content):
        content['annotations'][0]['bbox'][2] = float('nan')

    edit(data, change)
    text = train('faster')
    assert 'boxes with NaN or infinity in 1 images' in text


@pytest.mark.parametrize('content', ['', '{"images": ['])
def test_an_empty_annotation_file_is_one_line(content, data, train):
    path = data / 'annotations' / 'instances_train.json'
    path.write_text(content)
    with pytest.raises(SystemExit, match=f'{path.name} is no JSON'):
        train('faster')


@pytest.mark.parametrize('name', ['faster', 'mask', 'retinanet'])
def test_batches_of_background_alone(name, data, train):
    def change(content):
        content['annotations'] = content['annotations'][:1]

    edit(data, change)
    train(name)
    assert not Path('run/invalid_loss.jsonl').exists()


@pytest.mark.parametrize('label', [0, 255])
def test_masks_of_background_alone(label, data, train):
    import cv2

    for path in (data / 'masks' / 'train').glob('*.png'):
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        mask[:] = label
        cv2.imwrite(str(path), mask)
    train('upernet')
    assert not Path('run/invalid_loss.jsonl').exists()


def test_a_loss_that_is_not_finite_is_one_line(data, train):
    with pytest.raises(SystemExit) as caught:
        train(
            'resnet', 'model.head.loss.loss_weight=inf',
            'train_dataloader.batch_size=4',
        )  # fmt: skip
    line = str(caught.value)
    assert line.startswith('error: the loss was not finite for 5 batches')
    rows = Path('run/invalid_loss.jsonl').read_text().splitlines()
    found = [image for row in rows for image in json.loads(row)['images']]
    assert len(rows) == 5 and all(Path(image).is_file() for image in found)
