# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""A checkpoint is whole or not there; damaged ones are passed over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.fileio import get_file_backend

from mmattn.engine import checkpoints
from mmattn.engine.checkpoints import find_fault, newest_checkpoint


@pytest.fixture
def backend():
    return get_file_backend(backend_args=dict(backend='mmattn_atomic'))


def save(path, age):
    torch.save(dict(meta=1, state_dict=dict(w=torch.rand(100, 100))), path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-300])


def empty(path):
    path.write_bytes(b'')


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in the tensor: torch reads it gladly
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)['meta']


@pytest.mark.parametrize('damage', [truncate, empty, flip_a_bit])
def test_the_newest_whole_checkpoint_is_found(damage, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(
        checkpoints, 'print_log', lambda text, **_: lines.append(text)
    )
    assert newest_checkpoint(tmp_path) is None
    newest = save(tmp_path / 'epoch_10.pth', age=10)
    before = save(tmp_path / 'epoch_9.pth', age=20)
    save(tmp_path / 'iter_95.pth', age=25)
    save(tmp_path / 'best_coco_epoch_11.pth', age=5)  # weights alone
    save(tmp_path / 'epoch_12.pth.part', age=1)
    assert newest_checkpoint(tmp_path) == str(newest)
    preempted = save(tmp_path / 'preempted.pth', age=7)
    assert newest_checkpoint(tmp_path) == str(preempted)
    assert lines == []
    for path, age in ((preempted, 7), (newest, 10)):
        damage(path)
        os.utime(path, (1e9 - age, 1e9 - age))
    assert newest_checkpoint(tmp_path) == str(before)
    assert [line.split(' is damaged')[0] for line in lines] == [
        str(preempted), str(newest),
    ]  # fmt: skip
    assert find_fault(newest) and not find_fault(before)


def test_any_damaged_byte_is_a_fault_and_no_error(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save(dict(w=torch.rand(3)), path)
    content = path.read_bytes()
    assert find_fault(path) == ''
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        assert isinstance(find_fault(path), str)


def test_a_file_is_replaced_as_a_whole(backend, tmp_path):
    path = tmp_path / 'new' / 'file'
    backend.put(b'old', path)
    seen = []
    replace = os.replace

    def watch(source, target):
        seen.append((path.read_bytes(), Path(source).read_bytes()))
        replace(source, target)

    os.replace = watch
    try:
        backend.put(b'newer', path)
    finally:
        os.replace = replace
    assert seen == [(b'old', b'newer')] and path.read_bytes() == b'newer'
    assert os.listdir(path.parent) == ['file']


LIMITED = """
import resource, signal, sys
from mmengine.fileio import get_file_backend
import mmattn.engine.checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
backend = get_file_backend(backend_args=dict(backend='mmattn_atomic'))
try:
    backend.put(b'x' * 5000, sys.argv[1])
except OSError as error:
    print(type(error).__name__)
"""


def test_a_disk_without_room_leaves_the_old_file(backend, tmp_path):
    # A limit of the file's size fails in the midst of a write, as a full
    # disk does.
    path = tmp_path / 'file'
    backend.put(b'old', path)
    output = subprocess.run(
        [sys.executable, '-c', LIMITED, str(path)],
        capture_output=True,
        text=True,
    )
    assert output.stdout == 'OSError\n', output.stderr
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['file']


def test_a_killed_writer_leaves_the_old_file(backend, tmp_path):
    path = tmp_path / 'file'
    backend.put(b'old', path)
    code = LIMITED.replace('SIG_IGN', 'SIG_DFL').replace(
        'resource.setrlimit',
        'resource.setrlimit(4, (0, 0)); resource.setrlimit',
    )
    output = subprocess.run([sys.executable, '-c', code, str(path)])
    assert output.returncode == -signal.SIGXFSZ
    assert path.read_bytes() == b'old'
    assert os.path.getsize(f'{path}.part') <= 1000
    backend.put(b'new', path)
    assert os.listdir(tmp_path) == ['file']


def test_files_are_removed_late_and_not_if_written_again(backend, tmp_path):
    old, again, gone = (tmp_path / name for name in ('old', 'again', 'gone'))
    for path in (old, again, gone):
        backend.put(b'1', path)
        backend.remove(path)
        assert path.exists()
    backend.put(b'2', again)
    gone.unlink()
    backend.clear()
    assert os.listdir(tmp_path) == ['again']
    backend.put(b'3', old)
    backend.clear()
    assert old.exists()
