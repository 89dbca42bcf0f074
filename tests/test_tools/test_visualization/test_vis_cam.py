# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Class activation maps against formulas, known objects and own scores."""

import argparse
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from mmattn.errors import ConfigError
from mmattn.visualization import TrainedModel
from mmattn.visualization.trained import as_map

package = pytest.importorskip('pytorch_grad_cam', reason='no grad-cam')

FASTER = 'faster-rcnn_r18-scsa_fpn_15e_digits'
RETINA = 'retinanet_r18-scsa_fpn_15e_digits'
UPERNET = 'upernet_r18-scsa_15e_digits'
RESNET = 'resnet18-gsca_30e_digits'
TOOL = 'visualization/vis_cam.py'

CASCADE = """
_base_ = '{base}'
head = dict(
    type='Shared2FCBBoxHead', in_channels=64, fc_out_channels=32,
    roi_feat_size=7, num_classes=10, reg_class_agnostic=True,
    bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.] * 4,
                    target_stds=[.1, .1, .2, .2]),
    loss_cls=dict(type='CrossEntropyLoss'), loss_bbox=dict(type='L1Loss'))
model = dict(
    type='CascadeRCNN',
    roi_head=dict(
        _delete_=True, type='CascadeRoIHead', num_stages=2,
        stage_loss_weights=[1, 0.5],
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor', out_channels=64,
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            featmap_strides=[4, 8, 16, 32]),
        bbox_head=[head, head]),
    train_cfg=None)
"""


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool(TOOL)


@pytest.fixture(scope='module')
def images(digits):
    return sorted((digits / 'data/digits/images/val').glob('*.png'))


@pytest.fixture(scope='module')
def digit(digits):
    return next((digits / 'data/digits/classification/val').glob('7/*.png'))


@pytest.fixture(scope='module')
def load(trained, demo):
    done = {}

    def load(name):
        if name not in done:
            done[name] = TrainedModel(demo / f'{name}.py', trained(name))
        init_default_scope(done[name].scope)
        return done[name]

    return load


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
    """Make a checkpoint of weights that are random, but tell classes apart."""

    def make(config, options=None):
        from mmengine.registry import MODELS

        from mmattn.engine import read_config

        cfg = read_config(str(config), options)
        init_default_scope(cfg.default_scope)
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        for name, parameter in model.named_parameters():
            if name.endswith(('retina_cls.weight', 'fc_cls.weight')):
                nn.init.normal_(parameter, std=0.3)
        path = tmp_path_factory.mktemp('random') / f'{config.stem}.pth'
        torch.save(dict(state_dict=model.state_dict()), path)
        return TrainedModel(config, path, options=options)

    return make


@pytest.fixture(scope='module')
def retina(untrained, demo):
    return untrained(
        demo / f'{RETINA}.py', {'model.test_cfg.score_thr': 0.001}
    )


@pytest.fixture(scope='module')
def cascade(untrained, demo, tmp_path_factory):
    path = tmp_path_factory.mktemp('cascade') / 'cascade.py'
    path.write_text(CASCADE.format(base=demo / f'{FASTER}.py'))
    return untrained(path)


def options(**changes):
    return argparse.Namespace(
        **{**dict(target=None, boxes=3, score_thr=0.0), **changes}
    )


def recorded(module, run):
    """Return what a module gives while a function runs, as it was then."""
    kept = []
    hook = module.register_forward_hook(
        lambda module, args, out: kept.append((out, out.detach().clone()))
    )
    try:
        result = run()
    finally:
        hook.remove()
    (pair,) = kept
    return result, *pair


# ------------------------------------------------------------------ formulas


def grad_cam(a, g):
    return (g.mean((1, 2), keepdim=True) * a).sum(0)


def grad_cam_plus_plus(a, g):
    total = a.sum((1, 2), keepdim=True)
    alpha = g**2 / (2 * g**2 + total * g**3 + 1e-6)
    weights = (alpha * g.relu()).sum((1, 2), keepdim=True)
    return (weights * a).sum(0)


