# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What SCSA does with whole maps, as kernels in Triton.

Between them stand small networks, which torch runs: averages along both axes
from one reading of the map, window averages of the gated map from another,
and the gated map itself from a third. The backward pass reads map and
gradient for the gates and writes the gradient of the map, to which the other
two add their parts in place. A program holds a tile of channels, rows and
columns and goes down the rows. Sums over parts of an axis are kept and added
afterwards, in an order that depends on nothing but the shape: equal maps give
equal results.

A map is contiguous or ``channels_last``, of float32, float64 or half
precision, which is computed in float32; a gate is contiguous, of the dtype of
the map or float32. Sizes of the image are no constants of the kernels. These
are compiled for at most five widths of a tile, each once more for maps whose
rows (``channels_last``: pixels) do not begin at multiples of 8 elements.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gsca import precision_of
from .gsca_triton import (
    PROGRAMS,
    _load,
    _round,
    is_channels_last,
    lay_out,
    type_of,
)

# Elements of the tile of a program.
TILE = 2048
# Arguments that change with the image.
SIZES = ['count', 'channels', 'height', 'width', 'run']
SIDES = ['side_h', 'side_w']


def axis_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """Average a map along either axis.

    Args:
        x: ``(B, C, H, W)``.

    Returns:
        Rows ``(B, C, H)`` and columns ``(B, C, W)``, float32, or float64 for
        such a map.
    """
    plan = cut(x)
    rows, columns = plan.new_parts(x)
    with torch.cuda.device_of(x):
        _average_axes[plan.grid](
            x, rows, columns, *plan.sizes, **plan.constants
        )
    return collapse(rows, rows.dtype), collapse(columns, rows.dtype)


def axis_means_backward(
    dx: Tensor, to_rows: Tensor, to_columns: Tensor
) -> None:
    """Add the gradient of :func:`axis_means` to that of the map, in place.

    Args:
        dx: ``(B, C, H, W)``.
        to_rows: ``(B, C, H)``.
        to_columns: ``(B, C, W)``.
    """
    plan = cut(dx)
    to_rows, to_columns = to_rows.contiguous(), to_columns.contiguous()
    with torch.cuda.device_of(dx):
        _add_axes[plan.grid](
            dx, to_rows, to_columns, *plan.sizes, **plan.constants
        )


