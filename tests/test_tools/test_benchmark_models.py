# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import csv
import random
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmattn.backbones import ResNet

TOOL = 'analysis_tools/benchmark_models.py'
# A quarter of the width, and few regions.
CLASSIFIER = [
    'classifier', '--cfg-options', 'model.backbone.base_channels=16',
    'model.head.in_channels=512',
]  # fmt: skip
DETECTOR = [
    'detector', '--cfg-options', 'model.backbone.base_channels=16',
    'model.neck.in_channels=64,128,256,512', 'model.neck.out_channels=16',
    'model.rpn_head.in_channels=16', 'model.rpn_head.feat_channels=16',
    'model.roi_head.bbox_roi_extractor.out_channels=16',
    'model.roi_head.bbox_head.in_channels=16',
    'model.roi_head.bbox_head.fc_out_channels=32',
    'model.train_cfg.rcnn.sampler.num=32',
    'model.train_cfg.rpn_proposal.nms_pre=100',
]  # fmt: skip
ONCE = ['--repeat', '1', '--warmup', '0']
COLUMNS = (
    'model depth attention mode images_per_second mean p50 p90 p99 saved '
    'peak ratio saved_ratio peak_ratio height width batch repeat dtype '
    'layout options device hardware threads torch framework mmattn'
).split()


@pytest.fixture
def tool(load_tool, monkeypatch, tmp_path):
    """The tool, and a function that runs it and reads its CSV."""
    module = load_tool(TOOL)

    def run(*words):
        words = [TOOL, *map(str, words), '--csv', str(tmp_path / 'x.csv')]
        monkeypatch.setattr(sys, 'argv', words)
        module.main()
        return list(csv.DictReader((tmp_path / 'x.csv').open()))

    return SimpleNamespace(run=run, module=module)


@pytest.fixture
def seen(monkeypatch):
    """Every call of a backbone: the backbone, its input and its output."""
    calls = []
    forward = ResNet.forward

    def spy(self, x):
        out = forward(self, x)
        inference = torch.is_inference_mode_enabled()
        calls.append(
            SimpleNamespace(net=self, x=x, out=out[-1], inference=inference)
        )
        return out

    monkeypatch.setattr(ResNet, 'forward', spy)
    return calls


def test_the_defaults_are_the_papers(tool):
    args = tool.module.parse_args(['classifier', '--device', 'cpu'])
    assert (args.size, args.batch, args.repeat) == ((224, 224), 32, 100)
    assert not args.train and args.depth == 50
    assert args.attentions[0] == 'none' and sorted(args.attentions) == sorted(
        'none se se-bn eca eca-k3 cbam a2 gsop aa fca gsca gsca-se gsca-eca '
        'gsca-fca cpca sa ela ca ema scsa'.split()
    )
    args = tool.module.parse_args(['detector', '--device', 'cpu'])
    assert (args.size, args.batch) == ((800, 1333), 2) and args.train
    assert sorted(args.attentions) == sorted(
        'none se se-bn eca eca-k3 fca gsca gsca-se gsca-eca gsca-fca ca '
        'scsa'.split()
    )


