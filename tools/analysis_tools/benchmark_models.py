# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Time models with each attention against the plain one, in one run.

A ResNet-50 classifier in inference, by the SCSA paper's protocol (224 x 224,
32 images, mean of 100 repetitions), or, with ``--train``, a step of training;
a step of training of Faster R-CNN R50 FPN (800 x 1333, 2 images)::

    python tools/analysis_tools/benchmark_models.py classifier --csv cls.csv
    python tools/analysis_tools/benchmark_models.py classifier --train
    python tools/analysis_tools/benchmark_models.py detector --plot det.png

The models take turns, so that whatever slows the machine down slows all of
them. Weights and images are random and stay the same: the optimizer steps
with a learning rate of 0. ``saved`` is what the forward pass keeps for the
backward pass, weights left out (not their copies of ``--amp``), ``peak`` the
most memory that the model would take on the GPU if it was there alone. Every
model stays in memory; where that is too small, name fewer attentions.
"""

import argparse
import csv
import importlib
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from mmengine.config import Config, DictAction
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import nn
from tqdm import tqdm

import mmattn
from mmattn.engine import one_line_errors, read_config
from mmattn.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
FRAGMENTS = CONFIGS / '_base_' / 'attention'
PLAIN = 'none'
BOXES = 8  # objects in an image
LAYOUTS = {
    torch.contiguous_format: 'contiguous',
    torch.channels_last: 'channels_last',
}


def labelled_images(
    rng: np.random.Generator, args: argparse.Namespace
) -> list:
    """Return the labels of a classifier's batch."""
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(0) for _ in range(args.batch)]


def images_with_boxes(
    rng: np.random.Generator, args: argparse.Namespace
) -> list:
    """Return the objects of a detector's batch, of 0.1 to 0.5 its sides."""
    from mmdet.structures import DetDataSample

    samples = []
    for _ in range(args.batch):
        sides = rng.uniform(0.1, 0.5, (BOXES, 2))
        start = rng.uniform(0, 1 - sides)
        boxes = np.hstack([start, start + sides]) * (args.size[::-1] * 2)
        objects = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32),
            labels=torch.zeros(BOXES, dtype=torch.long),
        )
        meta = dict(img_shape=args.size, ori_shape=args.size)
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = objects
        samples.append(sample)
    return samples


class Kind(NamedTuple):
    """What can be measured, and how unless stated."""

    title: str
    base: str
    config: str  # how the configs of the papers' rows begin
    tables: tuple[tuple[str, int], ...]  # the papers' tables of these models
    backbone: dict[str, dict]  # what an attention needs beside its fragment
    framework: str
    samples: Callable[[np.random.Generator, argparse.Namespace], list]
    size: tuple[int, int]
    batch: int
    repeat: int
    warmup: int


KINDS = {
    'classifier': Kind(
        title='ResNet-{depth}',
        base='classifiers/resnet50_1xb128_in1k.py',
        config='resnet50-',
        tables=(('gsca', 4), ('scsa', 2)),
        # GSoPNet1, like its config, keeps the resolution in the last stage.
        backbone={'gsop': dict(strides=(1, 2, 2, 1))},
        framework='mmpretrain',
        samples=labelled_images,
        size=(224, 224),
        batch=32,
        repeat=100,
        warmup=10,
    ),
    'detector': Kind(
        title='Faster R-CNN R{depth} FPN',
        base='detectors/faster-rcnn_r50_fpn_1x_coco.py',
        config='faster-rcnn_r50-',
        tables=(('gsca', 5), ('scsa', 3)),
        backbone={},
        framework='mmdet',
        samples=images_with_boxes,
        size=(800, 1333),
        batch=2,
        repeat=20,
        warmup=3,
    ),
}


class Subject(NamedTuple):
    """A model to be timed."""

    step: Callable[[], object]
    saved: int | None  # bytes, in training
    peak: int | None  # bytes, on a GPU


# ------------------------------------------------------------------- building


def papers_attentions(kind: Kind) -> list[str]:
    """Return the attentions of the papers' tables, the plain model first."""
    tables = yaml.safe_load((CONFIGS / 'paper-tables.yml').read_text())
    found = [PLAIN]
    for paper, number in kind.tables:
        for row in tables[paper][number]:
            name = Path(row['config']).name
            if name.startswith(kind.config):
                found.append(name.removeprefix(kind.config).split('_')[0])
    return list(dict.fromkeys(found))


