# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The base class of attention modules, and what several of them share."""

import contextlib
import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmattn.compat.compiling import is_compiling
from mmattn.registry import MODELS

# Checks of arguments, given by name. Each raises a ValueError that names the
# first argument which it refuses.


def _is(kind: type, value: object) -> bool:
    # True and False are integers to Python, and no sizes to anybody.
    return isinstance(value, kind) and not isinstance(value, bool)


def check_positive(**sizes: int) -> None:
    """Refuse a size that is no integer of at least one."""
    for name, size in sizes.items():
        if not _is(Integral, size) or size < 1:
            raise ValueError(f'{name}={size!r} must be an integer, at least 1')


def is_odd(size: object) -> bool:
    """Tell whether a value can be the side of a kernel with a centre."""
    return _is(Integral, size) and size > 0 and size % 2 == 1


def check_odd(**sizes: int) -> None:
    """Refuse the side of a kernel that has no centre."""
    for name, size in sizes.items():
        if not is_odd(size):
            raise ValueError(f'{name}={size!r} must be odd and positive')


def check_number(above: float = -math.inf, **numbers: float) -> None:
    """Refuse what is no finite number, or not above another."""
    for name, number in numbers.items():
        if not _is(Real, number) or not above < number < math.inf:
            limit = '' if above == -math.inf else f' above {above}'
            raise ValueError(f'{name}={number!r} must be a number{limit}')


def check_flag(**flags: bool) -> None:
    """Refuse what is neither True nor False, such as ``'False'``."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise ValueError(f'{name}={flag!r} must be True or False')


def check_choice(choices: Sequence, **values: object) -> None:
    """Refuse what is none of the choices."""
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f'{name}={value!r} must be one of {choices}')


def upcast(x: Tensor) -> Tensor:
    """Return half precision as float32, anything else as it is."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if half else x


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Return a context in which ``x`` keeps its precision."""
    if x.is_meta:  # shapes only; torch has no autocast for them
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def is_traced() -> bool:
    """Tell whether a compiler or an exporter records what is computed."""
    return is_compiling() or torch.jit.is_tracing()


def average(
    x: Tensor, axes: tuple[int, ...], dtype: torch.dtype, keepdim: bool = False
) -> Tensor:
    """Return ``x.mean(axes, keepdim, dtype=dtype)``, with a cheaper gradient.

    The gradient of a sum is a small tensor seen as a map; that of ``mean`` is
    a map of its own.
    """
    wide = torch.promote_types(dtype, torch.float32)  # half would overflow
    total = x.sum(axes, keepdim, dtype=wide)
    count = 1
    for axis in axes:
        count = count * x.shape[axis]
    return (total / count).to(dtype)


def multiply(x: Tensor, gate: Tensor) -> Tensor:
    """Return ``x * gate``; without gradients in the memory of ``x``.

    New memory costs more than the product itself.

    Args:
        x: A map that nothing else reads from here on.
        gate: What it is multiplied by, of the same dtype.
    """
    if torch.is_grad_enabled() or is_traced():
        return x * gate
    return x.mul_(gate)


def relative_norm(part: Tensor, x: Tensor) -> Tensor:
    """Compare vectors of pixels by their norms.

    Args:
        part: A map, ``(B, C, H, W)``.
        x: The map that it is compared with, of the same shape.

    Returns:
        The norm of each pixel's channels in ``part`` divided by that in
        ``x``, ``(B, 1, H, W)``. Below a thousandth of the image's average
        the latter counts as such, so that all is finite.
    """
    part, x = (upcast(t).norm(dim=1, keepdim=True) for t in (part, x))
    floor = 1e-3 * x.mean((2, 3), keepdim=True)
    return part / x.maximum(floor).clamp(min=1e-12)


def make_norm(norm_cfg: dict | None, width: int) -> nn.Module | None:
    """Build a norm by mmcv's config; None for none.

    Raises:
        ValueError: If mmcv cannot build it, or it takes not every map.
    """
    if norm_cfg is None:
        return None
    try:
        norm = build_norm_layer(norm_cfg, width)[1].eval()
        for size in ((1, 1), (2, 3)):
            normalize(norm, torch.zeros(1, width, *size))
    except (
        AssertionError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f'norm_cfg={norm_cfg!r} is no norm for {width} channels: {error}'
        ) from error
    return norm.train()


def _is_local_batch_norm(norm: nn.Module) -> bool:
    if isinstance(norm, nn.SyncBatchNorm):
        group = torch.distributed
        return not (group.is_initialized() and group.get_world_size() > 1)
    return isinstance(norm, _BatchNorm)


def normalize(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm in the precision of its weights, whatever ``x`` holds.

    One value a channel (one image, pooled to one pixel) has no batch
    statistics, for which torch raises; the running ones take their place and
    stay as they are. A batch norm synchronised between processes has them.

    Args:
        norm: A norm, or what a fused one leaves behind.
        x: What it takes, in any precision.
    """
    weight = getattr(norm, 'weight', None)
    if weight is None:  # fused into the convolution before it
        return norm(x)
    x = x.to(weight.dtype)
    if isinstance(norm, nn.GroupNorm):
        # Its own forward refuses one value a group, whose result is the bias.
        return torch.group_norm(
            x, norm.num_groups, weight, norm.bias, norm.eps
        )
    local = norm.training and _is_local_batch_norm(norm)
    if local and x.numel() == x.shape[1]:
        mean, var = norm.running_mean, norm.running_var
        return F.batch_norm(x, mean, var, norm.weight, norm.bias, eps=norm.eps)
    return norm(x)


