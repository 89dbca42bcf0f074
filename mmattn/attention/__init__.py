# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from .base import Attention, list_attentions
from .gsca import GSCA
from .scsa import PCSA, SCSA, SMSA

__all__ = ['GSCA', 'PCSA', 'SCSA', 'SMSA', 'Attention', 'list_attentions']
