# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Every attention in every backbone, forward and backward."""

import pytest
import torch
from probes import ATTENTIONS, THIN, positions, thin

from mmattn.registry import MODELS

# The papers' positions; where a backbone lacks one, the last before the end.
POSITIONS = {
    'GSCA': 'before_act2',
    'SE': 'after_conv3',
    'ECA': 'after_conv3',
    'FCA': 'after_conv3',
    'CBAM': 'after_conv3',
    'ShuffleAttention': 'after_conv3',
    'GSoP': 'after_conv3',
    'NonLocal': 'after_block',
    'DoubleAttention': 'after_block',
}
# Thin backbones have widths that 16 frequencies do not divide.
SETTINGS = {'FCA': dict(frequencies='top8')}


@pytest.mark.parametrize('backbone', THIN)
@pytest.mark.parametrize('attention', ATTENTIONS)
def test_trains_one_step(attention, backbone):
    name = attention.removeprefix('mmattn.')
    position = position_of(name, backbone)
    cfg = dict(type=attention, **SETTINGS.get(name, {}))
    model = thin(backbone, [dict(cfg=cfg, position=position)])
    for parameter in model.parameters():
        if not parameter.any():  # zero starts hold gradients back
            torch.nn.init.normal_(parameter, std=0.1)
    plugins = dict(model.named_plugins())
    assert plugins
    image = torch.randn(2, 3, 64, 64)
    sum(y.square().mean() for y in model(image)).backward()
    for key, plugin in plugins.items():
        for parameter in plugin.parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.step()
    assert all(y.isfinite().all() for y in model.eval()(image))


@pytest.mark.parametrize('backbone', ['ResNet', 'ResNeXt'])
def test_augmented_convolutions_train_one_step(backbone):
    model = thin(
        backbone,
        dcn=dict(type='mmattn.AAConv2d', num_heads=4),
        stage_with_dcn=(False, True, True, True),
    )
    sum(y.square().mean() for y in model(torch.randn(2, 3, 64, 64))).backward()
    assert model.layer2[0].conv2.rel_w.grad.any()


#: What README.md and docs/plugins.md say does not fit.
REFUSED = {
    ('FCA', 'MobileNetV2'),
    ('FCA', 'ShuffleNetV2'),
    ('SCSA', 'ShuffleNetV2'),
    ('SMSA', 'ShuffleNetV2'),
}
FULL = {
    'ResNet': dict(depth=50),
    'ResNeXt': dict(depth=50, groups=32, base_width=4),
    'RepVGG': dict(arch='A0'),
}


def position_of(attention, backbone):
    wanted = POSITIONS.get(attention, 'after_conv2')
    here = positions(backbone)
    return wanted if wanted in here else here[-2]


@pytest.mark.parametrize('backbone', THIN)
def test_widths_of_the_real_backbones_are_refused_as_documented(backbone):
    model = MODELS.get(backbone)(**FULL.get(backbone, {}))
    blocks = [block for stage in model.plugin_stages() for block in stage]
    refused = set()
    for attention in ATTENTIONS:
        name = attention.removeprefix('mmattn.')
        position = position_of(name, backbone)
        for width in {b.widths()[position] for b in blocks}:
            try:
                with torch.device('meta'):
                    MODELS.get(name)(width)
            except ValueError as error:
                assert f'in_channels={width}' in str(error)
                refused.add((name, backbone))
    assert refused == {pair for pair in REFUSED if pair[1] == backbone}
