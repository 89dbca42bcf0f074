# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Write the README's table of attention modules anew from the registry."""

import argparse
import re
import sys
from pathlib import Path

from mmengine.config import Config

from mmattn.attention import list_attentions
from mmattn.registry import MODELS

ROOT = Path(__file__).parents[1]
MARKS = '<!-- attentions -->', '<!-- end of attentions -->'
WIDTH = 256


def fragments() -> dict[str, list[str]]:
    """Return the names of the plugin fragments that use each type."""
    found = {}
    folder = ROOT / 'configs/_base_/attention'
    for path in sorted(folder.glob('*.py'), key=lambda path: path.stem):
        plugins = Config.fromfile(path).get('plugins', ())
        for name in dict.fromkeys(p['cfg']['type'] for p in plugins):
            found.setdefault(name, []).append(path.stem)
    return found


def table() -> str:
    """Return the table as Markdown, a row for each registered module."""
    rows = [
        f'| module | what it does | parameters at {WIDTH} channels '
        '| fragments |',
        '|---|---|---|---|',
    ]
    used = fragments()
    for name in list_attentions():
        cls = MODELS.get(name.removeprefix('mmattn.'))
        does = cls.__doc__.split('\n')[0].rstrip('.')
        text = sys.modules[cls.__module__].__doc__
        link = re.search(r'https://arxiv\S+?(?=\.?\s)', text)
        shown = f'[`{name}`]({link[0]})' if link else f'`{name}`'
        size = sum(p.numel() for p in cls(WIDTH).parameters())
        kept = ', '.join(f'`{fragment}`' for fragment in used.get(name, ()))
        rows.append(f'| {shown} | {does} | {size:,} | {kept} |')
    return '\n'.join(rows)


def updated(readme: str) -> str:
    """Return the README's text with the table between its marks replaced."""
    before, rest = readme.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    return f'{before}{MARKS[0]}\n\n{table()}\n\n{MARKS[1]}{after}'


def main() -> None:
    """Rewrite the README, or only say whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--check',
        action='store_true',
        help='Write nothing; exit with 1 if the table is not current.',
    )
    args = parser.parse_args()
    path = ROOT / 'README.md'
    old = path.read_text()
    new = updated(old)
    if args.check:
        sys.exit(
            'README.md is not current; run python tools/update_readme.py'
            if old != new
            else 0
        )
    path.write_text(new)


if __name__ == '__main__':
    main()
