# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What sdist and wheel hold, and that a wheel works in an empty folder.

The wheel is installed by pip in a new environment that sees the packages of
the running one, but not its mmattn, whether installed or on PYTHONPATH.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
import yaml

import mmattn
from mmattn import registry

ROOT = Path(__file__).parents[1]
#: What a checkout has and no commit does; setuptools would pack some of it.
REMAINS = shutil.ignore_patterns(
    '.git', '.venv', '.venv-matrix', '__pycache__', '*.egg-info', 'build',
    'dist', 'data', 'work_dirs',
)  # fmt: skip
#: Tools that only serve a checkout.
CHECKOUT_ONLY = {
    *('bootstrap.py', 'test_matrix.py'),
    *('update_metafiles.py', 'update_readme.py'),
}
DEMO = 'faster-rcnn_r18-scsa_fpn_15e_digits'
SHORT = (
    '--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1',
    'default_hooks.checkpoint.interval=1',
)  # fmt: skip

# What setuptools' own .pth file does for Python 3.12, which has no distutils.
DISTUTILS = 'import _distutils_hack; _distutils_hack.add_shim()'

SDIST = """
import sys
from setuptools import build_meta
build_meta.build_sdist(sys.argv[1])
"""

# Every tool in one process: most of the time goes into their imports.
HELP = """
import runpy, sys
import mmattn
print(mmattn.__file__)
for tool in sys.argv[1:]:
    sys.argv = [tool, '--help']
    sys.path[0] = tool.rpartition('/')[0]
    try:
        runpy.run_path(tool, run_name='__main__')
    except SystemExit as stop:
        assert not stop.code, (tool, stop.code)
    else:
        assert tool.endswith(('/archives.py', '/conversion.py')), tool
"""

# The ways in of the four packages, with a detector, and with a classifier
# that nobody trained.
INTERFACES = """
import json, sys
import mmattn
from pathlib import Path
from mmengine.config import Config
from mmengine.hub import get_config, get_model
from mmengine.runner import Runner
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmpretrain import ImageClassificationInferencer

name, checkpoint, image = sys.argv[1:]
configs = Path(mmattn.__file__).parent / '.mim' / 'configs' / 'demo'
path = str(configs / f'{name}.py')

Path('mine.py').write_text(f"_base_ = 'mmattn::demo/{name}.py'")
mine = Config.fromfile('mine.py')
cfg = get_config(f'mmattn::demo/{name}.py')
assert mine.model == cfg.model == Config.fromfile(path).model
attention = cfg.model.backbone.plugins[0].cfg.type

# First: mmpretrain's builds in the default scope that the others leave.
classifier = 'resnet18-gsca_30e_digits.py'
hub = get_model(f'mmattn::demo/{classifier}')
infer = ImageClassificationInferencer(
    str(configs / classifier), pretrained=False, device='cpu'
)
classes = len(infer(image)[0]['pred_scores'])

detector = init_detector(cfg, checkpoint, device='cpu')
one = inference_detector(detector, image).pred_instances.scores.tolist()
inferencer = DetInferencer(path, checkpoint, device='cpu')
other = inferencer(image)['predictions'][0]['scores']

cfg.load_from, cfg.work_dir = checkpoint, 'from_cfg'
scores = Runner.from_cfg(cfg).test()
print(json.dumps(dict(
    attention=attention,
    detector=type(detector).__name__,
    plugins=len(list(hub.backbone.named_plugins())),
    classes=classes,
    scores=one,
    inferencer=other,
    ap=scores['coco/bbox_mAP_50'],
)))
"""


class Environment(namedtuple('Environment', 'python package')):
    """A new environment with the wheel: its Python, and where mmattn is."""

    def run(self, *words, cwd, check=True):
        hidden = {'PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV'}
        env = {k: v for k, v in os.environ.items() if k not in hidden}
        env |= {'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
        result = subprocess.run(
            [self.python, *words], cwd=cwd, env=env,
            capture_output=True, text=True,
        )  # fmt: skip
        if check:
            assert result.returncode == 0, result.stdout + result.stderr
        return result

    def mim(self, *words, cwd):
        return self.run('-m', 'mim', *words, cwd=cwd).stdout


def install(folder, wheel):
    """Install a wheel, and nothing that it needs, in a new environment."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / 'bin' / 'python'
    subprocess.run(
        [sys.executable, '-m', 'pip', '--python', python, 'install',
         '--no-deps', '--no-index', '--quiet', wheel],
        check=True,
    )  # fmt: skip
    (site,) = folder.glob('lib/python*/site-packages')
    return Environment(python, site / 'mmattn')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A checkout without what running and building left in it."""
    folder = tmp_path_factory.mktemp('source') / 'mmattn'
    shutil.copytree(ROOT, folder, symlinks=True, ignore=REMAINS)
    return folder


def build_wheel(source, folder):
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', source, '--no-deps',
         '--no-build-isolation', '--quiet', '--wheel-dir', folder],
        check=True,
    )  # fmt: skip
    (wheel,) = folder.glob('*.whl')
    return wheel


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    return build_wheel(source, tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def bare(wheel, tmp_path_factory):
    """An environment with the wheel alone."""
    return install(tmp_path_factory.mktemp('bare'), wheel)


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """An environment with the wheel and the packages of this one."""
    environment = install(tmp_path_factory.mktemp('installed'), wheel)
    # Listed in a .pth file, folders come after the new environment's own, and
    # their .pth files, an editable install's among them, are not read.
    packages = [p for p in sys.path if p and any(Path(p).glob('*.dist-info'))]
    listed = environment.package.with_name('packages.pth')
    listed.write_text('\n'.join([*packages, DISTUTILS]))
    return environment


@pytest.fixture(scope='module')
def trained(installed, tmp_path_factory):
    """A folder, empty before mim made data and a checkpoint there."""
    if importlib.util.find_spec('mim') is None:
        pytest.skip('mim is not installed: pip install openmim')
    folder = tmp_path_factory.mktemp('empty')
    installed.mim(
        'run', 'mmattn', 'digits', '--train=8', '--val=4', '--cls-train=1',
        '--cls-val=1', cwd=folder,
    )  # fmt: skip
    output = installed.mim('train', 'mmattn', f'{DEMO}.py', *SHORT, cwd=folder)
    # Its config and its train.py, not those of the checkout.
    assert f'will use {installed.package}/.mim/configs/demo/' in output
    assert f'{installed.package}/.mim/tools/train.py' in output
    return folder


def files_of(folder, pattern='*'):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob(pattern)
        if path.is_file() and '__pycache__' not in path.parts
    }


