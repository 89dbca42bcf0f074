# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""ELA: Efficient Local Attention.

Xu and Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural
Networks", 2024, https://arxiv.org/abs/2403.01123. Written from the paper,
which names no code; the tests compare with the module that the SCSA paper's
code (https://github.com/HZAI-ZJNU/SCSA) has for it.
"""

import math

from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import (
    Attention,
    average,
    check_odd,
    check_positive,
    multiply,
    normalize,
)


@MODELS.register_module()
class ELA(Attention):
    r"""Gate rows and columns by one 1D convolution and one group norm.

    The map is averaged over each axis in turn, and both sequences pass the
    same layers:

    .. math::
        a_d = \sigma\left(GN\left(\mathrm{Conv1d}_k(\bar{x}_d)\right)\right),
        \; d \in \{h, w\}, \qquad y = a_h a_w x

    where ``h`` names the axis that remains. Input and output are ``(B,
    in_channels, H, W)`` of one dtype, any H, W >= 1. It has ``(kernel_size *
    channels_per_group + 2) * in_channels`` parameters.

    The paper's variants, of which B is the default here:

    ======= =========== ================== ==========
    variant kernel_size channels_per_group num_groups
    ======= =========== ================== ==========
    T       5           1                  32
    B       7           1                  16
    S       5           8                  16
    L       7           8                  16
    ======= =========== ================== ==========

    The paper counts groups of the convolution, ``in_channels`` in T and B
    and an eighth of it in S and L.

    Args:
        in_channels: Width of the map.
        kernel_size: Length of the kernel, odd.
        channels_per_group: Channels that the convolution mixes; 1 is
            depthwise.
        num_groups: Wanted number of groups of the norm. A width that it does
            not divide is normalised in ``gcd(num_groups, in_channels)``.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is out of range or ``channels_per_group``
            does not divide the width.
    """

    _abbr_ = 'ela'

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 7,
        channels_per_group: int = 1,
        num_groups: int = 16,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(
            in_channels=in_channels,
            channels_per_group=channels_per_group,
            num_groups=num_groups,
        )
        check_odd(kernel_size=kernel_size)
        if in_channels % channels_per_group:
            raise ValueError(
                f'channels_per_group={channels_per_group} must divide '
                f'in_channels={in_channels}'
            )
        self.conv = nn.Conv1d(
            in_channels,
            in_channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=in_channels // channels_per_group,
            bias=False,
        )
        self.norm = nn.GroupNorm(
            math.gcd(num_groups, in_channels), in_channels
        )

    def _gate(self, x: Tensor, axis: int) -> Tensor:
        """Return the gate along the axis that pooling ``axis`` leaves."""
        sequence = average(x, (axis,), self.conv.weight.dtype)
        gate = normalize(self.norm, self.conv(sequence)).sigmoid()
        return gate.to(x.dtype).unsqueeze(axis)

    def forward(self, x: Tensor) -> Tensor:
        """Gate rows and columns of ``x``, ``(B, C, H, W)`` to the same."""
        return multiply(x * self._gate(x, axis=3), self._gate(x, axis=2))

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gates, ``(B, C, H, 1)`` and ``(B, C, 1, W)``."""
        return dict(rows=self._gate(x, axis=3), columns=self._gate(x, axis=2))
