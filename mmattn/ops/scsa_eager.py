# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The steps of SCSA on a CPU, plane by plane, in memory that is there.

Asking for a map's memory takes as long as several passes over the map, so
that every piece of about ``TILE`` elements takes all operations of a step in
one scratch piece. All maps are contiguous, ``(B, C, H, W)``; gates are ``(B,
C, H)``, ``(B, C, W)`` and ``(B, C)``, in the precision of the map.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .dispatch import precision_of

# Elements of a piece: small enough for the cache that cores share, so large
# that calling torch is cheap beside it.
TILE = 2**21


def planes(*tensors: Tensor) -> list[Tensor]:
    """View ``(B, C, ...)`` as ``(B * C, ...)``."""
    return [tensor.flatten(0, 1) for tensor in tensors]


def pieces(x: Tensor) -> Iterator[slice]:
    """Cut planes, ``(N, H, W)``, into slices of about ``TILE`` elements."""
    step = max(1, TILE // x[0].numel())
    for start in range(0, len(x), step):
        yield slice(start, start + step)


def scratch_for(x: Tensor) -> Tensor:
    """Return memory for the largest piece of planes ``(N, H, W)``."""
    return torch.empty_like(x[next(pieces(x))])


def axis_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Average over the width and over the height."""
    dtype = precision_of(x)
    rows = x.new_empty(x.shape[:3], dtype=dtype)
    columns = x.new_empty((*x.shape[:2], x.shape[3]), dtype=dtype)
    average = rows.new_full((x.shape[3], 1), 1 / x.shape[3])
    x, flat_rows, flat_columns = planes(x, rows, columns)
    for piece in pieces(x):
        part = x[piece].to(dtype)
        # Three times as fast as a mean over few columns.
        torch.matmul(part, average, out=flat_rows[piece].unsqueeze(2))
        torch.mean(part, 1, out=flat_columns[piece])
    return rows, columns


def axis_means_backward(dx: Tensor, to_rows: Tensor, to_columns: Tensor):
    """Add the gradient of the map to ``dx``."""
    to_rows = (to_rows / dx.shape[3]).to(dx.dtype)
    to_columns = (to_columns / dx.shape[2]).to(dx.dtype)
    dx, to_rows, to_columns = planes(dx, to_rows, to_columns)
    for piece in pieces(dx):
        dx[piece] += to_rows[piece, :, None]
        dx[piece] += to_columns[piece, None]


def windows_of(x: Tensor, gate_h: Tensor, gate_w: Tensor, sides: list[int]):
    """Cut planes and gates into rows of windows, without the leftovers.

    Returns:
        Views ``(N, H', side, W' side)`` of the map, ``(N, H', side, 1)`` and
        ``(N, 1, 1, W' side)`` of the gates.
    """
    height, width = (s - s % side for s, side in zip(x.shape[1:], sides))
    x = x[:, :height, :width].unflatten(1, (-1, sides[0]))
    gate_h = gate_h[:, :height].unflatten(1, (-1, sides[0])).unsqueeze(3)
    return x, gate_h, gate_w[:, None, None, :width]


def gated_pool(
    x: Tensor, gate_h: Tensor, gate_w: Tensor, sides: list[int]
) -> Tensor:
    """Average the gated map over windows of ``sides``."""
    shape = *x.shape[:2], *(s // side for s, side in zip(x.shape[2:], sides))
    pooled = x.new_empty(shape)
    x, h, w = windows_of(*planes(x, gate_h, gate_w), sides)
    (out,) = planes(pooled)
    for piece in pieces(x):
        part, factor = x[piece], h[piece]
        # Row by row of the windows, which needs no map of products, then
        # column by column; a mean over so few takes twice as long.
        total = part[:, :, 0] * factor[:, :, 0]
        for row in range(1, sides[0]):
            total.addcmul_(part[:, :, row], factor[:, :, row])
        total *= w[piece, 0]
        result = out[piece].copy_(total[..., :: sides[1]])
        for column in range(1, sides[1]):
            result += total[..., column :: sides[1]]
    return pooled.div_(sides[0] * sides[1])


def gated_pool_backward(
    dx: Tensor,
    x: Tensor,
    gate_h: Tensor,
    gate_w: Tensor,
    to_pooled: Tensor,
    sides: list[int],
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the map to ``dx``; return those of the gates."""
    to_h, to_w = torch.zeros_like(gate_h), torch.zeros_like(gate_w)
    gates = planes(gate_h, gate_w)
    dx, flat_h, flat_w = windows_of(*planes(dx, to_h, to_w), sides)
    x, h, w = windows_of(*planes(x), *gates, sides)
    (to_pooled,) = planes(to_pooled)
    # What reaches the columns of each row of windows, (N, H', 1, W' side).
    reached = to_pooled.repeat_interleave(sides[1], 2).unsqueeze(2)
    reached = reached / (sides[0] * sides[1])
    gated = reached * w
    scratch = scratch_for(x)
    for piece in pieces(x):
        part = x[piece]
        product = scratch[: len(part)]
        torch.mul(part, gated[piece], out=product)
        torch.sum(product, 3, keepdim=True, out=flat_h[piece])
        torch.mul(part, h[piece], out=product)
        over_rows = product.sum(2, keepdim=True).mul_(reached[piece])
        torch.sum(over_rows, 1, keepdim=True, out=flat_w[piece])
        dx[piece].addcmul_(h[piece], gated[piece])
    return to_h, to_w


def gate(x: Tensor, gate_h: Tensor, gate_w: Tensor, gate_c: Tensor) -> Tensor:
    """Multiply the map by its gates."""
    out = torch.empty_like(x)
    gate_h = gate_h * gate_c.unsqueeze(2)
    x, y, h, w = planes(x, out, gate_h, gate_w)
    for piece in pieces(x):
        # The plane of gates first: rows of few pixels are slow to repeat.
        gates = torch.mul(h[piece, :, None], w[piece, None], out=y[piece])
        gates *= x[piece]
    return out


def gate_backward(
    grad: Tensor, x: Tensor, gate_h: Tensor, gate_w: Tensor, gate_c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the map and of the gates."""
    out = torch.empty_like(x)
    to_h, to_w = torch.empty_like(gate_h), torch.empty_like(gate_w)
    both = gate_h * gate_c.unsqueeze(2)
    flat_h, flat_w, w, hc = planes(to_h, to_w, gate_w, both)
    grad, x, dx = planes(grad.contiguous(), x, out)
    product = scratch_for(x)
    for piece in pieces(x):
        result = dx[piece]
        product = product[: len(result)]
        rows, columns = hc[piece, :, None], w[piece, None]
        torch.mul(grad[piece], x[piece], out=product)
        torch.mul(product, columns, out=result)
        torch.sum(result, 2, out=flat_h[piece])
        product *= rows
        torch.sum(product, 1, out=flat_w[piece])
        torch.mul(rows, columns, out=result).mul_(grad[piece])
    to_c = (to_h * gate_h).sum(2)
    return out, to_h * gate_c.unsqueeze(2), to_w, to_c
