# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""torch's exporters, under one name for all torches.

ONNX is written by the exporter that traces (``dynamo=False``): the only one
of torch 2.1, and in newer ones a matter of seconds where the other takes a
minute. What it gets wrong for maps of any size is mended here while it runs.
"""

import contextlib
import functools
import inspect
import io
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.onnx import symbolic_helper

#: torch.export finds the ranges of sizes by itself from torch 2.6 on.
HAS_PROGRAMS = hasattr(
    getattr(getattr(torch, 'export', None), 'Dim', None), 'DYNAMIC'
)
#: The oldest opset that has RoIAlign as mmcv defines it.
LOWEST_OPSET = 16
#: Axes of ``(B, C, H, W)`` whose size may vary.
AXES = {0: 'batch', 2: 'height', 3: 'width'}


def to_onnx(
    module: nn.Module,
    example: Tensor,
    names: list[str],
    dynamic: bool,
    opset: int,
) -> bytes:
    """Write a module as ONNX.

    Args:
        module: Turns an image, ``(B, 3, H, W)``, into a tuple of tensors.
        example: What it is traced with.
        names: One a tensor.
        dynamic: Whether the graph takes any batch, height and width.
        opset: Version of ONNX's operators, at least :data:`LOWEST_OPSET`.
    """
    options = dict(opset_version=opset, input_names=['input'])
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        options['dynamo'] = False
    if dynamic:
        options['dynamic_axes'] = {'input': AXES, **{n: [0] for n in names}}
    file = io.BytesIO()
    with _mended_exporter(opset), _traceable_mmcv(), torch.no_grad():
        torch.onnx.export(
            module, (example,), file, output_names=names, **options
        )
    return file.getvalue()


def to_script(module: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    """Trace a module; see :func:`to_onnx`."""
    with _traceable_mmcv(), torch.no_grad():
        return torch.jit.trace(module, example, check_trace=False)


def to_program(module: nn.Module, example: Tensor, dynamic: bool) -> Any:
    """Export a module as ``torch.export`` does; see :func:`to_onnx`."""
    any_size = dict.fromkeys(AXES, torch.export.Dim.DYNAMIC)
    with _general_shapes(), torch.no_grad():
        return torch.export.export(
            module,
            (example,),
            dynamic_shapes=(any_size if dynamic else None,),
            strict=False,
        )


@contextlib.contextmanager
def _general_shapes() -> Iterator[None]:
    """Keep the parity of the example's sizes, and 1, out of a program.

    torch asks whether the stride of a pooling divides the map, to round a
    quotient that is rounded already, and ties the program to the answer.
    """
    config, key = torch.fx.experimental._config, 'backed_size_oblivious'
    with contextlib.ExitStack() as stack:
        if hasattr(config, key):
            stack.enter_context(config.patch(**{key: True}))
        stack.enter_context(
            mock.patch.object(
                torch._meta_registrations, 'div_rtn', lambda x, y: x // y
            )
        )
        yield


@contextlib.contextmanager
def _mended_exporter(opset: int) -> Iterator[None]:
    """Make the exporter of ONNX right for any size."""
    unflatten = 'aten::unflatten', _unflatten, opset
    torch.onnx.register_custom_op_symbolic(*unflatten)
    # mmdet leads exporters to mmdet.core, which is no more.
    blind = mock.patch.object(torch.onnx, 'is_in_onnx_export', lambda: False)
    pool = mock.patch.object(F, 'adaptive_avg_pool2d', _pool_to)
    try:
        with blind, pool:
            yield
    finally:
        torch.onnx.unregister_custom_op_symbolic(unflatten[0], opset)


@contextlib.contextmanager
def _traceable_mmcv() -> Iterator[None]:
    """Let torchvision do what no graph can hold of mmcv: NMS, RoIAlign.

    Classifiers do without mmcv's ops, and so do environments without mmdet.
    """
    try:
        from mmcv.ops import nms, roi_align
    except ImportError:
        yield
        return
    from . import mmcv_ext

    # The package has functions of these names, which hide its modules.
    nms, roi_align = (
        sys.modules[f'mmcv.ops.{name}'] for name in ('nms', 'roi_align')
    )
    select = functools.partial(nms.NMSop.forward, None)
    with (
        mock.patch.object(nms, 'ext_module', mmcv_ext),
        mock.patch.object(nms.NMSop, 'apply', select),
        mock.patch.object(roi_align, 'roi_align', _roi_align),
    ):
        yield


def _roi_align(x, rois, size, scale, ratio, mode, aligned):
    if mode != 'avg':
        raise NotImplementedError(f'RoIAlign with pool_mode={mode!r}')
    return torchvision.ops.roi_align(x, rois, size, scale, ratio, aligned)


def _pool_to(x: Tensor, output_size: int | tuple[int, int]) -> Tensor:
    """Pool adaptively by two products, which hold for any size."""
    if isinstance(output_size, int):
        output_size = (output_size, output_size)
    if tuple(output_size) == (1, 1):
        return x.mean((2, 3), keepdim=True)
    rows, columns = (
        _cells(length if cells is None else cells, length, x)
        for cells, length in zip(output_size, x.shape[2:])
    )
    return rows @ x @ columns.T


def _cells(cells: int, length: int, x: Tensor) -> Tensor:
    """Return what each cell weighs each pixel with, ``(cells, length)``."""
    cell = torch.arange(cells, device=x.device)[:, None]
    start = cell * length // cells
    end = ((cell + 1) * length + cells - 1) // cells  # rounded up
    pixel = torch.arange(length, device=x.device)
    inside = (start <= pixel) & (pixel < end)
    return inside.to(x.dtype) / (end - start)


def _unflatten(g, x, dim, sizes):
    """Split an axis; the exporter's own takes the example's sizes on."""
    rank = symbolic_helper._get_tensor_rank(x)
    dim = symbolic_helper._maybe_get_const(dim, 'i') % rank
    shape = g.op('Shape', x)
    before, after = (
        symbolic_helper._slice_helper(
            g, shape, axes=[0], starts=[first], ends=[last]
        )
        for first, last in ((0, dim), (dim + 1, rank))
    )
    new = g.op('Concat', before, sizes, after, axis_i=0)
    return symbolic_helper._reshape_helper(g, x, new)
