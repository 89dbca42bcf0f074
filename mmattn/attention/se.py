# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""SE: Squeeze-and-Excitation.

Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018,
https://arxiv.org/abs/1709.01507. Written from the paper.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import (
    Attention,
    average,
    check_flag,
    check_positive,
    make_norm,
    normalize,
)


@MODELS.register_module()
class SE(Attention):
    r"""Gate channels by a two-layer network on their averages.

    .. math::
        y = x \, \sigma\left(W_2 \, \mathrm{ReLU}(W_1 \bar{x})\right), \qquad
        \bar{x} = \frac{1}{HW} \sum_{ij} x_{ij}, \quad
        W_1 \in \mathbb{R}^{s \times C}, \; W_2 \in \mathbb{R}^{C \times s}

    (eqs. 2-4) with :math:`s = \max(1, \lfloor C / \mathrm{reduction}
    \rfloor)`. Input and output are ``(B, in_channels, H, W)`` of one dtype,
    any H, W >= 1. It has ``2 * C * s`` parameters, ``C + s`` more with
    biases, and ``2 * s`` more with a batch norm.

    The equations have no biases, and neither has the default, which gives the
    counts of the GSCA paper's comparison. The original SENet has both:
    ``bias=True``. The counts of the SCSA paper's comparison are those with
    ``norm_cfg=dict(type='BN')``.

    Args:
        in_channels: Width of the map.
        reduction: How many times narrower the hidden layer is.
        bias: Whether the two layers have biases. The first has none before a
            norm, which would cancel it.
        norm_cfg: Norm of the hidden layer before the ReLU, as mmcv builds it;
            None for none.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is out of range.
    """

    _abbr_ = 'se'

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        bias: bool = False,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(in_channels=in_channels, reduction=reduction)
        check_flag(bias=bias)
        width = max(1, in_channels // reduction)
        has_norm = norm_cfg is not None
        self.conv1 = nn.Conv2d(
            in_channels, width, 1, bias=bias and not has_norm
        )
        self.norm = make_norm(norm_cfg, width)
        self.conv2 = nn.Conv2d(width, in_channels, 1, bias=bias)

    def _gate(self, x: Tensor) -> Tensor:
        dtype = self.conv1.weight.dtype
        hidden = self.conv1(average(x, (2, 3), dtype, keepdim=True))
        if self.norm is not None:
            hidden = normalize(self.norm, hidden)
        return self.conv2(F.relu(hidden)).sigmoid().to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the channels of ``x``, ``(B, C, H, W)`` to the same shape."""
        return x * self._gate(x)

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gate of every channel, ``(B, C, 1, 1)``."""
        return dict(channel=self._gate(x))
