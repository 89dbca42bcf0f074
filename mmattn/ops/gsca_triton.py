# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""GSCA on a GPU: both of its passes as kernels in Triton.

The forward pass reads the map twice and writes it once, the backward pass
reads map and gradient twice and writes once; docs/performance.md derives the
gradient. A program holds all channels of a head at some pixels, so that what
belongs to a pixel is known before the next step. Sums over pixels are kept
for each run of pixels and added afterwards, in an order that depends on
nothing but the shape: equal maps give equal results.

A map is contiguous or ``channels_last``. Half precision is computed in
float32. Sizes that change with the image are no constants of the kernels,
which are therefore compiled once a layer, and once more for numbers of pixels
that 8 does not divide.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import gsca
from .gsca import precision_of

TINY = tl.constexpr(gsca.TINY)
# Programs that keep any GPU of today busy. A constant, so that the order of
# the sums is the same on all of them.
PROGRAMS = 2048
# Elements of the tile of a program, and the most channels that it may hold at
# once.
TILE = 4096
CHUNK = 512


def forward(
    x: Tensor, num_heads: int, alpha: float, reverse: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weight a map; see :func:`mmattn.ops.gsca.gsca`.

    Args:
        x: ``(B, C, H, W)``, contiguous or ``channels_last``.
        num_heads: See there, as the others.
        alpha: As above.
        reverse: As above.
        eps: As above.

    Returns:
        The weighted map, with the dtype and the strides of ``x``; for every
        pixel the correlation, the mean and what gives the centred values
        variance 1, each ``(B, heads, 1, P)``; the key, ``(B, heads, D, 1)``,
        and what its centred values were multiplied by, ``(B, heads, 1, 1)``.
        All but the map are float32, or float64 for such a map.
    """
    last = is_channels_last(x)
    batch, width = x.shape[0], x.shape[1] // num_heads
    pixels = x.shape[2] * x.shape[3]

    def new(*shape):
        return x.new_empty((batch, num_heads, *shape), dtype=precision_of(x))

    out = torch.empty_like(x)
    values = rho, mean, scale = [new(1, pixels) for _ in range(3)]
    key, key_scale = keys = new(width, 1), new(1, 1)
    sizes = num_heads, pixels
    grid, tile = tiles(x, num_heads, last)
    tile = dict(tile, alpha=alpha, reverse=reverse, eps=eps)
    each, vector = vectors(key, eps)
    with torch.cuda.device_of(x):
        sums = sum_channels(x, last)
        _standardize_key[each](sums, *keys, key.numel(), pixels, **vector)
        _weigh[grid](x, key, out, *values, *sizes, **tile)
    return out, rho, mean, scale, key, key_scale


def backward(
    grad: Tensor,
    x: Tensor,
    rho: Tensor,
    mean: Tensor,
    scale: Tensor,
    key: Tensor,
    key_scale: Tensor,
    alpha: float,
    reverse: bool,
    eps: float,
) -> Tensor:
    """Return the gradient of the map from that of the result.

    Args:
        grad: ``(B, C, H, W)``, of any strides.
        x: What :func:`forward` was given.
        rho: What it returned, as the next four.
        mean: As above.
        scale: As above.
        key: As above.
        key_scale: As above.
        alpha: What it was given, as the others.
        reverse: As above.
        eps: As above.

    Returns:
        ``(B, C, H, W)``, with the dtype and the strides of ``x``.
    """
    last = is_channels_last(x)
    grad = lay_out(grad, last)
    batch, heads, width = key.shape[:3]
    sizes = heads, pixels = heads, rho.shape[3]
    out = torch.empty_like(x)
    values = rho, mean, scale, torch.empty_like(rho)
    grid, tile = tiles(x, heads, last)
    tile = dict(tile, alpha=alpha, reverse=reverse)
    # What needs no sum over channels need not hold them all.
    part = dict(tile, eps=eps, chunk=min(tile['chunk'], TILE // tile['block']))
    each, vector = vectors(key, eps)
    count = triton.cdiv(pixels, tile['block'])
    to_key = key.new_empty((batch * heads, count, width))
    keys = key, torch.empty_like(key), torch.empty_like(key_scale)
    with torch.cuda.device_of(x):
        _reach[grid](grad, x, *values, to_key, *sizes, **tile)
        to_key = to_key.sum(1)
        _differentiate_key[each](to_key, key_scale, *keys, pixels, **vector)
        _differentiate_map[grid](grad, x, *values, *keys, out, *sizes, **part)
    return out


# ------------------------------------------------------------------ layouts


def is_channels_last(x: Tensor) -> bool:
    """Return whether a map is ``channels_last`` rather than contiguous.

    Raises:
        ValueError: It is neither.
    """
    if x.is_contiguous():
        return False
    if x.is_contiguous(memory_format=torch.channels_last):
        return True
    raise ValueError(
        f'a map of shape {tuple(x.shape)} and strides {x.stride()} must be '
        'contiguous or channels_last'
    )


def lay_out(x: Tensor, channels_last: bool) -> Tensor:
    """Return a map with the layout of another."""
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    return x.contiguous(memory_format=wanted)


def type_of(x: Tensor) -> tl.dtype:
    """Return what the kernels compute a map in."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def tiles(
    x: Tensor, num_heads: int, last: bool
) -> tuple[tuple[int], dict[str, object]]:
    """Cut a map into tiles of all channels of a head.

    Returns:
        The grid, and the constants of the kernels that hold such tiles. The
        sizes of a tile do not depend on those of the image.
    """
    width, pixels = x.shape[1] // num_heads, x.shape[2] * x.shape[3]
    chunk = triton.next_power_of_2(width)
    chunk = chunk if chunk <= CHUNK else CHUNK // 2
    elements = TILE // 2 if x.dtype == torch.float64 else TILE
    # Pixels that lie together fill at least 64 bytes.
    least = 16 if last else 64 // x.element_size()
    block = min(max(elements // chunk, least), 256)
    constants = {
        'width': width,
        'chunk': chunk,
        'block': block,
        'last': last,
        'aligned': pixels % 8 == 0,
        'index': tl.int64 if width * pixels >= 2**31 else tl.int32,
        'dtype': type_of(x),
        'num_warps': min(max(chunk * block // 512, 4), 16),
    }
    return (x.shape[0] * num_heads * triton.cdiv(pixels, block),), constants


def vectors(key: Tensor, eps: float) -> tuple[tuple[int], dict[str, object]]:
    """Return grid and constants of the kernels that hold one key each."""
    batch, heads, width = key.shape[:3]
    block = triton.next_power_of_2(width)
    return (batch * heads,), {'eps': eps, 'width': width, 'block': block}


@triton.jit
def _start(
    head, first, heads, pixels, width: tl.constexpr, last: tl.constexpr
):
    """Return where a head has its pixel ``first``."""
    if last:
        image = (head // heads).to(tl.int64)
        start = (image * pixels + first) * (heads * width)
        start += (head % heads) * width
    else:
        start = head.to(tl.int64) * pixels * width + first
    return start


@triton.jit
def _spread(
    d,
    heads,
    pixels,
    width: tl.constexpr,
    block: tl.constexpr,
    last: tl.constexpr,
    index: tl.constexpr,
):
    """Return where channels d of a tile are from its start, ``[d, p]``."""
    p = tl.arange(0, block)
    if last:
        place = p[None, :] * (heads * width) + d[:, None]
    else:
        place = d[:, None].to(index) * pixels + p[None, :]
    return place


@triton.jit
def _load(pointer, place, live, dtype: tl.constexpr):
    """Load what is live, zero elsewhere."""
    return tl.load(pointer + place, mask=live, other=0).to(dtype)


@triton.jit
def _round(pixels, aligned: tl.constexpr):
    """Let the compiler know what divides a size, for wide accesses."""
    if aligned:
        pixels = pixels // 8 * 8
    return pixels


# -------------------------------------------------------------- key, forward


def sum_channels(x: Tensor, last: bool) -> Tensor:
    """Sum the values and the squares of every channel, ``(2, B * C)``."""
    batch, channels = x.shape[:2]
    pixels = x.shape[2] * x.shape[3]
    count = batch * channels
    # The planes of a contiguous map follow each other through the batch.
    images, channels = (batch, channels) if last else (1, count)
    across, down = (64, 32) if last else (16, 128)
    blocks = images * triton.cdiv(channels, across)
    steps = triton.cdiv(pixels, down)
    # At least 8 steps a program, so that the sums are few.
    splits = triton.cdiv(PROGRAMS, max(blocks, 1))
    splits = min(splits, triton.cdiv(steps, 8))
    run = triton.cdiv(steps, splits)
    splits = triton.cdiv(steps, run)
    sums = x.new_empty((2, splits, count), dtype=precision_of(x))
    _sum_channels[(blocks * splits,)](
        x,
        sums,
        count,
        channels,
        pixels,
        run,
        across=across,
        down=down,
        last=last,
        aligned=(channels if last else pixels) % 8 == 0,
        dtype=type_of(x),
    )
    return sums.sum(1)


@triton.jit(do_not_specialize=['count', 'channels', 'pixels', 'run'])
def _sum_channels(
    x,
    sums,
    count,
    channels,
    pixels,
    run,
    across: tl.constexpr,
    down: tl.constexpr,
    last: tl.constexpr,
    aligned: tl.constexpr,
    dtype: tl.constexpr,
):
    """Sum channels and their squares over ``run`` tiles of pixels."""
    if last:
        channels = _round(channels, aligned)
    else:
        pixels = _round(pixels, aligned)
    steps = tl.cdiv(pixels, down)
    splits = tl.cdiv(steps, run)
    split = tl.program_id(0) % splits
    block = tl.program_id(0) // splits
    blocks = tl.cdiv(channels, across)
    c = block % blocks * across + tl.arange(0, across)
    image = block // blocks
    total = tl.zeros([across, down], dtype)
    square = tl.zeros([across, down], dtype)
    step = split * run
    stop = tl.minimum(step + run, steps)
    # No range, since Triton's interpreter takes none of values like these with
    # numpy 2.4.
    while step < stop:
        p = step * down + tl.arange(0, down)
        if last:
            place = p[None, :].to(tl.int64) * channels + c[:, None]
            place += image.to(tl.int64) * pixels * channels
        else:
            place = c[:, None].to(tl.int64) * pixels + p[None, :]
        live = (c < channels)[:, None] & (p < pixels)[None, :]
        part = _load(x, place, live, dtype)
        total += part
        square += part * part
        step += 1
    n = image * channels + c
    sums += split * count
    tl.store(sums + n, tl.sum(total, 1), mask=c < channels)
    sums += splits * count
    tl.store(sums + n, tl.sum(square, 1), mask=c < channels)


@triton.jit(do_not_specialize=['count', 'pixels'])
def _standardize_key(
    sums,
    key,
    key_scale,
    count,
    pixels,
    eps: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
):
    """Standardize the average pixel of a head, from ``(2, B * C)``."""
    head = tl.program_id(0)
    d = tl.arange(0, block)
    live = d < width
    sums += head * width
    average = tl.load(sums + d, mask=live, other=0) / pixels
    square = tl.sum(tl.load(sums + count + d, mask=live, other=0), 0)
    centred = tl.where(live, average - tl.sum(average, 0) / width, 0)
    # Twice: of a constant map, the first leaves rounding errors, which the
    # backward pass multiplies by up to 1 / eps. There, too.
    centred = tl.where(live, centred - tl.sum(centred, 0) / width, 0)
    variance = tl.sum(centred * centred, 0) / width
    # One division after the other: the product may exceed 32 bits.
    scale = tl.rsqrt(variance + (eps * (square / width / pixels) + TINY))
    tl.store(key + head * width + d, centred * scale, mask=live)
    tl.store(key_scale + head, scale)


# ------------------------------------------------------------- map, forward


@triton.jit
def _log_gate(rho, reverse: tl.constexpr):
    """Return the logarithm of the sigmoid of plus or minus ``rho``."""
    score = -rho if reverse else rho
    return tl.minimum(score, 0) - tl.log(1 + tl.exp(-tl.abs(score)))


@triton.jit(do_not_specialize=['pixels'])
def _weigh(
    x,
    key,
    out,
    rho,
    mean,
    scale,
    heads,
    pixels,
    alpha: tl.constexpr,
    reverse: tl.constexpr,
    eps: tl.constexpr,
    width: tl.constexpr,
    chunk: tl.constexpr,
    block: tl.constexpr,
    last: tl.constexpr,
    aligned: tl.constexpr,
    index: tl.constexpr,
    dtype: tl.constexpr,
):
    """Compare the pixels of a tile with the key, and weight them."""
    pixels = _round(pixels, aligned)
    count = tl.cdiv(pixels, block)
    head = tl.program_id(0) // count
    first = tl.program_id(0) % count * block
    p = first + tl.arange(0, block)
    start = _start(head, first, heads, pixels, width, last)
    key += head * width

    # With one chunk, the loops vanish and the loads become one. With more,
    # the caches hold the tile.
    m = tl.zeros([block], dtype)
    for begin in range(0, width, chunk):
        d = begin + tl.arange(0, chunk)
        live = (d < width)[:, None] & (p < pixels)[None, :]
        place = _spread(d, heads, pixels, width, block, last, index)
        m += tl.sum(_load(x + start, place, live, dtype), 0)
    m = m / width
    variance = tl.zeros([block], dtype)
    score = tl.zeros([block], dtype)
    for begin in range(0, width, chunk):
        d = begin + tl.arange(0, chunk)
        live = (d < width)[:, None] & (p < pixels)[None, :]
        place = _spread(d, heads, pixels, width, block, last, index)
        centred = _load(x + start, place, live, dtype) - m[None, :]
        centred = tl.where((d < width)[:, None], centred, 0)
        variance += tl.sum(centred * centred, 0)
        k = _load(key, d, d < width, dtype)
        score += tl.sum(centred * k[:, None], 0)
    s = tl.rsqrt(variance / width + (eps * (m * m) + TINY))
    score = score * s / width
    weight = tl.exp(alpha * _log_gate(score, reverse))
    for begin in range(0, width, chunk):
        d = begin + tl.arange(0, chunk)
        live = (d < width)[:, None] & (p < pixels)[None, :]
        place = _spread(d, heads, pixels, width, block, last, index)
        y = _load(x + start, place, live, dtype) * weight[None, :]
        tl.store(out + start + place, y.to(out.dtype.element_ty), mask=live)

    pixel = head.to(tl.int64) * pixels + p
    tl.store(rho + pixel, score, mask=p < pixels)
    tl.store(mean + pixel, m, mask=p < pixels)
    tl.store(scale + pixel, s, mask=p < pixels)


# ------------------------------------------------------------------ backward


@triton.jit(do_not_specialize=['pixels'])
def _reach(
    grad,
    x,
    rho,
    mean,
    scale,
    through,
    to_key,
    heads,
    pixels,
    alpha: tl.constexpr,
    reverse: tl.constexpr,
    width: tl.constexpr,
    chunk: tl.constexpr,
    block: tl.constexpr,
    last: tl.constexpr,
    aligned: tl.constexpr,
    index: tl.constexpr,
    dtype: tl.constexpr,
):
    """Find what reaches the correlations of a tile, and from there the key.

    Writes ``through``, ``(B, heads, 1, P)``, and for every tile what it adds
    to the gradient of the key, ``(B * heads, tiles, D)``.
    """
    pixels = _round(pixels, aligned)
    count = tl.cdiv(pixels, block)
    head = tl.program_id(0) // count
    first = tl.program_id(0) % count * block
    p = first + tl.arange(0, block)
    start = _start(head, first, heads, pixels, width, last)
    pixel = head.to(tl.int64) * pixels + p

    dot = tl.zeros([block], dtype)
    for begin in range(0, width, chunk):
        d = begin + tl.arange(0, chunk)
        live = (d < width)[:, None] & (p < pixels)[None, :]
        place = _spread(d, heads, pixels, width, block, last, index)
        part = _load(x + start, place, live, dtype)
        dot += tl.sum(part * _load(grad + start, place, live, dtype), 0)
    log_gate = _log_gate(_load(rho, pixel, p < pixels, dtype), reverse)
    slope = alpha * tl.exp(alpha * log_gate) * (1 - tl.exp(log_gate))
    slope = -slope if reverse else slope
    reached = dot / width * slope * _load(scale, pixel, p < pixels, dtype)
    m = _load(mean, pixel, p < pixels, dtype)
    to_key += tl.program_id(0).to(tl.int64) * width
    for begin in range(0, width, chunk):
        d = begin + tl.arange(0, chunk)
        live = (d < width)[:, None] & (p < pixels)[None, :]
        place = _spread(d, heads, pixels, width, block, last, index)
        centred = _load(x + start, place, live, dtype) - m[None, :]
        total = tl.sum(centred * reached[None, :], 1)
        tl.store(to_key + d, total, mask=d < width)
    # Last, since the compiler would load the map again after it.
    tl.store(through + pixel, reached, mask=p < pixels)


@triton.jit(do_not_specialize=['pixels'])
def _differentiate_key(
    to_key,
    key_scale,
    key,
    to_map,
    factor,
    pixels,
    eps: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
):
    """Turn the gradient of a key into that of the map it averages.

    Writes what every pixel gets, ``(B, heads, D, 1)``, and what multiplies
    the map, ``(B, heads, 1, 1)``.
    """
    head = tl.program_id(0)
    d = tl.arange(0, block)
    live = d < width
    place = head * width + d
    flow = tl.load(to_key + place, mask=live, other=0)
    flow = tl.where(live, flow - tl.sum(flow, 0) / width, 0)
    k = tl.load(key + place, mask=live, other=0)
    s = tl.load(key_scale + head)
    along = tl.sum(flow * k, 0) / width
    tl.store(to_map + place, s * (flow - along * k) / pixels, mask=live)
    tl.store(factor + head, -eps * (s * s * along / pixels))


@triton.jit(do_not_specialize=['pixels'])
def _differentiate_map(
    grad,
    x,
    rho,
    mean,
    scale,
    through,
    key,
    to_map,
    factor,
    out,
    heads,
    pixels,
    alpha: tl.constexpr,
    reverse: tl.constexpr,
    eps: tl.constexpr,
    width: tl.constexpr,
    chunk: tl.constexpr,
    block: tl.constexpr,
    last: tl.constexpr,
    aligned: tl.constexpr,
    index: tl.constexpr,
    dtype: tl.constexpr,
):
    """Gather the gradient of a tile, directly and through the key."""
    pixels = _round(pixels, aligned)
    count = tl.cdiv(pixels, block)
    head = tl.program_id(0) // count
    first = tl.program_id(0) % count * block
    p = first + tl.arange(0, block)
    start = _start(head, first, heads, pixels, width, last)
    pixel = head.to(tl.int64) * pixels + p

    r = _load(rho, pixel, p < pixels, dtype)
    m = _load(mean, pixel, p < pixels, dtype)
    weight = tl.exp(alpha * _log_gate(r, reverse))
    reached = _load(through, pixel, p < pixels, dtype)
    pull = reached * r * _load(scale, pixel, p < pixels, dtype)
    along = tl.load(factor + head)
    for begin in range(0, width, chunk):
        d = begin + tl.arange(0, chunk)
        live = (d < width)[:, None] & (p < pixels)[None, :]
        place = _spread(d, heads, pixels, width, block, last, index)
        part = _load(x + start, place, live, dtype)
        k = _load(key + head * width, d, d < width, dtype)
        shared = _load(to_map + head * width, d, d < width, dtype)
        # Centred before it is multiplied: the mean may be far larger.
        total = (part - m[None, :] + (eps * m)[None, :]) * -pull[None, :]
        total += k[:, None] * reached[None, :]
        total += part * along + shared[:, None]
        total += _load(grad + start, place, live, dtype) * weight[None, :]
        total = total.to(out.dtype.element_ty)
        tl.store(out + start + place, total, mask=live)
