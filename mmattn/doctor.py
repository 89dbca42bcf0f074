# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Tell what is installed, what is wrong with it, and what mends it.

Run as `python -m mmattn.doctor`: one table, then for each problem one line
and the command that mends it. The exit code is 1 if something would fail.

Three steps that know nothing of each other: `gather` looks at the machine,
`diagnose` judges what it saw, `render` words it. Everything is imported in
child processes, so a package that crashes Python on import is reported like
any other, and nothing but Python itself has to be there.
"""

import importlib
import json
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .compat.finder import ops_source
from .version import __version__


@dataclass(frozen=True)
class Component:
    """A package that mmattn uses.

    Args:
        label: Its name in the table.
        module: What is imported.
        requirement: What pip is told to install.
        rivals: Other distributions that provide the module; two at a time
            overwrite each other's files.
        fork: What pip is told instead in an environment of the forks.
        use: What does not work without it; empty for everything.
    """

    label: str
    module: str
    requirement: str
    rivals: tuple[str, ...] = ()
    fork: str = ''
    use: str = ''


# Every requirement is that of requirements/*.txt; a test compares them.
NUMPY = Component('numpy', 'numpy', 'numpy')
TORCH = Component('torch', 'torch', 'torch>=2.1')
TORCHVISION = Component('torchvision', 'torchvision', 'torchvision>=0.16')
OPENCV = Component(
    'OpenCV',
    'cv2',
    'opencv-python',
    rivals=(
        'opencv-python-headless',
        'opencv-contrib-python',
        'opencv-contrib-python-headless',
    ),
)
MMENGINE = Component(
    'mmengine',
    'mmengine',
    'mmengine>=0.10.3,<1',
    rivals=('mmengine-lite',),
    fork='onedl-mmengine',
)
SETUPTOOLS = Component('setuptools', 'pkg_resources', 'setuptools<81')
MMCV = Component(
    'mmcv',
    'mmcv',
    'mmcv-lite>=2.0.1,<2.2',
    rivals=('mmcv', 'mmcv-full'),
    fork='onedl-mmcv',
)
OPS = Component('mmcv ops', 'mmcv._ext', '')
MMDET = Component(
    'mmdet',
    'mmdet',
    'mmdet>=3.2,<4',
    fork='onedl-mmdetection',
    use='detection and the backbones',
)
# What mmseg imports at run time and only its fork declares.
FTFY = Component('ftfy', 'ftfy', 'ftfy', use='mmsegmentation')
REGEX = Component('regex', 'regex', 'regex', use='mmsegmentation')
MMSEG = Component(
    'mmsegmentation',
    'mmseg',
    'mmsegmentation>=1.2,<2',
    fork='onedl-mmsegmentation',
    use='segmentation',
)
MMPRETRAIN = Component(
    'mmpretrain',
    'mmpretrain',
    'mmpretrain>=1.1,<2',
    fork='onedl-mmpretrain',
    use='classification',
)
FRAMEWORKS = (MMDET, MMSEG, MMPRETRAIN)
OPTIONAL = (
    Component('scikit-learn', 'sklearn', 'scikit-learn', use='the demo data'),
    Component(
        'faster-coco-eval',
        'faster_coco_eval',
        'faster-coco-eval',
        use='fast COCO scores',
    ),
)
#: What is imported, in this order: each after those it stands on.
IMPORTED = (
    *(NUMPY, TORCH, TORCHVISION, OPENCV, MMENGINE, MMCV, OPS),
    *(MMDET, FTFY, REGEX, MMSEG, MMPRETRAIN),
)

# Modules of other names than their distributions.
_DISTRIBUTIONS = {
    'PIL': 'pillow',
    'dateutil': 'python-dateutil',
    'skimage': 'scikit-image',
    'sklearn': 'scikit-learn',
    'yaml': 'pyyaml',
}
_MARK = '@mmattn.doctor '
_MAX_DETAIL = 50


@dataclass
class Facts:
    """What `gather` saw.

    Args:
        python: Version of the running Python.
        pip: The command that runs this environment's pip.
        owners: By module, the installed distributions that provide it, as
            (name, version).
        answers: By module, what importing it gave: `version` and details; or
            `error`, and `missing` if a module was not found.
        ranges: By (framework, module), the versions of the module that the
            framework accepts, from (inclusive) and to (exclusive).
        paired_torch: The torch release that torchvision was made for.
        ops: Where mmcv's ops come from: compiled, torchvision or none.
    """

    python: tuple[int, ...]
    pip: str
    owners: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    ranges: dict[tuple[str, str], tuple[str, str]] = field(
        default_factory=dict
    )
    paired_torch: str = ''
    ops: str = 'none'

    def names(self, component: Component) -> list[str]:
        """List the distributions that provide a component."""
        return [name for name, _ in self.owners.get(component.module, ())]

    def version(self, component: Component) -> str:
        """Return its version, that of the distribution if there is one."""
        for _, version in self.owners.get(component.module, ()):
            return version
        return self.detail(component, 'version')

    def error(self, component: Component) -> str:
        """Return why importing it fails, empty if it does not."""
        return self.detail(component, 'error')

    def detail(self, component: Component, key: str) -> Any:
        """Return a part of what importing it gave, empty if there is none."""
        return self.answers.get(component.module, {}).get(key, '')


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    component: str
    version: str
    detail: str
    status: str = 'ok'


@dataclass(frozen=True)
class Problem:
    """What is wrong, the command that mends it, and whether it matters."""

    text: str
    command: str
    fatal: bool = True


@dataclass
class Diagnosis:
    """The table and the problems below it."""

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether something would fail."""
        return any(problem.fatal for problem in self.problems)