@pytest.mark.parametrize('folder', ['configs', 'tools'])
def test_wheel_holds_every_config_and_tool(bare, folder):
    found = files_of(bare.package / '.mim' / folder)
    assert found == files_of(ROOT / folder) - CHECKOUT_ONLY


def test_wheel_holds_every_module(bare):
    found = files_of(bare.package, '*.py')
    expected = files_of(ROOT / 'mmattn', '*.py')
    assert {name for name in found if not name.startswith('.mim/')} == {
        name for name in expected if not name.startswith('.mim/')
    }


def test_scripts_can_be_executed(bare):
    scripts = list((bare.package / '.mim').rglob('*.sh'))
    assert scripts and all(os.access(path, os.X_OK) for path in scripts)


def test_sdist_gives_the_same_wheel(source, wheel, tmp_path):
    subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', SDIST, tmp_path],
        cwd=source, check=True, capture_output=True,
    )  # fmt: skip
    (sdist,) = tmp_path.glob('*.tar.gz')

    def content(path):
        with zipfile.ZipFile(path) as file:
            return {
                entry.filename: (file.read(entry), entry.external_attr)
                for entry in file.infolist()
            }

    assert content(build_wheel(sdist, tmp_path)) == content(wheel)


def test_model_index_names_files_of_the_wheel(bare):
    mim = bare.package / '.mim'
    index = yaml.safe_load((mim / 'model-index.yml').read_text())
    assert set(index['Import']) == {
        f'configs/{name}' for name in files_of(mim / 'configs', 'metafile.yml')
    }
    named = []
    for path in index['Import']:
        content = yaml.safe_load((mim / path).read_text())
        named += [model['Config'] for model in content['Models']]
        named += [each['README'] for each in content.get('Collections', ())]
    assert len(named) > 200
    assert [name for name in named if not (mim / name).is_file()] == []


def test_mim_finds_configs_and_tools_by_their_names(bare):
    # It searches the whole package for a config, and .mim/tools for a tool.
    names = [path.name for path in bare.package.rglob('*.py')]
    configs = bare.package / '.mim' / 'configs'
    bases = configs / '_base_'
    for path in configs.rglob('*.py'):
        assert bases in path.parents or names.count(path.name) == 1, path
    tools = [p.name for p in (bare.package / '.mim/tools').rglob('*.py')]
    assert len(tools) == len(set(tools))


def test_without_the_frameworks_the_doctor_names_them(bare, tmp_path):
    bare.run('-c', 'import mmattn', cwd=tmp_path)
    result = bare.run('-m', 'mmattn.doctor', cwd=tmp_path, check=False)
    assert result.returncode == 1, result.stderr
    line = next(x for x in result.stdout.splitlines() if 'not installed' in x)
    for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmpretrain'):
        assert name in line


def test_every_tool_helps(installed, tmp_path):
    tools = sorted((installed.package / '.mim' / 'tools').rglob('*.py'))
    result = installed.run('-c', HELP, *map(str, tools), cwd=tmp_path)
    assert result.stdout.startswith(f'{installed.package}/__init__.py')
    # `conversion.py` and `archives.py` are modules of the converters.
    assert result.stdout.count('usage: ') == len(tools) - 2
    assert not list(tmp_path.iterdir())


def test_mim_trains_in_an_empty_folder(trained):
    assert {path.name for path in trained.iterdir()} == {'data', 'work_dirs'}
    assert (trained / 'work_dirs' / DEMO / 'epoch_1.pth').is_file()


def test_mim_tests_as_the_frameworks_do(installed, trained):
    checkpoint = f'work_dirs/{DEMO}/epoch_1.pth'
    installed.mim(
        'test', 'mmattn', f'{DEMO}.py', '-C', checkpoint,
        '--work-dir', 'tested', cwd=trained,
    )  # fmt: skip
    (metrics,) = (trained / 'tested').glob('*/*.json')
    tested = json.loads(metrics.read_text())

    output = installed.run(
        '-c', INTERFACES, DEMO, checkpoint,
        'data/digits/images/val/000001.png', cwd=trained,
    ).stdout  # fmt: skip
    found = json.loads(output.splitlines()[-1])
    assert found['attention'] == 'mmattn.SCSA'
    assert found['detector'] == 'FasterRCNN'
    assert found['plugins'] == 8  # ResNet-18 has as many blocks
    assert found['classes'] == 10
    assert found['scores'] and found['scores'] == pytest.approx(
        found['inferencer']
    )
    assert found['ap'] == tested['coco/bbox_mAP_50']


def test_every_location_of_the_registries_imports():
    for value in vars(registry).values():
        if isinstance(value, registry.Registry) and value.scope == 'mmattn':
            for location in value._locations:
                importlib.import_module(location)


def test_version_is_a_release():
    assert all(part.isdigit() for part in mmattn.__version__.split('.'))
