# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Show what attention does in a trained model: input, weights and output.

For detectors, segmentors and classifiers with attention in them::

    python tools/visualization/vis_attention.py CONFIG CHECKPOINT IMAGES \\
        --out-dir DIR --layers layer2.1 layer3.1
    python tools/visualization/vis_attention.py CONFIG CHECKPOINT IMAGES \\
        --out-dir DIR --sweep

Weights are what a module multiplies its input by, as its
``attention_weights`` returns them. Those of pixels are laid over the picture,
one map for each head or group of channels, all of a layer in one colour
scale; of more than 32 groups the mean and the standard deviation. Those of
rows and columns are plotted along the picture, their mean over the channels
and the range of eight channels in ten, and their product is laid over it.
Those of channels are plotted channel by channel. Input and output are means
over the channels. Result::

    DIR/<image>_<layer>.png    one figure a layer
    DIR/<image>_sweep.png      with --sweep instead: all layers, one a row
    DIR/<image>.npz            with --npz, the arrays

Keys of the npz are ``<layer>/input``, ``<layer>/output`` and, by the names
that the module gives them, ``<layer>/<weight>``: without the batch, in the
shapes of ``attention_weights``; also ``<layer>/weight without reverse`` (or
``with reverse``, where the model has none) with ``--no-reverse``.
"""

import argparse
import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from mmattn.attention import GSCA, Attention
from mmattn.backbones.plugins import PluginBackbone
from mmattn.engine import one_line_errors
from mmattn.errors import ConfigError
from mmattn.visualization.trained import (
    TrainedModel,
    add_device_arguments,
    all_or_nothing,
    check_model_arguments,
    find_images,
    load_models,
)

MOST_MAPS = 32  # of one layer; of more groups mean and deviation are shown
SIDE = 1.9  # inches, of a panel's longer side
# Inches: beside a panel for its scale, above it for its title, around them.
RIGHT, ABOVE, EDGE = 0.55, 0.42, 0.25
COLUMNS = 6  # panels beside each other
COLOURS = 'turbo'  # of weights
OPACITY = 0.65  # of the colours over the picture

#: Weights by name, without the batch: (G, h, w).
Weights = dict[str, np.ndarray]
#: Draws a panel into its axes.
Panel = Callable[[Axes], None]


class Scene(NamedTuple):
    """An image as the model sees it."""

    name: str
    picture: np.ndarray  # (H, W, 3), uint8, RGB, without padding
    size: tuple[int, int]  # height and width with padding

    def fit(self, values: np.ndarray, smooth: bool = True) -> np.ndarray:
        """Resize a map of the whole input, ``(h, w)``, to the picture's."""
        how = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
        values = values.astype(np.float32)
        heat = cv2.resize(values, self.size[::-1], interpolation=how)
        return heat[: self.picture.shape[0], : self.picture.shape[1]]


class View(NamedTuple):
    """What an attention did to an image."""

    layer: str
    kind: str  # name of its class
    input: np.ndarray  # (C, H, W), as the next
    output: np.ndarray
    weights: Weights
    #: GSCA's with the other ``reverse``, if asked for.
    other: Weights | None
    reverse: bool | None  # the module's own

    def versions(self) -> dict[str, Weights]:
        """Return the weights by how they were computed, reversed first."""
        if self.other is None:
            return {'': self.weights}
        pair = [self.weights, self.other]
        pair = pair if self.reverse else pair[::-1]
        return dict(zip(('with reverse', 'without reverse'), pair))