# ---------------------------------------------------------------- gather


def gather() -> Facts:
    """Look at the environment; takes some seconds, for the imports."""
    return Facts(
        python=tuple(sys.version_info[:3]),
        pip=_pip_command(),
        owners=_find_owners((*IMPORTED, SETUPTOOLS, *OPTIONAL)),
        answers=_import_all([component.module for component in IMPORTED]),
        ranges=_accepted_ranges(),
        paired_torch=_paired_torch(),
        ops=_ops_source(),
    )


def _pip_command() -> str:
    """Name this environment's pip, whichever environment is active."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return f'{shlex.quote(str(python))} -m pip'


def _find_owners(
    components: tuple[Component, ...],
) -> dict[str, list[tuple[str, str]]]:
    """Find the distributions that provide each component."""
    by_files = metadata.packages_distributions()
    owners = {}
    for component in components:
        names = [_name_of(component.requirement), *component.rivals]
        names += [component.fork, *by_files.get(component.module, ())]
        # Once each: the files may name one in another spelling.
        names = dict.fromkeys(_canonical(name) for name in names if name)
        found = [(name, _version_of(name)) for name in names]
        owners[component.module] = [(n, v) for n, v in found if v]
    return owners


def _name_of(requirement: str) -> str:
    return re.match(r'[\w.-]*', requirement).group()


def _canonical(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def _version_of(distribution: str) -> str:
    try:
        # None where the metadata is torn.
        return metadata.version(distribution) or ''
    except metadata.PackageNotFoundError:
        return ''


def _paired_torch() -> str:
    """Return the torch release that torchvision's own metadata pins."""
    if _version_of('torchvision'):
        for requirement in metadata.requires('torchvision') or ():
            pinned = re.match(r'torch\s*\(?==\s*([\w.]+)', requirement)
            if pinned:
                return pinned.group(1)
    return ''


