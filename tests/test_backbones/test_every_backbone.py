# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What every backbone promises, in a thin form of each."""

import copy
import pickle

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.model.utils import convert_sync_batchnorm
from probes import THIN, plugin, positions, randomise_norms, thin
from torch import nn

from mmattn.backbones.plugins import PluginBackbone
from mmattn.errors import ConfigError
from mmattn.registry import MODELS

NAMES = list(THIN)
EVERY_POSITION = [(name, p) for name in NAMES for p in positions(name)]
CONVOLUTIONAL = ['ResNet', 'ResNeXt', 'MobileNetV2', 'ShuffleNetV2']


def blocks_of(backbone):
    return [block for stage in backbone.plugin_stages() for block in stage]


def test_every_registered_backbone_is_here():
    registered = {
        name
        for name, cls in MODELS.module_dict.items()
        if isinstance(cls, type) and issubclass(cls, PluginBackbone)
    }
    assert registered == set(THIN)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', NAMES)
def test_without_plugins_is_the_plain_backbone(name, training, image):
    plain_class, kwargs = THIN[name]
    plain = plain_class(**kwargs)
    ours = thin(name)
    assert list(ours.state_dict()) == list(plain.state_dict())
    ours.load_state_dict(plain.state_dict())
    plain.norm_eval = False  # mmdet's default is True
    outputs = []
    for backbone in (plain, ours):
        backbone.train(training)
        outputs.append(backbone(image))
        sum(y.square().mean() for y in outputs[-1]).backward()
    assert all(torch.equal(a, b) for a, b in zip(*outputs))
    for a, b in zip(plain.parameters(), ours.parameters()):
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(('name', 'position'), EVERY_POSITION)
def test_plugin_sees_maps_of_its_width_and_changes_nothing(
    name, position, image
):
    plain = thin(name).eval()
    ours = thin(name, [plugin('Recorder', position)]).eval()
    assert set(plain.state_dict()) == set(ours.state_dict())
    ours.load_state_dict(plain.state_dict())
    for a, b in zip(ours(image), plain(image)):
        assert torch.equal(a, b)
    recorders = [p for _, p in ours.named_plugins()]
    assert len(recorders) == sum(
        position in block.widths() for block in blocks_of(ours)
    )
    for recorder in recorders:
        _, channels, height, width = recorder.seen.shape
        assert channels == recorder.in_channels
        assert height == width  # the image is square, tokens are a map


@pytest.mark.parametrize(('name', 'position'), EVERY_POSITION)
def test_what_a_plugin_returns_goes_on(name, position, image):
    plain = thin(name).eval()
    ours = thin(name, [plugin('Add', position, value=3.0)]).eval()
    ours.load_state_dict(plain.state_dict())
    assert not torch.allclose(ours(image)[-1], plain(image)[-1])


@pytest.mark.parametrize(('name', 'position'), EVERY_POSITION)
def test_plugin_that_saves_its_output_can_be_anywhere(name, position, image):
    ours = thin(name, [plugin('Exp', position)])
    sum(y.sum() for y in ours(image)).backward()


@pytest.mark.parametrize('name', ['MobileNetV2', 'ShuffleNetV2'])
@pytest.mark.parametrize('k', [1, 2, 3])
@pytest.mark.parametrize('place', ['before_norm', 'before_act', 'after_conv'])
def test_position_sees_what_its_name_says(name, k, place, image):
    ours = thin(name, [plugin('Recorder', f'{place}{k}')])
    plain = THIN[name][0](**THIN[name][1])
    plain.load_state_dict(randomise_norms(ours).state_dict())
    plain.eval()
    ours.eval()
    if name == 'MobileNetV2':
        convs, block = plain.layer3[1].conv, ours.layer3[1]
    else:
        convs, block = plain.layers[1][1].branch2, ours.layers[1][1]
    module = convs[k - 1]
    source = module.conv if place == 'before_norm' else module.bn
    if place == 'after_conv' and module.with_activation:
        source = module.activate
    kept = []
    # The activations work in place, hence the copy.
    source.register_forward_hook(lambda m, i, out: kept.append(out.clone()))
    plain(image)
    ours(image)
    assert torch.equal(block.recorder.seen, kept[0])


