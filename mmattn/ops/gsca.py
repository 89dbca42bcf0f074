# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""GSCA as a function: as the paper has it, and as a CPU does it fast.

:func:`reference` reads like the paper; the other path is tested against it. A
map is far larger than a cache, so that most of the time goes into reading and
writing it and the maps in between. :func:`tiled` takes all steps with one
piece of the map while it is in the cache: it reads the map twice (the key has
to be known before the first weight) and writes it once, and keeps for the
backward pass the map itself and one value a pixel and head.
docs/performance.md derives the gradient.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mmattn.compat.library import custom_op

from .dispatch import choose

# Elements of a piece: small enough for the cache that cores share, so large
# that calling torch is cheap beside it.
TILE = 2**18
# Elements of a map up to which the caches hold what inference makes of it, so
# that there is nothing to be saved.
SMALL = 5 * 2**19
# Only keeps an all-zero map from dividing by zero.
TINY = 1e-20


def gsca(
    x: Tensor,
    num_heads: int,
    alpha: float = 2.0,
    reverse: bool = True,
    similarity: str = 'correlation',
    eps: float = 1e-8,
) -> Tensor:
    """Weight every pixel of every head of channels by GSCA.

    Args:
        x: A map, ``(B, C, H, W)``.
        num_heads: Number of heads of contiguous channels; divides C.
        alpha: Exponent of the weights.
        reverse: Whether what resembles the average is damped.
        similarity: ``'correlation'`` or ``'dot'``.
        eps: Relative variance around which a vector counts as constant.

    Returns:
        The weighted map, of the shape and dtype of ``x``. Half precision is
        computed in float32.

    Raises:
        RuntimeError: ``MMATTN_OPS`` names a path that cannot be taken.

    See :class:`mmattn.attention.GSCA` for the formula and its source.
    """
    refusal = ''
    if similarity != 'correlation':
        refusal = f'it has no similarity={similarity!r}'
    trains = torch.is_grad_enabled() and x.requires_grad
    if choose(x, refusal, trains or x.numel() > SMALL) == 'eager':
        return tiled(x, num_heads, alpha, reverse, eps)
    return reference(x, num_heads, alpha, reverse, similarity, eps)


# --------------------------------------------------------------- reference


def reference(
    x: Tensor,
    num_heads: int,
    alpha: float = 2.0,
    reverse: bool = True,
    similarity: str = 'correlation',
    eps: float = 1e-8,
) -> Tensor:
    """Weight a map as the paper writes it; see :func:`gsca`."""
    # Sums of squares of half-precision activations overflow.
    heads = x.to(precision_of(x)).unflatten(1, (num_heads, -1))
    score = similarity_map(heads, similarity, eps)
    return (heads * weigh(score, alpha, reverse)).flatten(1, 2).to(x.dtype)


