# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The test matrix's decisions; nothing is installed."""

import json
import os
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
HERE = '{}.{}'.format(*sys.version_info)


@pytest.fixture
def matrix(load_tool, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')  # where bootstrap.py is
    return load_tool('test_matrix.py')


@pytest.fixture
def folder(tmp_path):
    """An environment's folder in which nothing is installed."""
    site = tmp_path / 'env' / 'lib' / 'python3.11' / 'site-packages'
    for name, version in [
        ('torch', '2.11.0'),
        ('numpy', '2.2.6'),
        ('mmengine', '0.10.7'),
        ('mmcv_lite', '2.1.0'),
        ('onedl_mmdetection', '3.5.1'),
    ]:
        info = site / f'{name}-{version}.dist-info'
        info.mkdir(parents=True)
        (info / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
        )
    (tmp_path / 'env' / 'pyvenv.cfg').write_text('version = 3.11.7\n')
    return tmp_path / 'env'


def _parsed(text):
    lines = [line.partition('#')[0].strip() for line in text.splitlines()]
    return {
        found.name.lower().replace('_', '-'): str(found.specifier)
        for found in map(Requirement, filter(None, lines))
    }


# Sets


def test_constraints_of_a_set_are_pins_with_its_own_in_their_place(matrix):
    text = (ROOT / 'requirements/constraints.txt').read_text()
    ours = _parsed(text)
    for name, chosen in matrix.SETS.items():
        found = _parsed(matrix.constraints(chosen.pins))
        own = _parsed('\n'.join(chosen.pins))
        assert found == {**ours, **own}, name
        # A name must not stand there twice, which pip takes for a conflict.
        lines = matrix.constraints(chosen.pins).splitlines()
        pins = [line for line in lines if '==' in line and line[0] != '#']
        assert len(pins) == len(found)
    assert _parsed(matrix.constraints(matrix.SETS['era'].pins))['torch'] == (
        '==2.1.2'
    )


def test_every_package_that_a_set_names_is_pinned(matrix):
    for chosen in matrix.SETS.values():
        pins = _parsed(matrix.constraints(chosen.pins))
        assert set(chosen.packages) <= set(pins)


def test_compiled_mmcv_takes_the_place_of_mmcv_lite(matrix):
    chosen = matrix.SETS['compiled']
    found = matrix.requirements(chosen, '/w/mmcv.whl')
    assert not [word for word in found if word.startswith('mmcv-lite')]
    assert {'mmdet>=3.2,<4', 'setuptools<81', '/w/mmcv.whl'} <= set(found)
    assert 'mm' not in chosen.extras.split(',')
    assert matrix.requirements(matrix.SETS['py312']) == [
        '-e',
        '.[mm,optional,visual,export,tests]',
    ]


def test_extras_exist(matrix):
    known = set(matrix.bootstrap.known_extras(ROOT))
    for chosen in matrix.SETS.values():
        assert set(chosen.extras.split(',')) <= known


def test_docs_say_what_each_set_is(matrix):
    page = (ROOT / 'docs/compatibility.md').read_text()
    for name, chosen in matrix.SETS.items():
        row = next(ln for ln in page.splitlines() if f'`{name}`' in ln)
        assert chosen.python in row


# What is there


def _script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n{text}\n')
    path.chmod(0o755)
    return str(path)


def test_finds_interpreters(matrix, monkeypatch, tmp_path):
    monkeypatch.setenv('PYENV_ROOT', str(tmp_path / 'pyenv'))
    monkeypatch.setenv('PATH', str(tmp_path / 'bin') + ':/usr/bin:/bin')
    with pytest.raises(matrix.MissingError, match=r'no Python 3\.99 .*pyenv'):
        matrix.find_python('3.99', [])
    pyenv = _script(
        tmp_path / 'pyenv/versions/3.99.1/bin/python3.99', 'echo 3.99'
    )
    # A launcher of a version that is not installed.
    shim = _script(tmp_path / 'bin/python3.99', 'echo no such version; exit 1')
    assert matrix.find_python('3.99', []) == pyenv
    _script(Path(shim), 'echo 3.99')
    assert matrix.find_python('3.99', []) == shim
    other = _script(tmp_path / 'python-of-mine', 'echo 3.98')
    mine = _script(tmp_path / 'python-too', 'echo 3.99')
    assert matrix.find_python('3.99', [other, mine]) == mine
    assert matrix.find_python(HERE, [sys.executable]) == sys.executable


def test_finds_a_wheel(matrix, tmp_path):
    with pytest.raises(matrix.MissingError, match='WHEEL'):
        matrix.find_wheel('', '3.11')
    other = tmp_path / 'mmcv-2.1.0-cp310-cp310-linux_x86_64.whl'
    other.touch()
    for place in (tmp_path, other, tmp_path / 'absent.whl'):
        with pytest.raises(matrix.MissingError, match='cp311'):
            matrix.find_wheel(str(place), '3.11')
    (tmp_path / 'mmcv_lite-2.1.0-cp311-none-any.whl').touch()
    wheel = tmp_path / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
    wheel.touch()
    assert matrix.find_wheel(str(tmp_path), '3.11') == str(wheel)
    assert matrix.find_wheel(str(wheel), '3.11') == str(wheel)


# Environments

PYTHON = """
case "$*" in
  "-m venv"*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python";;
  *"-e ."*) echo "$@" >> "$LOG"
    echo "Collecting torch"
    [ -z "$FAIL" ] || { echo "$FAIL"; exit 1; };;
esac
"""


@pytest.fixture
def python(monkeypatch, tmp_path):
    """A stand-in for Python, venv and pip that writes down what it gets."""
    monkeypatch.setenv('LOG', str(tmp_path / 'log'))
    return _script(tmp_path / 'python', PYTHON)


def test_builds_once(matrix, python, tmp_path, monkeypatch, capsys):
    chosen, folder = matrix.SETS['era'], tmp_path / 'env'
    assert matrix.build(folder, chosen, python, '')
    assert 'Collecting torch' in capsys.readouterr().out
    (command,) = (tmp_path / 'log').read_text().splitlines()
    assert command.endswith('-e .[mm,optional,visual,export,tests]')
    assert f'-c {folder}/constraints.txt' in command
    assert 'torch==2.1.2' in (folder / 'constraints.txt').read_text()

    assert not matrix.build(folder, chosen, python, '')
    # Another definition, or another wheel, makes it anew.
    assert matrix.build(folder, matrix.SETS['py310'], python, '')
    assert 'torch==2.1.2' not in (folder / 'constraints.txt').read_text()
    assert matrix.build(folder, matrix.SETS['py310'], python, 'other.whl')
    assert len((tmp_path / 'log').read_text().splitlines()) == 3


def test_failed_build_is_begun_again(matrix, python, tmp_path, monkeypatch):
    chosen, folder = matrix.SETS['py310'], tmp_path / 'env'
    monkeypatch.setenv('FAIL', 'ERROR: No space left on device')
    with pytest.raises(matrix.SetError, match='the disk is full'):
        matrix.build(folder, chosen, python, '')
    monkeypatch.delenv('FAIL')
    assert matrix.build(folder, chosen, python, '')


def test_small_disk(matrix, python, tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, 'NEEDED_GIB', 1e9)
    with pytest.raises(matrix.SetError, match='GiB of free disk'):
        matrix.build(tmp_path / 'env', matrix.SETS['era'], python, '')
    assert not (tmp_path / 'log').exists()


def test_versions(matrix, folder):
    found = matrix.versions(folder)
    assert found['python'] == '3.11.7'
    assert found['torch'] == '2.11.0'
    assert found['mmcv'] == 'mmcv-lite 2.1.0'
    assert found['mmdet'] == 'onedl-mmdetection 3.5.1'
    assert found['mmseg'] == ''


# Tests

SUITE = """
import pytest

def test_good():
    assert 1

@pytest.mark.parametrize('n', [1, 2])
def test_bad(n):
    assert n == 1

def test_skipped():
    pytest.skip('for a reason')

@pytest.fixture
def broken():
    raise OSError

def test_error(broken):
    pass
"""


def test_counts_what_pytest_did(matrix, folder, tmp_path):
    _script(folder / 'bin/python', f'exec "{sys.executable}" "$@"')
    (tmp_path / 'test_it.py').write_text(SUITE)
    place = [str(tmp_path), '-c', os.devnull, f'--rootdir={tmp_path}']
    row = matrix.run_tests(folder, [*place, '-p', 'no:cacheprovider'], 1)
    assert row.pop('seconds') < 60
    assert row == {
        'passed': 2,
        'failed': 2,
        'skipped': 1,
        'failures': ['test_it::test_bad[2]', 'test_it::test_error'],
    }
    # What keeps pytest from running anything is a failure, too, and an
    # earlier report does not count.
    row = matrix.run_tests(folder, ['--no-such-option'], 1)
    assert row['failures'] == ['pytest ended with exit code 4']
    assert row['passed'] == 0


# The command

ROW = dict(passed=3, failed=0, skipped=1, seconds=5, failures=[])
BAD = dict(ROW, failed=1, failures=['tests.test_x::test_y'])


@pytest.fixture
def run(matrix, python, folder, tmp_path, monkeypatch):
    """Run the tool with stand-ins for all that takes time."""
    page = tmp_path / 'results.md'
    page.write_text('before\n{}\nold\n{}\nafter\n'.format(*matrix.MARKS))
    monkeypatch.setattr(matrix, 'versions', lambda _: {'torch': '2.11.0'})
    monkeypatch.setattr(matrix, 'find_python', lambda *_: python)

    def run(*argv, outcomes):
        def run_tests(folder, arguments, jobs):
            return dict(outcomes[folder.name])

        monkeypatch.setattr(matrix, 'run_tests', run_tests)
        code = matrix.main([
            *argv, '--folder', str(tmp_path / 'sets'),
            '--results', str(tmp_path / 'results.json'),
        ])  # fmt: skip
        rows = json.loads((tmp_path / 'results.json').read_text())
        return code, rows, page.read_text()

    return run


def test_goes_on_after_a_failing_set(run, capsys):
    outcomes = {'era': BAD, 'py312': ROW}
    code, rows, page = run('era', 'py312', outcomes=outcomes)
    assert code == 1
    assert [row['set'] for row in rows] == ['era', 'py312']
    assert 'error: era: tests.test_x::test_y' in capsys.readouterr().err
    assert page.startswith('before\n') and page.endswith('after\n')
    assert 'old' not in page and '- `tests.test_x::test_y`' in page

    # The same again takes the place of its row, another selection does not.
    code, rows, page = run('era', outcomes={'era': ROW})
    assert code == 0 and len(rows) == 2 and 'test_y' not in page
    words = '--pytest-args=tests/test_ops -k "a or b"'
    code, rows, page = run('era', words, outcomes={'era': ROW})
    assert [(row['set'], row['tests']) for row in rows] == [
        ('era', 'all'),
        ('era', 'tests/test_ops -k a or b'),
        ('py312', 'all'),
    ]


def test_broken_build_is_a_row_and_not_the_end(run, monkeypatch):
    monkeypatch.setenv('FAIL', 'ERROR: No matching distribution found for a')
    code, rows, page = run('forks', 'py310', outcomes={})
    assert code == 1 and len(rows) == 2
    assert all('no a for this' in row['failures'][0] for row in rows)
    assert 'not built' in page


def test_missing_wheel(run, matrix, capsys):
    """Skipped, but not if just this set was asked for."""
    outcomes = dict.fromkeys(matrix.SETS, ROW)
    code, rows, _ = run(outcomes=outcomes)
    assert code == 0
    assert {row['set'] for row in rows} == set(matrix.SETS) - {'compiled'}
    assert 'compiled: skipped, no mmcv-' in capsys.readouterr().out
    assert run('compiled', outcomes=outcomes)[0] == 1


def test_unknown_set(matrix, capsys):
    with pytest.raises(SystemExit):
        matrix.main(['python312'])
    assert "unknown set 'python312'; known: ref" in capsys.readouterr().err


def test_page_is_current(matrix):
    """The table in the docs is that of the results beside it."""
    docs = ROOT / 'docs'
    rows = json.loads((docs / 'compatibility.json').read_text())
    page = (docs / 'compatibility.md').read_text()
    assert matrix.updated(page, rows) == page
