# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Every config builds, and the models have the papers' sizes."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TASK_UTILS, DefaultScope
from mmengine.structures import InstanceData

from mmattn.attention import AAConv2d
from mmattn.backbones.blocks import PluginBlock

CONFIGS = Path(__file__).parents[1] / 'configs'
FILES = sorted(
    path.relative_to(CONFIGS)
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.parts
)
# What a config's name says it has: the plugins of a block, in order.
ATTENTIONS = {
    'none': '',
    'gsca-se': 'GSCA SE',
    'gsca-eca': 'GSCA ECA',
    'gsca-fca': 'GSCA FCA',
    'gsca': 'GSCA',
    'scsa-wo-smsa': 'PCSA',
    'scsa-wo-pcsa': 'SMSA',
    'scsa': 'SCSA',
    'se': 'SE',
    'eca-k3': 'ECA',
    'eca': 'ECA',
    'fca': 'FCA',
    'cbam': 'CBAM',
    'ca': 'CoordAttention',
    'sa': 'ShuffleAttention',
    'ema': 'EMA',
    'ela': 'ELA',
    'cpca': 'CPCA',
    'a2': 'DoubleAttention',
    'gsop': 'GSoP',
    'aa': '',
    'nl': 'NonLocal',
}
# Attentions that do not stand in every block, and in how many they do.
SCARCE = {'a2': 5, 'gsop': 4, 'nl': 1}


# A line a plugin: type, arguments, position, numbers of stages and blocks.
PLUGINS = {
    'a2': [
        'DoubleAttention() after_block stages 1 blocks (1, 3)',
        'DoubleAttention() after_block stages 2 blocks (1, 3, 5)',
    ],
    'aa': [],
    'ca': ['CoordAttention() after_conv2'],
    'ca_basic-block': ['CoordAttention() after_conv1'],
    'ca_repvgg': ['CoordAttention() after_conv1'],
    'cbam': ['CBAM() after_conv3'],
    'cbam_basic-block': ['CBAM() after_conv2'],
    'cbam_mobilenet-v2': ['CBAM(min_width=8) after_conv2'],
    'cpca': ['CPCA() after_conv2'],
    'eca-k3': ["ECA(kernel_rule='two_sizes') after_conv3"],
    'eca-k3_repvgg': ["ECA(kernel_rule='two_sizes') after_conv1"],
    'eca': ['ECA() after_conv3'],
    'eca_basic-block': ['ECA() after_conv2'],
    'ela': ['ELA() after_conv2'],
    'ema': ['EMA() after_conv2'],
    'fca': [
        'FCA(dct_size=56) after_conv3 stages 0',
        'FCA(dct_size=28) after_conv3 stages 1',
        'FCA(dct_size=14) after_conv3 stages 2',
        'FCA(dct_size=7) after_conv3 stages 3',
    ],
    'gsca-eca': ['GSCA() before_act2', 'ECA() after_conv3'],
    'gsca-fca': [
        'GSCA() before_act2',
        'FCA(dct_size=56) after_conv3 stages 0',
        'FCA(dct_size=28) after_conv3 stages 1',
        'FCA(dct_size=14) after_conv3 stages 2',
        'FCA(dct_size=7) after_conv3 stages 3',
    ],
    'gsca-se': ['GSCA() before_act2', 'SE() after_conv3'],
    'gsca': ['GSCA() before_act2'],
    'gsca_basic-block': ['GSCA() before_act1'],
    'gsca_mobilenet-v2': [
        'GSCA(num_heads=1) before_act2 stages 0',
        'GSCA(num_heads=1) before_act2 stages 1',
        'GSCA(num_heads=2) before_act2 stages 2',
        'GSCA(num_heads=3) before_act2 stages 3',
        'GSCA(num_heads=4) before_act2 stages 4',
        'GSCA(num_heads=8) before_act2 stages 5',
        'GSCA(num_heads=15) before_act2 stages 6',
    ],
    'gsca_shufflenet-v2': [
        'GSCA(num_heads=2) before_act2 stages 0',
        'GSCA(num_heads=4) before_act2 stages 1',
        'GSCA(num_heads=8) before_act2 stages 2',
    ],
    'gsop': [
        'GSoP(stride=2) after_conv3 stages 0 blocks (-1,)',
        'GSoP() after_conv3 stages 123 blocks (-1,)',
    ],
    'nl': ['NonLocal() after_block stages 3 blocks (-1,)'],
    'none': [],
    'sa': ['ShuffleAttention() after_conv3'],
    'scsa': ['SCSA() after_conv2'],
    'scsa_basic-block': ['SCSA() after_conv1'],
    'scsa_repvgg': ['SCSA() after_conv1'],
    'scsa_swin': ['SCSA() after_attn'],
    'se-bn': ["SE(norm_cfg={'type': 'BN'}) after_conv3"],
    'se': ['SE() after_conv3'],
    'se_basic-block': ['SE() after_conv2'],
    'r50-gsca-alpha1.0': ['GSCA(alpha=1.0) before_act2'],
    'resnet50-gsca-after-conv3': ['GSCA() after_conv3'],
    'resnet50-gsca-alpha1.0': ['GSCA(alpha=1.0) before_act2'],
    'resnet50-gsca-alpha1.5': ['GSCA(alpha=1.5) before_act2'],
    'resnet50-gsca-alpha2.5': ['GSCA(alpha=2.5) before_act2'],
    'resnet50-gsca-before-norm2': ['GSCA() before_norm2'],
    'resnet50-gsca-dot': ["GSCA(similarity='dot') before_act2"],
    'resnet50-gsca-n16': ['GSCA(channels_per_head=16, alpha=1.0) before_act2'],
    'resnet50-gsca-n32': ['GSCA(channels_per_head=32, alpha=1.0) before_act2'],
    'resnet50-gsca-no-heads': ['GSCA(num_heads=1, alpha=1.0) before_act2'],
    'resnet50-gsca-no-reverse': ['GSCA(reverse=False) before_act2'],
    'resnet50-gsca': ['GSCA() before_act2'],
    'resnet50-scsa-bn': ["SCSA(norm='batch') after_conv2"],
    'resnet50-scsa-g1-3': ['SCSA(kernel_sizes=(3,)) after_conv2'],
    'resnet50-scsa-g1-7': ['SCSA(kernel_sizes=(7,)) after_conv2'],
    'resnet50-scsa-g2-3-7': ['SCSA(kernel_sizes=(3, 7)) after_conv2'],
    'resnet50-scsa-gn-prior': ['SCSA(norm_first=True) after_conv2'],
    'resnet50-scsa-ln': ["SCSA(norm='layer') after_conv2"],
    'resnet50-scsa-multi-head-shuffle': [
        'SCSA(num_heads=4, shuffle=True) after_conv2'
    ],
    'resnet50-scsa-no-norm': ['SCSA(norm=None) after_conv2'],
    'resnet50-scsa-pcsa-prior': ['SCSA(channel_first=True) after_conv2'],
    'resnet50-scsa-scale-hw': ["SCSA(scale='pixels') after_conv2"],
    'resnet50-scsa-unshared': ['SCSA(shared=False) after_conv2'],
    'resnet50-scsa-wo-pc': ['SCSA(window_size=None) after_conv2'],
    'resnet50-scsa-wo-pcsa': ['SMSA() after_conv2'],
    'resnet50-scsa-wo-smsa': ['PCSA() after_conv2'],
}


