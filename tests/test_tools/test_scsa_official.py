# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from pathlib import Path

import numpy as np
import pytest
import torch

from mmattn.backbones import ResNet

TOOL = 'model_converters/scsa_official.py'
ORACLE = Path(__file__).parents[1] / 'test_attention' / 'scsa_official.npz'
PLUGINS = [dict(cfg=dict(type='mmattn.SCSA'), position='after_conv2')]


@pytest.fixture
def official():
    """A checkpoint of a thin ResNet-50 as the official code saves it.

    The SCSA weights of layer1.0, 16 channels, are the recorded ones.
    """
    plain = ResNet(50, base_channels=16).state_dict()
    state = {f'backbone.{key}': value for key, value in plain.items()}
    with np.load(ORACLE) as data:
        for key in data:
            if key.startswith('w:'):
                name = f'backbone.layer1.0.attn.{key[2:]}'
                state[name] = torch.from_numpy(data[key]).float()
    return dict(state_dict=state, meta=dict(epoch=94))


def test_converted_checkpoint_loads_into_the_backbone(
    official, run_tool, tmp_path, capsys
):
    source, out = tmp_path / 'official.pth', tmp_path / 'mmattn.pth'
    torch.save(official, source)
    run_tool(TOOL, source, out)
    assert f'written to {out}' in capsys.readouterr().out
    init_cfg = dict(type='Pretrained', checkpoint=str(out), prefix='backbone.')
    ours = ResNet(50, base_channels=16, plugins=PLUGINS, init_cfg=init_cfg)
    ours.init_weights()
    assert not any(k.startswith('layer1.0.') for k in ours.fresh_plugin_state)
    scsa = ours.layer1[0].scsa.double()
    with np.load(ORACLE) as data:
        want, x = (torch.from_numpy(data[key]) for key in 'yx')
        kernel = torch.from_numpy(data['w:global_dwc_l.weight'])
    torch.testing.assert_close(
        scsa.smsa.convs[3].weight, kernel.float().double()
    )
    torch.testing.assert_close(scsa(x), want, rtol=1e-4, atol=1e-5)
    conv = official['state_dict']['backbone.layer3.1.conv2.weight']
    assert torch.equal(ours.layer3[1].conv2.weight, conv)
    assert torch.load(out, weights_only=True)['meta'] == dict(epoch=94)


def test_other_checkpoints_are_refused(run_tool, tmp_path):
    source, out = tmp_path / 'other.pth', tmp_path / 'out.pth'
    torch.save(dict(state_dict={'conv.weight': torch.zeros(1)}), source)
    with pytest.raises(SystemExit, match='not of the official SCSA code'):
        run_tool(TOOL, source, out)
    with pytest.raises(SystemExit, match='no checkpoint'):
        run_tool(TOOL, tmp_path / 'gone.pth', out)
    assert list(tmp_path.iterdir()) == [source]


# Two blocks of the official MobileNetV2: the first does not expand.
BLOCKS = {
    'layer1.0.conv.0.conv.weight': 'layer1.0.conv.0.conv.weight',
    'layer1.0.conv.1.q.weight': 'layer1.0.scsa.pcsa.q.weight',
    'layer1.0.conv.1.local_dwc.weight': 'layer1.0.scsa.smsa.convs.0.weight',
    'layer1.0.conv.1.norm.bias': 'layer1.0.scsa.pcsa.norm.bias',
    'layer1.0.conv.2.conv.weight': 'layer1.0.conv.1.conv.weight',
    'layer1.0.conv.2.bn.bias': 'layer1.0.conv.1.bn.bias',
    'layer2.0.conv.1.bn.bias': 'layer2.0.conv.1.bn.bias',
    'layer2.0.conv.2.local_dwc.weight': 'layer2.0.scsa.smsa.convs.0.weight',
    'layer2.0.conv.3.conv.weight': 'layer2.0.conv.2.conv.weight',
}


def test_mobilenet_blocks_lose_the_module_among_their_convolutions(
    official_to_mmattn,
):
    from mmattn.backbones import MobileNetV2

    old = {f'backbone.{key}': i for i, key in enumerate(BLOCKS)}
    new = {f'backbone.{key}': i for i, key in enumerate(BLOCKS.values())}
    assert official_to_mmattn(old) == new
    plugins = [dict(cfg=dict(type='mmattn.SCSA'), position='after_conv2')]
    names = set(MobileNetV2(plugins=plugins).state_dict())
    assert set(BLOCKS.values()) <= names


def test_a_module_elsewhere_is_refused(official_to_mmattn):
    with pytest.raises(ValueError, match='layer1.0.att is neither attn'):
        official_to_mmattn({'layer1.0.att.local_dwc.weight': torch.zeros(1)})
