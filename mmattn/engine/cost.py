# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Count what a model costs for one image, without computing anything.

A model runs on shapes alone (torch's meta device), and every operation that
reaches torch is counted, those inside attention modules like any other:

* ``flops``: multiply-adds of convolutions (also transposed and deformable
  ones), linear layers and matrix products, of which einsums and attention
  consist. Biases are left out.
* ``elementwise``: the other floating-point operations. One a result for
  sums, products, activations and the like, one a value read for sums and
  maxima over an axis, :data:`PER_VALUE` and :data:`PER_RESULT` for the rest.
  Copies, padding, selection and comparisons are free.
* ``mmengine``: what `mmengine.analysis` calls FLOPs: ``flops`` and, of the
  elementwise ones, norms, resampling and adaptive average pooling. It differs
  where mmengine takes a product whose first factor is shared by a batch for
  that of one element.
* ``activations``: elements of the results of what ``flops`` counts.

Not counted: preparing the image, and what follows the last layers, such as
softmax over classes, decoding of boxes, and suppression. The heads on regions
of a two-stage detector take as many as its ``test_cfg`` admits: box heads the
proposals of the RPN, mask heads the final boxes. RoIAlign is not counted.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from mmattn.errors import ConfigError

CONVOLUTIONS = ('convolution', 'deform_conv2d')
PRODUCTS = ('mm', 'bmm', 'mv', 'dot')
# The same with a first argument to be added to the product.
ADDED_PRODUCTS = ('addmm', 'baddbmm', 'addmv')

# Operations a value that goes in, and a value that comes out.
PER_VALUE = {
    'adaptive_avg_pool2d': 1,
    'layer_norm': 5,
    'group_norm': 5,
    'batch_norm': 5,  # in inference 2, see _norm_operations
    # Maximum, difference, exponential, sum and quotient.
    '_softmax': 5,
    '_log_softmax': 5,
}
PER_RESULT = {
    'upsample_nearest2d': 1,
    'upsample_bilinear2d': 4,
    'grid_sampler': 4,
}
NORMS = ('batch_norm', 'group_norm', 'layer_norm')
POOLS = ('avg_pool2d', 'max_pool2d_with_indices')
AS_MMENGINE = {*NORMS, *PER_RESULT, 'adaptive_avg_pool2d'}
# What moves or makes values and computes none.
FREE = set(
    '_to_copy _unsafe_index _unsafe_view cat clone constant_pad_nd copy_ '
    'embedding empty_like fill_ flip full_like gather im2col index '
    'index_put_ index_select masked_fill masked_fill_ native_channel_shuffle '
    'new_empty new_full new_ones new_zeros ones_like pixel_shuffle '
    'pixel_unshuffle reflection_pad2d repeat replication_pad2d roll scatter '
    'scatter_ stack tril triu where zero_ zeros_like'.split()
)


@dataclass
class Count:
    """What a module costs, with all that is below it.

    Args:
        params: Parameters.
        trainable: Those of them that training changes.
        flops: Multiply-adds of convolutions and matrix products.
        elementwise: Other floating-point operations.
        mmengine: FLOPs in the convention of `mmengine.analysis`.
        activations: Elements of results of convolutions and matrix products.
    """

    params: int = 0
    trainable: int = 0
    flops: int = 0
    elementwise: int = 0
    mmengine: int = 0
    activations: int = 0


@dataclass
class Cost(Count):
    """What a model costs.

    Args:
        by_module: The same of every module below it, by its dotted name. What
            a module does outside of its children is in its own count only.
    """

    by_module: dict[str, Count] = field(default_factory=dict)


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config on the meta device: shapes, no weights.

    Args:
        cfg: Config of mmdet, mmsegmentation or mmpretrain.

    Raises:
        ConfigError: If the config has no model.
    """
    if not cfg.get('model'):
        raise ConfigError('the config has no model to count')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        try:
            with torch.device('meta'):
                return MODELS.build(copy.deepcopy(cfg.model))
        except RuntimeError:
            # Some, Swin for one, read numbers of tensors that they make.
            return MODELS.build(copy.deepcopy(cfg.model)).to('meta')


def default_shape(model: nn.Module) -> tuple[int, int]:
    """Return the height and width for which a model is usually counted.

    224 x 224 for a classifier, 800 x 1280 for a detector, the size of the
    crops for a segmentor.

    Raises:
        ConfigError: If the type is not supported or the size not known.
    """
    kind = _kind(model)
    if kind in SHAPES:
        return SHAPES[kind]
    size = getattr(model.data_preprocessor, 'size', None)
    if size is None:
        raise ConfigError(
            'data_preprocessor of the model has no size, which is where the '
            'shape of a segmentor is read; give --shape H W'
        )
    return tuple(size)


def count(model: nn.Module, shape: tuple[int, int] | None = None) -> Cost:
    """Count what a model costs in inference on one image.

    Args:
        model: Of any device; it is left as it is.
        shape: Height and width of the image, by default
            :func:`default_shape`.

    Raises:
        ConfigError: If the type of the model is not supported, or the model
            cannot take the shape or cannot run on shapes alone.
    """
    run = RUNS[_kind(model)]
    height, width = shape or default_shape(model)
    if min(height, width) < 1:
        raise ConfigError(
            f'shape {height} {width} must be a positive height and width'
        )
    image = torch.empty(1, 3, height, width, device='meta')
    try:
        return count_call(model, image, run)
    except ConfigError:
        raise
    except Exception as error:  # whatever its layers raise
        reason = str(error).strip() or type(error).__name__
        raise ConfigError(
            f'{type(model).__name__} cannot be counted at shape {height} '
            f'{width}; it is too small, or a layer needs real pixels: '
            f'{reason.splitlines()[0]}'
        ) from error


def count_call(
    module: nn.Module,
    inputs: Tensor,
    call: Callable[[nn.Module, Tensor], Any] = nn.Module.__call__,
) -> Cost:
    """Count what a call of any module in evaluation mode costs.

    Args:
        module: Of any device; it is left as it is.
        inputs: What it takes; only the shape matters.
        call: What to do with a copy of the module and the input.
    """
    module = copy.deepcopy(module).to('meta').eval()
    counter = _Counter(module)
    # Otherwise compound operations, by which mmengine counts, arrive in parts.
    with torch.inference_mode():
        inputs = torch.empty_like(inputs, device='meta')
        with (
            register_module_forward_pre_hook(counter.enter_module),
            register_module_forward_hook(counter.leave_module),
            counter,
        ):
            call(module, inputs)
    for name, parameter in module.named_parameters():
        own = counter.counts[name.rpartition('.')[0]]
        own['params'] += parameter.numel()
        own['trainable'] += parameter.numel() * parameter.requires_grad
    # Children come after their parents.
    for name in reversed(counter.counts):
        if name:
            counter.counts[name.rpartition('.')[0]].update(
                counter.counts[name]
            )
    counts = {name: Count(**own) for name, own in counter.counts.items()}
    return Cost(**vars(counts.pop('')), by_module=counts)


class _Counter(TorchDispatchMode):
    """Count operations, by the innermost module that runs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names = {child: name for name, child in module.named_modules()}
        self.counts = {name: Counter() for name in self.names.values()}
        self.running = ['']

    def enter_module(self, module: nn.Module, args: tuple) -> None:
        """Count for this module from here on."""
        self.running.append(self.names.get(module, self.running[-1]))

    def leave_module(
        self, module: nn.Module, args: tuple, output: object
    ) -> None:
        """Count for the caller again."""
        self.running.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name not in PER_VALUE and name not in PER_RESULT:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if not _is_view(func):
            self._add(name, args, out)
        return out

    def _add(self, name: str, args: tuple, out: object) -> None:
        own = self.counts[self.running[-1]]
        if name in (*CONVOLUTIONS, *PRODUCTS, *ADDED_PRODUCTS):
            flops = _multiply_adds(name, args, out)
            own.update(flops=flops, mmengine=flops, activations=out.numel())
        else:
            operations = _operations(name, args, out)
            own['elementwise'] += operations
            if name in AS_MMENGINE:
                own['mmengine'] += operations


def _is_view(func: Any) -> bool:
    """Tell an operation whose result is its argument, seen otherwise."""
    aliases = [value.alias_info for value in func._schema.returns]
    return any(alias and not alias.is_write for alias in aliases)


def _multiply_adds(name: str, args: tuple, out: Tensor) -> int:
    """Return the multiply-adds of a convolution or a matrix product."""
    if name in CONVOLUTIONS:
        x, weight = args[:2]
        transposed = name == 'convolution' and args[6]
        # What one filter covers, wherever it is applied.
        return (x if transposed else out).numel() * weight.shape[1:].numel()
    left = args[1] if name in ADDED_PRODUCTS else args[0]
    return out.numel() * left.shape[-1]


def _operations(name: str, args: tuple, out: object) -> int:
    """Return the floating-point operations that are no multiply-adds."""
    values, results = _size(args), _size(out, floating=True)
    if name in NORMS:
        return values * _norm_operations(name, args)
    if name in PER_VALUE:
        return values * PER_VALUE[name]
    if name in PER_RESULT:
        return results * PER_RESULT[name]
    if name in POOLS:
        return results * math.prod(args[1])
    if name in FREE or not values or not results:  # without: new or integer
        return 0
    return max(values, results)


def _norm_operations(name: str, args: tuple) -> int:
    """Return the operations a value, the estimates of mmengine."""
    index = 1 if name == 'batch_norm' else 2
    affine = len(args) > index and args[index] is not None
    if name == 'batch_norm' and not args[5]:  # by running statistics
        return 1 + affine
    return PER_VALUE[name] - (not affine)


def _size(values: object, floating: bool = False) -> int:
    """Return the elements of the largest tensor, or floating one, in these."""
    if isinstance(values, Tensor):
        return values.numel() if values.is_floating_point() >= floating else 0
    if isinstance(values, (list, tuple)):
        return max((_size(value, floating) for value in values), default=0)
    return 0


def _kind(model: nn.Module) -> str:
    """Return the key of :data:`RUNS` that a model belongs to.

    By names, so that only the framework of the model has to be installed.
    """
    for cls in type(model).__mro__:
        kind = f'{cls.__module__.partition(".")[0]}.{cls.__name__}'
        if kind in RUNS:
            return kind
    raise _unsupported(type(model).__name__)


def _unsupported(name: str) -> ConfigError:
    return ConfigError(
        f'{name} cannot be counted; supported are classifiers of mmpretrain, '
        'segmentors of mmseg, SingleStageDetector of mmdet, and its '
        'TwoStageDetector with an RPN, SingleRoIExtractor and '
        'StandardRoIHead or CascadeRoIHead'
    )


def _run(model: nn.Module, image: Tensor) -> None:
    model(image, mode='tensor')


def _run_two_stage(model: nn.Module, image: Tensor) -> None:
    """Run a detector whose own run depends on what it finds."""
    head = model.roi_head
    if type(model)._forward.__qualname__ != 'TwoStageDetector._forward':
        raise _unsupported(type(model).__name__)
    if type(head).__name__ not in ('StandardRoIHead', 'CascadeRoIHead'):
        raise _unsupported(type(head).__name__)
    if not model.with_rpn:
        raise _unsupported(f'{type(model).__name__} without an RPN')
    model.rpn_head(model.extract_feat(image))
    proposals = model.rpn_head.test_cfg['max_per_img']
    _run_regions(head, head.bbox_roi_extractor, head.bbox_head, proposals)
    if head.with_mask:
        boxes = head.test_cfg['max_per_img']
        _run_regions(head, head.mask_roi_extractor, head.mask_head, boxes)


def _run_regions(
    roi_head: nn.Module, extractor: nn.Module, head: nn.Module, regions: int
) -> None:
    """Run a head, or that of each stage, on features of so many regions."""
    if isinstance(head, nn.ModuleList):
        for stage in zip(extractor, head):
            _run_regions(roi_head, *stage, regions)
        return
    if type(extractor).__name__ != 'SingleRoIExtractor':
        raise _unsupported(type(extractor).__name__)
    size = extractor.roi_layers[0].output_size
    features = torch.empty(
        regions, extractor.out_channels, *size, device='meta'
    )
    if roi_head.with_shared_head:
        features = roi_head.shared_head(features)
    head(features)


# How each kind of model runs, by its package and class.
RUNS = {
    'mmpretrain.BaseClassifier': _run,
    'mmseg.BaseSegmentor': _run,
    'mmdet.SingleStageDetector': _run,
    'mmdet.TwoStageDetector': _run_two_stage,
}
SHAPES = {
    'mmpretrain.BaseClassifier': (224, 224),
    'mmdet.SingleStageDetector': (800, 1280),
    'mmdet.TwoStageDetector': (800, 1280),
}
