# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Mixed precision: how it is chosen, what computes in it, what resumes."""

import contextlib
import functools

import pytest
import torch
from mmcv import ops
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import OPTIM_WRAPPERS, DefaultScope
from mmengine.runner import Runner
from probes import ATTENTIONS
from torch import nn

from mmattn.attention import AAConv2d
from mmattn.engine import enable_amp
from mmattn.engine.amp import BFloat16OptimWrapper
from mmattn.errors import ConfigError
from mmattn.registry import MODELS

GPU = pytest.param(
    'cuda',
    marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU'),
)
OPTIMIZER = dict(type='SGD', lr=0.1)


def autocasts_on_cpu(dtype):
    """Whether this version of torch computes in a precision on the CPU."""
    x = torch.ones(2, 2)
    try:
        with torch.autocast('cpu', dtype=dtype):
            return (x @ x).dtype == dtype
    except RuntimeError:
        return False


# Choice


BF16 = dict(type='mmattn.BFloat16OptimWrapper', accumulative_counts=2)
FP16 = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    dtype='float16',
    accumulative_counts=2,
)
AMP_BF16 = dict(FP16, dtype='bfloat16', loss_scale=8.0)


@pytest.mark.parametrize(
    ('gpu', 'dtype', 'own', 'want'),
    [
        (False, 'auto', {}, BF16),
        (False, 'bf16', {}, BF16),
        (False, 'bfloat16', AMP_BF16, BF16),
        (True, 'auto', {}, FP16),
        (True, 'auto', AMP_BF16, AMP_BF16),
        (True, 'fp16', {}, FP16),
        (True, 'float16', AMP_BF16, dict(FP16, loss_scale=8.0)),
        (True, 'bf16', FP16, BF16),
    ],
)
def test_wrapper_of_each_choice(gpu, dtype, own, want, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: True)
    plain = dict(type='OptimWrapper', accumulative_counts=2)
    cfg = Config(dict(optim_wrapper=own or plain))
    enable_amp(cfg, dtype)
    assert cfg.optim_wrapper.to_dict() == want


def test_wrapper_may_have_no_type():
    cfg = Config(dict(optim_wrapper=dict(optimizer=OPTIMIZER)))
    enable_amp(cfg, 'bf16')
    assert cfg.optim_wrapper.type == 'mmattn.BFloat16OptimWrapper'


def test_what_a_device_cannot_is_said(monkeypatch):
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper')))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ConfigError, match='fp16 needs a GPU.*--amp bf16'):
        enable_amp(cfg, 'fp16')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: False)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'Old GPU')
    with pytest.raises(ConfigError, match='Old GPU has no.*--amp fp16'):
        enable_amp(cfg, 'bf16')


def test_wrapper_of_another_kind_is_refused():
    cfg = Config(dict(optim_wrapper=dict(type='ApexOptimWrapper')))
    with pytest.raises(ConfigError, match='ApexOptimWrapper'):
        enable_amp(cfg)


# The wrapper for bfloat16


@pytest.mark.parametrize('device', ['cpu', GPU])
def test_bfloat16_wrapper_is_autocast_and_nothing_else(device):
    model = nn.Linear(8, 4).to(device)
    x = torch.randn(5, 8, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = model(x)
    y.float().square().sum().backward()
    want = {
        key: (p - 0.1 * p.grad).detach() for key, p in model.named_parameters()
    }
    model.zero_grad()

    wrapper = BFloat16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with wrapper.optim_context(model):
        y = model(x)
    assert y.dtype == torch.bfloat16
    assert model(x).dtype == torch.float32
    wrapper.update_params(y.float().square().sum())
    for key, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter.detach(), want[key])


def test_bfloat16_wrapper_synchronises_only_before_a_step():
    held_back = []

    class Parallel(nn.Linear):
        def no_sync(self):
            held_back.append(True)
            return contextlib.nullcontext()

    model = Parallel(2, 1)
    wrapper = BFloat16OptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=3
    )
    for _ in range(3):
        with wrapper.optim_context(model):
            loss = model(torch.ones(1, 2)).sum()
        wrapper.update_params(loss)
    assert len(held_back) == 2


