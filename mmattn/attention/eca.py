# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""ECA: Efficient Channel Attention.

Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional
Neural Networks", CVPR 2020, https://arxiv.org/abs/1910.03151. Written from
the paper; the other rules follow the repositories that
:class:`ECA` names.
"""

import math

from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import (
    Attention,
    average,
    check_choice,
    check_number,
    check_odd,
    check_positive,
)

RULES = ('nearest', 'up', 'two_sizes')


def default_kernel_size(
    in_channels: int, gamma: float, beta: float, kernel_rule: str
) -> int:
    """Return the odd kernel size for a width, see :class:`ECA`."""
    if kernel_rule == 'two_sizes':
        return 1 if in_channels < 96 else 3
    # log2 is exact for powers of two, where a tie would turn on an error.
    size = (math.log2(in_channels) + beta) / gamma
    if kernel_rule == 'up':
        return max(1, int(size) | 1)
    return max(1, 2 * math.ceil(size / 2) - 1)


@MODELS.register_module()
class ECA(Attention):
    r"""Gate channels by a convolution of their averages along the channels.

    .. math::
        y = x \, \sigma\left(\mathrm{Conv1d}_k(\bar{x})\right), \qquad
        \bar{x} = \frac{1}{HW} \sum_{ij} x_{ij}, \qquad
        k = \left| \frac{\log_2 C + \beta}{\gamma} \right|_{odd}

    with one kernel for all channels, zeros beyond the first and
    the last. Input and output are ``(B, in_channels, H, W)`` of one dtype,
    any H, W >= 1. It has :math:`k` parameters.

    The paper's :math:`k` is the nearest odd number: 5 for widths from 256 to
    2048, which gives the 80 parameters that it reports on ResNet-50. The
    authors' repository truncates, then raises an even number by one: 7 at
    2048, for 86 parameters. That is ``kernel_rule='up'``. The SCSA paper's
    code (https://github.com/HZAI-ZJNU/SCSA) compares with an ECA of kernel 1
    below 96 channels and 3 from there on: ``kernel_rule='two_sizes'``.

    Args:
        in_channels: Width of the map.
        kernel_size: Odd number of neighbouring channels to convolve; None
            derives it from the width.
        gamma: Divisor of the logarithm of the width, positive.
        beta: What is added to that logarithm.
        kernel_rule: ``'nearest'`` odd number, the lower of two; ``'up'`` to
            an odd number after truncation; or ``'two_sizes'``, 1 or 3, which
            leaves ``gamma`` and ``beta`` unused.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is out of range.
    """

    _abbr_ = 'eca'

    def __init__(
        self,
        in_channels: int,
        kernel_size: int | None = None,
        gamma: float = 2,
        beta: float = 1,
        kernel_rule: str = 'nearest',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(in_channels=in_channels)
        check_number(above=0, gamma=gamma)
        check_number(beta=beta)
        check_choice(RULES, kernel_rule=kernel_rule)
        if kernel_size is None:
            kernel_size = default_kernel_size(
                in_channels, gamma, beta, kernel_rule
            )
        check_odd(kernel_size=kernel_size)
        self.conv = nn.Conv1d(
            1, 1, kernel_size, padding=kernel_size // 2, bias=False
        )

    def _gate(self, x: Tensor) -> Tensor:
        pooled = average(x, (2, 3), self.conv.weight.dtype)
        gate = self.conv(pooled.unsqueeze(1)).sigmoid()  # (B, 1, C)
        return gate.squeeze(1)[..., None, None].to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the channels of ``x``, ``(B, C, H, W)`` to the same shape."""
        return x * self._gate(x)

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gate of every channel, ``(B, C, 1, 1)``."""
        return dict(channel=self._gate(x))
