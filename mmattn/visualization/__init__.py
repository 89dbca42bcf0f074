# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from .results import ResultDrawer, ShowResultsHook

__all__ = ['ResultDrawer', 'ShowResultsHook']
