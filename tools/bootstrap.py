# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Create a virtual environment with mmattn and its pinned dependencies.

Standard library only. The file must parse on Pythons too old to run it, so
that they get one clear line instead of a SyntaxError: no syntax newer than
Python 3.6, and annotations that need more are quoted.
"""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from typing import TextIO

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONSTRAINTS = os.path.join('requirements', 'constraints.txt')
OLDEST = (3, 10)
NEWEST = (3, 12)
#: Measured peak of a first install: 5.2 for the packages and 2.7 for the
#: downloaded wheels.
NEEDED_GIB = 8.0
#: As much again for the wheels that pip would keep in its cache.
CACHE_GIB = 3.0
#: Older ones install a pyproject.toml in editable mode badly or not at all.
PIP = 'pip>=22.3'
#: How far the last run came: creating, created, installing or ready.
STATE_FILE = 'mmattn-bootstrap.json'

# Settings of the user that would send packages elsewhere than the environment.
_MISLEADING = ('PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET', 'PIP_PREFIX')

_DISK_FULL = ('No space left on device', 'Disk quota exceeded')
# What the line says, and what pip writes in that case. The first match wins,
# so the specific signs stand before the general ones.
_UNREACHABLE = (
    (
        'the proxy does not answer',
        r'ProxyError|Cannot connect to proxy|Tunnel connection failed',
    ),
    (
        'the secure connection fails',
        r'SSLError|SSLCertVerificationError|CERTIFICATE_VERIFY_FAILED',
    ),
    (
        'its host name is not found',
        r'Name or service not known|NameResolutionError|'
        r'Temporary failure in name resolution|nodename nor servname',
    ),
    ('the connection is refused', r'Connection refused'),
    ('it does not answer', r'ConnectTimeout|ReadTimeout|[Tt]imed out'),
    (
        'the connection breaks',
        r'NewConnectionError|ProtocolError|IncompleteRead|ConnectionReset|'
        r'Connection aborted|Network is unreachable|No route to host|'
        r'Max retries exceeded|incomplete-download',
    ),
    ('it refuses to serve', r'HTTP error \d+|\d{3} (Client|Server) Error'),
)


class BootstrapError(Exception):
    """What stops the bootstrap, as one line that says what to do."""


def _say(text: str) -> None:
    print('bootstrap: ' + text, flush=True)


def _dotted(version: 'tuple[int, ...]') -> str:
    return '.'.join(str(part) for part in version)


def _short(path: str) -> str:
    """Name a path as the user would: relative when it is below here."""
    relative = os.path.relpath(path)
    return path if relative.startswith('..') else relative


# ---------------------------------------------------------------- checks


def check_python(version: 'tuple[int, ...]', executable: str) -> None:
    """Refuse a Python that the pinned packages have no wheels for.

    Args:
        version: Like `sys.version_info`.
        executable: Path for the message.

    Raises:
        BootstrapError: The version is outside the supported range.
    """
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        raise BootstrapError(
            f'mmattn needs Python {_dotted(OLDEST)} to {_dotted(NEWEST)}, '
            f'but {executable} is {_dotted(version[:3])}; choose another: '
            f'make demo PYTHON=/path/to/python{_dotted(NEWEST)}'
        )


def check_venv_module(version: 'tuple[int, ...]') -> None:
    """Refuse a Python without `venv`, which Debian packages separately.

    Args:
        version: Like `sys.version_info`, for the package's name.

    Raises:
        BootstrapError: `venv`, or the pip it would copy, is not there.
    """
    for name in ('venv', 'ensurepip'):
        if importlib.util.find_spec(name) is None:
            raise BootstrapError(
                f"this Python lacks its module '{name}'; install it (Debian, "
                f'Ubuntu: sudo apt install python{_dotted(version[:2])}-venv) '
                'or choose another: make demo PYTHON=/path/to/python'
            )


def check_disk(folder: str, needed_gib: float) -> bool:
    """Refuse an install that the disk cannot hold.

    Args:
        folder: Where the environment is to be; it may not exist yet.
        needed_gib: Free space asked for.

    Returns:
        Whether there is room for pip's cache, too.

    Raises:
        BootstrapError: There is less.
    """
    folder = os.path.abspath(folder)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free / 2**30
    if free < needed_gib:
        raise BootstrapError(
            f'the first install needs {needed_gib:.0f} GiB of free disk and '
            f'{folder} has {free:.1f}; free some, or put the environment on '
            'another disk: make demo VENV=/path/with/room'
        )
    return free >= needed_gib + CACHE_GIB


# ---------------------------------------------------------------- extras


def known_extras(root: str) -> 'list[str]':
    """List the extras that pyproject.toml declares."""
    # Python 3.10 has no TOML reader in its standard library.
    with open(os.path.join(root, 'pyproject.toml')) as file:
        text = file.read()
    return re.findall(r'^optional-dependencies\.([\w-]+)', text, re.MULTILINE)


def parse_extras(text: str, known: 'list[str]') -> 'set[str]':
    """Read a comma-separated list of extras.

    Raises:
        BootstrapError: One is unknown; pip would only warn.
    """
    extras = {name.strip() for name in text.split(',') if name.strip()}
    for name in sorted(extras - set(known)):
        raise BootstrapError(
            f"unknown extra '{name}'; the known ones: {', '.join(known)}"
        )
    return extras


def fingerprint(root: str, version: 'tuple[int, ...]') -> str:
    """Hash what an installed environment depends on.

    Args:
        root: The checkout. Its place counts, since an editable install
            points there.
        version: Like `sys.version_info`; major and minor count.
    """
    names = ['pyproject.toml', 'setup.py']
    for name in sorted(os.listdir(os.path.join(root, 'requirements'))):
        names.append(os.path.join('requirements', name))
    digest = hashlib.sha256()
    for part in (os.path.realpath(root), _dotted(version[:2])):
        digest.update(part.encode() + b'\0')
    for name in names:
        path = os.path.join(root, name)
        if os.path.isfile(path):
            with open(path, 'rb') as file:
                digest.update(name.encode() + b'\0' + file.read() + b'\0')
    return digest.hexdigest()


# ----------------------------------------------------------- environment


class Environment:
    """A virtual environment, with what the last bootstrap left in it.

    Args:
        path: Its folder.
        version: Of the Python it is to have; major and minor count.
    """

    def __init__(self, path: str, version: 'tuple[int, ...]') -> None:
        self.path = os.path.abspath(path)
        self.version = _dotted(version[:2])
        self.python = os.path.join(self.path, 'bin', 'python')
        self.log = os.path.join(self.path, 'pip.log')
        self.scratch = os.path.join(self.path, 'tmp')
        self.packages = os.path.join(
            self.path, 'lib', 'python' + self.version, 'site-packages'
        )

    def state(self) -> 'dict[str, object]':
        """Read the state file; a missing or torn one is an empty state."""
        try:
            with open(os.path.join(self.path, STATE_FILE)) as file:
                state = json.load(file)
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def write_state(self, step: str, **more: object) -> None:
        """Replace the state file in one move."""
        path = os.path.join(self.path, STATE_FILE)
        with open(path + '.new', 'w') as file:
            json.dump(dict(more, step=step), file)
        os.replace(path + '.new', path)

    def is_ready(self, wanted: str, extras: 'set[str]') -> bool:
        """Whether a finished install of `wanted` has at least `extras`."""
        state = self.state()
        return (
            state.get('step') == 'ready'
            and state.get('fingerprint') == wanted
            and extras <= set(state.get('extras', ()))
            and self.is_usable()
        )

    def is_usable(self) -> bool:
        """Whether it has the wanted Python, and a pip."""
        return os.path.exists(self.python) and os.path.isdir(
            os.path.join(self.packages, 'pip')
        )

    def create(self) -> None:
        """Make the folder anew, unless it is usable as it is.

        Raises:
            BootstrapError: The folder holds something this tool did not
                make, or `venv` fails.
        """
        state = self.state()
        if state.get('step') != 'creating' and self.is_usable():
            return
        if os.path.isdir(self.path) and os.listdir(self.path):
            self._remove(state)
        _say(f'creating {_short(self.path)} with Python {self.version}')
        os.makedirs(self.path, exist_ok=True)
        self.write_state('creating')
        made = subprocess.run(
            [self._base_python(), '-m', 'venv', self.path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding='utf-8',
            errors='replace',
            env=_clean_environment(),
        )
        if made.returncode:
            raise BootstrapError(explain(made.stdout, 'python -m venv'))
        self.write_state('created')

    def _remove(self, state: 'dict[str, object]') -> None:
        # Never what somebody else made: `--venv ~` must not cost a home.
        if not state:
            raise BootstrapError(
                f'{_short(self.path)} is not an environment with Python '
                f'{self.version} and pip, and was not made by this tool; '
                'remove it or choose another: make demo VENV=/path'
            )
        _say(f'removing {_short(self.path)}: unfinished, or another Python')
        shutil.rmtree(self.path)

    def _base_python(self) -> str:
        # The environment's own Python goes away when it is made anew.
        if os.path.realpath(sys.prefix) == os.path.realpath(self.path):
            return getattr(sys, '_base_executable', None) or sys.executable
        return sys.executable

    def repair(self) -> None:
        """Remove what an interrupted pip left, so that pip sees the gaps.

        pip writes INSTALLER after a package's files: metadata without it
        belongs to a package that is not complete but would count as
        installed. Names with a tilde are half-way uninstalled.
        """
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self.state().get('step') != 'installing':
            return
        for name in os.listdir(self.packages):
            path = os.path.join(self.packages, name)
            torn = name.endswith('.dist-info') and not os.path.exists(
                os.path.join(path, 'INSTALLER')
            )
            if (torn or name.startswith('~')) and os.path.isdir(path):
                shutil.rmtree(path)

    def pip_install(self, *arguments: str) -> None:
        """Run `pip install` from the checkout, showing its progress.

        Raises:
            BootstrapError: pip fails; the line tells why.
        """
        command = [self.python, '-m', 'pip', 'install', '--no-input']
        command += ['--progress-bar', 'off', '-c', CONSTRAINTS]
        command += arguments
        # Not in /tmp, which may be small: the disk checked is the one used.
        os.makedirs(self.scratch, exist_ok=True)
        environment = _clean_environment()
        environment['TMPDIR'] = self.scratch
        try:
            with open(self.log, 'a', encoding='utf-8') as log:
                status, output = _stream(command, environment, log)
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
        if status:
            reason = explain(output, 'pip', status)
            raise BootstrapError(f'{reason} (log: {_short(self.log)})')


def _stream(
    command: 'list[str]', environment: 'dict[str, str]', log: TextIO
) -> 'tuple[int, str]':
    log.write('$ ' + ' '.join(command) + '\n')
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding='utf-8',
        errors='replace',
    ) as process:
        try:
            for line in process.stdout:
                lines.append(line)
                log.write(line)
                log.flush()
                shown = progress(line)
                if shown:
                    print('  ' + shown, flush=True)
        except BaseException:
            process.terminate()  # an interrupt may have reached only us
            raise
    return process.returncode, ''.join(lines)


def _clean_environment() -> 'dict[str, str]':
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _MISLEADING
    }
    environment['PIP_USER'] = '0'
    environment['PIP_DISABLE_PIP_VERSION_CHECK'] = '1'
    environment['PYTHONIOENCODING'] = 'utf-8'
    return environment


# ---------------------------------------------------------- pip's output


def progress(line: str) -> str:
    """Shorten a line of pip's output that is worth showing.

    Returns:
        The text to show; empty for noise.
    """
    words = line.split()
    if len(words) < 2:
        return ''
    verb = words[0]
    if line.startswith('Installing collected packages:'):
        return f'Installing packages: {len(words) - 3}'
    if verb in ('Collecting', 'Uninstalling'):
        return f'{verb} {words[1].rstrip(":")}'
    if line.strip().startswith('Building wheel for') and 'started' in line:
        return f'Building {words[3]}'
    cached = line.strip().startswith('Using cached')
    if verb == 'Downloading' or cached:
        name = words[2 if cached else 1].rsplit('/', 1)[-1]
        size = line[line.rfind('(') :].strip() if '(' in line else ''
        if not name.endswith('.metadata'):
            return f'{"Cached" if cached else verb} {name} {size}'.strip()
    return ''


def explain(output: str, program: str, status: int = 1) -> str:
    """Tell in one line why pip or venv failed, and what to do.

    Args:
        output: Everything it wrote.
        program: Its name.
        status: Its exit status; negative when a signal ended it.
    """
    if any(sign in output for sign in _DISK_FULL):
        return (
            'the disk is full; free some space and run the same command '
            'again, it carries on'
        )
    for reason, pattern in _UNREACHABLE:
        if re.search(pattern, output):
            return (
                f'pip cannot reach the package index: {reason}; check the '
                "network, and pip's settings for proxy and index "
                '(https_proxy, PIP_INDEX_URL), then run again'
            )
    # pip words a pin that the index lacks as a conflict, too.
    causes = re.search(r'conflict is caused by:\n((?: +\S.*\n)+)', output)
    if causes:
        lines = [line.strip() for line in causes.group(1).splitlines()]
        return (
            f'pip cannot meet {CONSTRAINTS}: {"; ".join(lines)}: mend the '
            'pin, or the index that pip is set to use (PIP_INDEX_URL)'
        )
    absent = re.search(r'No matching distribution found for (\S+)', output)
    if absent:
        return (
            f'the package index has no {absent.group(1)} for this Python; '
            'check the index that pip is set to use (PIP_INDEX_URL)'
        )
    if status < 0:
        return f'{program} was ended by signal {-status}; run again'
    return f'{program} failed: {_last_error(output)}'


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # pip ends with a mere label, such as `error: metadata-generation-failed`.
    errors = [
        line
        for line in lines
        if re.match(r'(?i)[\w.]*(error|exception): \S', line)
        and not re.match(r'error: [\w-]+$', line)
    ]
    return (errors or lines or ['it wrote nothing'])[-1]


# ------------------------------------------------------------------ main


def install(
    environment: Environment,
    extras: 'set[str]',
    wanted: str,
    needed_gib: float,
) -> None:
    """Bring the environment to the wanted state.

    Args:
        environment: Created when it does not exist.
        extras: To install, beside those it already has.
        wanted: Fingerprint to record.
        needed_gib: Free disk to ask for when torch is not there yet.
    """
    started = time.time()
    check_venv_module(sys.version_info)
    size = ''
    options = ['--retries', '2']
    if not os.path.isdir(os.path.join(environment.packages, 'torch')):
        if not check_disk(environment.path, needed_gib):
            options.append('--no-cache-dir')
        size = ', about 3 GB to download'
    environment.create()
    environment.repair()
    extras = extras | set(environment.state().get('extras', ()))
    environment.write_state('installing', extras=sorted(extras))
    target = f'.[{",".join(sorted(extras))}]' if extras else '.'
    _say(f'installing {target}{size}')
    # Small, so an index out of reach shows at once; and with the pinned
    # setuptools in place the build needs no environment of its own.
    quick = ('--retries', '1', '--timeout', '15')
    environment.pip_install(*quick, PIP, 'setuptools')
    environment.pip_install(*options, '--no-build-isolation', '-e', target)
    environment.write_state('ready', fingerprint=wanted, extras=sorted(extras))
    seconds = time.time() - started
    _say(f'{_short(environment.path)} is ready after {seconds:.0f} s')


def bootstrap(arguments: argparse.Namespace) -> None:
    """Install what is missing; say so in one line when nothing is."""
    extras = parse_extras(arguments.extras, known_extras(ROOT))
    environment = Environment(arguments.venv, sys.version_info)
    wanted = fingerprint(ROOT, sys.version_info)
    # One at a time (`make -j`); this file is what all runs share.
    with open(os.path.abspath(__file__)) as lock:
        with contextlib.suppress(OSError):  # network disks without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if environment.is_ready(wanted, extras):
            _say(f'{_short(environment.path)} is ready, nothing to install')
            return
        install(environment, extras, wanted, arguments.min_free)


def parse_args(argv: 'list[str] | None' = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Create a virtual environment with mmattn and its pinned '
        'dependencies; a second run installs nothing.'
    )
    parser.add_argument(
        '--extras',
        default='mm,optional',
        help='Extras to install, comma-separated (default: %(default)s).',
    )
    parser.add_argument(
        '--venv',
        default=os.path.join(ROOT, '.venv'),
        help='Folder of the environment (default: .venv of the checkout).',
    )
    parser.add_argument(
        '--min-free',
        type=float,
        default=NEEDED_GIB,
        metavar='GIB',
        help='Free disk to ask for before a first install; less will do for '
        'a torch without CUDA (default: %(default)s).',
    )
    return parser.parse_args(argv)


def main(argv: 'list[str] | None' = None) -> int:
    """Run the tool; every failure is one line."""
    try:
        check_python(sys.version_info, sys.executable)
        bootstrap(parse_args(argv))
    except BootstrapError as error:
        message = str(error)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        message = explain(_DISK_FULL[0], '') if full else str(error)
    except KeyboardInterrupt:
        message = 'interrupted; the next run carries on'
    else:
        return 0
    print('error: ' + ' '.join(message.split()), file=sys.stderr)
    return 1


if __name__ == '__main__':
    sys.exit(main())
