# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from .aa_conv import AAConv2d
from .base import Attention, list_attentions
from .cbam import CBAM
from .coord_attention import CoordAttention
from .cpca import CPCA
from .double_attention import DoubleAttention
from .eca import ECA
from .ela import ELA
from .ema import EMA
from .fca import FCA
from .gsca import GSCA
from .gsop import GSoP
from .non_local import NonLocal
from .scsa import PCSA, SCSA, SMSA
from .se import SE
from .shuffle_attention import ShuffleAttention

__all__ = [
    'AAConv2d',
    'Attention',
    'CBAM',
    'CPCA',
    'CoordAttention',
    'DoubleAttention',
    'ECA',
    'ELA',
    'EMA',
    'FCA',
    'GSCA',
    'GSoP',
    'NonLocal',
    'PCSA',
    'SCSA',
    'SE',
    'SMSA',
    'ShuffleAttention',
    'list_attentions',
]