# -------------------------------------------------------------------- layers


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the attention modules and other plugins of a model, by name.

    Of one inside another only the outer is listed.
    """
    plugins = {
        id(plugin)
        for part in model.modules()
        if isinstance(part, PluginBackbone)
        for _, plugin in part.named_plugins()
    }
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f'{outer}.') for outer in found)
        if not inside and (
            isinstance(module, Attention) or id(module) in plugins
        ):
            found[name] = module
    return found


def choose_layers(
    trained: TrainedModel, names: Sequence[str] | None
) -> dict[str, nn.Module]:
    """Return the modules that names stand for, by their short names.

    Args:
        trained: The model.
        names: Dotted names of attention modules, of what holds some or of a
            part of one, with or without ``backbone.``; None for all.

    Raises:
        ConfigError: If there is no attention; lists where there is.
    """
    every = attention_layers(trained.model)
    if not every:
        raise ConfigError(f'{trained.name} has no attention')
    chosen = {} if names else every
    for name in names or ():
        chosen |= _inside(trained, every, name)
    return {k.removeprefix('backbone.'): m for k, m in chosen.items()}


def _inside(
    trained: TrainedModel, every: dict[str, nn.Module], name: str
) -> dict[str, nn.Module]:
    """Return the attention modules that one name stands for."""
    modules = dict(trained.model.named_modules())
    for full in (name, f'backbone.{name}'):
        found = {
            key: module
            for key, module in every.items()
            if full in modules
            and (
                f'{key}.'.startswith(f'{full}.') or full.startswith(f'{key}.')
            )
        }
        if found:
            return found
    there = name in modules or f'backbone.{name}' in modules
    short = [key.removeprefix('backbone.') for key in every]
    more = f' and others, {len(short)} in all' if len(short) > 16 else ''
    raise ConfigError(
        f'{trained.name} has no '
        + (f'attention in layer {name!r}' if there else f'layer {name!r}')
        + f'; attention is in {", ".join(short[:16])}{more}'
    )


# ------------------------------------------------------------------- looking


@contextlib.contextmanager
def recorded(
    layers: dict[str, nn.Module],
) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Keep input and output of every run of the layers, until the exit."""
    runs: dict[str, list[tuple[Tensor, Tensor]]] = {k: [] for k in layers}

    def keep(name: str, module: nn.Module, args: tuple, out: Tensor) -> None:
        # What follows may work in place.
        runs[name].append((args[0].detach().clone(), out.detach().clone()))

    handles = [
        module.register_forward_hook(partial(keep, name))
        for name, module in layers.items()
    ]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def weights_of(module: nn.Module, x: Tensor) -> Weights:
    """Return a module's weights for one image, by name.

    Args:
        module: An attention, or another plugin: see the default of
            ``Attention.attention_weights``.
        x: Its input, ``(1, C, H, W)``.
    """
    ask = getattr(module, 'attention_weights', None)
    ask = ask or partial(Attention.attention_weights, module)
    with torch.no_grad():
        return {name: _array(weight) for name, weight in ask(x).items()}


def flipped(module: nn.Module) -> GSCA | None:
    """Return a GSCA with the other ``reverse``, None for other modules."""
    if not isinstance(module, GSCA):
        return None
    other = copy.copy(module)
    other.reverse = not module.reverse
    return other


def look(
    trained: TrainedModel,
    layers: dict[str, nn.Module],
    path: Path,
    no_reverse: bool = False,
) -> tuple[np.ndarray, tuple[int, int], list[View]]:
    """Run a model on an image and see what its attention does.

    Args:
        trained: The model.
        layers: Its attention modules, by the names for the figure.
        path: The image.
        no_reverse: Whether to compute GSCA's weights in both ways.

    Returns:
        The picture and the size with padding, as :class:`Scene` has them,
        and what the layers did, in the order in which they run.

    Raises:
        ConfigError: If the image cannot be read, or a layer does not run once
            on the image as a whole.
    """
    if cv2.imread(str(path)) is None:
        raise ConfigError(f'{path} is no readable image')
    data = trained.read(path)
    with torch.no_grad(), recorded(layers) as runs:
        trained.model(**data, mode='tensor')
    views = []
    for name, module in layers.items():
        check_runs(f'{trained.name}: layer {name!r}', runs[name])
        ((x, y),) = runs[name]
        other = flipped(module) if no_reverse else None
        views.append(
            View(
                layer=name,
                kind=type(module).__name__,
                input=_array(x),
                output=_array(y),
                weights=weights_of(module, x),
                other=other and weights_of(other, x),
                reverse=getattr(module, 'reverse', None),
            )
        )
    height, width = visible(data)
    picture = trained.picture(data['inputs'])[:height, :width]
    return picture, tuple(data['inputs'].shape[2:]), views


