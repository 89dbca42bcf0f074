# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Registries of mmattn, children of mmengine's.

`type='mmattn.X'` in any config of mmdet, mmsegmentation or mmpretrain finds
`X` here; `locations` are imported by the look-up itself, so no
`custom_imports` is needed.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import Registry

#: Attention modules and backbones.
MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='mmattn',
    locations=['mmattn.attention', 'mmattn.backbones'],
)
#: Data sets that check what mmdet does not.
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmattn',
    locations=['mmattn.datasets'],
)
#: Metrics that the frameworks lack.
METRICS = Registry(
    'metric',
    parent=MMENGINE_METRICS,
    scope='mmattn',
    locations=['mmattn.evaluation'],
)
#: Precisions that mmengine trains in on a GPU only.
OPTIM_WRAPPERS = Registry(
    'optim_wrapper',
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope='mmattn',
    locations=['mmattn.engine.amp'],
)
