# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""FCA: Frequency Channel Attention.

Qin et al., "FcaNet: Frequency Channel Attention Networks", ICCV 2021,
https://arxiv.org/abs/2012.11879. Written from the paper; the frequencies and
the scale of the cosines are those of the official code
(https://github.com/cfzd/FcaNet).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import (
    Attention,
    check_choice,
    check_positive,
    no_autocast,
    upcast,
)

# Vertical and horizontal frequency on a 7 x 7 grid, in the official order:
# the best on ImageNet, the lowest, and the worst.
FREQUENCIES = {
    'top': '00 01 60 05 02 10 12 40 50 16 30 04 06 03 35 22 '
    '46 63 33 53 55 21 61 52 54 32 31 41 23 20 65 13',
    'low': '00 01 10 11 02 20 21 12 22 03 30 40 04 13 31 05 '
    '14 23 32 41 50 06 15 24 33 42 51 60 16 25 34 43',
    'bot': '66 14 34 36 26 43 11 24 44 45 56 15 42 62 25 51 '
    '64 13 65 20 23 41 31 32 54 52 61 21 55 53 33 63',
}
SELECTIONS = tuple(
    f'{kind}{count}' for kind in FREQUENCIES for count in (1, 2, 4, 8, 16, 32)
)


def axis_basis(frequency: Tensor, size: int, length: int) -> Tensor:
    """Return what a DCT of an adaptively pooled axis weighs its pixels with.

    Pooling and transform are linear, so their product replaces both: no
    pooled map is made, and a graph holds for any length.

    Args:
        frequency: Frequencies of the transform, floating point, ``(n,)``.
        size: Number of cells that the axis is pooled to.
        length: Number of pixels of the axis.

    Returns:
        One weight a frequency and pixel, ``(n, length)``.
    """
    cell = torch.arange(size, device=frequency.device)
    start = cell * length // size
    end = ((cell + 1) * length + size - 1) // size  # rounded up
    pixel = torch.arange(length, device=frequency.device)[:, None]
    inside = (start <= pixel) & (pixel < end)  # (length, size)

    frequency = frequency[:, None]
    # Frequencies first: a cell alone would be float32 whatever their dtype.
    basis = torch.cos(frequency * (cell + 0.5) * (math.pi / size))
    square = (1 + frequency.clamp(max=1)) / size  # 1/s, or 2/s above zero
    weight = square.sqrt() * basis / (end - start)  # (n, size)
    return weight @ inside.to(weight.dtype).T


@MODELS.register_module()
class FCA(Attention):
    r"""Gate channels by a two-layer network on their DCT coefficients.

    With :math:`P(x)` the map pooled to :math:`s \times s` averages, as
    adaptive pooling does, and :math:`(u, v)` the frequency of a channel's
    group,

    .. math::
        z = \sum_{ij} c_u c_v \cos\frac{\pi u (i + \frac{1}{2})}{s}
        \cos\frac{\pi v (j + \frac{1}{2})}{s} \, P(x)_{ij}, \qquad
        y = x \, \sigma\left(W_2 \, \mathrm{ReLU}(W_1 z)\right)

    in ``n`` equal groups of contiguous channels, one a frequency. The factors
    :math:`c_0 = \sqrt{1/s}`, else :math:`c_u = \sqrt{2/s}` make the transform
    orthonormal, as in the official code; the paper leaves constants out.

    Input and output are ``(B, in_channels, H, W)`` of one dtype, any H, W >=
    1. It has ``2 * C * max(1, C // reduction)`` parameters.

    The official networks set ``dct_size`` to 56, 28, 14 and 7 in the four
    stages of a ResNet, the sides of their maps at 224 x 224 pixels.

    Args:
        in_channels: Width of the map, divisible by the number of
            frequencies.
        reduction: How many times narrower the hidden layer is.
        frequencies: The official selection: ``'top'`` (the best ones alone),
            ``'low'`` (the lowest) or ``'bot'`` (the worst), and how many: 1,
            2, 4, 8, 16 or 32. ``'top1'`` is average pooling.
        dct_size: Side in cells to which the map is pooled, at least 7. The
            frequencies, of a 7 x 7 transform, are multiplied by
            ``dct_size // 7``.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is out of range or the frequencies do not
            divide the width.
    """

    _abbr_ = 'fca'

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        frequencies: str = 'top16',
        dct_size: int = 7,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(
            in_channels=in_channels, reduction=reduction, dct_size=dct_size
        )
        check_choice(SELECTIONS, frequencies=frequencies)
        if dct_size < 7:
            raise ValueError(f'dct_size={dct_size} must be at least 7')
        kind, count = frequencies[:3], int(frequencies[3:])
        if in_channels % count:
            raise ValueError(
                f'in_channels={in_channels} must be a multiple of the number '
                f'of frequencies={frequencies!r}'
            )
        self.frequencies = frequencies
        self.dct_size = dct_size
        pairs = FREQUENCIES[kind].split()[:count]
        # Integers: they stay exact when the module changes its precision.
        grid = torch.tensor([[int(u), int(v)] for u, v in pairs])
        self.register_buffer('grid', grid * (dct_size // 7), persistent=False)
        width = max(1, in_channels // reduction)
        self.fc1 = nn.Linear(in_channels, width, bias=False)
        self.fc2 = nn.Linear(width, in_channels, bias=False)

    def _coefficients(self, x: Tensor) -> Tensor:
        """Return the DCT coefficient of every channel, ``(B, C)``."""
        u, v = self.grid.to(x.dtype).unbind(1)
        rows = axis_basis(u, self.dct_size, x.shape[2])
        columns = axis_basis(v, self.dct_size, x.shape[3])
        basis = (rows[:, :, None] * columns[:, None, :]).flatten(1)  # (n, HW)
        groups = x.flatten(2).unflatten(1, (len(self.grid), -1))
        # Rows, transposed: the product with columns takes five times as long.
        basis = basis.repeat(x.shape[0], 1).unsqueeze(1)  # (B * n, 1, HW)
        basis = basis.transpose(1, 2)
        return torch.bmm(groups.flatten(0, 1), basis).view(x.shape[:2])

    def _gate(self, x: Tensor) -> Tensor:
        with no_autocast(x):
            z = self._coefficients(upcast(x))
        gate = self.fc2(F.relu(self.fc1(z.to(self.fc1.weight.dtype))))
        return gate.sigmoid()[..., None, None].to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the channels of ``x``, ``(B, C, H, W)`` to the same shape."""
        return x * self._gate(x)

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gate of every channel, ``(B, C, 1, 1)``."""
        return dict(channel=self._gate(x))

    def extra_repr(self) -> str:
        """Return the settings that the child modules do not show."""
        return f'frequencies={self.frequencies!r}, dct_size={self.dct_size}'
