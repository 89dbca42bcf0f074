# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from .coco_metric import CocoMetric
from .visdrone_metric import VisDroneMetric

__all__ = ['CocoMetric', 'VisDroneMetric']
