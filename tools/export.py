# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Write a trained model as ONNX, TorchScript or a torch.export program.

The file is compared with the model at three sizes before it gets its name.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from mmengine.config import DictAction
from torch import Tensor

from mmattn.compat.exporting import LOWEST_OPSET
from mmattn.engine import one_line_errors
from mmattn.engine.export import (
    FORMATS,
    PARTS,
    check_format,
    describe,
    export,
    format_shape,
    operators,
    take_part,
    three_sizes,
)
from mmattn.errors import ConfigError
from mmattn.visualization import TrainedModel, find_images

# What the runtimes bring with them.
PLAIN = ('aten', 'onnx', 'prim', 'python')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='The config file.')
    parser.add_argument('checkpoint', help='The checkpoint file or URL.')
    parser.add_argument(
        '--format', choices=FORMATS, required=True, help='What to write.'
    )
    parser.add_argument(
        '--out',
        required=True,
        help='The file; torch.export wants it to end in .pt2.',
    )
    parser.add_argument(
        '--part',
        choices=PARTS,
        default='model',
        help='model: scores of classes, for every pixel of a segmentor, or a '
        "detector's boxes after the NMS; backbone: its maps; dense: what a "
        "detector's dense head says of every anchor. Default: %(default)s.",
    )
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='Height and width of the image to trace with. Default: what '
        'the test pipeline makes of 480x640.',
    )
    parser.add_argument(
        '--static',
        action='store_true',
        help='Take one image of this size alone, as whole detectors always '
        'do. Default: any batch, height and width.',
    )
    parser.add_argument(
        '--opset',
        type=int,
        default=17,
        help="Version of ONNX's operators. Default: %(default)s.",
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=1e-4,
        help='The largest difference allowed, relative to the largest value '
        'of an output. Default: %(default)s.',
    )
    parser.add_argument(
        '--images',
        nargs='+',
        help='Pictures, or folders of them, for the comparison of a whole '
        'detector, three of which are taken. Default: noise.',
    )
    parser.add_argument(
        '--device',
        default='cpu',
        help='Where to trace, and where a TorchScript file will run. '
        'Default: %(default)s.',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='Override settings of the config, as in tools/train.py.',
    )
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for what cannot be done, before any work."""
    out = Path(args.out)
    if out.is_dir() or not out.parent.is_dir():
        wrong = out if out.is_dir() else out.parent
        what = 'a folder' if out.is_dir() else 'no folder'
        raise ConfigError(f'--out {args.out}: {wrong} is {what}')
    if args.format == 'torch-export' and out.suffix != '.pt2':
        raise ConfigError(f'--out {args.out}: the name must end in .pt2')
    if args.size and min(args.size) < 1:
        raise ConfigError(f'--size {args.size[0]} {args.size[1]}: below 1')
    if args.opset < LOWEST_OPSET:
        raise ConfigError(
            f'--opset {args.opset}: must be at least {LOWEST_OPSET}'
        )
    check_format(args.format)


def make_images(
    trained: TrainedModel, args: argparse.Namespace, any_size: bool
) -> list[Tensor]:
    """Return three images to compare with, the first to trace with."""
    if args.images and not any_size:
        paths = find_images(args.images)[:3]
        images = [trained.read(path)['inputs'] for path in paths]
        if len({image.shape for image in images}) > 1:
            raise ConfigError(
                '--images of several sizes: a whole detector is for one size'
            )
        return images
    if args.size is None:
        picture = np.zeros((480, 640, 3), np.uint8)
        args.size = trained.read(picture)['inputs'].shape[2:]
    sizes = [(1, *args.size)] * 3
    if any_size:
        sizes = three_sizes(*args.size)
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, 3, *size, generator=draw).to(args.device)
        for batch, *size in sizes
    ]


def main() -> None:
    """Write, compare and report."""
    args = parse_args()
    with one_line_errors():
        check_arguments(args)
        trained = TrainedModel(
            args.config, args.checkpoint, args.device, args.cfg_options
        )
        part = take_part(trained.model, trained.scope, args.part)
        dynamic = part.any_size and not args.static
        found = export(
            part,
            make_images(trained, args, dynamic),
            args.out,
            args.format,
            dynamic,
            args.opset,
            describe(trained, args.part),
            args.tolerance,
        )
    for d in found:
        print(
            f'{format_shape(d.shape)}: largest difference {d.largest:.1e} of '
            f'{d.value:.3g}'
        )
    size = 'any size' if dynamic else f'{format_shape(found[0].shape)} alone'
    print(f'{args.out}: {Path(args.out).stat().st_size / 1e6:.1f} MB, {size}')
    names = operators(args.out, args.format)
    others = sorted(n for n in names if n.split('::')[0] not in PLAIN)
    if others:
        print(f'To run it, import torchvision first: {", ".join(others)}')


if __name__ == '__main__':
    main()
