# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Every op through `mmcv.ops`, against loops written from its definition."""

import inspect
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmattn.compat.finder import ops_source

if ops_source() != 'torchvision':
    pytest.skip(
        'mmattn does not provide the ops here', allow_module_level=True
    )

import mmcv.ops
from torch.autograd import gradcheck

ext = sys.modules['mmcv._ext']
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(
    params=[
        'cpu',
        pytest.param(
            'cuda',
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason='no GPU'
            ),
        ),
    ]
)
def device(request):
    return request.param


def check(result, expected, tol=1e-12):
    result = result.detach().double().cpu().numpy()
    np.testing.assert_allclose(result, expected, rtol=tol, atol=tol)


def low_precision(dtype):
    """The relative error of rounding a number once, with some room."""
    return 1.01 * torch.finfo(dtype).eps


# Non-maximum suppression


def random_boxes(count, ties=False):
    corner = torch.rand(count, 2) * 50
    boxes = torch.cat([corner, corner + torch.rand(count, 2) * 30], 1)
    scores = torch.rand(count)
    if ties:
        boxes, scores = boxes.round(), (scores * 4).round() / 4
    return boxes, scores


def box_iou(a, b, offset):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    inter = max(width, 0) * max(height, 0)
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    union = area_a + area_b - inter
    return inter / union if union > 0 else 0.0


def reference_nms(boxes, scores, threshold, offset):
    boxes, scores = boxes.tolist(), scores.tolist()
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [
            i
            for i in left
            if box_iou(boxes[best], boxes[i], offset) <= threshold
        ]
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.5, 0.8])
@pytest.mark.parametrize('ties', [False, True])
def test_nms(offset, threshold, ties, device):
    for count in (1, 2, 60):
        boxes, scores = random_boxes(count, ties)
        dets, kept = mmcv.ops.nms(
            boxes.to(device), scores.to(device), threshold, offset=offset
        )
        expected = reference_nms(boxes, scores, threshold, offset)
        assert kept.tolist() == expected
        assert kept.dtype == torch.int64
        check(dets[:, :4], boxes[expected])
        check(dets[:, 4], scores[expected])


@pytest.mark.parametrize('dtype', [torch.float64, *HALF])
def test_nms_of_other_types(dtype, device):
    boxes, scores = random_boxes(60, ties=True)
    kept = mmcv.ops.nms(boxes.to(device, dtype), scores.to(device, dtype), 0.4)
    assert kept[1].tolist() == reference_nms(boxes, scores, 0.4, 0)
    assert kept[0].dtype == dtype


def test_nms_keeps_an_iou_equal_to_the_threshold():
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 1, 1]])
    scores = torch.tensor([0.9, 0.8])
    # 0.1 is greater in float32 than in float64.
    assert mmcv.ops.nms(boxes, scores, 0.1)[1].tolist() == [0, 1]
    assert mmcv.ops.nms(boxes, scores, 0.0999)[1].tolist() == [0]


def test_nms_without_boxes(device):
    boxes, scores = torch.zeros(0, 4).to(device), torch.zeros(0).to(device)
    dets, kept = mmcv.ops.nms(boxes, scores, 0.5)
    assert dets.shape == (0, 5) and kept.shape == (0,)


def test_nms_by_class_score_and_number():
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [0, 0, 8, 9]])
    scores, classes = torch.tensor([0.3, 0.9, 0.6]), torch.tensor([0, 0, 1])
    config = dict(type='nms', iou_threshold=0.5)
    assert mmcv.ops.batched_nms(boxes, scores, classes, config)[
        1
    ].tolist() == [
        1,
        2,
    ]
    kept = mmcv.ops.nms(boxes, scores, 0.9, score_threshold=0.5, max_num=1)
    assert kept[1].tolist() == [1]


