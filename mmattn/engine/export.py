# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Models as files that run without this package.

What such a file computes is compared with the model before it gets its name.
"""

import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from mmattn.compat import exporting
from mmattn.errors import ConfigError

FORMATS = ('onnx', 'torchscript', 'torch-export')
PARTS = ('model', 'backbone', 'dense')
#: Name of the entry with what :func:`describe` returns.
NOTE = 'mmattn'
INSTALL = "pip install -e '.[export]'"

#: Turns an image, ``(B, 3, H, W)``, into tensors.
Run = Callable[[Tensor], list[Tensor]]


class Difference(NamedTuple):
    """How a file's results differ from the model's.

    Attributes:
        shape: Shape of the input.
        largest: The largest absolute difference, of the output where it is
            largest relative to ``value``.
        value: The largest absolute value of that output.
        items: Number of values of all outputs.
    """

    shape: tuple[int, ...]
    largest: float
    value: float
    items: int

    @property
    def relative(self) -> float:
        """The difference relative to the largest value."""
        return self.largest / max(self.value, 1e-12)


# ------------------------------------------------------------ what is written


class Part(nn.Module):
    """A part of a model as a function of an image alone.

    Attributes:
        names (list[str] | None): Names of the tensors, of a part with a
            known number of them.
        any_size (bool): Whether it can be exported for any batch, height and
            width.
    """

    names = None
    any_size = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class Scores(Part):
    """A classifier: scores before the softmax, ``(B, classes)``."""

    names = ['logits']

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return them for an image, ``(B, 3, H, W)``."""
        return (self.model(x, mode='tensor'),)


class Segments(Part):
    """A segmentor: scores before the softmax, ``(B, classes, H, W)``."""

    names = ['logits']

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return them for an image, ``(B, 3, H, W)``."""
        logits = self.model(x, mode='tensor')
        corners = self.model.align_corners
        return (
            F.interpolate(
                logits, x.shape[2:], mode='bilinear', align_corners=corners
            ),
        )


class Maps(Part):
    """A backbone: the map of every output stage."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return them for an image, ``(B, 3, H, W)``."""
        return tuple(self.model(x))


class Dense(Part):
    """A detector's dense head: what it says of every anchor, by level.

    Of a detector in two stages that is the region proposal network.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return them for an image, ``(B, 3, H, W)``."""
        head = _dense_head(self.model)
        kinds = head(self.model.extract_feat(x))
        return tuple(level for kind in kinds for level in kind)


