# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from probes import ATTENTIONS, plugin, thin

from mmattn.registry import MODELS
from mmattn.visualization import TrainedModel

TOOL = 'visualization/vis_attention.py'
DETECTOR = 'faster-rcnn_r18-scsa_fpn_15e_digits'
SEGMENTOR = 'upernet_r18-scsa_15e_digits'
CLASSIFIER = 'resnet18-gsca_30e_digits'
BLOCKS = [f'layer{i}.{j}' for i in range(1, 5) for j in range(2)]


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool(TOOL)


@pytest.fixture
def image(digits):
    return sorted((digits / 'data/digits/images/val').glob('*.png'))[0]


@pytest.fixture
def load(trained, demo):
    def load(name):
        return TrainedModel(demo / f'{name}.py', trained(name))

    return load


@pytest.fixture
def run(run_tool, trained, demo, image, tmp_path):
    """Run the tool for one image; return the folder of the results."""

    def run(name, *words, images=(image,)):
        out = tmp_path / 'out'
        model = demo / f'{name}.py', trained(name)
        run_tool(TOOL, *model, *images, '--out-dir', out, *words)
        return out

    return run


@pytest.fixture
def refuses(run, tmp_path):
    """Run the tool in vain; return its one line."""

    def refuses(name, *words):
        with pytest.raises(SystemExit) as error:
            run(name, *words)
        message = str(error.value)
        assert message.startswith('error: ') and '\n' not in message
        assert list(tmp_path.iterdir()) == []
        return message

    return refuses


def scene_of(tool, side=64):
    """A black image with padding on its right."""
    picture = np.zeros((side, side - 8, 3), np.uint8)
    return tool.Scene('black', picture, (side, side))


def view_of(tool, layer, x, other=None):
    return tool.View(
        layer='layer',
        kind=type(layer).__name__,
        input=x[0].numpy(),
        output=layer(x)[0].detach().numpy(),
        weights=tool.weights_of(layer, x),
        other=other and tool.weights_of(other, x),
        reverse=getattr(layer, 'reverse', None),
    )


def shown(figure):
    """Return the panels of a figure by their titles."""
    return {axes.get_title(): axes for axes in figure.axes}


def values_of(tool, axes):
    """Read the values of an overlay on black off its colours, 0 to 255."""
    (drawn,) = axes.images
    colours = tool.colormaps[tool.COLOURS](np.arange(256))[:, :3] * 255
    pixels = drawn.get_array().data[..., None, :] / tool.OPACITY
    return np.abs(pixels - colours).sum(-1).argmin(-1)


# -------------------------------------------------------------- whole program


@pytest.mark.parametrize(
    ('name', 'chosen'),
    [
        (DETECTOR, ['layer2.1', 'layer4.0.scsa.pcsa']),
        (SEGMENTOR, ['backbone.layer3']),
        (CLASSIFIER, ['layer4']),
    ],
)
def test_figures_and_arrays_of_layers(name, chosen, run, image, load, tool):
    out = run(name, '--layers', *chosen, '--npz')
    want = {
        DETECTOR: ['layer2.1.scsa', 'layer4.0.scsa'],
        SEGMENTOR: ['layer3.0.scsa', 'layer3.1.scsa'],
        CLASSIFIER: ['layer4.0.gsca', 'layer4.1.gsca'],
    }[name]
    figures = {f'{image.stem}_{layer}.png' for layer in want}
    assert {p.name for p in out.iterdir()} == {f'{image.stem}.npz', *figures}
    for figure in figures:
        assert cv2.imread(str(out / figure)).std() > 20

    trained = load(name)
    seen = []
    trained.module(want[-1]).register_forward_hook(
        lambda _, args, y: seen.append((args[0].clone(), y.clone()))
    )
    trained.predict(image)  # as the model is used
    ((x, y),) = seen
    with np.load(out / f'{image.stem}.npz') as arrays, torch.no_grad():
        assert {key.split('/')[0] for key in arrays} == set(want)
        np.testing.assert_array_equal(arrays[f'{want[-1]}/input'], x[0])
        np.testing.assert_array_equal(arrays[f'{want[-1]}/output'], y[0])
        for layer in want:
            x = torch.from_numpy(arrays[f'{layer}/input'])[None]
            weights = trained.module(layer).attention_weights(x)
            assert {
                k.split('/')[1] for k in arrays if layer == k.split('/')[0]
            } == {
                'input',
                'output',
                *weights,
            }
            for key, weight in weights.items():
                np.testing.assert_allclose(
                    arrays[f'{layer}/{key}'], weight[0], rtol=1e-5
                )