FORMULAS = {
    'GradCAM': grad_cam,
    'GradCAM++': grad_cam_plus_plus,
    'XGradCAM': lambda a, g: (
        (g * a / (a.sum((1, 2), keepdim=True) + 1e-7)).sum(
            (1, 2), keepdim=True
        )
        * a
    ).sum(0),
    'LayerCAM': lambda a, g: (g.relu() * a).sum(0),
    'HiResCAM': lambda a, g: (g * a).sum(0),
    'GradCAMElementWise': lambda a, g: (g * a).relu().sum(0),
}


def test_every_method_has_a_formula(tool):
    assert set(tool.METHODS) == set(FORMULAS)


# The stem's norm is followed by an activation that works in place.
@pytest.mark.parametrize('layer', ['layer2', 'bn1', 'layer1.1.conv2'])
@pytest.mark.parametrize('method', FORMULAS)
def test_maps_follow_their_formulas(tool, load, digit, layer, method):
    model = load(RESNET)
    questions = [tool.Question(digit, str(i), i) for i in range(10)]
    answers = tool.answer(model, layer, questions, method)
    inputs = model.read(digit)['inputs'].requires_grad_()
    logits, live, values = recorded(
        model.module(layer), lambda: model.model(inputs, mode='tensor')
    )
    assert torch.equal(live, values) == (layer != 'bn1')
    wanted = []
    for logit in logits[0]:
        (gradient,) = torch.autograd.grad(logit, live, retain_graph=True)
        if layer == 'bn1':  # that was the gradient behind the activation
            gradient = gradient * (values > 0)
        cam = FORMULAS[method](values[0], gradient[0]).relu()
        wanted.append(cam.detach().numpy())
    scale = np.max(wanted)
    assert scale > 0 and len(answers) == 10
    for answer, want, score in zip(answers, wanted, logits.softmax(1)[0]):
        np.testing.assert_allclose(
            answer.cam, want, rtol=1e-3, atol=1e-4 * scale
        )
        assert answer.score == pytest.approx(score.item())


def test_the_map_is_that_of_the_package(tool, load, digit):
    model = load(RESNET)
    model.model.requires_grad_(True)
    inputs = model.read(digit)['inputs']

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model.model

        def forward(self, inputs):
            return self.model(inputs, mode='tensor')

    cam = package.GradCAM(Logits(), [model.module('layer2')])
    target = package.utils.model_targets.ClassifierOutputTarget
    wanted = [cam(inputs, [target(i)])[0] for i in range(10)]
    cam.activations_and_grads.release()
    assert np.any(wanted)
    questions = [tool.Question(digit, str(i), i) for i in range(10)]
    answers = tool.answer(model, 'layer2', questions, 'GradCAM')
    for answer, want in zip(answers, wanted):
        heat = answer.heat - answer.cam.min()
        heat = heat / (np.ptp(answer.cam) or 1)  # the package's scale
        heat = (heat - heat.min()) / (np.ptp(heat) or 1)
        np.testing.assert_allclose(heat, want, atol=1e-3)


@pytest.mark.parametrize('frozen', [True, False])
def test_neither_frozen_weights_nor_no_grad_stop_it(tool, load, digit, frozen):
    model = load(RESNET)
    questions = [tool.Question(digit, str(i), i) for i in range(10)]
    wanted = tool.answer(model, 'layer3', questions, 'HiResCAM')
    model.model.zero_grad()
    model.model.requires_grad_(not frozen)
    with torch.no_grad():
        got = tool.answer(model, 'layer3', questions, 'HiResCAM')
    assert any(want.cam.any() for want in wanted)
    for one, want in zip(got, wanted):
        assert np.array_equal(one.cam, want.cam)
    assert all(p.grad is None for p in model.model.parameters())


def test_tokens_are_laid_out_as_maps():
    maps = torch.arange(2 * 3 * 2 * 4).reshape(2, 3, 2, 4)
    tokens = maps.flatten(2).transpose(1, 2)
    assert torch.equal(as_map(tokens, (64, 100), 'x'), maps)
    assert as_map(maps, (64, 100), 'x') is maps
    with pytest.raises(ConfigError, match=r"'x' returns of shape \(2, 7, 3\)"):
        as_map(tokens[:, 1:], (64, 100), 'x')
    with pytest.raises(ConfigError, match="'x' returns a tuple"):
        as_map((maps,), (64, 100), 'x')


