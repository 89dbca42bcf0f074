# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Effective receptive fields against those that are known exactly."""

import csv
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from torch import nn

from mmattn import backbones
from mmattn.visualization import TrainedModel

FASTER = 'faster-rcnn_r18-scsa_fpn_15e_digits'
UPERNET = 'upernet_r18-scsa_15e_digits'
RESNET = 'resnet18-gsca_30e_digits'
NAMES = [FASTER, UPERNET, RESNET]
TOOL = 'visualization/vis_erf.py'


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool(TOOL)


@pytest.fixture(scope='module')
def images(digits):
    return sorted((digits / 'data/digits/images/val').glob('*.png'))


@pytest.fixture(scope='module')
def load(trained, demo):
    done = {}

    def load(name):
        if name not in done:
            done[name] = TrainedModel(demo / f'{name}.py', trained(name))
        init_default_scope(done[name].scope)
        return done[name]

    return load


# ---------------------------------------------------------- fields of a chain


def chain(depth, stride=1, weight=1.0, width=1):
    """Return 3x3 convolutions of equal weights, without anything between."""
    layers = nn.Sequential()
    for i in range(depth):
        conv = nn.Conv2d(width if i else 3, width, 3, stride, 1, bias=False)
        nn.init.constant_(conv.weight, weight)
        layers.append(conv.requires_grad_(False))
    return layers


def trinomial(depth):
    """Return the coefficients of (1 + x + x^2)^depth."""
    row = np.ones(1)
    for _ in range(depth):
        row = np.convolve(row, np.ones(3))
    return row


@pytest.mark.parametrize('depth', [1, 2, 3, 5])
@pytest.mark.parametrize('side', [15, 16])
def test_a_chain_of_convolutions(tool, depth, side):
    inputs = torch.rand(1, 3, side, side)
    layers = [str(i) for i in range(depth)]
    found = tool.gradients(chain(depth), layers, inputs)
    for i, field in enumerate(found, 1):
        want = np.zeros((side, side))
        around = slice(side // 2 - i, side // 2 + i + 1)
        want[around, around] = np.outer(trinomial(i), trinomial(i))
        np.testing.assert_allclose(field, 3 * want)  # of three colours


@pytest.mark.parametrize('weight', [1.0, -1.0])
def test_channels_are_summed_before_and_colours_after(tool, weight):
    layers = chain(2, weight=weight, width=4)
    with torch.no_grad():
        layers[0].weight[:, 1] = -1  # one colour counts against the others
        layers[1].weight[3] = -1 * weight  # one of four channels as well
    (field,) = tool.gradients(layers, ['1'], torch.rand(1, 3, 9, 9))
    # Of 4 channels two are left over, each sums 4, and signs are forgotten.
    want = np.outer(trinomial(2), trinomial(2)) * 3 * 4 * 2
    np.testing.assert_allclose(field[2:7, 2:7], want)
    assert field.sum() == want.sum()


def test_strides_shift_the_middle(tool):
    """Cell 3 of 7 begins left of pixel 24, and not of the image's 27.5."""
    (field,) = tool.gradients(
        chain(3, stride=2), ['2'], torch.rand(1, 3, 56, 56)
    )
    rows = np.flatnonzero(field.sum(1))
    assert (rows[0], rows[-1]) == (24 - 7, 24 + 7)
    square = tool.enclosing_square(field, 0.99)
    assert (square.row, square.column) == (24, 24)


def test_the_mean_is_taken_of_absolute_values(tool, images, monkeypatch):
    """Not the other way round: two images of opposite signs do not cancel."""

    class Signed(nn.Module):
        def __init__(self):
            super().__init__()
            self.chain = chain(1)

        def forward(self, x):
            return self.chain(x * x.mean().detach().sign())

    values = {'dark': -1.0, 'light': 1.0}
    monkeypatch.setattr(tool, 'read_square', lambda path, size: path)
    model = SimpleNamespace(
        name='signed',
        model=SimpleNamespace(backbone=Signed()),
        normalize=lambda path: torch.full((1, 3, 5, 5), values[path]),
    )
    (field,) = tool.fields(model, ['chain.0'], ['dark', 'light', 'light'], 5)
    want = np.zeros((5, 5))
    want[1:4, 1:4] = 3
    np.testing.assert_allclose(field, want)


# ------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ('depth', 'radii'),
    [
        # Inside radius 0, 1, ...: 1/9, 1 of all.
        (1, (1, 1, 1)),
        # 1, 2, 3, 2, 1 of 9 a side: 9/81 = 11 %, 49/81 = 60 %, all.
        (2, (1, 2, 2)),
        # 1, 3, 6, 7, 6, 3, 1 of 27: 6.7 %, 49.5 %, 85.7 %, all.
        (3, (2, 2, 3)),
        # 1, 4, 10, 16, 19, 16, 10, 4, 1 of 81: 5.5 %, 39.6 %, 76.9 %, 95.1 %
        (4, (2, 3, 4)),
    ],
)
def test_radii_by_hand(tool, depth, radii):
    (field,) = tool.gradients(
        chain(depth), [str(depth - 1)], torch.rand(1, 3, 21, 21)
    )
    for share, radius in zip(tool.SHARES, radii):
        square = tool.enclosing_square(field, share)
        assert (square.row, square.column) == (10, 10)
        assert square.radius == radius
        assert square.area == pytest.approx((2 * radius + 1) ** 2 / 21**2)