def test_a_sweep_of_a_folder(run, image, tool, monkeypatch):
    drawn = []
    draw = tool.Figure.savefig
    monkeypatch.setattr(
        tool.Figure,
        'savefig',
        lambda figure, *args, **kwargs: (
            drawn.append(figure),
            draw(figure, *args, **kwargs),
        ),
    )
    twins = [image, image]
    out = run(CLASSIFIER, '--sweep', '--no-reverse', '--npz', images=twins)
    stems = [image.stem, f'{image.parent.name}_{image.stem}']
    assert {p.name for p in out.iterdir()} == {
        f'{stem}{end}' for stem in stems for end in ('_sweep.png', '.npz')
    }
    labels = [text.get_text().split('\n')[0] for text in drawn[0].texts]
    assert labels == [image.stem, '', *(f'{b}.gsca' for b in BLOCKS)]
    # The image and, of each layer, four panels with a colour bar each.
    maps = [axes for axes in drawn[0].axes if axes.images]
    assert len(maps) == 1 + 4 * len(BLOCKS)
    with np.load(out / f'{image.stem}.npz') as arrays:
        layer = f'{BLOCKS[0]}.gsca'
        pair = [
            arrays[f'{layer}/weight{end}'] for end in ('', ' without reverse')
        ]
    # sigma(-rho) and sigma(rho), squared
    np.testing.assert_allclose(sum(np.sqrt(w) for w in pair), 1, rtol=1e-5)


# -------------------------------------------------------------------- layers


def test_names_of_layers(load, tool):
    trained = load(CLASSIFIER)

    def names(*wanted):
        return [*tool.choose_layers(trained, wanted)]

    assert names() == [f'{block}.gsca' for block in BLOCKS]
    assert names('layer2.1') == names('backbone.layer2.1.gsca')
    assert names('layer2.1') == ['layer2.1.gsca']
    assert names('layer3', 'layer3.0') == ['layer3.0.gsca', 'layer3.1.gsca']
    (found,) = tool.choose_layers(trained, ['layer1.0']).values()
    assert found is trained.model.backbone.layer1[0].gsca


def test_a_block_is_not_taken_for_another_of_more_digits(tool):
    blocks = [torch.nn.Sequential(MODELS.get('SE')(8)) for _ in range(11)]
    model = torch.nn.ModuleDict(dict(neck=torch.nn.Sequential(*blocks)))
    trained = SimpleNamespace(name='model', model=model)
    assert [*tool.choose_layers(trained, ['neck.1'])] == ['neck.1.0']
    assert [*tool.choose_layers(trained, ['neck.10.0.conv1'])] == ['neck.10.0']


def test_layers_inside_an_attention_and_other_plugins(tool):
    model = torch.nn.Module()
    plugins = [plugin('SCSA', 'after_conv1'), plugin('Add', 'after_conv2')]
    plugins[1]['cfg']['value'] = 1.0
    model.backbone = thin('ResNet', plugins)
    found = tool.attention_layers(model)
    assert {name.split('.')[-1] for name in found} == {'scsa', 'add'}
    x = torch.ones(1, 8, 3, 4)
    weights = tool.weights_of(found['backbone.layer1.0.add'], x)
    assert [*weights] == ['ratio'] and (weights['ratio'] == 2).all()


