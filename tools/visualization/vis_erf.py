# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Measure effective receptive fields of backbones, models side by side.

How much each pixel of the image counts for the middle of a stage's map, after
section 5.2 of the SCSA paper (https://arxiv.org/abs/2407.05128), for the
backbones of detectors, segmentors and classifiers::

    python tools/visualization/vis_erf.py IMAGES --out-dir DIR \\
        --model CONFIG CHECKPOINT --model CONFIG CHECKPOINT

The sum over the channels at the middle of the stage's output is derived with
respect to the normalised image; absolute values are summed over the colours
and averaged over many images. All models see the same images, drawn without
repetition and evenly from the folders, so that folders of classes give images
of different classes. They are resized to a square, whatever their shape.

The energy of a field is the sum of these values. Its radius is the half side
r of the smallest square of 2 r + 1 pixels a side that holds a share of the
energy, around the field's own middle: the row and the column with half of the
energy on either side. That is not always the middle of the image, as strided
convolutions shift it. The area is that of the square, as far as it lies on
the image, divided by that of the image.

Result::

    DIR/erf.png    rows of stages, columns of models; each of its own scale,
                   logarithmic, with the squares
    DIR/erf.csv    with --csv, the table that is printed
    DIR/erf.npz    with --npz: models, stages, and the field erf_M_S of model
                   M from 0 at stage S, before any scaling
"""

import argparse
import csv
import random
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from tqdm import tqdm

from mmattn.engine import one_line_errors
from mmattn.errors import ConfigError
from mmattn.visualization.trained import (
    TrainedModel,
    add_model_arguments,
    all_or_nothing,
    as_map,
    check_model_arguments,
    find_images,
    load_models,
)

SHARES = (0.5, 0.8, 0.99)
FLOOR = 1e-4  # of the largest value: the least that the colours tell apart


class Square(NamedTuple):
    """A square that holds a share of a field's energy."""

    row: int  # its middle, px
    column: int
    radius: int  # half its side, px
    area: float  # what it covers of the image, from 0 to 1


# -------------------------------------------------------------------- fields


def gradients(
    backbone: nn.Module, layers: Sequence[str], inputs: Tensor
) -> list[np.ndarray]:
    """Return how the middle of each layer's map depends on each pixel.

    Args:
        backbone: What has the layers, with parameters that take no gradient.
        layers: Their names.
        inputs: ``(1, C, H, W)``.

    Returns:
        Absolute gradients, summed over C: ``(H, W)`` for each layer.

    Raises:
        ConfigError: If a layer has no map.
    """
    inputs = inputs.detach().requires_grad_()
    middles = {}

    def record(name: str, output: Tensor) -> None:
        maps = as_map(output, tuple(inputs.shape[2:]), name)
        height, width = maps.shape[2:]
        middles[name] = maps[:, :, height // 2, width // 2].sum()

    hooks = [
        backbone.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: record(name, output)
        )
        for name in layers
    ]
    try:
        with torch.enable_grad():
            backbone(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    found = [
        torch.autograd.grad(middles[name], inputs, retain_graph=True)[0]
        for name in layers
    ]
    return [one[0].double().abs().sum(0).cpu().numpy() for one in found]


def fields(
    trained: TrainedModel,
    layers: Sequence[str],
    images: Sequence[Path],
    size: int,
) -> list[np.ndarray]:
    """Return the effective receptive field of each layer.

    Args:
        trained: The model.
        layers: Names of layers of its backbone.
        images: What to average over.
        size: Side of the square that they are resized to, px.

    Returns:
        ``(size, size)`` for each layer.
    """
    backbone = trained.model.backbone.requires_grad_(False)
    sums = [np.zeros((size, size)) for _ in layers]
    for path in tqdm(images, desc=trained.name, unit='image'):
        inputs = trained.normalize(read_square(path, size))
        for total, one in zip(sums, gradients(backbone, layers, inputs)):
            total += one
    return [total / len(images) for total in sums]


def read_square(path: Path, size: int) -> np.ndarray:
    """Read an image, RGB, and resize it to a square.

    Raises:
        ConfigError: If it cannot be read.
    """
    image = cv2.imread(str(path))
    if image is None:
        raise ConfigError(f'{path} is no readable image')
    return cv2.resize(image, (size, size))[..., ::-1]


def draw_images(images: Sequence[Path], count: int, seed: int) -> list[Path]:
    """Draw images without repetition, evenly from the folders.

    Args:
        images: What to draw from.
        count: How many; all if there are no more.
        seed: The same images for the same seed.
    """
    draw = random.Random(seed)
    folders = defaultdict(list)
    for path in sorted(set(images)):
        folders[path.parent].append(path)
    ranked = [
        (rank, draw.random(), path)
        for inside in folders.values()
        for rank, path in enumerate(draw.sample(inside, len(inside)))
    ]
    return [path for _, _, path in sorted(ranked)[:count]]


# ------------------------------------------------------------------- numbers


def middle(weights: np.ndarray) -> int:
    """Return the index with half of the sum on either side."""
    return int(np.searchsorted(weights.cumsum(), weights.sum() / 2))


def enclosing_square(field: np.ndarray, share: float) -> Square:
    """Return the smallest centred square that holds a share of the energy.

    Args:
        field: ``(H, W)``, not negative.
        share: Of its sum, from 0 to 1.
    """
    height, width = field.shape
    row, column = middle(field.sum(1)), middle(field.sum(0))
    rows, columns = np.ogrid[:height, :width]
    # The radius from which on a square has a pixel.
    distance = np.maximum(abs(rows - row), abs(columns - column))
    energy = np.bincount(distance.ravel(), field.ravel()).cumsum()
    # A sum of so many falls short of the whole by rounding.
    wanted = share * energy[-1] * (1 - 1e-12)
    radius = int(np.searchsorted(energy, wanted))
    return Square(row, column, radius, float((distance <= radius).mean()))


def table_of(
    models: Sequence[TrainedModel],
    stages: Sequence[int],
    results: Sequence[Sequence[np.ndarray]],
) -> list[dict[str, str]]:
    """Return a line for each stage of each model, by title."""
    lines = []
    for s, stage in enumerate(stages):
        for model, of_model in zip(models, results):
            squares = {p: enclosing_square(of_model[s], p) for p in SHARES}
            lines.append(
                {
                    'model': model.name,
                    'stage': str(stage),
                    'layer': model.stages()[stage - 1],
                    **{
                        f'radius {p:.0%}': str(square.radius)
                        for p, square in squares.items()
                    },
                    **{
                        f'area {p:.0%}': f'{square.area:.4f}'
                        for p, square in squares.items()
                    },
                }
            )
    return lines


def as_markdown(lines: Sequence[dict[str, str]]) -> str:
    """Return a Markdown table."""
    rows = [list(lines[0]), ['---'] * len(lines[0])]
    rows += [list(line.values()) for line in lines]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


# ------------------------------------------------------------------- results


def draw_figure(
    names: Sequence[str],
    stages: Sequence[int],
    results: Sequence[Sequence[np.ndarray]],
    path: Path,
) -> None:
    """Write the PNG of the fields."""
    figure = Figure(
        figsize=(2.3 * len(names) + 0.9, 2.2 * len(stages) + 0.5),
        layout='constrained',
    )
    grid = figure.subplots(len(stages), len(names), squeeze=False)
    for s, (axes, stage) in enumerate(zip(grid, stages)):
        for panel, of_model in zip(axes, results):
            image = draw_field(panel, of_model[s])
        axes[0].set_ylabel(f'stage {stage}', fontsize=8)
    for panel, name in zip(grid[0], names):
        panel.set_title(textwrap.fill(name, 24), fontsize=8)
    bar = figure.colorbar(image, ax=grid, shrink=0.6, aspect=30)
    bar.set_label('share of the largest gradient', fontsize=7)
    bar.ax.tick_params(labelsize=7)
    figure.savefig(path, dpi=120, bbox_inches='tight', pad_inches=0.05)


def draw_field(axes: Axes, field: np.ndarray) -> AxesImage:
    """Draw a field with its squares; return the image."""
    top = field.max() or 1
    shown = np.maximum(field / top, FLOOR)
    image = axes.imshow(shown, cmap='inferno', norm=LogNorm(FLOOR, 1))
    radii = []
    for share, style in zip(SHARES, ('-', '--', ':')):
        square = enclosing_square(field, share)
        radii.append(f'{share:.0%}: {square.radius}')
        side = 2 * square.radius + 1
        axes.add_patch(
            Rectangle(
                (
                    square.column - square.radius - 0.5,
                    square.row - square.radius - 0.5,
                ),
                side,
                side,
                fill=False,
                color='white',
                linestyle=style,
                linewidth=0.8,
            )
        )
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f'radius {", ".join(radii)}', fontsize=7, labelpad=3)
    return image


def write_csv(lines: Sequence[dict[str, str]], path: Path) -> None:
    """Write the table."""
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


def write_npz(
    names: Sequence[str],
    stages: Sequence[int],
    results: Sequence[Sequence[np.ndarray]],
    path: Path,
) -> None:
    """Write the fields."""
    arrays = {
        f'erf_{m}_{stage}': field
        for m, of_model in enumerate(results)
        for stage, field in zip(stages, of_model)
    }
    np.savez_compressed(path, models=names, stages=stages, **arrays)


# ------------------------------------------------------------------- program


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument(
        '--stages',
        nargs='+',
        type=int,
        metavar='N',
        help='Stages of the backbones, numbered from 1 as those of plugins '
        'are. Default: the last two, which are 3 and 4 of a ResNet.',
    )
    parser.add_argument(
        '--num-images',
        type=int,
        default=300,
        metavar='N',
        help='Images to draw; all if there are fewer. Default: %(default)s.',
    )
    parser.add_argument(
        '--size',
        type=int,
        default=224,
        help='Side of the square that images are resized to, in pixels. '
        'Default: %(default)s.',
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        help='Which images are drawn. Default: %(default)s.',
    )
    parser.add_argument(
        '--csv', action='store_true', help='Also write the table as CSV.'
    )
    parser.add_argument(
        '--npz', action='store_true', help='Also write the fields, as arrays.'
    )
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Raise ConfigError for what cannot be done, before any work."""
    check_model_arguments(args)
    for option in ('num_images', 'size'):
        if getattr(args, option) < 1:
            raise ConfigError(f'--{option.replace("_", "-")} must be positive')


def choose_stages(
    models: Sequence[TrainedModel], wanted: Sequence[int] | None
) -> list[int]:
    """Return the stages to look at, each once.

    Raises:
        ConfigError: If a model does not have one; names those that it has.
    """
    if wanted is None:
        count = min(len(model.stages()) for model in models)
        wanted = range(max(1, count - 1), count + 1)
    for model in models:
        layers = model.stages()
        for stage in wanted:
            if not 1 <= stage <= len(layers):
                raise ConfigError(
                    f'{model.name} has no stage {stage}; it has 1 to '
                    f'{len(layers)}: {", ".join(layers)}'
                )
    return list(dict.fromkeys(wanted))


def main() -> None:
    """Measure, print and write."""
    args = parse_args()
    with one_line_errors():
        check_args(args)
        found = find_images(args.images)
        images = draw_images(found, args.num_images, args.seed)
        models = load_models(args)
        stages = choose_stages(models, args.stages)
        results = []
        for model in models:
            layers = [model.stages()[stage - 1] for stage in stages]
            results.append(fields(model, layers, images, args.size))
        names = [model.name for model in models]
        lines = table_of(models, stages, results)
        with all_or_nothing(args.out_dir) as folder:
            draw_figure(names, stages, results, folder / 'erf.png')
            if args.csv:
                write_csv(lines, folder / 'erf.csv')
            if args.npz:
                write_npz(names, stages, results, folder / 'erf.npz')
    print(f'{len(images)} images of {args.size}x{args.size} pixels\n')
    print(as_markdown(lines))


if __name__ == '__main__':
    main()
