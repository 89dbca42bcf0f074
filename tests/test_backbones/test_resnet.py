# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import copy
import pickle

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.models.backbones import ResNet as PlainResNet
from mmdet.models.backbones import ResNeXt as PlainResNeXt
from mmengine.model import ExponentialMovingAverage
from mmengine.model.utils import convert_sync_batchnorm
from probes import plugin, randomise_norms
from torch import nn

from mmattn.backbones import ResNet, ResNeXt
from mmattn.errors import ConfigError

THIN = dict(base_channels=8)
RESNEXT = dict(depth=50, groups=4, base_width=4)
BASIC = (
    'before_norm1 before_act1 after_conv1 before_norm2 after_conv2'
).split()
BOTTLENECK = (
    'before_norm1 before_act1 after_conv1 before_norm2 before_act2 '
    'after_conv2 before_norm3 after_conv3'
).split()
EVERY_POSITION = [
    *((18, position) for position in BASIC),
    *((50, position) for position in BOTTLENECK),
]


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    ('plain', 'ours', 'kwargs'),
    [
        (PlainResNet, ResNet, dict(depth=18)),
        (PlainResNet, ResNet, dict(depth=50)),
        (PlainResNet, ResNet, dict(depth=50, deep_stem=True, avg_down=True)),
        (PlainResNet, ResNet, dict(depth=50, style='caffe')),
        (PlainResNet, ResNet, dict(depth=50, dilations=(1, 1, 2, 4))),
        (PlainResNeXt, ResNeXt, RESNEXT),
    ],
)
def test_without_plugins_is_the_plain_backbone(
    plain, ours, kwargs, training, image
):
    plain = plain(**kwargs, **THIN, norm_eval=False)
    ours = ours(**kwargs, **THIN)
    assert list(ours.state_dict()) == list(plain.state_dict())
    ours.load_state_dict(plain.state_dict())
    outputs = []
    for backbone in (plain, ours):
        backbone.train(training)
        outputs.append(backbone(image))
        sum(y.sum() for y in outputs[-1]).backward()
    assert all(torch.equal(a, b) for a, b in zip(*outputs))
    for a, b in zip(plain.parameters(), ours.parameters()):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(('depth', 'position'), EVERY_POSITION)
def test_position_sees_what_its_name_says(depth, position, image):
    ours = ResNet(depth, **THIN, plugins=[plugin('Recorder', position)])
    plain = PlainResNet(depth, **THIN)
    plain.load_state_dict(randomise_norms(ours.eval()).state_dict())
    plain.eval()
    block = plain.layer2[1]
    step, k = position[:-1], position[-1]
    # The block's activation works in place, hence the copy.
    source = getattr(
        block, f'{"conv" if step == "before_norm" else "norm"}{k}'
    )
    kept = []
    source.register_forward_hook(lambda m, i, out: kept.append(out.clone()))
    plain(image)
    want = kept[0]
    last = '2' if depth == 18 else '3'
    if step == 'after_conv' and k != last:
        want = want.relu()
    ours(image)
    assert torch.equal(ours.layer2[1].recorder.seen, want)
    assert ours.layer2[1].recorder.in_channels == want.shape[1]


@pytest.mark.parametrize('position', ['after_conv1', 'after_conv2'])
def test_resnext_plugins_have_the_grouped_width(position, image):
    ours = ResNeXt(**RESNEXT, plugins=[plugin('Recorder', position)])
    ours(image)
    for block in ours.layer3:
        assert block.recorder.in_channels == block.conv2.in_channels
        assert block.recorder.in_channels == block.recorder.seen.shape[1]


def test_same_keys_and_outputs_as_the_stock_plugin_mechanism(image):
    plugins = [plugin('SCSA', 'after_conv2'), plugin('GSCA', 'after_conv3')]
    stock = PlainResNet(50, **THIN, plugins=plugins)
    stock.eval()  # mmdet's returns None
    ours = ResNet(50, **THIN, plugins=plugins).eval()
    ours.load_state_dict(stock.state_dict())
    for a, b in zip(ours(image), stock(image)):
        assert torch.equal(a, b)


def test_plugins_of_one_position_run_in_list_order(image):
    plugins = [
        plugin('Add', 'after_conv2', value=1.0),
        plugin('Recorder', 'after_conv2'),
        plugin('Add', 'after_conv2', value=2.0, postfix='_2'),
        plugin('Recorder', 'after_conv2', postfix='_2'),
    ]
    block = ResNet(50, **THIN, plugins=plugins)
    block(image)
    block = block.layer1[0]
    torch.testing.assert_close(block.recorder_2.seen, block.recorder.seen + 2)


