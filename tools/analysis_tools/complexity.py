# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Measure how the cost of attention grows with the map.

Over the number of pixels with the channels fixed, and over the number of
channels with the pixels fixed, the seconds of inference and of a training
step, the bytes kept for the backward pass and, on a GPU, the peak memory of a
training step are measured for every registered attention::

    python tools/analysis_tools/complexity.py --csv costs.csv --plot costs.png

A cost with exponent 1 doubles when the pixels do, one with exponent 2
quadruples. The exponent is the slope of the least-squares line through the
logarithms of the upper half of the sizes, of two at least: what does not grow,
such as the time that a call takes, flattens the lower ones. The table says
over which sizes. Times are the shortest of interleaved repetitions, as other
work on the machine only adds to them; bytes do not vary. `copy` is a plain
x.mul(2), one reading and one writing of the map: what linear means here.
"""

import argparse
import csv
import io
import math
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from benchmark_ops import timer
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plot_logs import check_output, write
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from tqdm import tqdm

from mmattn.attention import list_attentions
from mmattn.engine import one_line_errors
from mmattn.errors import ConfigError
from mmattn.registry import MODELS

COPY = 'copy'
MIB = 2**20
# Measure -> unit of the tables, and how many of them are one.
MEASURES = {
    'inference': ('ms', 1e-3),
    'training': ('ms', 1e-3),
    'kept': ('MiB', MIB),
    'peak': ('MiB', MIB),
}
SIDES = (16, 24, 32, 48, 64, 96, 128, 192, 256)
CHANNELS = (64, 128, 256, 512, 1024)


class Size(NamedTuple):
    """A map without its batch."""

    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.height * self.width

    def label(self, axis: str) -> str:
        """Return what varies along an axis, as the command line has it."""
        if axis == 'channels':
            return str(self.channels)
        return f'{self.height}x{self.width}'


class Copy(nn.Module):
    """Reads and writes a map once."""

    def forward(self, x: Tensor) -> Tensor:
        """Return twice the map."""
        return x.mul(2)


# ----------------------------------------------------------------- measuring


class Cell:
    """One attention with a map of one size, ready to be measured.

    Args:
        name: Of the attention, as configs name it, or :data:`COPY`.
        size: Of the map.
        args: ``batch`` and ``device`` of the command line.

    Attributes:
        kept: Bytes that a training step keeps for its backward pass.
        peak: Bytes that it takes at most, the map left out; None on the CPU.
        times: Measure -> seconds of each repetition.
    """

    def __init__(
        self, name: str, size: Size, args: argparse.Namespace
    ) -> None:
        self.size = size
        self.module = build(name, size.channels).to(args.device)
        self.x = torch.randn(args.batch, *size, device=args.device)
        self.grad = torch.randn_like(self.x)
        self.kept = 0
        self.peak: int | None = None
        self.times: dict[str, list[float]] = {'inference': [], 'training': []}

    def infer(self) -> None:
        """Compute the result."""
        with torch.no_grad():
            self.module(self.x)

    def train(self) -> None:
        """Compute the result and the gradients of map and parameters."""
        x = self.x.detach().requires_grad_()
        train(self.module, x, self.grad)

    def warm_up(self) -> float:
        """Measure the memory, then return the seconds of a training step."""
        self.module.train()
        self.kept = bytes_kept(self.module, self.x)
        if self.x.is_cuda:
            self.train()
            torch.cuda.reset_peak_memory_stats(self.x.device)
            before = torch.cuda.memory_allocated(self.x.device)
            self.train()
            peak = torch.cuda.max_memory_allocated(self.x.device)
            self.peak = peak - before
        return timer(self.train, self.x.device)

    def repeat(self) -> None:
        """Time both once."""
        for name, step in (
            ('inference', self.infer),
            ('training', self.train),
        ):
            self.module.train(name == 'training')
            self.times[name].append(timer(step, self.x.device))

    @property
    def spent(self) -> float:
        """Return the seconds of all repetitions so far."""
        return sum(map(sum, self.times.values()))


def build(name: str, channels: int) -> nn.Module:
    """Build an attention for so many channels, or what copies."""
    if name == COPY:
        return Copy()
    return MODELS.build(dict(type=name, in_channels=channels))


def train(module: nn.Module, x: Tensor, grad: Tensor) -> None:
    """Compute the result and the gradients of map and parameters."""
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    # A part of another attention may leave a parameter out.
    torch.autograd.grad(module(x), wanted, grad, allow_unused=True)


def bytes_kept(module: nn.Module, x: Tensor) -> int:
    """Return the size of all storages that the backward pass keeps alive.

    Parameters and buffers are left out, as they are there anyway.
    """
    own = [*module.parameters(), *module.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = x.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = module(x)
    del y  # what it kept has been alive until here, each in its own place
    return sum(kept.values())


class LiveBytes(TorchDispatchMode):
    """Follows what operations allocate and when it is freed.

    Attributes:
        peak: Bytes at most alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        # Python's own weak references to storages crash torch 2.1.
        for ref in [ref for ref in self.alive if ref.expired()]:
            del self.alive[ref]
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[StorageWeakRef(storage)] = storage.nbytes()
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def expected_bytes(name: str, size: Size, batch: int) -> int:
    """Return what a training step will take, without taking it.

    The step is done on shapes alone (torch's meta device), where the modules
    with paths of their own take the reference, the largest of them.
    """
    module = build(name, size.channels).to('meta').train()
    x = torch.empty(batch, *size, device='meta', requires_grad=True)
    grad = torch.empty_like(x)
    with LiveBytes() as live:
        train(module, x, grad)
    return live.peak + 2 * x.untyped_storage().nbytes()