def _accepted_ranges() -> dict[tuple[str, str], tuple[str, str]]:
    """Read the versions that the frameworks assert when imported.

    From the text, as the assertion is what keeps them from being imported.
    """
    ranges = {}
    for framework in FRAMEWORKS:
        spec = find_spec(framework.module)
        if spec is None or spec.origin is None:
            continue
        text = Path(spec.origin).read_text(encoding='utf-8', errors='replace')
        for module in (MMENGINE.module, MMCV.module):
            low = _constant(text, f'{module}_minimum_version|{module}_MIN')
            high = _constant(text, f'{module}_maximum_version|{module}_MAX')
            if low and high:
                ranges[framework.module, module] = (low, high)
    return ranges


def _constant(text: str, names: str) -> str:
    """Return a version assigned to one of the names in any case."""
    assigned = rf'(?im)^(?:{names})\s*=\s*[\'"](\d[\w.]*)[\'"]'
    found = re.search(assigned, text)
    return found.group(1) if found else ''


def _ops_source() -> str:
    try:
        return ops_source()
    except (ImportError, ValueError):  # find_spec on half a package
        return 'none'


def _import_all(modules: list[str]) -> dict[str, dict[str, Any]]:
    """Import modules in child processes and collect the answers.

    A child takes them in turn until an import fails. A fresh one takes the
    rest, as a failed import leaves pieces behind that make the next one fail
    in another way than it would alone.
    """
    answers = {}
    while len(answers) < len(modules):
        rest = [name for name in modules if name not in answers]
        child = subprocess.run(
            [
                sys.executable,
                '-c',
                'from mmattn import doctor; doctor.answer()',
                *rest,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding='utf-8',
            errors='replace',
        )
        given = dict(
            json.loads(line.removeprefix(_MARK))
            for line in child.stdout.splitlines()
            if line.startswith(_MARK)
        )
        failed = any('error' in answer for answer in given.values())
        if len(given) < len(rest) and not failed:
            last = (child.stderr.strip().splitlines() or [''])[-1]
            error = f'it ends Python with code {child.returncode}: {last}'
            given[rest[len(given)]] = {'error': error}
        answers.update(given)
    return answers


def answer() -> None:
    """Import the modules of the command line: the child's side of it."""
    for name in sys.argv[1:]:
        given = _import(name)
        # On a line of its own, whatever an import has printed before.
        print('\n' + _MARK + json.dumps([name, given]), flush=True)
        if 'error' in given:
            return


def _import(name: str) -> dict[str, Any]:
    try:
        module = importlib.import_module(name)
        if getattr(module, '__file__', None) is None:
            # A folder without code, left behind by an uninstall.
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
        if any(name == framework.module for framework in FRAMEWORKS):
            # The package alone imports next to nothing.
            importlib.import_module(name + '.datasets')
            importlib.import_module(name + '.models')
        given = {'version': str(getattr(module, '__version__', ''))}
        return given | _DETAILS.get(name, dict)()
    # Even SystemExit: whatever an import does is an answer.
    except BaseException as error:
        given = {'error': _one_line(error)}
        if isinstance(error, ModuleNotFoundError) and error.name:
            given['missing'] = error.name
        return given


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else "no message"}'