def test_figures_of_known_times(tool, monkeypatch, capsys):
    count = 101
    order = random.Random(0).sample(range(1, count + 1), count)
    # Seconds in the order of the calls: two warm-ups, then turns.
    times = [1e6, 1e6, 1e6, 1e6]
    for i in order:
        times += [i, i**2 / 2]
    clock = iter(times)
    monkeypatch.setattr(tool.module, 'timer', lambda step, _: next(clock))
    plain, se = tool.run(
        *CLASSIFIER, '--attentions', 'se', 'none', 'se', '--size', 32,
        '--batch', 3, '--repeat', count, '--warmup', 2,
    )  # fmt: skip
    assert next(clock, None) is None
    assert [plain['attention'], se['attention']] == ['none', 'se']
    mean = (count + 1) * (2 * count + 1) / 6 / 2  # of the squares' halves
    wanted = {
        'mean': (51, mean),
        'p50': (51, 51**2 / 2),
        'p90': (91, 91**2 / 2),
        'p99': (100, 100**2 / 2),
        'images_per_second': (3 / 51, 3 / mean),
        'ratio': (1, 51 / mean),
    }
    for key, pair in wanted.items():
        got = [float(plain[key]), float(se[key])]
        assert got == pytest.approx(pair, rel=1e-12), key
    assert plain['ratio'] == '1.0'
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("ResNet-50 {'model.backbone.base_channels'")
    assert ', inference, 3 x 32 x 32, float32, contiguous,' in lines[1]
    assert lines[3].split(' | ')[1:4] == ['images/s', 'ratio', 'mean ms']
    assert lines[5:] == [
        '| none | 0.06 | 1.000 | 51000.00 | 51000.00 | 91000.00 | 100000.00 |',
        f'| se | 0.00 | {51 / mean:.3f} | {1000 * mean:.2f} | 1300500.00 '
        '| 4140500.00 | 5000000.00 |',
    ]


@pytest.mark.parametrize('base', [CLASSIFIER, DETECTOR], ids=lambda b: b[0])
def test_every_attention_has_its_row(base, tool, tmp_path, capsys):
    names = ['none', 'scsa', 'gsca']
    rows = tool.run(
        *base, '--attentions', *names[1:], '--size', 64, 96, '--batch', 1,
        '--repeat', 2, '--warmup', 0, '--train',
        '--plot', tmp_path / 'x.png',
    )  # fmt: skip
    assert list(rows[0]) == COLUMNS
    assert [row['attention'] for row in rows] == names
    for row in rows:
        assert row['images_per_second'] == str(1 / float(row['mean']))
        for key in ('images_per_second', 'saved'):
            ratio = row['saved_ratio' if key == 'saved' else 'ratio']
            assert float(ratio) == float(row[key]) / float(rows[0][key])
        times = [float(row[key]) for key in ('p50', 'p90', 'p99')]
        assert 0 < times[0] <= times[1] <= times[2]
        assert (row['height'], row['width'], row['batch']) == ('64', '96', '1')
        assert (row['mode'], row['dtype']) == ('training', 'float32')
        assert row['layout'] == 'contiguous' and row['device'] == 'cpu'
        assert row['torch'] == torch.__version__ and row['hardware']
        assert row['threads'] == str(torch.get_num_threads())
        framework = 'mmdet' if base is DETECTOR else 'mmpretrain'
        assert row['framework'].split()[0] == framework
        assert row['peak'] == row['peak_ratio'] == ''  # of a GPU only
    assert rows[0]['ratio'] == rows[0]['saved_ratio'] == '1.0'
    printed = capsys.readouterr().out.splitlines()[3:]
    assert [line.split(' | ')[0] for line in printed[2:]] == [
        f'| {name}' for name in names
    ]
    assert printed[0].endswith('| saved MiB | saved ratio |')
    saved = f'{int(rows[2]["saved"]) / 2**20:.1f}'
    assert printed[4].split(' | ')[-2] == saved
    assert (tmp_path / 'x.png').stat().st_size > 1000


def bytes_of_se(stages, size, batch, width=16):
    """Return what the SE modules of ResNet-50 keep for backward.

    Each the map that it weights, its averages, the hidden layer and the
    weights of the channels.
    """
    total = 0
    for stage in stages:
        channels = 4 * width * 2**stage
        pixels = size[0] * size[1] // (4 * 2**stage) ** 2
        values = channels * pixels + 2 * channels + channels // 16
        total += 4 * batch * values * (3, 4, 6, 3)[stage]
    return total