def reference_soft_nms(boxes, scores, threshold, sigma, least, method, offset):
    left = [[*b, s, i] for i, (b, s) in enumerate(zip(boxes, scores))]
    taken = []
    while left:
        # The first maximum, with which the head of the list changes places.
        best = max(range(len(left)), key=lambda i: left[i][4])
        left[0], left[best] = left[best], left[0]
        head = left.pop(0)
        taken.append(head)
        i = 0
        while i < len(left):
            iou = box_iou(head, left[i], offset)
            if method == 'gaussian':
                left[i][4] *= math.exp(-(iou**2) / sigma)
            elif iou >= threshold:
                left[i][4] *= 1 - iou if method == 'linear' else 0
            if left[i][4] < least:
                # The last of the list fills the gap and has its turn.
                last = left.pop()
                if i < len(left):
                    left[i] = last
            else:
                i += 1
    return np.array([t[:5] for t in taken]), [t[5] for t in taken]


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('ties', [False, True])
def test_soft_nms(method, offset, ties):
    for count, least in ((1, 0.001), (2, 0.3), (40, 0.0), (40, 0.05)):
        boxes, scores = (t.double() for t in random_boxes(count, ties))
        options = (0.3, 0.4, least, method, offset)
        dets, kept = mmcv.ops.soft_nms(boxes, scores, *options)
        expected, indices = reference_soft_nms(
            boxes.tolist(), scores.tolist(), *options
        )
        assert kept.tolist() == indices
        check(dets, expected)


@pytest.mark.parametrize('dtype', [torch.float32, *HALF])
def test_soft_nms_of_other_types(dtype, device):
    boxes, scores = random_boxes(30, ties=True)
    dets, kept = mmcv.ops.soft_nms(
        boxes.to(device, dtype), scores.to(device, dtype)
    )
    expected, indices = reference_soft_nms(
        boxes.tolist(), scores.tolist(), 0.3, 0.5, 1e-3, 'linear', 0
    )
    assert kept.tolist() == indices
    check(dets, expected, low_precision(dtype))


def test_soft_nms_without_boxes_and_with_empty_ones():
    dets, kept = mmcv.ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5) and kept.shape == (0,)
    boxes, scores = torch.ones(2, 4), torch.tensor([0.5, 0.6])
    dets, kept = mmcv.ops.soft_nms(boxes, scores, method='gaussian')
    assert kept.tolist() == [1, 0] and dets[:, 4].isfinite().all()


# RoI pooling


def make_rois(scale):
    """RoIs inside, across the border, outside and tiny, for a 7 x 9 map."""
    rois = [
        [0, 1.3, 0.6, 6.2, 5.9],
        [1, -2.5, 3.1, 4.4, 9.7],
        [0, 2.0, 1.0, 5.0, 4.0],
        [1, 20.0, 20.0, 30.0, 24.0],
        [0, 3.3, 2.2, 3.5, 2.3],
    ]
    rois = torch.tensor(rois, dtype=torch.float64)
    rois[:, 1:] /= scale
    return rois


def bilinear(plane, y, x):
    """The value of a map (C, H, W) between its pixels, clamped at the rim."""
    height, width = plane.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(plane))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    dy, dx = y - y0, x - x0
    upper = plane[:, y0, x0] * (1 - dx) + plane[:, y0, x1] * dx
    lower = plane[:, y1, x0] * (1 - dx) + plane[:, y1, x1] * dx
    return upper * (1 - dy) + lower * dy


def reference_roi_align(feats, rois, bins, scale, samples, aligned):
    result = np.zeros((len(rois), feats.shape[1], *bins))
    for r, (image, *corners) in enumerate(rois):
        x1, y1, x2, y2 = (c * scale - 0.5 * aligned for c in corners)
        size = np.array([y2 - y1, x2 - x1])
        if not aligned:
            size = np.maximum(size, 1)
        step = size / bins
        counts = [samples or max(math.ceil(s), 1) for s in step]
        for i, j, a, b in np.ndindex(*bins, *counts):
            y = y1 + (i + (a + 0.5) / counts[0]) * step[0]
            x = x1 + (j + (b + 0.5) / counts[1]) * step[1]
            value = bilinear(feats[int(image)], y, x)
            result[r, :, i, j] += value / (counts[0] * counts[1])
    return result


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('samples', [0, 2, 3])
@pytest.mark.parametrize('scale', [1.0, 0.125])
def test_roi_align(aligned, samples, scale, device):
    feats, rois = torch.randn(2, 3, 7, 9).double(), make_rois(scale)
    options = ((3, 2), scale, samples)
    pooled = mmcv.ops.roi_align(
        feats.to(device), rois.to(device), *options, 'avg', aligned
    )
    expected = reference_roi_align(
        feats.numpy(), rois.numpy(), *options, aligned
    )
    check(pooled, expected)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('samples', [0, 2])