def _torch_details() -> dict[str, Any]:
    """Describe the devices, and whether numpy works with this torch."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    told = [str(warning.message) for warning in caught]
    details = {
        'cuda': torch.version.cuda or '',
        'gpus': [torch.cuda.get_device_name(i) for i in range(count)],
        # Said where there is a device that this torch cannot use.
        'driver': next((text for text in told if 'driver' in text), ''),
    }
    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:
        details['numpy'] = _one_line(error)
    return details


def _torchvision_details() -> dict[str, Any]:
    """Try an op: one made for another torch may import and have none."""
    import torch
    from torchvision.ops import nms

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    return {}


def _mmengine_details() -> dict[str, Any]:
    """Tell whether mmengine uses pkg_resources, and whether it can."""
    from mmengine.utils import is_installed

    try:
        is_installed('mmengine')
    except ImportError as error:
        return {'pkg_resources': _one_line(error)}
    return {'pkg_resources': 'pkg_resources' in sys.modules and 'used'}


_DETAILS = {
    TORCH.module: _torch_details,
    TORCHVISION.module: _torchvision_details,
    MMENGINE.module: _mmengine_details,
}


# -------------------------------------------------------------- diagnose


def diagnose(facts: Facts) -> Diagnosis:
    """Judge what `gather` saw."""
    judge = _Judge(facts)
    judge.python()
    for component in IMPORTED:
        if component is OPS:
            judge.ops()
        elif component not in (FTFY, REGEX) or facts.names(MMSEG):
            judge.component(component)
        if component is TORCH and not facts.error(TORCH):
            judge.gpu()
        elif component is MMENGINE:
            judge.setuptools()
    for component in OPTIONAL:
        judge.optional(component)
    judge.install_absent()
    return judge.diagnosis


class _Judge:
    """Turns facts into rows and problems, one component at a time."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.diagnosis = Diagnosis()
        # Absent modules and errors that have their problem: what stands on
        # them fails as well, but that is not one more.
        self.explained = set()
        self.absent_ones = []
        # One whose mmengine is the fork lives among forks.
        self.fork = facts.names(MMENGINE) == [MMENGINE.fork]

    def row(self, *cells: str) -> None:
        self.diagnosis.rows.append(Row(*cells))

    def problem(self, text: str, command: str, fatal: bool = True) -> None:
        self.diagnosis.problems.append(Problem(text, command, fatal))

    # The commands.

    def target(self, component: Component) -> str:
        return self.fork and component.fork or component.requirement

    def install(self, *requirements: str) -> str:
        return f'{self.facts.pip} install {shlex.join(requirements)}'

    def replace(self, component: Component, requirement: str) -> str:
        """Remove what provides a component, with all files, and install."""
        names = self.facts.names(component)
        command = self.install(requirement)
        if names in ([], [_name_of(requirement)]):
            return command
        return (
            f'{self.facts.pip} uninstall -y {shlex.join(names)} && {command}'
        )

    def reinstall(self, component: Component) -> str:
        owners = self.facts.owners.get(component.module)
        name = '=='.join(owners[0]) if owners else self.target(component)
        return self.install('--force-reinstall', '--no-deps', name)

    def pair(self) -> str:
        """Get the torchvision of this torch, or both if torch is broken."""
        version = self.facts.version(TORCH).split('+')[0]
        if version and not self.facts.error(TORCH):
            return self.install(
                '--upgrade', f'torch=={version}', 'torchvision'
            )
        return self.install('--force-reinstall', 'torch', 'torchvision')

    # The rows.

    def python(self) -> None:
        version = '.'.join(map(str, self.facts.python))
        tested = (3, 10) <= self.facts.python[:2] <= (3, 12)
        status = 'ok' if tested else 'untested'
        self.row('Python', version, sys.executable, status)
        self.row('mmattn', __version__, str(Path(__file__).parent))

    def component(self, component: Component) -> None:
        """Judge one: absent, there twice, failing, unfitting or fine."""
        names = self.facts.names(component)
        error = self.facts.error(component)
        detail = ' + '.join(names) or 'no distribution'
        if len(names) > 1:
            status = self.twice(component)
        elif not names and self.is_absent(component):
            detail = f'for {component.use or "everything"}'
            status = self.absent(component)
        elif error:
            detail, status = error, self.failing(component)
        else:
            status = self.fitting(component)
        if component is TORCH and not error:
            cuda = self.facts.detail(TORCH, 'cuda')
            detail += f', CUDA {cuda}' if cuda else ', without CUDA'
        if component is TORCHVISION and self.facts.paired_torch and not error:
            detail += f', made for torch {self.facts.paired_torch}'
        version = self.facts.version(component) or '-'
        self.row(component.label, version, detail, status)

    def is_absent(self, component: Component) -> bool:
        return self.facts.detail(component, 'missing') == component.module

    def is_explained(self, component: Component) -> bool:
        """Whether its failure follows from a problem already told."""
        absent = self.facts.detail(component, 'missing').split('.')[0]
        error = self.facts.error(component)
        return bool({absent, error} & self.explained)

    def twice(self, component: Component) -> str:
        module = component.module
        error = self.facts.error(component)
        self.explained.update({module, error} - {''})
        owners = self.facts.owners[module]
        what = ' and '.join(' '.join(owner) for owner in owners)
        self.problem(
            f'{component.label} is installed twice: {what} write to the same '
            f'folder {module}/',
            self.replace(component, self.target(component)),
            # The variants of OpenCV mostly get along.
            fatal=component is not OPENCV or bool(error),
        )
        return 'twice'

    def absent(self, component: Component) -> str:
        self.explained.add(component.module)
        self.absent_ones.append(component)
        return 'missing'

    def install_absent(self) -> None:
        """Tell of all absent ones at once, before the other problems."""
        if self.absent_ones:
            told = [
                f'{c.label} (for {c.use})' if c.use else c.label
                for c in self.absent_ones
            ]
            command = self.install(*map(self.target, self.absent_ones))
            problem = Problem('not installed: ' + ', '.join(told), command)
            self.diagnosis.problems.insert(0, problem)

    def failing(self, component: Component) -> str:
        """Tell why an import fails, unless that is known already."""
        known = self.is_explained(component)
        absent = self.facts.detail(component, 'missing').split('.')[0]
        other = absent and absent != component.module
        # With its foundation broken, most errors are consequences of that.
        shaky = self.diagnosis.failed or self.absent_ones
        if known or (shaky and component in FRAMEWORKS and not other):
            return 'fails'
        error = self.facts.error(component)
        self.explained.add(absent if other else error)
        text = f'{component.label} fails to import: {error}'
        if component is TORCHVISION and self.is_unpaired():
            text += f' (made for torch {self.facts.paired_torch})'
        self.problem(text, self.mending(component, other and absent))
        return 'fails'

    def mending(self, component: Component, absent: str) -> str:
        """Find the command for an import that fails."""
        if absent:
            return self.install(_DISTRIBUTIONS.get(absent, absent))
        if component in (TORCH, TORCHVISION):
            return self.pair()
        if component is OPENCV and '.so' in self.facts.error(component):
            # A library of the desktop, which servers and containers lack.
            return self.replace(component, 'opencv-python-headless')
        return self.reinstall(component)

    def fitting(self, component: Component) -> str:
        """Judge one that can be imported against its neighbours."""
        version = self.facts.version(component)
        refusal = self.facts.detail(TORCH, 'numpy')
        if component is TORCHVISION and self.is_unpaired():
            self.problem(
                f'torchvision {version} was made for torch '
                f'{self.facts.paired_torch}, not for '
                f'{self.facts.version(TORCH)}',
                self.pair(),
                fatal=False,  # its ops were tried and work
            )
        elif component is NUMPY and refusal:
            self.problem(
                f'torch cannot use numpy {version}: {refusal}',
                self.install('numpy<2'),
            )
        elif not self.is_refused(component):
            return 'ok'
        return 'mismatch'

    def is_unpaired(self) -> bool:
        wanted = self.facts.paired_torch
        found = self.facts.version(TORCH)
        return bool(wanted and found) and _release(wanted) != _release(found)

    def is_refused(self, component: Component) -> bool:
        """Judge by the versions that the frameworks accept."""
        version = _release(self.facts.version(component))
        refusing = {}
        for framework in FRAMEWORKS:
            key = framework.module, component.module
            low, high = self.facts.ranges.get(key, ('', ''))
            inside = _release(low) <= version < _release(high)
            # One that imports nevertheless is right.
            if low and not inside and self.facts.error(framework):
                refusing[framework] = low, high
        if refusing:
            self.explained.update(map(self.facts.error, refusing))
            self.refused(component, refusing)
        return bool(refusing)

    def refused(
        self,
        component: Component,
        refusing: dict[Component, tuple[str, str]],
    ) -> None:
        low = max((low for low, _ in refusing.values()), key=_release)
        high = min((high for _, high in refusing.values()), key=_release)
        wanted = f'{_name_of(component.requirement)}>={low},<{high}'
        command = self.replace(component, wanted)
        if self.fork:
            # Forks accept each other; the odd ones out are the frameworks.
            command = ' && '.join(self.replace(f, f.fork) for f in refusing)
        who = ' and '.join(
            f'{framework.label} {self.facts.version(framework)}'
            for framework in refusing
        )
        self.problem(
            f'{component.label} {self.facts.version(component)} is not '
            f'accepted by {who}: >={low}, <{high}',
            command,
        )

    def gpu(self) -> None:
        names = self.facts.detail(TORCH, 'gpus') or []
        driver = self.facts.detail(TORCH, 'driver')
        detail = ', '.join(dict.fromkeys(names)) or driver or 'none'
        status = 'unusable' if driver and not names else 'ok'
        self.row('GPU', str(len(names) or '-'), detail, status)

    def setuptools(self) -> None:
        found = self.facts.detail(MMENGINE, 'pkg_resources')
        version = self.facts.version(SETUPTOOLS) or '-'
        if found == 'used':
            self.row('setuptools', version, 'pkg_resources, for mmengine')
        elif found:
            self.row('setuptools', version, found, 'mismatch')
            self.problem(
                'mmengine imports pkg_resources, which only setuptools '
                'before 81 has',
                self.install(SETUPTOOLS.requirement),
            )

    def ops(self) -> None:
        """Judge the extension behind `mmcv.ops`."""
        error = self.facts.error(OPS)
        if not error:
            torchvision = self.facts.ops == 'torchvision'
            detail = (
                'torchvision (mmattn.compat)' if torchvision else 'compiled'
            )
            self.row('mmcv ops', '-', detail)
            return
        self.row('mmcv ops', '-', error, 'fails')
        if self.is_explained(OPS) or self.facts.error(MMCV):
            return
        self.explained.add(error)
        # Without a compiled extension, mmattn's own takes over.
        command = self.replace(MMCV, MMCV.requirement)
        stray = re.search(r'/[^:]*/_ext[^:/]*\.so', error)
        if self.fork:
            command = self.reinstall(MMCV)
        elif stray and self.facts.names(MMCV) == ['mmcv-lite']:
            command = f'rm {shlex.quote(stray.group())}'
        self.problem(
            f'the {self.facts.ops} ops of mmcv fail to import: {error}',
            command,
        )

    def optional(self, component: Component) -> None:
        version = self.facts.version(component)
        status = 'ok' if version else 'optional'
        self.row(
            component.label, version or '-', f'for {component.use}', status
        )


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without pre-release or local part."""
    numbers = re.match(r'(?:\d+\.?)*', version).group().split('.')
    return tuple(int(number) for number in numbers if number)


# ---------------------------------------------------------------- render


def render(diagnosis: Diagnosis) -> str:
    """Word a diagnosis: a table, and what to do."""
    cells = [('component', 'version', 'source', 'status')]
    for row in diagnosis.rows:
        detail = row.detail
        if len(detail) > _MAX_DETAIL and row.status != 'ok':
            # Problems are told in full below the table.
            detail = detail[: _MAX_DETAIL - 3] + '...'
        cells.append((row.component, row.version, detail, row.status))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        '  '.join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in cells
    ]
    for problem in diagnosis.problems:
        lines += ['', f'{"problem" if problem.fatal else "warning"}: ']
        lines[-1] += problem.text
        lines.append(f'  {problem.command}')
    if not diagnosis.failed:
        lines += ['', 'all good']
    return '\n'.join(lines)


def main() -> int:
    """Print the diagnosis; 1 if something would fail."""
    diagnosis = diagnose(gather())
    print(render(diagnosis))
    return int(diagnosis.failed)


if __name__ == '__main__':
    sys.exit(main())