# -------------------------------------------------------------------- sweeps


class Notes:
    """Collects what was left out, the sizes of one reason together."""

    def __init__(self) -> None:
        self.sizes: dict[tuple[str, str], list[str]] = {}

    def add(self, name: str, labels: Sequence[str], reason: str) -> None:
        """Add sizes that are left out."""
        known = self.sizes.setdefault((name, reason), [])
        known += [label for label in labels if label not in known]

    def lines(self) -> list[str]:
        """Return a line for each attention and reason."""
        return [
            f'{name} without {", ".join(labels)}: {reason}'
            for (name, reason), labels in self.sizes.items()
        ]


def admit(
    name: str,
    axis: str,
    sizes: Sequence[Size],
    args: argparse.Namespace,
    notes: Notes,
) -> list[Cell]:
    """Return warm cells of the sizes that fit, from the smallest on.

    A size that the attention refuses is left out. At the first that would
    take more memory or time than allowed the rest is left out too.
    """
    cells: list[Cell] = []
    seconds = 0.0  # of a training step of the last cell
    for index, size in enumerate(sizes):
        labels = [size.label(axis)]
        rest = [larger.label(axis) for larger in sizes[index:]]
        try:
            expected = expected_bytes(name, size, args.batch)
            if expected > args.max_mib * MIB:
                reason = f'--max-mib {args.max_mib:g} is too little for '
                reason += f'{labels[0]}, about {expected / MIB:,.0f} MiB'
                notes.add(name, rest, reason)
                break
            # It grows by as much at least.
            growth = (
                math.prod(size) / math.prod(cells[-1].size) if cells else 0
            )
            if seconds * growth > args.max_seconds:
                reason = f'--max-seconds {args.max_seconds:g} is too little '
                reason += f'for a step with {labels[0]}'
                notes.add(name, rest, reason)
                break
            cell = Cell(name, size, args)
            seconds = cell.warm_up()
        except (ValueError, RuntimeError, AssertionError) as error:
            reason = str(error).strip() or type(error).__name__
            notes.add(name, labels, reason.splitlines()[0])
        else:
            cells.append(cell)
    return cells