def test_roi_align_gradient(aligned, samples):
    feats = torch.randn(2, 2, 7, 9).double().requires_grad_()
    layer = mmcv.ops.RoIAlign((2, 3), 0.5, samples, aligned=aligned)
    assert gradcheck(layer, (feats, make_rois(0.5)))


@pytest.mark.parametrize('dtype', HALF)
def test_roi_align_of_half(dtype, device):
    feats, rois = torch.randn(2, 3, 7, 9).to(dtype), make_rois(1.0).to(dtype)
    feats.requires_grad_()
    pooled = mmcv.ops.roi_align(
        feats.to(device), rois.to(device), (3, 2), 1.0, 2, 'avg', True
    )
    expected = reference_roi_align(
        feats.detach().double().numpy(), rois.double().numpy(), (3, 2), 1, 2, 1
    )
    assert pooled.dtype == dtype
    check(pooled, expected, low_precision(dtype))
    pooled.sum().backward()
    assert feats.grad.dtype == dtype and feats.grad.isfinite().all()


def test_roi_align_by_maximum_is_refused():
    feats = torch.randn(1, 1, 4, 4)
    rois = torch.tensor([[0.0, 0, 0, 2, 2]])
    with pytest.raises(RuntimeError, match='roi_align.*max.*mmcv-lite'):
        mmcv.ops.roi_align(feats, rois, 2, 1.0, 0, 'max', True)


def reference_roi_pool(feats, rois, bins, scale):
    """Maxima and their pixels; 0 and -1 where there is none."""
    channels, height, width = feats.shape[1:]
    maxima = np.zeros((len(rois), channels, *bins))
    argmax = np.full(maxima.shape, -1)
    for r, (image, *corners) in enumerate(rois):
        x1, y1 = (c * scale for c in corners[:2])
        x2, y2 = ((c + 1) * scale for c in corners[2:])
        if x2 <= x1 or y2 <= y1:
            continue
        for c, i, j in np.ndindex(channels, *bins):
            rows = pixels_of_bin(y1, y2, i, bins[0], height)
            columns = pixels_of_bin(x1, x2, j, bins[1], width)
            best = -math.inf
            for y in rows:
                for x in columns:
                    if feats[int(image), c, y, x] > best:
                        best = feats[int(image), c, y, x]
                        maxima[r, c, i, j] = best
                        argmax[r, c, i, j] = y * width + x
    return maxima, argmax


def pixels_of_bin(start, end, index, bins, size):
    step = (end - start) / bins
    first = math.floor(np.float32(start + index * step))
    last = math.ceil(np.float32(start + (index + 1) * step))
    return range(min(max(first, 0), size), min(max(last, 0), size))


MALFORMED = torch.tensor([[1, 5.0, 4.0, 3.0, 6.0], [0, 9.0, 9.0, 9.0, 1.0]])


