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
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from mmattn.attention import SCSA
from mmattn.ops import gsca, scsa

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


def paper_scsa(x: Tensor, module: SCSA) -> Tensor:
    """Gate a map by the equations of the SCSA paper, step by step."""
    smsa, pcsa = module.smsa, module.pcsa

    def gate(sequence: Tensor, norm: nn.Module) -> Tensor:
        groups = sequence.chunk(len(smsa.convs), 1)
        mixed = [conv(group) for conv, group in zip(smsa.convs, groups)]
        return norm(torch.cat(mixed, 1)).sigmoid()

    gate_h, gate_w = gate(x.mean(3), smsa.norm_h), gate(x.mean(2), smsa.norm_w)
    x = x * gate_h.unsqueeze(3) * gate_w.unsqueeze(2)
    pooled = pcsa.norm(scsa.pool(x, pcsa.window_size))
    q, k, v = (f(pooled).flatten(2) for f in (pcsa.q, pcsa.k, pcsa.v))
    attention = (q @ k.mT * x.shape[1] ** -0.5).softmax(-1)
    gate_c = (attention @ v).mean(2).sigmoid()
    return x * gate_c[..., None, None]


def copy(x: Tensor) -> Tensor:
    """Read and write a map once."""
    return x.mul(2)


class Op(NamedTuple):
    """What is measured with maps of one size.

    Args:
        paths: Name -> function of a map.
        parameters: What a training step differentiates beside the map.
    """

    paths: dict[str, Callable[[Tensor], Tensor]]
    parameters: list[nn.Parameter]


def make_gsca(x: Tensor) -> Op:
    """Return the paths of GSCA for maps like ``x``."""
    heads = max(1, x.shape[1] // 64)
    settings = heads, 2.0, True
    return Op(
        {
            'paper': lambda x: paper_gsca(x, heads),
            'copy': copy,
            'reference': lambda x: gsca.reference(x, *settings),
            'fused': lambda x: gsca.fused(x, *settings, 1e-8),
            'default': lambda x: gsca.gsca(x, *settings),
        },
        [],
    )


def make_scsa(x: Tensor) -> Op:
    """Return the paths of SCSA for maps like ``x``."""
    module = SCSA(x.shape[1]).to(x)
    networks = module.smsa.axis_gates, module.pcsa.channel_gate
    window = module.pcsa.window_size
    return Op(
        {
            'paper': lambda x: paper_scsa(x, module),
            'copy': copy,
            'reference': lambda x: scsa.reference(x, *networks, window),
            'fused': lambda x: scsa.fused(x, *networks, window),
            'default': module,
        },
        list(module.parameters()),
    )


OPS = {'gsca': make_gsca, 'scsa': make_scsa}


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
    make: Callable[[Tensor], Op],
    size: tuple[int, ...],
    args: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Measure all paths with maps of one size.

    Args:
        make: Returns what is measured with a map.
        size: Of the map, ``(B, C, H, W)``.
        args: ``device``, ``dtype``, ``channels_last`` and ``repeat`` of the
            command line.

    Returns:
        Measure -> path -> median seconds, or bytes.
    """
    x = torch.randn(size, device=args.device, dtype=getattr(torch, args.dtype))
    if args.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(x)
    paths, parameters = make(x)
    leaf = x.clone().requires_grad_()

    def infer(path: str) -> None:
        with torch.no_grad():
            paths[path](x)

    def train(path: str) -> None:
        y = paths[path](leaf)
        # A copy uses no parameters.
        torch.autograd.grad(y, [leaf, *parameters], grad, allow_unused=True)

    found = {
        'saved': {
            path: bytes_saved(function, x) for path, function in paths.items()
        }
    }
    for name, step in (('inference', infer), ('training', train)):
        times: dict[str, list[float]] = {path: [] for path in paths}
        for _ in range(args.repeat):
            for path in paths:
                # What the path before has left in caches and of memory
                # would be its own merit or fault.
                step(path)
                spent = timer(lambda p=path, s=step: s(p), x.device)
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
    for op in args.ops:
        for size in tqdm(args.sizes or SIZES, op):
            found = measure(OPS[op], size, args)
            rows += [
                {
                    'op': op,
                    'path': path,
                    'size': 'x'.join(map(str, size)),
                    'dtype': args.dtype,
                    'channels_last': args.channels_last,
                    **{m: found[m][path] for m in MEASURES},
                    **{
                        f'{m}_ratio': found[m][path] / found[m]['paper']
                        for m in MEASURES
                    },
                    'hardware': hardware,
                    'threads': torch.get_num_threads(),
                    'torch': torch.__version__,
                }
                for path in found['saved']
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
    for op in dict.fromkeys(row['op'] for row in rows):
        mine = [row for row in rows if row['op'] == op]
        means = (mean_ratio(mine, path, measure) for path in paths)
        shown = ' | '.join(f'{mean:.2f}' for mean in means)
        lines.append(f'| {op} geometric mean | {shown} |')
    return '\n'.join(lines)


def mean_ratio(rows: list[dict], path: str, measure: str) -> float:
    """Return the geometric mean over the sizes of a path's ratios."""
    ratios = [r[f'{measure}_ratio'] for r in rows if r['path'] == path]
    return statistics.geometric_mean(max(ratio, 1e-9) for ratio in ratios)


def plot(rows: list[dict], path: Path) -> None:
    """Draw the ratios of every size, a row for each op, a panel a measure."""
    ops = list(dict.fromkeys(row['op'] for row in rows))
    size = 12, 4 * len(ops)
    figure = Figure(figsize=size, layout='constrained')
    panels = figure.subplots(len(ops), len(MEASURES), squeeze=False)
    for op, line in zip(ops, panels):
        mine = [row for row in rows if row['op'] == op]
        names = list(dict.fromkeys(row['path'] for row in mine))
        sizes = list(dict.fromkeys(row['size'] for row in mine))
        for axes, measure in zip(line, MEASURES):
            key = f'{measure}_ratio'
            for name in names:
                ratios = [row[key] for row in mine if row['path'] == name]
                axes.plot(ratios, 'o-', label=name)
            axes.set_xticks(range(len(sizes)), sizes, rotation=45, ha='right')
            axes.set(title=f'{op}, {measure}', ylim=(0, None))
        line[0].set_ylabel("ratio to the paper's")
        line[-1].legend()
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
        '--channels-last',
        action='store_true',
        help='Lay the maps out with the channels innermost.',
    )
    parser.add_argument(
        '--ops',
        nargs='+',
        choices=OPS,
        default=list(OPS),
        help='What to measure. Default: all of %(choices)s.',
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