def gated_pool(
    x: Tensor, gate_h: Tensor, gate_w: Tensor, sides: tuple[int, int]
) -> Tensor:
    """Average a gated map over windows.

    Args:
        x: ``(B, C, H, W)``.
        gate_h: ``(B, C, H)``.
        gate_w: ``(B, C, W)``.
        sides: Height and width of the windows, and of the steps between
            them, at most H and W. Leftover rows and columns are dropped.

    Returns:
        ``(B, C, H // sides[0], W // sides[1])``, float32, or float64 for such
        a map.
    """
    plan = cut(x, widest=64)
    shape = [n // side for n, side in zip(x.shape[2:], sides)]
    out = x.new_empty((*x.shape[:2], *shape), dtype=precision_of(x))
    # How many windows a program may have beside each other.
    windows = max(plan.constants['across'] // 4, 1)
    each = min(windows, max(plan.constants['across'] // sides[1], 1))
    grid = plan.blocks * shape[0] * triton.cdiv(shape[1], each)
    with torch.cuda.device_of(x):
        _pool[(grid,)](
            x,
            gate_h,
            gate_w,
            out,
            *plan.sizes,
            *sides,
            each,
            windows=windows,
            **plan.constants,
        )
    return out


def gated_pool_backward(
    dx: Tensor,
    x: Tensor,
    gate_h: Tensor,
    gate_w: Tensor,
    to_pooled: Tensor,
    sides: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Add the gradient of :func:`gated_pool` to that of the map, in place.

    Args:
        dx: ``(B, C, H, W)``.
        x: What :func:`gated_pool` was given, as the other two.
        gate_h: As above.
        gate_w: As above.
        to_pooled: The gradient of what it returned, of that shape.
        sides: What it was given.

    Returns:
        The gradients of the gates.
    """
    plan = cut(dx)
    x = lay_out(x, plan.constants['last'])
    rows, columns = plan.new_parts(x)
    with torch.cuda.device_of(x):
        _differentiate_pool[plan.grid](
            dx,
            x,
            gate_h,
            gate_w,
            to_pooled.contiguous(),
            rows,
            columns,
            *plan.sizes,
            *sides,
            **plan.constants,
        )
    return collapse(rows, gate_h.dtype), collapse(columns, gate_w.dtype)


def gate(x: Tensor, gate_h: Tensor, gate_w: Tensor, gate_c: Tensor) -> Tensor:
    """Multiply a map by its gates, rounding once.

    Args:
        x: ``(B, C, H, W)``.
        gate_h: ``(B, C, H)``.
        gate_w: ``(B, C, W)``.
        gate_c: ``(B, C)``.

    Returns:
        ``(B, C, H, W)``, with the dtype and the strides of ``x``.
    """
    plan = cut(x)
    out = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _gate[plan.grid](
            x, gate_h, gate_w, gate_c, out, *plan.sizes, **plan.constants
        )
    return out


def gate_backward(
    grad: Tensor, x: Tensor, gate_h: Tensor, gate_w: Tensor, gate_c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the map and the gates from that of the result.

    Args:
        grad: ``(B, C, H, W)``, of any strides.
        x: What :func:`gate` was given, as the others.
        gate_h: As above.
        gate_w: As above.
        gate_c: As above.

    Returns:
        A gradient for each of the last four, of its shape and dtype.
    """
    plan = cut(x)
    grad = lay_out(grad, plan.constants['last'])
    dx = torch.empty_like(x)
    rows, columns = plan.new_parts(x)
    both = rows.new_empty((len(rows) * len(columns), *gate_c.shape))
    with torch.cuda.device_of(x):
        _differentiate_gate[plan.grid](
            grad,
            x,
            gate_h,
            gate_w,
            gate_c,
            dx,
            rows,
            columns,
            both,
            *plan.sizes,
            **plan.constants,
        )
    to_h = collapse(rows, gate_h.dtype, gate_c)
    to_w = collapse(columns, gate_w.dtype, gate_c)
    return dx, to_h, to_w, collapse(both, gate_c.dtype)


# -------------------------------------------------------------------- tiles


class Plan(NamedTuple):
    """How a map is cut into tiles.

    Attributes:
        grid: One program for each block of channels, run of rows and tile of
            columns.
        blocks: Blocks of channels in the batch.
        runs: Runs of rows.
        tiles: Tiles of columns.
        sizes: Planes of the batch, channels of an image, rows, columns, and
            steps of a run. The planes of a contiguous map follow each other
            through the batch, which is one image of many channels then.
        constants: Of the kernels.
    """

    grid: tuple[int]
    blocks: int
    runs: int
    tiles: int
    sizes: tuple[int, int, int, int, int]
    constants: dict[str, object]

    def new_parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Make room for sums of rows by tile and of columns by run."""
        batch, channels, height, width = x.shape
        dtype = precision_of(x)
        rows = x.new_empty((self.tiles, batch, channels, height), dtype=dtype)
        columns = (self.runs, batch, channels, width)
        return rows, x.new_empty(columns, dtype=dtype)


def cut(x: Tensor, widest: int = 128) -> Plan:
    """Cut a map into tiles of at most ``widest`` columns."""
    last = is_channels_last(x)
    batch, channels, height, width = x.shape
    images, channels = (batch, channels) if last else (1, batch * channels)
    elements = TILE // 2 if x.dtype == torch.float64 else TILE
    across = min(max(triton.next_power_of_2(width), 8), 32 if last else widest)
    if last:
        group = min(triton.next_power_of_2(channels), 32)
        down = elements // (group * across)
    else:
        down = 8
        group = elements // (down * across)
    blocks = images * triton.cdiv(channels, group)
    tiles = triton.cdiv(width, across)
    steps = triton.cdiv(height, down)
    # At least 16 rows a program, so that the sums are few.
    runs = triton.cdiv(PROGRAMS, max(blocks * tiles, 1))
    runs = min(runs, triton.cdiv(height, 16))
    run = triton.cdiv(steps, runs)
    runs = triton.cdiv(steps, run)
    reach = height * width * (channels if last else group)
    constants = {
        'group': group,
        'down': down,
        'across': across,
        'last': last,
        'aligned': (channels if last else width) % 8 == 0,
        'index': tl.int64 if reach >= 2**31 else tl.int32,
        'dtype': type_of(x),
        'num_warps': 8,
    }
    sizes = images * channels, channels, height, width, run
    grid = (blocks * runs * tiles,)
    return Plan(grid, blocks, runs, tiles, sizes, constants)


def collapse(
    parts: Tensor, dtype: torch.dtype, factor: Tensor | None = None
) -> Tensor:
    """Add the parts of sums, ``(parts, B, C, ...)``, and multiply them.

    Args:
        parts: Sums of the parts.
        dtype: Of the result.
        factor: ``(B, C)``.
    """
    if len(parts) == 1 and factor is None and dtype == parts.dtype:
        return parts[0]
    out = torch.empty_like(parts[0], dtype=dtype)
    size = out.numel()
    _collapse[(triton.cdiv(size, 256),)](
        parts,
        parts if factor is None else factor,
        out,
        len(parts),
        size,
        parts.stride(2),  # the length of a sequence
        scaled=factor is not None,
        block=256,
    )
    return out


@triton.jit
def _round_sizes(channels, width, last: tl.constexpr, aligned: tl.constexpr):
    """Let the compiler know what divides the size that rows are apart."""
    if last:
        channels = _round(channels, aligned)
    else:
        width = _round(width, aligned)
    return channels, width


@triton.jit
def _start(image, first, channels, height, width, last: tl.constexpr):
    """Return where the channel ``first`` of an image begins."""
    plane = height.to(tl.int64) * width
    return image * plane * channels + first if last else first * plane


@triton.jit
def _part(
    channels,
    height,
    width,
    run,
    group: tl.constexpr,
    down: tl.constexpr,
    across: tl.constexpr,
    last: tl.constexpr,
):
    """Return which part of the map a program has.

    Where it begins, its channels, their planes in the batch, its columns, and
    the numbers of its run of rows and of its tile of columns.
    """
    tiles = tl.cdiv(width, across)
    runs = tl.cdiv(tl.cdiv(height, down), run)
    blocks = tl.cdiv(channels, group)
    program = tl.program_id(0)
    row, column = program // tiles % runs, program % tiles
    image = program // tiles // runs // blocks
    first = program // tiles // runs % blocks * group
    start = _start(image, first, channels, height, width, last)
    c = first + tl.arange(0, group)
    n = (image * channels + c).to(tl.int64)
    return start, c, n, column * across + tl.arange(0, across), row, column


@triton.jit
def _spread(
    h,
    w,
    channels,
    height,
    width,
    group: tl.constexpr,
    last: tl.constexpr,
    index: tl.constexpr,
):
    """Return where a tile is from there, ``[channel, row, column]``."""
    c = tl.arange(0, group)[:, None, None]
    if last:
        pixel = h.to(index)[None, :, None] * width + w[None, None, :]
        place = pixel * channels + c
    else:
        row = h.to(index)[None, :, None] * width
        place = c.to(index) * (height * width) + row + w[None, None, :]
    return place


@triton.jit
def _inside(c, h, w, channels, height, width):
    """Return which elements of a tile are in the map."""
    plane = (h < height)[:, None] & (w < width)[None, :]
    return (c < channels)[:, None, None] & plane[None, :, :]


@triton.jit
def _line(pointer, n, i, live, length, dtype: tl.constexpr):
    """Load positions i of sequences n, ``[n, i]``, zero beyond the ends."""
    place = n[:, None] * length + i[None, :]
    live = live[:, None] & (i < length)[None, :]
    return _load(pointer, place, live, dtype)


@triton.jit
def _store_line(pointer, n, i, live, length, values):
    """Store what :func:`_line` loads."""
    place = n[:, None] * length + i[None, :]
    live = live[:, None] & (i < length)[None, :]
    tl.store(pointer + place, values, mask=live)


# ------------------------------------------------------------------ kernels
#
# Their loops are no ranges for the reason given in gsca_triton.py.


@triton.jit(do_not_specialize=SIZES)
def _average_axes(
    x,
    rows,
    columns,
    count,
    channels,
    height,
    width,
    run,
    group: tl.constexpr,
    down: tl.constexpr,
    across: tl.constexpr,
    last: tl.constexpr,
    aligned: tl.constexpr,
    index: tl.constexpr,
    dtype: tl.constexpr,
):
    """Average along both axes."""
    channels, width = _round_sizes(channels, width, last, aligned)
    start, c, n, w, row, column = _part(
        channels, height, width, run, group, down, across, last
    )
    live = c < channels
    total = tl.zeros([group, down, across], dtype)
    step = row * run
    stop = tl.minimum(step + run, tl.cdiv(height, down))
    while step < stop:
        h = step * down + tl.arange(0, down)
        place = _spread(h, w, channels, height, width, group, last, index)
        inside = _inside(c, h, w, channels, height, width)
        part = _load(x + start, place, inside, dtype)
        mean = tl.sum(part, 2) / width
        _store_line(rows, column * count + n, h, live, height, mean)
        total += part
        step += 1
    mean = tl.sum(total, 1) / height
    _store_line(columns, row * count + n, w, live, width, mean)


@triton.jit(do_not_specialize=SIZES)
def _add_axes(
    dx,
    to_rows,
    to_columns,
    count,
    channels,
    height,
    width,
    run,
    group: tl.constexpr,
    down: tl.constexpr,
    across: tl.constexpr,
    last: tl.constexpr,
    aligned: tl.constexpr,
    index: tl.constexpr,
    dtype: tl.constexpr,
):
    """Give every element its part of the gradients of the averages."""
    channels, width = _round_sizes(channels, width, last, aligned)
    start, c, n, w, row, column = _part(
        channels, height, width, run, group, down, across, last
    )
    live = c < channels
    share = _line(to_columns, n, w, live, width, dtype) / height
    step = row * run
    stop = tl.minimum(step + run, tl.cdiv(height, down))
    while step < stop:
        h = step * down + tl.arange(0, down)
        place = _spread(h, w, channels, height, width, group, last, index)
        inside = _inside(c, h, w, channels, height, width)
        part = _load(dx + start, place, inside, dtype)
        part += _line(to_rows, n, h, live, height, dtype)[:, :, None] / width
        part += share[:, None, :]
        part = part.to(dx.dtype.element_ty)
        tl.store(dx + start + place, part, mask=inside)
        step += 1


@triton.jit(do_not_specialize=SIZES + SIDES + ['each'])
def _pool(
    x,
    gate_h,
    gate_w,
    out,
    count,
    channels,
    height,
    width,
    run,
    side_h,
    side_w,
    each,
    windows: tl.constexpr,
    group: tl.constexpr,
    down: tl.constexpr,
    across: tl.constexpr,
    last: tl.constexpr,
    aligned: tl.constexpr,
    index: tl.constexpr,
    dtype: tl.constexpr,
):
    """Average ``each`` windows that lie beside each other.

    A tile holds all of them, or part of one, so that rows are read as they
    lie; its columns are then added by the window that they belong to.
    """
    channels, width = _round_sizes(channels, width, last, aligned)
    high, wide = height // side_h, width // side_w
    tiles = tl.cdiv(wide, each)
    blocks = tl.cdiv(channels, group)
    program = tl.program_id(0)
    left = program % tiles * each
    up = program // tiles % high
    block = program // tiles // high
    image, first = block // blocks, block % blocks * group
    start = _start(image, first, channels, height, width, last)
    c = first + tl.arange(0, group)
    n = (image * channels + c).to(tl.int64)
    live = c < channels
    j = tl.arange(0, windows)
    right = tl.minimum(left + each, wide) * side_w
    bottom = up * side_h + side_h

    total = tl.zeros([group, windows], dtype)
    begin = left * side_w
    while begin < right:
        w = begin + tl.arange(0, across)
        # Below and right of the windows as outside of the map.
        part = tl.zeros([group, down, across], dtype)
        top = up * side_h
        while top < bottom:
            h = top + tl.arange(0, down)
            place = _spread(h, w, channels, height, width, group, last, index)
            inside = _inside(c, h, w, channels, bottom, right)
            tile = _load(x + start, place, inside, dtype)
            factor = _line(gate_h, n, h, live, height, dtype)
            part += tile * factor[:, :, None]
            top += down
        line = tl.sum(part, 1) * _line(gate_w, n, w, live, width, dtype)
        own = (w // side_w - left)[:, None] == j[None, :]
        total += tl.sum(tl.where(own[None, :, :], line[:, :, None], 0), 1)
        begin += across
    # One division after the other: the product may exceed 32 bits.
    total = total / side_h / side_w
    place = (n * high + up)[:, None] * wide + (left + j)[None, :]
    mine = live[:, None] & ((j < each) & (left + j < wide))[None, :]
    tl.store(out + place, total, mask=mine)


@triton.jit(do_not_specialize=SIZES + SIDES)
def _differentiate_pool(
    dx,
    x,
    gate_h,
    gate_w,
    to_pooled,
    rows,
    columns,
    count,
    channels,
    height,
    width,
    run,
    side_h,
    side_w,
    group: tl.constexpr,
    down: tl.constexpr,
    across: tl.constexpr,
    last: tl.constexpr,
    aligned: tl.constexpr,
    index: tl.constexpr,
    dtype: tl.constexpr,
):
    """Give map and gates the gradients of the windows that they are in."""
    channels, width = _round_sizes(channels, width, last, aligned)
    start, c, n, w, row, column = _part(
        channels, height, width, run, group, down, across, last
    )
    live = c < channels
    high, wide = height // side_h, width // side_w
    share = tl.full([1, 1, 1], 1, dtype) / side_h / side_w
    across_gate = _line(gate_w, n, w, live, width, dtype)
    total = tl.zeros([group, down, across], dtype)
    step = row * run
    stop = tl.minimum(step + run, tl.cdiv(height, down))
    while step < stop:
        h = step * down + tl.arange(0, down)
        place = _spread(h, w, channels, height, width, group, last, index)
        inside = _inside(c, h, w, channels, height, width)
        i = h // side_h
        window = (n[:, None] * high + i[None, :])[:, :, None] * wide
        window += (w // side_w)[None, None, :]
        pooled = (i < high)[:, None] & (w // side_w < wide)[None, :]
        pooled = live[:, None, None] & pooled[None, :, :]
        flow = _load(to_pooled, window, pooled, dtype) * share
        down_gate = _line(gate_h, n, h, live, height, dtype)[:, :, None]
        part = _load(dx + start, place, inside, dtype)
        part += flow * (down_gate * across_gate[:, None, :])
        part = part.to(dx.dtype.element_ty)
        tl.store(dx + start + place, part, mask=inside)
        flow *= _load(x + start, place, inside, dtype)
        line = tl.sum(flow * across_gate[:, None, :], 2)
        _store_line(rows, column * count + n, h, live, height, line)
        total += flow * down_gate
        step += 1
    line = tl.sum(total, 1)
    _store_line(columns, row * count + n, w, live, width, line)


@triton.jit(do_not_specialize=SIZES)
def _gate(
    x,
    gate_h,
    gate_w,
    gate_c,
    out,
    count,
    channels,
    height,
    width,
    run,
    group: tl.constexpr,
    down: tl.constexpr,
    across: tl.constexpr,
    last: tl.constexpr,
    aligned: tl.constexpr,
    index: tl.constexpr,
    dtype: tl.constexpr,
):
    """Multiply by all gates."""
    channels, width = _round_sizes(channels, width, last, aligned)
    start, c, n, w, row, column = _part(
        channels, height, width, run, group, down, across, last
    )
    live = c < channels
    factor = _line(gate_w, n, w, live, width, dtype)
    factor *= _load(gate_c, n, live, dtype)[:, None]
    step = row * run
    stop = tl.minimum(step + run, tl.cdiv(height, down))
    while step < stop:
        h = step * down + tl.arange(0, down)
        place = _spread(h, w, channels, height, width, group, last, index)
        inside = _inside(c, h, w, channels, height, width)
        part = _line(gate_h, n, h, live, height, dtype)
        part = part[:, :, None] * factor[:, None, :]
        part *= _load(x + start, place, inside, dtype)
        part = part.to(out.dtype.element_ty)
        tl.store(out + start + place, part, mask=inside)
        step += 1


@triton.jit(do_not_specialize=SIZES)
def _differentiate_gate(
    grad,
    x,
    gate_h,
    gate_w,
    gate_c,
    dx,
    rows,
    columns,
    both,
    count,
    channels,
    height,
    width,
    run,
    group: tl.constexpr,
    down: tl.constexpr,
    across: tl.constexpr,
    last: tl.constexpr,
    aligned: tl.constexpr,
    index: tl.constexpr,
    dtype: tl.constexpr,
):
    """Differentiate :func:`_gate`.

    The sums for the first two gates are before multiplying by the third.
    """
    channels, width = _round_sizes(channels, width, last, aligned)
    start, c, n, w, row, column = _part(
        channels, height, width, run, group, down, across, last
    )
    live = c < channels
    across_gate = _line(gate_w, n, w, live, width, dtype)
    factor = across_gate * _load(gate_c, n, live, dtype)[:, None]
    total = tl.zeros([group, down, across], dtype)
    sums = tl.zeros([group, down], dtype)
    step = row * run
    stop = tl.minimum(step + run, tl.cdiv(height, down))
    while step < stop:
        h = step * down + tl.arange(0, down)
        place = _spread(h, w, channels, height, width, group, last, index)
        inside = _inside(c, h, w, channels, height, width)
        down_gate = _line(gate_h, n, h, live, height, dtype)
        flow = _load(grad + start, place, inside, dtype)
        part = _load(x + start, place, inside, dtype)
        back = flow * (down_gate[:, :, None] * factor[:, None, :])
        back = back.to(dx.dtype.element_ty)
        tl.store(dx + start + place, back, mask=inside)
        flow *= part
        line = tl.sum(flow * across_gate[:, None, :], 2)
        _store_line(rows, column * count + n, h, live, height, line)
        sums += line * down_gate
        total += flow * down_gate[:, :, None]
        step += 1
    line = tl.sum(total, 1)
    _store_line(columns, row * count + n, w, live, width, line)
    both += (row * tl.cdiv(width, across) + column) * count
    tl.store(both + n, tl.sum(sums, 1), mask=live)


@triton.jit(do_not_specialize=['count', 'size', 'length'])
def _collapse(
    parts,
    factor,
    out,
    count,
    size,
    length,
    scaled: tl.constexpr,
    block: tl.constexpr,
):
    """Add the parts of sums, and multiply them by one factor a sequence."""
    i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    total = tl.zeros([block], parts.dtype.element_ty)
    part = 0
    while part < count:
        total += tl.load(parts + i, mask=i < size, other=0)
        parts += size
        part += 1
    if scaled:
        scale = tl.load(factor + i // length, mask=i < size, other=0)
        total *= scale.to(total.dtype)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=i < size)