@pytest.mark.parametrize('scale', [1.0, 0.3])
@pytest.mark.parametrize('gather', [1, 2**24])
@pytest.mark.parametrize('ties', [True, False])
def test_roi_pool(scale, gather, ties, device, monkeypatch):
    monkeypatch.setattr(ext, '_GATHER', gather)
    feats = torch.randn(2, 3, 7, 9).double()
    if ties:
        feats = feats.round()
    rois = torch.cat([make_rois(scale), MALFORMED.double()])
    output = torch.full((len(rois), 3, 4, 2), math.nan, dtype=torch.float64)
    argmax = torch.zeros(output.shape, dtype=torch.int32)
    output, argmax = output.to(device), argmax.to(device)
    ext.roi_pool_forward(
        feats.to(device), rois.to(device), output, argmax, 4, 2, scale
    )
    maxima, pixels = reference_roi_pool(
        feats.numpy(), rois.numpy(), (4, 2), scale
    )
    check(output, maxima)
    assert (argmax.cpu().numpy() == pixels).all()
    public = mmcv.ops.roi_pool(
        feats.to(device), rois.to(device), (4, 2), scale
    )
    check(public, maxima)


def test_roi_pool_gradient():
    feats = torch.randn(2, 1, 6, 7).double().requires_grad_()
    rois = torch.cat([make_rois(0.5), MALFORMED.double()])
    assert gradcheck(mmcv.ops.RoIPool((3, 2), 0.5), (feats, rois))


def test_roi_pool_corner_that_misses_a_pixel_by_rounding():
    # The last of 7 bins ends at 1.0000000000000002 in float64, 1 in float32.
    feats = torch.arange(5.0).double().expand(1, 1, 5, 5)
    rois = torch.tensor([[0.0, 1, 1, 9, 9]]).double()
    pooled = mmcv.ops.roi_pool(feats, rois, (1, 7), 0.1)
    assert pooled.flatten().tolist() == [0] * 7


@pytest.mark.parametrize('dtype', HALF)
def test_roi_pool_of_half(dtype, device):
    feats, rois = torch.randn(2, 3, 7, 9).to(dtype), make_rois(1.0).to(dtype)
    feats.requires_grad_()
    pooled = mmcv.ops.roi_pool(feats.to(device), rois.to(device), (4, 2), 1.0)
    maxima, pixels = reference_roi_pool(
        feats.detach().double().numpy(), rois.double().numpy(), (4, 2), 1.0
    )
    check(pooled, maxima)
    pooled.sum().backward()
    assert feats.grad.sum() == (pixels >= 0).sum()


def test_roi_pooling_without_rois(device):
    feats = torch.randn(2, 3, 7, 9, requires_grad=True)
    rois = torch.zeros(0, 5, device=device)
    for pool in (mmcv.ops.roi_align, mmcv.ops.roi_pool):
        pooled = pool(feats.to(device), rois, (4, 2), 1.0)
        assert pooled.shape == (0, 3, 4, 2)
        pooled.sum().backward()
    assert feats.grad.abs().max() == 0


# Focal loss

TARGET = torch.tensor([0, 2, 3, 1, 3, 2])  # 3 is the background of 3 classes
WEIGHT = torch.tensor([0.5, 2.0, 3.0]).double()


def reference_sigmoid_loss(logits, target, gamma, alpha, weight):
    loss = np.zeros(logits.shape)
    for n, c in np.ndindex(*loss.shape):
        p = 1 / (1 + math.exp(-logits[n, c]))
        if target[n] == c:
            loss[n, c] = -alpha * (1 - p) ** gamma * math.log(p)
        else:
            loss[n, c] = -(1 - alpha) * p**gamma * math.log(1 - p)
        if weight is not None and 0 <= target[n] < len(weight):
            loss[n, c] *= weight[target[n]]
    return loss


def reference_softmax_loss(logits, target, gamma, alpha, weight):
    loss = np.zeros(len(logits))
    for n, label in enumerate(target):
        if 0 <= label < logits.shape[1]:
            powers = [math.exp(x) for x in logits[n]]
            p = powers[label] / sum(powers)
            loss[n] = -alpha * (1 - p) ** gamma * math.log(p)
            if weight is not None:
                loss[n] *= weight[label]
    return loss


LOSSES = {
    'sigmoid': (mmcv.ops.sigmoid_focal_loss, reference_sigmoid_loss),
    'softmax': (mmcv.ops.softmax_focal_loss, reference_softmax_loss),
}
REDUCE = {
    'none': lambda loss: loss,
    'sum': np.sum,
    'mean': lambda loss: loss.sum() / len(loss),
}