class Boxes(Part):
    """A detector with everything: boxes, scores and labels after the NMS.

    For one image of one size, which anchors and clipping are made for.
    """

    names = ['boxes', 'scores', 'labels']
    any_size = False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return them for an image, ``(1, 3, H, W)``."""
        from mmdet.structures import DetDataSample

        size = tuple(int(side) for side in x.shape[2:])
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size)
        meta.update(batch_input_shape=size, scale_factor=(1.0, 1.0))
        samples = [DetDataSample(metainfo=meta)]
        (result,) = self.model.predict(x, samples, rescale=False)
        found = result.pred_instances
        return found.bboxes, found.scores, found.labels


def _dense_head(model: nn.Module) -> nn.Module | None:
    for name in ('rpn_head', 'bbox_head'):
        if getattr(model, name, None) is not None:
            return getattr(model, name)
    return None


def take_part(model: nn.Module, scope: str, part: str) -> Part:
    """Return a part of a model as a function of an image.

    Args:
        model: The model. It loses the heads that the part does not need.
        scope: ``'mmdet'``, ``'mmseg'`` or ``'mmpretrain'``.
        part: One of :data:`PARTS`.

    Raises:
        ConfigError: If the model has no such part.
    """
    if part == 'backbone':
        return Maps(model.backbone).eval()
    if part == 'dense':
        if scope != 'mmdet' or _dense_head(model) is None:
            raise ConfigError(
                f'--part dense: {type(model).__name__} has no dense head; '
                'use --part model or backbone'
            )
        model.roi_head = None
        return Dense(model).eval()
    if scope == 'mmseg':
        model.auxiliary_head = None
    if getattr(model, 'with_mask', False):
        model.roi_head.mask_head = None
    kinds = dict(mmpretrain=Scores, mmseg=Segments, mmdet=Boxes)
    return kinds[scope](model).eval()


def describe(trained: object, part: str) -> dict:
    """Say what a user of the file has to know, in JSON's types.

    Args:
        trained: A :class:`mmattn.visualization.TrainedModel`.
        part: One of :data:`PARTS`.
    """
    preprocessor = trained.model.data_preprocessor
    settings = trained.cfg.model.data_preprocessor
    rgb = bool(settings.get('bgr_to_rgb') or settings.get('to_rgb'))
    note = dict(config=trained.name, part=part, rgb=rgb)
    for key in ('mean', 'std'):
        values = getattr(preprocessor, key, None)
        if values is not None:
            note[key] = [round(v, 4) for v in values.flatten().tolist()]
    note['classes'] = list(trained.model.dataset_meta.get('classes') or ())
    return note


# ------------------------------------------------------------------- formats


def write(
    part: Part,
    example: Tensor,
    path: str | Path,
    format: str,
    dynamic: bool = True,
    opset: int = 17,
    note: dict | None = None,
) -> None:
    """Write a part in a format.

    Args:
        part: What :func:`take_part` returns.
        example: Image of the size to trace with; a batch of two or more
            where the batch shall vary.
        path: The file.
        format: One of :data:`FORMATS`.
        dynamic: Whether the file shall take any batch, height and width.
        opset: Version of ONNX's operators.
        note: Stored in the file as JSON.

    Raises:
        ConfigError: If the exporter cannot do it; says where it stopped.
    """
    check_format(format)
    writer = dict(zip(FORMATS, (_write_onnx, _write_script, _write_program)))
    try:
        with _silence(), torch.no_grad():
            names = part.names
            if names is None:
                names = [f'map_{i}' for i in range(len(part(example)))]
            note = json.dumps(note or {})
            writer[format](part, example, path, dynamic, opset, names, note)
    except Exception as error:  # exporters raise what they like
        reason = str(error).strip().partition('\n')[0]
        hint = ''
        if not part.any_size:
            hint = '; --part dense leaves out the choice of boxes'
        raise ConfigError(
            f'--format {format} cannot express this model: '
            f'{type(error).__name__}: {reason}{hint}'
        ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drop what exporters print: each size they look at, and whole graphs.

    Not by Python's streams alone, for some of it comes from C++.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    streams = {number: os.dup(number) for number in (1, 2)}
    try:
        with (
            open(os.devnull, 'w') as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            warnings.catch_warnings(),
        ):
            for number in streams:
                os.dup2(nowhere.fileno(), number)
            warnings.simplefilter('ignore')
            yield
    finally:
        for number, saved in streams.items():
            os.dup2(saved, number)
            os.close(saved)


def check_format(format: str) -> None:
    """Raise ConfigError for a format that cannot be written here."""
    if format == 'torch-export' and not exporting.HAS_PROGRAMS:
        raise ConfigError(
            '--format torch-export needs torch 2.6 or newer, this is '
            f'{torch.__version__}; use onnx or torchscript'
        )
    if format == 'onnx':
        _import_onnx()


def _import_onnx() -> tuple:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f'--format onnx needs onnx and onnxruntime: {INSTALL}'
        ) from error
    return onnx, onnxruntime


def _write_onnx(part, example, path, dynamic, opset, names, note) -> None:
    onnx, _ = _import_onnx()
    data = exporting.to_onnx(part, example, names, dynamic, opset)
    graph = onnx.load_from_string(data)
    graph.metadata_props.add(key=NOTE, value=note)
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _write_script(part, example, path, dynamic, opset, names, note) -> None:
    script = exporting.to_script(part, example)
    torch.jit.save(script, path, _extra_files={NOTE: note})


def _write_program(part, example, path, dynamic, opset, names, note) -> None:
    program = exporting.to_program(part, example, dynamic)
    torch.export.save(program, path, extra_files={NOTE: note})


def load(path: str | Path, format: str) -> Run:
    """Load a file that :func:`write` wrote, to run it."""
    if format == 'torchscript':
        with _silence():
            return torch.jit.load(path)
    if format == 'torch-export':
        with _silence():
            return torch.export.load(path).module()
    _, onnxruntime = _import_onnx()
    onnxruntime.set_default_logger_severity(4)  # errors are raised, too
    session = onnxruntime.InferenceSession(
        str(path), providers=['CPUExecutionProvider']
    )

    def run(x: Tensor) -> list[Tensor]:
        results = session.run(None, {'input': x.cpu().numpy()})
        return [torch.from_numpy(result).to(x.device) for result in results]

    return run


def operators(path: str | Path, format: str) -> set[str]:
    """Name what a file's graph consists of, like ``aten::conv2d``."""
    if format == 'torchscript':
        graph = load(path, format).inlined_graph
        return {node.kind() for node in _nodes(graph)}
    if format == 'torch-export':
        program = torch.export.load(path)
        modules = program.graph_module.modules()
        graphs = [m.graph for m in modules if isinstance(m, GraphModule)]
        return {_called(n.target) for g in graphs for n in _calls(g)}
    onnx, _ = _import_onnx()
    nodes = onnx.load(path).graph.node
    return {f'{node.domain or "onnx"}::{node.op_type}' for node in nodes}


