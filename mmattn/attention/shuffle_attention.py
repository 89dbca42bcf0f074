# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""SA: Shuffle Attention.

Zhang and Yang, "SA-Net: Shuffle Attention for Deep Convolutional Neural
Networks", ICASSP 2021, https://arxiv.org/abs/2102.00240. Where the paper is
silent (weights shared by the groups, their start, a norm a channel) this
follows the official module (https://github.com/wofmanaf/SA-Net).
"""

import math

import torch
from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import Attention, average, check_positive, multiply


@MODELS.register_module()
class ShuffleAttention(Attention):
    r"""Gate half of every channel group by its means, half by its pixels.

    The map is split into groups of contiguous channels, and every group into
    halves :math:`u` and :math:`v`. A scale and a shift a channel turn the
    means of the one and the normalised pixels of the other into gates (eqs.
    1-3):

    .. math::
        u' = \sigma(w_1 \bar{u} + b_1)\, u, \qquad
        v' = \sigma(w_2\, GN(v) + b_2)\, v

    The norm normalises every channel of an image by itself, and all groups
    share all weights. At last a channel shuffle interleaves the first half of
    the channels with the second. Input and output are ``(B, in_channels, H,
    W)`` of one dtype, any H, W >= 1. It has ``3 * in_channels / groups``
    parameters.

    Scales start at 0 and shifts at 1, as in the official code, so that every
    gate starts at 0.73. The official code fails at a width that ``2 *
    groups`` does not divide.

    Args:
        in_channels: Width of the map, even.
        groups: Wanted number of groups. A width that ``2 * groups`` does not
            divide is split into ``gcd(groups, in_channels / 2)`` groups.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is out of range or the width is odd.
    """

    _abbr_ = 'sa'

    def __init__(
        self,
        in_channels: int,
        groups: int = 64,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(in_channels=in_channels, groups=groups)
        if in_channels % 2:
            raise ValueError(f'in_channels={in_channels} must be even')
        self.groups = math.gcd(groups, in_channels // 2)
        width = in_channels // (2 * self.groups)
        self.channel_scale = nn.Parameter(torch.empty(width, 1, 1))
        self.channel_shift = nn.Parameter(torch.empty(width, 1, 1))
        self.spatial_scale = nn.Parameter(torch.empty(width, 1, 1))
        self.spatial_shift = nn.Parameter(torch.empty(width, 1, 1))
        self.norm = nn.GroupNorm(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make every gate the same, sigmoid(1)."""
        super().reset_parameters()
        nn.init.zeros_(self.channel_scale)
        nn.init.ones_(self.channel_shift)
        nn.init.zeros_(self.spatial_scale)
        nn.init.ones_(self.spatial_shift)

    def forward(self, x: Tensor) -> Tensor:
        """Gate and shuffle ``x``, ``(B, C, H, W)`` to the same shape."""
        u, v = self._halves(x)
        u = u * self._channel_gate(u).to(x.dtype)
        v = multiply(self._pixel_gate(v).to(x.dtype), v)
        return self._shuffle(u, v)

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gate of every value before the shuffle, as ``x``."""
        u, v = self._halves(x)
        gates = [self._channel_gate(u).expand_as(u), self._pixel_gate(v)]
        return dict(weight=torch.cat(gates, 1).reshape(x.shape))

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split groups, to twice ``(B * groups, C / (2 * groups), H, W)``."""
        halves = x.unflatten(1, (self.groups, 2, -1)).flatten(0, 1)
        return halves.unbind(1)

    def _channel_gate(self, x: Tensor) -> Tensor:
        """Return the gate of every channel, ``(N, C, H, W)`` to one pixel."""
        mean = average(x, (2, 3), self.channel_scale.dtype, keepdim=True)
        return (mean * self.channel_scale + self.channel_shift).sigmoid()

    def _pixel_gate(self, x: Tensor) -> Tensor:
        """Return the gate of every pixel, ``(N, C, H, W)`` to the same."""
        norm, scale = self.norm, self.spatial_scale.flatten()
        # The norm's own scale and shift, then the module's: together one.
        weight = norm.weight * scale
        bias = norm.bias * scale + self.spatial_shift.flatten()
        x = x.to(scale.dtype)
        # torch's function of that name refuses one value a channel.
        logits = torch.group_norm(x, norm.num_groups, weight, bias, norm.eps)
        return logits.sigmoid_()

    def _shuffle(self, u: Tensor, v: Tensor) -> Tensor:
        """Join the halves of groups and shuffle channels.

        The channels become (C / 2, 2) from (2, C / 2).

        Args:
            u: The first half of every group, ``(B * groups, w, H, W)``.
            v: The second.

        Returns:
            The map, ``(B, C, H, W)``.
        """
        if self.groups % 2:
            out = torch.stack([u, v], 1).unflatten(0, (-1, self.groups))
            out = out.flatten(1, 3).unflatten(1, (2, -1))
            return out.transpose(1, 2).flatten(1, 2)
        # No group lies in both halves of the map: shuffling u and v before
        # they are joined saves a copy.
        halves = (-1, 2, self.groups // 2)
        parts = [z.unflatten(0, halves).movedim(1, 3) for z in (u, v)]
        return torch.stack(parts, 2).flatten(1, 4)

    def extra_repr(self) -> str:
        """Return the settings that the child modules do not show."""
        return f'groups={self.groups}'