@pytest.mark.parametrize('kind', LOSSES)
@pytest.mark.parametrize('weight', [None, WEIGHT], ids=['plain', 'weighted'])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_focal_loss(kind, weight, gamma, device):
    op, reference = LOSSES[kind]
    logits = torch.randn(6, 3).double() * 2
    moved = None if weight is None else weight.to(device)
    expected = reference(logits.numpy(), TARGET.numpy(), gamma, 0.3, weight)
    for reduction, reduce in REDUCE.items():
        loss = op(
            logits.to(device), TARGET.to(device), gamma, 0.3, moved, reduction
        )
        check(loss, reduce(expected))


@pytest.mark.parametrize('kind', LOSSES)
@pytest.mark.parametrize('weight', [None, WEIGHT], ids=['plain', 'weighted'])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_focal_loss_gradient(kind, weight, gamma):
    op = LOSSES[kind][0]
    logits = torch.randn(6, 3).double().requires_grad_()
    for reduction in ('sum', 'mean'):
        assert gradcheck(op, (logits, TARGET, gamma, 0.3, weight, reduction))


@pytest.mark.parametrize('kind', LOSSES)
def test_focal_loss_of_ignored_rows(kind):
    op, reference = LOSSES[kind]
    logits, target = torch.randn(3, 4).double(), torch.tensor([-1, 4, -7])
    loss = op(logits, target, 2.0, 0.25, None, 'none')
    check(loss, reference(logits.numpy(), target.numpy(), 2, 0.25, None))


@pytest.mark.parametrize('kind', LOSSES)
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_focal_loss_of_certain_predictions(kind, gamma, dtype):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], dtype=dtype)
    logits.requires_grad_()
    loss = LOSSES[kind][0](logits, torch.tensor([0, 0]), gamma, 0.25)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize('kind', LOSSES)
@pytest.mark.parametrize('dtype', HALF)
def test_focal_loss_of_half(kind, dtype, device):
    op, reference = LOSSES[kind]
    # Multiples of 1/4 with a softmax that 16 bits hold to their precision.
    logits = torch.randn(6, 3).mul(4).round().div(4).to(dtype)
    logits.requires_grad_()
    loss = op(
        logits.to(device),
        TARGET.to(device),
        2.0,
        0.25,
        WEIGHT.to(device),
        'none',
    )
    expected = reference(
        logits.detach().double().numpy(), TARGET.numpy(), 2.0, 0.25, WEIGHT
    )
    # For softmax mmcv's wrapper takes the softmax in 16 bits before.
    check(
        loss, expected, low_precision(dtype) * (16 if kind == 'softmax' else 1)
    )
    op(logits, TARGET, 2.0, 0.25, WEIGHT.to(dtype), 'sum').backward()
    assert logits.grad.dtype == dtype and logits.grad.isfinite().all()


@pytest.mark.parametrize('kind', LOSSES)
def test_focal_loss_without_rows_and_of_an_unknown_class(kind):
    op = LOSSES[kind][0]
    empty = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    if kind == 'sigmoid':
        assert op(*empty, 2.0, 0.25, None, 'sum') == 0
    with pytest.raises(RuntimeError, match='class 4.*3 classes'):
        op(torch.zeros(1, 3), torch.tensor([4]))


# Deformable convolution


def sample(plane, y, x):
    """The value of a map (C, H, W) between its pixels, 0 around it."""
    height, width = plane.shape[1:]
    value = np.zeros(len(plane))
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(y - row)) * (1 - abs(x - column))
                value += share * plane[:, row, column]
    return value


