# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from .coco import CocoDataset
from .draws import ResumableBatchSampler, seed_all
from .guarded import GuardedDataset

__all__ = [
    'CocoDataset',
    'GuardedDataset',
    'ResumableBatchSampler',
    'seed_all',
]
