# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""GSCA: Global Spatial Correlation Attention, written from the paper.

The paper names no code; its only listing (figure 4) does not run as printed.
"""

from torch import Tensor

from mmattn.ops.dispatch import precision_of
from mmattn.ops.gsca import gsca, similarity_map, weigh
from mmattn.registry import MODELS

from .base import (
    Attention,
    check_choice,
    check_flag,
    check_number,
    check_positive,
)

SIMILARITIES = ('correlation', 'dot')


def default_num_heads(in_channels: int, channels_per_head: int) -> int:
    """Return the number of heads whose width is nearest ``channels_per_head``.

    The width is split into ``round(in_channels / channels_per_head)`` heads,
    at least one, so a width of 144 gets two heads of 72 channels.

    Args:
        in_channels: Width to split.
        channels_per_head: Wanted width of one head.

    Raises:
        ValueError: If the number found does not divide the width.
    """
    num_heads = max(1, round(in_channels / channels_per_head))
    if in_channels % num_heads:
        raise ValueError(
            f'channels_per_head={channels_per_head} splits in_channels='
            f'{in_channels} into {num_heads} heads, which does not divide '
            'it; give a num_heads that does'
        )
    return num_heads


@MODELS.register_module()
class GSCA(Attention):
    r"""Parameter-free spatial attention that damps what resembles the average.

    With :math:`k` the average of the map over its pixels and :math:`\rho` the
    Pearson correlation of a pixel's channels with :math:`k`,

    .. math::
        k = \frac{1}{HW} \sum_{ij} x_{ij}, \qquad
        y_{ij} = \left(1 - \sigma(\rho(x_{ij}, k))\right)^\alpha x_{ij}

    computed separately in heads of contiguous channels (eqs. 3-8). The
    weights lie in :math:`[0.27^\alpha, 0.73^\alpha]`: the module always
    attenuates, it is never near the identity.

    Input and output are ``(B, in_channels, H, W)`` of one dtype, any H, W >=
    1. Half precision is computed in float32.

    Differences from the paper: it has no epsilon (a pixel with equal channels
    is 0/0 there). Here :math:`\epsilon \bar{x}_{ij}^2` is added to the
    variance of a pixel, and :math:`\epsilon` times the map's mean square to
    that of the key: a constant or all-zero pixel, or a key that vanishes,
    counts as uncorrelated and passes a finite gradient, and the result keeps
    the correlation's invariance to scale.

    Args:
        in_channels: Width of the map.
        channels_per_head: Wanted width of a head. A width that it does not
            divide is split into ``round(in_channels / channels_per_head)``
            heads, at least one.
        num_heads: Number of heads; overrides ``channels_per_head``.
        alpha: Exponent of the weights, positive.
        reverse: Whether to weight by :math:`1 - \sigma(\rho)`, as the paper
            does, or by :math:`\sigma(\rho)`, its ablation.
        similarity: ``'correlation'``, or ``'dot'`` for the unscaled inner
            product of pixel and key, the paper's ablation (its eq. 1).
        eps: Variance, relative to the squares above, around which a pixel or
            the key begins to count as constant.
        init_cfg: Accepted for uniformity; there is nothing to initialise.

    Raises:
        ValueError: If an argument is out of range or the heads do not divide
            the width.

    Source: "GSCA: Global Spatial Correlation Attention", sections 3.2-3.3.
    """

    _abbr_ = 'gsca'

    def __init__(
        self,
        in_channels: int,
        channels_per_head: int = 64,
        num_heads: int | None = None,
        alpha: float = 2.0,
        reverse: bool = True,
        similarity: str = 'correlation',
        eps: float = 1e-8,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(
            in_channels=in_channels, channels_per_head=channels_per_head
        )
        if num_heads is None:
            num_heads = default_num_heads(in_channels, channels_per_head)
        check_positive(num_heads=num_heads)
        if in_channels % num_heads:
            raise ValueError(
                f'num_heads={num_heads} must divide in_channels={in_channels}'
            )
        check_number(above=0, alpha=alpha, eps=eps)
        check_flag(reverse=reverse)
        check_choice(SIMILARITIES, similarity=similarity)
        self.in_channels = in_channels
        self.num_heads = num_heads
        self.alpha = alpha
        self.reverse = reverse
        self.similarity = similarity
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Weight every pixel of every head, ``(B, C, H, W)`` to the same."""
        return gsca(
            x,
            self.num_heads,
            self.alpha,
            self.reverse,
            self.similarity,
            self.eps,
        )

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the weight of every pixel of a head, ``(B, heads, H, W)``."""
        heads = x.to(precision_of(x)).unflatten(1, (self.num_heads, -1))
        score = similarity_map(heads, self.similarity, self.eps)
        return dict(weight=weigh(score, self.alpha, self.reverse).squeeze(2))

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return (
            f'in_channels={self.in_channels}, num_heads={self.num_heads}, '
            f'alpha={self.alpha}, reverse={self.reverse}, '
            f'similarity={self.similarity!r}'
        )