def reference_deform_conv(
    feats, offset, mask, weight, bias, stride, padding, dilation, dgroups
):
    batch, channels = feats.shape[:2]
    outputs, per_group, *kernel = weight.shape
    groups = channels // per_group
    shape = offset.shape[2:]
    result = np.zeros((batch, outputs, *shape))
    taps = kernel[0] * kernel[1]
    owner = np.arange(channels) // (channels // dgroups)
    for b, i, j, u, v in np.ndindex(batch, *shape, *kernel):
        values = np.zeros(channels)
        for d in range(dgroups):
            tap = d * taps + u * kernel[1] + v
            dy, dx = offset[b, 2 * tap : 2 * tap + 2, i, j]
            y = i * stride[0] - padding[0] + u * dilation[0] + dy
            x = j * stride[1] - padding[1] + v * dilation[1] + dx
            factor = 1 if mask is None else mask[b, tap, i, j]
            mine = owner == d
            values[mine] = factor * sample(feats[b, mine], y, x)
        for o in range(outputs):
            group = o // (outputs // groups)
            part = values[group * per_group : (group + 1) * per_group]
            result[b, o, i, j] += part @ weight[o, :, u, v]
    return result if bias is None else result + bias[None, :, None, None]


GEOMETRY = [
    # stride, padding, dilation, groups, groups of offsets, kernel
    ((1, 1), (1, 1), (1, 1), 1, 1, (3, 3)),
    ((2, 1), (0, 2), (1, 2), 2, 1, (3, 2)),
    ((1, 2), (1, 0), (2, 1), 1, 2, (2, 3)),
    ((2, 2), (2, 1), (1, 1), 2, 4, (1, 3)),
]


