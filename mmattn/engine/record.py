# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What a run was: command, code, environment and settings."""

import json
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from mmengine.dist import master_only
from mmengine.runner import Runner

import mmattn

PACKAGES = (
    *('torch', 'torchvision', 'numpy', 'opencv-python', 'pycocotools'),
    *('mmengine', 'mmcv', 'mmcv-lite', 'mmdet', 'mmsegmentation'),
    *('mmpretrain', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'),
    *('onedl-mmsegmentation', 'onedl-mmpretrain'),
)


@master_only
def record_run(runner: Runner, config: str) -> None:
    """Write `run.json` into the run's folder of logs.

    The resolved config stands beside it, in `vis_data/config.py`.

    Args:
        runner: The runner.
        config: The config file, whose repository is named.
    """
    device = 'CPU'
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    record = dict(
        command=shlex.join([sys.executable, *sys.argv]),
        folder=str(Path.cwd()),
        config=git_revision(Path(config).parent),
        mmattn=dict(
            git_revision(Path(mmattn.__file__).parent),
            version=mmattn.__version__,
        ),
        seed=runner.seed,
        deterministic=runner.deterministic,
        processes=runner.world_size,
        host=platform.node(),
        device=device,
        threads=torch.get_num_threads(),
        platform=platform.platform(),
        python=platform.python_version(),
        packages={name: v for name in PACKAGES if (v := _version(name))},
    )
    path = Path(runner.log_dir, 'run.json')
    path.write_text(json.dumps(record, indent=2) + '\n')


def git_revision(folder: Path) -> dict:
    """Name the commit that a folder is at, and whether files differ from it.

    Returns:
        `revision` and `changed`; empty outside a repository and without git.
    """
    try:
        revision, changes = (
            subprocess.run(
                ['git', '-C', str(folder), *words],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for words in (['rev-parse', 'HEAD'], ['status', '--porcelain'])
        )
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(revision=revision, changed=bool(changes))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
