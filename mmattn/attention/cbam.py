# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""CBAM: Convolutional Block Attention Module.

Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018,
https://arxiv.org/abs/1807.06521. Written from the paper.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import (
    Attention,
    average,
    check_flag,
    check_odd,
    check_positive,
    is_traced,
    make_norm,
    multiply,
    normalize,
)


def peak(x: Tensor, axis: int) -> Tensor:
    """Return the maxima along an axis, which stays.

    The gradient of ``amax`` is shared by equal values, which takes several
    passes over the map unless a compiler makes them one. They are common in
    half precision only; else one of them gets it, as in the official code.
    """
    differentiable = x.requires_grad and torch.is_grad_enabled()
    half = torch.finfo(x.dtype).bits < 32
    if differentiable and not half and not is_traced():
        return x.max(axis, keepdim=True).values
    return x.amax(axis, keepdim=True)


@MODELS.register_module()
class CBAM(Attention):
    r"""Gate channels first, then pixels, by averages and maxima.

    .. math::
        x' = x \, \sigma\left(\mathrm{MLP}(\mathrm{mean}_{HW}\, x)
        + \mathrm{MLP}(\mathrm{max}_{HW}\, x)\right), \qquad
        y = x' \, \sigma\left(\mathrm{Conv}_{k \times k}
        [\mathrm{mean}_C\, x'; \, \mathrm{max}_C\, x']\right)

    (eqs. 1-3) with :math:`\mathrm{MLP}(z) = W_2 \, \mathrm{ReLU}(W_1 z)` of
    hidden width :math:`s = \max(m, \lfloor C / \mathrm{reduction} \rfloor)`,
    :math:`m` being ``min_width``.
    Input and output are ``(B, in_channels, H, W)`` of one dtype, any H, W >=
    1. It has ``2 * C * s + 2 * kernel_size**2`` parameters, ``C + s`` more
    with biases, and 2 more with a batch norm.

    The equations have no biases and no norm, and neither has the default. The
    official code (https://github.com/Jongchan/attention-module) has both:
    ``bias=True, norm_cfg=dict(type='BN', momentum=0.01)``. It also puts the
    maximum before the mean, the paper's order and this one: loading its
    weights needs the two input channels of the convolution swapped.

    Args:
        in_channels: Width of the map.
        reduction: How many times narrower the hidden layer is.
        min_width: Width below which the hidden layer does not fall; the SCSA
            paper's code has 8.
        kernel_size: Odd side of the spatial convolution in pixels.
        bias: Whether the layers of the MLP have biases.
        norm_cfg: Norm after the spatial convolution, as mmcv builds it; None
            for none.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is out of range.
    """

    _abbr_ = 'cbam'

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        kernel_size: int = 7,
        bias: bool = False,
        norm_cfg: dict | None = None,
        min_width: int = 1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(
            in_channels=in_channels, reduction=reduction, min_width=min_width
        )
        check_odd(kernel_size=kernel_size)
        check_flag(bias=bias)
        width = max(min_width, in_channels // reduction)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=bias)
        self.conv2 = nn.Conv2d(width, in_channels, 1, bias=bias)
        self.spatial = nn.Conv2d(
            2, 1, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.norm = make_norm(norm_cfg, 1)

    def _channel_gate(self, x: Tensor) -> Tensor:
        dtype = self.conv1.weight.dtype
        mean = average(x, (2, 3), dtype, keepdim=True)
        top = peak(x.flatten(2), 2).unsqueeze(3).to(dtype)
        mean, top = (self.conv2(F.relu(self.conv1(z))) for z in (mean, top))
        return (mean + top).sigmoid().to(x.dtype)

    def _pixel_gate(self, x: Tensor) -> Tensor:
        """Gate pixels, perhaps in the memory of ``x``."""
        dtype = self.spatial.weight.dtype
        mean = average(x, (1,), dtype, keepdim=True)
        top = peak(x, 1).to(dtype)
        logits = self.spatial(torch.cat([mean, top], dim=1))
        if self.norm is not None:
            logits = normalize(self.norm, logits)
        return logits.sigmoid().to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Gate channels, then pixels, ``(B, C, H, W)`` to the same shape."""
        x = x * self._channel_gate(x)
        return multiply(x, self._pixel_gate(x))

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gates, ``(B, C, 1, 1)`` and ``(B, 1, H, W)``."""
        channel = self._channel_gate(x)
        return dict(channel=channel, spatial=self._pixel_gate(x * channel))
