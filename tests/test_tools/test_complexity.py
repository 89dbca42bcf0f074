# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Costs are counted right, and exponents are those of what was planted."""

import csv
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mmattn.attention
from mmattn.attention import Attention, list_attentions
from mmattn.registry import MODELS

TOOL = 'analysis_tools/complexity.py'
FOLDER = Path(__file__).parents[2] / 'tools' / 'analysis_tools'
ONE = ('--pixels', '4x4', '--channels', '8', '--at-channels', '8')
ONE += ('--at-pixels', '4x4', '--repeat', '1')
MAP = 4 * 8 * 16 * 16  # bytes of a map of 8 channels and 16 x 16 pixels


@pytest.fixture
def tool(load_tool, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return load_tool(TOOL)


@pytest.fixture
def run(run_tool, monkeypatch, capsys):
    """Run the tool; return what it prints."""
    monkeypatch.syspath_prepend(FOLDER)

    def run(*words):
        run_tool(TOOL, *words)
        return capsys.readouterr().out

    return run


@pytest.fixture
def plant(monkeypatch):
    """Register attentions for the time of a test."""
    MODELS.import_from_location()  # or it would register into the copy
    table = dict(MODELS.module_dict)
    monkeypatch.setattr(MODELS, '_module_dict', table)

    def plant(cls):
        table[cls.__name__] = cls
        return cls

    return plant


class Planted(Attention):
    def __init__(self, in_channels, init_cfg=None):
        super().__init__(init_cfg)
        self.in_channels = in_channels


class Linear(Planted):
    """Keeps the map and what is computed of it."""

    def forward(self, x):
        return x.exp() * x


class Quadratic(Planted):
    """Keeps a value for every pair of pixels, and next to nothing else."""

    ran = []

    def forward(self, x):
        if not x.is_meta:
            self.ran.append(tuple(x.shape))
        flat = x.flatten(2).mean(1)
        pairs = (flat[:, :, None] * flat[:, None]).softmax(-1)
        return x + (pairs @ flat[..., None]).mT.unflatten(2, x.shape[2:])


class Slow(Planted):
    """Takes a hundredth of a second for each pixel."""

    def forward(self, x):
        if not x.is_meta:
            time.sleep(x.shape[2] * x.shape[3] / 100)
        return x * 2


class Even(Planted):
    def __init__(self, in_channels, init_cfg=None):
        super().__init__(in_channels, init_cfg)
        if in_channels % 2:
            raise ValueError(f'in_channels={in_channels} must be even')

    def forward(self, x):
        return x * x


def rows_of(path):
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def cells(text, name):
    """Return what the Markdown tables say of an attention."""
    lines = [line.split('|')[1:-1] for line in text.splitlines()]
    return [
        [cell.strip() for cell in line]
        for line in lines
        if line and line[0].strip() == name
    ]


# ----------------------------------------------------------------------- fit


@pytest.mark.parametrize('power', [-1, 0, 0.5, 1, 2, 3.25])
def test_exponent_of_exact_powers(tool, power):
    sizes = [3, 10, 64, 1000]
    found = tool.exponent(sizes, [7 * size**power for size in sizes])
    assert found == pytest.approx(power, abs=1e-9)


def test_exponent_is_the_least_squares_one(tool):
    sizes, costs = [1, 2, 4, 8, 16], [3, 4, 11, 12, 50]
    wanted = np.polyfit(np.log(sizes), np.log(costs), 1)[0]
    assert tool.exponent(sizes, costs) == pytest.approx(wanted)


def test_no_exponent_where_there_is_none(tool):
    assert tool.exponent([64], [3]) is None
    assert tool.exponent([64, 128], [0, 0]) is None


@pytest.mark.parametrize(
    ('number', 'kept'), [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (9, 5)]
)
def test_upper_half(tool, number, kept):
    rows = list(range(number))
    assert tool.upper_half(rows) == rows[-kept:]


# --------------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    ('module', 'maps'),
    [
        (Linear(8), 2),
        (nn.Conv2d(8, 8, 1), 1),  # its weights are there anyway
        (nn.BatchNorm2d(8).eval(), 1),
        (nn.Sequential(nn.Sigmoid(), nn.Tanh()), 2),
        (nn.ReLU(), 1),
    ],
)
def test_bytes_kept_are_those_of_maps(tool, module, maps):
    x = torch.randn(1, 8, 16, 16)
    assert tool.bytes_kept(module, x) == pytest.approx(maps * MAP, abs=100)


