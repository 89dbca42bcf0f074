# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Count parameters, FLOPs and activations of models, from their configs.

For one image. FLOPs are multiply-adds of convolutions, linear layers and
matrix products, those inside attention included; "as mmengine" adds norms,
resampling and adaptive average pooling, as mmengine.analysis does;
"elementwise" is every floating-point operation that the FLOPs leave out.
Activations are elements of the results of convolutions and matrix products.
Nothing is computed, so neither data, weights nor a GPU are needed. A detector
ends before its boxes are decoded; RoIAlign is not counted, and the heads on
regions take as many as test_cfg admits.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import DictAction
from mmengine.logging import MMLogger

from mmattn.engine import one_line_errors, read_config
from mmattn.engine.cost import (
    Cost,
    Count,
    build_model,
    count,
    default_shape,
)
from mmattn.engine.safety import add_safe_config_argument
from mmattn.errors import ConfigError

# What of a Count stands below which title.
COLUMNS = {
    'parameters': 'params',
    'trainable': 'trainable',
    'FLOPs': 'flops',
    'as mmengine': 'mmengine',
    'elementwise': 'elementwise',
    'activations': 'activations',
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('configs', nargs='+', help='Config files.')
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        metavar='SIZE',
        help='Height and width of the image, or the side of a square one. '
        'Default: 224 224 for classifiers, 800 1280 for detectors, the size '
        'of the crops for segmentors.',
    )
    parser.add_argument(
        '--by-module',
        type=int,
        default=0,
        metavar='DEPTH',
        help='Also list the modules of each model, children down to DEPTH.',
    )
    parser.add_argument(
        '--json',
        metavar='FILE',
        help='Also write the exact numbers to this file.',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='Override settings of every config, as in tools/train.py.',
    )
    add_safe_config_argument(parser)
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Raise ConfigError for what cannot be done, before any work."""
    sizes = args.shape
    if sizes and (len(sizes) > 2 or min(sizes) < 1):
        raise ConfigError(
            f'--shape {" ".join(map(str, sizes))}: one or two sizes are '
            'wanted, height and width in pixels'
        )
    if args.by_module < 0:
        raise ConfigError(f'--by-module {args.by_module} must not be negative')
    if not args.json:
        return
    if Path(args.json).is_dir():
        raise ConfigError(f'--json {args.json} is a folder; name a file')
    if not Path(args.json).absolute().parent.is_dir():
        raise ConfigError(f'--json {args.json}: there is no such folder')


def cost_of(
    path: str, args: argparse.Namespace
) -> tuple[tuple[int, int], Cost]:
    """Return the shape and the cost of the model of a config."""
    cfg = read_config(path, args.cfg_options)
    try:
        model = build_model(cfg)
        # A single size stands for both.
        shape = (
            (args.shape[0], args.shape[-1])
            if args.shape
            else default_shape(model)
        )
        return shape, count(model, shape)
    except ConfigError as error:
        raise ConfigError(f'{path}: {error}') from error


def modules_of(cost: Cost, depth: int) -> dict[str, Count]:
    """Return what modules cost that are at most so deep, by name.

    Without those that cost nothing, such as losses.
    """
    return {
        name: own
        for name, own in cost.by_module.items()
        if name.count('.') < depth and any(vars(own).values())
    }


def short(number: int) -> str:
    """Write a number in thousands, millions or 1e9."""
    for unit, size in (('G', 1e9), ('M', 1e6), ('k', 1e3)):
        if number >= size:
            return f'{number / size:.3f}{unit}'
    return str(number)


def line(name: str, shape: str, cells: list[str], width: int) -> str:
    """Return a line of the table."""
    cells = [f'{cell:>11}' for cell in cells]
    return '  '.join([f'{name:{width}}', f'{shape:>9}', *cells])


def lines(
    name: str, shape: tuple[int, int], cost: Cost, depth: int, width: int
) -> list[str]:
    """Return the lines of a model: its own, and one for each module."""
    rows = [(name, f'{shape[0]}x{shape[1]}', cost)]
    for path, own in modules_of(cost, depth).items():
        indent = '  ' * (path.count('.') + 1)
        rows.append((indent + path.rpartition('.')[2], '', own))
    return [
        line(
            label,
            size,
            [short(getattr(own, key)) for key in COLUMNS.values()],
            width,
        )
        for label, size, own in rows
    ]


def as_json(path: str, shape: tuple[int, int], cost: Cost, depth: int) -> dict:
    """Return what the JSON file says about a model."""
    counts = dataclasses.asdict(cost)
    modules = modules_of(cost, depth)
    counts['by_module'] = {name: counts['by_module'][name] for name in modules}
    return dict(config=path, shape=shape, **counts)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the frameworks say about a model out of the table."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)
            yield
    finally:
        logger.setLevel(level)


def main() -> None:
    """Print a line for each config, and one for each module if asked."""
    args = parse_args()
    results = []
    with one_line_errors(), quiet():
        check_args(args)
        width = max(len(Path(path).stem) for path in args.configs)
        print(line('config', 'shape', list(COLUMNS), width))
        for path in args.configs:
            shape, cost = cost_of(path, args)
            name, depth = Path(path).stem, args.by_module
            print(
                *lines(name, shape, cost, depth, width), sep='\n', flush=True
            )
            results.append(as_json(path, shape, cost, depth))
    if args.json:
        partial = Path(f'{args.json}.partial')
        partial.write_text(json.dumps(results, indent=1) + '\n')
        os.replace(partial, args.json)


if __name__ == '__main__':
    main()