def known_attentions() -> list[str]:
    """Return the fragments for ResNet-50 and deeper."""
    stems = sorted(path.stem for path in FRAGMENTS.glob('*.py'))
    return [stem for stem in stems if '_' not in stem]  # others' have one


def config_of(name: str, args: argparse.Namespace) -> Config:
    """Return the config of a model with an attention."""
    kind = KINDS[args.model]
    cfg = read_config(str(CONFIGS / '_base_' / kind.base))
    fragment = read_config(str(FRAGMENTS / f'{name}.py')).to_dict()
    extra = kind.backbone.get(name, {})
    cfg.model.backbone.update(fragment, depth=args.depth, **extra)
    cfg.merge_from_dict(args.cfg_options or {})
    return cfg


def make_batch(model: nn.Module, args: argparse.Namespace) -> dict:
    """Return random images with labels, as a model's forward takes them."""
    rng = np.random.default_rng(0)
    shape = (args.batch, 3, *args.size)
    images = torch.from_numpy(rng.integers(0, 256, shape, np.uint8))
    samples = KINDS[args.model].samples(rng, args)
    data = dict(inputs=list(images), data_samples=samples)
    data = model.data_preprocessor(data, training=True)
    data['inputs'] = data['inputs'].contiguous(memory_format=args.layout)
    return data


def make_step(
    model: nn.Module, data: dict, args: argparse.Namespace
) -> tuple[Callable[[], object], torch.optim.Optimizer | None]:
    """Return what is timed, and the optimizer in training."""
    dtype = None if args.amp is None else getattr(torch, args.amp)
    autocast = torch.autocast(args.device.type, dtype, enabled=bool(dtype))

    def infer() -> None:
        with torch.inference_mode(), autocast:
            model(**data, mode='tensor')

    if not args.train:
        return infer, None
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=0.0,
        momentum=0.9,
        weight_decay=1e-4,
    )
    wrapper = OptimWrapper(optimizer)
    if args.amp == 'float16':
        wrapper = AmpOptimWrapper(loss_scale=512.0, optimizer=optimizer)

    def train() -> None:
        with autocast:
            losses = model(**data, mode='loss')
            loss = model.parse_losses(losses)[0]
        wrapper.update_params(loss)

    return train, optimizer


def prepare(name: str, args: argparse.Namespace) -> Subject:
    """Build a model with an attention and run it for the first time.

    Its weights are those that torch's layers start with: `init_weights`, not
    called, would download some and set others to zero, which is computed
    faster on some GPUs.

    Raises:
        ConfigError: If it cannot be built, or cannot run at this size.
    """
    torch.manual_seed(0)
    cfg = config_of(name, args)
    try:
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        model.to(args.device, memory_format=args.layout).train(args.train)
        data = make_batch(model, args)
        step, optimizer = make_step(model, data, args)
        saved = bytes_saved(step, model)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip() or type(error).__name__
        raise ConfigError(
            f'{name} cannot be measured: {reason.splitlines()[0]}'
        ) from error
    peak = None
    if args.device.type == 'cuda':
        held = [*model.parameters(), *model.buffers(), data['inputs']]
        for state in optimizer.state.values() if optimizer else ():
            held += state.values()
        peak = peak_bytes(step, held, args.device)
    return Subject(step, saved if args.train else None, peak)


# ------------------------------------------------------------------ measuring


