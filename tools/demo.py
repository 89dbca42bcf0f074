# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Train, test and show a small digit detector, by the tools users run.

Every command is printed before it runs; typing them by hand does the same.
Data and results go below the current folder.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import mmengine
import numpy as np

# As the user would type it: in a checkout it is the current folder.
ROOT = Path(os.path.relpath(Path(__file__).resolve().parents[1]))
DATA = Path('data/digits')
PICTURES = 6
METRICS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m')


def run(tool: str, *arguments: object) -> None:
    """Print a command of tools/ and run it; a failure ends the demo."""
    words = [str(word) for word in (ROOT / 'tools' / tool, *arguments)]
    print(f'\n$ python {shlex.join(words)}', flush=True)
    code = subprocess.run([sys.executable, *words]).returncode
    if code:
        raise SystemExit(code)


def latest_run(work_dir: Path) -> Path:
    """Return the folder of the run that started last."""
    return max(work_dir.glob('[0-9]*_[0-9]*'))


def stack_pictures(pictures: list[Path], out: Path, columns: int = 2) -> None:
    """Join pictures of one size in a grid, twice as large."""
    images = []
    for path in pictures:
        image = cv2.resize(cv2.imread(str(path)), None, fx=2, fy=2)
        images.append(
            cv2.copyMakeBorder(image, 4, 4, 4, 4, cv2.BORDER_CONSTANT)
        )
    rows = [
        np.hstack(images[i : i + columns])
        for i in range(0, len(images), columns)
    ]
    cv2.imwrite(str(out), np.vstack(rows))


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--attn',
        default='scsa',
        help='The attention: none, gsca, scsa. Default: %(default)s.',
    )
    args = parser.parse_args()
    name = f'faster-rcnn_r18-{args.attn}_fpn_15e_digits'
    config = ROOT / f'configs/demo/{name}.py'
    if not config.is_file():
        known = sorted(
            path.stem.split('_')[1].removeprefix('r18-')
            for path in config.parent.glob('faster-rcnn_*.py')
        )
        raise SystemExit(
            f'error: no demo for {args.attn!r}; there is {", ".join(known)}'
        )
    if not DATA.is_dir():
        run('dataset_converters/digits.py', '--out', DATA)
    run('train.py', config)
    work_dir = Path('work_dirs') / name
    log = latest_run(work_dir)
    checkpoint = Path((work_dir / 'last_checkpoint').read_text())
    pictures = work_dir / 'pictures'
    run(
        'test.py', config, checkpoint,
        '--show-dir', pictures, '--show-limit', PICTURES,
    )  # fmt: skip
    sheet = work_dir / 'pictures.png'
    stack_pictures(sorted(pictures.glob('*.png')), sheet)
    scores = mmengine.load(next(latest_run(work_dir).glob('*.json')))
    print(f'\n{name} on {DATA} (validation)')
    for metric in METRICS:
        print(f'  {metric:<8}{scores[f"coco/bbox_{metric}"]:6.3f}')
    print(f'checkpoint  {checkpoint}')
    print(f'log         {log / log.name}.log')
    print(f'pictures    {sheet} (left ground truth, right prediction)')


if __name__ == '__main__':
    main()