def test_stages_choose_where_plugins_go():
    stages = (False, True, False, True)
    ours = ResNet(18, **THIN, plugins=[plugin('GSCA', 'after_conv1', stages)])
    for i, wanted in enumerate(stages, 1):
        for block in getattr(ours, f'layer{i}'):
            assert hasattr(block, 'gsca') == wanted


@pytest.mark.parametrize(('depth', 'position'), EVERY_POSITION)
def test_fuse_conv_bn_keeps_the_outputs(depth, position, image):
    plugins = [
        plugin('SCSA', position),
        plugin('GSCA', 'before_norm1'),
        plugin('NormPlugin', 'after_conv1'),
    ]
    ours = randomise_norms(ResNet(depth, **THIN, plugins=plugins)).eval()
    want = ours(image)
    fused = fuse_conv_bn(ours)
    assert isinstance(fused.layer1[0].downsample or nn.Identity(), nn.Module)
    for a, b in zip(fused(image), want):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_fuse_conv_bn_still_fuses_what_it_can():
    ours = ResNet(50, **THIN, plugins=[plugin('GSCA', 'before_norm2')])
    block = fuse_conv_bn(ours.eval()).layer1[0]
    assert isinstance(block.norm1, nn.Identity)
    assert isinstance(block.norm2, nn.BatchNorm2d)
    assert isinstance(block.norm3, nn.Identity)


def test_copies_and_sync_norms_keep_the_plugins(image):
    plugins = [
        plugin('NormPlugin', 'before_act2'),
        plugin('SCSA', 'after_conv2'),
    ]
    ours = randomise_norms(ResNet(50, **THIN, plugins=plugins)).eval()
    want = ours(image)
    average = ExponentialMovingAverage(ours, momentum=0.5)
    average.update_parameters(ours)
    copies = [
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        average.module,
        convert_sync_batchnorm(copy.deepcopy(ours)),
    ]
    assert isinstance(copies[-1].layer1[0].norm_plugin.bn, nn.SyncBatchNorm)
    for other in copies:
        assert list(other.state_dict()) == list(ours.state_dict())
        for a, b in zip(other.eval()(image), want):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize('depth', [18, 50])