# -------------------------------------------------------------- known objects


class RedOrNot(nn.Module):
    """A classifier whose class 1 is the mean redness of cells of 4 px."""

    def __init__(self):
        super().__init__()
        self.cells = nn.Conv2d(3, 2, 4, 4, bias=False)
        weight = torch.zeros(2, 3, 4, 4)
        weight[0, 0], weight[0, 1:] = 1, -1  # red, and neither green nor blue
        weight[1, 1] = 1  # green
        self.cells.weight.data = weight
        self.dataset_meta = dict(classes=('other', 'red'))

    def forward(self, inputs, mode):
        red, green = self.cells(inputs).relu().mean((2, 3)).unbind(1)
        return torch.stack([green, red], 1)


@pytest.fixture
def red():
    model = RedOrNot()

    def read(path):
        pixels = cv2.imread(str(path))[..., ::-1].copy()
        inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        return dict(inputs=inputs, data_samples=None)

    return SimpleNamespace(
        model=model,
        scope='mmpretrain',
        name='red-or-not',
        read=read,
        picture=lambda inputs: (
            (inputs[0] * 255).byte().permute(1, 2, 0).numpy()
        ),
        module=model.get_submodule,
        stages=lambda: ['cells'],
    )


@pytest.mark.parametrize('corner', [(4, 20), (40, 8)])
def test_the_map_peaks_at_the_planted_object(tool, red, tmp_path, corner):
    row, column = corner
    pixels = np.full((64, 48, 3), 90, np.uint8)
    pixels[:, :16] = (0, 255, 0)
    pixels[row : row + 8, column : column + 8] = (0, 0, 255)  # BGR
    cv2.imwrite(str(tmp_path / 'scene.png'), pixels)
    want = np.zeros((64, 48), bool)
    want[row : row + 8, column : column + 8] = True
    args = options(target='red', method='GradCAM')
    (made,) = tool.rows_of([red], ['cells'], tmp_path / 'scene.png', args)
    answer = made.answers[0]
    assert np.array_equal(answer.cam > 0, want[::4, ::4])
    heat = answer.heat
    assert want[np.unravel_index(heat.argmax(), heat.shape)]
    shown = tool.overlay(answer.picture, heat).astype(int)
    assert (shown[want][:, 0] > shown[want][:, 2]).all()  # from red
    assert (shown[~want][:, 2] > shown[~want][:, 0]).mean() > 0.8  # to blue


def test_a_map_of_zeros_is_blue(tool):
    shown = tool.overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)))
    assert shown[0, 0].tolist() == [0, 0, 64]


# ------------------------------------------------------------------ detectors

BOXES = np.float32([[6, 10, 46, 60], [70, 66, 120, 124], [20, 80, 52, 112]])


def ratios(tool, model, layer, questions):
    """Return how much larger each map is inside its box than outside."""
    for answer in tool.answer(model, layer, questions, 'HiResCAM'):
        left, top, right, bottom = answer.box.round().astype(int)
        inside = np.zeros(answer.heat.shape, bool)
        inside[max(top, 0) : bottom, max(left, 0) : right] = True
        heat = answer.heat
        assert heat[inside].any()
        yield heat[inside].mean() / max(heat[~inside].mean(), 1e-9)


def test_maps_of_regions_are_larger_inside(tool, load, cascade, images):
    questions = [
        tool.Question(images[0], str(i), i, box) for i, box in enumerate(BOXES)
    ]
    for model in (load(FASTER), cascade):
        assert min(ratios(tool, model, 'layer2', questions)) > 3
    few = list(ratios(tool, load(FASTER), 'layer2', questions[1:2]))
    every = list(ratios(tool, load(FASTER), 'layer2', questions))
    assert few[0] == pytest.approx(every[1], rel=1e-3)


def test_maps_of_locations_are_larger_inside(tool, retina, images):
    questions = tool.ask(retina, images[0], options(boxes=3))
    assert len(questions) == 3
    assert min(ratios(tool, retina, 'layer2', questions)) > 3


