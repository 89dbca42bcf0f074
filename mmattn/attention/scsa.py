# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""SCSA: Spatial and Channel Synergistic Attention.

Si et al., "SCSA: Exploring the Synergistic Effects Between Spatial and
Channel Attention", Neurocomputing 2025, https://arxiv.org/abs/2407.05128.
Written from the paper; where it is silent the numbers follow the official
module (https://github.com/HZAI-ZJNU/SCSA), against whose recorded outputs the
tests compare.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.ops import scsa as ops
from mmattn.registry import MODELS

from .base import (
    Attention,
    check_choice,
    check_flag,
    check_number,
    check_positive,
    is_odd,
    no_autocast,
    normalize,
)

GATES = ('sigmoid', 'softmax')
NORMS = ('group', 'batch', 'layer', None)
SCALES = ('channels', 'pixels')


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of each position of ``(B, C, L)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, ``(B, C, L)`` to the same."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def _make_norm(norm: str | None, groups: int, channels: int) -> nn.Module:
    if norm == 'group':
        return nn.GroupNorm(groups, channels)
    if norm == 'batch':
        return nn.BatchNorm1d(channels)
    return ChannelLayerNorm(channels) if norm == 'layer' else None


def _make_convs(kernel_sizes: Sequence[int], width: int) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Conv1d(width, width, k, padding=k // 2, groups=width)
        for k in kernel_sizes
    )


def _apply_gate(logits: Tensor, gate: str) -> Tensor:
    """Turn logits ``(B, C, ...)`` into weights, softmax over channels."""
    return logits.sigmoid() if gate == 'sigmoid' else logits.softmax(1)


@MODELS.register_module()
class SMSA(Attention):
    r"""Gate a map by multi-kernel 1D convolutions along height and width.

    The map is averaged over each axis in turn. Both sequences are split into
    :math:`K` groups of contiguous channels, group :math:`i` is convolved
    depthwise with kernel :math:`k_i`, with the same weights for both
    directions, and the whole is normalised in :math:`K` groups, with separate
    norms (eqs. 1-7):

    .. math::
        a_d = \sigma\left(GN_d^K\left(\mathrm{Concat}_i\,
        \mathrm{DWConv1d}_{k_i}(\bar{x}_d^i)\right)\right), \; d \in \{h, w\},
        \qquad y = a_h a_w x

    Input and output are ``(B, in_channels, H, W)`` of one dtype, any H, W >=
    1. The paper calls the sequence left after averaging over the height
    :math:`X_H`; here ``h`` names the axis that remains, as in the official
    code.

    Args:
        in_channels: Width of the map, divisible by the number of kernels.
        kernel_sizes: Odd kernel sizes, one a group.
        gate: ``'sigmoid'``, or ``'softmax'`` over channels (official option).
        norm: ``'group'``; ``'batch'``, ``'layer'`` (over the channels of each
            position) or None are ablations.
        norm_first: Whether the norms stand before the convolutions, an
            ablation ("GN prior").
        shared: Whether both directions have the same convolutions; False is
            an ablation.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is out of range or the kernels do not
            divide the width.
    """

    _abbr_ = 'smsa'

    def __init__(
        self,
        in_channels: int,
        kernel_sizes: Sequence[int] = (3, 5, 7, 9),
        gate: str = 'sigmoid',
        norm: str | None = 'group',
        norm_first: bool = False,
        shared: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        known = isinstance(kernel_sizes, Sequence) and len(kernel_sizes) > 0
        if not known or not all(map(is_odd, kernel_sizes)):
            raise ValueError(
                f'kernel_sizes={kernel_sizes!r} must be odd and positive, one '
                'or more'
            )
        check_positive(in_channels=in_channels)
        check_flag(norm_first=norm_first, shared=shared)
        groups = len(kernel_sizes)
        if in_channels % groups:
            raise ValueError(
                f'in_channels={in_channels} must be a positive multiple of '
                f'the number of kernel_sizes, {groups}'
            )
        check_choice(GATES, gate=gate)
        check_choice(NORMS, norm=norm)
        self.gate = gate
        self.norm_first = norm_first
        width = in_channels // groups
        self.convs = _make_convs(kernel_sizes, width)
        self.convs_w = None if shared else _make_convs(kernel_sizes, width)
        self.norm_h = _make_norm(norm, groups, in_channels)
        self.norm_w = _make_norm(norm, groups, in_channels)

    def _weights(
        self, sequence: Tensor, convs: nn.ModuleList, norm: nn.Module | None
    ) -> Tensor:
        """Return the gate of one direction, ``(B, C, L)`` to the same."""
        if norm is not None and self.norm_first:
            sequence = normalize(norm, sequence)
        # One convolution for all groups, the shorter kernels padded with
        # zeros: several take several times as long.
        reach = max(conv.padding[0] for conv in convs)
        weight = torch.cat(
            [F.pad(f.weight, [reach - f.padding[0]] * 2) for f in convs]
        )
        bias = torch.cat([conv.bias for conv in convs])
        # As it is, but an exporter to ONNX has lost track of the shape.
        weight = weight.view(len(bias), 1, 2 * reach + 1)
        out = F.conv1d(sequence, weight, bias, padding=reach, groups=len(bias))
        if norm is not None and not self.norm_first:
            out = normalize(norm, out)
        return _apply_gate(out, self.gate)

    def axis_gates(
        self, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Turn the means over width and height into gates of their shapes.

        Args:
            rows: ``(B, C, H)``.
            columns: ``(B, C, W)``.
        """
        dtype = self.convs[0].weight.dtype
        convs_w = self.convs if self.convs_w is None else self.convs_w
        gate_h = self._weights(rows.to(dtype), self.convs, self.norm_h)
        return gate_h, self._weights(columns.to(dtype), convs_w, self.norm_w)

    def forward(self, x: Tensor) -> Tensor:
        """Gate rows and columns of ``x``, ``(B, C, H, W)`` to the same."""
        return ops.gate_axes(x, *self.axis_gates(*ops.axis_means(x)))

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gates, ``(B, C, H, 1)`` and ``(B, C, 1, W)``."""
        gate_h, gate_w = self.axis_gates(*ops.axis_means(x))
        return dict(rows=gate_h.unsqueeze(3), columns=gate_w.unsqueeze(2))

    def extra_repr(self) -> str:
        """Return the settings that the child modules do not show."""
        return f'gate={self.gate!r}, norm_first={self.norm_first}'


@MODELS.register_module()
class PCSA(Attention):
    r"""Gate channels by self-attention between the channels of a pooled map.

    The map is average-pooled with a ``window_size`` window and as large a
    stride, normalised as one group, scaled by one factor a channel for each
    of query, key and value, and attended channel by channel (eqs. 8-12):

    .. math::
        y = x \, \sigma\left(\mathrm{mean}_N\;
        \mathrm{Softmax}\left(\frac{QK^T}{\sqrt{d}}\right) V\right),
        \qquad Q, K, V \in \mathbb{R}^{C \times N}, \; N = H'W'

    with :math:`d = C / \mathrm{num\_heads}`. Input and output are ``(B,
    in_channels, H, W)`` of one dtype, any H, W >= 1. The pooling drops
    leftover rows and columns, as the official code does. An axis shorter than
    the window is pooled as a whole; the official code raises there.

    Args:
        in_channels: Width of the map.
        window_size: Side of the pooling window in pixels; None pools the
            whole map to one pixel.
        num_heads: Number of heads of contiguous channels. The paper uses one.
        attn_drop: Dropout probability on the attention matrix. The official
            ResNet-101 configuration has 0.1, all others 0.
        gate: ``'sigmoid'``, or ``'softmax'`` over channels (official option).
        scale: What the scores are divided by: the root of the ``'channels'``
            of a head, or of the number :math:`N` of pooled ``'pixels'``, an
            ablation.
        shuffle: Whether to interleave the channels of the heads in the
            output, an ablation together with several heads.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is out of range or the heads do not divide
            the width.
    """

    _abbr_ = 'pcsa'

    def __init__(
        self,
        in_channels: int,
        window_size: int | None = 7,
        num_heads: int = 1,
        attn_drop: float = 0.0,
        gate: str = 'sigmoid',
        scale: str = 'channels',
        shuffle: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(in_channels=in_channels)
        if window_size is not None:
            check_positive(window_size=window_size)
        check_positive(num_heads=num_heads)
        if in_channels % num_heads:
            raise ValueError(
                f'num_heads={num_heads} must divide in_channels={in_channels}'
            )
        check_number(attn_drop=attn_drop)
        if not 0 <= attn_drop < 1:
            raise ValueError(f'attn_drop={attn_drop} must lie in [0, 1)')
        check_flag(shuffle=shuffle)
        if shuffle and num_heads == 1:
            raise ValueError('shuffle=True needs num_heads greater than 1')
        check_choice(GATES, gate=gate)
        check_choice(SCALES, scale=scale)
        self.window_size = window_size
        self.num_heads = num_heads
        self.gate = gate
        self.scale = scale
        self.shuffle = shuffle
        self.norm = nn.GroupNorm(1, in_channels)
        self.q, self.k, self.v = (
            nn.Conv2d(
                in_channels, in_channels, 1, groups=in_channels, bias=False
            )
            for _ in range(3)
        )
        self.attn_drop = nn.Dropout(attn_drop)

    def channel_gate(self, pooled: Tensor) -> Tensor:
        """Turn a pooled map, ``(B, C, H', W')``, into a gate, ``(B, C)``."""
        # Scores are sums over all windows, too coarse in half precision.
        with no_autocast(pooled):
            pooled = normalize(self.norm, pooled)
            # A depthwise convolution by one pixel is a product, which takes
            # a hundredth of the time of torch's convolution on a CPU.
            q, k, v = (
                (pooled * layer.weight.view(-1, 1, 1))
                .flatten(2)
                .unflatten(1, (self.num_heads, -1))
                for layer in (self.q, self.k, self.v)
            )  # (B, heads, C / heads, N)
            scale = q.shape[2 if self.scale == 'channels' else 3] ** -0.5
            dropout = self.attn_drop.p if self.training else 0.0
            attended = ops.attend(q * scale, k, v, dropout)
            return _apply_gate(attended.mean(3).flatten(1), self.gate)

    def interleave(self, x: Tensor) -> Tensor:
        """Interleave the channels of the heads if ``shuffle`` says so."""
        if not self.shuffle:
            return x
        heads = x.unflatten(1, (self.num_heads, -1))
        return heads.transpose(1, 2).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the channels of ``x``, ``(B, C, H, W)`` to the same shape."""
        pooled = ops.pool(x, self.window_size)
        x = ops.gate_channels(x, self.channel_gate(pooled))
        return self.interleave(x)

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gate of every channel, ``(B, C, 1, 1)``."""
        gate = self.channel_gate(ops.pool(x, self.window_size))
        return dict(channel=gate[..., None, None])

    def extra_repr(self) -> str:
        """Return the settings that the child modules do not show."""
        return (
            f'window_size={self.window_size}, num_heads={self.num_heads}, '
            f'gate={self.gate!r}, scale={self.scale!r}, '
            f'shuffle={self.shuffle}'
        )


@MODELS.register_module()
class SCSA(Attention):
    r"""Spatial gates first, channel self-attention on their result.

    .. math:: \mathrm{SCSA}(x) = \mathrm{PCSA}(\mathrm{SMSA}(x))

    (eq. 13; :class:`SMSA`, :class:`PCSA`). Input and output are ``(B,
    in_channels, H, W)`` of one dtype, any H, W >= 1; see :class:`PCSA` for
    maps smaller than the window. It has ``16 * in_channels`` parameters with
    the paper's four kernels.

    The official module has, and the paper leaves out: biases in the 1D
    convolutions, none in query, key and value, and the norm before them. The
    parameter counts of the paper's table 2 confirm all three.

    Args:
        in_channels: Width of the map, divisible by the number of kernels.
        kernel_sizes: See :class:`SMSA`.
        window_size: See :class:`PCSA`.
        num_heads: See :class:`PCSA`.
        attn_drop: See :class:`PCSA`.
        gate: See both.
        norm: See :class:`SMSA`, as the next two.
        norm_first: An ablation.
        shared: An ablation.
        scale: See :class:`PCSA`, as the next.
        shuffle: An ablation.
        channel_first: Whether the order is the reverse, an ablation ("PCSA
            prior"): :math:`\mathrm{SMSA}(\mathrm{PCSA}(x))`.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is out of range or does not divide the
            width.
    """

    _abbr_ = 'scsa'

    def __init__(
        self,
        in_channels: int,
        kernel_sizes: Sequence[int] = (3, 5, 7, 9),
        window_size: int | None = 7,
        num_heads: int = 1,
        attn_drop: float = 0.0,
        gate: str = 'sigmoid',
        norm: str | None = 'group',
        norm_first: bool = False,
        shared: bool = True,
        scale: str = 'channels',
        shuffle: bool = False,
        channel_first: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_flag(channel_first=channel_first)
        self.smsa = SMSA(
            in_channels, kernel_sizes, gate, norm, norm_first, shared
        )
        self.pcsa = PCSA(
            in_channels,
            window_size,
            num_heads,
            attn_drop,
            gate,
            scale,
            shuffle,
        )
        self.channel_first = channel_first

    def forward(self, x: Tensor) -> Tensor:
        """Gate ``x``, ``(B, C, H, W)`` to the same shape."""
        if self.channel_first:
            return self.smsa(self.pcsa(x))
        x = ops.scsa(
            x,
            self.smsa.axis_gates,
            self.pcsa.channel_gate,
            self.pcsa.window_size,
        )
        return self.pcsa.interleave(x)

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gates of :class:`SMSA` and of :class:`PCSA`."""
        if self.channel_first:
            weights = self.pcsa.attention_weights(x)
            after = self.smsa.attention_weights(self.pcsa(x))
            # Those behind a shuffle are put back into the input's order.
            channels = torch.arange(x.shape[1], device=x.device)
            order = self.pcsa.interleave(channels[None])[0].argsort()
            return weights | {k: gate[:, order] for k, gate in after.items()}
        weights = self.smsa.attention_weights(x)
        return weights | self.pcsa.attention_weights(self.smsa(x))

    def extra_repr(self) -> str:
        """Return the setting that the child modules do not show."""
        return f'channel_first={self.channel_first}'
