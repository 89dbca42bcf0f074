# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Write a config with all its bases as one YAML or JSON file, without code.

The tools read such a file with ``--safe-config``. YAML keeps tuples, which
JSON makes lists.
"""

import argparse
from pathlib import Path

from mmengine.config import DictAction

from mmattn.engine import one_line_errors, read_config
from mmattn.errors import ConfigError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='The config file. Its code is run.')
    parser.add_argument('out', type=Path, help='A .yml, .yaml or .json file.')
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
        if args.out.suffix not in ('.yml', '.yaml', '.json'):
            raise ConfigError(f'{args.out} must end in .yml, .yaml or .json')
        cfg = read_config(args.config, args.cfg_options)
        cfg.dump(args.out)
    print(f'written to {args.out}')


if __name__ == '__main__':
    main()