def test_bfloat16_wrapper_is_found_from_any_scope():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    cfg = dict(type='mmattn.BFloat16OptimWrapper', optimizer=optimizer)
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert type(OPTIM_WRAPPERS.build(cfg)) is BFloat16OptimWrapper


# The state of the loss scale


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.linear(torch.stack(inputs)).square().mean())


def run_toy(folder, epochs, wrapper, resume=False):
    """Train for epochs of 4 steps; return the runner."""
    runner = Runner(
        model=Toy(),
        work_dir=str(folder),
        experiment_name=f'{folder.name}_{epochs}_{resume}',
        train_dataloader=dict(
            batch_size=2,
            dataset=[dict(inputs=torch.ones(4) * i) for i in range(8)],
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(wrapper, optimizer=dict(OPTIMIZER)),
        default_scope='mmengine',
        resume=resume,
        log_level='ERROR',
    )
    runner.train()
    return runner


@pytest.fixture
def amp_on_cpu(monkeypatch):
    """Let mmengine's wrapper run here, with the CPU's scaler."""
    if torch.cuda.is_available():
        return
    scaler = getattr(torch.amp, 'GradScaler', None)
    if scaler is None:
        pytest.skip('this torch scales losses on a GPU only')
    monkeypatch.setattr(
        amp_optimizer_wrapper, 'is_cuda_available', lambda: True
    )
    monkeypatch.setattr(
        amp_optimizer_wrapper, 'GradScaler', functools.partial(scaler, 'cpu')
    )


# 4 doubles every third step and bfloat16 works on both devices.
SCALED = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    loss_scale=dict(init_scale=4.0, growth_interval=3),
)


def test_loss_scale_resumes(amp_on_cpu, tmp_path):
    straight = run_toy(tmp_path / 'straight', 2, SCALED).optim_wrapper
    run_toy(tmp_path / 'resumed', 1, SCALED)
    resumed = run_toy(
        tmp_path / 'resumed', 2, SCALED, resume=True
    ).optim_wrapper
    assert isinstance(resumed, AmpOptimWrapper)
    scaler = resumed.loss_scaler
    # 8 steps: two doublings and two steps since.
    assert (scaler.get_scale(), scaler._get_growth_tracker()) == (16.0, 2)
    assert scaler.state_dict() == straight.loss_scaler.state_dict()


@pytest.mark.parametrize('first', ['amp', 'bfloat16', 'float32'])
@pytest.mark.parametrize('second', ['amp', 'bfloat16', 'float32'])
def test_a_run_resumes_in_another_precision(
    first, second, amp_on_cpu, tmp_path
):
    wrappers = dict(
        amp=SCALED,
        bfloat16=dict(type='mmattn.BFloat16OptimWrapper'),
        float32=dict(type='OptimWrapper'),
    )
    before = run_toy(tmp_path, 1, wrappers[first])
    want = before.optim_wrapper.optimizer.state_dict()
    after = run_toy(tmp_path, 1, wrappers[second], resume=True)
    assert after.epoch == 1
    assert after.optim_wrapper.optimizer.state_dict() == want
    for a, b in zip(before.model.parameters(), after.model.parameters()):
        assert torch.equal(a, b)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_float16_on_a_gpu_scales_the_loss(tmp_path):
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper')))
    enable_amp(cfg, 'fp16')
    wrapper = run_toy(tmp_path, 1, cfg.optim_wrapper.to_dict()).optim_wrapper
    assert wrapper.loss_scaler.get_scale() > 1
    assert wrapper.cast_dtype == torch.float16


# Modules


