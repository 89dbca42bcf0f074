# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from .coco import CocoDataset

__all__ = ['CocoDataset']
