# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What a wheel holds, and that it works away from the repository."""

import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mmattn
from mmattn.registry import MODELS

ROOT = Path(__file__).parents[1]

USE = """
import mmattn, sys
from mmengine.config import Config
cfg = Config.fromfile(sys.argv[1])
print(mmattn.__file__)
print(cfg.model.backbone.plugins[0]['cfg']['type'])
"""


def tracked(folder, pattern='*'):
    return sorted(
        path.relative_to(ROOT / folder).as_posix()
        for path in (ROOT / folder).rglob(pattern)
        if path.is_file() and '__pycache__' not in path.parts
    )


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A folder that holds what pip would put into site-packages."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    # A copy: setuptools leaves its build folder in the source tree.
    unwanted = shutil.ignore_patterns('.git', '.venv', 'data', 'work_dirs')
    shutil.copytree(ROOT, source, symlinks=True, ignore=unwanted)
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', str(source), '--no-deps',
         '--no-build-isolation', '--quiet', '--wheel-dir', str(folder)],
        check=True,
    )  # fmt: skip
    (wheel,) = folder.glob('*.whl')
    zipfile.ZipFile(wheel).extractall(folder / 'site')
    return folder / 'site'


@pytest.mark.parametrize('folder', ['configs', 'tools'])
def test_wheel_holds_every_config_and_tool(installed, folder):
    inside = installed / 'mmattn' / '.mim' / folder
    found = sorted(
        path.relative_to(inside).as_posix()
        for path in inside.rglob('*')
        if path.is_file()
    )
    assert found == tracked(folder)


def test_wheel_holds_every_module(installed):
    found = sorted(
        path.relative_to(installed / 'mmattn').as_posix()
        for path in (installed / 'mmattn').rglob('*.py')
        if '.mim' not in path.parts
    )
    expected = [p for p in tracked('mmattn', '*.py') if '.mim' not in p]
    assert found == expected


def test_configs_of_others_can_inherit_from_the_installed_package(
    installed, tmp_path
):
    config = tmp_path / 'mine.py'
    base = 'mmattn::scsa/faster-rcnn_r50-scsa_fpn_1x_coco.py'
    config.write_text(f"_base_ = '{base}'\n")
    output = subprocess.run(
        [sys.executable, '-c', USE, str(config)],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(installed)},
        capture_output=True,
        text=True,
    )
    assert output.returncode == 0, output.stderr
    assert output.stdout.split() == [
        str(installed / 'mmattn' / '__init__.py'),
        'mmattn.SCSA',
    ]


def test_every_location_of_the_registry_imports():
    for location in MODELS._locations:
        importlib.import_module(location)


def test_version_is_a_release():
    assert all(part.isdigit() for part in mmattn.__version__.split('.'))
