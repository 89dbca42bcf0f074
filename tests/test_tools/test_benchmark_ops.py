# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import csv

import pytest
import torch

from mmattn.attention import SCSA
from mmattn.ops.gsca import reference

TOOL = 'analysis_tools/benchmark_ops.py'


def test_the_papers_listing_is_gsca(load_tool):
    x = torch.randn(2, 12, 5, 7, dtype=torch.float64)
    got = load_tool(TOOL).paper_gsca(x, 3)
    torch.testing.assert_close(got, reference(x, 3, eps=1e-18))


def test_the_papers_equations_are_scsa(load_tool):
    x = torch.randn(2, 16, 15, 9, dtype=torch.float64)
    module = SCSA(16).double()
    got = load_tool(TOOL).paper_scsa(x, module)
    torch.testing.assert_close(got, module(x))


def test_bytes_are_those_of_the_storages(load_tool):
    saved = load_tool(TOOL).bytes_saved
    x = torch.randn(2, 3, 4, 5)
    assert saved(lambda x: x * 2, x) == 0
    assert saved(lambda x: x * x.view_as(x), x) == 4 * x.numel()
    assert saved(lambda x: x.exp() * x, x) == 2 * 4 * x.numel()


def test_ratios_are_printed_and_written(run_tool, tmp_path, capsys):
    run_tool(
        TOOL, '--sizes', '1x64x6x5', '2x128x3x3', '--repeat', '2',
        '--csv', tmp_path / 'ops.csv', '--plot', tmp_path / 'ops.png',
        '--channels-last',
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / 'ops.csv').open()))
    sizes = ['1x64x6x5', '2x128x3x3']
    assert [row['size'] for row in rows[::5]] == 2 * sizes
    assert [row['op'] for row in rows[::10]] == ['gsca', 'scsa']
    for row in rows:
        base = next(
            other
            for other in rows
            if other['path'] == 'paper'
            and (other['op'], other['size']) == (row['op'], row['size'])
        )
        for name in ('inference', 'training', 'saved'):
            ratio = float(row[name]) / float(base[name])
            assert float(row[f'{name}_ratio']) == pytest.approx(ratio)
    printed = capsys.readouterr().out
    assert printed.count('| gsca geometric mean | 1.00 |') == 3
    assert printed.count('| scsa geometric mean | 1.00 |') == 3
    assert (tmp_path / 'ops.png').stat().st_size > 1000


@pytest.mark.parametrize('size', ['64x64', '1xax3x3', '0x4x3x3'])
def test_bad_sizes(run_tool, capsys, size):
    with pytest.raises(SystemExit):
        run_tool(TOOL, '--sizes', size)
    assert '--sizes' in capsys.readouterr().err
