# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The doctor in environments of fake packages, and on facts made by hand."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import venv
from dataclasses import replace
from pathlib import Path

import pytest

from mmattn import doctor

ROOT = Path(__file__).parents[1]

TORCH = """
    __version__ = '2.11.0'
    class version:
        cuda = None
    class cuda:
        is_available = staticmethod(lambda: False)
    class zeros:
        def __init__(self, *size): pass
        def numpy(self): return self
"""
FRAMEWORK = """
    import mmcv
    mmcv_minimum_version = '2.0.0rc4'
    mmcv_maximum_version = '2.2.0'
    assert mmcv.__version__ < '2.2', (
        f'MMCV=={mmcv.__version__} is used but incompatible. ')
"""
#: Distribution, version, module, and the files of the module.
FAKES = {
    'numpy': ('2.2.6', 'numpy', {'__init__': ''}),
    'torch': ('2.11.0', 'torch', {'__init__': TORCH}),
    'torchvision': (
        '0.26.0',
        'torchvision',
        {'__init__': '', 'ops': 'nms = print'},
    ),
    'opencv-python': ('5.0.0', 'cv2', {'__init__': ''}),
    'mmengine': (
        '0.10.7',
        'mmengine',
        {'__init__': '', 'utils': 'def is_installed(_): import pkg_resources'},
    ),
    'setuptools': ('80.9.0', 'pkg_resources', {'__init__': ''}),
    'mmcv-lite': (
        '2.1.0',
        'mmcv',
        {'__init__': "__version__ = '2.1.0'", '_ext': ''},
    ),
    'ftfy': ('6.3', 'ftfy', {'__init__': ''}),
    'regex': ('2026.1', 'regex', {'__init__': ''}),
} | {
    name: (
        version,
        module,
        {'__init__': FRAMEWORK, 'models': '', 'datasets': ''},
    )
    for name, version, module in (
        ('mmdet', '3.3.0', 'mmdet'),
        ('mmsegmentation', '1.2.2', 'mmseg'),
        ('mmpretrain', '1.2.0', 'mmpretrain'),
    )
}


