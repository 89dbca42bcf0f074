# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""SCSA as a function of a map and of its two small networks.

The networks see averages of the map alone; what takes the time are the passes
over the map, and the attention between channels where these outnumber the
pixels. :func:`reference` takes them as the paper writes them, :func:`fused`
in three steps: axis means, pooling of the gated map, and gating, each of
which reads the map once, and the last writes the result. For the backward
pass the map and the gates are kept. docs/performance.md derives the gradient.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from mmattn.compat.compiling import is_compiling
from mmattn.compat.library import custom_op

from .dispatch import choose, dense, kernels, precision_of

#: Turns the averages over each axis, (B, C, H) and (B, C, W), into gates.
AxisGates = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
#: Turns a pooled map, (B, C, H', W'), into one gate a channel, (B, C).
ChannelGate = Callable[[Tensor], Tensor]


def scsa(
    x: Tensor,
    axis_gates: AxisGates,
    channel_gate: ChannelGate,
    window: int | None,
) -> Tensor:
    """Gate a map by its rows and columns, then by its channels.

    Args:
        x: A map, ``(B, C, H, W)``.
        axis_gates: The spatial network: averages over the width, ``(B, C,
            H)``, and over the height, ``(B, C, W)``, to gates of these
            shapes. The averages of half precision are float32.
        channel_gate: The channel network: the gated map, pooled, ``(B, C, H',
            W')``, to one gate a channel, ``(B, C)``.
        window: Side of the pooling window, see :func:`pool`.

    Returns:
        The gated map, of the shape and dtype of ``x``.

    Raises:
        RuntimeError: ``MMATTN_OPS`` names a path that cannot be taken.

    See :class:`mmattn.attention.SCSA` for the formulas and their source.
    """
    refusal = ''
    if not (x.is_cuda or x.is_contiguous()):
        refusal = 'it is for contiguous maps'
    path = reference if choose(x, refusal) == 'reference' else fused
    return path(x, axis_gates, channel_gate, window)


# --------------------------------------------------------------- reference


def reference(
    x: Tensor,
    axis_gates: AxisGates,
    channel_gate: ChannelGate,
    window: int | None,
) -> Tensor:
    """Gate a map as the paper writes it; see :func:`scsa`."""
    x = gate_axes(x, *axis_gates(*axis_means(x)))
    return gate_channels(x, channel_gate(pool(x, window)))