def build(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def attention_of(file):
    """Read the attention from a file name, as in ``faster-rcnn_r50-scsa_``."""
    names = '|'.join(ATTENTIONS)  # the longer ones first
    return re.search(f'-({names})(?=[-_])', file.stem)[1]


def test_names_are_unique():
    # mim finds a config by its name alone.
    names = Counter(path.name for path in CONFIGS.rglob('*.py'))
    assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize('file', FILES, ids=str)
def test_config_is_short(file):
    lines = (CONFIGS / file).read_text().splitlines()
    assert len(lines) <= 10 or file.parts[0] == 'demo'


# One test a file: the models are large, and one at a time is enough.
@pytest.mark.parametrize('file', FILES, ids=str)
def test_model_has_its_attention(file):
    cfg = Config.fromfile(CONFIGS / file)
    model = build(cfg)
    attention = attention_of(file)
    assert file.parts[0] in (attention.split('-')[0], 'demo', 'study')
    found = [
        [
            type(getattr(block, name)).__name__
            for names in block.plugin_names.values()
            for name in names
        ]
        for block in model.modules()
        if isinstance(block, PluginBlock) and block is not stem_of(model)
    ]
    assert found
    want = ATTENTIONS[attention].split()
    if attention in SCARCE:
        assert found.count(want) == SCARCE[attention]
        assert found.count([]) == len(found) - SCARCE[attention]
    else:
        assert found.count(want) == len(found)
    augmented = sum(isinstance(m, AAConv2d) for m in model.modules())
    assert augmented == (len(found) - 3 if attention == 'aa' else 0)
    if cfg.default_scope == 'mmpretrain':  # trained from scratch
        assert not model.backbone.norm_eval


def stem_of(model):
    return getattr(model.backbone, 'stem', None)  # RepVGG's is a block


FRAGMENTS = sorted(CONFIGS.glob('_base_/attention/*.py'))


@pytest.mark.parametrize('file', FRAGMENTS, ids=lambda file: file.stem)
def test_every_fragment_is_some_configs_base(file):
    others = {*CONFIGS.rglob('*.py')} - {file}
    assert any(f"/{file.name}'" in other.read_text() for other in others)


def summary(plugin):
    cfg = dict(plugin.cfg)
    name = cfg.pop('type').removeprefix('mmattn.')
    words = [
        f'{k}={dict(v) if isinstance(v, dict) else v!r}'
        for k, v in cfg.items()
    ]
    text = f'{name}({", ".join(words)}) {plugin.position}'
    if 'stages' in plugin:
        chosen = (str(i) for i, here in enumerate(plugin.stages) if here)
        text += f' stages {"".join(chosen)}'
    return text + (f' blocks {plugin.blocks}' if 'blocks' in plugin else '')


@pytest.mark.parametrize(
    'file',
    [*FRAGMENTS, *CONFIGS.glob('*/ablation/*.py')],
    ids=lambda file: file.stem,
)
def test_settings_and_positions_are_the_papers(file):
    cfg = Config.fromfile(file)
    plugins = cfg.get('plugins', [])
    if file.parent.name == 'ablation':
        plugins = cfg.model.backbone.plugins
    detector, _, name = file.stem.partition('_')
    if 'rcnn' not in detector and file.parent.name == 'ablation':
        name = detector
    elif file.parent.name == 'attention':
        name = file.stem
    name = name.removesuffix('_fpn_1x_coco')
    assert [summary(plugin) for plugin in plugins] == PLUGINS[name]


def test_official_resnet101_has_dropout_on_the_attention():
    file = CONFIGS / 'scsa/resnet101-scsa_1xb128_in1k.py'
    (plugin,) = Config.fromfile(file).model.backbone.plugins
    assert summary(plugin) == 'SCSA(attn_drop=0.1) after_conv2'


@pytest.mark.parametrize('file', FILES, ids=str)
def test_schedule_is_the_papers(file):
    cfg = Config.fromfile(CONFIGS / file)
    assert cfg.auto_scale_lr.enable and cfg.randomness.seed == 0
    # What the runner multiplies the rate by, given the images a step.
    rate = cfg.optim_wrapper.optimizer.lr / cfg.auto_scale_lr.base_batch_size
    if file.parts[0] in ('demo', 'study'):
        assert cfg.auto_scale_lr.base_batch_size == (
            cfg.train_dataloader.batch_size
        )
    elif '_fpn_' in file.stem:
        want = 0.00125 if 'retinanet' in file.stem else 0.0025
        assert rate * 2 == pytest.approx(want)  # SCSA: one GPU, two images
        assert cfg.train_cfg.max_epochs == 12
        assert cfg.param_scheduler[1].milestones == [8, 11]
    elif 'ade20k' in file.stem:
        assert rate * 16 == pytest.approx(0.01)
        assert cfg.train_cfg.max_iters == 80000
        assert cfg.optim_wrapper.optimizer.weight_decay == 5e-4
    else:
        classifier_schedules(file, cfg, rate)


def classifier_schedules(file, cfg, rate):
    wrapper, schedules = cfg.optim_wrapper, cfg.param_scheduler
    assert (wrapper.get('type') == 'AmpOptimWrapper') != ('mini' in file.stem)
    if '1xb' not in file.stem:  # GSCA
        assert [s.type for s in schedules] == ['LinearLR', 'CosineAnnealingLR']
        assert schedules[0].end == schedules[1].begin == 5
        assert schedules[1].end == cfg.train_cfg.max_epochs == 100
        assert wrapper.optimizer.weight_decay == 1e-4
        gpus, batch = (2, 50) if 'mini' in file.stem else (4, 64)
        assert rate * gpus * batch == pytest.approx(0.1)
        assert cfg.train_dataloader.batch_size == batch
        smoothing = cfg.model.head.loss.get('label_smooth_val', 0)
        assert smoothing == (0 if 'mini' in file.stem else 0.1)
        return
    backbone = re.match('resnet|mobilenet|repvgg|swin', file.stem)[0]
    batch, want, epochs = {
        'resnet': (128, 0.05, 100),
        'mobilenet': (96, 0.045, 400),
        'repvgg': (128, 0.05, 120),
        'swin': (128, 0.000125, 300),
    }[backbone]
    assert cfg.train_dataloader.batch_size == batch
    assert rate * batch == pytest.approx(want)
    assert cfg.train_cfg.max_epochs == epochs
    if backbone == 'resnet':
        assert schedules.milestones == [30, 60, 90]
    if backbone == 'mobilenet':
        assert (schedules.step_size, schedules.gamma) == (1, 0.98)
        assert wrapper.optimizer.weight_decay == 4e-5


def test_mobilenet_has_the_papers_heads_in_its_lines():
    file = 'gsca/mobilenet-v2-gsca_4xb64-coslr-lbs_in1k.py'
    backbone = build(Config.fromfile(CONFIGS / file)).backbone
    heads = [
        {block.gsca.num_heads for block in stage}
        for stage in backbone.plugin_stages()
    ]
    assert heads == [{1}, {1}, {2}, {3}, {4}, {8}, {15}]


@pytest.mark.parametrize(
    ('name', 'heads'),
    [
        ('resnet50-gsca', [1, 2, 4, 8]),
        ('resnext50-32x4d-gsca', [2, 4, 8, 16]),
        ('shufflenet-v2-1x-gsca', [2, 4, 8]),
    ],
)
def test_stages_have_the_papers_heads(name, heads):
    file = CONFIGS / f'gsca/{name}_4xb64-coslr-lbs_in1k.py'
    backbone = build(Config.fromfile(file)).backbone
    for stage, number in zip(backbone.plugin_stages(), heads):
        assert {block.gsca.num_heads for block in stage} == {number}


CONVERTED = ['voc0712', 'visdrone', 'exdark', 'flir']


@pytest.mark.parametrize('data', CONVERTED)
def test_classes_are_the_converters(data, load_tool):
    tool = load_tool(f'dataset_converters/{data.removesuffix("0712")}.py')
    file = CONFIGS / f'none/faster-rcnn_r50-none_fpn_1x_{data}.py'
    cfg = Config.fromfile(file)
    classes = tool.FOURTEEN if data == 'flir' else tool.CLASSES
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader'].dataset
        assert loader.type == 'mmattn.CocoDataset'
        assert loader.metainfo.classes == classes
        assert loader.data_root == f'data/{data}/'
        assert 'ignore_orientation' in loader.pipeline[0].color_type
    assert cfg.model.roi_head.bbox_head.num_classes == len(classes)
    limit = 500 if data == 'visdrone' else 100
    assert cfg.model.test_cfg.rcnn.max_per_img == limit


def test_official_counts_are_the_specifications():
    # Of docs/datasets.md; the class counts stand in the converters.
    want = {
        'voc0712': {'train': (16551, 40058), 'val': (4952, 12032)},
        'visdrone': {
            'train': (6471, 343204),
            'val': (548, 38759),
            'test': (1610, 75102),
        },
        'exdark': {
            'train': (3000, 10381),
            'val': (1800, 6212),
            'test': (2563, 7117),
        },
        'flir': {'train': (10742, 175028), 'val': (1144, 16696)},
    }
    for data, splits in want.items():
        cfg = Config.fromfile(CONFIGS / f'_base_/datasets/{data}.py')
        found = {
            split: (counts.images, counts.boxes)
            for split, counts in cfg.official_counts.items()
        }
        assert found == splits


def test_ignored_regions_of_visdrone_are_no_background():
    file = CONFIGS / 'none/faster-rcnn_r50-none_fpn_1x_visdrone.py'
    cfg = Config.fromfile(file).model.train_cfg
    found = InstanceData(
        priors=torch.tensor([[0.0, 0, 10, 10], [6, 0, 16, 10], [50, 0, 60, 9]])
    )
    # mmdet takes all for background in an image without any object.
    truth = InstanceData(
        bboxes=torch.tensor([[100.0, 100, 120, 120]]), labels=torch.tensor([0])
    )
    ignored = InstanceData(bboxes=torch.tensor([[0.0, 0, 11, 10]]))
    for stage in (cfg.rpn, cfg.rcnn):
        with DefaultScope.overwrite_default_scope('mmdet'):
            assigner = TASK_UTILS.build(stage.assigner)
        # -1 is neither background nor object: all, half, nothing ignored.
        assigned = assigner.assign(found, truth, ignored).gt_inds
        assert assigned.tolist() == [-1, 0, 0]
        found.priors[1] = torch.tensor([5.5, 0, 15.5, 10])
        assigned = assigner.assign(found, truth, ignored).gt_inds
        assert assigned.tolist() == [-1, -1, 0]
        found.priors[1] = torch.tensor([6.0, 0, 16, 10])