def sweep(
    name: str,
    axis: str,
    sizes: Sequence[Size],
    args: argparse.Namespace,
    notes: Notes,
) -> list[dict]:
    """Measure one attention over sizes; return a row for each that fits."""
    cells = admit(name, axis, sizes, args, notes)
    for _ in range(args.repeat):
        for cell in cells:
            if cell.spent < args.max_seconds:
                cell.repeat()
    return [
        {
            'attention': name,
            'axis': axis,
            'batch': args.batch,
            **cell.size._asdict(),
            'pixels': cell.size.pixels,
            **{measure: min(times) for measure, times in cell.times.items()},
            'repetitions': len(cell.times['training']),
            'kept': cell.kept,
            'peak': cell.peak,
        }
        for cell in cells
    ]


def measure(args: argparse.Namespace, notes: Notes) -> list[dict]:
    """Measure every attention over both axes."""
    rows = []
    for axis, sizes in sizes_of(args).items():
        for name in tqdm([COPY, *args.attentions], axis):
            rows += sweep(name, axis, sizes, args, notes)
    return rows


def sizes_of(args: argparse.Namespace) -> dict[str, list[Size]]:
    """Return the sizes of each axis, from small to large."""
    maps = {
        'pixels': [Size(args.at_channels, *shape) for shape in args.pixels],
        'channels': [Size(n, *args.at_pixels) for n in args.channels],
    }
    return {axis: sorted(set(s), key=math.prod) for axis, s in maps.items()}


# ----------------------------------------------------------------- reporting


