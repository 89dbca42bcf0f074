# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import json
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[3] / 'configs'
# The detector of the configs in the size of a test.
THIN = """
_base_ = {base!r}
model = dict(
    backbone=dict(depth=18, base_channels=8, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16),
    ),
)
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(max_epochs=1)
# One of its name would write to the folder of an earlier run.
visualizer = dict(name={base!r})
"""


@pytest.fixture
def convert(run_tool, tmp_path, monkeypatch):
    """Run a converter in a folder of its own."""

    def run(script, *words):
        monkeypatch.chdir(tmp_path)
        run_tool(f'dataset_converters/{script}.py', *words)

    return run


@pytest.fixture
def train_once(run_tool, tmp_path, monkeypatch):
    """Train a config of configs/none/, thin, for an epoch, and evaluate it.

    The data are below data/ of tmp_path. Returns the scores of validation.
    """

    def run(name):
        monkeypatch.chdir(tmp_path)
        base = str(CONFIGS / 'none' / name)
        Path('thin.py').write_text(THIN.format(base=base))
        run_tool('train.py', 'thin.py', '--work-dir', 'run')
        (log,) = Path('run').glob('*/vis_data/scalars.json')
        records = [json.loads(line) for line in log.read_text().splitlines()]
        assert 'loss' in records[0]
        return records[-1]

    return run


@pytest.fixture
def refuse(convert, tmp_path):
    """Run a converter that is to end with one line and write nothing.

    Returns the line.
    """

    def run(script, *words):
        before = sorted(tmp_path.rglob('*'))
        with pytest.raises(SystemExit) as caught:
            convert(script, *words)
        # A text as the exit code is printed and means exit code 1.
        message = caught.value.code
        assert message.startswith('error: ') and '\n' not in message
        assert sorted(tmp_path.rglob('*')) == before
        return message

    return run
