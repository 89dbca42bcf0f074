# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The README's examples run as they stand."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def python_blocks():
    text = (ROOT / 'README.md').read_text()
    return re.findall(r'```python\n(.*?)```', text, flags=re.S)


def test_config_example_builds(python_blocks, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(python_blocks[0])
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope('mmdet'):
        backbone = MODELS.build(cfg.model).backbone
    found = [name for name, _ in backbone.named_plugins()]
    assert len(found) == 13 and not any('layer1' in n for n in found)


def test_python_example_runs(python_blocks):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(python_blocks[1], {})
    assert '(1, 2048, 7, 7)' in output.getvalue()


@pytest.mark.parametrize(
    'page',
    ['README.md', *(f'docs/{p.name}' for p in (ROOT / 'docs').glob('*.md'))],
)
def test_files_that_the_docs_name_exist(page):
    text = (ROOT / page).read_text()
    named = re.findall(r'(?:configs|tools|docs|requirements)/[\w./-]+\w', text)
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_table_of_attentions_is_current():
    # In a process of its own: other tests add to the registry.
    command = [sys.executable, ROOT / 'tools/update_readme.py', '--check']
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_demo_has_its_score_in_the_readme():
    text = (ROOT / 'README.md').read_text()
    for path in (ROOT / 'configs' / 'demo').glob('*.py'):
        assert f'`{path.stem}`' in text