class Chain(Planted):
    """Ten steps, of which nothing is kept."""

    def forward(self, x):
        for _ in range(10):
            x = x * 2
        return x


@pytest.mark.parametrize(
    ('cls', 'maps'),
    [
        # Beside map and gradient: result, gradient of the map, and
        (Chain, 2 + 3),  # a gradient between,
        (Linear, 2 + 5),  # exp(x), a gradient for it, and one to be added.
    ],
)
def test_expected_bytes_are_those_alive_at_once(tool, plant, cls, maps):
    plant(cls)
    size = tool.Size(8, 16, 16)
    found = tool.expected_bytes(f'mmattn.{cls.__name__}', size, 3)
    assert found == pytest.approx(3 * maps * MAP, abs=100)


# --------------------------------------------------------------------- sweeps


def test_planted_exponents(run, plant, tmp_path):
    plant(Quadratic)
    plant(Linear)
    file = tmp_path / 'costs.csv'
    printed = run(
        '--attentions', 'Quadratic', 'mmattn.Linear', '--pixels', '4x4',
        '32x32', '16x8', '8x8', '16x32', '--at-channels', 4, '--channels',
        64, 8, 32, 16, '--at-pixels', '4x4', '--repeat', 2, '--csv', file,
    )  # fmt: skip
    rows = rows_of(file)
    for name, power in (('Quadratic', 2), ('Linear', 1)):
        mine = [r for r in rows if r['attention'] == f'mmattn.{name}']
        mine = [r for r in mine if r['axis'] == 'pixels']
        # By size, whatever the order of the command line.
        pixels = [int(r['pixels']) for r in mine]
        assert pixels == [16, 64, 128, 512, 1024]
        assert {r['channels'] for r in mine} == {'4'}
        kept = [int(r['kept']) for r in mine]
        slope = np.polyfit(np.log(pixels[2:]), np.log(kept[2:]), 1)[0]
        assert slope == pytest.approx(power, abs=0.1)
        by_pixels, by_channels = cells(printed, name)
        assert by_pixels[1] == '16x8 to 32x32'
        assert float(by_pixels[4]) == pytest.approx(slope, abs=0.006)
        assert float(by_pixels[7]) == pytest.approx(kept[-1] / 2**20, abs=0.01)
        assert by_channels[1] == '32 to 64'
        # The pairs of pixels are as many with any width.
        assert float(by_channels[4]) == pytest.approx(
            1 if name == 'Linear' else 0, abs=0.05
        )
    assert 'Left out' not in printed
    assert cells(printed, 'copy')[0][4] == '-'  # it keeps nothing


def test_times_are_the_shortest_of_the_repetitions(tool, run, tmp_path):
    file = tmp_path / 'costs.csv'
    run(*ONE, '--attentions', 'SE', '--csv', file, '--repeat', 3)
    for row in rows_of(file):
        assert row['repetitions'] == '3' and row['peak'] == ''
        assert 0 < float(row['inference']) < 10
        assert 0 < float(row['training']) < 10
    spent = iter([0.3, 3.0, 0.2, 2.0, 0.4, 4.0] * 4)

    class Cell(tool.Cell):
        def repeat(self):
            self.times['inference'].append(next(spent))
            self.times['training'].append(next(spent))

    tool.Cell = Cell
    args = tool.parse_args([*ONE, '--repeat', '3'])
    tool.check_args(args)
    size = tool.Size(8, 4, 4)
    (row,) = tool.sweep('mmattn.SE', 'pixels', [size], args, tool.Notes())
    assert (row['inference'], row['training']) == (0.2, 2.0)


def test_every_attention_is_measured(run, tmp_path):
    file, picture = tmp_path / 'costs.csv', tmp_path / 'costs.png'
    printed = run(
        '--pixels', '8x8', '16x16', '--channels', 64, 128, '--at-pixels',
        '8x8', '--repeat', 1, '--csv', file, '--plot', picture,
    )  # fmt: skip
    rows = rows_of(file)
    own = {
        name
        for name in list_attentions()
        if name.removeprefix('mmattn.') in mmattn.attention.__all__
    }
    assert len(own) > 14
    for axis in ('pixels', 'channels'):
        found = [r['attention'] for r in rows if r['axis'] == axis]
        for name in own | {'copy'}:
            assert found.count(name) == 2, name
    assert len(cells(printed, 'SCSA')) == 2
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert sorted(tmp_path.iterdir()) == [file, picture]


