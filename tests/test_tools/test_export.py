# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import contextlib
import copy
import json
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import RoIAlign
from mmengine.registry import MODELS as FRAMEWORK_MODELS
from mmengine.registry import init_default_scope
from probes import ATTENTIONS, thin
from torch import nn

from mmattn.compat import exporting
from mmattn.engine import export as engine
from mmattn.engine import read_config
from mmattn.engine.export import FORMATS, Part, compare, load, operators, write
from mmattn.errors import ConfigError
from mmattn.ops import scsa
from mmattn.registry import MODELS
from mmattn.visualization import TrainedModel

onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')

WIDTH = 32
TOOL = 'export.py'
MODEL = 'resnet18-scsa_30e_digits'
# Traced with the first. One window of SCSA is 7 pixels: below, above, across.
SIZES = [(2, 16, 23), (1, 5, 30), (3, 31, 6)]
PLAIN = {
    'onnx': ('onnx::',),
    'torchscript': ('aten::', 'prim::'),
    'torch-export': ('aten::', 'python::'),
}

programs = pytest.mark.skipif(
    not exporting.HAS_PROGRAMS, reason='torch.export before torch 2.6'
)
by_format = pytest.mark.parametrize(
    'format',
    ['onnx', 'torchscript', pytest.param('torch-export', marks=programs)],
)


class Wrapped(Part):
    """Any module as what is exported."""

    names = ['out']

    def forward(self, x):
        return (self.model(x),)


class Layer(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def maps(channels=WIDTH):
    return [torch.randn(b, channels, h, w) for b, h, w in SIZES]


def exported(module, images, path, format, **options):
    """Write and load a module; return the function and its operators."""
    write(Wrapped(module).eval(), images[0], path, format, **options)
    return load(path, format), operators(path, format)


def attention(name):
    layer = MODELS.get(name.removeprefix('mmattn.'))(WIDTH)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)  # no gate starts at a constant
    return layer.eval()


# ---------------------------------------------------------------- attentions


@by_format
@pytest.mark.parametrize('name', ATTENTIONS)
def test_attentions_at_three_sizes(name, format, tmp_path):
    layer, images = attention(name), maps()
    run, used = exported(layer, images, tmp_path / 'layer.pt2', format)
    for x in images:
        with torch.no_grad():
            want = layer(x)
        (got,) = run(x)
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    # Without the package's own ops, which no other runtime has.
    assert used and all(op.startswith(PLAIN[format]) for op in used)


@by_format
def test_operators_show_what_is_not_plain(format, tmp_path):
    # Else the test above could not fail.
    if format == 'onnx':
        node = onnx.helper.make_node('gsca', ['a'], ['b'], domain='mmattn')
        graph = onnx.helper.make_graph([node], 'g', [], [])
        onnx.save(onnx.helper.make_model(graph), tmp_path / 'own.onnx')
        assert operators(tmp_path / 'own.onnx', format) == {'mmattn::gsca'}
        return
    boxes = Layer(
        lambda x: torch.ops.torchvision.nms(x[0, 0, :, :4], x[0, 0, :, 4], 0.5)
    )
    path = tmp_path / 'nms.pt2'
    image = torch.rand(1, 1, 6, 5)
    _, used = exported(boxes, [image], path, format, dynamic=False)
    assert 'torchvision::nms' in used


@by_format
def test_windows_of_scsa_at_three_sizes(format, tmp_path):
    # By itself: the norm behind it hides a factor.
    layer, images = Layer(lambda x: scsa.pool(x, 7)), maps(3)
    run, _ = exported(layer, images, tmp_path / 'pool.pt2', format)
    for x in images:
        torch.testing.assert_close(run(x)[0], layer(x))


# ------------------------------------------------------------ what is mended


@pytest.mark.parametrize('cells', [1, 3, (2, 6), (None, 4)], ids=str)
def test_adaptive_pooling_in_onnx(cells, tmp_path):
    images = maps(3)
    run, _ = exported(
        nn.AdaptiveAvgPool2d(cells), images, tmp_path / 'p.onnx', 'onnx'
    )
    for x in images:
        torch.testing.assert_close(run(x)[0], F.adaptive_avg_pool2d(x, cells))


@pytest.mark.parametrize('dim', [1, -3])
def test_unflatten_keeps_sizes_open_in_onnx(dim, tmp_path):
    def split(x):
        y = x.unflatten(dim, (8, -1)).flatten(0, 1)
        return (2 * x).reshape(y.shape)

    images = maps()
    run, _ = exported(Layer(split), images, tmp_path / 'u.onnx', 'onnx')
    for x in images:
        torch.testing.assert_close(run(x)[0], split(x))


