# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Registries of mmattn, children of mmengine's.

`type='mmattn.X'` in any config of mmdet, mmsegmentation or mmpretrain finds
`X` here; `locations` are imported by the look-up itself, so no
`custom_imports` is needed.
"""

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
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
#: Data sets that check what mmdet does not, and bear damaged files.
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmattn',
    locations=['mmattn.datasets'],
)
#: Samplers that can begin in the midst of an epoch.
DATA_SAMPLERS = Registry(
    'data sampler',
    parent=MMENGINE_DATA_SAMPLERS,
    scope='mmattn',
    locations=['mmattn.datasets'],
)
#: Loops that can be interrupted anywhere and resumed to the same weights.
LOOPS = Registry(
    'loop',
    parent=MMENGINE_LOOPS,
    scope='mmattn',
    locations=['mmattn.engine.loops'],
)
#: What keeps a run's work safe.
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmattn',
    locations=['mmattn.engine.hooks'],
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