class Sandbox:
    """A virtual environment that holds fake packages only."""

    def __init__(self, folder):
        self.folder = folder
        venv.create(folder, with_pip=False, symlinks=True)
        (self.packages,) = folder.glob('lib/python*/site-packages')
        (self.packages / 'mmattn.pth').write_text(str(ROOT))
        for name in FAKES:
            self.install(name)

    def install(self, name, version=None, module=None, files=None):
        """Write a distribution; one that is there is replaced."""
        known = FAKES.get(name, (None, None, {}))
        version, module = version or known[0], module or known[1]
        self.uninstall(name, files=False)
        info = self.packages / f'{name.replace("-", "_")}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
            + ('Requires-Dist: torch==2.11.0\n' * (name == 'torchvision'))
        )
        (info / 'top_level.txt').write_text(module + '\n')
        package = self.packages / module
        package.mkdir(exist_ok=True)
        for stem, text in (files or known[2]).items():
            (package / f'{stem}.py').write_text(textwrap.dedent(text))

    def uninstall(self, name, files=True):
        for info in self.packages.glob(f'{name.replace("-", "_")}-*'):
            for path in info.iterdir():
                path.unlink()
            info.rmdir()
        if files:
            shutil.rmtree(self.packages / FAKES[name][1])

    def doctor(self):
        """Run the doctor; its exit code, its rows, and what is below."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith('PYTHON')
        }
        done = subprocess.run(
            [self.folder / 'bin' / 'python', '-m', 'mmattn.doctor'],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not done.stderr
        table, _, below = done.stdout.partition('\n\n')
        rows = {
            cells[0]: cells[1:]
            for cells in (
                re.split(r' {2,}', line) for line in table.split('\n')
            )
        }
        return done.returncode, rows, below


PIP = 'bin/python -m pip'


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path / 'env')


def test_healthy(sandbox):
    code, rows, below = sandbox.doctor()
    assert (code, below) == (0, 'all good\n')
    assert rows['mmcv'] == ['2.1.0', 'mmcv-lite', 'ok']
    assert rows['torch'] == ['2.11.0', 'torch, without CUDA', 'ok']
    assert rows['GPU'] == ['-', 'none', 'ok']
    assert rows['torchvision'][1] == 'torchvision, made for torch 2.11.0'
    assert rows['setuptools'][1] == 'pkg_resources, for mmengine'
    assert rows['scikit-learn'][2] == 'optional'


def test_nothing_is_installed(sandbox):
    for name in FAKES:
        sandbox.uninstall(name)
    code, rows, below = sandbox.doctor()
    assert code == 1
    assert rows['torch'] == ['-', 'for everything', 'missing']
    text, command = below.splitlines()
    assert text.startswith('problem: not installed: numpy, torch, ')
    assert text.endswith('mmpretrain (for classification)')
    assert command.startswith(f"  {PIP} install numpy 'torch>=2.1' ")


def test_folder_left_by_an_uninstall(sandbox):
    sandbox.uninstall('mmpretrain')
    (sandbox.packages / 'mmpretrain' / '.mim').mkdir(parents=True)
    code, rows, _ = sandbox.doctor()
    assert code == 1
    assert rows['mmpretrain'] == ['-', 'for classification', 'missing']


def test_files_gone_without_uninstall(sandbox):
    shutil.rmtree(sandbox.packages / 'mmpretrain')
    code, rows, below = sandbox.doctor()
    assert code == 1
    assert rows['mmpretrain'][-1] == 'fails'
    assert 'install --force-reinstall --no-deps mmpretrain==1.2.0' in below


def test_missing_framework(sandbox):
    sandbox.uninstall('mmsegmentation')
    sandbox.uninstall('ftfy')  # needed by mmsegmentation only
    code, rows, below = sandbox.doctor()
    assert code == 1
    assert rows['mmsegmentation'] == ['-', 'for segmentation', 'missing']
    assert 'ftfy' not in rows
    assert below.splitlines() == [
        'problem: not installed: mmsegmentation (for segmentation)',
        f"  {PIP} install 'mmsegmentation>=1.2,<2'",
    ]


def test_missing_undeclared_dependency(sandbox):
    sandbox.uninstall('ftfy')
    sandbox.install('mmsegmentation', files={'models': 'import ftfy'})
    code, rows, below = sandbox.doctor()
    assert code == 1
    assert rows['mmsegmentation'][-1] == 'fails'
    assert below.splitlines() == [
        'problem: not installed: ftfy (for mmsegmentation)',
        f'  {PIP} install ftfy',
    ]


def test_mmcv_beside_mmcv_lite(sandbox):
    sandbox.install('mmcv', '2.1.0', 'mmcv')
    code, rows, below = sandbox.doctor()
    assert code == 1
    assert rows['mmcv'] == ['2.1.0', 'mmcv-lite + mmcv', 'twice']
    assert below.splitlines() == [
        'problem: mmcv is installed twice: mmcv-lite 2.1.0 and mmcv 2.1.0 '
        'write to the same folder mmcv/',
        f'  {PIP} uninstall -y mmcv-lite mmcv && '
        f"{PIP} install 'mmcv-lite>=2.0.1,<2.2'",
    ]


@pytest.mark.parametrize(
    ('fork', 'module', 'label'),
    [
        ('onedl-mmdetection', 'mmdet', 'mmdet'),
        ('onedl-mmsegmentation', 'mmseg', 'mmsegmentation'),
        ('somebody-elses-mmengine', 'mmengine', 'mmengine'),
    ],
)
def test_fork_beside_upstream(sandbox, fork, module, label):
    sandbox.install(fork, '9', module)
    code, rows, below = sandbox.doctor()
    assert code == 1
    assert rows[label][-1] == 'twice'
    assert f'uninstall -y {label} {fork} && ' in below


def test_two_opencvs_are_a_warning(sandbox):
    sandbox.install('opencv-python-headless', '5.0.0', 'cv2')
    code, rows, below = sandbox.doctor()
    assert code == 0
    assert rows['OpenCV'][-1] == 'twice'
    assert below.startswith('warning: OpenCV is installed twice')
    assert below.endswith('all good\n')


def test_incompatible_mmcv(sandbox):
    files = {'__init__': "__version__ = '2.2.0'"}
    sandbox.install('mmcv-lite', '2.2.0', files=files)
    code, rows, below = sandbox.doctor()
    assert code == 1
    assert rows['mmcv'][-1] == 'mismatch'
    assert rows['mmdet'][-1] == 'fails'
    assert below.splitlines() == [
        'problem: mmcv 2.2.0 is not accepted by mmdet 3.3.0 and '
        'mmsegmentation 1.2.2 and mmpretrain 1.2.0: >=2.0.0rc4, <2.2.0',
        f"  {PIP} install 'mmcv-lite>=2.0.0rc4,<2.2.0'",
    ]


def test_compiled_ops_fail(sandbox):
    sandbox.uninstall('mmcv-lite', files=False)
    message = '/x/mmcv/_ext.so: undefined symbol: _ZN2at'
    sandbox.install(
        'mmcv', '2.1.0', 'mmcv', {'_ext': f'raise ImportError({message!r})'}
    )
    sandbox.install('mmdet', files={'models': 'import mmcv._ext'})
    code, rows, below = sandbox.doctor()
    assert code == 1
    assert rows['mmcv ops'][-1] == rows['mmdet'][-1] == 'fails'
    assert below.splitlines() == [
        f'problem: the compiled ops of mmcv fail to import: ImportError: '
        f'{message}',
        f"  {PIP} uninstall -y mmcv && {PIP} install 'mmcv-lite>=2.0.1,<2.2'",
    ]


def test_import_that_kills_python(sandbox):
    sandbox.install('mmpretrain', files={'models': 'import os; os._exit(9)'})
    code, rows, below = sandbox.doctor()
    assert code == 1
    assert rows['mmpretrain'][-1] == 'fails'
    assert 'ends Python with code 9' in below
    assert 'install --force-reinstall --no-deps mmpretrain==1.2.0' in below


def test_framework_misses_a_dependency(sandbox):
    sandbox.install('mmdet', files={'datasets': 'import yaml'})
    code, _, below = sandbox.doctor()
    assert code == 1
    assert below.splitlines() == [
        'problem: mmdet fails to import: ModuleNotFoundError: No module '
        "named 'yaml'",
        f'  {PIP} install pyyaml',
    ]


def test_no_pkg_resources(sandbox):
    sandbox.uninstall('setuptools')
    code, rows, below = sandbox.doctor()
    assert code == 1
    assert rows['setuptools'][-1] == 'mismatch'
    assert f"  {PIP} install 'setuptools<81'\n" in below


def test_import_that_prints(sandbox):
    files = {'__init__': "print('hello', end='')"}
    sandbox.install('mmpretrain', files=files)
    code, _, below = sandbox.doctor()
    assert (code, below) == (0, 'all good\n')


# Judgements that fake packages cannot bring about


@pytest.fixture
def facts():
    """The facts of a healthy environment of upstream packages."""
    versions = {
        doctor.TORCH: '2.11.0+cpu',
        doctor.TORCHVISION: '0.26.0+cpu',
        doctor.MMCV: '2.1.0',
    }
    facts = doctor.Facts((3, 11, 7), 'pip', paired_torch='2.11.0')
    for component in doctor.IMPORTED:
        name = re.match(r'[\w-]*', component.requirement).group()
        owner = (name, versions.get(component, '1.0'))
        facts.owners[component.module] = [owner] if name else []
        facts.answers[component.module] = {'version': owner[1]}
    facts.ops = 'torchvision'
    return facts


def _status(diagnosis, label):
    (row,) = [row for row in diagnosis.rows if row.component == label]
    return row.status


def _fail(facts, component, error, missing=''):
    facts.answers[component.module] = {'error': error, 'missing': missing}


def test_local_version_pairs(facts):
    diagnosis = doctor.diagnose(facts)
    assert not diagnosis.problems
    assert _status(diagnosis, 'torchvision') == 'ok'


def test_unpaired_torchvision_that_works_is_a_warning(facts):
    facts.paired_torch = '2.10.0'
    diagnosis = doctor.diagnose(facts)
    (problem,) = diagnosis.problems
    assert not problem.fatal and not diagnosis.failed
    assert problem.command == (
        'pip install --upgrade torch==2.11.0 torchvision'
    )


def test_unpaired_torchvision_that_fails(facts):
    error = 'RuntimeError: operator torchvision::nms does not exist'
    facts.paired_torch = '2.10.0'
    for component in (doctor.TORCHVISION, doctor.MMDET, doctor.OPS):
        _fail(facts, component, error)
    diagnosis = doctor.diagnose(facts)
    (problem,) = diagnosis.problems
    assert problem.fatal and 'made for torch 2.10.0' in problem.text
    assert _status(diagnosis, 'mmdet') == 'fails'


def test_numpy_that_torch_refuses(facts):
    facts.answers['torch']['numpy'] = 'RuntimeError: Numpy is not available'
    (problem,) = doctor.diagnose(facts).problems
    assert problem.command == "pip install 'numpy<2'"


def test_opencv_without_desktop(facts):
    error = 'ImportError: libGL.so.1: cannot open shared object file'
    for component in (doctor.OPENCV, doctor.MMENGINE, doctor.MMCV):
        _fail(facts, component, error)
    (problem,) = doctor.diagnose(facts).problems
    assert problem.command == (
        'pip uninstall -y opencv-python && pip install opencv-python-headless'
    )


def test_gpus(facts):
    facts.answers['torch']['gpus'] = ['H200', 'H200']
    (row,) = [r for r in doctor.diagnose(facts).rows if r.component == 'GPU']
    assert row == doctor.Row('GPU', '2', 'H200', 'ok')


def test_forks_are_mended_with_forks(facts):
    for component in doctor.IMPORTED:
        if component.fork:
            facts.owners[component.module] = [(component.fork, '2.3.6')]
    facts.owners['mmdet'] = [('mmdet', '3.3.0')]
    facts.ranges['mmdet', 'mmcv'] = ('2.0.0rc4', '2.2.0')
    _fail(facts, doctor.MMDET, 'AssertionError: MMCV==2.3.6 is used')
    facts.owners['mmseg'] = []
    _fail(facts, doctor.MMSEG, 'ModuleNotFoundError: ...', 'mmseg')
    absent, refused = doctor.diagnose(facts).problems
    assert absent.command == 'pip install onedl-mmsegmentation'
    assert refused.command == (
        'pip uninstall -y mmdet && pip install onedl-mmdetection'
    )


def test_framework_from_a_checkout(facts):
    facts.owners['mmdet'] = []
    (row,) = [r for r in doctor.diagnose(facts).rows if r.component == 'mmdet']
    assert row == doctor.Row('mmdet', '1.0', 'no distribution', 'ok')


def test_untested_python(facts):
    diagnosis = doctor.diagnose(replace(facts, python=(3, 13, 0)))
    assert _status(diagnosis, 'Python') == 'untested'


def test_answers_are_json():
    given = doctor._import('mmattn.no_such_module')
    assert json.loads(json.dumps(given))['missing'] == 'mmattn.no_such_module'


def test_requirements_are_those_of_the_package():
    declared = set()
    for path in (ROOT / 'requirements').glob('*.txt'):
        lines = path.read_text().splitlines()
        declared |= {line.partition('#')[0].strip() for line in lines}
    for component in (*doctor.IMPORTED, doctor.SETUPTOOLS):
        # mmengine and mmcv bring OpenCV, mmcv brings its ops.
        if component not in (doctor.OPENCV, doctor.OPS):
            assert component.requirement in declared


def test_this_environment():
    """What the tests run in is what the doctor calls healthy."""
    for framework in doctor.FRAMEWORKS:
        pytest.importorskip(framework.module)
    done = subprocess.run(
        [sys.executable, '-m', 'mmattn.doctor'], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith('all good\n')