def make_deform(geometry, batch=2, size=(5, 6)):
    """Input, offset, mask, weight and bias, of 4 channels in and out."""
    stride, padding, dilation, groups, dgroups, kernel = geometry
    shape = [
        (size[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1)
        // stride[d]
        + 1
        for d in (0, 1)
    ]
    taps = dgroups * kernel[0] * kernel[1]
    tensors = (
        torch.randn(batch, 4, *size),
        torch.randn(batch, 2 * taps, *shape) * 1.5,
        torch.rand(batch, taps, *shape),
        torch.randn(4, 4 // groups, *kernel),
        torch.randn(4),
    )
    return [t.double() for t in tensors]


def numbers(tensors):
    return [
        None if t is None else t.detach().cpu().double().numpy()
        for t in tensors
    ]


@pytest.mark.parametrize('geometry', GEOMETRY)
def test_deform_conv(geometry, device):
    feats, offset, _, weight, _ = make_deform(geometry)
    moved = (t.to(device) for t in (feats, offset, weight))
    result = mmcv.ops.deform_conv2d(*moved, *geometry[:5])
    expected = reference_deform_conv(
        *numbers((feats, offset, None, weight, None)),
        *geometry[:3],
        geometry[4],
    )
    check(result, expected)


@pytest.mark.parametrize('geometry', GEOMETRY)
@pytest.mark.parametrize('with_bias', [True, False])
def test_modulated_deform_conv(geometry, with_bias, device):
    tensors = make_deform(geometry)
    if not with_bias:
        tensors[4] = None
    moved = (None if t is None else t.to(device) for t in tensors)
    result = mmcv.ops.modulated_deform_conv2d(*moved, *geometry[:5])
    expected = reference_deform_conv(
        *numbers(tensors), *geometry[:3], geometry[4]
    )
    check(result, expected)


@pytest.mark.parametrize('geometry', GEOMETRY)
def test_deform_conv_gradient(geometry):
    tensors = make_deform(geometry, batch=1, size=(3, 4))
    feats, offset, _, weight, _ = (t.requires_grad_() for t in tensors)

    def op(feats, offset, weight):
        return mmcv.ops.deform_conv2d(feats, offset, weight, *geometry[:5])

    assert gradcheck(op, (feats, offset, weight))


@pytest.mark.parametrize('geometry', GEOMETRY)
@pytest.mark.parametrize('with_bias', [True, False])
def test_modulated_deform_conv_gradient(geometry, with_bias):
    tensors = make_deform(geometry, batch=1, size=(3, 4))
    if not with_bias:
        tensors.pop()

    def op(feats, offset, mask, weight, bias=None):
        return mmcv.ops.modulated_deform_conv2d(
            feats, offset, mask, weight, bias, *geometry[:5]
        )

    assert gradcheck(op, [t.requires_grad_() for t in tensors])


@pytest.mark.parametrize('dtype', HALF)
def test_deform_conv_of_half(dtype, device):
    geometry = GEOMETRY[0]
    leaves = [
        t.to(device, dtype).requires_grad_() for t in make_deform(geometry)
    ]
    feats, offset, _, weight, _ = leaves
    plain = mmcv.ops.deform_conv2d(feats, offset, weight, *geometry[:5])
    modulated = mmcv.ops.modulated_deform_conv2d(*leaves, *geometry[:5])
    for result, used in (
        (plain, (feats, offset, None, weight, None)),
        (modulated, leaves),
    ):
        expected = reference_deform_conv(*numbers(used), *geometry[:3], 1)
        assert result.dtype == dtype
        check(result, expected, low_precision(dtype))
    (plain.sum() + modulated.sum()).backward()
    for leaf in leaves:
        assert leaf.grad.dtype == dtype and leaf.grad.isfinite().all()


def test_deform_conv_without_shifts_is_a_convolution():
    layer = mmcv.ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1).double()
    feats = torch.randn(2, 4, 5, 6).double()
    # Its mask starts as sigmoid(0).
    plain = torch.nn.functional.conv2d(
        feats, layer.weight / 2, layer.bias, padding=1
    )
    check(layer(feats), plain.detach())


def test_deform_conv_adds_to_the_gradients_it_is_given():
    feats, offset, _, weight, _ = make_deform(GEOMETRY[0])
    weight.requires_grad_()
    result = mmcv.ops.deform_conv2d(feats, offset, weight, *GEOMETRY[0][:5])
    grad = torch.randn_like(result)
    (expected,) = torch.autograd.grad(result, weight, grad)
    total = torch.ones_like(weight)
    ext.deform_conv_backward_parameters(
        feats,
        offset,
        grad,
        total,
        feats.new_empty(0),
        feats.new_empty(0),
        kW=3,
        kH=3,
        dW=1,
        dH=1,
        padW=1,
        padH=1,
        dilationW=1,
        dilationH=1,
        group=1,
        deformable_group=1,
        scale=0.5,
        im2col_step=2,
    )
    check(total, 1 + 0.5 * expected.numpy())


def test_deform_conv_of_wrong_offsets_is_refused():
    feats, offset, _, weight, _ = make_deform(GEOMETRY[0])
    with pytest.raises(RuntimeError, match='offset'):
        mmcv.ops.deform_conv2d(feats, offset, weight, 1, 1, 1, 1, 2)


# The module


def test_missing_op_raises_when_called_and_names_itself():
    boxes = torch.zeros(1, 4)
    with pytest.raises(RuntimeError, match='bbox_overlaps.*mmcv-lite') as info:
        mmcv.ops.bbox_overlaps(boxes, boxes)
    assert torch.__version__ in str(info.value)
    with pytest.raises(RuntimeError, match='some_op'):
        ext.some_op(1, key=2)
    assert not hasattr(ext, '__path__')


def test_arguments_are_those_of_mmcv():
    """Names and order of all arguments, from mmcv's list of its ops."""
    source = Path(mmcv.ops.__file__).with_name('csrc') / 'pytorch/pybind.cpp'
    if not source.exists():
        pytest.skip('this mmcv comes without its sources')
    calls = re.findall(
        r'm\.def\(\s*"(\w+)"(.*?)\);', source.read_text(), re.DOTALL
    )
    theirs = {
        name: re.findall(r'arg\("(\w+)"\)', call) for name, call in calls
    }
    ours = {
        name: list(inspect.signature(function).parameters)
        for name, function in vars(ext).items()
        if inspect.isfunction(function) and not name.startswith('_')
    }
    assert len(ours) == 17
    for name, arguments in ours.items():
        assert arguments == theirs[name], name
