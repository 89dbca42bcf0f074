# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""GSCA as a function: as the paper has it, and fast.

:func:`reference` reads like the paper; the other path is tested against it.
:func:`fused` reads the map twice (the key has to be known before the first
weight) and writes it once, and keeps for the backward pass the map itself and
three values a pixel and head. docs/performance.md derives the gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmattn.compat.library import custom_op

from .dispatch import choose, dense, kernels, precision_of

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
    if choose(x, refusal) == 'reference':
        return reference(x, num_heads, alpha, reverse, similarity, eps)
    return fused(x, num_heads, alpha, reverse, eps)


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


# ------------------------------------------------------------------- fused


def fused(
    x: Tensor, num_heads: int, alpha: float, reverse: bool, eps: float
) -> Tensor:
    """Weight a map in two readings and one writing; see :func:`gsca`."""
    return _gsca(dense(x), num_heads, alpha, reverse, eps)[0]


@custom_op('mmattn::gsca')
def _gsca(
    x: Tensor, num_heads: int, alpha: float, reverse: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weight a map; return it and what the backward pass needs."""
    return kernels(x, 'gsca').forward(x, num_heads, alpha, reverse, eps)


@_gsca.register_fake
def _(x, num_heads, alpha, reverse, eps):
    batch, channels, height, width = x.shape
    dtype = precision_of(x)

    def new(*shape):
        return x.new_empty((batch, num_heads, *shape), dtype=dtype)

    each, pixels = channels // num_heads, height * width
    maps = [new(1, pixels) for _ in range(3)]
    return torch.empty_like(x), *maps, new(each, 1), new(1, 1)


@custom_op('mmattn::gsca_backward')
def _gsca_backward(
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
    statistics = rho, mean, scale, key, key_scale
    step = kernels(x, 'gsca').backward
    return step(grad, x, *statistics, alpha, reverse, eps)


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
    grad, x, _, _, _, key, _, ctx.alpha, ctx.reverse, ctx.eps = inputs
    ctx.num_heads = key.shape[1]
    ctx.save_for_backward(grad, x)


def _differentiate_twice(ctx, outer):
    """Differentiate the gradient, which is rare, by the reference."""
    with torch.enable_grad():
        grad, x = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        y = reference(x, ctx.num_heads, ctx.alpha, ctx.reverse, eps=ctx.eps)
        (dx,) = torch.autograd.grad(y, x, grad, create_graph=True)
    found = torch.autograd.grad(dx, (grad, x), outer)
    return *found, *(None,) * 8


_gsca.register_autograd(_differentiate, setup_context=_keep)
_gsca_backward.register_autograd(
    _differentiate_twice, setup_context=_keep_twice
)
