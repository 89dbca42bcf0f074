# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""NonLocal: the non-local block.

Wang et al., "Non-local Neural Networks", CVPR 2018,
https://arxiv.org/abs/1711.07971. Made of the layers of mmcv's ``NonLocal2d``,
with its state-dict keys, so that its checkpoints load.
"""

from mmcv.cnn import NonLocal2d
from mmengine.model import constant_init, normal_init
from torch import Tensor, nn

from mmattn.registry import MODELS

from .base import (
    Attention,
    check_choice,
    check_flag,
    check_positive,
    make_norm,
    no_autocast,
    normalize,
    relative_norm,
    upcast,
)

MODES = ('gaussian', 'embedded_gaussian', 'dot_product', 'concatenation')


@MODELS.register_module()
class NonLocal(Attention):
    r"""Add to every pixel an average over all pixels, weighted by similarity.

    With :math:`g, \theta, \phi` 1x1 convolutions to ``in_channels //
    reduction`` channels and :math:`W_z` one back (eqs. 1, 6),

    .. math::
        z_i = x_i + W_z \sum_j \frac{f(x_i, x_j)}{\mathcal{C}_i} g(x_j)

    and :math:`f` by ``mode`` (eqs. 2-5)

    .. math::
        e^{x_i^T x_j}, \quad e^{\theta_i^T \phi_j / \sqrt{C'}}, \quad
        \theta_i^T \phi_j, \quad \mathrm{ReLU}(w_f^T [\theta_i, \phi_j])

    in the order of the argument's values. :math:`\mathcal{C}_i` is
    :math:`\sum_j f(x_i, x_j)` (a softmax) for the first two, the number of
    pixels for the others. The last layer starts at zero, which makes the
    module the identity.

    Input and output are ``(B, in_channels, H, W)`` of one dtype, any H, W >=
    1; memory grows with :math:`(HW)^2`. Scores and averages are computed in
    float32, where mmcv's are in the precision of the map.

    The paper's eq. 4 has no :math:`\sqrt{C'}`; the official video code and
    mmcv divide by it unless told otherwise. In the softmax modes the bias of
    :math:`\phi` cancels; it stays for mmcv's checkpoints.

    Args:
        in_channels: Width of the map.
        reduction: Factor by which the convolutions reduce the width.
        use_scale: Whether ``'embedded_gaussian'`` has the :math:`\sqrt{C'}`;
            False is the paper's formula.
        mode: ``'gaussian'``, ``'embedded_gaussian'``, ``'dot_product'`` or
            ``'concatenation'``.
        sub_sample: Whether to take the maximum of :math:`\phi` and :math:`g`
            over 2x2 pixels (section 3.3). Leftover rows and columns are
            dropped, as in mmcv; an axis of one pixel stays, mmcv raises.
        norm_cfg: Norm after the last convolution, which then starts at zero
            in its place. The paper's video models have batch norm.
        init_cfg: mmengine initialisation, applied after the module's own.

    Raises:
        ValueError: If an argument is out of range.
    """

    _abbr_ = 'nl'

    def __init__(
        self,
        in_channels: int,
        reduction: int = 2,
        use_scale: bool = True,
        mode: str = 'embedded_gaussian',
        sub_sample: bool = False,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_positive(in_channels=in_channels, reduction=reduction)
        check_choice(MODES, mode=mode)
        check_flag(use_scale=use_scale, sub_sample=sub_sample)
        make_norm(norm_cfg, in_channels)  # mmcv's own errors name nothing
        self.use_scale = use_scale
        self.mode = mode
        self.sub_sample = sub_sample
        layers = NonLocal2d(
            in_channels, reduction=reduction, mode=mode, norm_cfg=norm_cfg
        )
        for name, layer in layers.named_children():
            # mmcv appends the pooling to these two, which shows in their keys.
            pooled = sub_sample and name in ('g', 'phi')
            self.add_module(name, nn.Sequential(layer) if pooled else layer)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as mmcv does: an identity."""
        super().reset_parameters()
        for name in ('g', 'theta', 'phi'):
            for layer in getattr(self, name, nn.Identity()).modules():
                if isinstance(layer, nn.Conv2d):
                    normal_init(layer, std=0.01)
        out = self.conv_out
        constant_init(out.norm if out.with_norm else out.conv, 0)

    def _pool(self, x: Tensor) -> Tensor:
        """Halve a map if asked to, ``(B, C, H, W)`` to ``(B, C, N)``."""
        if self.sub_sample:
            # The shape function of max_pool2d would tie an exported graph to
            # whether the size is even.
            h, w = (min(2, size) for size in x.shape[2:])
            x = x.unfold(2, h, h).unfold(3, w, w).amax((4, 5))
        return upcast(x.flatten(2))

    def _weights(self, theta: Tensor, phi: Tensor) -> Tensor:
        """Compare pixels, ``(B, C', N)`` and ``(B, C', M)`` to the pairs."""
        if self.mode == 'concatenation':
            # The projection of a concatenation is the sum of two projections.
            weight = self.concat_project.conv.weight.flatten(1).to(theta.dtype)
            query, key = weight.chunk(2, dim=1)
            scores = (query @ theta).transpose(1, 2) + key @ phi
            return scores.relu() / phi.shape[2]
        if self.mode == 'embedded_gaussian' and self.use_scale:
            theta = theta * theta.shape[1] ** -0.5
        scores = theta.transpose(1, 2) @ phi  # (B, N, M)
        if self.mode == 'dot_product':
            return scores / phi.shape[2]
        return scores.softmax(2)

    def _added(self, x: Tensor) -> Tensor:
        """Return what is added to ``x``, in its shape and dtype."""
        embedded = self.mode != 'gaussian'
        theta = upcast((self.theta(x) if embedded else x).flatten(2))
        phi = self._pool(self.phi(x) if embedded else x)
        g = self._pool(self.g(x))
        with no_autocast(x):
            y = g @ self._weights(theta, phi).transpose(1, 2)  # (B, C', N)
        out = self.conv_out.conv(
            y.unflatten(2, x.shape[2:]).to(self.conv_out.conv.weight.dtype)
        )
        if self.conv_out.with_norm:
            out = normalize(self.conv_out.norm, out)
        return out.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Add the weighted average to ``x``, ``(B, C, H, W)`` to the same."""
        return x + self._added(x)

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return the norm of what is added to a pixel, relative to its own.

        The module multiplies nothing; 0 leaves the pixel as it is. The map
        is ``(B, 1, H, W)``.
        """
        return dict(added=relative_norm(self._added(x), x))

    def extra_repr(self) -> str:
        """Return the settings that the child modules do not show."""
        return (
            f'mode={self.mode!r}, use_scale={self.use_scale}, '
            f'sub_sample={self.sub_sample}'
        )
