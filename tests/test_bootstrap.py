# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The bootstrap's decisions; nothing is installed and no network is used."""

import ast
import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'tools' / 'bootstrap.py'
VERSION = (3, 11, 7)


def _load():
    spec = importlib.util.spec_from_file_location('bootstrap', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bootstrap = _load()


def _run(capsys, *argv):
    """Run the tool; its exit code and the lines of its error output."""
    code = bootstrap.main(list(argv))
    return code, capsys.readouterr().err.splitlines()


# Python


@pytest.mark.parametrize('version', [(3, 10, 0), (3, 11, 7), (3, 12, 9)])
def test_supported_python(version):
    bootstrap.check_python(version, 'python3')


@pytest.mark.parametrize('version', [(3, 6, 15), (3, 9, 18), (3, 13, 0)])
def test_unsupported_python_is_one_line(monkeypatch, capsys, version):
    monkeypatch.setattr(sys, 'version_info', version)
    code, (line,) = _run(capsys)
    assert code == 1
    assert '.'.join(map(str, version)) in line
    assert sys.executable in line and 'PYTHON=' in line


def test_parses_on_old_python():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


def _other_pythons():
    found = [shutil.which(f'python3.{minor}') for minor in (6, 7, 8, 9, 13)]
    # The launchers of version managers exist for versions that do not.
    return [p for p in found if p and not subprocess.call([p, '-c', ''])]


def test_other_pythons_really():
    pythons = _other_pythons()
    if not pythons:
        pytest.skip('no Python outside the supported range on PATH')
    for python in pythons:
        done = subprocess.run(
            [python, SCRIPT], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1 and not done.stdout
        assert done.stderr.startswith('error: mmattn needs Python')
        assert done.stderr.count('\n') == 1


@pytest.mark.parametrize('absent', ['venv', 'ensurepip'])
def test_missing_venv_module(monkeypatch, absent):
    monkeypatch.setattr(
        bootstrap.importlib.util,
        'find_spec',
        lambda name: None if name == absent else name,
    )
    with pytest.raises(bootstrap.BootstrapError) as caught:
        bootstrap.check_venv_module(VERSION)
    assert 'apt install python3.11-venv' in str(caught.value)


# Disk


def _free(monkeypatch, gib):
    usage = namedtuple('usage', 'total used free')(0, 0, gib * 2**30)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)


def test_too_little_disk_leaves_nothing(monkeypatch, capsys, tmp_path):
    _free(monkeypatch, 2.5)
    venv = tmp_path / 'deep' / 'venv'
    code, (line,) = _run(capsys, '--venv', str(venv))
    assert code == 1
    assert '8 GiB' in line and '2.5' in line and 'VENV=' in line
    assert not venv.parent.exists()


@pytest.mark.parametrize(('gib', 'cache'), [(11.5, True), (8.5, False)])
def test_enough_disk_and_room_for_the_cache(gib, cache, monkeypatch, tmp_path):
    _free(monkeypatch, gib)
    has_room = bootstrap.check_disk(str(tmp_path), bootstrap.NEEDED_GIB)
    assert has_room == cache


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT])
def test_disk_fills_in_our_hands(monkeypatch, capsys, code):
    def fail(arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(bootstrap, 'bootstrap', fail)
    code, (line,) = _run(capsys)
    assert code == 1 and 'disk is full' in line


# What pip said, recorded from pip 23.2 and 26.3

RETRY = (
    'WARNING: Retrying (Retry(total=0, connect=None, read=None, '
    'redirect=None, status=None)) after connection broken by '
)
CLASH = """\
ERROR: Cannot install setuptools because these package versions have \
conflicting dependencies.

The conflict is caused by:
    The user requested setuptools
    The user requested (constraint) setuptools==80.9.0

To fix this you could try to:
1. loosen the range of package versions you've specified

ERROR: ResolutionImpossible: for help visit the manual
"""
NONE = (
    'ERROR: Could not find a version that satisfies the requirement '
    'iniconfig==2.3.1 (from versions: none)\n'
    'ERROR: No matching distribution found for iniconfig==2.3.1\n'
)
REFUSED = (
    '<pip._vendor.urllib3.connection.HTTPSConnection object>: Failed to '
    'establish a new connection: [Errno 111] Connection refused'
)
SSL = "SSLError(SSLError(1, '[SSL: WRONG_VERSION_NUMBER] (_ssl.c:1006)'))"
MESSAGES = {
    'proxy': (
        RETRY
        + f"'ProxyError('Cannot connect to proxy.', {REFUSED})'\n"
        + CLASH,
        'the proxy does not answer',
    ),
    'name': (
        RETRY
        + "'NameResolutionError(\"HTTPSConnection(host='x', port=443): Failed"
        " to resolve 'x' ([Errno -2] Name or service not known)\")'\n" + NONE,
        'host name is not found',
    ),
    'refused': (
        RETRY + f"'NewConnectionError('{REFUSED}')'\n" + NONE,
        'connection is refused',
    ),
    'silent': (
        RETRY
        + '\'ReadTimeoutError("Read timed out. (read timeout=5.0)")\'\n'
        + CLASH,
        'does not answer',
    ),
    'ssl': (RETRY + f"'{SSL}'\n" + NONE, 'secure connection fails'),
    'http': (
        'ERROR: HTTP error 403 while getting https://host/a.whl',
        'refuses to serve',
    ),
    'absent': (NONE, 'no iniconfig==2.3.1'),
    'pin': (CLASH, '(constraint) setuptools==80.9.0'),
    'disk': (
        'ERROR: Could not install packages due to an OSError: [Errno 28] No '
        'space left on device\n',
        'disk is full',
    ),
    'quota': ('OSError: [Errno 122] Disk quota exceeded', 'disk is full'),
    'build': (
        "ModuleNotFoundError: No module named 'mmattn.version'\n"
        '      [end of output]\n'
        'error: metadata-generation-failed\n'
        'hint: See above for details.\n',
        "pip failed: ModuleNotFoundError: No module named 'mmattn.version'",
    ),
    'nothing': ('', 'pip failed: it wrote nothing'),
}


@pytest.mark.parametrize('name', MESSAGES)
def test_explain(name):
    output, expected = MESSAGES[name]
    line = bootstrap.explain(output, 'pip')
    assert expected in line
    assert '\n' not in line


def test_explain_signal():
    assert 'signal 9' in bootstrap.explain('Collecting torch\n', 'pip', -9)


@pytest.mark.parametrize(
    ('line', 'shown'),
    [
        ('Collecting torch==2.11.0 (from -c x)', 'Collecting torch==2.11.0'),
        (
            '  Downloading https://host/a/torch-2.11.0-cp310.whl (530.6 MB)',
            'Downloading torch-2.11.0-cp310.whl (530.6 MB)',
        ),
        ('  Downloading six-1.whl.metadata (12 kB)', ''),
        (
            '  Using cached six-1-any.whl (11 kB)',
            'Cached six-1-any.whl (11 kB)',
        ),
        ('Installing collected packages: a, b', 'Installing packages: 2'),
        ('    Uninstalling six-1.0:', 'Uninstalling six-1.0'),
        ('Requirement already satisfied: six in /x (1.0)', ''),
        ('WARNING: Retrying (Retry(total=0))', ''),
        ('', ''),
    ],
)
def test_progress(line, shown):
    assert bootstrap.progress(line) == shown


# The stamp


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with a pin and an extra, and a venv that pip never fills."""
    root = tmp_path / 'checkout'
    (root / 'requirements').mkdir(parents=True)
    (root / 'requirements' / 'constraints.txt').write_text('torch==1\n')
    (root / 'pyproject.toml').write_text(
        "optional-dependencies.mm = { file = ['a'] }\n"
        "optional-dependencies.tests = { file = ['b'] }\n"
    )
    monkeypatch.setattr(bootstrap, 'ROOT', str(root))
    monkeypatch.chdir(tmp_path)
    _free(monkeypatch, 100)
    return root


@pytest.fixture
def pip(monkeypatch):
    """The calls of pip, made without a pip."""
    calls = []

    def create(environment):
        if not environment.is_usable():
            _fake_venv(environment)
            environment.write_state('created')

    monkeypatch.setattr(bootstrap.Environment, 'create', create)
    monkeypatch.setattr(
        bootstrap.Environment,
        'pip_install',
        lambda environment, *arguments: calls.append(arguments[-1]),
    )
    return calls


def _fake_venv(environment):
    Path(environment.packages, 'pip').mkdir(parents=True)
    Path(environment.python).parent.mkdir()
    Path(environment.python).write_text('')


def test_second_run_installs_nothing(checkout, pip, capsys):
    assert bootstrap.main(['--venv', 'v', '--extras', 'mm,tests']) == 0
    assert pip == ['setuptools', '.[mm,tests]']
    capsys.readouterr()
    for extras in ('mm,tests', 'tests', ''):
        assert bootstrap.main(['--venv', 'v', '--extras', extras]) == 0
    assert pip == ['setuptools', '.[mm,tests]']
    lines = capsys.readouterr().out.splitlines()
    assert lines == ['bootstrap: v is ready, nothing to install'] * 3


def test_more_extras_add_up(checkout, pip):
    bootstrap.main(['--venv', 'v', '--extras', 'mm'])
    bootstrap.main(['--venv', 'v', '--extras', 'tests'])
    assert pip[-1] == '.[mm,tests]'


@pytest.mark.parametrize(('gib', 'cached'), [(100, True), (9, False)])
def test_little_disk_goes_without_the_cache(
    gib, cached, checkout, pip, monkeypatch
):
    _free(monkeypatch, gib)
    calls = []
    monkeypatch.setattr(
        bootstrap.Environment,
        'pip_install',
        lambda environment, *arguments: calls.append(arguments),
    )
    assert bootstrap.main(['--venv', 'v', '--extras', 'mm']) == 0
    assert ('--no-cache-dir' not in calls[-1]) == cached


@pytest.mark.parametrize(
    'name', ['pyproject.toml', 'requirements/constraints.txt']
)
def test_changed_pin_installs_again(checkout, pip, name):
    bootstrap.main(['--venv', 'v', '--extras', 'mm'])
    with open(checkout / name, 'a') as file:
        file.write('# changed\n')
    bootstrap.main(['--venv', 'v', '--extras', 'mm'])
    assert pip.count('.[mm]') == 2


def test_fingerprint_knows_python_and_place(checkout, tmp_path):
    first = bootstrap.fingerprint(str(checkout), (3, 11, 7))
    assert bootstrap.fingerprint(str(checkout), (3, 11, 9)) == first
    assert bootstrap.fingerprint(str(checkout), (3, 12, 1)) != first
    moved = shutil.copytree(checkout, tmp_path / 'moved')
    assert bootstrap.fingerprint(str(moved), (3, 11, 7)) != first


def test_interrupted_run_is_finished_by_the_next(checkout, pip, monkeypatch):
    def interrupt(environment, *arguments):
        raise KeyboardInterrupt

    working = bootstrap.Environment.pip_install
    monkeypatch.setattr(bootstrap.Environment, 'pip_install', interrupt)
    assert bootstrap.main(['--venv', 'v', '--extras', 'mm,tests']) == 1
    monkeypatch.setattr(bootstrap.Environment, 'pip_install', working)
    # What the interrupted run wanted is not forgotten either.
    assert bootstrap.main(['--venv', 'v', '--extras', 'mm']) == 0
    assert pip == ['setuptools', '.[mm,tests]']


def test_torn_state_is_no_stamp(checkout, pip):
    bootstrap.main(['--venv', 'v', '--extras', 'mm'])
    state = Path('v', bootstrap.STATE_FILE)
    state.write_text(state.read_text()[:-5])
    bootstrap.main(['--venv', 'v', '--extras', 'mm'])
    assert pip.count('.[mm]') == 2


def test_repair_removes_torn_packages(tmp_path):
    environment = bootstrap.Environment(str(tmp_path), VERSION)
    packages = Path(environment.packages)
    for name in ('whole-1.dist-info', 'torn-1.dist-info', '~alf', 'whole'):
        (packages / name).mkdir(parents=True)
    (packages / 'whole-1.dist-info' / 'INSTALLER').write_text('pip')
    Path(environment.scratch).mkdir()
    environment.write_state('ready')
    environment.repair()
    assert len(list(packages.iterdir())) == 4  # nothing was interrupted
    environment.write_state('installing')
    environment.repair()
    left = sorted(path.name for path in packages.iterdir())
    assert left == ['whole', 'whole-1.dist-info']
    assert not os.path.exists(environment.scratch)


# Creating the environment


@pytest.fixture
def quick_venv(monkeypatch):
    """Create environments without the seconds that pip takes."""
    real = subprocess.run

    def run(command, **options):
        done = real([*command, '--without-pip'], **options)
        environment = bootstrap.Environment(command[-1], sys.version_info)
        Path(environment.packages, 'pip').mkdir()
        return done

    monkeypatch.setattr(subprocess, 'run', run)


def test_unfinished_environment_is_made_anew(tmp_path, quick_venv):
    path = tmp_path / 'venv'
    path.mkdir()
    state = {'step': 'creating'}
    (path / bootstrap.STATE_FILE).write_text(json.dumps(state))
    (path / 'half').write_text('')
    environment = bootstrap.Environment(str(path), sys.version_info)
    environment.create()
    assert environment.is_usable() and not (path / 'half').exists()
    assert environment.state() == {'step': 'created'}


def test_other_python_is_replaced(tmp_path, quick_venv):
    older = bootstrap.Environment(str(tmp_path), (3, 9))
    _fake_venv(older)
    older.write_state('ready')
    environment = bootstrap.Environment(str(tmp_path), sys.version_info)
    environment.create()
    assert environment.is_usable() and not older.is_usable()


def test_folder_of_somebody_else_stays(tmp_path, quick_venv):
    (tmp_path / 'thesis.tex').write_text('')
    environment = bootstrap.Environment(str(tmp_path), sys.version_info)
    with pytest.raises(bootstrap.BootstrapError, match='VENV='):
        environment.create()
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_failing_venv_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'executable', '/bin/false')
    environment = bootstrap.Environment(str(tmp_path / 'v'), sys.version_info)
    with pytest.raises(bootstrap.BootstrapError, match='venv failed'):
        environment.create()


# Extras and the streaming of pip


def test_unknown_extra(checkout, capsys):
    code, (line,) = _run(capsys, '--extras', 'mm,nope')
    assert code == 1 and "'nope'" in line and 'mm, tests' in line


def test_extras_of_the_project():
    assert bootstrap.known_extras(str(ROOT)) == [
        'mm',
        'optional',
        'visual',
        'export',
        'tests',
    ]


def test_pip_failure_is_logged_in_full(checkout, tmp_path, capsys):
    environment = bootstrap.Environment(str(tmp_path / 'v'), VERSION)
    _fake_venv(environment)
    Path(environment.python).write_text(
        '#!/bin/sh\n'
        'echo "Collecting six (from x)"; echo noise; echo "$TMPDIR"\n'
        'echo "ERROR: boom"; exit 2\n'
    )
    os.chmod(environment.python, 0o755)
    with pytest.raises(
        bootstrap.BootstrapError, match='ERROR: boom'
    ) as caught:
        environment.pip_install('six')
    assert 'pip.log' in str(caught.value)
    assert capsys.readouterr().out == '  Collecting six\n'
    log = Path(environment.log).read_text()
    assert 'noise' in log and environment.scratch in log
    assert not os.path.exists(environment.scratch)


def test_constraints_pin_all_direct_requirements():
    folder = ROOT / 'requirements'
    pins = {}
    for line in (folder / 'constraints.txt').read_text().splitlines():
        if line and not line.startswith('#'):
            name, version = line.split('==')
            assert name not in pins, f'{name} is pinned twice'
            pins[name] = version
    for path in folder.glob('*.txt'):
        for line in path.read_text().splitlines():
            requirement = line.partition('#')[0].strip()
            if requirement:
                name = bootstrap.re.match(r'[\w-]+', requirement).group()
                assert name in pins, f'{name} of {path.name} has no pin'