def check_runs(which: str, runs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Raise ConfigError unless a layer ran once, on the image as a whole."""
    if len(runs) != 1:
        raise ConfigError(
            f'{which} runs {len(runs)} times in one pass, not once'
        )
    if len(runs[0][0]) != 1:
        raise ConfigError(
            f'{which} sees {len(runs[0][0])} regions, not the image'
        )


def visible(data: dict) -> tuple[int, int]:
    """Return height and width of a model's input without its padding."""
    height, width = data['inputs'].shape[2:]
    for sample in data['data_samples'] or ():
        height, width = sample.metainfo.get('img_shape', (height, width))[:2]
    return height, width


def _array(x: Tensor) -> np.ndarray:
    """Return the one image of a batch."""
    return x[0].float().cpu().numpy()


# -------------------------------------------------------------------- values


def is_spatial(weight: np.ndarray) -> bool:
    """Tell weights of pixels, rows and columns from those of channels."""
    return weight.shape[1:] != (1, 1)


def multiplied(weights: Sequence[np.ndarray]) -> np.ndarray:
    """Multiply weights of pixels, rows and columns, to ``(G, H, W)``.

    G is the largest number of groups among them.
    """
    groups = max(len(weight) for weight in weights)
    product = np.ones((groups, 1, 1), np.float32)
    for weight in weights:
        product = product * weight.repeat(groups // len(weight), axis=0)
    return product


def limits(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the least and the greatest value of all maps.

    They are drawn apart where they differ by no more than rounding errors.
    """
    low = min(float(m.min()) for m in maps)
    high = max(float(m.max()) for m in maps)
    least = 1e-4 * max(abs(low), abs(high)) or 1.0
    if high - low < least:
        middle = (low + high) / 2
        return middle - least, middle + least
    return low, high


def overlay(
    picture: np.ndarray, heat: np.ndarray, scale: tuple[float, float]
) -> np.ndarray:
    """Lay a map over a picture without its colours.

    Args:
        picture: RGB, ``(H, W, 3)``, uint8.
        heat: The map, ``(H, W)``.
        scale: The values of the first colour and of the last.
    """
    colours = colormaps[COLOURS](Normalize(*scale)(heat))[..., :3] * 255
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
    mixed = OPACITY * colours + (1 - OPACITY) * grey
    return mixed.round().astype(np.uint8)


# -------------------------------------------------------------------- panels


def panels_of(scene: Scene, view: View) -> list[Panel]:
    """Return the panels of one layer: image, input, weights, output."""
    weights = [
        panel
        for group in grouped(view)
        for panel in (
            map_panels(scene, view, group)
            if len(group) == 1 and is_map(view, group[0])
            else gate_panels(scene, view, group)
        )
    ]
    return [
        partial(draw_picture, scene=scene),
        feature_panel(scene, 'input', view.input),
        *weights,
        feature_panel(scene, 'output', view.output),
    ]


def is_map(view: View, name: str) -> bool:
    """Tell whether weights run along height and width."""
    weight = view.weights[name]
    return is_spatial(weight) and weight.shape[1:] == view.input.shape[1:]


def grouped(view: View) -> list[list[str]]:
    """Group the names of weights: those of rows and columns together."""
    axes = [
        name
        for name, weight in view.weights.items()
        if is_spatial(weight) and not is_map(view, name)
    ]
    groups = []
    for name in view.weights:
        if name not in axes:
            groups.append([name])
        elif name == axes[0]:
            groups.append(axes)
    return groups


def map_panels(scene: Scene, view: View, group: list[str]) -> list[Panel]:
    """Lay the maps of all heads over the picture, in one colour scale."""
    (name,) = group
    versions = {k: w[name] for k, w in view.versions().items()}
    if len(view.weights[name]) > MOST_MAPS:
        panels = []
        for what in ('mean', 'std'):
            maps = {k: getattr(m, what)(0) for k, m in versions.items()}
            title = f'{name}, {what} of {len(view.weights[name])}'
            panels += overlay_panels(
                scene, {_join(title, k): m for k, m in maps.items()}
            )
        return panels
    count = len(view.weights[name])
    heads = [f'{name} {i} of {count}' for i in range(1, count + 1)]
    heads = heads if count > 1 else [name]
    return overlay_panels(
        scene,
        {
            _join(title, k): maps[head]
            for head, title in enumerate(heads)
            for k, maps in versions.items()
        },
    )


def gate_panels(scene: Scene, view: View, group: list[str]) -> list[Panel]:
    """Plot the gates of channels, or of rows and columns."""
    weights = {name: view.weights[name] for name in group}
    if not is_spatial(weights[group[0]]):
        return [
            partial(draw_channels, scene=scene, title=name, values=w.ravel())
            for name, w in weights.items()
        ]
    panels = [
        partial(draw_axis, scene=scene, title=name, gate=weight)
        for name, weight in weights.items()
    ]
    title = f'{" x ".join(group)}, mean'
    product = multiplied(list(weights.values())).mean(0)
    return panels + overlay_panels(scene, {title: product})


def overlay_panels(
    scene: Scene,
    maps: dict[str, np.ndarray],
    scale: tuple[float, float] | None = None,
) -> list[Panel]:
    """Lay maps over the picture, by title, in one colour scale."""
    scale = scale or limits(list(maps.values()))
    return [
        partial(
            draw_map,
            image=overlay(scene.picture, scene.fit(values), scale),
            title=title,
            scale=scale,
            colours=COLOURS,
        )
        for title, values in maps.items()
    ]


def feature_panel(scene: Scene, title: str, features: np.ndarray) -> Panel:
    """Show the mean over the channels of ``(C, H, W)``."""
    values = features.mean(0)
    scale = limits([values])
    heat = Normalize(*scale)(scene.fit(values, smooth=False))
    image = (colormaps['viridis'](heat)[..., :3] * 255).round()
    return partial(
        draw_map,
        image=image.astype(np.uint8),
        title=title,
        scale=scale,
        colours='viridis',
    )


def _join(*words: str) -> str:
    return ', '.join(word for word in words if word)


# ------------------------------------------------------------------- drawing


def draw_picture(axes: Axes, scene: Scene) -> None:
    """Draw the image."""
    axes.imshow(scene.picture)
    axes.set(xticks=[], yticks=[])
    axes.set_title('image', fontsize=8)


def draw_map(
    axes: Axes,
    image: np.ndarray,
    title: str,
    scale: tuple[float, float],
    colours: str,
) -> None:
    """Draw a coloured map with its colour bar."""
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8)
    bar = axes.inset_axes([1.03, 0, 0.05, 1])
    axes.figure.colorbar(ScalarMappable(Normalize(*scale), colours), cax=bar)
    bar.tick_params(labelsize=6, length=2, pad=1)
    bar.locator_params(nbins=5)


def draw_axis(axes: Axes, scene: Scene, title: str, gate: np.ndarray) -> None:
    """Plot a gate along the side of the picture that it runs along.

    Args:
        axes: Where to.
        scene: The image.
        title: Name of the gate.
        gate: ``(C, H, 1)``, drawn downwards, or ``(C, 1, W)``.
    """
    rows = gate.shape[2] == 1
    side = 0 if rows else 1
    gate = gate[:, :, 0] if rows else gate[:, 0]  # (C, L)
    length = gate.shape[1]
    pixels = (np.arange(length) + 0.5) * scene.size[side] / length - 0.5
    low, high = np.quantile(gate, [0.1, 0.9], axis=0)
    fill = axes.fill_betweenx if rows else axes.fill_between
    fill(pixels, low, high, alpha=0.3, linewidth=0)
    mean = gate.mean(0)
    axes.plot(*((mean, pixels) if rows else (pixels, mean)), linewidth=1.2)
    end = scene.picture.shape[side] - 0.5
    axes.set(**{'ylim': (end, -0.5)} if rows else {'xlim': (-0.5, end)})
    _frame(axes, scene, title)


def draw_channels(
    axes: Axes, scene: Scene, title: str, values: np.ndarray
) -> None:
    """Plot one value a channel, ``(C,)``, and their mean."""
    axes.vlines(np.arange(len(values)), values.mean(), values, linewidth=0.8)
    axes.axhline(values.mean(), color='black', linewidth=0.6)
    axes.set_xlim(-1, len(values))
    _frame(axes, scene, title)


def _frame(axes: Axes, scene: Scene, title: str) -> None:
    """Give a plot the shape of the picture."""
    height, width = scene.picture.shape[:2]
    axes.set_box_aspect(height / width)
    axes.set_title(title, fontsize=8)
    axes.tick_params(labelsize=6, length=2, pad=1)
    axes.yaxis.tick_right()
    axes.ticklabel_format(useOffset=False)
    axes.grid(alpha=0.3, linewidth=0.5)


def draw_grid(
    rows: Sequence[Sequence[Panel | None]],
    scene: Scene,
    title: str,
    labels: Sequence[str] = (),
) -> Figure:
    """Draw panels in rows.

    Args:
        rows: The panels; None leaves a place empty.
        scene: The image, whose shape they have.
        title: What stands above them.
        labels: What stands on the left of each row.
    """
    height, width = scene.picture.shape[:2]
    wide, high = (SIDE * s / max(height, width) for s in (width, height))
    across, down = wide + RIGHT, high + ABOVE  # from panel to panel
    left = 2 * EDGE if labels else EDGE
    total = left + across * max(map(len, rows)), down * len(rows) + 2 * EDGE
    figure = Figure(figsize=total)
    figure.text(EDGE / total[0], 1 - EDGE / total[1], title, size=9)
    for i, row in enumerate(rows):
        y = total[1] - EDGE - down * (i + 1)
        for j, panel in enumerate(row):
            if panel is not None:
                place = np.divide((left + across * j, y), total)
                size = np.divide((wide, high), total)
                panel(figure.add_axes((*place, *size)))
        if labels:
            x, middle = np.divide((EDGE, y + high / 2), total)
            style = dict(size=7, rotation=90, ha='center', va='center')
            figure.text(x, middle, labels[i], **style)
    return figure


def draw_layer(scene: Scene, view: View) -> Figure:
    """Draw one layer's figure."""
    panels = panels_of(scene, view)
    lines = -(-len(panels) // COLUMNS)
    columns = -(-len(panels) // lines)
    if view.other is not None and lines > 1:
        columns += columns % 2  # both ways beside each other
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    return draw_grid(rows, scene, f'{scene.name}   {describe(view)}')


def describe(view: View, between: str = ',  ') -> str:
    """Return a layer's name, class and size."""
    size = ' x '.join(map(str, view.input.shape))
    return between.join([view.layer, view.kind, size])


# --------------------------------------------------------------------- sweep


def draw_sweep(scene: Scene, views: Sequence[View]) -> Figure:
    """Draw all layers, one a row."""
    maps = [sweep_maps(scene, view) for view in views]
    gates = [sweep_gates(scene, view) for view in views]
    rows = [
        [
            feature_panel(scene, 'input', view.input),
            *fill(own, max(map(len, maps))),
            *fill(plots, max(map(len, gates))),
            feature_panel(scene, 'output', view.output),
        ]
        for view, own, plots in zip(views, maps, gates)
    ]
    image = partial(draw_picture, scene=scene)
    labels = ['', *(describe(view, '\n') for view in views)]
    return draw_grid([[image], *rows], scene, scene.name, labels)


def sweep_maps(scene: Scene, view: View) -> list[Panel]:
    """Lay over the picture what all weights but those of channels make."""
    maps = {}
    for version, weights in view.versions().items():
        spatial = {k: w for k, w in weights.items() if is_spatial(w)}
        if not spatial:
            return []
        product = multiplied(list(spatial.values()))
        several = 'mean' if len(product) > 1 else ''
        title = _join(' x '.join(spatial), several, version)
        maps[title] = product.mean(0)
    return overlay_panels(scene, maps)


def sweep_gates(scene: Scene, view: View) -> list[Panel]:
    """Plot the gates of channels."""
    return [
        partial(draw_channels, scene=scene, title=name, values=w.ravel())
        for name, w in view.weights.items()
        if not is_spatial(w)
    ]


def fill(panels: Sequence[Panel], count: int) -> list[Panel | None]:
    """Return so many panels, the last ones empty."""
    return [*panels, *[None] * (count - len(panels))]


# ------------------------------------------------------------------- program


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='The config file.')
    parser.add_argument('checkpoint', help='The checkpoint file or URL.')
    parser.add_argument(
        'images', nargs='+', help='Image files, or folders of them.'
    )
    parser.add_argument(
        '--out-dir', required=True, help='Folder for the figures.'
    )
    parser.add_argument(
        '--layers',
        nargs='+',
        metavar='NAME',
        help='Attention modules, such as layer2.1.gsca, or blocks or stages '
        'with attention in them, such as layer2.1. Default: all.',
    )
    parser.add_argument(
        '--sweep',
        action='store_true',
        help='Draw one figure for each image with a row for each layer, '
        'where heads and channels are averaged.',
    )
    parser.add_argument(
        '--no-reverse',
        action='store_true',
        help="Show GSCA's weights with and without its reverse, side by "
        'side, as they would be for the same input.',
    )
    parser.add_argument(
        '--npz', action='store_true', help='Also write the arrays.'
    )
    add_device_arguments(parser)
    args = parser.parse_args(argv)
    args.model, args.names = [(args.config, args.checkpoint)], None
    return args


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Name images by their files, and by folders where those are alike.

    An image that is given twice gets a number.
    """
    names: list[str] = []
    for path in paths:
        stems = [path.stem]
        for parent in path.absolute().parents:
            stems.append(f'{parent.name}_{stems[-1]}')
        stems += [f'{path.stem}_{i}' for i in range(2, len(paths) + 1)]
        names.append(next(stem for stem in stems if stem not in names))
    return names


def arrays(views: Sequence[View]) -> dict[str, np.ndarray]:
    """Return what goes into the npz."""
    found = {}
    for view in views:
        own = dict(input=view.input, output=view.output, **view.weights)
        if view.other is not None:
            word = 'without' if view.reverse else 'with'
            own |= {f'{k} {word} reverse': w for k, w in view.other.items()}
        found |= {f'{view.layer}/{key}': value for key, value in own.items()}
    return found


def write_image(
    scene: Scene, views: Sequence[View], folder: Path, args: argparse.Namespace
) -> int:
    """Write an image's figures and, if asked, arrays; count the figures."""
    if args.sweep:
        figures = {'sweep': draw_sweep(scene, views)}
    else:
        figures = {view.layer: draw_layer(scene, view) for view in views}
    for name, figure in figures.items():
        figure.savefig(folder / f'{scene.name}_{name}.png', dpi=110)
    if args.npz:
        np.savez_compressed(folder / f'{scene.name}.npz', **arrays(views))
    return len(figures)


def main() -> None:
    """Look, draw and write."""
    args = parse_args()
    with one_line_errors():
        check_model_arguments(args)
        paths = find_images(args.images)
        (trained,) = load_models(args)
        layers = choose_layers(trained, args.layers)
        if args.no_reverse and not any(map(flipped, layers.values())):
            raise ConfigError('--no-reverse: none of the layers is GSCA')
        count = 0
        with all_or_nothing(args.out_dir) as folder:
            named = zip(unique_names(paths), paths)
            for name, path in tqdm(named, total=len(paths), unit='image'):
                picture, size, views = look(
                    trained, layers, path, args.no_reverse
                )
                scene = Scene(name, picture, size)
                count += write_image(scene, views, folder, args)
    print(f'{count} figures in {args.out_dir}')


if __name__ == '__main__':
    main()