def test_squares_are_cut_by_the_image(tool):
    field = np.zeros((10, 20))
    field[1, 4], field[1, 12] = 3, 1  # the middle is at (1, 4)
    square = tool.enclosing_square(field, 0.75)
    assert square == (1, 4, 0, 1 / 200)
    square = tool.enclosing_square(field, 0.76)
    assert square[:3] == (1, 4, 8)
    assert square.area == pytest.approx(10 * 13 / 200)
    assert tool.enclosing_square(np.full((7, 7), 0.1), 1).radius == 3


def test_the_radius_is_the_smallest_that_suffices(tool):
    """Against a search over all squares."""
    rows, columns = np.mgrid[:31, :40]
    field = np.exp(-np.hypot(rows - 12, columns - 25) / 5)
    field *= np.random.default_rng(0).uniform(0.5, 1.5, field.shape)
    for share in (0.1, *tool.SHARES):
        row, column, radius, area = tool.enclosing_square(field, share)
        assert abs(row - 12) <= 1 and abs(column - 25) <= 1

        def inside(r, row=row, column=column):
            return field[
                max(row - r, 0) : row + r + 1,
                max(column - r, 0) : column + r + 1,
            ]

        assert inside(radius).sum() >= share * field.sum()
        assert inside(radius - 1).sum() < share * field.sum()
        assert area == pytest.approx(inside(radius).size / field.size)


# ------------------------------------------------------------------- models


@pytest.mark.parametrize('name', NAMES)
def test_models_against_their_outputs(tool, load, images, name):
    """Hooks and own outputs of the backbone agree."""
    model = load(name)
    layers = model.stages()
    assert layers == ['layer1', 'layer2', 'layer3', 'layer4']
    got = tool.fields(model, layers[2:], images[:3], 64)
    backbone, want = model.model.backbone, []
    for path in images[:3]:
        pixels = cv2.resize(cv2.imread(str(path)), (64, 64))[..., ::-1]
        inputs = model.normalize(pixels).requires_grad_()
        output = backbone(inputs)[-1]  # of layer4, two cells a side
        (gradient,) = torch.autograd.grad(output[0, :, 1, 1].sum(), inputs)
        want.append(gradient.abs().sum((0, 1)))
    want = torch.stack(want).mean(0).numpy()
    np.testing.assert_allclose(got[1], want, rtol=1e-3, atol=1e-6)
    assert got[0].shape == (64, 64) and got[0].any()
    assert not np.allclose(got[0], got[1])


def test_differences_of_a_trained_model(tool, trained, demo, images):
    """The gradient is what a small change of a pixel does."""
    model = TrainedModel(demo / f'{RESNET}.py', trained(RESNET))
    backbone = model.model.backbone.double()
    image = tool.read_square(images[0], 64)
    inputs = model.normalize(image).double()
    (field,) = tool.gradients(
        backbone.requires_grad_(False), ['layer3'], inputs
    )

    def middle(x):
        kept = []
        hook = backbone.layer3.register_forward_hook(
            lambda module, args, out: kept.append(out[0, :, 2, 2].sum())
        )
        with torch.no_grad():
            backbone(x)
        hook.remove()
        return kept[0].item()

    for row, column in ((32, 32), (30, 37), (12, 50)):
        total = 0.0
        for colour in range(3):
            step = torch.zeros_like(inputs)
            step[0, colour, row, column] = 1e-6
            total += abs(middle(inputs + step) - middle(inputs - step)) / 2e-6
        assert field[row, column] == pytest.approx(total, rel=1e-3, abs=1e-7)