@pytest.mark.parametrize('name', NAMES)
def test_after_block_is_the_end_of_a_block(name, image):
    ours = thin(name, [plugin('Recorder', 'after_block', blocks=(-1,))])
    ours.eval()
    (*_, last) = ours(image)
    seen = [p for _, p in ours.named_plugins()][-1].seen
    if name == 'SwinTransformer':  # the output has one more norm
        tokens = ours.norm3(seen.flatten(2).transpose(1, 2))
        seen = tokens.transpose(1, 2).reshape(last.shape)
    torch.testing.assert_close(seen, last)


def test_swin_sees_the_attention_branch(image):
    ours = thin('SwinTransformer', [plugin('Recorder', 'after_attn')]).eval()
    block = ours.stages[0].blocks[1]
    kept = []
    block.attn.register_forward_hook(lambda m, i, out: kept.append(out))
    ours(image)
    batch, length, channels = kept[0].shape
    # 64 pixels in patches of four; rows first.
    want = kept[0].reshape(batch, 16, 16, channels).permute(0, 3, 1, 2)
    assert torch.equal(block.recorder.seen, want)


def test_repvgg_stands_around_the_activation(image):
    plugins = [
        plugin('Recorder', 'before_act1', postfix='_a'),
        plugin('Recorder', 'after_conv1', postfix='_b'),
    ]
    block = thin('RepVGG', plugins).eval()
    block(image)
    before, after = (
        block.stage_2[0].recorder_a.seen,
        block.stage_2[0].recorder_b.seen,
    )
    assert (before < 0).any() and torch.equal(before.relu(), after)


@pytest.mark.parametrize('se_cfg', [None, dict(ratio=4, divisor=1)])
def test_repvgg_deploys_with_its_plugins(se_cfg, image):
    arch = dict(THIN['RepVGG'][1]['arch'], se_cfg=se_cfg)
    plugins = [plugin('GSCA', 'before_act1'), plugin('SCSA', 'after_conv1')]
    ours = randomise_norms(thin('RepVGG', plugins, arch=arch)).double()
    ours.eval()
    image = image.double()
    with torch.no_grad():
        want = ours(image)
        ours.switch_to_deploy()
        got = ours(image)
    assert not hasattr(ours.stage_1[0], 'branch_3x3')
    assert len(dict(ours.named_plugins())) == 12
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)


def test_swin_takes_checkpoints_of_the_first_version(image):
    ours = thin('SwinTransformer', [plugin('GSCA', 'after_attn')])
    old = {
        key.replace('norm3.', 'norm.') if key.startswith('norm3.') else key: v
        for key, v in ours.state_dict().items()
    }
    old['stages.0.blocks.1.attn.attn_mask'] = torch.zeros(1)
    other = thin('SwinTransformer', [plugin('GSCA', 'after_attn')])
    other.load_state_dict(dict(old))  # strict: no key may be left over
    for a, b in zip(other.eval()(image), ours.eval()(image)):
        assert torch.equal(a, b)


def test_swin_leaves_checkpoints_of_today_as_they_are():
    ours = thin('SwinTransformer')
    for extra in ('norm.weight', 'stages.0.blocks.1.attn.attn_mask'):
        state = ours.state_dict()
        state[extra] = torch.zeros(1)
        with pytest.raises(RuntimeError, match=extra):
            ours.load_state_dict(state)


@pytest.mark.parametrize('name', NAMES)
def test_plugins_keep_their_start(name):
    ours = thin(name, [plugin('Quarter', positions(name)[-1])])
    ours.init_weights()
    for _, quarter in ours.named_plugins():
        assert (quarter.conv.weight == 0.25).all()