def _calls(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == 'call_function']


def _called(target: Callable) -> str:
    # Arithmetic of sizes, and torch's own functions of a part of the graph.
    plain = isinstance(target, torch._ops.OpOverload)
    return target.name() if plain else f'python::{target.__name__}'


def _nodes(block: object) -> Iterator:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


# --------------------------------------------------------------------- check


def three_sizes(height: int, width: int) -> list[tuple[int, int, int]]:
    """Return three batches, heights and widths, odd ones among them."""
    return [
        (2, height, width),
        (1, height * 3 // 4, width * 5 // 4),
        (3, height * 5 // 4 + 1, width * 3 // 4 + 1),
    ]


def compare(part: Run, run: Run, images: list[Tensor]) -> list[Difference]:
    """Compare the results of a file with those of the model.

    Args:
        part: The model.
        run: The file, as :func:`load` returns it.
        images: Images to compare with.

    Raises:
        ConfigError: If the file does not run or gives something else for
            one of the images; says for which sizes it holds.
    """
    found = []
    for x in images:
        shape = tuple(x.shape)
        try:
            with torch.no_grad():
                got, want = list(run(x)), list(part(x))
        except Exception as error:  # runtimes raise what they like
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = f'{type(error).__name__}: {lines[-1] if lines else ""}'
            raise _unlike(found, shape, reason) from error
        shapes = [[tuple(t.shape) for t in ts] for ts in (got, want)]
        if shapes[0] != shapes[1]:
            reason = f'results of {shapes[0]} for {shapes[1]}'
            raise _unlike(found, shape, reason)
        found.append(_worst(shape, got, want))
    return found


def _worst(
    shape: tuple[int, ...], got: list[Tensor], want: list[Tensor]
) -> Difference:
    items = sum(t.numel() for t in want)
    each = [
        Difference(
            shape,
            (a.double() - b.double()).abs().max().item(),
            b.abs().max().item(),
            items,
        )
        for a, b in zip(got, want)
        if b.numel()
    ]
    # A NaN compares as neither larger nor smaller: it counts as the largest.
    return max(
        each or [Difference(shape, 0.0, 0.0, 0)],
        key=lambda d: (d.relative != d.relative, d.relative),
    )


def _unlike(
    found: list[Difference], shape: tuple[int, ...], reason: str
) -> ConfigError:
    holds = ', '.join(format_shape(d.shape) for d in found) or 'no size'
    return ConfigError(
        f'the graph holds for {holds}, not for {format_shape(shape)}: '
        f'{reason}; nothing written, --static fixes the size'
    )


def format_shape(shape: tuple[int, ...]) -> str:
    """Write a shape like ``2x3x64x64``."""
    return 'x'.join(map(str, shape))


def export(
    part: Part,
    images: list[Tensor],
    path: str | Path,
    format: str,
    dynamic: bool = True,
    opset: int = 17,
    note: dict | None = None,
    tolerance: float = 1e-4,
) -> list[Difference]:
    """Write a file that has been found to do what the model does.

    Args:
        part: What :func:`take_part` returns.
        images: Images to compare with; the first is traced with.
        path: The file; it does not come to be, or stays as it was, if there
            is an error.
        format: See :func:`write`, as the next three.
        dynamic: Whether the file shall take any batch, height and width.
        opset: Version of ONNX's operators.
        note: Stored in the file as JSON.
        tolerance: The largest difference allowed, relative to the largest
            value of an output.

    Returns:
        The largest difference for each of the images.

    Raises:
        ConfigError: If it cannot be exported, or does not do the same.
    """
    path = Path(path)
    # Of the same suffix, which torch.export checks.
    with tempfile.TemporaryDirectory(
        prefix='.partial-', dir=path.parent
    ) as folder:
        partial = Path(folder) / path.name
        write(part, images[0], partial, format, dynamic, opset, note)
        found = compare(part, load(partial, format), images)
        if not any(d.items for d in found):
            raise ConfigError(
                'nothing could be compared, for the detector found nothing '
                'in noise; give it pictures with --images'
            )
        for d in found:
            if not d.relative <= tolerance:
                raise ConfigError(
                    f'for {format_shape(d.shape)} the largest difference is '
                    f'{d.largest:.2g} of {d.value:.3g}, more than '
                    f'--tolerance {tolerance:g} of it; nothing written'
                )
        os.replace(partial, path)
    return found