@pytest.fixture(scope='module')
def large(images, tmp_path_factory):
    """An image that the detectors shrink."""
    pixels = cv2.resize(cv2.imread(str(images[1])), (320, 240))
    path = tmp_path_factory.mktemp('large') / 'large.png'
    cv2.imwrite(str(path), pixels)
    return path


def test_the_score_of_a_region_is_the_head_s(tool, load, large):
    model = load(FASTER)
    boxes = BOXES * 2
    questions = [
        tool.Question(large, str(9 - i), 9 - i, box)
        for i, box in enumerate(boxes)
    ]
    data = model.read(large)
    meta = data['data_samples'][0].metainfo
    scale = meta['scale_factor'][0]
    assert scale < 1
    proposals = InstanceData(bboxes=torch.from_numpy(boxes * scale).float())
    with torch.no_grad():
        (found,) = model.model.roi_head.predict_bbox(
            model.model.extract_feat(data['inputs']),
            [meta],
            [proposals],
            rcnn_test_cfg=None,
        )
    answers = tool.answer(model, 'layer2', questions, 'GradCAM')
    want = [found.scores[i, 9 - i].item() for i in range(3)]
    got = [answer.score for answer in answers]
    np.testing.assert_allclose(got, want, rtol=1e-4)
    np.testing.assert_allclose(answers[0].box, boxes[0] * scale, rtol=1e-5)


def test_the_score_of_a_cascade_is_that_of_mean_logits(tool, cascade, images):
    data = cascade.read(images[0])
    questions = [tool.Question(images[0], '4', 4, BOXES[0])]
    scores = tool.Scores(cascade, data, questions)
    kept = []
    hooks = [
        head.fc_cls.register_forward_hook(
            lambda module, args, out: kept.append(out)
        )
        for head in cascade.model.roi_head.bbox_head
    ]
    value = scores(data['inputs'])
    for hook in hooks:
        hook.remove()
    assert len(kept) == 2
    mean = (kept[0] + kept[1]) / 2
    assert value.item() == pytest.approx(mean[0, 4].item())
    assert scores.between.item() == pytest.approx(mean.softmax(1)[0, 4].item())


def test_boxes_are_traced_to_their_locations(tool, retina, large):
    """Each box has the score with which the model itself found it."""
    found = retina.predict(large).pred_instances
    best = found[found.scores.argsort(descending=True)[:20]]
    questions = tool.ask(retina, large, options(boxes=20))
    boxes = np.stack([question.box for question in questions])
    np.testing.assert_allclose(boxes, best.bboxes.numpy())
    assert [q.index for q in questions] == best.labels.tolist()
    answers = tool.answer(retina, 'layer4', questions, 'HiResCAM')
    got = [answer.score for answer in answers]
    np.testing.assert_allclose(got, best.scores.numpy(), rtol=1e-4)


def test_another_s_box_has_the_best_location_on_the_object(tool):
    boxes = torch.tensor(
        [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 6], [50, 50, 60, 60.0]]
    )
    logits = torch.tensor([[1.0, 0], [2, 0], [3, 0], [9, 0]])

    def fitting(box):
        scores = SimpleNamespace(
            boxes=lambda: np.float32([box]), labels=torch.tensor([0])
        )
        return tool.Scores._fitting(scores, boxes, logits).item()

    assert fitting([0, 0, 10, 10]) == 0  # the very box
    assert fitting([0, 0, 10, 9.5]) == 2  # the best of those with half
    assert fitting([0, 0, 10, 30]) == 0  # the nearest, where none has half


def test_boxes_are_the_best_above_the_threshold(tool, load, images):
    model = load(FASTER)
    found = model.predict(images[0]).pred_instances
    order = found.scores.argsort(descending=True)
    assert len(order) > 5
    middle = found.scores[order[2]].item()
    some = tool.ask(model, images[0], options(boxes=2))
    best = found.bboxes[order[:2]].numpy()
    assert np.array_equal(np.stack([q.box for q in some]), best)
    some = tool.ask(model, images[0], options(boxes=50, score_thr=middle))
    assert len(some) == (found.scores >= middle).sum()
    label = found.labels[order[4]].item()
    some = tool.ask(model, images[0], options(boxes=99, target=str(label)))
    assert len(some) == (found.labels == label).sum()
    assert {q.label for q in some} == {str(label)}


