# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import copy
import pickle
import random
from itertools import islice

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, Dataset

from mmattn.datasets import GuardedDataset, ResumableBatchSampler, seed_all
from mmattn.datasets import draws as module
from mmattn.datasets.draws import Draw


class Noise(Dataset):
    """Samples of three generators, and their indices."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        noise = random.random(), np.random.rand(), torch.rand(()).item()
        return dict(index=index, noise=noise)

    def get_data_info(self, index):
        # Two of three are wide.
        return dict(width=1 + index % 3, height=2)


@pytest.fixture
def sample(monkeypatch):
    """Draw an epoch as one of several processes; return the batches."""

    def sample(
        rank=0,
        processes=1,
        size=4,
        epoch=0,
        start=0,
        workers=0,
        sampler=DefaultSampler,
        take=None,
        **settings,
    ):
        ranks = lambda: (rank, processes)  # noqa: E731
        monkeypatch.setattr(module, 'get_dist_info', ranks)
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', ranks)
        dataset = GuardedDataset(Noise())
        batches = ResumableBatchSampler(
            sampler(dataset, shuffle=True, seed=0), size, seed=7, **settings
        )
        batches.begin(epoch, start, seed=7)
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=list,
        )
        torch.manual_seed(torch.seed() % 1000)  # nothing may depend on it
        return list(islice(loader, take))

    return sample


def flat(batches):
    samples = [sample for batch in batches for sample in batch]
    return sorted((s['index'], s['noise']) for s in samples)


@pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])
@pytest.mark.parametrize('processes', [2, 5])
def test_processes_share_the_batches_of_one(sample, sampler, processes):
    take = 6
    one = sample(size=processes * 2, sampler=sampler, take=take)
    many = [
        sample(rank, processes, size=2, sampler=sampler, take=take)
        for rank in range(processes)
    ]
    # The last one of an epoch of ten may be filled up.
    for step in range(10 // (processes * 2)):
        assert flat([one[step]]) == flat([m[step] for m in many])


@pytest.mark.parametrize('start', [0, 1, 2, 3])
@pytest.mark.parametrize(
    'settings',
    [
        {},
        dict(workers=2),
        dict(drop_last=True),
        dict(batch_sampler=dict(type='mmdet.AspectRatioBatchSampler')),
        dict(sampler=InfiniteSampler, take=9),
    ],
)
def test_an_epoch_begins_anywhere(sample, start, settings):
    whole = sample(**settings)
    rest = dict(settings)
    if 'take' in rest:
        rest['take'] -= start
    assert sample(start=start, **rest) == whole[start:]


def test_workers_change_nothing(sample):
    assert sample(workers=2) == sample(workers=0)


def test_epochs_and_samples_differ(sample):
    numbers = {
        number
        for epoch in range(3)
        for _, noise in flat(sample(epoch=epoch))
        for number in noise
    }
    assert len(numbers) == 3 * 10 * 3


def test_the_start_counts_once():
    batches = ResumableBatchSampler(DefaultSampler(Noise(), seed=1), 4, seed=1)
    batches.begin(0, 2, seed=1)
    assert [len(list(batches)) for _ in range(2)] == [1, 3]


def test_a_resumed_run_brings_its_seed():
    sampler = DefaultSampler(Noise(), seed=1)
    batches = ResumableBatchSampler(sampler, 4, seed=1)
    other = ResumableBatchSampler(DefaultSampler(Noise(), seed=2), 4, seed=2)
    batches.begin(0, 0, seed=2)
    assert [[(i, i.key) for i in b] for b in batches] == [
        [(i, i.key) for i in b] for b in other
    ]


def test_seeding_all_is_a_function_of_the_key():
    def numbers(*key):
        seed_all(*key)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert numbers(1, 2) == numbers(1, 2)
    keys = [(1, 2), (2, 1), (1, 2, 1), (1, 2, 0), (12,), (0, 1, 2)]
    assert len({n for key in keys for n in numbers(*key)}) == 3 * len(keys)


@pytest.mark.parametrize(
    'through', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_draws_reach_other_processes(through):
    draw = through(Draw(3, (1, 2, 4)))
    assert draw == 3 and draw.key == (1, 2, 4)