def axis_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Average over the width and over the height, half as float32."""
    dtype = precision_of(x)
    return x.mean(3, dtype=dtype), x.mean(2, dtype=dtype)


def gate_axes(x: Tensor, gate_h: Tensor, gate_w: Tensor) -> Tensor:
    """Gate a map by one factor a row, and one a column, of each channel."""
    gate_h, gate_w = gate_h.to(x.dtype), gate_w.to(x.dtype)
    return x * gate_h.unsqueeze(3) * gate_w.unsqueeze(2)


def gate_channels(x: Tensor, gate_c: Tensor) -> Tensor:
    """Gate a map by one factor a channel, ``(B, C)``."""
    return x * gate_c.to(x.dtype)[..., None, None]


def pool(x: Tensor, window: int | None) -> Tensor:
    """Average over windows, ``(B, C, H, W)`` to ``(B, C, H', W')``.

    Leftover rows and columns are dropped, as in the official code; an axis
    shorter than the window is pooled as a whole.

    Args:
        x: The map.
        window: Side of the window in pixels; None pools the whole map.
    """
    if window is None:
        return x.mean((2, 3), keepdim=True)
    if is_compiling() or torch.jit.is_tracing():
        return _pool_in_graph(x, window)
    sides = [window, window]
    for i, axis in enumerate((2, 3)):
        if x.shape[axis] < window:
            x = x.mean(axis, keepdim=True)
            sides[i] = 1
    return F.avg_pool2d(x, sides)


def _pool_in_graph(x: Tensor, window: int) -> Tensor:
    """Do what :func:`pool` does, in one graph for maps of every size."""
    height, width = (_at_least(window, side) - side for side in x.shape[2:])

    def average(x: Tensor) -> Tensor:
        x = F.pad(x, (0, width, 0, height))
        if not is_compiling():
            return F.avg_pool2d(x, window)
        # The shape function of avg_pool2d asks whether the window divides
        # the map, which would tie an exported graph to the answer.
        rows = x.unfold(2, window, window)
        return rows.unfold(3, window, window).mean((4, 5))

    # Of a window that reaches beyond the map, what lies inside counts.
    return average(x) / average(torch.ones_like(x[:1, :1]))


def _at_least(least: int, side: int) -> int:
    """Return the larger one, by the graph where this is being traced."""
    if isinstance(side, Tensor):
        return side.clamp(min=least)
    if isinstance(side, torch.SymInt):
        return torch.sym_max(side, least)
    return max(side, least)


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Attend between channels, by the library's fused attention.

    Args:
        q: Scaled queries, ``(B, heads, C / heads, N)``, as the next two.
        k: The channels to compare with.
        v: Their values.
        dropout: Probability on the attention.

    Returns:
        Attended values, ``(B, heads, C / heads, N)``. Half precision is
        computed in float32, for scores are sums over all windows.

    The gradient of the library's attention cannot be differentiated once
    more, which it says; that of ``MMATTN_OPS=reference`` can.
    """
    dtype, heads = q.dtype, q.shape[1]
    q, k, v = (t.to(precision_of(t)) for t in (q, k, v))
    if choose(q) == 'reference':
        # Not as q @ k.mT, which asks for the sizes of the map to export.
        q, k, v = (t.flatten(0, 1) for t in (q, k, v))
        attention = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        attended = torch.bmm(F.dropout(attention, dropout), v)
        attended = attended.unflatten(0, (-1, heads))
    else:
        attended = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=1.0
        )
    return attended.to(dtype)


# ------------------------------------------------------------------- fused


def fused(
    x: Tensor,
    axis_gates: AxisGates,
    channel_gate: ChannelGate,
    window: int | None,
) -> Tensor:
    """Gate a map in three steps; see :func:`scsa`."""
    sides = [
        size if window is None else min(size, window) for size in x.shape[2:]
    ]
    x = dense(x)
    # Each step hands the map on, so that the gradient of the map goes
    # through them one after the other and is never added up on its own.
    rows, columns, x = _AxisMeans.apply(x)
    gates = axis_gates(rows, columns)
    gate_h, gate_w = (gate.to(x.dtype).contiguous() for gate in gates)
    pooled, x = _GatedPool.apply(x, gate_h, gate_w, sides)
    gate_c = channel_gate(pooled).to(x.dtype).contiguous()
    return _Gate.apply(x, gate_h, gate_w, gate_c)


@custom_op('mmattn::axis_means')
def _axis_means(x: Tensor) -> tuple[Tensor, Tensor]:
    return kernels(x, 'scsa').axis_means(x)


@_axis_means.register_fake
def _(x):
    new = torch.empty_like(x, dtype=precision_of(x))
    return new.new_empty(x.shape[:3]), new[:, :, 0].contiguous()


@custom_op('mmattn::axis_means_backward', mutates_args=('dx',))
def _axis_means_backward(
    dx: Tensor, to_rows: Tensor, to_columns: Tensor
) -> None:
    kernels(dx, 'scsa').axis_means_backward(dx, to_rows, to_columns)


@_axis_means_backward.register_fake
def _(dx, to_rows, to_columns):
    pass


@custom_op('mmattn::gated_pool')
def _gated_pool(
    x: Tensor, gate_h: Tensor, gate_w: Tensor, sides: list[int]
) -> Tensor:
    return kernels(x, 'scsa').gated_pool(x, gate_h, gate_w, sides)


@_gated_pool.register_fake
def _(x, gate_h, gate_w, sides):
    return x.new_empty(
        *x.shape[:2], x.shape[2] // sides[0], x.shape[3] // sides[1]
    )


