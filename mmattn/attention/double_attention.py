# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""DoubleAttention: the block of A2-Nets.

Chen et al., "A^2-Nets: Double Attention Networks", NeurIPS 2018,
https://arxiv.org/abs/1810.11579. Written from the paper, which names no code.
"""

from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import (
    Attention,
    check_positive,
    no_autocast,
    relative_norm,
    upcast,
)


@MODELS.register_module()
class DoubleAttention(Attention):
    r"""Gather a few global descriptors, then hand each pixel a mix of them.

    With :math:`\phi, \theta, \rho` 1x1 convolutions to :math:`m, n, n`
    channels and :math:`W_z` one from :math:`m` back (eqs. 4-6),

    .. math::
        G = \phi(X)\, \mathrm{softmax}_{HW}(\theta(X))^T, \qquad
        Z = X + W_z\, G\, \mathrm{softmax}_n(\rho(X))

    The columns of :math:`G` are :math:`n` averages over the map, each with
    weights of its own, and each pixel chooses among them. The last
    convolution starts at zero, which makes the module the identity.

    Input and output are ``(B, in_channels, H, W)`` of one dtype, any H, W >=
    1. Softmaxes and products are computed in float32. With :math:`C`
    channels there are :math:`2C(m + n) + C + m + n` parameters.

    The convolutions have biases, but for :math:`\theta`, whose bias the
    softmax over the map would cancel. Not from the paper: the start at zero,
    for pretrained backbones, and the default widths. With those, two blocks
    in stage 2 and three in stage 3 of a ResNet-50 make 32.9M parameters,
    where 33.0M are quoted for the paper's; with a quarter of the width, as in
    its ablations, 29.2M.

    Args:
        in_channels: Width of the map, :math:`C`.
        mid_channels: Width of a descriptor, :math:`m`; None is half the
            width of the map.
        num_maps: Number of descriptors, :math:`n`; None is half the width of
            the map.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is below one.
    """

    _abbr_ = 'a2'

    def __init__(
        self,
        in_channels: int,
        mid_channels: int | None = None,
        num_maps: int | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(in_channels=in_channels)
        half = max(1, in_channels // 2)
        mid_channels = half if mid_channels is None else mid_channels
        num_maps = half if num_maps is None else num_maps
        check_positive(mid_channels=mid_channels, num_maps=num_maps)
        self.features = nn.Conv2d(in_channels, mid_channels, 1)
        self.gather = nn.Conv2d(in_channels, num_maps, 1, bias=False)
        self.distribute = nn.Conv2d(in_channels, num_maps, 1)
        self.conv_out = nn.Conv2d(mid_channels, in_channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as an identity."""
        super().reset_parameters()
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def _added(self, x: Tensor) -> Tensor:
        """Return what is added to ``x``, in its shape and dtype."""
        features = upcast(self.features(x)).flatten(2)  # (B, m, HW)
        gather = upcast(self.gather(x)).flatten(2)  # (B, n, HW)
        distribute = upcast(self.distribute(x)).flatten(2)
        with no_autocast(x):
            descriptors = features @ gather.softmax(2).transpose(1, 2)
            z = descriptors @ distribute.softmax(1)  # (B, m, HW)
        z = z.unflatten(2, x.shape[2:]).to(self.conv_out.weight.dtype)
        return self.conv_out(z).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Add the descriptors to ``x``, ``(B, C, H, W)`` to the same."""
        return x + self._added(x)

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the norm of what is added to a pixel, relative to its own.

        The module multiplies nothing; 0 leaves the pixel as it is. The map
        is ``(B, 1, H, W)``.
        """
        return dict(added=relative_norm(self._added(x), x))