BACKBONES = {
    'ResNet': (dict(depth=50, base_channels=8), [4, 8, 16, 32]),
    'ResNeXt': (
        dict(depth=50, groups=2, base_width=8, base_channels=64),
        [4, 8, 16, 32],
    ),
    'MobileNetV2': (
        dict(widen_factor=0.25),
        [2, 4, 8, 16, 16, 32, 32, 32],
    ),
    'ShuffleNetV2': (dict(widen_factor=0.5), [8, 16, 32, 32]),
    'RepVGG': (dict(arch='A0'), [4, 8, 16, 32]),
    'SwinTransformer': (
        dict(
            arch=dict(
                embed_dims=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 4]
            ),
            pad_small_map=True,
        ),
        [4, 8, 16, 32],
    ),
}


@pytest.mark.parametrize('name', BACKBONES)
def test_stages_of_every_backbone(tool, name):
    """Each stage's map has its stride, and a field of its own."""
    settings, strides = BACKBONES[name]
    backbone = getattr(backbones, name)(**settings).eval()
    model = TrainedModel.__new__(TrainedModel)
    model.name, model.model = name, nn.Module()
    model.model.backbone = backbone.requires_grad_(False)
    layers = model.stages()
    assert len(layers) == len(strides)
    plugged = len(backbone.plugin_stages())
    assert plugged in (len(layers), len(layers) - 1)
    blocks = [model.module(layer) for layer in layers[:plugged]]
    for block, stage in zip(blocks, backbone.plugin_stages()):
        assert block is stage or block is stage[-1]
    sizes, inputs = {}, torch.rand(1, 3, 64, 96)
    hooks = [
        model.module(layer).register_forward_hook(
            lambda module, args, out, layer=layer: sizes.update(
                {layer: tool.as_map(out, (64, 96), layer).shape[2:]}
            )
        )
        for layer in layers
    ]
    fields = tool.gradients(backbone, layers, inputs)
    for hook in hooks:
        hook.remove()
    for layer, stride, field in zip(layers, strides, fields):
        assert sizes[layer] == (64 // stride, 96 // stride)
        assert field.shape == (64, 96) and field.any()


@pytest.mark.parametrize('name', NAMES)
def test_normalize_is_what_the_model_does(load, images, name):
    model = load(name)
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    inputs = model.normalize(pixels)
    assert np.array_equal(model.picture(inputs), pixels)
    size = model.read(images[0])['inputs'].shape[-1]
    image = cv2.resize(cv2.imread(str(images[0])), (size, size))
    want = model.read(image)['inputs']
    got = model.normalize(np.ascontiguousarray(image[..., ::-1]))
    assert torch.equal(got, want)


# ------------------------------------------------------------------- images


def test_images_are_drawn_evenly_and_once(tool):
    paths = [
        Path(f'{folder}/{i}.png')
        for folder, count in (('a', 100), ('b', 3), ('c', 40))
        for i in range(count)
    ]
    drawn = tool.draw_images([*paths, *paths], 20, 0)
    assert len(set(drawn)) == 20
    counts = [sum(p.parent.name == name for p in drawn) for name in 'abc']
    assert counts[1] == 3 and abs(counts[0] - counts[2]) <= 1
    assert drawn == tool.draw_images(paths[::-1], 20, 0)
    assert drawn != tool.draw_images(paths, 20, 1)
    few = tool.draw_images(paths, 2, 0)
    assert few[0].parent != few[1].parent
    assert sorted(tool.draw_images(paths, 300, 0)) == sorted(paths)


def test_images_are_squeezed_and_grey_ones_kept(tool, tmp_path):
    pixels = np.zeros((10, 40), np.uint8)
    pixels[:, 20:] = 200
    cv2.imwrite(str(tmp_path / 'grey.png'), pixels)
    square = tool.read_square(tmp_path / 'grey.png', 20)
    assert square.shape == (20, 20, 3)
    assert (square[:, :9] == 0).all() and (square[:, 11:] == 200).all()
    blue = np.zeros((4, 4, 3), np.uint8)
    blue[..., 0] = 255  # BGR
    cv2.imwrite(str(tmp_path / 'blue.png'), blue)
    colour = tool.read_square(tmp_path / 'blue.png', 4)[0, 0]
    assert colour.tolist() == [0, 0, 255]


# ----------------------------------------------------------------- as a tool


def test_end_to_end(
    run_tool, trained, demo, digits, tmp_path, capsys, tool, images
):
    models = [
        word
        for name in NAMES
        for word in ('--model', demo / f'{name}.py', trained(name))
    ]
    run_tool(
        TOOL, images[0].parent, '--out-dir', tmp_path / 'out', *models,
        '--names', 'det', 'seg', 'cls', '--size', 64, '--num-images', 2,
        '--csv', '--npz',
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert '2 images of 64x64 pixels' in printed
    table = [line for line in printed.splitlines() if line[:1] == '|']
    cells = [line.strip('| ').split(' | ') for line in table]
    with (tmp_path / 'out/erf.csv').open() as file:
        rows = list(csv.reader(file))
    assert rows == [cells[0], *cells[2:]] and len(rows) == 7
    with np.load(tmp_path / 'out/erf.npz') as file:
        arrays = dict(file)
    names = arrays['models'].tolist()
    assert names == ['det', 'seg', 'cls']
    assert arrays['stages'].tolist() == [3, 4]
    for row in rows[1:]:
        line = dict(zip(rows[0], row))
        assert line['layer'] == f'layer{line["stage"]}'
        field = arrays[f'erf_{names.index(line["model"])}_{line["stage"]}']
        for share in (50, 80, 99):
            square = tool.enclosing_square(field, share / 100)
            assert int(line[f'radius {share}%']) == square.radius
            area = float(line[f'area {share}%'])
            assert area == pytest.approx(square.area, abs=1e-4)
    shown = cv2.imread(str(tmp_path / 'out/erf.png'))
    assert shown.shape[1] > 600 and shown.std() > 10
    files = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert files == ['erf.csv', 'erf.npz', 'erf.png']
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--stages', 5], 'no stage 5; it has 1 to 4: layer1, layer2'),
        (['--stages', 0], 'no stage 0'),
        (['--num-images', 0], '--num-images must be positive'),
        (['--size', -1], '--size must be positive'),
        (['--device', 'abacus'], '--device abacus: '),
        (['--names', 'a', 'b'], '2 titles to 1 models'),
    ],
)
def test_bad_options(
    run_tool, trained, demo, images, tmp_path, words, message
):
    model = ['--model', demo / f'{RESNET}.py', trained(RESNET)]
    with pytest.raises(SystemExit, match=message) as error:
        run_tool(
            TOOL, images[0], '--out-dir', tmp_path / 'out', *model, *words
        )
    assert str(error.value).startswith('error: ')
    assert '\n' not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('kind', ['missing', 'text', 'broken'])
