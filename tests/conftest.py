# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

import mmattn  # noqa: F401 (before any framework)

# Small jobs: more threads than cores for each process only wait for each
# other.
PROCESSES = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
CORES = min(2, os.cpu_count() or 1)
torch.set_num_threads(max(1, CORES // PROCESSES))

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def load_tool():
    """Import a script of tools/ by its path below that folder."""

    def load(path):
        spec = importlib.util.spec_from_file_location(
            Path(path).stem, ROOT / 'tools' / path
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope='session')
def official_to_mmattn(load_tool):
    return load_tool('model_converters/scsa_official.py').convert


@pytest.fixture
def run_tool(load_tool, monkeypatch):
    """Run a script of tools/ in this process with a command line."""

    def run(path, *words):
        monkeypatch.setattr(sys, 'argv', [path, *map(str, words)])
        load_tool(path).main()

    return run