@pytest.mark.parametrize(
    ('name', 'words', 'reason'),
    [
        (CLASSIFIER, ['--layers', 'layer2.7'], "no layer 'layer2.7'"),
        (CLASSIFIER, ['--layers', 'layer'], "no layer 'layer'"),
        (
            CLASSIFIER,
            ['--layers', 'layer2.0.conv1'],
            "no attention in layer 'layer2.0.conv1'; attention is in "
            + ', '.join(f'{block}.gsca' for block in BLOCKS),
        ),
        (DETECTOR, ['--layers', 'neck'], 'attention is in layer1.0.scsa, '),
        (DETECTOR, ['--no-reverse'], 'none of the layers is GSCA'),
    ],
)
def test_what_cannot_be_shown_is_one_line(name, words, reason, refuses):
    assert reason in refuses(name, *words)


def test_a_model_without_attention(refuses):
    none = '--cfg-options', 'model.backbone.plugins=None'
    assert 'has no attention' in refuses(CLASSIFIER, *none)


def test_nothing_is_written_when_an_image_fails(run, image, tmp_path):
    bad = tmp_path / 'bad.png'
    bad.write_bytes(image.read_bytes()[:60])
    with pytest.raises(SystemExit, match='bad.png is no readable image'):
        run(CLASSIFIER, '--layers', 'layer4.1', images=[image, bad])
    assert [p.name for p in tmp_path.iterdir()] == ['bad.png']


# ------------------------------------------------------------------- looking


def test_hooks_are_removed(load, tool, image):
    trained = load(CLASSIFIER)
    layers = tool.choose_layers(trained, ['layer1'])
    tool.look(trained, layers, image)
    assert not any(m._forward_hooks for m in trained.model.modules())
    with pytest.raises(KeyError), tool.recorded(layers):
        raise KeyError
    assert not any(m._forward_hooks for m in trained.model.modules())


def test_a_layer_that_runs_more_or_less_than_once(load, tool, image):
    trained = load(CLASSIFIER)
    layers = tool.choose_layers(trained, ['layer1.0'])
    forward = trained.model.forward
    trained.model.forward = lambda **kwargs: None
    with pytest.raises(tool.ConfigError, match="gsca' runs 0 times"):
        tool.look(trained, layers, image)
    trained.model.forward = lambda **kwargs: (
        forward(**kwargs),
        forward(**kwargs),
    )
    with pytest.raises(tool.ConfigError, match="gsca' runs 2 times"):
        tool.look(trained, layers, image)


def test_a_planted_object_peaks_without_reverse_and_dips_with(
    load, tool, image
):
    trained = load(CLASSIFIER)
    layers = tool.choose_layers(trained, ['layer1.1'])
    (gsca,) = layers.values()
    found = []

    def plant(module, args):
        # Pixels of random directions; those of the object have one in common.
        x = torch.randn_like(args[0])
        x[..., 1:3, -3:-1] = 9 * torch.randn(1, x.shape[1], 1, 1)
        found.append(x)
        return x

    gsca.register_forward_pre_hook(plant)
    _, size, (view,) = tool.look(trained, layers, image, no_reverse=True)
    (x,) = found
    np.testing.assert_array_equal(view.input, x[0])
    scene = tool.Scene('', np.zeros((*size, 3), np.uint8), size)
    panels = shown(tool.draw_layer(scene, view))
    cell = size[0] / x.shape[2]
    place = (
        slice(int(1.5 * cell), int(2.5 * cell)),
        slice(int(size[1] - 2.5 * cell), int(size[1] - 1.5 * cell)),
    )
    for version, extreme in (('with', 0), ('without', 255)):
        drawn = values_of(tool, panels[f'weight, {version} reverse'])
        assert np.abs(drawn[place] - extreme).max() < 10
        rest = np.ones(drawn.shape, bool)
        rest[: int(3.5 * cell), int(size[1] - 4.5 * cell) :] = False
        assert np.abs(drawn[rest] - extreme).min() > 20


# -------------------------------------------------------------------- panels

#: Titles between input and output, for maps of 8 x 6 and 64 channels.
TITLES = {
    'CBAM': ['channel', 'spatial'],
    'CoordAttention': ['rows', 'columns', 'rows x columns, mean'],
    'DoubleAttention': ['added'],
    'EMA': [f'spatial {i} of 8' for i in range(1, 9)],
    'GSCA': ['weight 1 of 2', 'weight 2 of 2'],
    'SCSA': ['rows', 'columns', 'rows x columns, mean', 'channel'],
    'SE': ['channel'],
    'ShuffleAttention': ['weight, mean of 64', 'weight, std of 64'],
}