def test_bad_images(run_tool, trained, demo, images, tmp_path, kind):
    path = tmp_path / f'{kind}.png'
    if kind == 'text':
        path.write_text('no image')
    elif kind == 'broken':
        path.write_bytes(images[0].read_bytes()[:60])
    message = 'no image' if kind == 'missing' else 'is no readable image'
    with pytest.raises(SystemExit, match=message):
        run_tool(
            TOOL, images[0], path, '--out-dir', tmp_path / 'out', '--size', 32,
            '--model', demo / f'{RESNET}.py', trained(RESNET),
        )  # fmt: skip
    assert not (tmp_path / 'out').exists()
    assert not list(tmp_path.glob('.partial*'))


def test_backbones_without_stages(tool):
    model = TrainedModel.__new__(TrainedModel)
    model.name, model.model = 'odd', nn.Module()
    model.model.backbone = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match='what the stages of a Conv2d are'):
        model.stages()


def test_the_default_is_the_last_two_that_all_have(tool):
    three, four = (
        SimpleNamespace(name='x', stages=lambda n=n: ['layer'] * n)
        for n in (3, 4)
    )
    assert tool.choose_stages([four], None) == [3, 4]
    assert tool.choose_stages([four, three], None) == [2, 3]
    assert tool.choose_stages([four], [4, 1, 4]) == [4, 1]
