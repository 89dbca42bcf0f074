# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Every config builds, and the models have the papers' sizes."""

from collections import Counter
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmattn.backbones.plugins import PluginBlock

CONFIGS = Path(__file__).parents[1] / 'configs'
FILES = sorted(
    path.relative_to(CONFIGS)
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.parts
)
PLUGINS = {
    'none': [],
    'gsca': ['GSCA'],
    'scsa': ['SCSA'],
}

# In millions, as printed. GSCA's tables count what is trained, SCSA's all of
# it, without UperNet's auxiliary head.
TRAINABLE = {
    'none/faster-rcnn_r50-none_fpn_1x_coco.py': 41.53,
    'gsca/faster-rcnn_r50-gsca_fpn_1x_coco.py': 41.53,
    'none/faster-rcnn_r101-none_fpn_1x_coco.py': 60.52,
    'gsca/faster-rcnn_r101-gsca_fpn_1x_coco.py': 60.52,
    'none/mask-rcnn_r50-none_fpn_1x_coco.py': 44.17,
    'gsca/mask-rcnn_r50-gsca_fpn_1x_coco.py': 44.17,
    'none/retinanet_r50-none_fpn_1x_coco.py': 37.74,
    'gsca/retinanet_r50-gsca_fpn_1x_coco.py': 37.74,
}
ALL = {
    'none/faster-rcnn_r50-none_fpn_1x_coco.py': 41.75,
    'scsa/faster-rcnn_r50-scsa_fpn_1x_coco.py': 41.81,
    'none/faster-rcnn_r101-none_fpn_1x_coco.py': 60.75,
    'scsa/faster-rcnn_r101-scsa_fpn_1x_coco.py': 60.88,
    # Printed 69.40: 69.3948 rounded twice.
    'none/cascade-rcnn_r50-none_fpn_1x_coco.py': 69.395,
    'scsa/cascade-rcnn_r50-scsa_fpn_1x_coco.py': 69.46,
    'none/retinanet_r50-none_fpn_1x_coco.py': 37.97,
    'scsa/retinanet_r50-scsa_fpn_1x_coco.py': 38.03,
    'none/upernet_r50-none_4xb4-80k_ade20k-512x512.py': 64.10,
    'scsa/upernet_r50-scsa_4xb4-80k_ade20k-512x512.py': 64.16,
    'none/upernet_r101-none_4xb4-80k_ade20k-512x512.py': 83.09,
    'none/resnet50-none_1xb128_in1k.py': 25.56,
    'gsca/resnet50-gsca_4xb64-coslr-lbs_in1k.py': 25.56,
    'scsa/resnet50-scsa_1xb128_in1k.py': 25.62,
    'none/resnet101-none_1xb128_in1k.py': 44.55,
    'scsa/resnet101-scsa_1xb128_in1k.py': 44.68,
}


def build(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def millions(model, trainable=False):
    counts = [
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.startswith('auxiliary_head.')
        and (parameter.requires_grad or not trainable)
    ]
    return pytest.approx(sum(counts) / 1e6, abs=0.00501)


def attention_of(file):
    """Read the attention from a file name: the r50-scsa part's second word."""
    part = 0 if file.stem.startswith('resnet') else 1
    return file.stem.split('_')[part].split('-')[1]


def test_names_are_unique():
    # mim finds a config by its name alone.
    names = Counter(path.name for path in CONFIGS.rglob('*.py'))
    assert [name for name, times in names.items() if times > 1] == []


def test_every_size_of_the_papers_has_its_config():
    assert {*map(Path, ALL), *map(Path, TRAINABLE)} <= set(FILES)


# One test a file: the models are large, and one at a time is enough.
@pytest.mark.parametrize('file', FILES, ids=str)
def test_model_has_its_attention_and_the_papers_size(file):
    cfg = Config.fromfile(CONFIGS / file)
    model = build(cfg)
    attention = attention_of(file)
    assert file.parts[0] in (attention, 'demo')
    blocks = [m for m in model.modules() if isinstance(m, PluginBlock)]
    assert blocks
    for block in blocks:
        found = [
            type(getattr(block, name)).__name__
            for names in block.plugin_names.values()
            for name in names
        ]
        assert found == PLUGINS[attention]
    key = file.as_posix()
    if key in ALL:
        assert ALL[key] == millions(model)
    if key in TRAINABLE:
        assert TRAINABLE[key] == millions(model, trainable=True)
    if file.stem.startswith('resnet'):  # trained from scratch
        assert not model.backbone.norm_eval


@pytest.mark.parametrize('file', FILES, ids=str)
def test_schedule_is_the_papers(file):
    cfg = Config.fromfile(CONFIGS / file)
    assert cfg.auto_scale_lr.enable and cfg.randomness.seed == 0
    # What the runner multiplies the rate by, given the images a step.
    rate = cfg.optim_wrapper.optimizer.lr / cfg.auto_scale_lr.base_batch_size
    if file.parts[0] == 'demo':
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
    elif '1xb128' in file.stem:  # SCSA
        assert rate * 128 == pytest.approx(0.05)
        assert cfg.train_dataloader.batch_size == 128
        assert cfg.param_scheduler.milestones == [30, 60, 90]
    else:  # GSCA: four GPUs with 64 images
        assert rate * 4 * 64 == pytest.approx(0.1)
        assert cfg.train_dataloader.batch_size == 64
        assert cfg.model.head.loss.label_smooth_val == 0.1
        assert [s.type for s in cfg.param_scheduler] == [
            'LinearLR',
            'CosineAnnealingLR',
        ]
