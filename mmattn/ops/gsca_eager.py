# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""GSCA on a CPU: all steps with one piece of the map before the next.

A map is far larger than a cache, so that most of the time goes into reading
and writing it and the maps in between, and into asking for the memory of
those. A piece stays in the cache meanwhile, and what is made of it goes into
memory that is there: the forward pass reads the map twice (the key has to be
known before the first weight) and writes it once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .dispatch import precision_of
from .gsca import TINY

# Elements of a piece: small enough for the cache that cores share, so large
# that calling torch is cheap beside it.
TILE = 2**21
# A pixel whose squared mean is so many times its variance is centred before
# it is squared and compared: the differences would lose digits.
UNEVEN = 8


def gate(rho: Tensor, reverse: bool) -> Tensor:
    """Turn correlations into weights of exponent 1 (eqs. 4, 6).

    They lie in [-1, 1], where no sigmoid underflows, unlike :func:`weigh`'s.
    """
    return torch.sigmoid(-rho if reverse else rho)


def split(x: Tensor, num_heads: int) -> Tensor:
    """View ``(B, C, H, W)`` as heads and pixels, ``(B, heads, D, P)``."""
    return x.unflatten(1, (num_heads, -1)).flatten(3)


def pieces(x: Tensor) -> Iterator[tuple[slice, ...]]:
    """Cut a map into indices of about ``TILE`` elements that lie together.

    Args:
        x: ``(B, heads, D, P)``; no piece parts the channels D of a head.
    """
    batch, heads, width, pixels = x.shape
    if x.numel() <= TILE:
        yield ()  # the whole; every needless slice costs a microsecond
        return

    def fit(limit: int, size: int) -> int:
        return max(1, min(limit, TILE // size))

    channels_last = x.stride(2) == 1
    h = heads if channels_last else 1
    p = fit(pixels, h * width)
    if p == pixels:
        h = heads if channels_last else fit(heads, width * pixels)
    b = fit(batch, h * width * pixels) if (h, p) == (heads, pixels) else 1
    for i in range(0, batch, b):
        for j in range(0, heads, h):
            for k in range(0, pixels, p):
                yield (
                    slice(i, i + b),
                    slice(j, j + h),
                    slice(None),
                    slice(k, k + p),
                )


def fitted(scratch: Tensor, part: Tensor) -> Tensor:
    """Return memory for what is made of a piece: the given where it fits."""
    if scratch.shape != part.shape or scratch.dtype != part.dtype:
        scratch = torch.empty_like(part)
    return scratch


def mean_squares(x: Tensor, scratch: Tensor, out: Tensor) -> None:
    """Average the squares along axis 2, which no single call does fast.

    The squares of a quarter of the channels are added to those of the first,
    so that the cache holds what is written. torch.var and torch.norm take 30
    times as long along this axis.
    """
    width = x.shape[2]
    first, *others = x.split(-(-width // 4), 2)
    total = torch.mul(first, first, out=fitted(scratch, first))
    for other in others:
        total[:, :, : other.shape[2]].addcmul_(other, other)
    average = total.new_full((1, total.shape[2]), 1 / width)
    torch.matmul(average, total, out=out)


def statistics(
    x: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
    """Describe every pixel, and the average pixel, of each head.

    Args:
        x: ``(B, heads, D, P)``.
        eps: See :func:`gsca`.

    Returns:
        Each pixel's mean and what makes its centred values of variance 1,
        ``(B, heads, 1, P)``; the key, standardized, ``(B, heads, D, 1)``, and
        what its centred values were multiplied by, ``(B, heads, 1, 1)``; and
        whether some pixel has to be centred before it is compared.
    """
    batch, heads, width, pixels = x.shape
    dtype = precision_of(x)
    mean = x.new_empty((batch, heads, 1, pixels), dtype=dtype)
    variance = torch.empty_like(mean)
    key = x.new_zeros((batch, heads, width, 1), dtype=dtype)
    average = key.new_full((1, width), 1 / width)
    scratch = average
    for piece in pieces(x):
        part = x[piece].to(dtype)
        key[piece[:3]] += part.sum(3, keepdim=True)
        torch.matmul(average, part, out=mean[piece])
        scratch = fitted(scratch, part[:, :, : -(-width // 4)])
        mean_squares(part, scratch, variance[piece])
    square = mean.square()
    floor = eps * variance.mean(3, keepdim=True) + TINY
    variance -= square
    uneven = bool((square > UNEVEN * variance).any())
    if uneven:
        _centred_variance(x, mean, variance)
    scale = variance.add_(square, alpha=eps).add_(TINY).rsqrt_()
    key /= pixels
    key -= key.mean(2, keepdim=True)
    # Once more: of a constant map only what rounding left of the mean is
    # left of the key, and the scale is as large as its inverse.
    key -= key.mean(2, keepdim=True)
    key_scale = (key.square().mean(2, keepdim=True) + floor).rsqrt()
    return mean, scale, key * key_scale, key_scale, uneven


def _centred_variance(x: Tensor, mean: Tensor, out: Tensor) -> None:
    """Compute the variances along axis 2 without a difference of squares."""
    for piece in pieces(x):
        centred = x[piece].to(mean.dtype) - mean[piece]
        mean_squares(centred, centred.new_empty(0), out[piece])


def forward(
    x: Tensor, num_heads: int, alpha: float, reverse: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weight a map, contiguous or ``channels_last``; see ``gsca``.

    Returns:
        The weighted map, the correlations, ``(B, heads, 1, P)``, and
        :func:`statistics`.
    """
    out = torch.empty_like(x)
    x, y = split(x, num_heads), split(out, num_heads)
    mean, scale, key, key_scale, uneven = statistics(x, eps)
    rho = torch.empty_like(mean)
    row = key.mT / x.shape[2]
    for piece in pieces(x):
        part = x[piece].to(key.dtype)
        result = fitted(y[piece], part)
        centred = torch.sub(part, mean[piece], out=result) if uneven else part
        # The key has mean 0, but for rounding.
        score = torch.matmul(row[piece[:2]], centred, out=rho[piece])
        if not uneven:
            score.addcmul_(mean[piece], row[piece[:2]].sum(3, True), value=-1)
        weight = gate(score.mul_(scale[piece]), reverse).pow_(alpha)
        torch.mul(part, weight, out=result)
        if y.dtype != key.dtype:
            y[piece] = result
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
    """Return the gradient of the map from that of the result."""
    heads, dtype = key.shape[1], key.dtype
    out = torch.empty_like(x)
    x, grad, dx = (split(t, heads) for t in (x, grad, out))
    width, pixels = x.shape[2:]
    opened = gate(rho, reverse)
    weight = opened.pow(alpha)
    slope = (-alpha if reverse else alpha) * weight * (1 - opened)

    # What reaches the correlations, and through them the key.
    through = slope.mul_(scale)
    to_key = torch.zeros_like(key)
    average = key.new_full((1, width), 1 / width)
    product = dx
    for piece in pieces(x):
        part, flow = x[piece].to(dtype), grad[piece].to(dtype)
        product = fitted(product, part)
        torch.mul(part, flow, out=product)
        reached = through[piece].mul_(average @ product)
        centred = torch.sub(part, mean[piece], out=product)
        to_key[piece[:3]] += centred @ reached.mT
    to_key -= to_key.mean(2, keepdim=True)
    along = (to_key * key).sum(2, keepdim=True)
    to_map = key_scale * (to_key - along * key / width) / pixels
    factor = -key_scale.square() * along * (eps / (width * pixels))

    pull = through * rho * scale
    shift = pull * mean * (1 - eps)
    pull = factor - pull
    for piece in pieces(x):
        part, flow = x[piece].to(dtype), grad[piece].to(dtype)
        total = fitted(dx[piece], part)
        by_key = to_map[piece[:3]], key[piece[:3]], through[piece]
        torch.addcmul(*by_key, out=total).add_(shift[piece])
        total.addcmul_(part, pull[piece]).addcmul_(flow, weight[piece])
        if dx.dtype != dtype:
            dx[piece] = total
    return out