def test_activation_checkpointing_keeps_the_gradients(depth, image):
    plugins = [plugin('SCSA', 'after_conv1'), plugin('GSCA', 'before_act1')]
    plain = ResNet(depth, **THIN, plugins=plugins)
    saving = ResNet(depth, **THIN, plugins=plugins, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    for backbone in (plain, saving):
        sum(y.square().mean() for y in backbone(image)).backward()
    for a, b in zip(plain.parameters(), saving.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize('cls', [ResNet, ResNeXt])
def test_from_scratch_last_norms_start_at_zero(cls):
    kwargs = RESNEXT if cls is ResNeXt else dict(depth=50)
    ours = cls(**kwargs, **THIN, plugins=[plugin('SCSA', 'after_conv2')])
    ours.init_weights()
    assert all((block.norm3.weight == 0).all() for block in ours.layer2)


@pytest.mark.parametrize('position', BOTTLENECK)
def test_plugins_keep_their_start(position):
    ours = ResNet(50, **THIN, plugins=[plugin('Quarter', position)])
    ours.init_weights()
    for block in ours.layer3:
        assert (block.quarter.conv.weight == 0.25).all()


def test_zero_init_residual_can_be_switched_off():
    ours = ResNet(18, **THIN, zero_init_residual=False)
    ours.init_weights()
    assert all((block.norm2.weight == 1).all() for block in ours.layer2)


def test_contract_dilation_halves_the_first_blocks_dilation(image):
    from mmseg.models.backbones import ResNet as SegResNet

    kwargs = dict(
        strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True
    )
    theirs = SegResNet(50, stem_channels=8, **THIN, **kwargs)
    theirs.eval()
    ours = ResNet(50, **THIN, **kwargs).eval()
    ours.load_state_dict(theirs.state_dict())
    for a, b in zip(ours(image), theirs(image)):
        assert torch.equal(a, b)


def test_train_returns_the_backbone():
    ours = ResNet(18, **THIN)
    assert ours.train() is ours and ours.eval() is ours


def test_frozen_random_plugins_warn(warned):
    ours = ResNet(
        18, **THIN, frozen_stages=1, plugins=[plugin('SCSA', 'after_conv1')]
    )
    ours.init_weights()
    (message,) = warned()
    assert '34 plugin parameters: frozen at random values' in message
    assert 'layer1.0.scsa.smsa.convs.0.weight' in message
    assert 'layer2' not in message
    ours.train()
    assert not any(p.requires_grad for p in ours.layer1.parameters())
    assert all(p.requires_grad for p in ours.layer2.parameters())


def test_batch_norm_in_a_plugin_warns_under_norm_eval(warned):
    stages = (True, False, False, False)
    ours = ResNet(
        18,
        **THIN,
        norm_eval=True,
        plugins=[plugin('NormPlugin', 'after_conv1', stages)],
    )
    ours.init_weights()
    (message,) = warned()
    assert 'layer1.0.norm_plugin.bn.running_mean' in message
    assert 'norm_eval=False' in message


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_checkpoint_without_the_plugins_keys_warns(prefix, tmp_path, warned):
    plain = {
        prefix + k: v for k, v in PlainResNet(18, **THIN).state_dict().items()
    }
    file = str(tmp_path / 'plain.pth')
    torch.save(dict(state_dict=plain), file)
    init_cfg = dict(type='Pretrained', checkpoint=file, prefix=prefix or None)
    plugins = [plugin('SCSA', 'after_conv1')]
    ours = ResNet(18, **THIN, init_cfg=init_cfg, plugins=plugins)
    ours.init_weights()
    (message,) = warned()
    assert '136 plugin parameters: not in the checkpoint' in message
    assert 'layer1.0.scsa.smsa.convs.0.weight' in message


def test_checkpoint_with_the_plugins_is_silent(tmp_path, warned):
    plugins = [
        plugin('SCSA', 'after_conv1'),
        plugin('NormPlugin', 'after_conv2'),
    ]
    trained = randomise_norms(ResNet(18, **THIN, plugins=plugins))
    file = str(tmp_path / 'trained.pth')
    torch.save(trained.state_dict(), file)
    ours = ResNet(
        18,
        **THIN,
        plugins=plugins,
        frozen_stages=2,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint=file),
    )
    ours.init_weights()
    assert not warned()
    for a, b in zip(ours.parameters(), trained.parameters()):
        assert torch.equal(a, b)


def test_parameter_free_plugins_are_silent(tmp_path, warned):
    file = str(tmp_path / 'plain.pth')
    torch.save(PlainResNet(18, **THIN).state_dict(), file)
    ours = ResNet(
        18,
        **THIN,
        frozen_stages=1,
        norm_eval=True,
        plugins=[plugin('GSCA', 'before_act1')],
        init_cfg=dict(type='Pretrained', checkpoint=file),
    )
    ours.init_weights()
    assert not warned()


@pytest.mark.parametrize(
    ('plugins', 'names'),
    [
        ([plugin('SCSAA', 'after_conv2')], ["'mmattn.SCSAA'", 'mmattn.GSCA']),
        (
            [dict(cfg=dict(type='mmdet.Nope'), position='after_conv2')],
            ["'mmdet.Nope'", 'custom_imports'],
        ),
        ([plugin('SCSA', 'after_conv4')], ["'after_conv4'", *BOTTLENECK]),
        ([plugin('SCSA', 'before_act3')], ["'before_act3'", *BOTTLENECK]),
        (
            [plugin('SCSA', 'after_conv2', (True, False))],
            ['stages=(True, False)', '4 stages'],
        ),
        ([dict(cfg=dict(type='mmattn.SCSA'))], ['plugins[0]', 'position']),
        ([dict(position='after_conv2', cfg={})], ['plugins[0]', 'type']),
        (
            [dict(plugin('SCSA', 'after_conv2'), stage=(True,) * 4)],
            ["['stage']", 'stages'],
        ),
        ([plugin('SCSA', 'after_conv2', kernel_sizes=(2,))], ['(2,)', 'SCSA']),
        ([plugin('SCSA', 'after_conv2', window=7)], ["'window'", 'SCSA']),
        (
            [plugin('SCSA', 'after_conv2'), plugin('SCSA', 'after_conv1')],
            ["'scsa'", 'postfix'],
        ),
    ],
)
def test_wrong_plugins_are_refused(plugins, names):
    with pytest.raises(ConfigError) as error:
        ResNet(50, **THIN, plugins=plugins)
    assert all(name in str(error.value) for name in names), error.value


def test_basic_blocks_list_their_own_positions():
    with pytest.raises(ConfigError) as error:
        ResNet(18, **THIN, plugins=[plugin('SCSA', 'after_conv3')])
    assert ', '.join(BASIC) in str(error.value)


def test_unknown_depth_lists_the_known():
    with pytest.raises(ConfigError, match='18, 34, 50, 101, 152'):
        ResNet(20)
