# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
# ruff: noqa: N803  (the names of the arguments are mmcv's interface)
"""The module `mmcv._ext` on torch and torchvision, CPU and CUDA.

`mmcv.ops` calls these functions as it calls its compiled extension: the
caller allocates the results, the function fills them. Written from the
interface and the kernels of mmcv 2.1.0 (`mmcv/ops/csrc`); mmcv 2.2 and
onedl-mmcv 2.3 call the same. Every other op of mmcv exists by name and
raises when it is called.

Tensors of 16-bit floats are computed in float32 and rounded once, as
torchvision does under autocast.

This file is loaded under the name `mmcv._ext` by `mmattn.compat.finder` and
hence imports nothing relatively.
"""

from collections.abc import Callable
from typing import NoReturn

import torch
import torchvision
from torch import Tensor

#: Where mmcv's kernels cut off: the ends of C's float, for doubles as well.
_FLT_MIN = torch.finfo(torch.float32).tiny
_FLT_MAX = torch.finfo(torch.float32).max

#: Elements that RoI pooling gathers at a time (64 MiB in float32).
_GATHER = 2**24


def get_compiler_version() -> str:
    """Say that nothing was compiled, for mmcv's environment report."""
    return f'none (mmattn, torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """Return the CUDA version of torchvision's ops, 'x.y', for the report."""
    version = torch.ops.torchvision._cuda_version()
    if version <= 0:
        return 'not available'
    return f'{version // 1000}.{version % 1000 // 10}'


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Stand in for an op that mmattn does not provide."""
    if name.startswith('__'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing_op(*args: object, **kwargs: object) -> NoReturn:
        raise _missing(name)

    return missing_op


def _missing(op: str) -> RuntimeError:
    """Make the error that names the op and the way to get it."""
    return RuntimeError(
        f'{op} needs the compiled ops of mmcv. The ones in use here are '
        "mmattn's own, and it has only the most common. Uninstall mmcv-lite "
        f'and install mmcv compiled against torch {torch.__version__}: `pip '
        'uninstall mmcv-lite`, then `MMCV_WITH_OPS=1 pip install '
        '--no-build-isolation --no-binary mmcv mmcv==<version>` (with the '
        'forks: onedl-mmcv in the same way).'
    )


def _widen(tensor: Tensor) -> Tensor:
    """Return 16-bit floats as float32 and anything else as it is."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor


# Non-maximum suppression


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int
) -> Tensor:
    """Select boxes greedily by score, dropping those that overlap.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: A box goes if its IoU with a kept one exceeds this.
        offset: 1 if x2 and y2 belong to the box, 0 if they are its border.

    Returns:
        (K,) int64, kept boxes by falling score; the earlier one of a tie
        first.
    """
    boxes, scores = _same_dtype(boxes, scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # Torchvision compares with the double, which is not quite the number an
    # IoU in float32 can be equal to.
    threshold = torch.tensor(iou_threshold, dtype=boxes.dtype).item()
    return torch.ops.torchvision.nms(boxes, scores, threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Select boxes greedily by score, lowering the score of overlapping ones.

    Bodla et al., Soft-NMS, ICCV 2017, https://arxiv.org/abs/1704.04503. Each
    step takes the box of the highest score, multiplies the scores of the
    others by a weight that falls with their IoU, and drops those below
    `min_score`.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2, on the CPU.
        scores: (N,).
        dets: (N, 5), filled with the K kept boxes and their new scores.
        iou_threshold: IoU from which methods 0 and 1 act.
        sigma: Width of method 2.
        min_score: Boxes below are dropped.
        method: Weight of a box with IoU u: 0 for none (hard NMS), 1 for
            1 - u, 2 for exp(-u^2 / sigma).
        offset: 1 if x2 and y2 belong to the box, 0 if they are its border.

    Returns:
        (K,) int64, kept boxes in the order they were taken.
    """
    boxes, scores = _same_dtype(boxes, scores)
    scores = scores.clone()
    order = torch.arange(len(boxes))
    taken = 0
    while taken < len(order):
        best = taken + int(scores[order[taken:]].argmax())
        order[[taken, best]] = order[[best, taken]]
        taken += 1
        rest = order[taken:]
        iou = _iou(boxes[order[taken - 1]], boxes[rest], offset)
        scores[rest] *= _soft_weight(iou, iou_threshold, sigma, method)
        rest = _swap_remove(rest, scores[rest] < min_score)
        order = torch.cat([order[:taken], rest])
    dets[: len(order), :4] = boxes[order]
    dets[: len(order), 4] = scores[order]
    return order


def _same_dtype(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Bring boxes and scores to one type of at least float32."""
    boxes, scores = _widen(boxes), _widen(scores)
    dtype = torch.promote_types(boxes.dtype, scores.dtype)
    return boxes.to(dtype), scores.to(dtype)


def _iou(box: Tensor, others: Tensor, offset: int) -> Tensor:
    """Return the IoU of one box (4,) with others (N, 4); 0 for 0 / 0."""
    corner = torch.maximum(box[:2], others[:, :2])
    extent = torch.minimum(box[2:], others[:, 2:]) - corner + offset
    inter = extent.clamp_min(0).prod(-1)
    area = (box[2:] - box[:2] + offset).prod(-1)
    areas = (others[:, 2:] - others[:, :2] + offset).prod(-1)
    return torch.nan_to_num(inter / (area + areas - inter))


def _soft_weight(
    iou: Tensor, iou_threshold: float, sigma: float, method: int
) -> Tensor:
    """Return what soft-NMS multiplies the scores by, see `softnms`."""
    if method == 2:
        return torch.exp(-(iou * iou) / sigma)
    weight = 1 - iou if method == 1 else torch.zeros_like(iou)
    return torch.where(iou >= iou_threshold, weight, 1)


def _swap_remove(order: Tensor, drop: Tensor) -> Tensor:
    """Remove elements as mmcv does: the last ones fill the gaps.

    The order decides which of two equal scores is taken first.
    """
    keep = ~drop
    count = int(keep.sum())
    kept, tail = order[:count], order[count:]
    kept[drop[:count]] = tail[keep[count:]].flip(0)
    return kept


# RoI pooling


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average bilinear samples of a feature map in each bin of each RoI.

    Args:
        input: (B, C, H, W).
        rois: (R, 5) as batch index, x1, y1, x2, y2 in the image.
        output: (R, C, aligned_height, aligned_width), filled.
        argmax_y: Unused, for maxima only.
        argmax_x: Unused, for maxima only.
        aligned_height: Bins of an RoI in y.
        aligned_width: Bins of an RoI in x.
        spatial_scale: Feature map size by image size.
        sampling_ratio: Samples of a bin in each direction; 0 for one per
            pixel.
        pool_mode: 1 for the average. 0, the maximum, is not provided.
        aligned: Whether pixel centres are at half coordinates.

    Raises:
        RuntimeError: The maximum is asked for.
    """
    _require_average(pool_mode)
    feats = _widen(input)
    pooled = torch.ops.torchvision.roi_align(
        feats,
        rois.to(feats.dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of `roi_align_forward` to `grad_input` (B, C, H, W).

    `grad_output` is (R, C, aligned_height, aligned_width), the rest as there.

    Raises:
        RuntimeError: The maximum is asked for.
    """
    _require_average(pool_mode)
    grad_output = _widen(grad_output)
    grad = torch.ops.torchvision._roi_align_backward(
        grad_output,
        rois.to(grad_output.dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.add_(grad)


def _require_average(pool_mode: int) -> None:
    """Refuse the maximum, which torchvision does not have."""
    if pool_mode != 1:
        raise _missing("roi_align with pool_mode='max'")


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Take the maximum of a feature map in each bin of each RoI.

    The bins are mmcv's, not torchvision's: corners are scaled without
    rounding, x2 and y2 belong to the RoI, and each bin is widened to whole
    pixels. An empty bin, and every bin of an RoI without area, is 0.

    Args:
        input: (B, C, H, W).
        rois: (R, 5) as batch index, x1, y1, x2, y2 in the image.
        output: (R, C, pooled_height, pooled_width), filled.
        argmax: The same shape, int32, filled with the pixel y * W + x of the
            maximum, the first one of several; -1 where there is none. (For an
            RoI without area mmcv's kernel leaves 0 there and sends the
            gradient to the first pixel.)
        pooled_height: Bins of an RoI in y.
        pooled_width: Bins of an RoI in x.
        spatial_scale: Feature map size by image size.
    """
    feats, rois = _widen(input), _widen(rois)
    height, width = feats.shape[2:]
    y1, x1 = (rois[:, i] * spatial_scale for i in (2, 1))
    y2, x2 = ((rois[:, i] + 1) * spatial_scale for i in (4, 3))
    proper = (x2 > x1) & (y2 > y1)
    ys, in_y = _bin_pixels(y1, y2, pooled_height, height, proper)
    xs, in_x = _bin_pixels(x1, x2, pooled_width, width, proper)

    # (R, ph, pw, kh, kw) -> (R, ph, pw, K): K pixels in the kernel's order,
    # of which some are padding.
    pixels = ys[:, :, None, :, None] * width + xs[:, None, :, None, :]
    inside = in_y[:, :, None, :, None] & in_x[:, None, :, None, :]
    pixels, inside = pixels.flatten(3), inside.flatten(3)

    table = feats.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H * W, C)
    per_roi = max(1, pixels[:1].numel() * feats.shape[1])
    step = max(1, _GATHER // per_roi)
    for start in range(0, len(rois), step):
        chosen = slice(start, start + step)
        maxima, where = _pool_pixels(
            table, rois[chosen, 0].long(), pixels[chosen], inside[chosen]
        )
        output[chosen] = maxima.permute(0, 3, 1, 2)
        argmax[chosen] = where.permute(0, 3, 1, 2)


def _bin_pixels(
    start: Tensor, end: Tensor, bins: int, size: int, proper: Tensor
) -> tuple[Tensor, Tensor]:
    """List the pixels of each bin along one axis.

    Args:
        start: (R,) first coordinate of each RoI on the map.
        end: (R,) last coordinate.
        bins: Number of bins.
        size: Pixels of the axis.
        proper: (R,) whether the RoI has an area.

    Returns:
        (R, bins, K) indices, K the most pixels of any bin, and which of them
        belong to the bin; the others are 0.
    """
    index = torch.arange(bins + 1, device=start.device)
    extent = (end - start) / bins
    edges = index * extent[:, None] + start[:, None]
    # In float32 also for doubles, as in the kernel, which keeps a corner that
    # misses a whole number by a rounding error from taking in a pixel more.
    edges = edges.float()
    first = edges[:, :-1].floor().clamp(0, size).long()
    last = edges[:, 1:].ceil().clamp(0, size).long()
    count = (last - first).clamp_min(0) * proper[:, None]
    longest = int(count.max()) if count.numel() else 0
    steps = torch.arange(longest, device=start.device)
    inside = steps < count[..., None]
    return torch.where(inside, first[..., None] + steps, 0), inside


def _pool_pixels(
    table: Tensor, batch: Tensor, pixels: Tensor, inside: Tensor
) -> tuple[Tensor, Tensor]:
    """Take the maximum over the pixels of each bin.

    Args:
        table: (B, H * W, C) feature map.
        batch: (R,) image of each RoI.
        pixels: (R, ph, pw, K) pixels of each bin.
        inside: (R, ph, pw, K) which of them count.

    Returns:
        (R, ph, pw, C) maxima, 0 for a bin without pixels, and (R, ph, pw, C)
        the pixel of each, -1 if none exceeds the least float (NaN does not).
    """
    if pixels.shape[-1] == 0:
        shape = (*pixels.shape[:-1], table.shape[-1])
        return table.new_zeros(shape), pixels.new_full(shape, -1)
    values = table[batch[:, None, None, None], pixels]  # (R, ph, pw, K, C)
    counts = inside[..., None] & (values > -_FLT_MAX)
    values = torch.where(counts, values, -_FLT_MAX)
    maxima, place = values.max(dim=3)
    where = pixels.gather(3, place.flatten(3)).view_as(place)
    where = torch.where(counts.any(3), where, -1)
    empty = ~inside.any(3, keepdim=True)
    return maxima.masked_fill(empty, 0), where


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add each bin's gradient to the pixel of its maximum.

    `grad_input` is (B, C, H, W), `grad_output` and `argmax` are
    (R, C, pooled_height, pooled_width), the rest as in `roi_pool_forward`.
    """
    _, channels, height, width = grad_input.shape
    plane = rois[:, :1].long() * channels
    plane = plane + torch.arange(channels, device=rois.device)  # (R, C)
    target = plane[..., None, None] * (height * width) + argmax
    taken = argmax >= 0
    grad_output = _widen(grad_output)
    grad = grad_output.new_zeros(grad_input.numel())
    grad.index_add_(0, target[taken], grad_output[taken])
    grad_input.add_(grad.view_as(grad_input))


# Focal loss: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017,
# https://arxiv.org/abs/1708.02002


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the focal loss of independent classes.

    With p = sigmoid(x): -alpha (1 - p)^gamma log p for the class of the row,
    -(1 - alpha) p^gamma log(1 - p) for all others. Logarithms are cut off at
    the least normal float32, as in mmcv.

    Args:
        input: (N, C) logits x.
        target: (N,) int64 class of each row; C is the background.
        weight: (C,) factor of a row by its class, or empty. A row without a
            class has 1. (mmcv's kernel reads past the end of `weight`.)
        output: (N, C), filled.
        gamma: Focusing exponent.
        alpha: Weight of the row's class against the others.

    Raises:
        RuntimeError: A class is greater than C.
    """
    _check_target(target, input.shape[1])
    p, hit = _sigmoid(input, target)
    log_p, log_q = (
        p.clamp_min(_FLT_MIN).log(),
        (1 - p).clamp_min(_FLT_MIN).log(),
    )
    loss = torch.where(
        hit,
        -alpha * (1 - p) ** gamma * log_p,
        -(1 - alpha) * p**gamma * log_q,
    )
    output.copy_(loss * _row_weight(weight, target)[:, None])


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the derivative of `sigmoid_focal_loss_forward` by the logits.

    `grad_input` is (N, C) and overwritten, the rest as there.
    """
    p, hit = _sigmoid(input, target)
    log_p, log_q = (
        p.clamp_min(_FLT_MIN).log(),
        (1 - p).clamp_min(_FLT_MIN).log(),
    )
    grad = torch.where(
        hit,
        -alpha * (1 - p) ** gamma * (1 - p - gamma * p * log_p),
        -(1 - alpha) * p**gamma * (gamma * (1 - p) * log_q - p),
    )
    grad_input.copy_(grad * _row_weight(weight, target)[:, None])


def softmax_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the focal loss of exclusive classes.

    -alpha (1 - p)^gamma log p, with p the probability of the row's class.

    Args:
        input: (N, C) probabilities, the softmax of the logits.
        target: (N,) int64 class of each row. A row whose class is negative
            or C has no loss. (For C, which it admits, mmcv's kernel reads the
            first probability of the next row.)
        weight: (C,) factor of a row by its class, or empty.
        output: (N,), filled.
        gamma: Focusing exponent.
        alpha: Factor of the loss.

    Raises:
        RuntimeError: A class is greater than C.
    """
    _check_target(target, input.shape[1])
    p, known = _own_probability(input, target)
    loss = -alpha * (1 - p) ** gamma * p.clamp_min(_FLT_MIN).log()
    output.copy_(torch.where(known, loss * _row_weight(weight, target), 0))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Compute the derivative of `softmax_focal_loss_forward` by the logits.

    `input` is the softmax again, `grad_input` is (N, C) and overwritten, and
    so is `buff` (N,), with the factor that a row's entries share.
    """
    p, known = _own_probability(input, target)
    # (1 - p)^(gamma - 1) is infinite at p = 1 for gamma < 1, where log p is
    # 0: the least float keeps their product 0.
    q = (1 - p).clamp_min(_FLT_MIN)
    log_p = p.clamp_min(_FLT_MIN).log()
    shared = gamma * q ** (gamma - 1) * p * log_p - (1 - p) ** gamma
    shared = alpha * shared * _row_weight(weight, target)
    shared = torch.where(known, shared, 0)
    buff.copy_(shared)
    hit = _is_class(input, target).to(shared.dtype)
    grad_input.copy_(shared[:, None] * (hit - _widen(input)))


def _check_target(target: Tensor, num_classes: int) -> None:
    """Refuse a class that is neither one of the columns nor background."""
    if target.numel() and int(target.max()) > num_classes:
        raise RuntimeError(
            f'focal loss: target has class {int(target.max())}, input has '
            f'{num_classes} classes; {num_classes} is the background and the '
            'greatest that may occur'
        )


def _is_class(input: Tensor, target: Tensor) -> Tensor:
    """Return (N, C) bool: whether the column is the class of the row."""
    classes = torch.arange(input.shape[1], device=input.device)
    return target[:, None] == classes


def _sigmoid(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, C) probabilities and whether each is of the row's class."""
    return _widen(input).sigmoid(), _is_class(input, target)


def _own_probability(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N,) each row's probability of its class, and if it has one."""
    last = input.shape[1] - 1
    column = target.clamp(0, last)
    own = _widen(input).gather(1, column[:, None]).squeeze(1)
    return own, column == target


def _row_weight(weight: Tensor, target: Tensor) -> Tensor:
    """Return (N,) the weight of each row's class, 1 without one."""
    weight = _widen(weight)
    if weight.numel() == 0:
        return weight.new_ones(len(target))
    column = target.clamp(0, len(weight) - 1)
    return torch.where(column == target, weight[column], 1)


# Deformable convolution: Dai et al., Deformable Convolutional Networks, ICCV
# 2017, https://arxiv.org/abs/1703.06211; with a mask Zhu et al., Deformable
# ConvNets v2, CVPR 2019, https://arxiv.org/abs/1811.11168


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Convolve a map sampled at shifted places.

    Args:
        input: (B, C, H, W).
        weight: (O, C / group, kH, kW).
        offset: (B, deformable_group * kH * kW * 2, Ho, Wo), shifts y, x of
            each sample in pixels.
        output: (B, O, Ho, Wo), filled.
        columns: Unused work space.
        ones: Unused work space.
        kW: Width of the kernel, as `weight` has it.
        kH: Height of the kernel, as `weight` has it.
        dW: Stride in x.
        dH: Stride in y.
        padW: Zeros on either side in x.
        padH: Zeros on either side in y.
        dilationW: Pixels between the samples in x.
        dilationH: Pixels between the samples in y.
        group: Groups of channels that are convolved apart.
        deformable_group: Groups of channels with shifts of their own.
        im2col_step: Unused, the images mmcv works on at a time.

    Raises:
        RuntimeError: The shapes do not fit.
    """
    arguments = _deform_arguments(
        (input, weight, offset, None, None),
        ((dH, dW), (padH, padW), (dilationH, dilationW)),
        (group, deformable_group),
    )
    output.copy_(torch.ops.torchvision.deform_conv2d(*arguments))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Add the gradient by the input to `gradInput`, set `gradOffset`.

    The arguments are those of `deform_conv_forward`.
    """
    arguments = _deform_arguments(
        (input, weight, offset, None, None),
        ((dH, dW), (padH, padW), (dilationH, dilationW)),
        (group, deformable_group),
    )
    by_input, _, by_offset, _, _ = _deform_backward(gradOutput, arguments)
    gradInput.add_(by_input)
    gradOffset.copy_(by_offset)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add `scale` times the gradient by the weight to `gradWeight`.

    The arguments are those of `deform_conv_forward`.
    """
    # The gradient by the weight does not depend on the weight, which mmcv
    # does not pass.
    arguments = _deform_arguments(
        (input, gradWeight, offset, None, None),
        ((dH, dW), (padH, padW), (dilationH, dilationW)),
        (group, deformable_group),
    )
    _, by_weight, _, _, _ = _deform_backward(gradOutput, arguments)
    gradWeight.add_(by_weight, alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Convolve a map sampled at shifted places, each sample with a factor.

    Args:
        input: (B, C, H, W).
        weight: (O, C / group, kernel_h, kernel_w).
        bias: (O,), unused without `with_bias`.
        ones: Unused work space.
        offset: (B, deformable_group * kernel_h * kernel_w * 2, Ho, Wo),
            shifts y, x of each sample in pixels.
        mask: (B, deformable_group * kernel_h * kernel_w, Ho, Wo), factor of
            each sample.
        output: (B, O, Ho, Wo), filled.
        columns: Unused work space.
        kernel_h: Height of the kernel, as `weight` has it.
        kernel_w: Width of the kernel, as `weight` has it.
        stride_h: Stride in y.
        stride_w: Stride in x.
        pad_h: Zeros on either side in y.
        pad_w: Zeros on either side in x.
        dilation_h: Pixels between the samples in y.
        dilation_w: Pixels between the samples in x.
        group: Groups of channels that are convolved apart.
        deformable_group: Groups of channels with shifts of their own.
        with_bias: Whether `bias` is added.

    Raises:
        RuntimeError: The shapes do not fit.
    """
    arguments = _deform_arguments(
        (input, weight, offset, mask, bias if with_bias else None),
        ((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)),
        (group, deformable_group),
    )
    output.copy_(torch.ops.torchvision.deform_conv2d(*arguments))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Add the gradients by input, weight and bias, set the other two.

    The arguments are those of `modulated_deform_conv_forward`, and
    `grad_bias` is untouched without `with_bias`.
    """
    arguments = _deform_arguments(
        (input, weight, offset, mask, bias if with_bias else None),
        ((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)),
        (group, deformable_group),
    )
    by_input, by_weight, by_offset, by_mask, by_bias = _deform_backward(
        grad_output, arguments
    )
    grad_input.add_(by_input)
    grad_weight.add_(by_weight)
    grad_offset.copy_(by_offset)
    grad_mask.copy_(by_mask)
    if with_bias:
        grad_bias.add_(by_bias)


def _deform_arguments(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    groups: tuple[int, int],
) -> tuple:
    """Make the argument list that torchvision's two functions share.

    Args:
        tensors: Input, weight, offset, mask and bias.
        geometry: Stride, padding and dilation, each y, x.
        groups: Groups of the weight and of the offset.
    """
    input, weight, offset, mask, bias = tensors
    use_mask = mask is not None
    # Torchvision takes tensors also for what is absent, as zeros.
    if mask is None:
        mask = input.new_zeros((len(input), 1))
    if bias is None:
        bias = input.new_zeros(len(weight))
    tensors = (input, weight, offset, mask, bias)
    numbers = (number for pair in geometry for number in pair)
    return (*map(_widen, tensors), *numbers, *groups, use_mask)


def _deform_backward(
    grad_output: Tensor, arguments: tuple
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients by input, weight, offset, mask and bias."""
    return torch.ops.torchvision._deform_conv2d_backward(
        _widen(grad_output), *arguments
    )
