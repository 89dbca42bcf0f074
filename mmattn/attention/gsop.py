# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""GSoP: Global Second-order Pooling, along channels.

Gao et al., "Global Second-order Pooling Convolutional Networks", CVPR 2019,
https://arxiv.org/abs/1811.12006. Where the paper is silent the layers follow
https://github.com/ZilinGao/Global-Second-order-Pooling-Convolutional-Networks.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import (
    Attention,
    check_number,
    check_positive,
    no_autocast,
    normalize,
    upcast,
)


@MODELS.register_module()
class GSoP(Attention):
    r"""Gate channels by the covariances of a reduced map.

    The map is rectified, reduced by a 1x1 convolution, normalised and
    rectified. The covariance matrix of the :math:`d` channels over the pixels
    is normalised row by row, each row is projected to ``row_expansion``
    values, and all of them to the gate:

    .. math::
        \Sigma = \frac{1}{HW} \sum_{ij} (z_{ij} - \bar{z})
        (z_{ij} - \bar{z})^T, \quad z = \mathrm{ReLU}(BN(W_1
        \mathrm{ReLU}(x))), \qquad
        y = x \, \sigma(W_3\, a(\mathrm{RowConv}(BN(\Sigma))))

    Input and output are ``(B, in_channels, H, W)`` of one dtype, any H, W >=
    1; a map of one pixel has zero covariance. Covariances are computed
    in float32. With :math:`C` channels and expansion :math:`r` there
    are :math:`C(d + rd + 1) + d(5 + rd + r)` parameters.

    It belongs before the shortcut addition of a block (``after_conv3``), as
    the rectification of its own input shows. GSoP-Net1 has one in the last
    block of each stage and keeps the resolution in stage 4, which has stride
    1; neither is the module's to do.

    The official code has nothing between the two projections, where the
    paper speaks of an activation: ``negative_slope`` brings that in. Its
    spatial variant is not part of GSoP-Net1 and left out.

    Args:
        in_channels: Width of the map, :math:`C`.
        mid_channels: Width of the reduced map, :math:`d`.
        row_expansion: Number of values that a row becomes, :math:`r`.
        stride: Stride of the reduction. The official code has 2 in the first
            stage, to save time.
        negative_slope: Slope of :math:`a`, a leaky ReLU; 1 is none.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If a size is below one.
    """

    _abbr_ = 'gsop'

    def __init__(
        self,
        in_channels: int,
        mid_channels: int = 128,
        row_expansion: int = 4,
        stride: int = 1,
        negative_slope: float = 1.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(
            in_channels=in_channels,
            mid_channels=mid_channels,
            row_expansion=row_expansion,
            stride=stride,
        )
        check_number(negative_slope=negative_slope)
        width = row_expansion * mid_channels
        self.negative_slope = negative_slope
        self.reduce = nn.Conv2d(in_channels, mid_channels, 1, stride)
        self.norm = nn.BatchNorm2d(mid_channels)
        self.row_norm = nn.BatchNorm2d(mid_channels)
        self.row_conv = nn.Conv2d(
            mid_channels, width, (mid_channels, 1), groups=mid_channels
        )
        self.expand = nn.Conv2d(width, in_channels, 1)

    def _gate(self, x: Tensor) -> Tensor:
        z = normalize(self.norm, self.reduce(x.relu())).relu()
        with no_autocast(x):
            logits = self._excite(covariance(upcast(z)))
        return logits.sigmoid().to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the channels of ``x``, ``(B, C, H, W)`` to the same shape."""
        return x * self._gate(x)

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gate of every channel, ``(B, C, 1, 1)``."""
        return dict(channel=self._gate(x))

    def _excite(self, rows: Tensor) -> Tensor:
        """Return one logit a channel, ``(B, d, d)`` to ``(B, C, 1, 1)``."""
        rows = normalize(self.row_norm, rows.unsqueeze(3))  # (B, d, d, 1)
        values = self.row_conv(rows.to(self.row_conv.weight.dtype))
        return self.expand(F.leaky_relu(values, self.negative_slope))

    def extra_repr(self) -> str:
        """Return the settings that the child modules do not show."""
        return f'negative_slope={self.negative_slope}'


def covariance(z: Tensor) -> Tensor:
    """Return the covariances of channels, ``(B, d, H, W)`` to ``(B, d, d)``.

    Divided by the number of pixels, as the paper does.
    """
    z = z.flatten(2)
    z = z - z.mean(2, keepdim=True)
    return z @ z.transpose(1, 2) / z.shape[2]