def precision_of(x: Tensor) -> torch.dtype:
    """Return what a map is computed in: float32 for half precision."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half else x.dtype


def similarity_map(x: Tensor, similarity: str, eps: float) -> Tensor:
    """Compare every pixel with the average pixel of its image (eqs. 1, 3).

    Args:
        x: Heads of a feature map, ``(B, heads, C / heads, H, W)``.
        similarity: ``'correlation'`` or ``'dot'``.
        eps: See :func:`gsca`.

    Returns:
        One value a pixel and head, ``(B, heads, 1, H, W)``.
    """
    key = x.mean((3, 4), keepdim=True)
    if similarity == 'dot':
        return (x * key).sum(2, keepdim=True)

    # The floors are relative, so that scaling the map changes nothing: to the
    # pixel's mean, and for the key to the whole map, since the average of a
    # centred map vanishes.
    pixels = standardize(x, eps * x.mean(2, keepdim=True).square())
    key = standardize(key, eps * x.square().mean((2, 3, 4), keepdim=True))
    return (pixels * key).mean(2, keepdim=True)


def standardize(x: Tensor, floor: Tensor) -> Tensor:
    """Give every vector along axis 2 mean 0 and variance 1.

    Args:
        x: Vectors, ``(B, heads, C / heads, H, W)``.
        floor: What is added to their variance, broadcastable to ``x``.
    """
    centred = x - x.mean(2, keepdim=True)
    variance = centred.square().mean(2, keepdim=True)
    return centred * (variance + floor + TINY).rsqrt()


def weigh(score: Tensor, alpha: float, reverse: bool) -> Tensor:
    """Turn scores into weights of the same shape (eqs. 6-8)."""
    # 1 - sigmoid(s) is sigmoid(-s); the logarithm keeps the gradient of any
    # exponent finite where the sigmoid underflows.
    score = -score if reverse else score
    return torch.exp(alpha * F.logsigmoid(score))


# ------------------------------------------------------------------- tiled


def tiled(
    x: Tensor, num_heads: int, alpha: float, reverse: bool, eps: float
) -> Tensor:
    """Weight a map piece by piece; see :func:`gsca`."""
    dense = x.is_contiguous() or x.is_contiguous(
        memory_format=torch.channels_last
    )
    # The pieces are views, which no other layout allows.
    x = x if dense else x.contiguous()
    return _gsca(x, num_heads, alpha, reverse, eps)[0]


def split(x: Tensor, num_heads: int) -> Tensor:
    """View ``(B, C, H, W)`` as heads and pixels, ``(B, heads, D, P)``."""
    return x.unflatten(1, (num_heads, -1)).flatten(3)


def pieces(x: Tensor) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Cut a map into indices of about ``TILE`` elements that lie together.

    Args:
        x: ``(B, heads, D, P)``; no piece parts the channels D of a head.
    """
    batch, heads, width, pixels = x.shape

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


