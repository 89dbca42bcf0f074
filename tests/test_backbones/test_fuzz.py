# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Random configs of plugins and of attentions.

Each either builds and runs, forward and backward, with exactly the plugins
that it asks for, or is refused by an error that names what is wrong.

A value is drawn together with its fault: the text that an error must have, or
None for a value that is right. `MMATTN_FUZZ=10000` draws that many configs of
each backbone and module, others in every run.
"""

import collections
import copy
import math
import os
import pickle
import re
import zlib

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from mmcv.cnn.bricks.plugin import infer_abbr
from mmengine.model import BaseModule
from probes import ATTENTIONS, thin

from mmattn.errors import ConfigError
from mmattn.registry import MODELS

EXAMPLES = int(os.environ.get('MMATTN_FUZZ', 0))


def fuzz(name, examples):
    """Run a test on examples that are the same each time."""
    settings = hypothesis.settings(
        max_examples=EXAMPLES or examples,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=True,
    )
    if EXAMPLES:
        return settings
    seed = hypothesis.seed(zlib.crc32(name.encode()))
    return lambda test: seed(settings(test))


# Arguments. A kind is two lists, of right values and of wrong ones.

SIZE = [1, 2, 3, 4, 8], [0, -1, 2.5, '4', None, True, [2]]
ODD = [1, 3, 5, 7], [0, 2, -3, 1.5, '3', None, [3]]
FLAG = [True, False], [1, 0, 'False', None]
ABOVE_ZERO = [0.5, 1, 2.0, 3], [0, -1.0, math.nan, math.inf, '2', None, [1]]
NUMBER = [-1, 0, 0.1, 2.0], [math.nan, -math.inf, 'x', None]
NORM = (
    [None, dict(type='BN'), dict(type='GN', num_groups=1)],
    [
        'BN',
        3,
        {},
        dict(type='Foo'),
        dict(type='LN'),
        dict(type='BN1d'),
        dict(type='IN'),
        dict(type='BN', foo=1),
        dict(type='GN'),
    ],
)


def one_of(*right):
    return list(right), ['foo', None, 3, ['foo']]


def optional(kind):
    right, wrong = kind
    return [None, *right], [value for value in wrong if value is not None]


GATE = one_of('sigmoid', 'softmax')
SMSA = dict(
    kernel_sizes=(
        [(3, 5, 7, 9), [3], (1, 1), [9, 3]],
        [(), (2,), (3, -5), 3, None, '35', (3.0,), (None, 3)],
    ),
    gate=GATE,
    norm=(['group', 'batch', 'layer', None], ['foo', 3, ['group']]),
    norm_first=FLAG,
    shared=FLAG,
)
PCSA = dict(
    window_size=optional(SIZE),
    num_heads=SIZE,
    attn_drop=([0, 0.0, 0.5], [1, -0.1, math.nan, '0.1', None]),
    gate=GATE,
    scale=one_of('channels', 'pixels'),
    shuffle=FLAG,
)
ARGUMENTS = {
    'CBAM': dict(
        reduction=SIZE, kernel_size=ODD, bias=FLAG, norm_cfg=NORM,
        min_width=SIZE,
    ),
    'CPCA': dict(reduction=SIZE),
    'CoordAttention': dict(reduction=SIZE, min_width=SIZE, conv_bias=FLAG),
    'DoubleAttention': dict(
        mid_channels=optional(SIZE), num_maps=optional(SIZE)
    ),
    'ECA': dict(
        kernel_size=optional(ODD), gamma=ABOVE_ZERO, beta=NUMBER,
        kernel_rule=one_of('nearest', 'up', 'two_sizes'),
    ),
    'ELA': dict(kernel_size=ODD, channels_per_group=SIZE, num_groups=SIZE),
    'EMA': dict(groups=SIZE),
    'FCA': dict(
        reduction=SIZE, frequencies=one_of('top1', 'low2', 'bot8', 'top16'),
        dct_size=([7, 8, 14, 56], [6, 0, 7.5, '7', None]),
    ),
    'GSCA': dict(
        channels_per_head=SIZE, num_heads=optional(SIZE), alpha=ABOVE_ZERO,
        reverse=FLAG, similarity=one_of('correlation', 'dot'),
        eps=([1e-8, 1e-3], [0, -1.0, math.nan, '1']),
    ),
    'GSoP': dict(
        mid_channels=SIZE, row_expansion=SIZE, stride=SIZE,
        negative_slope=NUMBER,
    ),
    'NonLocal': dict(
        reduction=SIZE, use_scale=FLAG, sub_sample=FLAG, norm_cfg=NORM,
        mode=one_of(
            'gaussian', 'embedded_gaussian', 'dot_product', 'concatenation'
        ),
    ),
    'PCSA': PCSA,
    'SCSA': SMSA | PCSA | dict(channel_first=FLAG),
    'SE': dict(reduction=SIZE, bias=FLAG, norm_cfg=NORM),
    'SMSA': SMSA,
    'ShuffleAttention': dict(groups=SIZE),
}  # fmt: skip
AA_CONV = dict(
    groups=SIZE, bias=FLAG, num_heads=SIZE,
    key_ratio=([0.1, 0.5, 2], [0, -1, math.nan, 'x', None]),
    value_ratio=([0.1, 0.5, 0.9], [0, 1.0, -1, math.nan, 'x', None]),
    min_head_dim=SIZE, rel_size=SIZE,
    pooled_width=([-1, 0, 4, 128], [math.nan, 'x', None]),
)  # fmt: skip
#: What mmcv brings, with the arguments of its own checks.
STOCK = {
    'ContextBlock': dict(
        ratio=([0.25, 0.5], ['x', None]),
        pooling_type=one_of('att', 'avg'),
        fusion_types=(
            [('channel_add',), ('channel_mul', 'channel_add')],
            [(), 'channel_add', ('foo',), None],
        ),
    ),
    'NonLocal2d': dict(
        reduction=([1, 2, 4], [0, 'x', None]),
        mode=one_of('gaussian', 'dot_product'),
    ),
    'GeneralizedAttention': dict(
        num_heads=([1, 2], [0, 'x', None]),
        attention_type=(['1111', '0010'], ['x', 3, None]),
    ),
}
WIDTHS = [1, 2, 3, 4, 12, 16, 17, 32], [0, -4, 8.0, '8', None, True]


@st.composite
def arguments(draw, kinds):
    """Arguments by name, and the names of those that are wrong."""
    chosen, wrong = {}, set()
    for name, (right, bad) in kinds.items():
        pool = draw(st.sampled_from([None, None, right, right, right]))
        if draw(st.integers(0, 15)) == 15:
            pool = bad
            wrong.add(name)
        if pool is not None:
            chosen[name] = draw(st.sampled_from(pool))
    return chosen, wrong


def run(module, x):
    """Check the output and gradients of a module; return the output."""
    x = x.clone().requires_grad_()
    outputs = module(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(y.square().mean() for y in outputs).backward()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    assert all(t.isfinite().all() for t in (*outputs, x.grad, *grads))
    return outputs


def at_odds(name, settings):
    """Whether values that are each right do not go together."""
    try:
        MODELS.get(name)(**(dict(in_channels=16) | settings))
    except ValueError:
        return True
    return False


@pytest.mark.parametrize('name', [*ATTENTIONS, 'AAConv2d'])
def test_arguments_of_an_attention(name):
    name = name.removeprefix('mmattn.')
    kinds = AA_CONV if name == 'AAConv2d' else ARGUMENTS[name]
    outcomes = collections.Counter()

    @fuzz(name, 25)
    @hypothesis.given(
        arguments(kinds | dict(in_channels=WIDTHS)),
        st.tuples(*[st.integers(1, 9)] * 3),
    )
    def check(drawn, size):
        (settings, wrong), (batch, height, width) = drawn, size
        in_channels = settings.setdefault('in_channels', 16)
        if name == 'AAConv2d':
            convolve = dict(out_channels=32, kernel_size=3, padding=1)
            settings = convolve | settings
        try:
            layer = MODELS.get(name)(**copy.deepcopy(settings))
        except ValueError as error:
            # Right ones may not go together; the error names one of these.
            right = {k: v for k, v in settings.items() if k not in wrong}
            named = {*kinds, 'in_channels'} if at_odds(name, right) else wrong
            assert any(f'{key}=' in str(error) for key in named), error
            outcomes['refused' if wrong else 'at odds'] += 1
            return
        assert not wrong
        outcomes['built'] += 1
        x = torch.randn(batch, in_channels, height, width)
        (y,) = run(layer, x)
        if name == 'AAConv2d':
            assert y.shape == (batch, 32, height, width)
        else:
            assert y.shape == x.shape and y.dtype == x.dtype
        layer.eval()
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x), layer(x))

    check()
    print(name, dict(outcomes))
    assert outcomes['built']


# Backbones

#: Class, number of configs (the more, the faster it is), arguments.
THIN = {
    'ResNet-18': ('ResNet', 20, dict(depth=18, base_channels=8)),
    'ResNet-50': ('ResNet', 10, dict(depth=50, base_channels=4)),
    'ResNeXt': ('ResNeXt', 10, dict(depth=50, base_channels=4)),
    'MobileNetV2': ('MobileNetV2', 15, {}),
    'ShuffleNetV2': ('ShuffleNetV2', 15, {}),
    'RepVGG': ('RepVGG', 80, {}),
    'SwinTransformer': ('SwinTransformer', 15, {}),
}


@MODELS.register_module()
class Halve(BaseModule):
    """Breaks the promise of a plugin."""

    def __init__(self, in_channels, init_cfg=None):
        super().__init__(init_cfg)

    def forward(self, x):
        return x[:, ::2]


#: Types that are no plugins, and what the error says.
TYPES = {
    'mmattn.SCSAA': "'mmattn.SCSAA'",
    'Foo': "'Foo'",
    'nope.SCSA': "'nope.SCSA'",
    'mmdet.SCSA.SCSA': 'SCSA.SCSA',
    '': "''",
    None: 'None',
    3: '3',
    ('mmattn.SE',): "'mmattn.SE'",
    'Conv2d': 'Conv2d',
    'BN': 'BatchNorm2d',
    'mmattn.ResNet': 'depth',
    'mmattn.AAConv2d': 'out_channels',
    'mmattn.Halve': 'halve at',
    dict: 'dict',
    int: 'int',
}
POSITIONS = [
    'after_conv9', 'after_conv', 'before_act3x', 'after_stage', '', None, 1,
    ['after_block'],
]  # fmt: skip


def probably(draw, right, wrong, odds=24):
    """Draw from one strategy, once in a while from the other."""
    return draw(wrong if draw(st.integers(0, odds)) == odds else right)


@st.composite
def modules(draw, faults):
    """The `cfg` of a plugin."""
    kind = draw(st.integers(0, 30))
    if kind == 30:
        wrong = draw(st.sampled_from([None, {}, 'mmattn.SE', [], {'typ': 1}]))
        faults.append(f'cfg={wrong!r}')
        return wrong
    if kind == 29:
        name = draw(st.sampled_from(list(TYPES)))
        faults.append(TYPES[name])
        return dict(type=name)
    if kind < 4:
        name = draw(st.sampled_from(list(STOCK)))
        cfg, wrong = draw(arguments(STOCK[name]))
    else:
        name = draw(st.sampled_from(list(ARGUMENTS)))
        cfg, wrong = draw(arguments(ARGUMENTS[name]))
        name = f'mmattn.{name}'
    faults += [f'{key}=' for key in wrong]
    if probably(draw, st.just(False), st.just(True)):
        cfg['foo'] = 1
        faults.append('foo')
    postfix = probably(
        draw,
        st.sampled_from(['', '', '_1', '_2', 3]),
        st.sampled_from(['a.b', None, 1.5]),
    )
    if postfix != '':
        cfg['postfix'] = postfix
    if not isinstance(postfix, (int, str)) or '.' in str(postfix):
        faults.append(f'postfix={postfix!r}')
    return dict(cfg, type=name)


@st.composite
def chosen_stages(draw, sizes, faults):
    """Right or wrong `stages`; the sizes of those it chooses."""
    count = len(sizes)
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    right = st.one_of(st.none(), flags.map(tuple), flags)
    wrong = st.one_of(
        st.lists(st.booleans()).filter(lambda f: len(f) != count),
        st.sampled_from([1, True, 'abcd', (2,) * count, [None] * count, {}]),
    )
    stages = probably(draw, right, wrong)
    if stages is None:
        return None
    if (
        not isinstance(stages, (list, tuple))
        or len(stages) != count
        or not all(type(flag) is bool for flag in stages)
        or not any(stages)
    ):
        faults.append(f'stages={stages!r}')
    return stages


@st.composite
def chosen_blocks(draw, sizes, faults):
    """Right or wrong `blocks` of stages of these sizes."""
    least = min(sizes, default=1)
    inside = st.lists(st.integers(-least, least - 1), min_size=1, max_size=3)
    right = st.one_of(st.none(), st.none(), inside, inside.map(tuple))
    wrong = st.sampled_from(
        [(), 0, -1, 'a', (9,), (0, -10), (True,), (0.0,), (None,), {0}]
    )
    blocks = probably(draw, right, wrong)
    if blocks is not None and not (
        isinstance(blocks, (list, tuple))
        and blocks
        and all(type(j) is int and -least <= j < least for j in blocks)
    ):
        faults.append(f'blocks={blocks!r}')
    return blocks


@st.composite
def plugin_lists(draw, stages):
    """A backbone's `plugins`, and the faults of them.

    Args:
        stages: The positions of each block, stage by stage.
    """
    faults = []
    if probably(draw, st.just(False), st.just(True), odds=60):
        wrong = draw(st.sampled_from([3, True, 'abc', dict(cfg=1), 0.0]))
        return wrong, [f'plugins={wrong!r}']
    known = max((block for stage in stages for block in stage), key=len)
    plugins = []
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 2, 2, 3]))):
        if probably(draw, st.just(False), st.just(True), odds=40):
            plugins.append(draw(st.sampled_from([3, None, 'mmattn.SE', ()])))
            faults.append(f'plugins[{len(plugins) - 1}] must be a dict')
            continue
        position = probably(
            draw, st.sampled_from(known), st.sampled_from(POSITIONS)
        )
        if position not in known:
            faults.append(f'position={position!r}')
        plugin = dict(cfg=draw(modules(faults)), position=position)
        wanted = draw(chosen_stages([len(s) for s in stages], faults))
        if wanted is not None or draw(st.booleans()):
            plugin['stages'] = wanted
        sizes = [
            len(stage)
            for i, stage in enumerate(stages)
            if not isinstance(wanted, (list, tuple))
            or (i < len(wanted) and wanted[i])
        ]
        blocks = draw(chosen_blocks(sizes, faults))
        if blocks is not None or draw(st.booleans()):
            plugin['blocks'] = blocks
        if probably(draw, st.just(False), st.just(True)):
            missing = draw(st.sampled_from(['cfg', 'position']))
            del plugin[missing]
            faults.append(f'plugins[{len(plugins)}] must be a dict with cfg')
        if probably(draw, st.just(False), st.just(True)):
            extra = draw(st.sampled_from(['stage', 'Position', 3, None]))
            plugin[extra] = 1
            faults.append(repr(extra))
        plugins.append(plugin)
    return draw(st.sampled_from([tuple, list]))(plugins), faults


def places(plugin, stages):
    """Yield the blocks that a right plugin asks for, by stage and number."""
    flags, numbers = plugin.get('stages'), plugin.get('blocks')
    for s, stage in enumerate(stages):
        for b, positions in enumerate(stage):
            if (
                plugin['position'] in positions
                and (flags is None or flags[s])
                and (numbers is None or {b, b - len(stage)} & {*numbers})
            ):
                yield s, b


def class_and_arguments(plugin):
    cfg = dict(plugin['cfg'])
    postfix = str(cfg.pop('postfix', ''))
    name = cfg.pop('type')
    cls = MODELS.get(name) or MODELS.get(name.removeprefix('mmattn.'))
    return cls, cfg, infer_abbr(cls) + postfix


def faults_of_the_whole(plugins, stages, widths):
    """Say what is wrong beside what was drawn wrong."""
    faults, names = [], set()
    for i, plugin in enumerate(plugins):
        try:
            cls, settings, name = class_and_arguments(plugin)
            found = list(places(plugin, stages))
        except Exception:  # it was drawn wrong
            continue
        if not found:
            faults.append(f'plugins[{i}]: none of the chosen')
        for place in found:
            if (place, name) in names:
                faults.append(f'named {name!r}')
            names.add((place, name))
        for width in {widths[s][b][plugin['position']] for s, b in found}:
            try:
                cls(in_channels=width, **settings)
            except Exception as error:  # of any kind in mmcv's
                faults.append(str(error))
    return faults


@pytest.mark.parametrize('name', THIN)
def test_plugins_of_a_backbone(name):
    name, examples, kwargs = THIN[name]
    plain = thin(name, **kwargs)
    widths = [[b.widths() for b in stage] for stage in plain.plugin_stages()]
    stages = [[list(block) for block in stage] for stage in widths]
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        shapes = [y.shape for y in plain(image)]
    outcomes = collections.Counter()

    @fuzz(name, examples)
    @hypothesis.given(plugin_lists(stages))
    def check(drawn):
        plugins, faults = drawn
        before = copy.deepcopy(plugins)
        if isinstance(plugins, (list, tuple)):
            faults = faults + faults_of_the_whole(plugins, stages, widths)
        try:
            ours = thin(name, plugins, **kwargs)
            calls = watch(ours)
            outputs = run(ours, image)
        except ConfigError as error:
            message = str(error)
            assert any(fault in message for fault in faults), (faults, message)
            outcomes['refused'] += 1
            outcomes[re.sub(r'\W.*', '', message)] += 1
            return
        assert not faults
        outcomes['built'] += 1
        assert plugins == before  # shared by all blocks, hence left alone
        assert [y.shape for y in outputs] == shapes
        assert_plugins_are_where_they_should(ours, plugins, stages, calls)
        assert_copies_and_weights(ours, plain, image)

    check()
    print(name, dict(outcomes))
    assert outcomes['built'] and outcomes['refused']


def watch(backbone):
    """Count the calls of each plugin, by its name."""
    calls = collections.Counter()

    def count(name):
        def hook(module, args, output):
            calls[name] += 1
            assert output.shape == args[0].shape

        return hook

    for name, plugin in backbone.named_plugins():
        plugin.register_forward_hook(count(name))
    return calls


def assert_plugins_are_where_they_should(ours, plugins, stages, calls):
    wanted = {}
    for plugin in plugins:
        cls, _, name = class_and_arguments(plugin)
        for s, b in places(plugin, stages):
            wanted[s, b, name] = cls
    blocks = [list(stage) for stage in ours.plugin_stages()]
    found = {
        (s, b, key): type(getattr(block, key))
        for s, stage in enumerate(blocks)
        for b, block in enumerate(stage)
        for keys in block.plugin_names.values()
        for key in keys
    }
    assert found == wanted
    assert len(calls) == len(wanted) and set(calls.values()) <= {1}


def assert_copies_and_weights(ours, plain, image):
    added = set(ours.state_dict()) - set(plain.state_dict())
    result = ours.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    # torch makes up for missing counters of old checkpoints.
    counters = {key for key in added if key.endswith('num_batches_tracked')}
    assert added - counters <= set(result.missing_keys) <= added
    for _, plugin in ours.named_plugins():  # the hooks' are local functions
        plugin._forward_hooks.clear()
    ours.eval()
    with torch.no_grad():
        want = ours(image)
        copied = copy.deepcopy(ours)(image)
        unpickled = pickle.loads(pickle.dumps(ours))(image)
    for outputs in (copied, unpickled):
        assert all(torch.equal(a, b) for a, b in zip(outputs, want))


# What the search found, and a short one may miss.

BLOCK = dict(position='after_block')


@pytest.mark.parametrize(
    ('plugins', 'words'),
    [
        (3, ['plugins=3']),
        ([dict(BLOCK, cfg=dict(type='mmattn.SE'), stage=1)], ["['stage']"]),
        (
            [{**BLOCK, 'cfg': dict(type='mmattn.SE'), 3: 1, 'a': 2}],
            ["[3, 'a']"],
        ),
        ([dict(BLOCK, cfg=dict(type=''))], ["plugin type '' is not"]),
        ([dict(BLOCK, cfg=dict(type=dict))], ['dict', 'no class of modules']),
        (
            [dict(BLOCK, cfg=dict(type='mmattn.SE', postfix='a.b'))],
            ["postfix='a.b'"],
        ),
        (
            [dict(BLOCK, cfg=dict(type='ContextBlock', ratio='x'))],
            ["ContextBlock(ratio='x')", 'in_channels=16'],
        ),
        (
            [dict(BLOCK, cfg=dict(type='NonLocal2d', reduction=0))],
            ['NonLocal2d(reduction=0)', 'ZeroDivisionError'],
        ),
        (
            [dict(BLOCK, cfg=dict(type='NonLocal2d', mode='foo'))],
            ["mode='foo'"],
        ),
    ],
)
def test_refused_plugins(plugins, words):
    with pytest.raises(ConfigError) as error:
        thin('RepVGG', plugins)
    assert all(word in str(error.value) for word in words), error.value


def test_two_plugins_at_a_position_run_in_their_order():
    plugins = [
        dict(BLOCK, cfg=dict(type='mmattn.SE')),
        dict(BLOCK, cfg=dict(type='mmattn.SE', postfix='_2')),
    ]
    ours = thin('RepVGG', plugins)
    order = []
    block = ours.stage_1[0]
    for name in ('se_2', 'se'):
        getattr(block, name).register_forward_hook(
            lambda *args, name=name: order.append(name)
        )
    ours(torch.randn(2, 3, 32, 32))
    assert order == ['se', 'se_2']


def test_plugin_of_another_shape_is_refused():
    ours = thin('RepVGG', [dict(BLOCK, cfg=dict(type='mmattn.Halve'))])
    with pytest.raises(ConfigError, match='halve at after_block must return'):
        ours(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('SE', dict(norm_cfg=dict(type='LN'))),
        ('SE', dict(norm_cfg=dict(type='IN'))),
        ('CBAM', dict(norm_cfg=dict(type='BN1d'))),
        ('NonLocal', dict(norm_cfg='BN')),
        ('SE', dict(bias='False')),
        ('SE', dict(reduction=True)),
        ('ECA', dict(gamma='2')),
        ('ECA', dict(beta=math.nan)),
        ('CBAM', dict(kernel_size='3')),
        ('ELA', dict(channels_per_group=2.0)),
        ('SMSA', dict(kernel_sizes=3)),
        ('PCSA', dict(num_heads=None)),
        ('SCSA', dict(channel_first='False')),
        ('GSoP', dict(negative_slope=None)),
        ('FCA', dict(dct_size=7.5)),
    ],
)
def test_refused_arguments(name, settings):
    (key,) = settings
    with pytest.raises(ValueError, match=f'{key}='):
        MODELS.get(name)(16, **settings)


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('ELA', dict(num_groups=16)),
        ('EMA', dict(groups=1)),
        ('SMSA', dict(kernel_sizes=(3,) * 16)),
        ('ShuffleAttention', dict(groups=1)),
        ('SE', dict(norm_cfg=dict(type='GN', num_groups=1))),
        ('CBAM', dict(norm_cfg=dict(type='GN', num_groups=1))),
    ],
)
def test_group_norm_of_one_value_trains(name, settings):
    layer = MODELS.get(name)(16, **settings).train()
    x = torch.randn(1, 16, 1, 1)
    assert run(layer, x)[0].shape == x.shape
