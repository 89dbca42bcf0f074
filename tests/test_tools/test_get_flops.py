# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import json
from pathlib import Path

import pytest

from mmattn.engine import read_config
from mmattn.engine.cost import build_model, count

TOOL = 'analysis_tools/get_flops.py'
DEMO = Path(__file__).parents[2] / 'configs' / 'demo'
RESNET = DEMO / 'resnet18-scsa_30e_digits.py'
FASTER = DEMO / 'faster-rcnn_r18-scsa_fpn_15e_digits.py'
UPERNET = DEMO / 'upernet_r18-scsa_15e_digits.py'
KEYS = 'params trainable flops elementwise mmengine activations'.split()


def table(capsys):
    """Return the printed lines as lists of words."""
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ['config', 'shape', 'parameters']
    return [line.split() for line in lines]


def test_line_of_each_framework(run_tool, capsys):
    run_tool(TOOL, RESNET, FASTER, UPERNET)
    lines = table(capsys)
    assert [line[:2] for line in lines] == [
        [RESNET.stem, '224x224'],
        [FASTER.stem, '800x1280'],
        [UPERNET.stem, '128x128'],
    ]
    cost = count(build_model(read_config(str(FASTER))))
    assert lines[1][2:5] == [
        f'{cost.params / 1e6:.3f}M',
        f'{cost.trainable / 1e6:.3f}M',
        f'{cost.flops / 1e9:.3f}G',
    ]


@pytest.mark.parametrize(
    ('words', 'shape'), [(['64', '96'], [64, 96]), (['80'], [80, 80])]
)
def test_json_holds_the_exact_numbers(words, shape, run_tool, tmp_path):
    file = tmp_path / 'costs.json'
    run_tool(
        TOOL, RESNET, UPERNET, '--shape', *words, '--json', file,
        '--by-module', 2,
    )  # fmt: skip
    found = json.loads(file.read_text())
    assert [entry['config'] for entry in found] == [str(RESNET), str(UPERNET)]
    for entry in found:
        assert entry['shape'] == shape
        cost = count(build_model(read_config(entry['config'])), shape)
        for key in KEYS:
            assert entry[key] == getattr(cost, key), key
        parts = entry['by_module']
        assert parts['backbone.layer1'] == vars(
            cost.by_module['backbone.layer1']
        )
        assert max(name.count('.') for name in parts) == 1
    assert list(tmp_path.iterdir()) == [file]


def test_modules_are_listed_down_to_a_depth(run_tool, capsys):
    run_tool(TOOL, RESNET, '--by-module', 1, '--shape', 64)
    names = [line[0] for line in table(capsys)]
    assert names == [RESNET.stem, 'backbone', 'neck', 'head']
    run_tool(TOOL, RESNET, '--by-module', 2, '--shape', 64)
    lines = table(capsys)
    names = [line[0] for line in lines]
    first, last = names.index('layer1'), names.index('layer4')
    assert names[1] == 'backbone' and last == first + 3
    # A loss of no cost is not listed.
    assert names[-2:] == ['head', 'fc']
    run_tool(TOOL, RESNET, '--shape', 64)
    assert len(table(capsys)) == 1


def test_options_reach_every_model(run_tool, tmp_path):
    file = tmp_path / 'costs.json'
    run_tool(
        TOOL, RESNET, FASTER, '--shape', 64, '--json', file,
        '--cfg-options', 'model.backbone.frozen_stages=4',
        'model.backbone.depth=34',
    )  # fmt: skip
    for entry in json.loads(file.read_text()):
        assert entry['params'] - entry['trainable'] > 2.9e6


BAD = {
    'no config': ([RESNET, 'nowhere.py'], ['nowhere.py']),
    'three sizes': ([RESNET, '--shape', 1, 2, 3], ['--shape 1 2 3', 'one or']),
    'no size': ([RESNET, '--shape', 0], ['--shape 0']),
    'depth': ([RESNET, '--by-module', -1], ['--by-module -1']),
    'folder': ([RESNET, '--json', 'gone/x.json'], ['gone/x.json', 'folder']),
    'a folder': ([RESNET, '--json', '.'], ['--json . is a folder']),
    'kind': (['{tmp}/kind.py'], ['kind.py', 'PISARoIHead', 'StandardRoIHead']),
    'small': (['{tmp}/small.py', '--shape', 20], ['small.py', 'shape 20 20']),
    'type': (['{tmp}/type.py'], ['FasterRCNNN']),
    'empty': (['{tmp}/empty.py'], ['empty.py', 'no model']),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line(case, run_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = f"_base_ = '{FASTER}'\n"
    swin = DEMO.parent / 'none' / 'swin-tiny-none_1xb128_in1k.py'
    files = {
        'kind': base + "model = dict(roi_head=dict(type='PISARoIHead'))\n",
        'small': f"_base_ = '{swin}'\n",
        'type': base + "model = dict(type='FasterRCNNN')\n",
        'empty': "default_scope = 'mmdet'\n",
    }
    for name, text in files.items():
        (tmp_path / f'{name}.py').write_text(text)
    words, wanted = BAD[case]
    words = [str(word).replace('{tmp}', str(tmp_path)) for word in words]
    if case == 'no config':
        words += ['--json', 'costs.json']
    with pytest.raises(SystemExit) as error:
        run_tool(TOOL, *words)
    message = error.value.code
    assert message.startswith('error: ') and '\n' not in message.strip()
    assert all(text in message for text in wanted), message
    assert not list(tmp_path.glob('*.json*'))
