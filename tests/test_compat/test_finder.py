# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmattn import compat
from mmattn.compat import finder

ROOT = Path(__file__).parents[2]
lite = pytest.mark.skipif(
    finder.ops_source() != 'torchvision', reason='the ops are not mmattn'
)


def run(code, *paths):
    """Run code in a new interpreter that finds `paths` first."""
    path = os.pathsep.join(map(str, [*paths, ROOT]))
    return subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def fake_mmcv(tmp_path):
    """A package mmcv that has nothing yet; returns its folder."""
    folder = tmp_path / 'mmcv'
    folder.mkdir()
    (folder / '__init__.py').touch()
    return folder


def test_setup_twice_adds_one_finder():
    before = list(sys.meta_path)
    compat.setup()
    compat.setup()
    assert sys.meta_path == before
    found = [isinstance(f, finder.ExtensionFinder) for f in sys.meta_path]
    assert sum(found) == 1


def test_finder_serves_one_name():
    serve = finder.ExtensionFinder().find_spec
    assert serve('mmcv._ext', []).origin == str(finder._SOURCE)
    for name in ('mmcv', 'mmcv.ops', '_ext', 'mmdet._ext', 'mmcv._ext.x'):
        assert serve(name, []) is None


@lite
def test_extension_is_found_without_import():
    spec = importlib.util.find_spec('mmcv._ext')
    assert Path(spec.origin).name == 'mmcv_ext.py'


@lite
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_frameworks_find_the_extension():
    from mmcv.utils.ext_loader import check_ops_exist
    from mmengine.utils.dl_utils import mmcv_full_available

    assert check_ops_exist()
    assert mmcv_full_available()


@lite
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_environment_reports():
    import mmcv.ops
    import mmcv.utils
    from mmengine.utils.dl_utils import collect_env

    assert 'PyTorch' in collect_env()
    report = mmcv.utils.collect_env()
    assert 'torchvision' in report['MMCV Compiler']
    assert report['MMCV CUDA Compiler']
    assert mmcv.ops.get_compiler_version() == report['MMCV Compiler']


def test_compiled_extension_wins(fake_mmcv):
    """And neither mmattn nor `ops_source` imports what it looks for."""
    (fake_mmcv / '_ext.py').write_text("origin = 'compiled'")
    code = (
        'import sys, mmattn\n'
        'from mmattn.compat.finder import ops_source\n'
        'print(ops_source())\n'
        "names = {'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision'}\n"
        'print(names & set(sys.modules) or None)\n'
        'import mmcv._ext\n'
        'print(mmcv._ext.origin)\n'
    )
    result = run(code, fake_mmcv.parent)
    assert result.stdout.split() == ['compiled', 'None', 'compiled'], result


def test_broken_extension_is_not_masked(fake_mmcv):
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (fake_mmcv / f'_ext{suffix}').write_bytes(b'not a library')
    result = run('import mmattn, mmcv._ext', fake_mmcv.parent)
    assert 'ImportError' in result.stderr and '_ext' in result.stderr
    assert 'mmcv_ext.py' not in result.stderr


def test_ops_source(monkeypatch, fake_mmcv):
    spec = importlib.util.spec_from_file_location(
        'mmcv',
        fake_mmcv / '__init__.py',
        submodule_search_locations=[str(fake_mmcv)],
    )
    installed = {'mmcv': spec, 'torchvision': object()}
    monkeypatch.setattr(finder, 'find_spec', installed.get)
    assert finder.ops_source() == 'torchvision'
    (fake_mmcv / '_ext.py').touch()
    importlib.invalidate_caches()
    assert finder.ops_source() == 'compiled'
    (fake_mmcv / '_ext.py').unlink()
    importlib.invalidate_caches()
    del installed['torchvision']
    assert finder.ops_source() == 'none'
    del installed['mmcv']
    assert finder.ops_source() == 'none'


@pytest.mark.parametrize('error', ['ImportError', 'OSError'])
def test_setup_without_frameworks(error):
    """Absent (ImportError) or unable to load a library (OSError)."""
    code = (
        'import sys\n'
        'class Absent:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        "        if name in ('torch', 'numpy', 'mmengine', 'mmcv'):\n"
        f'            raise {error}(name)\n'
        'sys.meta_path.insert(0, Absent())\n'
        'from mmattn import compat\n'
        'compat.setup()\n'
        "print(any('ExtensionFinder' in repr(f) for f in sys.meta_path))\n"
    )
    result = run(code)
    assert result.stdout.strip() == 'True', result.stderr