def key_of(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Standardize the average pixel of each head.

    Args:
        x: ``(B, heads, D, P)``.
        eps: See :func:`gsca`.

    Returns:
        The key, ``(B, heads, D, 1)``, and what its centred values were
        multiplied by, ``(B, heads, 1, 1)``.
    """
    batch, heads, width, pixels = x.shape
    dtype = precision_of(x)
    key = x.new_zeros((batch, heads, width, 1), dtype=dtype)
    square = x.new_zeros((batch, heads, 1, 1), dtype=dtype)
    for piece in pieces(x):
        part = x[piece].to(dtype)
        key[piece[:3]] += part.sum(3, keepdim=True)
        square[piece[:3]] += norm(part).square()
    key /= pixels
    centred = key - key.mean(2, keepdim=True)
    floor = eps * square / (width * pixels) + TINY
    scale = (centred.square().mean(2, keepdim=True) + floor).rsqrt()
    return centred * scale, scale


def norm(x: Tensor) -> Tensor:
    """Return the root of all squares of a head, without a map of squares."""
    return torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)


def multiply(x: Tensor, factor: Tensor, out: Tensor) -> None:
    """Write a product, rounded to the precision of ``out``."""
    if x.dtype == out.dtype:
        torch.mul(x, factor, out=out)
    else:
        out.copy_(x.mul_(factor))


def mean_of(x: Tensor) -> Tensor:
    """Average along axis 2, as a product of matrices, which is twice as fast.

    torch's var and vector_norm take 30 times as long along this axis.
    """
    width = x.shape[2]
    return x.new_full((1, width), 1 / width) @ x


def centre(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Centre the vectors along axis 2.

    Returns:
        Their means, the centred vectors, and what makes these of variance 1.
    """
    mean = mean_of(x)
    centred = x - mean
    floor = mean.square().mul_(eps).add_(TINY)
    return mean, centred, (mean_of(centred.square()) + floor).rsqrt_()


@custom_op('mmattn::gsca')
def _gsca(
    x: Tensor, num_heads: int, alpha: float, reverse: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight a map; return it, correlations, key and scale of the key."""
    out = torch.empty_like(x)
    x, y = split(x, num_heads), split(out, num_heads)
    key, key_scale = key_of(x, eps)
    rho = key.new_empty((*x.shape[:2], 1, x.shape[3]))
    for piece in pieces(x):
        part = x[piece].to(key.dtype)
        _, centred, scale = centre(part, eps)
        score = key[piece[:3]].mT @ centred * scale / x.shape[2]
        rho[piece] = score
        multiply(part, weigh(score, alpha, reverse), y[piece])
    return out, rho, key, key_scale


@_gsca.register_fake
def _(x, num_heads, alpha, reverse, eps):
    batch, channels, height, width = x.shape
    dtype = precision_of(x)

    def new(*shape):
        return x.new_empty((batch, num_heads, *shape), dtype=dtype)

    each = channels // num_heads
    rho, key = new(1, height * width), new(each, 1)
    return torch.empty_like(x), rho, key, new(1, 1)


@custom_op('mmattn::gsca_backward')
def _gsca_backward(
    grad: Tensor,
    x: Tensor,
    rho: Tensor,
    key: Tensor,
    key_scale: Tensor,
    alpha: float,
    reverse: bool,
    eps: float,
) -> Tensor:
    """Return the gradient of the map from that of the result."""
    heads = key.shape[1]
    out = torch.empty_like(x)
    x, grad, dx = (split(t, heads) for t in (x, grad, out))
    width, pixels = x.shape[2:]
    log_gate = F.logsigmoid(-rho if reverse else rho)
    weight = (alpha * log_gate).exp()
    slope = (-alpha if reverse else alpha) * weight * (1 - log_gate.exp())

    # What reaches the correlations, and through them the key.
    means, scales, through = (torch.empty_like(rho) for _ in range(3))
    to_key = torch.zeros_like(key)
    for piece in pieces(x):
        part, flow = x[piece].to(key.dtype), grad[piece].to(key.dtype)
        mean, centred, scale = centre(part, eps)
        reached = mean_of(flow * part) * slope[piece] * scale
        to_key[piece[:3]] += centred @ reached.mT
        means[piece], scales[piece], through[piece] = mean, scale, reached
    along = (to_key * key).sum(2, keepdim=True)
    to_map = key_scale * (to_key - along * key / width) / pixels
    factor = -key_scale.square() * along * (eps / (width * pixels))

    pull = through * rho * scales
    shift = pull * (1 - eps) * means
    for piece in pieces(x):
        part, flow = x[piece].to(key.dtype), grad[piece].to(key.dtype)
        total = part * (factor[piece[:2]] - pull[piece])
        total += shift[piece] + to_map[piece[:2]]
        total.addcmul_(flow, weight[piece])
        total += key[piece[:3]] * through[piece]
        dx[piece].copy_(total)
    return out


@_gsca_backward.register_fake
def _(grad, x, *others):
    return torch.empty_like(x)


def _keep(ctx, inputs, output) -> None:
    x, _, ctx.alpha, ctx.reverse, ctx.eps = inputs
    ctx.save_for_backward(x, *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, *_):
    if grad is None:
        return (None,) * 5
    settings = ctx.alpha, ctx.reverse, ctx.eps
    return _gsca_backward(grad, *ctx.saved_tensors, *settings), *(None,) * 4


def _keep_twice(ctx, inputs, output) -> None:
    grad, x, _, key, _, ctx.alpha, ctx.reverse, ctx.eps = inputs
    ctx.num_heads = key.shape[1]
    ctx.save_for_backward(grad, x)


def _differentiate_twice(ctx, outer):
    """Differentiate the gradient, which is rare, by the reference."""
    with torch.enable_grad():
        grad, x = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        y = reference(x, ctx.num_heads, ctx.alpha, ctx.reverse, eps=ctx.eps)
        (dx,) = torch.autograd.grad(y, x, grad, create_graph=True)
    found = torch.autograd.grad(dx, (grad, x), outer)
    return *found, *(None,) * 6


_gsca.register_autograd(_differentiate, setup_context=_keep)
_gsca_backward.register_autograd(
    _differentiate_twice, setup_context=_keep_twice
)
