# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""`train.py --amp` on the CPU: every demo, and what it says."""

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn

from mmattn.engine.amp import BFloat16OptimWrapper

STEPS = 3
EPOCHS = (  # of one step each
    f'train_cfg.max_epochs={STEPS}',
    f'train_cfg.val_interval={STEPS}',
    f'default_hooks.checkpoint.interval={STEPS}',
    'train_dataloader.batch_size=8',
    'train_dataloader.dataset.indices=8',
)
DEMOS = (
    'faster-rcnn_r18-gsca_fpn_15e_digits',
    'faster-rcnn_r18-none_fpn_15e_digits',
    'faster-rcnn_r18-scsa_fpn_15e_digits',
    'mask-rcnn_r18-scsa_fpn_15e_digits',
    'resnet18-gsca_30e_digits',
    'resnet18-none_30e_digits',
    'resnet18-scsa_30e_digits',
    'retinanet_r18-scsa_fpn_15e_digits',
    'upernet_r18-scsa_15e_digits',
)

pytestmark = [
    pytest.mark.usefixtures('in_workspace'),
    pytest.mark.skipif(torch.cuda.is_available(), reason='is about the CPU'),
]


@pytest.fixture
def in_workspace(digits, monkeypatch):
    monkeypatch.chdir(digits)


@pytest.fixture
def precisions():
    """Precisions that convolutions compute in, by training or not."""
    seen = {True: set(), False: set()}

    def note(module, args, output):
        if isinstance(module, nn.Conv2d):
            seen[module.training].add(output.dtype)

    handle = nn.modules.module.register_module_forward_hook(note)
    yield seen
    handle.remove()


def test_every_demo_is_listed(demo):
    assert {path.stem for path in demo.glob('*.py')} == set(DEMOS)


@pytest.mark.parametrize('name', DEMOS)
def test_demo_trains_in_bfloat16(
    name, demo, precisions, run_tool, monkeypatch, tmp_path
):
    finite = []

    def step(self, **kwargs):
        grads = [p.grad for g in self.param_groups for p in g['params']]
        finite.append(all(g is None or g.isfinite().all() for g in grads))
        return super(BFloat16OptimWrapper, self).step(**kwargs)

    def update(self, loss, **kwargs):
        finite.append(bool(loss.isfinite()))
        return super(BFloat16OptimWrapper, self).update_params(loss, **kwargs)

    monkeypatch.setattr(BFloat16OptimWrapper, 'step', step, raising=False)
    monkeypatch.setattr(
        BFloat16OptimWrapper, 'update_params', update, raising=False
    )
    run_tool(
        'train.py', demo / f'{name}.py', '--amp', 'bf16',
        '--work-dir', tmp_path, '--cfg-options', *EPOCHS,
    )  # fmt: skip
    assert finite == [True] * 2 * STEPS
    assert precisions == {True: {torch.bfloat16}, False: {torch.float32}}
    checkpoint = torch.load(tmp_path / f'epoch_{STEPS}.pth')
    weights = checkpoint['state_dict'].values()
    assert all(w.isfinite().all() for w in weights)
    assert {w.dtype for w in weights} <= {torch.float32, torch.int64}


RECIPE = """
_base_ = '{}'
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
"""


@pytest.mark.parametrize(
    ('words', 'wrapper'),
    [([], 'OptimWrapper'), (['--amp'], 'mmattn.BFloat16OptimWrapper')],
)
def test_recipe_in_mixed_precision_on_the_cpu(
    words, wrapper, demo, short, run_tool, caplog, tmp_path
):
    config = tmp_path / 'recipe.py'
    config.write_text(RECIPE.format(demo / 'resnet18-none_30e_digits.py'))
    MMLogger.get_current_instance().addHandler(caplog.handler)
    run_tool(
        'train.py', config, *words, '--work-dir', tmp_path,
        '--cfg-options', *short,
    )  # fmt: skip
    assert (tmp_path / 'epoch_1.pth').is_file()
    used = Config.fromfile(tmp_path / 'recipe.py').optim_wrapper
    assert used.type == wrapper
    assert 'loss_scale' not in used
    assert ('float32 is used (--amp bf16' in caplog.text) == (not words)


def test_float16_without_a_gpu_is_one_line(demo, run_tool):
    config = demo / 'resnet18-none_30e_digits.py'
    with pytest.raises(SystemExit) as error:
        run_tool('train.py', config, '--amp', 'fp16')
    assert error.value.code == (
        'error: --amp fp16 needs a GPU and there is none; --amp bf16 trains '
        'on the CPU'
    )


def test_unknown_precision_is_refused(demo, run_tool, capsys):
    config = demo / 'resnet18-none_30e_digits.py'
    with pytest.raises(SystemExit):
        run_tool('train.py', config, '--amp', 'fp8')
    assert "'fp8'" in capsys.readouterr().err