def bytes_saved(step: Callable[[], object], model: nn.Module) -> int:
    """Return what a step keeps for its backward pass, each storage once.

    What a checkpointed part keeps is not seen.
    """
    weights = {t.untyped_storage().data_ptr() for t in model.parameters()}
    weights |= {t.untyped_storage().data_ptr() for t in model.buffers()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        step()
    return sum(kept.values())


def peak_bytes(
    step: Callable[[], object], held: list[torch.Tensor], device: torch.device
) -> int:
    """Return the most bytes that a model needs on a GPU, alone there.

    Args:
        step: One that has run before.
        held: What the model keeps between two steps.
        device: The GPU, with other models on it.
    """
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    rise = torch.cuda.max_memory_allocated(device) - before
    return rise + sum(tensor.nbytes for tensor in held)


def timer(step: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a step takes."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(
    subjects: dict[str, Subject], args: argparse.Namespace
) -> dict[str, list[float]]:
    """Return the seconds of each repetition, the models taking turns."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    turns = args.warmup + args.repeat
    with tqdm(total=turns * len(subjects), desc='measure') as bar:
        for turn in range(turns):
            for name, subject in subjects.items():
                spent = timer(subject.step, args.device)
                if turn >= args.warmup:
                    times[name].append(spent)
                bar.update()
    return times


def hardware(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    info = Path('/proc/cpuinfo')  # Linux; platform does not know the name
    for line in info.read_text().splitlines() if info.is_file() else ():
        key, _, value = line.partition(':')
        if key.strip() == 'model name':
            return value.strip()
    return platform.processor() or platform.machine()


def benchmark(args: argparse.Namespace) -> list[dict]:
    """Measure every model; return a row for each, the plain one first."""
    with tqdm(dict.fromkeys([PLAIN, *args.attentions]), 'prepare') as names:
        subjects = {name: prepare(name, args) for name in names}
    times = measure(subjects, args)
    framework = importlib.import_module(KINDS[args.model].framework)
    rows = []
    for name, subject in subjects.items():
        mean = float(np.mean(times[name]))
        p50, p90, p99 = np.percentile(times[name], (50, 90, 99)).tolist()
        row = {
            'model': args.model,
            'depth': args.depth,
            'attention': name,
            'mode': 'training' if args.train else 'inference',
            'images_per_second': args.batch / mean,
            'mean': mean,
            'p50': p50,
            'p90': p90,
            'p99': p99,
            'saved': subject.saved,
            'peak': subject.peak,
        }
        base = rows[0] if rows else row
        row['ratio'] = row['images_per_second'] / base['images_per_second']
        for key in ('saved', 'peak'):
            known = row[key] is not None
            row[f'{key}_ratio'] = row[key] / base[key] if known else None
        row |= {
            'height': args.size[0],
            'width': args.size[1],
            'batch': args.batch,
            'repeat': args.repeat,
            'dtype': f'{args.amp} amp' if args.amp else 'float32',
            'layout': LAYOUTS[args.layout],
            'options': args.cfg_options or '',
            'device': args.device.type,
            'hardware': hardware(args.device),
            'threads': torch.get_num_threads(),
            'torch': torch.__version__,
            'framework': f'{framework.__name__} {framework.__version__}',
            'mmattn': mmattn.__version__,
        }
        rows.append(row)
    return rows


# ------------------------------------------------------------------ reporting


def title(row: dict) -> str:
    """Say in a line what was measured."""
    name = KINDS[row['model']].title.format(depth=row['depth'])
    if row['options']:
        name += f' {row["options"]}'
    size = f'{row["batch"]} x {row["height"]} x {row["width"]}'
    where = row['hardware']
    if row['device'] == 'cpu':
        where += f', {row["threads"]} thread{"s" * (row["threads"] > 1)}'
    return (
        f'{name}, {row["mode"]}, {size}, {row["dtype"]}, {row["layout"]}, '
        f'mean of {row["repeat"]}, {where}, torch {row["torch"]}'
    )


def table(rows: list[dict]) -> str:
    """Return the rows as Markdown, times in ms and memory in MiB."""
    memory = [key for key in ('saved', 'peak') if rows[0][key] is not None]
    heads = ['attention', 'images/s', 'ratio', 'mean ms', 'p50', 'p90', 'p99']
    for key in memory:
        heads += [f'{key} MiB', f'{key} ratio']
    lines = [heads, ['---'] * len(heads)]
    for row in rows:
        cells = [row['attention'], f'{row["images_per_second"]:.2f}']
        cells.append(f'{row["ratio"]:.3f}')
        times = (row[key] for key in ('mean', 'p50', 'p90', 'p99'))
        cells += [f'{1000 * seconds:.2f}' for seconds in times]
        for key in memory:
            cells += [f'{row[key] / 2**20:.1f}', f'{row[f"{key}_ratio"]:.3f}']
        lines.append(cells)
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def plot(rows: list[dict], path: Path) -> None:
    """Draw the ratios to the plain model, one panel a measure."""
    panels = {'ratio': 'images/s'}
    for key in ('saved', 'peak'):
        if rows[0][key] is not None:
            panels[f'{key}_ratio'] = f'{key} memory'
    size = (1 + 4 * len(panels), 1.5 + 0.3 * len(rows))
    figure = Figure(figsize=size, layout='constrained')
    names = [row['attention'] for row in rows]
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, (key, label) in zip(grid[0], panels.items()):
        bars = axes.barh(names, [row[key] for row in rows])
        axes.bar_label(bars, fmt='%.2f', label_type='center', color='white')
        axes.axvline(1, color='black', linewidth=0.8)
        axes.set_xlabel(f'{label}, ratio to the plain model')
        axes.margins(y=0.02)
    grid[0, 0].invert_yaxis()
    figure.suptitle(title(rows[0]), fontsize='small', wrap=True)
    figure.savefig(path, dpi=150)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('model', choices=list(KINDS), help='What to measure.')
    parser.add_argument(
        '--attentions',
        nargs='+',
        metavar='NAME',
        help='Fragments of configs/_base_/attention; the plain model, none, '
        "is always there. Default: those of the papers' tables. Known: "
        f'{", ".join(known_attentions())}.',
    )
    parser.add_argument(
        '--depth',
        type=int,
        choices=[50, 101, 152],
        default=50,
        help='Of the ResNet. Default: %(default)s.',
    )
    parser.add_argument(
        '--train',
        action='store_true',
        help='Time forward, backward and optimizer of a classifier instead '
        'of inference; a detector is always trained.',
    )
    parser.add_argument(
        '--size',
        nargs='+',
        type=int,
        metavar='SIZE',
        help='Height and width of the images, or the side of square ones. '
        'Default: 224 for a classifier, 800 1333 for a detector.',
    )
    for name, what in (
        ('batch', 'Images in a batch'),
        ('repeat', 'Repetitions'),
        ('warmup', 'Repetitions before those that count'),
    ):
        defaults = [getattr(kind, name) for kind in KINDS.values()]
        parser.add_argument(
            f'--{name}',
            type=int,
            help=f'{what}. Default: {defaults[0]} for a classifier, '
            f'{defaults[1]} for a detector.',
        )
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='Where to measure: cpu, cuda or cuda:N. Default: %(default)s.',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='Mixed precision: float16 on a GPU, bfloat16 on the CPU.',
    )
    parser.add_argument(
        '--channels-last',
        action='store_const',
        dest='layout',
        const=torch.channels_last,
        default=torch.contiguous_format,
        help='Keep the channels of a pixel together in memory.',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='Override settings of every model, as in tools/train.py.',
    )
    parser.add_argument('--csv', type=Path, help='File for all figures.')
    parser.add_argument('--plot', type=Path, help='File for a plot, a PNG.')
    try:
        args = parser.parse_args(argv)
    except ValueError:  # of DictAction
        parser.error('--cfg-options: must be pairs like key=value')
    complete(args, parser)
    return args


def complete(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> None:
    """Fill in the defaults of the model; refuse what cannot be done."""
    kind = KINDS[args.model]
    args.train = args.train or args.model == 'detector'
    args.attentions = args.attentions or papers_attentions(kind)
    for name in ('size', 'batch', 'repeat', 'warmup'):
        if getattr(args, name) is None:
            setattr(args, name, getattr(kind, name))
    known = known_attentions()
    for name in args.attentions:
        if name not in known:
            parser.error(f'--attentions {name}: there is {", ".join(known)}')
    if len(args.size) > 2 or min(args.size) < 1:
        parser.error(
            f'--size {" ".join(map(str, args.size))}: one or two sizes are '
            'wanted, height and width in pixels'
        )
    args.size = (args.size[0], args.size[-1])
    for name, least in (('batch', 1), ('repeat', 1), ('warmup', 0)):
        if getattr(args, name) < least:
            parser.error(
                f'--{name} {getattr(args, name)}: must be at least {least}'
            )
    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        parser.error(f'--device {args.device}: {reason}')
    if device.type not in ('cpu', 'cuda'):
        parser.error(f'--device {args.device}: must be cpu, cuda or cuda:N')
    args.device = device
    half = 'float16' if device.type == 'cuda' else 'bfloat16'
    args.amp = half if args.amp else None
    for name in ('csv', 'plot'):
        path = getattr(args, name)
        if path and (path.is_dir() or not path.absolute().parent.is_dir()):
            parser.error(f'--{name} {path}: must be a file in a folder')
    kinds = Figure().canvas.get_supported_filetypes()
    if args.plot and args.plot.suffix[1:] not in kinds:
        parser.error(f'--plot {args.plot}: must end in .png')


def main() -> None:
    """Measure, print the table, and write what is asked for."""
    args = parse_args()
    with one_line_errors():
        try:
            rows = benchmark(args)
        except KeyboardInterrupt:
            raise SystemExit('error: stopped') from None
    print(f'\n{title(rows[0])}\n\n{table(rows)}')
    if args.csv:
        with args.csv.open('w', newline='') as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)
    if args.plot:
        plot(rows, args.plot)


if __name__ == '__main__':
    main()
