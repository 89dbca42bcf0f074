# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from .base import Attention, list_attentions
from .cbam import CBAM
from .coord_attention import CoordAttention
from .cpca import CPCA
from .eca import ECA
from .ela import ELA
from .ema import EMA
from .fca import FCA
from .gsca import GSCA
from .scsa import PCSA, SCSA, SMSA
from .se import SE
from .shuffle_attention import ShuffleAttention

__all__ = [
    'CBAM',
    'CPCA',
    'ECA',
    'ELA',
    'EMA',
    'FCA',
    'GSCA',
    'PCSA',
    'SCSA',
    'SE',
    'SMSA',
    'Attention',
    'CoordAttention',
    'ShuffleAttention',
    'list_attentions',
]
