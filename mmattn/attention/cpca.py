# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""CPCA: Channel Prior Convolutional Attention.

Huang et al., "Channel prior convolutional attention for medical image
segmentation", Computers in Biology and Medicine 2024,
https://arxiv.org/abs/2306.05196. The numbers follow the official module
(https://github.com/Cuthbert-Huang/CPCANet).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import Attention, check_positive

STRIPS = (7, 11, 21)


@MODELS.register_module()
class CPCA(Attention):
    r"""Gate channels first, then every pixel of them by strip convolutions.

    With :math:`M` a 1x1 convolution, one and the same in all three places,
    :math:`F` two 1x1 convolutions with a ReLU between and :math:`D` depthwise
    convolutions:

    .. math::
        z &= \mathrm{GELU}(M x), \qquad
        p = \left(\sigma(F \bar{z}) + \sigma(F \max z)\right) z \\
        s &= D_{5 \times 5}\, p, \qquad
        y = M \left(p \cdot M \left(s + \sum_{k \in \{7, 11, 21\}}
        D_{k \times 1} D_{1 \times k}\, s\right)\right)

    All convolutions have biases. The channel gate adds two sigmoids and lies
    in (0, 2), unlike CBAM's sigmoid of a sum; the spatial gate is not
    bounded at all. The module replaces the map rather than scaling it: a
    pretrained backbone must be trained with it.

    Input and output are ``(B, in_channels, H, W)`` of one dtype, any H, W >=
    1. A width of :math:`C` squeezed to :math:`m` has :math:`C^2 + 2Cm + m +
    112C` parameters.

    The official reduction is 4; the default here is that of the SCSA paper
    (https://arxiv.org/abs/2407.05128), by its parameter count.

    Args:
        in_channels: Width of the map.
        reduction: By how much the channel gate's middle is narrower than the
            map; it keeps at least one channel.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is out of range.
    """

    _abbr_ = 'cpca'

    def __init__(
        self,
        in_channels: int,
        reduction: int = 16,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(in_channels=in_channels, reduction=reduction)
        width = max(1, in_channels // reduction)

        def depthwise(*kernel: int) -> nn.Conv2d:
            padding = tuple(k // 2 for k in kernel)
            return nn.Conv2d(
                in_channels,
                in_channels,
                kernel,
                padding=padding,
                groups=in_channels,
            )

        self.mix = nn.Conv2d(in_channels, in_channels, 1)
        self.squeeze = nn.Conv2d(in_channels, width, 1)
        self.expand = nn.Conv2d(width, in_channels, 1)
        self.local = depthwise(5, 5)
        self.strips = nn.ModuleList(
            nn.Sequential(depthwise(1, k), depthwise(k, 1)) for k in STRIPS
        )

    def _gate(self, descriptor: Tensor) -> Tensor:
        """Turn one value a channel into one weight, ``(B, C, 1, 1)``."""
        return self.expand(self.squeeze(descriptor).relu()).sigmoid()

    def _channel_gate(self, z: Tensor) -> Tensor:
        """Return the gate of every channel of ``z``, ``(B, C, 1, 1)``."""
        dtype = self.squeeze.weight.dtype
        mean = z.mean((2, 3), keepdim=True, dtype=dtype)
        peak = z.amax((2, 3), keepdim=True).to(dtype)
        return (self._gate(mean) + self._gate(peak)).to(z.dtype)

    def _pixel_gate(self, prior: Tensor) -> Tensor:
        """Return the gate of every value of ``prior``, in its shape."""
        local = self.local(prior)
        context = sum((strip(local) for strip in self.strips), start=local)
        return self.mix(context)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to ``x``, ``(B, C, H, W)`` to the same shape."""
        z = F.gelu(self.mix(x))
        prior = z * self._channel_gate(z)
        return self.mix(prior * self._pixel_gate(prior)).to(x.dtype)

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gates, ``(B, C, 1, 1)`` and ``(B, C, H, W)``.

        They gate the map :math:`z` inside the module, not its input.
        """
        z = F.gelu(self.mix(x))
        channel = self._channel_gate(z)
        return dict(channel=channel, spatial=self._pixel_gate(z * channel))
