# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The code of docs/add-your-own.md runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

from mmengine.runner import CheckpointLoader

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs' / 'add-your-own.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', PAGE, flags=re.S)
NAMES = re.findall(r'Save this as `(\S+\.py)`', PAGE)
SHORT = (
    'train_cfg.max_epochs=2',  # the branch is zero in the first step
    'train_cfg.val_interval=1',
    'default_hooks.checkpoint.interval=1',
)


def test_the_module_is_as_short_as_promised():
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 30


def test_an_attention_of_your_own_trains(digits):
    assert len(NAMES) == len(BLOCKS) == 2
    for name, code in zip(NAMES, BLOCKS):
        (digits / name).write_text(code)
    (command,) = re.findall(r'^PYTHONPATH=\. (.*)$', PAGE, flags=re.M)
    words = command.replace('$MMATTN', str(ROOT)).split()
    assert words[0] == 'python'
    result = subprocess.run(
        [sys.executable, *words[1:], '--cfg-options', *SHORT],
        cwd=digits,
        env={**os.environ, 'PYTHONPATH': f'.{os.pathsep}{ROOT}'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    work_dir = digits / 'work_dirs' / Path(NAMES[1]).stem
    file = str(work_dir / 'epoch_2.pth')
    weights = CheckpointLoader.load_checkpoint(file)
    key = 'backbone.layer2.1.contrast_gate.weight'
    learnt = weights['state_dict'][key]
    assert learnt.shape == (2, 48) and learnt.any()