@pytest.mark.parametrize('name', NAMES)
def test_trained_plugins_are_not_started_afresh(name, tmp_path, warned):
    plugins = [plugin('Quarter', positions(name)[-1])]
    trained = thin(name, plugins)
    for _, quarter in trained.named_plugins():
        nn.init.constant_(quarter.conv.weight, 5.0)
    file = str(tmp_path / 'trained.pth')
    torch.save(trained.state_dict(), file)
    ours = thin(name, plugins, pretrained=file)
    ours.init_weights()
    assert not warned()
    for a, b in zip(ours.parameters(), trained.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize('name', NAMES)
def test_frozen_random_plugins_warn(name, warned):
    ours = thin(name, [plugin('SCSA', positions(name)[-1])], frozen_stages=1)
    first, *others = ours.plugin_stages()
    assert not any(p.requires_grad for b in first for p in b.parameters())
    assert all(p.requires_grad for p in others[-1][0].parameters())
    ours.init_weights()
    (message,) = warned()
    assert 'plugin parameters: frozen at random values' in message


@pytest.mark.parametrize('name', NAMES)
def test_batch_norm_in_a_plugin_warns_under_norm_eval(name, warned):
    ours = thin(
        name, [plugin('NormPlugin', positions(name)[-1])], norm_eval=True
    )
    ours.init_weights()
    (message,) = warned()
    assert 'norm_plugin.bn.running_mean' in message


@pytest.mark.parametrize('name', NAMES)
def test_activation_checkpointing_keeps_the_gradients(name, image):
    first, last = positions(name)[0], positions(name)[-1]
    plugins = [plugin('SCSA', first), plugin('GSCA', last)]
    plain = thin(name, plugins)
    saving = thin(name, plugins, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    for backbone in (plain, saving):
        sum(y.square().mean() for y in backbone(image)).backward()
    for a, b in zip(plain.parameters(), saving.parameters()):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize('name', NAMES)
def test_activation_checkpointing_runs_a_branch_twice(name, image):
    inner = positions(name)[0]
    for with_cp, calls in ((False, 1), (True, 2)):
        ours = thin(name, [plugin('Recorder', inner)], with_cp=with_cp)
        sum(y.sum() for y in ours(image.requires_grad_())).backward()
        blocks = dict(ours.named_plugins()).values()
        # RepVGG's positions lie behind its branch.
        want = 1 if name == 'RepVGG' else calls
        assert {recorder.calls for recorder in blocks} == {want}


@pytest.mark.parametrize('name', ['MobileNetV2', 'ShuffleNetV2', 'ResNet'])
def test_a_counter_missing_in_a_checkpoint_costs_no_weights(name, tmp_path):
    plugins = [plugin('CoordAttention', 'after_conv2')]
    trained = thin(name, plugins)
    state = {
        key: value
        for key, value in trained.state_dict().items()
        if not key.endswith('num_batches_tracked')
    }
    file = str(tmp_path / 'trained.pth')
    torch.save(state, file)
    ours = thin(name, plugins, pretrained=file)
    ours.init_weights()
    for a, b in zip(ours.parameters(), trained.parameters()):
        assert torch.equal(a, b)


def test_swin_drops_what_the_plugin_makes_of_the_attention(image):
    plugins = [plugin('Add', 'after_attn', value=1.0)]
    ours = thin('SwinTransformer', plugins, drop_path_rate=0.5).train()
    plain = thin('SwinTransformer', drop_path_rate=0.5).train()
    assert set(ours.state_dict()) == set(plain.state_dict())
    block = ours.stages[2].blocks[1]
    tokens = torch.zeros(64, 16, 64)
    nn.init.zeros_(block.attn.w_msa.qkv.bias)
    nn.init.zeros_(block.attn.w_msa.proj.bias)
    added = block.drop_path(torch.ones(64, 1, 1))
    assert (added == 0).any() and (added > 1).any()
    block.norm2.register_forward_pre_hook(lambda m, x: kept.append(x[0]))
    kept = []
    block(tokens, (4, 4))
    values = kept[0].detach().unique()
    # Tokens of zero: the branch adds one, scaled, or nothing at all.
    assert values[0] == 0 and len(values) == 2


def test_unknown_arguments_name_whose_they_are():
    with pytest.raises(ConfigError) as error:
        thin('SwinTransformer', embed_dims=96)
    assert 'embed_dims' in str(error.value)
    assert 'mmpretrain' in str(error.value)


@pytest.mark.parametrize('name', NAMES)
def test_copies_and_sync_norms_keep_the_plugins(name, image):
    plugins = [
        plugin('NormPlugin', positions(name)[0]),
        plugin('SCSA', positions(name)[-1]),
    ]
    ours = randomise_norms(thin(name, plugins)).eval()
    want = ours(image)
    copies = [
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        convert_sync_batchnorm(copy.deepcopy(ours)),
    ]
    for other in copies:
        assert list(other.state_dict()) == list(ours.state_dict())
        for a, b in zip(other.eval()(image), want):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize('name', CONVOLUTIONAL)
@pytest.mark.parametrize('position', ['before_norm2', 'before_act2'])
def test_fuse_conv_bn_keeps_the_outputs(name, position, image):
    plugins = [plugin('NormPlugin', position)]
    ours = randomise_norms(thin(name, plugins)).double().eval()
    image = image.double()
    want = ours(image)
    fused = fuse_conv_bn(ours)
    assert any(isinstance(m, nn.Identity) for m in fused.modules())
    for a, b in zip(fused(image), want):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('name', NAMES)
def test_stages_and_blocks_choose_the_blocks(name):
    sizes = [len(stage) for stage in thin(name).plugin_stages()]
    last = [i == len(sizes) - 1 for i in range(len(sizes))]
    position = positions(name)[-1]
    count = {
        None: sum(sizes),
        (-1,): len(sizes),
        (0, -1): sum(min(size, 2) for size in sizes),
    }
    for blocks, number in count.items():
        ours = thin(name, [plugin('GSCA', position, blocks=blocks)])
        assert len(dict(ours.named_plugins())) == number
    ours = thin(name, [plugin('GSCA', position, last, blocks=(0,))])
    (found,) = ours.named_plugins()
    assert found[1] is ours.plugin_stages()[-1][0].gsca


def test_the_first_block_of_mobilenet_does_not_expand():
    ours = thin('MobileNetV2', [plugin('GSCA', 'after_conv1')])
    assert not hasattr(ours.layer1[0], 'gsca')
    assert hasattr(ours.layer2[0], 'gsca')
    first = (True,) + (False,) * 6
    with pytest.raises(ConfigError, match='none of the chosen blocks'):
        thin('MobileNetV2', [plugin('GSCA', 'after_conv1', first)])


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    ('changes', 'names'),
    [
        (dict(position='after_conv9'), ["'after_conv9'"]),
        (dict(stages=(True,)), ['stages=(True,)', 'stages']),
        (dict(stages=1), ['stages=1', 'True or False']),
        (dict(stages='abcd'), ["stages='abcd'", 'True or False']),
        (dict(stages=(0, 1, 2, 3)), ['stages=(0, 1, 2, 3)']),
        (dict(blocks=(9, 0)), ['blocks=(9, 0)', 'blocks']),
        (dict(blocks=0), ['blocks=0', 'tuple']),
        (dict(blocks=()), ['blocks=()', 'tuple']),
        (dict(blocks=(True,)), ['blocks=(True,)', 'tuple']),
        (dict(cfg=None), ['no type']),
        (dict(cfg=dict(type=3)), ['plugin type 3']),
        (
            dict(cfg=dict(type='mmattn.SE', norm_cfg=dict(type='Foo'))),
            ['plugin SE', 'Foo'],
        ),
        (dict(block=(0,)), ["['block']", 'blocks']),
    ],
)
def test_wrong_plugins_are_refused(name, changes, names):
    cfg = dict(cfg=dict(type='mmattn.GSCA'), position=positions(name)[-1])
    with pytest.raises(ConfigError) as error:
        thin(name, [{**cfg, **changes}])
    if 'position' in changes:
        names = [*names, *positions(name)]
    assert all(n in str(error.value) for n in names), error.value


def test_init_cfg_and_pretrained_exclude_each_other():
    with pytest.raises(ConfigError, match='init_cfg or pretrained'):
        thin('RepVGG', pretrained='a.pth', init_cfg=dict(type='Kaiming'))
