# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Checkpoints of a real Runner; this file is also the script that trains."""

import argparse
import hashlib
import http.server
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import threading
import types
import zipfile
from pickle import UnpicklingError

import numpy as np
import pytest
import torch

import mmattn  # noqa: F401 (registers the types)
from mmattn.compat import checkpoint
from mmattn.errors import ConfigError

try:
    from mmengine.evaluator import BaseMetric
    from mmengine.hooks import Hook
    from mmengine.logging import HistoryBuffer
    from mmengine.model import BaseModel
    from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
except ImportError:
    pytest.skip('mmengine is not installed', allow_module_level=True)

ROOT = pathlib.Path(__file__).parents[2]
unsafe_globals = getattr(
    torch.serialization, 'get_unsafe_globals_in_checkpoint', None
)
new_torch = pytest.mark.skipif(
    unsafe_globals is None, reason='torch < 2.6 loads everything'
)
#: What reads a checkpoint safely: torch itself where it can.
every_loader = pytest.mark.parametrize(
    'load',
    [checkpoint.load, pytest.param(torch.load, marks=new_torch)],
    ids=['mmattn', 'torch'],
)


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x, mode):
        out = self.layer(torch.stack(x) if isinstance(x, list) else x)
        return dict(loss=out.square().mean()) if mode == 'loss' else [out]


class Accuracy(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(float(data_samples[0].mean()))

    def compute_metrics(self, results):
        return dict(acc=np.float64(np.mean(results)))


class NoteNumpy(Hook):
    """Leaves numbers of numpy where other hooks of OpenMMLab do."""

    def after_train_iter(self, runner, **kwargs):
        runner.message_hub.update_info('seen', np.int64(runner.iter))
        runner.message_hub.update_info('sizes', np.ones((2, 3), np.float32))


class Points(torch.utils.data.Dataset):
    metainfo = dict(classes=('a', 'b'), palette=np.zeros((2, 3), np.uint8))

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(x=torch.randn(2))


def train(work_dir, epochs, resume):
    """Train the toy model with everything a checkpoint can hold."""
    loader = dict(
        dataset=Points(),
        batch_size=4,
        sampler=dict(type='DefaultSampler', shuffle=True),
    )
    runner = Runner(
        Toy(),
        work_dir=work_dir,
        train_dataloader=loader,
        val_dataloader=loader,
        val_evaluator=[Accuracy(prefix='toy')],
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        val_cfg=dict(),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=0.01),
            clip_grad=dict(max_norm=1),
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3),
            dict(type='MultiStepLR', milestones=[2]),
            dict(type='OneCycleLR', eta_max=0.1, total_steps=10),
        ],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(
                type='CheckpointHook', interval=1, save_best='toy/acc'
            ),
        ),
        custom_hooks=[dict(type='EMAHook'), NoteNumpy()],
        experiment_name='toy',
        default_scope='mmengine',
        resume=resume,
    )
    runner.train()
    _, counts = runner.message_hub.get_scalar('train/loss').data
    print('iterations', runner.iter, 'logged', len(counts))