@pytest.mark.parametrize('format', ['onnx', 'torchscript'])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_of_mmcv(format, ratio, aligned, tmp_path):
    rois = torch.tensor([[0, 1.0, 2.0, 9.0, 13.5], [1, 0.0, 0.0, 15.0, 15.0]])
    align = RoIAlign((3, 2), 0.5, ratio, aligned=aligned)
    layer = Layer(lambda x: align(x, rois))
    x = torch.randn(2, 4, 8, 10)
    run, _ = exported(layer, [x], tmp_path / 'r.pt', format, dynamic=False)
    torch.testing.assert_close(run(2 * x)[0], layer(2 * x))


@pytest.mark.parametrize('function', [lambda x: x, lambda x: 1 / 0])
def test_exporters_leave_torch_as_it_was(function, tmp_path):
    nms = sys.modules['mmcv.ops.nms']

    def state():
        return F.adaptive_avg_pool2d, nms.NMSop.apply, nms.ext_module

    before = state()
    with contextlib.suppress(ConfigError):
        exported(Layer(function), maps(3), tmp_path / 'x.onnx', 'onnx')
    assert state() == before


# -------------------------------------------------------------------- models


def test_a_backbone_that_shuffles_channels(tmp_path):
    part = engine.Maps(thin('ShuffleNetV2')).eval()
    images = [torch.randn(b, 3, 4 * h, 4 * w) for b, h, w in SIZES]
    found = engine.export(part, images, tmp_path / 'b.onnx', 'onnx')
    assert max(d.relative for d in found) < 1e-5


@pytest.fixture
def checkpoint(demo, tmp_path):
    """Return a checkpoint of a demo that has not been trained."""

    def make(name):
        cfg = read_config(str(demo / f'{name}.py'))
        init_default_scope(cfg.default_scope)
        model = FRAMEWORK_MODELS.build(cfg.model)
        path = tmp_path / f'{name}.pth'
        torch.save(dict(state_dict=model.state_dict()), path)
        return path

    return make


@pytest.fixture
def written(run_tool, checkpoint, demo, tmp_path, capfd):
    """Export a demo; return the file and what was printed."""

    def export(name, format, *words):
        out = tmp_path / f'model.{"pt2" if "export" in format else "bin"}'
        words = ('--format', format, '--out', out, *words)
        run_tool(TOOL, demo / f'{name}.py', checkpoint(name), *words)
        return out, capfd.readouterr().out

    return export


def test_classifier_runs_without_the_package(written, tmp_path, demo):
    """Pixels to probabilities, by the note in the file alone."""
    out, text = written(MODEL, 'onnx')
    entries = onnx.load(out).metadata_props
    (note,) = (json.loads(e.value) for e in entries if e.key == 'mmattn')
    assert note['classes'] == [str(i) for i in range(10)]
    picture = np.random.default_rng(0).integers(
        0, 256, (64, 64, 3), dtype=np.uint8
    )
    pixels = picture[..., ::-1] if note['rgb'] else picture  # BGR as read
    pixels = (pixels - np.float32(note['mean'])) / np.float32(note['std'])
    (logits,) = ort.InferenceSession(str(out)).run(
        None, {'input': pixels.transpose(2, 0, 1)[None].astype(np.float32)}
    )
    scores = torch.from_numpy(logits).softmax(1)[0]
    model = TrainedModel(demo / f'{MODEL}.py', tmp_path / f'{MODEL}.pth')
    want = model.predict(picture).pred_score
    torch.testing.assert_close(scores, want, atol=1e-4, rtol=0)
    shapes = ['2x3x64x64', '1x3x48x80', '3x3x81x49']
    assert re.findall(r'(\S+): largest', text) == shapes
    assert 'any size' in text


def test_segmentors(written):
    size = ('--size', 64, 64)
    out, text = written('upernet_r18-scsa_15e_digits', 'onnx', *size)
    assert text.count('largest difference') == 3
    run = load(out, 'onnx')
    assert run(torch.randn(1, 3, 66, 47))[0].shape == (1, 11, 66, 47)


@pytest.mark.parametrize('format', ['onnx', 'torchscript'])
def test_detectors_to_the_boxes(format, written, digits):
    # Without training no score is high, and many are alike.
    low = ('--cfg-options', 'model.test_cfg.rcnn.score_thr=0.01')
    pictures = digits / 'data' / 'digits' / 'images' / 'val'
    name = 'faster-rcnn_r18-scsa_fpn_15e_digits'
    out, text = written(name, format, '--images', pictures, *low)
    assert '1x3x128x128 alone' in text
    if format == 'torchscript':
        assert 'torchvision::nms, torchvision::roi_align' in text
    boxes, scores, labels = load(out, format)(torch.randn(1, 3, 128, 128))
    assert boxes.shape == (len(scores), 4) == (len(labels), 4)


