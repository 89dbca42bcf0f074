# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Damaged data: what is skipped, what is said, and when it stops."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch.utils.data import DataLoader, Dataset

from mmattn.datasets import GuardedDataset
from mmattn.datasets.draws import Draw
from mmattn.errors import DataError

BAD = {2, 5, 6}


class Files(Dataset):
    """Ten images, of which some cannot be read."""

    test_mode = False
    pipeline = 'first'

    def __init__(self, bad=BAD):
        self.bad = bad

    def __len__(self):
        return 10

    def get_data_info(self, index):
        return dict(img_path=f'folder/{index}.jpg')

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError('cannot\nidentify image')
        return dict(index=index)


@pytest.fixture
def lines(monkeypatch):
    """What is logged."""
    lines = []
    monkeypatch.setattr(
        'mmattn.datasets.guarded.print_log',
        lambda text, **_: lines.append(text),
    )
    return lines


def test_damaged_images_are_replaced_and_named_once(lines):
    data = GuardedDataset(Files(), max_skipped=3)
    for _ in range(3):
        found = [data[i]['index'] for i in range(10)]
        assert not BAD & set(found)
        assert [i for i in found if i not in BAD] and len(found) == 10
    assert lines == [
        f'skipped {n} of at most 3: folder/{i}.jpg: OSError: identify image'
        for n, i in ((1, 2), (2, 5), (3, 6))
    ]


def test_one_too_many_stops(lines):
    data = GuardedDataset(Files(), max_skipped=2)
    with pytest.raises(DataError) as caught:
        [data[i] for i in range(10)]
    assert str(caught.value) == (
        'folder/6.jpg: OSError: identify image (damaged images: 3, allowed: '
        'max_skipped=2)'
    )


def test_repeated_images_count_once(lines):
    class Repeated(Files):
        def __len__(self):
            return 30

        def get_data_info(self, index):
            return super().get_data_info(index % 10)

        def __getitem__(self, index):
            return super().__getitem__(index % 10)

    data = GuardedDataset(Repeated(), max_skipped=3)
    assert len([data[i] for i in range(30)]) == 30 and len(lines) == 3


def test_a_lack_of_memory_is_no_damaged_image(lines):
    class Large(Files):
        def __getitem__(self, index):
            raise MemoryError

    with pytest.raises(MemoryError):
        GuardedDataset(Large())[0]


def test_nothing_readable_ends(lines):
    data = GuardedDataset(Files(set(range(10))), max_skipped=100)
    with pytest.raises(DataError):
        data[0]


def test_substitutes_are_those_of_the_draw(lines):
    def drawn(data):
        return [data[Draw(i, (0, 0, i))]['index'] for i in (2, 5, 6, 2, 1)]

    fresh = drawn(GuardedDataset(Files(), max_skipped=9))
    used = GuardedDataset(Files(), max_skipped=9)
    [used[i] for i in range(10)]  # knows what is damaged
    torch.manual_seed(1)
    assert drawn(used) == fresh


@pytest.mark.parametrize('limit', [3, 2])
def test_workers_count_together(limit, lines):
    data = GuardedDataset(Files(), max_skipped=limit)
    loader = DataLoader(data, 2, num_workers=2, collate_fn=list)
    if limit == 3:
        assert len(list(loader)) == 5
        assert data.bad.nonzero().flatten().tolist() == sorted(BAD)
        return
    with pytest.raises(DataError, match='allowed: max_skipped=2') as caught:
        list(loader)
    assert '.jpg: OSError' in str(caught.value).splitlines()[-1]


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_boxes_must_be_finite(bad, lines):
    class Boxes(Files):
        def __getitem__(self, index):
            boxes = torch.ones(3, 4)
            boxes[1, 2] = bad if index == 4 else 1
            truth = InstanceData(bboxes=boxes)
            return dict(
                data_samples=DetDataSample(gt_instances=truth), i=index
            )

    data = GuardedDataset(Boxes(), max_skipped=1)
    assert {data[i]['i'] for i in range(10)} <= set(range(10)) - {4}
    (line,) = lines
    assert 'folder/4.jpg' in line and str(bad) in line


def test_the_wrapped_data_set_answers():
    data = GuardedDataset(Files())
    assert len(data) == 10
    assert data.get_data_info(3) == dict(img_path='folder/3.jpg')
    with pytest.raises(AttributeError):
        data.nothing  # noqa: B018
    data.pipeline = 'second'  # as hooks do
    assert data.dataset.pipeline == data.pipeline == 'second'
    for again in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert again[3] == dict(index=3) and again.pipeline == 'second'


WORKER = """
import os, signal, sys, time
from torch.utils.data import DataLoader, Dataset
from mmattn.datasets import GuardedDataset, guarded

class Slow(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        if index == 1:
            print('loading', flush=True)
            time.sleep(1)
        return index

guarded.GRACE = int(sys.argv[1])
received = []
signal.signal(signal.SIGTERM, lambda *_: received.append('TERM'))
signal.signal(signal.SIGUSR1, lambda *_: received.append('USR1'))
loader = DataLoader(GuardedDataset(Slow()), 2, num_workers=1, collate_fn=list)
print(*loader, *received, flush=True)
"""


def wait_for(process, word):
    for line in process.stdout:  # imports may print, too
        if word in line:
            return
    raise AssertionError(f'{word!r} was not printed')


def test_workers_outlive_signals_to_all_processes():
    process = subprocess.Popen(
        [sys.executable, '-c', WORKER, '60'],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(process, 'loading')
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.killpg(process.pid, number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert output.endswith('[0, 1] [2, 3] USR1 TERM\n')


LEAVING = (
    WORKER.replace('4', '400').replace('sleep(1)', 'sleep(0.1)')
    + """
iterator = iter(DataLoader(
    GuardedDataset(Slow()), 2, num_workers=2, collate_fn=list,
    persistent_workers=True))
next(iterator)
raise SystemExit(75)
"""
)


def test_a_process_that_leaves_does_not_wait_for_its_workers():
    started = time.time()
    result = subprocess.run(
        [sys.executable, '-c', LEAVING, '60'], capture_output=True, text=True
    )
    assert result.returncode == 75 and time.time() - started < 50
    assert 'Traceback' not in result.stderr


def test_workers_do_not_outlive_it_for_ever():
    process = subprocess.Popen(
        [sys.executable, '-c', WORKER.replace('sleep(1)', 'sleep(600)'), '1'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(process, 'loading')
    started = time.time()
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode and time.time() - started < 30
