# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Write a config with all its bases as one YAML or JSON file, without code.

The tools read such a file with ``--safe-config``.
"""

import argparse

from mmengine.config import DictAction

from mmattn.engine import one_line_errors, read_config
from mmattn.engine.safety import dump_plain_config


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='The config file. Its code is run.')
    parser.add_argument(
        'out',
        help='A .yml, .yaml or .json file; JSON is read with --safe-config '
        'alone, for its tuples are marked.',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='Override settings of the config, as in tools/train.py.',
    )
    return parser.parse_args(argv)


def main() -> None:
    """Dump."""
    args = parse_args()
    with one_line_errors():
        cfg = read_config(args.config, args.cfg_options)
        dump_plain_config(cfg, args.out)
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