@custom_op('mmattn::gated_pool_backward', mutates_args=('dx',))
def _gated_pool_backward(
    dx: Tensor,
    x: Tensor,
    gate_h: Tensor,
    gate_w: Tensor,
    to_pooled: Tensor,
    sides: list[int],
) -> tuple[Tensor, Tensor]:
    step = kernels(x, 'scsa').gated_pool_backward
    return step(dx, x, gate_h, gate_w, to_pooled, sides)


@_gated_pool_backward.register_fake
def _(dx, x, gate_h, gate_w, to_pooled, sides):
    return torch.empty_like(gate_h), torch.empty_like(gate_w)


@custom_op('mmattn::gate')
def _gate(x: Tensor, gate_h: Tensor, gate_w: Tensor, gate_c: Tensor) -> Tensor:
    return kernels(x, 'scsa').gate(x, gate_h, gate_w, gate_c)


@_gate.register_fake
def _(x, gate_h, gate_w, gate_c):
    return torch.empty_like(x)


@custom_op('mmattn::gate_backward')
def _gate_backward(
    grad: Tensor, x: Tensor, gate_h: Tensor, gate_w: Tensor, gate_c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return kernels(x, 'scsa').gate_backward(grad, x, gate_h, gate_w, gate_c)


@_gate_backward.register_fake
def _(grad, x, gate_h, gate_w, gate_c):
    return tuple(torch.empty_like(t) for t in (x, gate_h, gate_w, gate_c))


def differentiate(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor
) -> list[Tensor | None]:
    """Return gradients that can themselves be differentiated."""
    # Aliases, lest the gradient of the map runs through that of the gates,
    # which came from the map.
    inputs = tuple(tensor.view_as(tensor) for tensor in inputs)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    y = function(*inputs)
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    return [next(found) if t.requires_grad else None for t in inputs]


class _AxisMeans(Function):
    """:func:`axis_means` and the map itself."""

    @staticmethod
    def forward(ctx, x):
        rows, columns = _axis_means(x)
        return rows, columns, x.view_as(x)

    @staticmethod
    def backward(ctx, to_rows, to_columns, dx):
        if torch.is_grad_enabled():  # asked for with create_graph
            to_rows = to_rows.unsqueeze(3) / dx.shape[3]
            to_columns = to_columns.unsqueeze(2) / dx.shape[2]
            return dx + to_rows.to(dx.dtype) + to_columns.to(dx.dtype)
        _axis_means_backward(dx, to_rows, to_columns)
        return dx


class _GatedPool(Function):
    """:func:`pool` of the map with both gates, and the map itself."""

    @staticmethod
    def forward(ctx, x, gate_h, gate_w, sides):
        ctx.sides = sides
        ctx.save_for_backward(x, gate_h, gate_w)
        return _gated_pool(x, gate_h, gate_w, sides), x.view_as(x)

    @staticmethod
    def backward(ctx, to_pooled, dx):
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            to_x, to_h, to_w = differentiate(
                lambda *inputs: F.avg_pool2d(gate_axes(*inputs), ctx.sides),
                inputs,
                to_pooled,
            )
            return dx if to_x is None else dx + to_x, to_h, to_w, None
        to_h, to_w = _gated_pool_backward(dx, *inputs, to_pooled, ctx.sides)
        return dx, to_h, to_w, None


class _Gate(Function):
    """The map with all its gates."""

    @staticmethod
    def forward(ctx, x, gate_h, gate_w, gate_c):
        ctx.save_for_backward(x, gate_h, gate_w, gate_c)
        return _gate(x, gate_h, gate_w, gate_c)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            return tuple(
                differentiate(
                    lambda x, h, w, c: gate_channels(gate_axes(x, h, w), c),
                    ctx.saved_tensors,
                    grad,
                )
            )
        return _gate_backward(grad, *ctx.saved_tensors)
