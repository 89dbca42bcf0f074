# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The models of the papers' tables have the printed size and cost."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Rows that each table has, from the papers.
LENGTHS = {
    'gsca': {1: 5, 2: 8, 3: 2, 4: 27, 5: 31, 6: 6, 7: 9, 10: 6},
    'scsa': {1: 15, 2: 28, 3: 36, 4: 48, 5: 14, 6: 8},
}


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool('analysis_tools/paper_tables.py')


@pytest.fixture(scope='module')
def built_params():
    """What docs/paper-tables.md says, by table and row in order."""
    cells = {}
    text = (ROOT / 'docs' / 'paper-tables.md').read_text()
    for section in text.split('\n## ')[1:]:
        paper, number = re.match(r'(\w+), table (\d+)', section).groups()
        lines = [line for line in section.splitlines() if '.py |' in line]
        rows = [line.split(' | ') for line in lines]
        cells[paper.lower(), int(number)] = [row[3] for row in rows]
    return cells


def agrees(paper, number, row, base, cost, base_cost):
    """Tell whether FLOPs agree, by the measure that the table allows."""
    built = cost.mmengine / 1e9
    if (paper, number) == ('scsa', 3):  # averages over images of COCO
        added = (cost.mmengine - base_cost.mmengine) / 1e9
        return abs(added - (row['flops'] - base['flops'])) <= 0.05
    share = {('gsca', 5): 0.005, ('scsa', 5): 0.001}.get((paper, number), 0.01)
    # Printing two decimals loses half of one.
    return abs(built - row['flops']) <= max(share * row['flops'], 0.005)


@pytest.mark.parametrize(
    ('paper', 'number'), [(p, n) for p, ns in LENGTHS.items() for n in ns]
)
def test_size_and_cost_are_the_papers(paper, number, tool, built_params):
    rows = tool.TABLES[paper][number]
    keys = {(r.get('part'), r['config'], r['row']) for r in rows}
    assert len(keys) == len(rows) == LENGTHS[paper][number]
    for row, documented in zip(rows, built_params[paper, number], strict=True):
        cost = tool.cost_of(row['config'])
        params = tool.millions(paper, cost)
        assert documented == f'{params:.3f}', row
        matches = True
        if 'params' in row:
            matches = abs(params - row['params']) <= 0.01
        if 'flops' in row:
            base = tool.baseline_of(row['config'], rows) or row
            base_cost = tool.cost_of(base['config'])
            matches &= agrees(paper, number, row, base, cost, base_cost)
        # A row that differs says so, and one that says so differs.
        assert matches != ('differs' in row), (row, params, cost.mmengine)


def test_baseline_is_the_same_model_without_attention(tool):
    rows = tool.TABLES['scsa'][3]
    for config, want in {
        'se/cascade-rcnn_r101-se-bn_fpn_1x_coco.py': 'cascade-rcnn_r101',
        'ca/faster-rcnn_r50-ca_fpn_1x_coco.py': 'faster-rcnn_r50',
    }.items():
        base = tool.baseline_of(config, rows)['config']
        assert base == f'none/{want}-none_fpn_1x_coco.py'
    rows = tool.TABLES['scsa'][2]
    config = 'scsa/mobilenet-v2-scsa_1xb96_in1k.py'
    base = tool.baseline_of(config, rows)['config']
    assert base == 'none/mobilenet-v2-none_1xb96_in1k.py'
    assert tool.baseline_of(config, rows[:11]) is None


@pytest.fixture
def work_dirs(tmp_path):
    """Two runs of one config."""
    for run, scores in {
        '20260101_0': (0.1,),
        '20260102_0': (0.4, 0.39),
    }.items():
        log = tmp_path / 'faster-rcnn_r50-gsca_fpn_1x_coco' / run / 'vis_data'
        log.mkdir(parents=True)
        lines = [{'loss': 1.0}, *({'coco/bbox_mAP': s} for s in scores)]
        (log / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    return tmp_path


@pytest.mark.parametrize(
    ('format', 'line'),
    [
        ('markdown', '| 39.0 | 39.00 (best 40.00) |  |'),
        ('csv', ',39.0,39.00 (best 40.00),'),
        ('html', '<td>39.0<td>39.00 (best 40.00)<td>'),
    ],
)
def test_scores_of_runs_are_filled_in(format, line, work_dirs, run_tool):
    out = work_dirs / 'tables'
    run_tool(
        'analysis_tools/paper_tables.py', '--only', 'gsca/3', '--format',
        format, '--out', out, '--work-dirs', work_dirs,
    )  # fmt: skip
    (found,) = [x for x in out.read_text().splitlines() if '39.00' in x]
    assert line in found and 'gsca/faster-rcnn_r50-gsca_fpn' in found


def test_unknown_table_lists_the_known(run_tool):
    with pytest.raises(SystemExit) as error:
        run_tool('analysis_tools/paper_tables.py', '--only', 'scsa/9')
    assert 'scsa/9' in str(error.value) and 'gsca/10' in str(error.value)