def test_other_detectors_are_refused(tool, load, images):
    model = load(FASTER)
    data = model.read(images[0])
    scores = tool.Scores(
        model, data, [tool.Question(images[0], '1', 1, BOXES[0])]
    )
    head = model.model.roi_head

    class Other(type(head)):
        def _bbox_forward(self, *args):
            raise NotImplementedError

    head.__class__, kind = Other, type(head)
    try:
        with pytest.raises(ConfigError, match='FasterRCNN comes to the score'):
            scores(data['inputs'])
    finally:
        head.__class__ = kind


# ----------------------------------------------- classifiers and segmentors


def test_a_classifier_is_asked_about_its_prediction(tool, load, digit):
    model = load(RESNET)
    (question,) = tool.ask(model, digit, options())
    predicted = model.predict(digit)
    assert question.index == predicted.pred_label.item()
    (answer,) = tool.answer(model, 'layer2', [question], 'GradCAM')
    assert answer.score == pytest.approx(predicted.pred_score.max().item())
    (question,) = tool.ask(model, digit, options(target='5'))
    assert (question.label, question.index) == ('5', 5)


def test_classes_of_one_name_are_told_apart(tool, red, tmp_path):
    red.model.dataset_meta = dict(classes=('crane', 'crane'))
    cv2.imwrite(str(tmp_path / 'a.png'), np.full((8, 8, 3), (0, 0, 255)))
    (question,) = tool.ask(red, tmp_path / 'a.png', options())
    (answer,) = tool.answer(red, 'cells', [question], 'GradCAM')
    assert question.index == 1 and answer.score > 0.9


def test_another_model_s_class_is_found_by_name(tool, red, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.full((8, 8, 3), (0, 0, 255)))
    question = tool.Question(tmp_path / 'a.png', 'red', 0)
    (answer,) = tool.answer(red, 'cells', [question], 'GradCAM')
    assert answer.score > 0.9


def test_a_segmentor_is_asked_about_its_pixels(tool, load, images):
    model = load(UPERNET)
    predicted = model.predict(images[0])
    labels = predicted.pred_sem_seg.data[0]
    likely = predicted.seg_logits.data.softmax(0)
    for wanted in labels.unique().tolist():
        name = tool.classes_of(model)[wanted]
        (question,) = tool.ask(model, images[0], options(target=name))
        assert np.array_equal(question.pixels, (labels == wanted).numpy())
        (answer,) = tool.answer(model, 'layer3', [question], 'GradCAM')
        want = likely[wanted][labels == wanted].mean().item()
        assert answer.score == pytest.approx(want, rel=1e-4)
    absent = set(range(11)) - set(labels.unique().tolist())
    name = tool.classes_of(model)[absent.pop()]
    assert tool.ask(model, images[0], options(target=name)) == []


def test_the_target_of_a_segmentor_is_the_mean_logit(tool, load, images):
    model = load(UPERNET)
    data = model.read(images[0])
    pixels = np.zeros((128, 128), bool)
    pixels[30:50, 60:100] = True
    name = tool.classes_of(model)[3]
    question = tool.Question(images[0], name, 3, pixels=pixels)
    with torch.no_grad():
        value = tool.Scores(model, data, [question])(data['inputs'])
    logits = model.predict(images[0]).seg_logits.data
    want = logits[3, 30:50, 60:100].mean().item()
    assert value.item() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    ('sizes', 'want'),
    [([50, 30, 20], 1), ([100, 0, 0], 0), ([0, 40, 60], 2)],
)
def test_background_is_the_last_choice(tool, monkeypatch, sizes, want):
    labels = np.repeat(np.arange(3), sizes).reshape(10, 10)
    logits = torch.from_numpy(np.eye(3)[labels]).permute(2, 0, 1)[None]
    monkeypatch.setattr(tool, 'segment', lambda *args: logits)
    names = ('Background', 'a', 'b')
    model = SimpleNamespace(
        model=SimpleNamespace(dataset_meta=dict(classes=names)),
        read=lambda path: dict(inputs=logits, data_samples=None),
    )
    (question,) = tool.ask_segmentor(model, 'x.png', None)
    assert question.label == names[want]
    assert question.pixels.sum() == sizes[want]


