# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Run the tests in several sets of versions, each in its own environment.

An environment is made once, below `.venv-matrix`, and used again until what
it is made from changes. A set that fails does not stop those after it. The
results stand in docs/compatibility.json, a row for each set and selection of
tests, and as a table in docs/compatibility.md. Standard library only.
"""

import argparse
import datetime
import glob
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from importlib import metadata
from pathlib import Path

import bootstrap  # beside this file

ROOT = Path(__file__).resolve().parents[1]
MARKS = '<!-- results -->', '<!-- end of results -->'
#: Of an environment that is complete: what it was made from.
STATE_FILE = 'mmattn-matrix.json'
#: Measured: 5.8 for the packages and 2.7 for the wheels they come from.
NEEDED_GIB = 9.0
ALL_TESTS = 'all'


@dataclass(frozen=True)
class Set:
    """Versions that are tested together.

    Args:
        python: Major and minor version.
        extras: Of mmattn.
        packages: What pip gets besides.
        pins: In the place of, or beside, those of constraints.txt.
        wheel: Whether a wheel of compiled mmcv is needed, in the place of
            mmcv-lite.
    """

    python: str
    extras: str = 'mm,optional,visual,export,tests'
    packages: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()
    wheel: bool = False


SETS = {
    'reference': Set('3.11'),
    'forks': Set(
        '3.11',
        # Not visual: imagecorruptions and the forks' imagecorruptions-imaug
        # own the same folder.
        extras='optional,export,tests',
        packages=(
            *('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'),
            *('onedl-mmsegmentation', 'onedl-mmpretrain', 'grad-cam'),
        ),
        pins=(
            'onedl-mmengine==0.10.12',
            'onedl-mmcv==2.3.6',
            'onedl-mmdetection==3.5.1',
            'onedl-mmsegmentation==1.4.2',
            'onedl-mmpretrain==1.3.6',
        ),
    ),
    # The last torch that the frameworks' own releases knew.
    'era': Set(
        '3.10',
        pins=(
            'torch==2.1.2',
            'torchvision==0.16.2',
            'numpy==1.26.4',
            'ml-dtypes==0.5.4',
            'opencv-python==4.11.0.86',
            'opencv-python-headless==4.11.0.86',
        ),
    ),
    'py310': Set('3.10'),
    'py312': Set('3.12'),
    'compiled': Set('3.11', extras='optional,visual,export,tests', wheel=True),
}

#: Columns of the table, with the distributions that may provide each.
PACKAGES = {
    'torch': ('torch',),
    'numpy': ('numpy',),
    'mmengine': ('mmengine', 'onedl-mmengine'),
    'mmcv': ('mmcv', 'mmcv-lite', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
}


class SetError(Exception):
    """Why a set cannot be tested, as one line."""


class MissingError(Exception):
    """What a set needs and this machine lacks, as one line."""


def _say(text: str) -> None:
    print(f'test-matrix: {text}', flush=True)


def _environment() -> dict[str, str]:
    # PYTHONPATH and the like would lead to other packages.
    kept = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
    return dict(kept, PIP_DISABLE_PIP_VERSION_CHECK='1')


# ------------------------------------------------------------ what is there


def find_python(version: str, given: list[str]) -> str:
    """Return an interpreter: one given, on PATH, or below pyenv's versions.

    Args:
        version: Major and minor version.
        given: Interpreters to try before all others.

    Raises:
        MissingError: There is none, or only without `venv`.
    """
    pyenv = os.environ.get('PYENV_ROOT') or os.path.expanduser('~/.pyenv')
    found = glob.glob(f'{pyenv}/versions/{version}*/bin/python{version}')
    on_path = shutil.which(f'python{version}')
    question = (
        'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])'
    )
    for path in (*given, *filter(None, [on_path]), *sorted(found)):
        # The launchers of version managers exist for versions that do not.
        asked = subprocess.run(
            [path, '-c', question],
            capture_output=True,
            text=True,
            env=_environment(),
        )
        if asked.stdout.strip() == version:
            return path
    raise MissingError(
        f'no Python {version} with venv on PATH or in {pyenv}/versions; name '
        'one by --python'
    )


def find_wheel(place: str, python: str) -> str:
    """Return a wheel of compiled mmcv, given itself or the folder it is in.

    Args:
        place: File or folder; empty for none.
        python: Major and minor version that it is to be for.

    Raises:
        MissingError: There is none.
    """
    name = f'mmcv-*-cp{python.replace(".", "")}-*.whl'
    place = os.path.expanduser(place)
    if os.path.isdir(place):
        found = sorted(Path(place).glob(name))
    else:
        found = [p for p in [Path(place)] if p.match(name) and p.is_file()]
    if not found:
        raise MissingError(
            f'no {name}{f" at {place}" if place else ""}; name the wheel, or '
            'its folder, by WHEEL (--wheel)'
        )
    return str(found[-1].resolve())


# ------------------------------------------------------------- environments


def _name(requirement: str) -> str:
    return re.match(r'[\w.-]*', requirement)[0].lower().replace('_', '-')


def constraints(pins: tuple[str, ...]) -> str:
    """Return the text of constraints.txt with some pins replaced or added."""
    replaced = {_name(pin) for pin in pins}
    text = (ROOT / bootstrap.CONSTRAINTS).read_text()
    kept = [ln for ln in text.splitlines() if _name(ln) not in replaced]
    return '\n'.join([*kept, *pins, ''])


def requirements(chosen: Set, wheel: str = '') -> list[str]:
    """Return what pip is told to install.

    Args:
        chosen: The set.
        wheel: Of compiled mmcv, for a set that needs one.
    """
    wanted = [*chosen.packages]
    if chosen.wheel:
        text = (ROOT / 'requirements' / 'mminstall.txt').read_text()
        lines = [line.partition('#')[0].strip() for line in text.splitlines()]
        wanted += [ln for ln in lines if ln and _name(ln) != 'mmcv-lite']
        wanted.append(wheel)
    return [*wanted, '-e', f'.[{chosen.extras}]']


def fingerprint(chosen: Set, python: str, wheel: str) -> str:
    """Hash what the environment of a set depends on."""
    parts = (*map(str, astuple(chosen)), python, wheel)
    version = tuple(map(int, chosen.python.split('.')))
    files = bootstrap.fingerprint(str(ROOT), version)
    return hashlib.sha256('\0'.join((*parts, files)).encode()).hexdigest()


def build(folder: Path, chosen: Set, python: str, wheel: str) -> bool:
    """Make the environment of a set, unless it is complete.

    Args:
        folder: Of the environment. One that is there and not of this set
            and these requirements is replaced.
        chosen: The set.
        python: The interpreter it is made from.
        wheel: Of compiled mmcv, for a set that needs one.

    Returns:
        Whether there was something to do.

    Raises:
        SetError: `venv` or pip fails, or the disk is too small.
    """
    state = folder / STATE_FILE
    wanted = fingerprint(chosen, python, wheel)
    if state.is_file() and state.read_text() == wanted:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free / 2**30
    if free < NEEDED_GIB:
        raise SetError(
            f'an environment needs {NEEDED_GIB:.0f} GiB of free disk and '
            f'{folder} has {free:.1f}; free some, or choose another --folder'
        )
    _run([python, '-m', 'venv', str(folder)], folder)
    (folder / 'constraints.txt').write_text(constraints(chosen.pins))
    pip = [str(folder / 'bin/python'), '-m', 'pip', 'install', '--no-input']
    # Wheels in the cache would take as much disk again.
    pip += ['--progress-bar', 'off', '--no-cache-dir']
    pip += ['-c', str(folder / 'constraints.txt')]
    _run([*pip, bootstrap.PIP, 'setuptools'], folder)
    _run([*pip, '--no-build-isolation', *requirements(chosen, wheel)], folder)
    state.write_text(wanted)
    return True


def _run(command: list[str], folder: Path) -> None:
    lines = []
    (folder / 'tmp').mkdir(exist_ok=True)  # /tmp may be small
    with (
        (folder / 'build.log').open('a') as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(_environment(), TMPDIR=str(folder / 'tmp')),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding='utf-8',
            errors='replace',
        ) as process,
    ):
        for line in process.stdout:
            lines.append(line)
            log.write(line)
            shown = bootstrap.progress(line)
            if shown:
                print('  ' + shown, flush=True)
    if process.returncode:
        reason = bootstrap.explain(''.join(lines), 'pip', process.returncode)
        raise SetError(f'{reason} (log: {folder / "build.log"})')


def versions(folder: Path) -> dict[str, str]:
    """Read from an environment which versions stand in it."""
    text = (folder / 'pyvenv.cfg').read_text()
    found = {'python': re.search(r'^version = (\S+)', text, re.MULTILINE)[1]}
    site = glob.glob(f'{folder}/lib/python*/site-packages')
    there = {
        _name(d.metadata['Name']): d.version
        for d in metadata.distributions(path=site)
    }
    for column, names in PACKAGES.items():
        kept = [name for name in names if name in there]
        found[column] = ', '.join(
            there[name] if name == names[0] else f'{name} {there[name]}'
            for name in kept
        )
    return found


# -------------------------------------------------------------------- tests


def run_tests(folder: Path, arguments: list[str], jobs: int) -> dict:
    """Run pytest in an environment, its output shown.

    Args:
        folder: Of the environment.
        arguments: For pytest.
        jobs: Processes.

    Returns:
        Numbers of tests, the seconds, and the names of the failures.
    """
    report = folder / 'report.xml'
    report.unlink(missing_ok=True)
    started = time.time()
    status = subprocess.call(
        [
            *(str(folder / 'bin/python'), '-m', 'pytest', '-q'),
            *('-n', str(jobs), '--dist', 'loadfile'),
            *(f'--junitxml={report}', *arguments),
        ],
        cwd=ROOT,
        env=_environment(),
    )
    row = read_report(report)
    row['seconds'] = round(time.time() - started)
    if status and not row['failures']:
        row['failures'] = [f'pytest ended with exit code {status}']
    return row


def read_report(path: Path) -> dict:
    """Count the tests of a JUnit report; one that is not there has none."""
    row = dict(passed=0, failed=0, skipped=0, failures=[])
    if not path.is_file():
        return row
    for case in ET.parse(path).iter('testcase'):
        if any(case.find(kind) is not None for kind in ('failure', 'error')):
            row['failed'] += 1
            row['failures'].append(
                f'{case.get("classname")}::{case.get("name")}'
            )
        elif case.find('skipped') is not None:
            row['skipped'] += 1
        else:
            row['passed'] += 1
    return row


# ------------------------------------------------------------------ results


def record(path: Path, row: dict) -> list[dict]:
    """Put a row into the results, in the place of an older one like it.

    Args:
        path: Of the JSON file.
        row: Of a set and a selection of tests.

    Returns:
        All rows, in the order of the sets.
    """
    rows = json.loads(path.read_text()) if path.is_file() else []
    key = row['set'], row['tests']
    rows = [old for old in rows if (old['set'], old['tests']) != key] + [row]
    order = {name: place for place, name in enumerate(SETS)}
    rows.sort(key=lambda row: (order.get(row['set'], 99), row['tests']))
    path.write_text(json.dumps(rows, indent=1) + '\n')
    return rows


def table(rows: list[dict]) -> str:
    """Return the results as Markdown."""
    columns = ('set', 'date', 'commit', 'python', *PACKAGES)
    counts = ('passed', 'failed', 'skipped', 'seconds')
    lines = [
        f'| {" | ".join((*columns, *counts, "tests"))} |',
        '|' + '---|' * len(columns) + '---:|' * len(counts) + '---|',
    ]
    for row in rows:
        cells = [str(row.get(name, '')) for name in (*columns, *counts)]
        lines.append(f'| {" | ".join(cells)} | {row["tests"]} |')
    for row in rows:
        if row['failures']:
            lines += ['', f'Failed in `{row["set"]}` ({row["tests"]}):', '']
            lines += [f'- `{name}`' for name in row['failures']]
    return '\n'.join(lines)


def updated(page: str, rows: list[dict]) -> str:
    """Return a page's text with the table between its marks replaced."""
    before, rest = page.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    return f'{before}{MARKS[0]}\n\n{table(rows)}\n\n{MARKS[1]}{after}'