@pytest.mark.parametrize('device', ['cpu', GPU])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('half', [False, True], ids=['float', 'half'])
@pytest.mark.parametrize('name', [*ATTENTIONS, 'AAConv2d'])
def test_attention_trains_in_mixed_precision(name, half, dtype, device):
    """On a map of a detector's size, with the values of a deep network."""
    if device == 'cpu' and not autocasts_on_cpu(dtype):
        pytest.skip('not in this torch')
    if name == 'AAConv2d':
        layer = AAConv2d(32, 32, 3, padding=1)
    else:
        layer = MODELS.get(name.removeprefix('mmattn.'))(32)
    layer = layer.to(device)
    values = torch.randn(1, 32, 48, 64, device=device).relu() * 20
    slope = torch.linspace(0, 1, 64, device=device)

    def train(x, enabled):
        layer.zero_grad()
        x = x.clone().requires_grad_()
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            y = layer(x)
        # As large as a scaled loss, lest float16 rounds gradients to 0.
        (1024 * y.float() * slope).mean().backward()
        grads = [x.grad, *(p.grad for p in layer.parameters())]
        assert all(t.isfinite().all() for t in (y, *grads))
        return y.detach().float(), x.grad.float()

    y, grad = train(values, enabled=False)
    got, got_grad = train(values.to(dtype) if half else values, enabled=True)
    assert (got - y).norm() < 0.02 * y.norm()
    angle = nn.functional.cosine_similarity(
        grad.flatten(), got_grad.flatten(), 0
    )
    assert angle > 0.98


# The detectors' ops. Values and gradients in 16 bits alone are compared in
# test_compat; here autocast surrounds the forward pass.


def pack(cls):
    torch.manual_seed(1)
    layer = cls(8, 6, 3, padding=1)
    nn.init.normal_(layer.conv_offset.weight, std=0.05)
    return layer


ROIS = torch.tensor([[0, 1.25, 2.5, 20, 18], [1, 0, 0, 9, 9.5]])
CLASSES = torch.arange(30) % 6
OPS = {
    'roi_align': lambda x: ops.roi_align(x, ROIS, 5, 0.5, 2),
    'roi_pool': lambda x: ops.roi_pool(x, ROIS, 5, 0.5),
    'sigmoid_focal_loss': lambda x: ops.sigmoid_focal_loss(
        x.flatten()[:150].view(30, 5), CLASSES, 2.0, 0.25, None, 'sum'
    ),
    'softmax_focal_loss': lambda x: ops.softmax_focal_loss(
        x.flatten()[:180].view(30, 6), CLASSES, 2.0, 0.25, None, 'sum'
    ),
    'deform_conv': pack(ops.DeformConv2dPack),
    'modulated_deform_conv': pack(ops.ModulatedDeformConv2dPack),
}


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('half', [False, True], ids=['float', 'half'])
@pytest.mark.parametrize('name', OPS)
def test_op_in_mixed_precision(name, half, dtype):
    if not autocasts_on_cpu(dtype):
        pytest.skip('not in this torch')
    values = torch.randn(2, 8, 12, 12)

    def train(x, enabled):
        x = x.clone().requires_grad_()
        with torch.autocast('cpu', dtype=dtype, enabled=enabled):
            y = OPS[name](x)
        y.float().square().sum().backward()
        return y.detach().float(), x.grad.float()

    wanted = train(values, enabled=False)
    found = train(values.to(dtype) if half else values, enabled=True)
    # Shifts that are rounded to 16 bits read between other pixels.
    for got, want, tolerance in zip(found, wanted, (0.02, 0.1)):
        assert (got - want).norm() < tolerance * want.norm()


@pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
def test_nms_in_mixed_precision(kind):
    corner = torch.rand(40, 2) * 50
    boxes = torch.cat([corner, corner + torch.rand(40, 2) * 30], 1)
    scores, classes = torch.rand(40), torch.arange(40) % 3
    cfg = dict(type=kind, iou_threshold=0.5)
    # What 16 bits hold, so that float32 has to choose among the same.
    boxes, scores = boxes.bfloat16(), scores.bfloat16()
    want = ops.batched_nms(boxes.float(), scores.float(), classes, cfg)[1]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        got = ops.batched_nms(boxes.float(), scores, classes, cfg)[1]
    assert torch.equal(got, want)