def test_bytes_saved_are_those_of_the_architecture(tool):
    words = ['--attentions', 'se', *ONCE]
    plain, se = tool.run(
        *CLASSIFIER, *words, '--size', 64, 96, '--batch', 2, '--train'
    )
    want = bytes_of_se(range(4), (64, 96), 2)
    assert int(se['saved']) - int(plain['saved']) == want
    # A detector's first stage is frozen, and pads 90 to 96. What its heads
    # keep depends a little on the boxes.
    plain, se = tool.run(*DETECTOR, *words, '--size', 64, 90, '--batch', 2)
    want = bytes_of_se(range(1, 4), (64, 96), 2)
    rise = int(se['saved']) - int(plain['saved'])
    assert rise == pytest.approx(want, rel=0.05)


def test_weights_are_no_saved_bytes(tool):
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    x = torch.randn(2, 5)
    got = tool.module.bytes_saved(lambda: net(x).sum().backward(), net)
    assert got == 4 * 2 * (5 + 7)


def test_inference_of_the_papers_models(tool, seen):
    tool.run(
        *CLASSIFIER, '--attentions', 'gsop', 'aa', '--depth', 101,
        '--size', 64, 32, '--batch', 2, '--repeat', 2, '--warmup', 1,
    )  # fmt: skip
    assert len(seen) == 3 * (1 + 3)
    for call in seen:
        assert call.x.shape == (2, 3, 64, 32) and call.x.std() > 0.5
        assert call.inference and not call.net.training
        assert len(call.net.layer3) == 23
        assert call.out.dtype == torch.float32
        assert call.x.is_contiguous()
        assert torch.equal(call.x, seen[0].x)
    # The first runs, then turns.
    nets = [call.net for call in seen]
    plain, gsop, aa = nets[:3]
    assert all(net is nets[i % 3] for i, net in enumerate(nets))
    assert not list(plain.named_plugins()) and len({*nets}) == 3
    # GSoPNet1 has a module a stage, and its last stage keeps the resolution.
    assert len(list(gsop.named_plugins())) == 4
    assert [call.out.shape[-2:] for call in seen[:3]] == [
        (2, 1), (4, 2), (2, 1),
    ]  # fmt: skip
    kinds = [type(block.conv2).__name__ for block in aa.layer4]
    assert kinds == ['AAConv2d'] * 3


@pytest.mark.parametrize('base', [CLASSIFIER, DETECTOR], ids=lambda b: b[0])
def test_a_step_of_training(base, tool, seen, monkeypatch):
    counts = []
    step = torch.optim.SGD.step

    def count(self, *args, **kwargs):
        weights = self.param_groups[0]['params']
        before = [weight.clone() for weight in weights]
        norms = [weight.grad.norm() for weight in weights]
        out = step(self, *args, **kwargs)
        same = all(map(torch.equal, before, weights))
        counts.append((sum(norms) > 0, same))
        return out

    monkeypatch.setattr(torch.optim.SGD, 'step', count)
    rows = tool.run(
        *base, '--attentions', 'se', '--size', 64, '--batch', 2, '--train',
        '--repeat', 1, '--warmup', 1, '--amp', '--channels-last',
    )  # fmt: skip
    assert counts == [(True, True)] * 2 * (1 + 2)
    assert rows[0]['dtype'] == 'bfloat16 amp'
    assert rows[0]['layout'] == 'channels_last'
    for call in seen:
        assert call.net.training and not call.inference
        assert call.out.dtype == torch.bfloat16
        assert call.x.is_contiguous(memory_format=torch.channels_last)


def test_boxes_lie_in_the_images(tool):
    args = SimpleNamespace(size=(50, 400), batch=3)
    samples = tool.module.images_with_boxes(np.random.default_rng(0), args)
    boxes = torch.stack([sample.gt_instances.bboxes for sample in samples])
    assert boxes.shape == (3, 8, 4) and samples[0].img_shape == (50, 400)
    left, top, right, bottom = boxes.unbind(-1)
    assert left.min() >= 0 and top.min() >= 0
    assert 200 < right.max() <= 400 and 25 < bottom.max() <= 50
    assert ((right - left) >= 40).all() and ((bottom - top) >= 5).all()


