# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""CA: Coordinate Attention.

Hou et al., "Coordinate Attention for Efficient Mobile Network Design", CVPR
2021, https://arxiv.org/abs/2103.02907. Written from the paper; the activation
is that of the official module (https://github.com/houqb/CoordAttention).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import (
    Attention,
    average,
    check_flag,
    check_positive,
    multiply,
    normalize,
)


@MODELS.register_module()
class CoordAttention(Attention):
    r"""Gate rows and columns by descriptors that one bottleneck has mixed.

    The map is averaged over each axis in turn. Both sequences, concatenated
    along their length, pass one narrow layer, and a layer each widens them to
    gates (eqs. 4-9):

    .. math::
        [f_h, f_w] = \delta\left(BN\left(W\,
        [\bar{x}_h, \bar{x}_w]\right)\right), \qquad
        a_d = \sigma(W_d f_d + b_d), \; d \in \{h, w\}, \qquad
        y = a_h a_w x

    with :math:`\delta` the hard swish; ``h`` names the axis that remains, as
    in the paper. Input and output are ``(B, in_channels, H, W)`` of one
    dtype, any H, W >= 1. A width of :math:`C` squeezed to :math:`m` has
    :math:`3Cm + 2C + 2m` parameters, :math:`m` more with ``conv_bias``.

    The official module has a bias in the first convolution, which the batch
    norm after it makes redundant; ``conv_bias=True`` gives it back.

    Args:
        in_channels: Width of the map.
        reduction: By how much the bottleneck is narrower than the map.
        min_width: Width below which the bottleneck does not fall.
        conv_bias: Whether the convolution before the norm has a bias.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is out of range.
    """

    _abbr_ = 'ca'

    def __init__(
        self,
        in_channels: int,
        reduction: int = 32,
        min_width: int = 8,
        conv_bias: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(
            in_channels=in_channels, reduction=reduction, min_width=min_width
        )
        check_flag(conv_bias=conv_bias)
        width = max(min_width, in_channels // reduction)
        self.squeeze = nn.Conv2d(in_channels, width, 1, bias=conv_bias)
        self.norm = nn.BatchNorm2d(width)
        self.expand_h = nn.Conv2d(width, in_channels, 1)
        self.expand_w = nn.Conv2d(width, in_channels, 1)

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gates of rows and columns, broadcastable to ``x``."""
        dtype = self.squeeze.weight.dtype
        rows, columns = (average(x, (axis,), dtype) for axis in (3, 2))
        strips = torch.cat([rows, columns], 2).unsqueeze(3)  # (B, C, H+W, 1)
        squeezed = F.hardswish(normalize(self.norm, self.squeeze(strips)))
        f_h, f_w = squeezed.split(x.shape[2:], 2)
        gate_h = self.expand_h(f_h).sigmoid()
        gate_w = self.expand_w(f_w).sigmoid().transpose(2, 3)
        return gate_h.to(x.dtype), gate_w.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Gate rows and columns of ``x``, ``(B, C, H, W)`` to the same."""
        gate_h, gate_w = self._gates(x)
        return multiply(x * gate_h, gate_w)

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gates, ``(B, C, H, 1)`` and ``(B, C, 1, W)``."""
        return dict(zip(('rows', 'columns'), self._gates(x)))