def run_training(work_dir, *arguments):
    return subprocess.run(
        [sys.executable, __file__, str(work_dir), *arguments],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """The work_dir of a finished training of two epochs."""
    folder = tmp_path_factory.mktemp('toy')
    result = run_training(folder, '2')
    assert result.returncode == 0, result.stderr
    return folder


def reload(value, load, **how):
    file = io.BytesIO()
    torch.save(value, file, **how)
    file.seek(0)
    return load(file)


@new_torch
@pytest.mark.parametrize('name', ['epoch_2.pth', 'best_toy_acc_epoch_*.pth'])
def test_checkpoint_of_a_runner_loads(work_dir, name):
    (path,) = sorted(work_dir.glob(name))[-1:]
    assert unsafe_globals(path) == []
    # Without mmattn torch refuses it, also for the reference to a method.
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        assert 'builtins.getattr' in unsafe_globals(path)
    finally:
        torch.serialization.add_safe_globals(allowed)


@every_loader
def test_state_of_a_run_is_read(work_dir, load):
    (path,) = work_dir.glob('best_toy_acc_epoch_*.pth')
    hub = load(str(path))['message_hub']
    history = hub['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.statistics('mean') == history.data[0].mean()
    assert type(hub['runtime_info']['best_score']) is np.float64
    assert hub['runtime_info']['sizes'].shape == (2, 3)


def test_resume(work_dir):
    result = run_training(work_dir, '3', '--resume')
    assert 'iterations 6 logged 6' in result.stdout, result.stderr


@every_loader
def test_schedule_resumes_with_its_curve(work_dir, load):
    schedulers = load(str(work_dir / 'epoch_1.pth'))['param_schedulers']
    curve = schedulers[-1]['anneal_func']
    assert curve(1.0, 0.0, 0.5) == pytest.approx(0.5)


@every_loader
@pytest.mark.parametrize(
    'value',
    [
        np.float64(0.25),
        np.float32(0.5),
        np.float16(0.5),
        np.int64(-3),
        np.uint8(200),
        np.bool_(True),
        np.str_('best'),
        np.arange(6).reshape(2, 3),
        np.ones(3, '>f4'),
        np.array(['a', 'bc']),
        np.zeros((0, 2), bool),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
    ids=repr,
)
def test_numpy_value_loads(value, load):
    loaded = reload(dict(value=value), load)['value']
    assert type(loaded) is type(value)
    assert loaded.dtype.str[1:] == value.dtype.str[1:]
    assert np.array_equal(loaded, value)


@pytest.mark.parametrize('core', ['core', '_core'])
def test_file_of_either_numpy_loads(work_dir, tmp_path, core):
    """numpy 1 writes `numpy.core`, numpy 2 `numpy._core`."""
    path = tmp_path / 'other.pth'
    written = np.float64(0).__reduce__()[0].__module__.encode()
    source = zipfile.ZipFile(work_dir / 'epoch_1.pth')
    with source, zipfile.ZipFile(path, 'w') as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith('data.pkl'):
                assert written in data
                other = f'numpy.{core}.multiarray'.encode()
                data = data.replace(written, other)
            target.writestr(name, data)
    loaded = checkpoint.load(str(path))
    assert loaded['message_hub']['runtime_info']['seen'] == 1


class Reduced:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(path):
    """Objects that would create the file when they are unpickled, or could."""
    touch = Reduced(getattr, pathlib.Path(path), 'touch')
    return {
        'function': Reduced(os.mkdir, path),
        'builtin': Reduced(exec, f'open({path!r}, "w")'),
        'open': Reduced(open, path, 'w'),
        'method': touch,
        'array method': Reduced(getattr, np.ones(3), 'tofile'),
        'globals': Reduced(getattr, HistoryBuffer.mean, '__globals__'),
        'class attribute': Reduced(getattr, HistoryBuffer, '__init__'),
        'class of a class': Reduced(getattr, np.ndarray, '__class__'),
        'object array': np.array([Reduced(open, path, 'w')], dtype=object),
        'harmless objects': np.array([1, 'a'], dtype=object),
        'in a history': HistoryBuffer.__new__(HistoryBuffer),
    }


REFUSALS = {checkpoint.load: (ConfigError, '--trust-checkpoint loads it')}
REFUSALS[torch.load] = UnpicklingError, 'Weights only load failed'


@every_loader
@pytest.mark.parametrize('new_format', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('name', attacks(''))
def test_malicious_file_is_refused(name, new_format, load, tmp_path):
    target = tmp_path / 'created'
    attack = attacks(str(target))[name]
    if name == 'in a history':
        attack.__dict__['_log_history'] = Reduced(open, str(target), 'w')
    kind, message = REFUSALS[load]
    with pytest.raises(kind, match=message) as caught:
        reload(
            dict(state_dict={}, meta=attack),
            load,
            _use_new_zipfile_serialization=new_format,
        )
    assert not target.exists()
    assert load is torch.load or '\n' not in str(caught.value)


@every_loader
def test_scheduler_cannot_be_made_by_a_file(load):
    from mmengine.optim import OneCycleParamScheduler

    for attack in (
        Reduced(OneCycleParamScheduler, None),
        OneCycleParamScheduler.__new__(OneCycleParamScheduler),
    ):
        # Torch refuses it as it refuses the class, in words of its own.
        kind, _ = REFUSALS[load]
        with pytest.raises(kind, match='may not (make|change)|new object'):
            reload(attack, load)


@new_torch
def test_full_loading_is_still_the_exception(tmp_path):
    """`weights_only=False` does what it says, and nobody else asks for it."""
    target = tmp_path / 'created'
    file = io.BytesIO()
    torch.save(Reduced(open, str(target), 'w'), file)
    file.seek(0)
    torch.load(file, weights_only=False).close()
    assert target.exists()
    assert 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' not in os.environ


def test_nothing_is_registered_with_an_old_torch(monkeypatch):
    monkeypatch.delattr(
        torch.serialization, 'get_unsafe_globals_in_checkpoint', False
    )
    added = []
    monkeypatch.setattr(
        torch.serialization, 'add_safe_globals', added.append, False
    )
    checkpoint.allow_checkpoint_types()
    assert added == []


def save(value, path):
    torch.save(value, path)
    return str(path)


@pytest.fixture
def malicious(tmp_path):
    """A file that would create another one beside it."""
    target = tmp_path / 'created'
    attack = Reduced(os.mkdir, str(target))
    yield save(dict(state_dict={}, meta=attack), tmp_path / 'malicious.pth')
    assert not target.exists()


def refuses(name, what='posix.mkdir'):
    """Expect a line that says which file holds what, and what to do."""
    return pytest.raises(
        ConfigError,
        match=rf'^\S*{name} is not loaded: .*{what}.*--trust-checkpoint.*$',
    )


def test_every_way_into_mmengine_refuses_a_file(malicious, tmp_path):
    with refuses('malicious.pth'):
        CheckpointLoader.load_checkpoint(malicious)
    with refuses('malicious.pth'):
        load_checkpoint(Toy(), malicious)
    model = Toy()
    model.init_cfg = dict(type='Pretrained', checkpoint=malicious)
    with refuses('malicious.pth'):
        model.init_weights()
    runner = Runner(Toy(), work_dir=str(tmp_path / 'runs'))
    with refuses('malicious.pth'):
        runner.load_checkpoint(malicious)
    with refuses('malicious.pth'):
        runner.resume(malicious)


def test_no_loader_of_mmengine_is_left():
    modules = {f.__module__ for f in CheckpointLoader._schemes.values()}
    assert modules == {'mmattn.compat.checkpoint'}


def test_a_file_that_is_trusted_loads(tmp_path, monkeypatch):
    meta = argparse.Namespace(lr=0.1)
    path = save(dict(state_dict={}, meta=meta), tmp_path / 'other.pth')
    with refuses('other.pth', 'argparse.Namespace'):
        CheckpointLoader.load_checkpoint(path)
    monkeypatch.setattr(checkpoint._state, 'trusted', False)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    checkpoint.trust_checkpoints()
    assert CheckpointLoader.load_checkpoint(path)['meta'] == meta


@pytest.mark.parametrize('force', ['', 'NO_'])
def test_the_environment_changes_nothing(
    malicious, work_dir, force, monkeypatch
):
    name = f'TORCH_FORCE_{force}WEIGHTS_ONLY_LOAD'
    monkeypatch.setenv(name, '1')
    with refuses('malicious.pth'):
        CheckpointLoader.load_checkpoint(malicious)
    CheckpointLoader.load_checkpoint(str(work_dir / 'epoch_1.pth'))
    assert os.environ[name] == '1'


def test_a_class_cannot_be_changed(tmp_path):
    path = tmp_path / 'class.pth'
    torch.save({}, path)
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    # The state (None, {'max': 1}) for the class HistoryBuffer.
    state = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
    state += b'N}X\x03\x00\x00\x00maxK\x01s\x86b.'
    with zipfile.ZipFile(path, 'w') as target:
        for name, data in parts.items():
            data = b'\x80\x02' + state if 'data.pkl' in name else data
            target.writestr(name, data)
    with pytest.raises(ConfigError, match='is not loaded'):
        checkpoint.load(str(path))
    assert callable(HistoryBuffer.max)


def test_programs_and_archives_are_refused(tmp_path):
    script = tmp_path / 'script.pth'
    torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(str(script))
    archive = tmp_path / 'archive.pth'
    with tarfile.open(archive, 'w') as tar:
        for name in ('storages', 'tensors', 'pickle'):
            tar.add(script, name)
    for path in (script, archive):
        with pytest.raises(ConfigError, match=r'pth .*(TorchScript|tar)\b'):
            checkpoint.load(str(path))


@pytest.mark.parametrize('data', [b'', b'hello', b'<html>', b'PK\x03\x04..'])
def test_what_is_no_checkpoint_is_said(data, tmp_path):
    path = tmp_path / 'page.pth'
    path.write_bytes(data)
    line = 'page.pth cannot be read; is it one, and complete?'
    with pytest.raises(ConfigError, match=rf'^the checkpoint \S+{line}.*$'):
        CheckpointLoader.load_checkpoint(str(path))


def test_a_part_of_a_checkpoint_is_said(work_dir, tmp_path):
    path = tmp_path / 'part.pth'
    path.write_bytes((work_dir / 'epoch_1.pth').read_bytes()[:-3000])
    with pytest.raises(ConfigError, match=r'part.pth cannot be read'):
        CheckpointLoader.load_checkpoint(str(path))
    with pytest.raises(FileNotFoundError, match='gone.pth'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'gone.pth'))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server of files; its folder, address, requests and a cache."""
    folder, requests = tmp_path / 'site', []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_request(self, *args):
            requests.append(self.path)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    yield types.SimpleNamespace(
        folder=folder,
        url=f'http://127.0.0.1:{server.server_port}',
        requests=requests,
        cache=tmp_path / 'torch' / 'hub' / 'checkpoints',
    )
    server.shutdown()
    server.server_close()


WEIGHTS = dict(state_dict={'backbone.w': torch.arange(3.0)})


def publish(site, value, name='model'):
    """Put a file on the site under a name with digits of its SHA-256."""
    draft = site.folder / 'draft'
    torch.save(value, draft)
    digits = hashlib.sha256(draft.read_bytes()).hexdigest()[:8]
    return draft.rename(site.folder / f'{name}-{digits}.pth').name


def is_weights(loaded):
    return torch.equal(loaded['state_dict']['backbone.w'], torch.arange(3.0))


def test_a_file_is_fetched_once(site):
    name = publish(site, WEIGHTS)
    for _ in range(2):
        assert is_weights(
            CheckpointLoader.load_checkpoint(f'{site.url}/{name}')
        )
    assert site.requests == [f'/{name}']


def test_digits_that_do_not_match_remove_the_file(site, monkeypatch):
    url = f'{site.url}/model-0123abcd.pth'
    torch.save(WEIGHTS, site.folder / 'model-0123abcd.pth')
    with pytest.raises(ConfigError, match='not with 0123abcd; removed'):
        CheckpointLoader.load_checkpoint(url)
    assert list(site.cache.iterdir()) == []
    monkeypatch.setattr(checkpoint._state, 'trusted', True)
    assert is_weights(CheckpointLoader.load_checkpoint(url))


def test_a_cached_file_is_checked_again(site):
    name = publish(site, WEIGHTS)
    url = f'{site.url}/{name}'
    CheckpointLoader.load_checkpoint(url)
    torch.save(dict(state_dict={}), site.cache / name)
    with pytest.raises(ConfigError, match=f'{name} is not the file'):
        CheckpointLoader.load_checkpoint(url)
    assert not (site.cache / name).exists()
    assert is_weights(CheckpointLoader.load_checkpoint(url))


def test_a_malicious_file_of_an_address_is_refused(site, tmp_path):
    target = tmp_path / 'created'
    name = publish(site, dict(meta=Reduced(os.mkdir, str(target))))
    with refuses(name):
        CheckpointLoader.load_checkpoint(f'{site.url}/{name}')
    assert not target.exists()


def test_an_address_without_a_file_is_said(site):
    with pytest.raises(
        ConfigError, match=r'^\S*none.pth cannot be had: .*404'
    ):
        CheckpointLoader.load_checkpoint(f'{site.url}/none.pth')
    (site.folder / 'page.pth').write_text('<html>')
    with pytest.raises(ConfigError, match=rf'cached as {site.cache}/page.pth'):
        CheckpointLoader.load_checkpoint(f'{site.url}/page.pth')


@pytest.mark.parametrize(
    ('name', 'digits'),
    [
        ('resnet50-0676ba61.pth', '0676ba61'),
        ('faster_rcnn_1x_coco_20200130-047c8118.pth', '047c8118'),
        ('upernet_20200614_144127-ecc8377b.pth.tar', 'ecc8377b'),
        (f'model-{"0f" * 32}.pth', '0f' * 32),
        ('model-20210101.pth', None),
        ('model-20211301.pth', '20211301'),  # no such month
        ('model-decade.pth', None),
        ('model-v2.pth', None),
        ('resnet50-0676ba61-final.pth', None),
        ('resnet50_0676ba61.pth', None),
    ],
)
def test_digits_are_told_from_dates(name, digits):
    assert checkpoint._digits_in(name) == digits


def test_names_of_models_lead_to_the_same_loader(site, monkeypatch):
    from mmengine.runner import checkpoint as theirs

    urls = {'small': f'{site.url}/{publish(site, WEIGHTS)}'}
    bad = {'bad': f'{site.url}/{publish(site, dict(m=Reduced(print)), "b")}'}
    for name in ('torchvision', 'external', 'mmcls'):
        monkeypatch.setattr(theirs, f'get_{name}_models', lambda: urls | bad)
    monkeypatch.setattr(
        theirs, 'get_deprecated_model_names', lambda: {'old': 'small'}
    )
    for name in (
        'torchvision://small',
        'modelzoo://small',
        'open-mmlab://small',
        'openmmlab://old',
    ):
        assert is_weights(CheckpointLoader.load_checkpoint(name))
    loaded = CheckpointLoader.load_checkpoint('mmcls://small')
    assert list(loaded['state_dict']) == ['w']
    for scheme in ('torchvision', 'open-mmlab', 'mmcls'):
        with refuses('pth', 'print'):
            CheckpointLoader.load_checkpoint(f'{scheme}://bad')
        with pytest.raises(ConfigError, match=f"{scheme} has no 'huge'"):
            CheckpointLoader.load_checkpoint(f'{scheme}://huge')


def test_stores_lead_to_the_same_loader(site, malicious, monkeypatch):
    files = {'good': site.folder / publish(site, WEIGHTS)}
    files['bad'] = pathlib.Path(malicious)

    class Backend:
        def get(self, name):
            return files[name.rpartition('/')[2]].read_bytes()

    class Model(types.SimpleNamespace):
        def download(self, path):
            pathlib.Path(path).write_bytes(files[self.name].read_bytes())

    monkeypatch.setattr(
        'mmengine.fileio.get_file_backend', lambda *_, **__: Backend()
    )
    cloud = types.ModuleType('pavi.modelcloud')
    cloud.get = lambda name: Model(name=name)
    monkeypatch.setitem(sys.modules, 'pavi', types.ModuleType('pavi'))
    monkeypatch.setitem(sys.modules, 'pavi.modelcloud', cloud)
    for store in ('s3://bucket/', 'ceph:s3://bucket/', 'pavi://'):
        good = CheckpointLoader.load_checkpoint(store + 'good')
        assert is_weights(good)
        with refuses('bad'):
            CheckpointLoader.load_checkpoint(store + 'bad')


if __name__ == '__main__':
    train(sys.argv[1], int(sys.argv[2]), '--resume' in sys.argv)