# ----------------------------------------------------------------- as a tool


def flags(demo, trained, *names):
    return [
        word
        for name in names
        for word in ('--model', demo / f'{name}.py', trained(name))
    ]


@pytest.mark.parametrize(
    ('name', 'words', 'method'),
    [
        (FASTER, ['--score-thr', 0, '--boxes', 2, '--rows', 3], 'HiResCAM'),
        (UPERNET, [], 'GradCAM'),
        (RESNET, ['--target-layer', 'layer2', 'layer3'], 'GradCAM'),
    ],
)
def test_end_to_end(
    run_tool, trained, demo, images, digit, tmp_path, capsys, name, words,
    method,
):  # fmt: skip
    paths = [digit] if name == RESNET else images[:2]
    models = [*flags(demo, trained, name, name), '--names', 'one', 'two']
    run_tool(
        TOOL, *paths, '--out-dir', tmp_path / 'a/b', *models, '--npz', *words
    )
    assert f'{method}, ' in capsys.readouterr().out
    with np.load(tmp_path / 'a/b/cam.npz') as file:
        arrays = dict(file)
    layers = {RESNET: ['layer2', 'layer3']}.get(name, ['layer4', 'layer4'])
    assert arrays['layers'].tolist() == layers
    assert arrays['method'] == method
    rows = len(arrays['images'])
    assert rows == (4 if name == FASTER else len(paths))
    assert set(arrays['images']) == set(map(str, paths))
    assert arrays['scores'].shape == (rows, 2)
    assert np.isnan(arrays['boxes']).all() == (name != FASTER)
    for row in range(rows):
        first, second = arrays[f'cam_{row}_0'], arrays[f'cam_{row}_1']
        assert first.min() >= 0
        if name != RESNET:  # one model twice gives the same twice
            assert np.array_equal(first, second)
    pages = sorted(p.name for p in (tmp_path / 'a/b').glob('*.png'))
    assert pages == ['cam-1.png', 'cam-2.png'][: 1 + (name == FASTER)]
    shown = cv2.imread(str(tmp_path / 'a/b/cam-1.png'))
    assert shown.shape[1] > 600 and shown.std() > 10
    assert not list(tmp_path.glob('**/.partial*'))


def test_all_models_get_the_same_question(
    run_tool, trained, demo, digits, digit, tmp_path
):
    """The second has other weights, and yet is asked about the same."""
    config = demo / f'{RESNET}.py'
    state = torch.load(trained(RESNET))
    state['state_dict']['head.fc.bias'][:9] -= 100
    torch.save(state, tmp_path / 'nine.pth')
    run_tool(
        TOOL, digit, '--out-dir', tmp_path, '--npz', '--target-layer',
        'layer2', '--model', config, tmp_path / 'nine.pth', '--model',
        config, trained(RESNET), '--names', 'nine', 'plain',
    )  # fmt: skip
    with np.load(tmp_path / 'cam.npz') as file:
        assert file['labels'].tolist() == ['9']
        assert file['models'].tolist() == ['nine', 'plain']
        assert file['scores'][0, 0] > 0.99 > file['scores'][0, 1]


