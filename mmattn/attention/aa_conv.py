# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""AAConv2d: attention-augmented convolution.

Bello et al., "Attention Augmented Convolutional Networks", ICCV 2019,
https://arxiv.org/abs/1904.09925. Written from the paper.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import (
    check_flag,
    check_number,
    check_positive,
    no_autocast,
    upcast,
)


def _of_the_convolution(name: str) -> property:
    def get(layer: 'AAConv2d') -> object:
        return getattr(layer.conv, name)

    def put(layer: 'AAConv2d', value: object) -> None:
        setattr(layer.conv, name, value)

    return property(get, put)


@MODELS.register_module()
class AAConv2d(BaseModule):
    r"""A convolution some of whose channels come from self-attention.

    The convolution yields all but :math:`d_v` channels; heads of attention
    between all pixels, concatenated and projected, yield the others (eqs.
    1-4):

    .. math::
        O_h = \mathrm{softmax}\left(\frac{Q K^T + S^W + S^H}{\sqrt{d_k^h}}
        \right) V, \qquad
        S^W_{ij} = q_i^T r^W_{j_x - i_x}, \quad
        S^H_{ij} = q_i^T r^H_{j_y - i_y}

    with one vector :math:`r` for every distance along an axis, shared by the
    heads. A layer type for ``conv_cfg`` of mmcv's modules and for ``dcn`` of
    mmdet's ResNet, with the arguments and attributes of ``nn.Conv2d``:
    ``(B, in_channels, H, W)`` to ``(B, out_channels, H / stride, W /
    stride)``, rounded up, any H, W >= 1. Logits, softmax and averages are
    computed in float32.

    The paper learns vectors for the map sizes of its networks. Here the
    tables cover ``rel_size`` pixels, and a map with an axis of other length
    :math:`L` takes :math:`2L - 1` vectors from the table by linear
    interpolation. Queries, keys and values come from a 1x1 convolution
    without bias that has the stride of the layer, after the pooling if any.

    Args:
        in_channels: Width of the map.
        out_channels: Width of the result.
        kernel_size: Of the convolution.
        stride: Of the convolution and the attention.
        padding: Of the convolution; must be what keeps the map's size, such
            as 1 for a kernel of 3.
        dilation: Of the convolution.
        groups: Of the convolution.
        bias: Whether the convolution and the projection have a bias.
        num_heads: Number of heads.
        key_ratio: Width of all keys, :math:`d_k`, relative to
            ``out_channels``, rounded down to a multiple of ``num_heads``.
        value_ratio: Width of all values, :math:`d_v`, likewise; at least one
            channel a head and, with ``groups``, a multiple of both.
        min_head_dim: Least width of a head's keys.
        rel_size: Length of an axis whose vectors are stored as they are.
        pooled_width: Layers with at most this many ``out_channels`` attend to
            the map halved by 3x3 average pooling and enlarge the result
            bilinearly. In a ResNet the default selects stage 2, as the paper
            does; 0 selects none.
        init_cfg: mmengine initialisation.

    Raises:
        ValueError: If an argument is out of range or two do not go together.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        num_heads: int = 8,
        key_ratio: float = 0.2,
        value_ratio: float = 0.1,
        min_head_dim: int = 20,
        rel_size: int = 14,
        pooled_width: int = 128,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(
            in_channels=in_channels,
            out_channels=out_channels,
            groups=groups,
            num_heads=num_heads,
            min_head_dim=min_head_dim,
            rel_size=rel_size,
        )
        check_number(above=0, key_ratio=key_ratio, value_ratio=value_ratio)
        check_number(pooled_width=pooled_width)
        check_flag(bias=bias)
        head_dim = max(int(key_ratio * out_channels / num_heads), min_head_dim)
        # Each head has as many, and the convolution's groups what is left.
        step = math.lcm(num_heads, groups)
        width = max(int(value_ratio * out_channels / step), 1) * step
        if not 0 < value_ratio < 1 or width >= out_channels:
            raise ValueError(
                f'value_ratio={value_ratio} must leave the convolution some '
                f'of out_channels={out_channels}, but num_heads={num_heads} '
                f'and groups={groups} need {width}'
            )
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f'groups={groups} must divide in_channels={in_channels} and '
                f'out_channels={out_channels}'
            )
        self.conv = nn.Conv2d(
            in_channels,
            out_channels - width,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
        )
        same = zip(
            self.conv.padding, self.conv.kernel_size, self.conv.dilation
        )
        if any(2 * p != d * (k - 1) for p, k, d in same):
            raise ValueError(
                f'padding={padding} must keep the size of the map under '
                f'kernel_size={kernel_size} and dilation={dilation}'
            )
        self.out_channels = out_channels
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.pooled = out_channels <= pooled_width
        key_width = head_dim * num_heads
        self.qkv = nn.Conv2d(
            in_channels, 2 * key_width + width, 1, stride, bias=False
        )
        self.project = nn.Conv2d(width, width, 1, bias=bias)
        self.rel_h, self.rel_w = (
            nn.Parameter(torch.empty(2 * rel_size - 1, head_dim))
            for _ in range(2)
        )
        self.reset_parameters()

    # What mmcv's ConvModule and backbones read from a convolution, and set.
    in_channels = _of_the_convolution('in_channels')
    kernel_size = _of_the_convolution('kernel_size')
    stride = _of_the_convolution('stride')
    padding = _of_the_convolution('padding')
    dilation = _of_the_convolution('dilation')
    groups = _of_the_convolution('groups')
    transposed = _of_the_convolution('transposed')
    output_padding = _of_the_convolution('output_padding')

    def reset_parameters(self) -> None:
        """Initialise the layers as torch does, the tables as the paper."""
        for layer in (self.conv, self.qkv, self.project):
            layer.reset_parameters()
        for table in (self.rel_h, self.rel_w):
            nn.init.normal_(table, std=self.head_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and attend, ``(B, C, H, W)`` to ``(B, C', H', W')``."""
        out = self.conv(x)
        qkv = self.qkv(halve(upcast(x)).to(x.dtype) if self.pooled else x)
        with no_autocast(x):
            values = self._attend(upcast(qkv))
            if self.pooled:
                values = F.interpolate(values, out.shape[2:], mode='bilinear')
        values = self.project(values.to(self.project.weight.dtype))
        return torch.cat([out, values], dim=1)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Average values, ``(B, 2 d_k + d_v, H, W)`` to ``(B, d_v, H, W)``."""
        size = qkv.shape[2:]
        key_width = self.head_dim * self.num_heads
        parts = [key_width, key_width, self.project.in_channels]
        q, k, v = (
            part.flatten(2).unflatten(1, (self.num_heads, -1))  # (B, h, d, N)
            for part in qkv.split(parts, dim=1)
        )
        q = q.transpose(2, 3) * self.head_dim**-0.5  # (B, h, N, d)
        content = q @ k  # (B, h, N, N)
        q = q.unflatten(2, size)  # (B, h, H, W, d)
        along_h = q @ relative(self.rel_h, size[0])
        along_w = q.transpose(2, 3) @ relative(self.rel_w, size[1])
        logits = (
            content.unflatten(2, size).unflatten(4, size)
            + along_h.unsqueeze(5)
            + along_w.transpose(2, 3).unsqueeze(4)
        )  # (B, h, H, W, H, W)
        weights = logits.flatten(4).flatten(2, 3).softmax(3)  # (B, h, N, N)
        values = v @ weights.transpose(2, 3)  # (B, h, d, N)
        return values.flatten(1, 2).unflatten(2, size)

    def extra_repr(self) -> str:
        """Return the settings that the child modules do not show."""
        return (
            f'out_channels={self.out_channels}, num_heads={self.num_heads}, '
            f'head_dim={self.head_dim}, pooled={self.pooled}'
        )


def relative(table: Tensor, length: int) -> Tensor:
    """Return the vector of every pair of positions along an axis.

    Args:
        table: One vector a distance, ``(2 * rel_size - 1, d)``.
        length: Number of positions, L.

    Returns:
        Vectors from the first position to the second, ``(L, d, L)``.
    """
    rows = F.interpolate(
        upcast(table).T.unsqueeze(0), 2 * length - 1, mode='linear'
    )[0]  # (d, 2 L - 1), distance 0 in the middle
    index = torch.arange(length, device=table.device)
    distance = index - index.unsqueeze(1)
    return rows[:, distance + length - 1].transpose(0, 1)


def halve(x: Tensor) -> Tensor:
    """Average 3x3 windows at every second pixel, not counting the padding."""
    # The shape function of avg_pool2d would tie an exported graph to whether
    # the size is even.
    total, count = (
        F.pad(m, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).sum((4, 5))
        for m in (x, torch.ones_like(x[:1, :1]))
    )
    return total / count