def test_too_much_memory_is_not_taken(run, plant, tmp_path):
    plant(Quadratic).ran = ran = []
    file = tmp_path / 'costs.csv'
    printed = run(
        *ONE, '--attentions', 'Quadratic', '--pixels', '8x8', '16x16',
        '64x64', '99x99', '--max-mib', 8, '--csv', file,
    )  # fmt: skip
    mine = [r for r in rows_of(file) if r['attention'] != 'copy']
    sides = [int(r['height']) for r in mine if r['axis'] == 'pixels']
    assert sides == [8, 16]
    assert max(shape[2] for shape in ran) == 16
    left = re.search(
        r'\* mmattn.Quadratic without 64x64, 99x99: --max-mib 8 is too '
        r'little for 64x64, about (\d+) MiB',
        printed,
    )
    # The softmax, its gradient and that of what it is of.
    assert 3 * 64 <= int(left[1]) < 3 * 64 + 8
    assert '8x8 to 16x16' in cells(printed, 'Quadratic')[0]


def test_too_much_time_is_not_taken(run, plant, tmp_path):
    plant(Slow)
    file = tmp_path / 'costs.csv'
    start = time.monotonic()
    printed = run(
        *ONE, '--attentions', 'Slow', '--pixels', '1x1', '2x2', '9x100',
        '100x100', '--repeat', 100, '--max-seconds', 0.2, '--csv', file,
    )  # fmt: skip
    assert time.monotonic() - start < 8  # a repetition of all takes 100
    mine = [r for r in rows_of(file) if r['attention'] == 'mmattn.Slow']
    assert [r['pixels'] for r in mine] == ['1', '4', '16']
    assert all(1 <= int(r['repetitions']) < 20 for r in mine)
    assert 'Slow without 9x100, 100x100: --max-seconds 0.2 is too' in printed


def test_refused_widths_are_told(run, plant, tmp_path):
    plant(Even)
    file = tmp_path / 'costs.csv'
    printed = run(
        *ONE, '--attentions', 'Even', '--at-channels', 3, '--channels', 4, 5,
        8, '--csv', file,
    )  # fmt: skip
    mine = [r for r in rows_of(file) if r['attention'] == 'mmattn.Even']
    assert [(r['axis'], r['channels']) for r in mine] == [
        ('channels', '4'),
        ('channels', '8'),
    ]
    assert '* mmattn.Even without 5: in_channels=5 must be even' in printed
    assert '* mmattn.Even without 4x4: in_channels=3 must be even' in printed


# ---------------------------------------------------------------- bad input


BAD = {
    'name': (['--attentions', 'SEE'], 'mmattn.SEE: must be of mmattn.CBAM'),
    'pixels': (['--pixels', '0x4'], '--pixels 0'),
    'channels': (['--channels', 8, 0], '--channels 0'),
    'repeat': (['--repeat', 0], '--repeat 0'),
    'memory': (['--max-mib', 0], '--max-mib'),
    'time': (['--max-seconds', -1], '--max-seconds'),
    'nothing fits': (['--max-mib', 1e-9], 'nothing was measured'),
    'folder': (['--csv', 'gone/costs.csv'], '--csv gone/costs.csv'),
    'no csv': (['--csv', 'costs.txt'], '--csv costs.txt'),
    'no png': (['--plot', 'costs.svg'], '--plot costs.svg: must be'),
    'gpu': (['--device', 'cuda:99'], '--device cuda:99'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line(case, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, wanted = BAD[case]
    outputs = ['--csv', 'ok.csv', '--plot', 'ok.png']
    with pytest.raises(SystemExit) as error:
        run(*ONE, *outputs, *words)
    message = error.value.code
    assert message.startswith('error: ') and '\n' not in message.strip()
    assert wanted in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'words', [['--pixels', '32'], ['--device', 'gpu'], ['--at-pixels', 'axb']]
)
def test_unreadable_options(words, run, capsys):
    with pytest.raises(SystemExit) as error:
        run(*words)
    assert error.value.code == 2
    assert words[0] in capsys.readouterr().err