@pytest.mark.parametrize('name', TITLES)
def test_panels_of_every_kind_of_weights(name, tool):
    args = dict(GSCA=dict(num_heads=2), EMA=dict(groups=8)).get(name, {})
    layer = MODELS.get(name)(64, **args).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    view = view_of(tool, layer, torch.randn(1, 64, 8, 6))
    figure = tool.draw_layer(scene_of(tool), view)
    panels = [axes for axes in figure.axes if axes.get_title()]
    titles = [axes.get_title() for axes in panels]
    assert titles == ['image', 'input', *TITLES[name], 'output']
    # All heads in one colour scale, which the bars say.
    bars = [
        axes.child_axes[0].get_ylim()
        for axes in panels
        if axes.get_title().split(' ')[0] in ('weight', 'spatial', 'added')
        and 'std' not in axes.get_title()
    ]
    assert len(set(bars)) <= 1


@pytest.mark.parametrize('name', ATTENTIONS)
def test_any_attention_in_a_sweep(name, tool):
    layer = MODELS.get(name.split('.')[1])(32).eval()
    views = [
        view_of(tool, layer, torch.randn(1, 32, *s)) for s in ((8, 6), (1, 1))
    ]
    titles = [*shown(tool.draw_sweep(scene_of(tool), views))]
    assert {'image', 'input', 'output'} < set(titles)


def test_axis_gates_run_along_the_picture(tool):
    layer = MODELS.get('ELA')(16).eval()
    view = view_of(tool, layer, torch.randn(1, 16, 8, 4))
    panels = shown(tool.draw_layer(scene_of(tool), view))
    rows, columns = view.weights['rows'], view.weights['columns']
    mean, places = panels['rows'].lines[0].get_data()
    np.testing.assert_allclose(mean, rows[:, :, 0].mean(0))
    np.testing.assert_allclose(places, np.arange(8) * 8 + 3.5)
    assert panels['rows'].get_ylim() == (63.5, -0.5)  # downwards
    places, mean = panels['columns'].lines[0].get_data()
    np.testing.assert_allclose(mean, columns[:, 0].mean(0))
    np.testing.assert_allclose(places, np.arange(4) * 16 + 7.5)
    assert panels['columns'].get_xlim() == (-0.5, 55.5)  # without padding
    product = (rows * columns).mean(0)
    drawn = values_of(tool, panels['rows x columns, mean'])[4::8, 8::16]
    low, high = product.min(), product.max()
    want = (product[:, :3] - low) / (high - low) * 255
    np.testing.assert_allclose(drawn[:, :3], want, atol=20)


def test_overlays_leave_the_padding_out_and_keep_the_picture(tool):
    scene = scene_of(tool)
    heat = scene.fit(np.eye(8)[::-1])  # padding hides the last column
    assert heat.shape == (64, 56)
    drawn = tool.overlay(scene.picture, heat, (0, 1)).astype(int)
    assert drawn[60, 3, 0] > drawn[60, 3, 2]  # red at the lower left
    assert drawn[3, 3, 0] < drawn[3, 3, 2] + 20 and drawn[3, 3].max() < 60
    brighter = tool.overlay(scene.picture + 100, heat, (0, 1))
    assert (brighter - drawn == 35).all()


def test_scales(tool):
    maps = [np.array([[0.2, 0.4]]), np.array([[0.3, 0.9]])]
    assert tool.limits(maps) == (0.2, 0.9)
    low, high = tool.limits([np.float32([0.5, 0.5 + 1e-7])])
    assert low < 0.49996 and high > 0.50004
    low, high = tool.limits([np.zeros(3)])
    assert low < 0 < high


def test_names_of_files(tool, tmp_path):
    paths = [tmp_path / n for n in ('a/1.png', 'b/1.png', 'b/2.png')]
    assert tool.unique_names(paths) == ['1', 'b_1', '2']
    same = tool.unique_names([tmp_path / 'a/1.png'] * 12)
    assert len(set(same)) == 12
