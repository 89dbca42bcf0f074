# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""EMA: Efficient Multi-scale Attention.

Ouyang et al., "Efficient Multi-Scale Attention Module with Cross-Spatial
Learning", ICASSP 2023, https://arxiv.org/abs/2305.13563. Where the paper is
silent the numbers follow the official module
(https://github.com/YOLOonMe/EMA-attention-module).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import (
    Attention,
    average,
    check_positive,
    multiply,
    normalize,
    upcast,
)


def _cross(descriptor: Tensor, maps: Tensor) -> Tensor:
    """Mix the channels of a map by the descriptor of another.

    Args:
        descriptor: One logit a channel, ``(N or 1, C)``.
        maps: The map, ``(N, C, H, W)``.

    Returns:
        One logit a pixel, ``(N, 1, H * W)``.
    """
    weight = upcast(descriptor).softmax(1).to(maps.dtype).unsqueeze(1)
    # In three dimensions torch would copy the map to share one weight.
    return (weight[None] @ maps.flatten(2)[None]).squeeze(0)


@MODELS.register_module()
class EMA(Attention):
    r"""Gate pixels by two branches that weigh each other's channels.

    The map is split into groups of contiguous channels that share all
    weights. In every group one branch gates the map by its rows and columns
    and normalises it, the other convolves it with a kernel of 3. The pooled
    channels of each, through a softmax, weigh the map of the other:

    .. math::
        [g_h, g_w] &= \sigma(W\, [\bar{x}_h, \bar{x}_w] + b), \qquad
        u = GN(g_h g_w x), \qquad v = \mathrm{Conv}_{3 \times 3}(x) \\
        y &= \sigma\left(\sum_c \mathrm{Softmax}(\bar{u})_c v_c
        + \sum_c \mathrm{Softmax}(\bar{v})_c u_c\right) x

    The norm normalises every channel of an image by itself. So
    :math:`\bar{u}` is its bias, the same for all images; the module takes it
    from there instead of averaging once more.

    Input and output are ``(B, in_channels, H, W)`` of one dtype, any H, W >=
    1. Groups of width :math:`w` have :math:`10w^2 + 4w` parameters, whatever
    their number. The official code calls ``groups`` the factor, has 32 too,
    and fails at a width that it does not divide.

    Args:
        in_channels: Width of the map.
        groups: Wanted number of groups. A width that it does not divide is
            split into ``gcd(groups, in_channels)`` groups.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is out of range.
    """

    _abbr_ = 'ema'

    def __init__(
        self,
        in_channels: int,
        groups: int = 32,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(in_channels=in_channels, groups=groups)
        self.groups = math.gcd(groups, in_channels)
        width = in_channels // self.groups
        self.conv1x1 = nn.Conv2d(width, width, 1)
        self.conv3x3 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(width, width)

    def _convolve(self, x: Tensor) -> Tensor:
        """Convolve every group of channels, ``(B, C, H, W)`` to the same.

        One convolution with groups: where each group is an image of its own,
        of very few channels, it takes up to four times as long.
        """
        weight = self.conv3x3.weight.repeat(self.groups, 1, 1, 1)
        bias = self.conv3x3.bias.repeat(self.groups)
        return F.conv2d(x, weight, bias, padding=1, groups=self.groups)

    def _split(self, x: Tensor) -> Tensor:
        """Make groups images, ``(B, C, H, W)`` to ``(B G, C / G, H, W)``."""
        return x.unflatten(1, (self.groups, -1)).flatten(0, 1)

    def _gate(self, x: Tensor, part: Tensor) -> Tensor:
        """Return the gate of every pixel of a group, ``(B * G, 1, H, W)``.

        Args:
            x: The map.
            part: The same, split.
        """
        height, width = x.shape[2:]
        dtype = self.conv1x1.weight.dtype
        rows, columns = (average(part, (axis,), dtype) for axis in (3, 2))
        strips = torch.cat([rows, columns], 2).unsqueeze(3)
        gates = self.conv1x1(strips).sigmoid().to(x.dtype)
        gate_h, gate_w = gates.split((height, width), 2)

        gated = multiply(part * gate_h, gate_w.transpose(2, 3))
        u = normalize(self.norm, gated)
        v = self._convolve(part.reshape(x.shape)).reshape(part.shape)
        mean_u = self.norm.bias.unsqueeze(0)  # whatever the image
        mean_v = average(v, (2, 3), dtype)
        logits = _cross(mean_u, v) + _cross(mean_v, u)
        return logits.sigmoid().to(x.dtype).unflatten(2, (height, width))

    def forward(self, x: Tensor) -> Tensor:
        """Gate the pixels of ``x``, ``(B, C, H, W)`` to the same shape."""
        part = self._split(x)
        return (part * self._gate(x, part)).reshape(x.shape)

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gate of every pixel of a group, ``(B, G, H, W)``."""
        gate = self._gate(x, self._split(x))
        return dict(spatial=gate.squeeze(1).unflatten(0, (-1, self.groups)))

    def extra_repr(self) -> str:
        """Return the settings that the child modules do not show."""
        return f'groups={self.groups}'