def upper_half(rows: Sequence[dict]) -> Sequence[dict]:
    """Return the rows of the larger sizes, two at least if there are."""
    return rows[max(0, min(len(rows) // 2, len(rows) - 2)) :]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """Return p of the power ``cost = a * size ** p`` that fits best.

    By least squares of the logarithms. None for what has no exponent: a
    single size, or a cost of nothing.
    """
    if len(set(sizes)) < 2 or not all(costs):
        return None
    return statistics.linear_regression(
        [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    ).slope


def measures_of(rows: Sequence[dict]) -> list[str]:
    """Return the measures that there are; without a GPU there is no peak."""
    return [m for m in MEASURES if any(row[m] is not None for row in rows)]


def by_attention(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Return the rows of each attention."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row['attention'], []).append(row)
    return groups


def label_of(row: dict) -> str:
    """Return the varied size of a row."""
    return Size(row['channels'], row['height'], row['width']).label(
        row['axis']
    )


def table(rows: Sequence[dict]) -> str:
    """Return the exponents over one axis, and the largest costs, as Markdown.

    Args:
        rows: What :func:`measure` has returned for the axis.
    """
    axis, measures = rows[0]['axis'], measures_of(rows)
    heads = ['attention', f'{axis} fitted', *measures]
    heads += [f'{m}, {MEASURES[m][0]}' for m in measures]
    lines = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
    for name, mine in by_attention(rows).items():
        fitted = upper_half(mine)
        ends = label_of(fitted[0]), label_of(fitted[-1])
        cells = [
            name.removeprefix('mmattn.'),
            ' to '.join(dict.fromkeys(ends)),
        ]
        sizes = [row[axis] for row in fitted]
        for measure in measures:
            found = exponent(sizes, [row[measure] for row in fitted])
            cells.append('-' if found is None else f'{found:.2f}')
        for measure in measures:
            cells.append(f'{mine[-1][measure] / MEASURES[measure][1]:,.2f}')
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def describe(rows: Sequence[dict]) -> str:
    """Say in a line what the table below shows."""
    row, axis = rows[0], rows[0]['axis']
    fixed = f'{row["channels"]} channels'
    if axis == 'channels':
        fixed = f'{row["height"]}x{row["width"]} pixels'
    return (
        f'Exponents over the number of {axis} ({fixed}, batch '
        f'{row["batch"]}), and costs at the largest size fitted:'
    )


def plot(rows: Sequence[dict]) -> bytes:
    """Draw costs over sizes, a row of panels an axis; return a PNG."""
    measures = measures_of(rows)
    axes_of = list(dict.fromkeys(row['axis'] for row in rows))
    names = list(by_attention(rows))
    colors = colormaps['tab20'].colors
    colors = colors[::2] + colors[1::2]  # the strong ones first
    styles = {
        name: dict(
            color='black' if name == COPY else colors[i % len(colors)],
            marker='os^Dv'[i % 5],
            ls=':' if name == COPY else '-',
        )
        for i, name in enumerate(names)
    }
    figure = Figure(
        figsize=(3.6 * len(measures) + 2, 3.4 * len(axes_of)),
        layout='constrained',
    )
    grid = figure.subplots(len(axes_of), len(measures), squeeze=False)
    for axis, panels in zip(axes_of, grid):
        groups = by_attention([row for row in rows if row['axis'] == axis])
        for measure, panel in zip(measures, panels):
            draw(panel, axis, measure, groups, styles)
    handles = {}
    for panel in grid.flat:
        handles.update(zip(*reversed(panel.get_legend_handles_labels())))
    figure.legend(handles.values(), handles.keys(), loc='outside center right')
    picture = io.BytesIO()
    figure.savefig(picture, format='png', dpi=110)
    return picture.getvalue()


def draw(
    panel: Axes,
    axis: str,
    measure: str,
    groups: dict[str, list[dict]],
    styles: dict[str, dict],
) -> None:
    """Draw one measure over one axis, with a slope of 1 and of 2."""
    unit, size = MEASURES[measure]
    for name, rows in groups.items():
        costs = [row[measure] / size for row in rows]
        if not all(costs):  # nothing is kept: not on a logarithmic scale
            continue
        sizes = [row[axis] for row in rows]
        label = name.removeprefix('mmattn.')
        panel.plot(sizes, costs, label=label, ms=4, lw=1.2, **styles[name])
    panel.set_xscale('log', base=2)
    panel.set_yscale('log')
    panel.set(xlabel=axis, title=f'{measure}, {unit}')
    panel.grid(alpha=0.25)
    for power, style in ((1, '--'), (2, '-.')):
        add_slope(panel, power, style)


def add_slope(panel: Axes, power: int, style: str) -> None:
    """Show a slope as a grey line from the lower left of a panel."""
    (left, right), (low, high) = panel.get_xlim(), panel.get_ylim()
    panel.plot(
        [left, right],
        [low, low * (right / left) ** power],
        color='grey',
        lw=0.9,
        ls=style,
        label=f'exponent {power}',
        zorder=1,
    )
    panel.set(xlim=(left, right), ylim=(low, high))


def as_csv(rows: Sequence[dict], args: argparse.Namespace) -> bytes:
    """Return all figures, and what they were measured with, as CSV."""
    hardware = platform.processor() or platform.machine()
    if args.device.type == 'cuda':
        hardware = torch.cuda.get_device_name(args.device)
    used = dict(
        hardware=hardware,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    text = io.StringIO()
    fields = [*rows[0], *used]
    writer = csv.DictWriter(text, fields, lineterminator='\n')
    writer.writeheader()
    writer.writerows({**row, **used} for row in rows)
    return text.getvalue().encode()


# -------------------------------------------------------------- command line


def shape(text: str) -> tuple[int, int]:
    """Read height and width, written as 32x32."""
    height, width = map(int, text.split('x'))
    return height, width


def device(text: str) -> torch.device:
    """Read a device; not all that torch knows can be measured."""
    if not re.fullmatch(r'cpu|cuda(:\d+)?', text):
        raise argparse.ArgumentTypeError(f'{text} is not cpu, cuda or cuda:N')
    return torch.device(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--attentions',
        nargs='+',
        metavar='NAME',
        help='What to measure, such as SCSA or mmattn.SCSA. Default: every '
        'registered attention.',
    )
    parser.add_argument(
        '--pixels',
        nargs='+',
        type=shape,
        default=[(side, side) for side in SIDES],
        metavar='HxW',
        help='Sizes of the map for the growth with the pixels. Default: '
        f'squares of side {", ".join(map(str, SIDES))}.',
    )
    parser.add_argument(
        '--at-channels',
        type=int,
        default=64,
        metavar='C',
        help='The channels that these have. Default: %(default)s.',
    )
    parser.add_argument(
        '--channels',
        nargs='+',
        type=int,
        default=CHANNELS,
        metavar='C',
        help='Widths for the growth with the channels. Default: '
        f'{" ".join(map(str, CHANNELS))}.',
    )
    parser.add_argument(
        '--at-pixels',
        type=shape,
        default=(32, 32),
        metavar='HxW',
        help='The size of the map that these have. Default: 32x32.',
    )
    add_measuring_arguments(parser)
    parser.add_argument(
        '--csv', type=Path, metavar='FILE', help='File for all figures.'
    )
    parser.add_argument(
        '--plot', type=Path, metavar='FILE', help='File for a plot, a PNG.'
    )
    return parser.parse_args(argv)


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for how, and how long, to measure."""
    parser.add_argument(
        '--batch',
        type=int,
        default=1,
        metavar='N',
        help='Number of maps at once. Default: %(default)s.',
    )
    parser.add_argument(
        '--repeat',
        type=int,
        default=20,
        metavar='N',
        help='Repetitions, of which the shortest counts. Default: '
        '%(default)s.',
    )
    parser.add_argument(
        '--device',
        type=device,
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='Where to measure. Default: %(default)s.',
    )
    parser.add_argument(
        '--max-mib',
        type=float,
        default=1024,
        metavar='MIB',
        help='Leave out sizes of which a training step would take more '
        'memory; it is known beforehand. Default: %(default)s.',
    )
    parser.add_argument(
        '--max-seconds',
        type=float,
        default=20,
        metavar='S',
        help='Repeat a size no longer than this, and leave out those of '
        'which one step would take more. Default: %(default)s.',
    )


def check_args(args: argparse.Namespace) -> None:
    """Raise ConfigError for what cannot be done; complete the names."""
    known = list_attentions()
    names = [
        name if '.' in name else f'mmattn.{name}'
        for name in args.attentions or known
    ]
    for name in names:
        if name not in known:
            raise ConfigError(
                f'--attentions {name}: must be of {", ".join(known)}'
            )
    args.attentions = list(dict.fromkeys(names))
    sizes = {
        '--pixels': [side for pair in args.pixels for side in pair],
        '--at-pixels': args.at_pixels,
        '--channels': args.channels,
        '--at-channels': [args.at_channels],
        '--batch': [args.batch],
        '--repeat': [args.repeat],
    }
    for option, values in sizes.items():
        if min(values) < 1:
            raise ConfigError(f'{option} {min(values)}: must be at least 1')
    for option in ('max_mib', 'max_seconds'):
        if not getattr(args, option) > 0:
            name = option.replace('_', '-')
            raise ConfigError(f'--{name}: must be more than 0')
    gpus = torch.cuda.device_count()
    if args.device.type == 'cuda' and (args.device.index or 0) >= gpus:
        raise ConfigError(f'--device {args.device}: there is no such GPU')
    check_output('--csv', args.csv, '.csv')
    check_output('--plot', args.plot, '.png')


def main() -> None:
    """Measure, print the exponents, and write what is asked for."""
    args = parse_args()
    notes = Notes()
    with one_line_errors():
        check_args(args)
        if args.device.index is not None:
            torch.cuda.set_device(args.device)
        rows = measure(args, notes)
        if not rows:
            raise ConfigError('nothing was measured; see --max-mib')
    for axis in dict.fromkeys(row['axis'] for row in rows):
        mine = [row for row in rows if row['axis'] == axis]
        print(f'\n{describe(mine)}\n\n{table(mine)}')
    if lines := notes.lines():
        print('\nLeft out:\n')
        print(*(f'* {line}' for line in lines), sep='\n')
    if args.csv:
        write(args.csv, as_csv(rows, args))
    if args.plot:
        write(args.plot, plot(rows))


if __name__ == '__main__':
    main()