# --------------------------------------------------------------------- main


def _commit() -> str:
    described = subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--exclude=*'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return described.stdout.strip()


def run_set(name: str, args: argparse.Namespace) -> dict:
    """Build and test one set.

    Raises:
        MissingError: This machine lacks what it needs.
    """
    chosen = SETS[name]
    folder = Path(args.folder).resolve() / name
    words = shlex.split(args.pytest_args)
    row = dict(
        set=name,
        date=datetime.date.today().isoformat(),
        commit=_commit(),
        tests=' '.join(words) or ALL_TESTS,
    )
    python = find_python(chosen.python, args.python)
    wheel = find_wheel(args.wheel, chosen.python) if chosen.wheel else ''
    try:
        made = build(folder, chosen, python, wheel)
    except SetError as error:
        _say(f'{name}: {error}')
        return dict(row, failures=[f'not built: {error}'])
    _say(f'{name}: {folder} {"was built" if made else "is complete"}')
    row |= versions(folder)
    return row | run_tests(folder, words, args.jobs)


def results(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Run the sets; yield the name and a line for each that went wrong."""
    Path(args.results).parent.mkdir(parents=True, exist_ok=True)
    for name in args.sets or SETS:
        _say(f'{name}: begins')
        try:
            row = run_set(name, args)
        except MissingError as reason:
            _say(f'{name}: skipped, {reason}')
            if args.sets:  # asked for by its name
                yield name, f'skipped, {reason}'
            continue
        rows = record(Path(args.results), row)
        page = Path(args.results).with_suffix('.md')
        if page.is_file():
            page.write_text(updated(page.read_text(), rows))
        if row['failures']:
            yield name, '; '.join(row['failures'])
        else:
            _say(f'{name}: {row["passed"]} passed in {row["seconds"]} s')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Run the tests in several sets of versions.',
    )
    parser.add_argument(
        'sets',
        nargs='*',
        metavar='SET',
        help=f'Sets to test, of {", ".join(SETS)} (default: all that this '
        'machine has an interpreter, and a wheel, for).',
    )
    parser.add_argument(
        '--pytest-args',
        default='',
        metavar='"WORDS"',
        help='Arguments for pytest, such as a selection of tests.',
    )
    parser.add_argument(
        '--jobs', type=int, default=2, help='Processes (default: 2).'
    )
    parser.add_argument(
        '--python',
        action='append',
        default=[],
        metavar='PATH',
        help='An interpreter to take before those on PATH and below '
        "pyenv's versions; can be given again for another version.",
    )
    parser.add_argument(
        '--wheel',
        default='',
        metavar='PATH',
        help='A wheel of compiled mmcv for the set `compiled`, or its folder.',
    )
    parser.add_argument(
        '--folder',
        default=str(ROOT / '.venv-matrix'),
        help='Where the environments are (default: .venv-matrix).',
    )
    parser.add_argument(
        '--results',
        default=str(ROOT / 'docs' / 'compatibility.json'),
        metavar='FILE',
        help='JSON file of the results; a page beside it with the ending .md '
        'gets the table (default: docs/compatibility.json).',
    )
    args = parser.parse_args(argv)
    for name in args.sets:
        if name not in SETS:
            parser.error(f"unknown set '{name}'; known: {', '.join(SETS)}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the tool; the exit code is 1 if a set failed."""
    wrong = list(results(parse_args(argv)))
    for name, line in wrong:
        print(f'error: {name}: {line}', file=sys.stderr)
    return int(bool(wrong))


if __name__ == '__main__':
    sys.exit(main())
