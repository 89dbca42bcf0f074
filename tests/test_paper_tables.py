# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The models of the papers' tables have the printed size and cost."""

from pathlib import Path

import pytest
import torch
import yaml
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

CONFIGS = Path(__file__).parents[1] / 'configs'
TABLES = yaml.safe_load((CONFIGS / 'paper-tables.yml').read_text())
ROWS = [
    pytest.param(row, id=f'{paper}-{table}-{row["row"]}-{row["config"]}')
    for paper, tables in TABLES.items()
    for table, rows in tables.items()
    for row in rows
]
COSTED = [
    row
    for row in ROWS
    if 'params' in row.values[0] and 'top1' in row.values[0]
]
# Rows that each table has, from the papers.
LENGTHS = {
    'gsca': {1: 5, 2: 8, 3: 2, 4: 27, 5: 31, 6: 6, 7: 9, 10: 6},
    'scsa': {1: 15, 2: 28, 3: 36, 5: 14, 6: 8},
}


def test_every_row_is_here_once():
    for paper, lengths in LENGTHS.items():
        for table, length in lengths.items():
            rows = TABLES[paper][table]
            keys = [(r.get('part'), r.get('dataset'), r['row']) for r in rows]
            assert len(set(keys)) == len(keys) == length


@pytest.mark.parametrize('row', ROWS)
def test_config_of_the_row_exists(row):
    assert (CONFIGS / row['config']).is_file()


@pytest.fixture(scope='module')
def cost():
    """Return millions of parameters and 1e9 multiply-adds, once a config."""
    known = {}

    def measure(config):
        if config not in known:
            cfg = Config.fromfile(CONFIGS / config)
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                model = MODELS.build(cfg.model).eval()
            flops = FlopAnalyzer(model, torch.zeros(1, 3, 224, 224))
            flops.unsupported_ops_warnings(False)
            flops.uncalled_modules_warnings(False)
            params = sum(p.numel() for p in model.parameters())
            known[config] = params / 1e6, flops.total() / 1e9
        return known[config]

    return measure


@pytest.mark.filterwarnings('ignore:Converting a tensor')
@pytest.mark.parametrize('row', COSTED)
def test_size_and_cost_are_the_papers(row, cost):
    params, flops = cost(row['config'])
    matches = abs(params - row['params']) <= 0.01
    if 'flops' in row:
        # One percent, or what printing two decimals loses.
        tolerance = max(0.01 * row['flops'], 0.005)
        matches &= abs(flops - row['flops']) <= tolerance
    # A row that differs says so, and one that says so differs.
    assert matches != ('differs' in row), (params, flops)
