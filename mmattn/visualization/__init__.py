# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from .results import ResultDrawer, ShowResultsHook
from .trained import TrainedModel, add_device_arguments, find_images

__all__ = [
    'ResultDrawer',
    'ShowResultsHook',
    'TrainedModel',
    'add_device_arguments',
    'find_images',
]
