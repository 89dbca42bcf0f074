# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import os
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / 'configs' / 'demo'
SHORT = (
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
    'default_hooks.checkpoint.interval=1',
)


@pytest.fixture(scope='session', autouse=True)
def _unformatted():
    """Leave out the layout of a config's text: half the time of a run."""
    with pytest.MonkeyPatch.context() as patch:
        # mmengine has it by its own name, onedl-mmengine imports it late.
        for module in ('mmengine.config.config', 'yapf.yapflib.yapf_api'):
            patch.setattr(
                f'{module}.FormatCode',
                lambda text, **_: (text, True),
                raising=False,
            )
        yield


@pytest.fixture(scope='session')
def digits(load_tool, tmp_path_factory):
    """A folder whose data/digits is a miniature of the demo data."""
    root = tmp_path_factory.mktemp('workspace')
    load_tool('dataset_converters/digits.py').make_digits(
        root / 'data' / 'digits', train=8, val=4, cls_train=2, cls_val=1
    )
    return root


@pytest.fixture(scope='session')
def trained(digits, load_tool):
    """Train a demo config for one epoch, once; return its checkpoint."""
    done = {}

    def train(name):
        if name not in done:
            argv = sys.argv, os.getcwd()
            sys.argv = ['train.py', str(DEMO / f'{name}.py'), '--cfg-options']
            sys.argv += SHORT
            os.chdir(digits)
            try:
                load_tool('train.py').main()
            finally:
                sys.argv, folder = argv
                os.chdir(folder)
            done[name] = digits / 'work_dirs' / name / 'epoch_1.pth'
        return done[name]

    return train


@pytest.fixture(scope='session')
def demo():
    """The folder of the demo configs."""
    return DEMO


@pytest.fixture(scope='session')
def short():
    """Settings that make a run of a demo one epoch."""
    return SHORT