def test_maps_of_one_value_are_told(run_tool, trained, demo, digit, tmp_path,
                                    capsys):  # fmt: skip
    run_tool(
        TOOL, digit, '--out-dir', tmp_path, *flags(demo, trained, RESNET),
        '--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=32',
    )  # fmt: skip
    assert 'name an earlier layer with --target-layer' in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ('name', 'words', 'message'),
    [
        (RESNET, ['--target-layer', 'layer9'], "no layer 'layer9'.*layer4"),
        (RESNET, ['--target-layer', 'backbone'], "'backbone' returns a tuple"),
        (RESNET, ['--target-layer', 'head.fc'], r'of shape \(1, 10\)'),
        (
            RESNET,
            ['--target-layer', 'layer1', 'layer2'],
            '2 layers for 1 models',
        ),
        (RESNET, ['--target', 'cat'], "no class 'cat'; there are 0, 1, 2"),
        (RESNET, ['--target', '10'], "no class '10'; there are 1, 0"),
        (RESNET, ['--boxes', '0'], '--boxes must be 1 or more'),
        (RESNET, ['--names', 'a', 'b'], '2 titles to 1 models'),
        (RESNET, ['--device', 'abacus'], '--device abacus: '),
        (FASTER, ['--score-thr', '1.1'], 'finds nothing to ask about'),
        (
            FASTER,
            ['--score-thr', '0', '--target-layer', 'rpn_head.rpn_conv'],
            'has no part in the score',
        ),
        (
            FASTER,
            [
                '--score-thr',
                '0',
                '--target-layer',
                'bbox_roi_extractor.roi_layers.0',
            ],
            "no layer 'bbox_roi_extractor",
        ),
        (
            FASTER,
            [
                '--score-thr',
                '0',
                '--target-layer',
                'roi_head.bbox_roi_extractor',
            ],
            'sees 3 regions, not the image',
        ),
        (UPERNET, ['--target', '4', '--score-thr', '0'], None),
    ],
)
def test_bad_input_is_one_line(
    run_tool, trained, demo, images, digit, tmp_path, name, words, message
):
    path = digit if name == RESNET else images[0]
    if message is None:  # whatever it finds, it is no error of the program
        message = 'finds nothing to ask about'
        words = ['--target', absent_class(trained, demo, path)]
    with pytest.raises(SystemExit, match=message) as error:
        run_tool(
            TOOL, path, '--out-dir', tmp_path / 'out',
            *flags(demo, trained, name), *words,
        )  # fmt: skip
    assert str(error.value).startswith('error: ')
    assert '\n' not in str(error.value)
    assert not list(tmp_path.iterdir())


def absent_class(trained, demo, path):
    """Return a class that the segmentor sees nowhere in an image."""
    model = TrainedModel(demo / f'{UPERNET}.py', trained(UPERNET))
    seen = model.predict(path).pred_sem_seg.data.unique().tolist()
    index = next(i for i in range(11) if i not in seen)
    return model.model.dataset_meta['classes'][index]


def test_layers_that_run_several_times(tool, retina, images):
    questions = tool.ask(retina, images[0], options(boxes=1))
    with pytest.raises(ConfigError, match='runs 3 times in one pass'):
        tool.answer(retina, 'bbox_head.cls_convs.0.conv', questions, 'GradCAM')
    assert tool.answer(retina, 'layer3', questions, 'GradCAM')


@pytest.mark.parametrize('kind', ['missing', 'text', 'broken'])
def test_bad_images(run_tool, trained, demo, digit, tmp_path, kind):
    path = tmp_path / f'{kind}.png'
    if kind == 'text':
        path.write_text('no image')
    elif kind == 'broken':
        path.write_bytes(digit.read_bytes()[:60])
    message = 'no image' if kind == 'missing' else 'is no readable image'
    with pytest.raises(SystemExit, match=message):
        run_tool(
            TOOL, digit, path, '--out-dir', tmp_path / 'out', '--rows', 1,
            *flags(demo, trained, RESNET),
        )  # fmt: skip
    assert not (tmp_path / 'out').exists()  # not even of the good image
    assert not list(tmp_path.glob('.partial*'))


def test_models_of_two_tasks(run_tool, trained, demo, digit, tmp_path):
    with pytest.raises(SystemExit, match='mmpretrain, mmseg have no common'):
        run_tool(
            TOOL, digit, '--out-dir', tmp_path,
            *flags(demo, trained, RESNET, UPERNET),
        )  # fmt: skip


def test_without_the_package(run_tool, demo, digit, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'pytorch_grad_cam', None)
    with pytest.raises(SystemExit, match='pip install grad-cam'):
        run_tool(
            TOOL, digit, '--out-dir', tmp_path, '--model', 'a.py', 'a.pth'
        )


def test_the_folder_is_a_file(run_tool, digit, tmp_path):
    (tmp_path / 'out').write_text('')
    with pytest.raises(SystemExit, match='out is a file'):
        run_tool(
            TOOL, digit, '--out-dir', tmp_path / 'out/in', '--model', 'a', 'b'
        )