def _starts_itself(module: nn.Module) -> bool:
    """Tell a module such as mmcv's ``ConvModule``, with its own start."""
    return hasattr(module, 'init_weights') and not isinstance(
        module, BaseModule
    )


def _reset_children(module: nn.Module) -> None:
    for child in module.children():
        if hasattr(child, 'reset_parameters'):
            child.reset_parameters()
        elif _starts_itself(child):
            child.init_weights()
        else:
            _reset_children(child)


class Attention(BaseModule):
    """A module that keeps its own initialisation inside any backbone.

    A backbone's ``init_cfg`` is applied to every layer below it, so a module
    that relies on a special start (a zero layer, say) would lose it. This
    class calls :meth:`reset_parameters` after that, and before the module's
    own ``init_cfg`` if it has one.

    What a module does to a map shows in :meth:`attention_weights`, which is
    apart from ``forward`` and costs a normal run nothing.

    A subclass sets ``_abbr_`` (the name in checkpoints, final once weights
    exist), takes ``in_channels`` first and returns the shape and dtype it was
    given. One with a special start overrides :meth:`reset_parameters`, calls
    ``super()`` in it, and calls it at the end of ``__init__``.
    """

    _abbr_: str

    def reset_parameters(self) -> None:
        """Initialise every layer by its own ``reset_parameters``."""
        _reset_children(self)

    def init_weights(self) -> None:
        """Start afresh, whatever a parent's ``init_cfg`` did before."""
        if not self.is_init:
            self.reset_parameters()
            for module in self.modules():
                # Starting afresh later they would undo this one's start.
                if isinstance(module, Attention) and module is not self:
                    module.is_init = not module.init_cfg
                elif _starts_itself(module):
                    module.is_init = True
        super().init_weights()

    def attention_weights(self, x: Tensor) -> dict[str, Tensor]:
        """Return what ``forward`` multiplies ``x`` by, without keeping it.

        Every weight is ``(B, G, h, w)``: h is H or 1, w is W or 1, and G
        divides C. Each of G groups of contiguous channels has a weight of its
        own, so ``weight.repeat_interleave(C // G, 1)`` broadcasts to ``x``:

        * ``(B, C, 1, 1)`` gates channels;
        * ``(B, C, H, 1)`` gates rows, ``(B, C, 1, W)`` columns;
        * ``(B, G, H, W)`` gates pixels: all channels alike (G is 1), those of
          a head or group, or every value (G is C).

        The product of all of them and of ``x`` is the output in evaluation
        mode. Where a module shuffles channels that comes after, and weights
        are in the order of the input's channels. A module that does not
        multiply its input says in its class what it returns instead.

        This default, for modules that say nothing, needs no more than their
        output: ``'ratio'``, ``(B, 1, H, W)``, is the norm of each output
        pixel relative to that of the input pixel. Where one factor a pixel
        multiplies it, that is the factor; of channel gates it is the average,
        of squares, over what the pixel holds.

        Args:
            x: The input, ``(B, C, H, W)``; stays as it is.

        Returns:
            The weights by name, in the order in which they apply.
        """
        return dict(ratio=relative_norm(self(x), x))


def list_attentions() -> list[str]:
    """Return the registered attention modules as configs name them, sorted."""
    return sorted(
        f'mmattn.{name}'
        for name, module in MODELS.module_dict.items()
        if isinstance(module, type) and issubclass(module, Attention)
    )
