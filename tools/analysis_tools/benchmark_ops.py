# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Time the paths of an attention's function side by side, in one run.

For each stage of a ResNet, at 800 x 1333 with 2 images and at 224 x 224 with
32, inference, a training step of the function alone, and the bytes that it
keeps for the backward pass are measured::

    python tools/analysis_tools/benchmark_ops.py --csv ops.csv --plot ops.png

All are ratios to the paper's own formulation, medians of interleaved
repetitions. ``copy`` is a plain ``x.mul(2)``: one reading and one writing of
the map, which no path can be without.
"""

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from mmattn.ops.gsca import gsca, reference, tiled

# Channels, height and width of the map behind the second convolution of the
# blocks of a stage, for 2 images of 800 x 1333 and 32 of 224 x 224.
SIZES = [
    (2, 64, 200, 334),
    (2, 128, 100, 167),
    (2, 256, 50, 84),
    (2, 512, 25, 42),
    (32, 64, 56, 56),
    (32, 128, 28, 28),
    (32, 256, 14, 14),
    (32, 512, 7, 7),
]
MEASURES = ('inference', 'training', 'saved')


def paper_gsca(x: Tensor, num_heads: int) -> Tensor:
    """Weight a map by the steps of the GSCA paper's listing (figure 4)."""
    heads = x.unflatten(1, (num_heads, -1))
    key = heads.mean((3, 4), keepdim=True)
    centred = heads - heads.mean(2, keepdim=True)
    key = key - key.mean(2, keepdim=True)
    product = (centred * key).sum(2, keepdim=True)
    norms = (centred**2).sum(2, keepdim=True).sqrt()
    norms = norms * (key**2).sum(2, keepdim=True).sqrt()
    weight = (1 - torch.sigmoid(product / norms)) ** 2
    return (heads * weight).flatten(1, 2)


def copy(x: Tensor, num_heads: int) -> Tensor:
    """Read and write a map once."""
    return x.mul(2)


PATHS: dict[str, dict[str, Callable[[Tensor, int], Tensor]]] = {
    'gsca': {
        'paper': paper_gsca,
        'copy': copy,
        'reference': reference,
        'eager': lambda x, heads: tiled(x, heads, 2.0, True, 1e-8),
        'default': gsca,
    }
}