def test_a_gpu_is_waited_for(tool, monkeypatch):
    events = []
    times = iter([3.0, 5.5])

    def clock():
        events.append('clock')
        return next(times)

    monkeypatch.setattr(
        torch.cuda, 'synchronize', lambda _: events.append('wait')
    )
    monkeypatch.setattr(time, 'perf_counter', clock)
    spent = tool.module.timer(
        lambda: events.append('step'), torch.device('cuda')
    )
    assert spent == 2.5
    assert events == ['wait', 'clock', 'step', 'wait', 'clock']


def test_peak_is_that_of_a_model_alone(tool, monkeypatch):
    used = dict(now=7000, peak=10**9)  # other models
    cuda = torch.cuda

    def step():
        used['peak'] = max(used['peak'], used['now'] + 500)

    monkeypatch.setattr(cuda, 'synchronize', lambda _: None)
    monkeypatch.setattr(cuda, 'memory_allocated', lambda _: used['now'])
    monkeypatch.setattr(cuda, 'max_memory_allocated', lambda _: used['peak'])
    monkeypatch.setattr(
        cuda,
        'reset_peak_memory_stats',
        lambda _: used.update(peak=used['now']),
    )
    held = [torch.zeros(10), torch.zeros(3, dtype=torch.long)]
    got = tool.module.peak_bytes(step, held, torch.device('cuda'))
    assert got == 500 + 4 * 10 + 8 * 3


BAD = {
    'attention': (['--attentions', 'se', 'sw'], '--attentions sw: there is'),
    'others': (['--attentions', 'scsa_swin'], '--attentions scsa_swin: there'),
    'three sizes': (['--size', 1, 2, 3], '--size 1 2 3: one or two'),
    'no size': (['--size', 0], '--size 0: one or two'),
    'batch': (['--batch', 0], '--batch 0: must be at least 1'),
    'repeat': (['--repeat', 0], '--repeat 0: must be at least 1'),
    'warmup': (['--warmup', -1], '--warmup -1: must be at least 0'),
    'no device': (['--device', 'tpux'], '--device tpux: '),
    'device': (['--device', 'meta'], '--device meta: must be cpu'),
    'folder': (['--plot', 'gone/x.png'], '--plot gone/x.png: must be a file'),
    'a folder': (['--plot', '.'], '--plot .: must be a file'),
    'plot': (['--plot', 'x.txt'], '--plot x.txt: must end in .png'),
    'options': (['--cfg-options', 'a'], '--cfg-options: must be pairs'),
    'depth': (['--depth', 18], '--depth: invalid choice'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_arguments_are_one_line(case, tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, wanted = BAD[case]
    with pytest.raises(SystemExit) as error:
        tool.run(
            *CLASSIFIER, '--attentions', 'se', '--size', 32, '--batch', 1,
            *ONCE, *words,
        )  # fmt: skip
    assert error.value.code == 2
    *_, usage, line = capsys.readouterr().err.splitlines()
    assert wanted in line and 'error: ' in line and 'error' not in usage


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            [*CLASSIFIER[:2], 'model.backbone.base_channels=18',
             'model.head.in_channels=576'],
            'error: scsa cannot be measured: plugin SCSA() at after_conv2, '
            'in_channels=18: ',
        ),
        (
            [*CLASSIFIER, '--train', '--batch', 1],
            'error: none cannot be measured: Expected more than 1 value',
        ),
        (
            [*CLASSIFIER[:2], 'model.foo=3'],
            'error: none cannot be measured: ImageClassifier',
        ),
        (
            [*CLASSIFIER[:2], 'model.type=Foo'],
            'error: Foo is not in the mmpretrain::model registry',
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_told_first(
    words, message, tool, tmp_path, monkeypatch
):
    timed = []
    monkeypatch.setattr(tool.module, 'timer', lambda *_: timed.append(1))
    with pytest.raises(SystemExit) as error:
        tool.run(*words, '--attentions', 'se', 'scsa', '--size', 32)
    text = error.value.code
    assert text.startswith(message) and '\n' not in text
    assert not timed and not list(tmp_path.iterdir())