def test_dense_head_of_a_detector(written):
    part = ('--part', 'dense', '--size', 64, 64)
    out, _ = written('retinanet_r18-scsa_fpn_15e_digits', 'onnx', *part)
    outputs = load(out, 'onnx')(torch.randn(1, 3, 128, 96))
    sides = [(16, 12), (8, 6), (4, 3)]
    assert [tuple(o.shape[2:]) for o in outputs] == 2 * sides


def test_backbone_leaves_the_head_out(written):
    out, _ = written(MODEL, 'torchscript', '--part', 'backbone')
    script = torch.jit.load(out)
    assert not any('head' in name for name, _ in script.named_parameters())
    assert script(torch.randn(1, 3, 64, 64))[0].shape == (1, 192, 2, 2)


# -------------------------------------------------------------------- errors


def fails(run, *words):
    with pytest.raises(SystemExit) as error:
        run(*words)
    message = str(error.value.code)
    assert message.startswith('error: ') and '\n' not in message
    return message


def test_bad_command_lines(run_tool, demo, tmp_path, monkeypatch):
    config, checkpoint = demo / f'{MODEL}.py', tmp_path / 'no.pth'

    def error(format, out, *words):
        words = ('--format', format, '--out', out, *words)
        return fails(run_tool, TOOL, config, checkpoint, *words)

    assert 'no.pth' in error('onnx', tmp_path / 'x.onnx')
    assert 'is no folder' in error('onnx', tmp_path / 'no' / 'x.onnx')
    assert 'is a folder' in error('onnx', tmp_path)
    assert 'below 1' in error('onnx', tmp_path / 'x', '--size', 0, 8)
    assert '--opset 11' in error('onnx', tmp_path / 'x', '--opset', 11)
    if exporting.HAS_PROGRAMS:
        assert '.pt2' in error('torch-export', tmp_path / 'x.onnx')
    monkeypatch.setattr(exporting, 'HAS_PROGRAMS', False)
    assert 'torch 2.6' in error('torch-export', tmp_path / 'x.pt2')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert '[export]' in error('onnx', tmp_path / 'x.onnx')


def test_a_classifier_has_no_dense_head(written):
    message = fails(written, MODEL, 'onnx', '--part', 'dense')
    assert 'ImageClassifier' in message


@programs
def test_what_the_exporter_cannot_follow(written, capfd):
    name = 'retinanet_r18-scsa_fpn_15e_digits'
    message = fails(written, name, 'torch-export', '--size', 64, 64)
    assert '--part dense' in message
    assert 'aten' not in ''.join(capfd.readouterr())  # nor the whole graph


def test_a_difference_keeps_the_old_file(tmp_path, monkeypatch):
    """A file that does something else is not written, nor left in parts."""
    right = Wrapped(nn.Conv2d(3, 4, 3)).eval()
    wrong = copy.deepcopy(right)
    with torch.no_grad():
        wrong.model.bias += 0.01
    path = tmp_path / 'm.onnx'
    path.write_text('old')
    monkeypatch.setattr(
        engine, 'load', lambda *args: lambda x: [t.detach() for t in wrong(x)]
    )
    with pytest.raises(ConfigError, match='2x3x16x23 the largest difference'):
        engine.export(right, maps(3), path, 'onnx')
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]
    assert engine.export(right, maps(3), path, 'onnx', tolerance=0.1)
    assert path.read_bytes()[:3] != b'old'


@pytest.mark.parametrize('format', FORMATS[:2])
def test_names_the_sizes_that_hold(format, tmp_path):
    def fixed(x):  # a grid of the size that was traced
        return x + torch.zeros(int(x.shape[2]), int(x.shape[3]))

    path = tmp_path / 'm'
    layer = Wrapped(Layer(fixed))
    with pytest.raises(
        ConfigError, match=r'holds for 2x3x16x23, not for 1x3x5x30: .*--static'
    ):
        engine.export(layer, maps(3), path, format)
    assert not path.exists()
    same = [torch.randn(2, 3, 16, 23) for _ in range(3)]
    assert len(engine.export(layer, same, path, format, dynamic=False)) == 3


def test_nan_is_a_difference():
    x = torch.ones(1, 3, 4, 4)
    layer = Wrapped(nn.Identity())
    (found,) = compare(layer, lambda x: [x * float('nan')], [x])
    assert not found.relative <= 1e9


def test_nothing_found_is_nothing_compared(tmp_path):
    layer = Wrapped(Layer(lambda x: x[x > 1e9]))
    with pytest.raises(ConfigError, match='--images'):
        engine.export(layer, maps(3), tmp_path / 'm.pt', 'torchscript')
    assert not list(tmp_path.iterdir())