def bytes_saved(function: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Return what a function keeps for its backward pass, each once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = x.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function(x)
    return sum(kept.values())


def timer(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    paths: dict[str, Callable], size: tuple[int, ...], args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Measure all paths with maps of one size.

    Args:
        paths: Path -> function of a map and a number of heads.
        size: Of the map, ``(B, C, H, W)``.
        args: ``device``, ``dtype`` and ``repeat`` of the command line.

    Returns:
        Measure -> path -> median seconds, or bytes.
    """
    x = torch.randn(size, device=args.device, dtype=getattr(torch, args.dtype))
    grad = torch.randn_like(x)
    heads = max(1, size[1] // 64)
    leaf = x.clone().requires_grad_()

    def infer(path: str) -> None:
        with torch.no_grad():
            paths[path](x, heads)

    def train(path: str) -> None:
        torch.autograd.grad(paths[path](leaf, heads), leaf, grad)

    found = {
        'saved': {
            path: bytes_saved(lambda x, f=function: f(x, heads), x)
            for path, function in paths.items()
        }
    }
    for name, step in (('inference', infer), ('training', train)):
        times: dict[str, list[float]] = {path: [] for path in paths}
        for turn in range(args.repeat + 2):  # two to warm up
            for path in paths:
                spent = timer(lambda p=path, s=step: s(p), x.device)
                if turn > 1:
                    times[path].append(spent)
        found[name] = {p: statistics.median(t) for p, t in times.items()}
    return found


def benchmark(args: argparse.Namespace) -> list[dict]:
    """Measure every function with every size; return a row for each path."""
    device = torch.device(args.device)
    hardware = platform.processor() or platform.machine()
    if device.type == 'cuda':
        hardware = torch.cuda.get_device_name(device)
    rows = []
    for op, paths in PATHS.items():
        for size in tqdm(args.sizes or SIZES, op):
            found = measure(paths, size, args)
            rows += [
                {
                    'op': op,
                    'path': path,
                    'size': 'x'.join(map(str, size)),
                    'dtype': args.dtype,
                    **{m: found[m][path] for m in MEASURES},
                    **{
                        f'{m}_ratio': found[m][path] / found[m]['paper']
                        for m in MEASURES
                    },
                    'hardware': hardware,
                    'threads': torch.get_num_threads(),
                    'torch': torch.__version__,
                }
                for path in paths
            ]
    return rows


def table(rows: list[dict], measure: str) -> str:
    """Return one measure's ratios to the paper's formulation as Markdown."""
    paths = list(dict.fromkeys(row['path'] for row in rows))
    by_size: dict[tuple, dict[str, float]] = {}
    for row in rows:
        cells = by_size.setdefault((row['op'], row['size']), {})
        cells[row['path']] = row[f'{measure}_ratio']
    lines = [f'| {measure} | {" | ".join(paths)} |']
    lines.append('|---' * (len(paths) + 1) + '|')
    for (op, size), cells in by_size.items():
        shown = ' | '.join(f'{cells[path]:.2f}' for path in paths)
        lines.append(f'| {op} {size} | {shown} |')
    means = ' | '.join(f'{mean_ratio(rows, p, measure):.2f}' for p in paths)
    return '\n'.join([*lines, f'| geometric mean | {means} |'])


def mean_ratio(rows: list[dict], path: str, measure: str) -> float:
    """Return the geometric mean over the sizes of a path's ratios."""
    ratios = [r[f'{measure}_ratio'] for r in rows if r['path'] == path]
    return statistics.geometric_mean(max(ratio, 1e-9) for ratio in ratios)


def plot(rows: list[dict], path: Path) -> None:
    """Draw the ratios of every size, one panel a measure."""
    figure = Figure(figsize=(12, 4), layout='constrained')
    names = list(dict.fromkeys(r['path'] for r in rows))
    for axes, measure in zip(figure.subplots(1, len(MEASURES)), MEASURES):
        for name in names:
            mine = [row for row in rows if row['path'] == name]
            axes.plot([r[f'{measure}_ratio'] for r in mine], 'o-', label=name)
        sizes = [row['size'] for row in rows if row['path'] == names[0]]
        axes.set_xticks(range(len(sizes)), sizes, rotation=45, ha='right')
        axes.set(title=measure, ylabel="ratio to the paper's", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=150)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='Where to measure. Default: %(default)s.',
    )
    parser.add_argument(
        '--dtype',
        choices=['float32', 'float16', 'bfloat16'],
        default='float32',
        help='Precision of the maps. Default: %(default)s.',
    )
    parser.add_argument(
        '--repeat',
        type=int,
        default=10,
        help='Repetitions, of which the median counts. Default: %(default)s.',
    )
    parser.add_argument(
        '--sizes',
        nargs='+',
        metavar='BxCxHxW',
        help='Maps to measure instead of the stages of a ResNet.',
    )
    parser.add_argument('--csv', type=Path, help='File for all figures.')
    parser.add_argument('--plot', type=Path, help='File for a plot, a PNG.')
    args = parser.parse_args(argv)
    if args.repeat < 1:
        parser.error(f'--repeat {args.repeat}: must be at least 1')
    try:
        args.sizes = [
            tuple(map(int, size.split('x'))) for size in args.sizes or ()
        ]
    except ValueError:
        parser.error(f'--sizes {args.sizes}: must be like 2x64x200x334')
    if any(len(size) != 4 or min(size) < 1 for size in args.sizes):
        parser.error('--sizes: must be of four numbers, like 2x64x200x334')
    return args


def main() -> None:
    """Measure, print the ratios, and write what is asked for."""
    args = parse_args()
    rows = benchmark(args)
    for name in MEASURES:
        print(f'\n{table(rows, name)}')
    if args.csv:
        with args.csv.open('w', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)
    if args.plot:
        plot(rows, args.plot)


if __name__ == '__main__':
    main()
