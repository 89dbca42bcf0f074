# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Files of others: what the tools refuse, and how they are told to trust."""

import argparse
import ast
import json
import os
import pickle
import sys
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.fileio.handlers import file_handlers
from mmengine.registry import MODELS
from mmengine.registry import registry as registries

from mmattn.compat import checkpoint
from mmattn.engine import one_line_errors, read_config, safety
from mmattn.errors import ConfigError

ROOT = Path(__file__).parents[2]
CLASSIFIER = 'resnet18-scsa_30e_digits'
DETECTOR = 'faster-rcnn_r18-scsa_fpn_15e_digits'
FORCE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


@pytest.fixture(autouse=True)
def switches(monkeypatch):
    """Undo after a test what the options switch for a whole process."""
    monkeypatch.setattr(checkpoint._state, 'trusted', False)
    for name in ('get_object_from_string', 'import_module'):
        monkeypatch.setattr(registries, name, getattr(registries, name))
    monkeypatch.setattr(Config, 'fromfile', Config.fromfile)
    for suffix, handler in list(file_handlers.items()):
        monkeypatch.setitem(file_handlers, suffix, handler)
    monkeypatch.setenv(FORCE, '0')
    monkeypatch.delenv(FORCE)


class Touch:
    """Pickles as a call that creates a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def target(tmp_path):
    """What must not be created."""
    path = tmp_path / 'created'
    yield path
    assert not path.exists()


@pytest.fixture
def altered(trained, tmp_path):
    """Give a trained checkpoint another content of its meta data."""

    def alter(extra, name=CLASSIFIER):
        loaded = torch.load(trained(name), weights_only=False)
        loaded['meta']['extra'] = extra
        path = tmp_path / 'altered.pth'
        torch.save(loaded, path)
        return path

    return alter


# Every tool that reads a checkpoint, and where; {} is the file.
READERS = {
    'resume': ['train.py', 'CONFIG', '--resume', '{}'],
    'backbone': ['train.py', 'CONFIG', '--backbone', '{}'],
    'load_from': ['train.py', 'CONFIG', '--cfg-options', 'load_from={}'],
    'init_cfg': [
        'train.py',
        'CONFIG',
        '--cfg-options',
        'model.backbone.init_cfg.type=Pretrained',
        'model.backbone.init_cfg.checkpoint={}',
    ],
    'test': ['test.py', 'CONFIG', '{}'],
    'infer': ['infer.py', 'CONFIG', '{}', 'IMAGE', '--out-dir', 'out'],
    'attention': [
        'visualization/vis_attention.py',
        *('CONFIG', '{}', 'IMAGE', '--out-dir', 'out'),
    ],
    'cam': [
        'visualization/vis_cam.py',
        *('IMAGE', '--model', 'CONFIG', '{}', '--out-dir', 'out'),
    ],
    'erf': [
        'visualization/vis_erf.py',
        *('IMAGE', '--model', 'CONFIG', '{}', '--out-dir', 'out'),
    ],
    'compare': [
        'visualization/compare_detections.py',
        *('--model', 'DETECTOR', '{}', '--out-dir', 'out'),
    ],
    'robustness': [
        'analysis_tools/robustness.py',
        *('--model', 'CONFIG', '{}', '--rotations', 'rot90'),
    ],
    'converter': ['model_converters/scsa_official.py', '{}', 'out.pth'],
}


@pytest.mark.parametrize('name', READERS)
def test_a_malicious_checkpoint_is_refused(
    name, altered, digits, demo, target, run_tool, monkeypatch
):
    if name == 'cam':
        pytest.importorskip('pytorch_grad_cam')
    path = altered(Touch(target))
    image = next((digits / 'data/digits/images/val').iterdir())
    known = {
        'CONFIG': demo / f'{CLASSIFIER}.py',
        'DETECTOR': demo / f'{DETECTOR}.py',
        'IMAGE': image,
    }
    tool, *words = READERS[name]
    words = [known.get(word, str(word).format(path)) for word in words]
    monkeypatch.chdir(digits)
    with pytest.raises(SystemExit) as caught:
        run_tool(tool, *words)
    line = caught.value.code
    assert line.startswith(f'error: {path} is not loaded: ')
    assert 'posix.mkdir' in line and '--trust-checkpoint' in line
    assert '\n' not in line


@pytest.mark.parametrize('option', ['--trust-checkpoint', '--safe-config'])
@pytest.mark.parametrize(
    'tool', sorted({words[0] for words in READERS.values()})
)
def test_every_reader_has_the_switches(tool, option, run_tool, capsys):
    with pytest.raises(SystemExit) as caught:
        run_tool(tool, '--help')
    assert not caught.value.code
    reads_configs = 'converter' not in tool
    assert (option in capsys.readouterr().out) == (
        reads_configs or option == '--trust-checkpoint'
    )


@pytest.mark.parametrize('order', [1, -1])
def test_a_trusted_checkpoint_is_read(
    order, altered, digits, demo, run_tool, tmp_path, monkeypatch, load_tool
):
    """By the tool and by what calls torch.load itself, in any order."""
    path = altered(argparse.Namespace(lr=0.1))
    config = tmp_path / 'config.yml'
    run_tool('dump_config.py', demo / f'{CLASSIFIER}.py', config)
    image = next((digits / 'data/digits/images/val').iterdir())
    out = tmp_path / 'out'
    words = [config, path, image, '--out-dir', out]
    with pytest.raises(SystemExit, match='argparse.Namespace'):
        run_tool('infer.py', *words)
    switches = ['--trust-checkpoint', '--safe-config'][::order]
    run_tool('infer.py', *words, *switches)
    assert list(out.iterdir())
    assert torch.load(path, weights_only=False)['meta']['extra'].lr == 0.1


def test_nothing_else_reads_pickles():
    """No code of mmattn but the loader asks torch for more than weights."""
    loaders = ('load', 'load_url', 'load_state_dict_from_url', 'loads')
    found = []
    for path in sorted(ROOT.glob('mmattn/**/*.py')) + sorted(
        (ROOT / 'tools').rglob('*.py')
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            owner, _, name = called.rpartition('.')
            if name in loaders and owner in ('torch', 'pickle', 'torch.hub'):
                safe = 'weights_only=True' in ast.unparse(node)
                found.append((path.name, called, safe))
    unsafe = {(name, called) for name, called, safe in found if not safe}
    assert unsafe == {('checkpoint.py', 'torch.load')}


@pytest.fixture
def safe(switches):
    safety.run_no_configs()


@pytest.fixture
def write(tmp_path):
    """Write a config of a few settings."""

    def write(settings, name='config.json'):
        path = tmp_path / name
        text = settings if isinstance(settings, str) else json.dumps(settings)
        path.write_text(text)
        return path

    return write


def test_a_dump_trains_like_its_config(
    demo, digits, trained, short, run_tool, tmp_path, monkeypatch
):
    """The detector, whose pipeline takes tuples and no lists."""
    expected = checkpoint.load(str(trained(DETECTOR)))
    dump = tmp_path / 'dump.json'
    run_tool('dump_config.py', demo / f'{DETECTOR}.py', dump)
    monkeypatch.chdir(digits)
    words = ['--safe-config', '--work-dir', tmp_path / 'run']
    run_tool('train.py', dump, *words, '--cfg-options', *short)
    weights = checkpoint.load(str(tmp_path / 'run' / 'epoch_1.pth'))
    for key, value in expected['state_dict'].items():
        assert torch.equal(weights['state_dict'][key], value), key


@pytest.mark.parametrize('suffix', ['yaml', 'json'])
@pytest.mark.parametrize(
    'name',
    [
        f'demo/{DETECTOR}.py',
        'scsa/upernet_r50-scsa_4xb4-80k_ade20k-512x512.py',
    ],
)
def test_a_dump_is_the_config(name, suffix, tmp_path):
    """To the type: tuples are tuples, and the order of keys is kept."""
    cfg = read_config(str(ROOT / 'configs' / name))
    safety.dump_plain_config(cfg, tmp_path / f'x.{suffix}')
    read = safety.read_plain_config(tmp_path / f'x.{suffix}')
    assert repr(read.to_dict()) == repr(cfg.to_dict())


def test_what_no_dump_can_hold_is_said(tmp_path):
    with pytest.raises(ConfigError, match='x.py must end in .yml, .yaml, '):
        safety.dump_plain_config(Config(), tmp_path / 'x.py')
    for suffix in ('json', 'yml'):
        path = tmp_path / f'x.{suffix}'
        with pytest.raises(ConfigError, match=f'cannot be written to {path}'):
            safety.dump_plain_config(Config(dict(act=torch.nn.ReLU)), path)
        assert not path.exists()


def test_python_is_refused(run_tool, write, target):
    path = write(f'import os\nos.mkdir({str(target)!r})\n', 'config.py')
    with pytest.raises(SystemExit) as caught:
        run_tool('train.py', path, '--safe-config')
    command = f'python tools/dump_config.py {path} config.yml'
    assert caught.value.code.startswith(f'error: --safe-config: {path} would')
    assert command in caught.value.code and '\n' not in caught.value.code


EVALUATED = "__import__('os').mkdir('created')"


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(_base_='other.py'), '_base_ runs code'),
        (dict(custom_imports=dict(imports=['x'])), 'custom_imports runs code'),
        (dict(a=[dict(sys_path='.')]), 'a.0.sys_path runs code'),
        (dict(a=dict(trust_remote_code=True)), 'trust_remote_code runs code'),
        (dict(nms=dict(type=EVALUATED)), 'nms.type holds what could be eval'),
        (dict(op='lambda x: x'), 'op holds'),
        (dict(op='[0 for os.x in [print]]'), 'op holds'),
        ({EVALUATED: 1}, 'holds'),
        (dict(default_scope='evil'), "default_scope is 'evil', none of mma"),
        (dict(model=dict(_scope_='evil')), "model._scope_ is 'evil'"),
        ([1], 'holds no settings'),
        ('{', 'Expecting property name'),
    ],
)
def test_a_setting_that_runs_code_is_refused(settings, message, safe, write):
    path = write(settings)
    with pytest.raises(ConfigError) as caught:
        read_config(str(path))
    assert str(caught.value).startswith(f'--safe-config: {path}')
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_yaml_makes_no_objects(safe, write, target):
    attack = f'a: !!python/object/apply:os.mkdir [{target}]\n'
    for name in ('config.yml', 'config.yaml'):
        with pytest.raises(ConfigError, match='could not determine a const'):
            read_config(str(write(attack, name)))
        # As a list of classes or annotations would be read.
        with pytest.raises(Exception, match='could not determine a const'):
            mmengine.load(write(attack, name))
    path = write('a: !!python/tuple [1, [2, !!python/tuple [3]]]', 'x.yml')
    assert read_config(str(path)).a == (1, [2, (3,)])


def test_yaml_and_pickles_would_run_code_otherwise(write, tmp_path):
    """What the handlers replaced do, or the tests above would prove little."""
    yaml, pickled = tmp_path / 'by_yaml', tmp_path / 'by_pickle'
    attack = f'a: !!python/object/apply:os.mkdir [{yaml}]\n'
    mmengine.load(write(attack, 'config.yml'))
    path = tmp_path / 'data.pkl'
    path.write_bytes(pickle.dumps(Touch(pickled)))
    mmengine.load(path)
    assert yaml.exists() and pickled.exists()


def test_pickles_of_data_are_refused(safe, target, tmp_path):
    for name in ('data.pkl', 'data.pickle'):
        path = tmp_path / name
        mmengine.dump([1], path)  # test.py --out still writes them
        assert pickle.loads(path.read_bytes()) == [1]
        path.write_bytes(pickle.dumps(Touch(target)))
        with pytest.raises(ConfigError, match='could run code'):
            mmengine.load(path)


def test_nothing_of_the_machine_gets_into_a_config(safe, write, monkeypatch):
    monkeypatch.setenv('SECRET', 'value')
    settings = dict(
        a='{{$SECRET:none}}', b='{{ fileDirname }}', c='{{_base_.x}}'
    )
    assert read_config(str(write(settings))).to_dict() == settings


def test_options_of_the_command_line_are_data(safe, write, target):
    """They may hold what a file may not, but are never evaluated."""
    path = write(dict(a=1))
    text = f"__import__('os').mkdir({str(target)!r})"
    parser = argparse.ArgumentParser()
    safety.add_safety_arguments(parser)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args(['--cfg-options', f'a={text}', 'b=/data(1)'])
    cfg = read_config(str(path), args.cfg_options)
    assert cfg.a == text and cfg.b == '/data(1)'


def test_a_type_is_looked_up_in_registries_alone(target, tmp_path):
    """Types name any function; that is what the option is there for."""
    reached = tmp_path / 'reached'
    MODELS.build(dict(type='os.mkdir', path=str(reached)))
    assert reached.exists()

    safety.run_no_configs()
    for kind in ('os.mkdir', 'builtins.open', 'torch.nn.ReLU'):
        with (
            pytest.raises(SystemExit, match=f'error: {kind} is not in the'),
            one_line_errors(),
        ):
            MODELS.build(dict(type=kind, path=str(target)))
    assert MODELS.build(dict(type='mmattn.SCSA', in_channels=8))
    assert MODELS.build(dict(type='ReLU'))


def test_a_type_imports_no_module_beside_the_frameworks(
    safe, target, tmp_path, monkeypatch
):
    package = tmp_path / 'evil'
    package.mkdir()
    (package / '__init__.py').touch()
    code = f'import os; os.mkdir({str(target)!r})'
    (package / 'registry.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    for cfg in (dict(type='evil.X'), dict(type='X', _scope_='evil')):
        with pytest.raises(KeyError, match='registry'):
            MODELS.build(cfg)
    assert 'evil.registry' not in sys.modules


def test_configs_that_a_model_reads_are_no_code_either(safe, write, target):
    """As mmdet's distillation reads that of the teacher."""
    path = write(f'import os\nos.mkdir({str(target)!r})\n', 'teacher.py')
    with pytest.raises(ConfigError, match='teacher.py would be run as code'):
        Config.fromfile(path)


def test_who_calls_torch_load_gets_weights(safe, target, tmp_path):
    """As timm and mmpretrain's retrievers do, even if they ask for more."""
    path = tmp_path / 'x.pth'
    torch.save(Touch(target), path)
    for options in ({}, dict(weights_only=False)):
        with pytest.raises(pickle.UnpicklingError, match='mkdir'):
            torch.load(path, **options)
