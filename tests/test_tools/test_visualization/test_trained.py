# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What all tools that look at a trained model share."""

import cv2
import numpy as np
import pytest
import torch

from mmattn.errors import ConfigError
from mmattn.visualization import TrainedModel, find_images

NAMES = [
    'faster-rcnn_r18-scsa_fpn_15e_digits',
    'upernet_r18-scsa_15e_digits',
    'resnet18-gsca_30e_digits',
]
RESNET = 'resnet18-gsca_30e_digits.py'


@pytest.fixture
def image(digits):
    return sorted((digits / 'data/digits/images/val').glob('*.png'))[0]


@pytest.fixture
def load(trained, demo):
    def load(name):
        return TrainedModel(demo / f'{name}.py', trained(name))

    return load


@pytest.mark.parametrize('name', NAMES)
def test_the_picture_is_the_image_that_the_model_sees(name, load, image):
    model = load(name)
    inputs = model.read(image)['inputs']
    pixels = cv2.imread(str(image))
    pixels[:, :, 0] = 20  # channels that cannot be mixed up
    again = model.read(pixels)['inputs']
    assert inputs.shape == again.shape and not torch.equal(inputs, again)
    picture = model.picture(again)
    assert picture.shape == (*inputs.shape[2:], 3)
    assert np.abs(picture[..., 2].astype(int) - 20).max() <= 1
    if picture.shape == pixels.shape:
        assert np.abs(picture.astype(int) - pixels[..., ::-1]).max() <= 1


@pytest.mark.parametrize('name', NAMES)
def test_an_image_in_memory_is_that_of_the_file(name, load, image):
    model = load(name)
    want = model.read(image)['inputs']
    assert torch.equal(model.read(cv2.imread(str(image)))['inputs'], want)
    assert 'pred' in ' '.join(model.predict(cv2.imread(str(image))).keys())


def test_layers_by_name(load):
    model = load('resnet18-gsca_30e_digits')
    layer = model.model.backbone.layer2[1]
    assert model.module('layer2.1') is layer
    assert model.module('backbone.layer2.1') is layer
    with pytest.raises(ConfigError) as error:
        model.module('layer2.7')
    message = str(error.value)
    assert "no layer 'layer2.7'" in message and 'layer2.1' in message
    assert '\n' not in message


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (
            lambda s: s.pop('head.fc.bias'),
            r'missing in it: head.fc.bias \(1\)',
        ),
        (
            lambda s: s.update({'extra.7.weight': torch.ones(1)}),
            r'not in the model: extra.\*.weight \(1\)',
        ),
        (
            lambda s: s.update({'head.fc.bias': torch.ones(3)}),
            r'of another shape: head.fc.bias \(1\)',
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit(
    trained, demo, tmp_path, change, reason
):
    state = torch.load(trained(RESNET[:-3]))['state_dict']
    change(state)
    torch.save(dict(state_dict=state), tmp_path / 'bad.pth')
    with pytest.raises(ConfigError, match=reason):
        TrainedModel(demo / RESNET, tmp_path / 'bad.pth')


def test_keys_of_repeated_blocks_are_one_group(trained, demo):
    scsa = trained('faster-rcnn_r18-scsa_fpn_15e_digits')
    with pytest.raises(ConfigError, match=r'backbone.layer1.\*.scsa') as error:
        TrainedModel(demo / 'faster-rcnn_r18-none_fpn_15e_digits.py', scsa)
    assert len(str(error.value)) < 700


def test_images_of_folders(tmp_path):
    for name in ('b.png', 'a.jpg'):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / 'notes.txt').write_text('none')
    found = find_images([str(tmp_path), str(tmp_path / 'b.png')])
    assert [path.name for path in found] == ['a.jpg', 'b.png', 'b.png']
    with pytest.raises(ConfigError, match='notes.txt is no readable image'):
        find_images([str(tmp_path / 'notes.txt')])
    with pytest.raises(FileNotFoundError, match='no image'):
        find_images([str(tmp_path / 'nothing')])
