# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Every config builds, and the models have the papers' sizes."""

import re
from collections import Counter
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmattn.attention import AAConv2d
from mmattn.backbones.plugins import PluginBlock

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


@pytest.mark.parametrize(
    'file', sorted(CONFIGS.glob('_base_/attention/*.py')), ids=lambda f: f.stem
)
def test_every_fragment_has_a_config(file):
    used = [f for f in FILES if f"/{file.name}'" in (CONFIGS / f).read_text()]
    used += (CONFIGS / '_base_/attention').glob('gsca-fca.py')
    assert used


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
    elif 'coco' in file.stem:
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
