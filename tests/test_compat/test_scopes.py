# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from importlib.util import find_spec

import pytest

from mmattn.compat import scopes

pytest.importorskip('mmengine')

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import registry

needs_mmseg = pytest.mark.skipif(
    find_spec('mmseg') is None, reason='mmseg is not installed'
)


@pytest.fixture
def table(monkeypatch):
    """mmengine's table as it is before mmattn is imported."""
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    monkeypatch.delitem(MODULE2PACKAGE, 'mmattn', raising=False)
    return MODULE2PACKAGE


def complete(monkeypatch, distributions, modules):
    """Call the function as if just these were installed."""
    monkeypatch.setattr(
        scopes, '_is_distribution', lambda name: name in distributions
    )
    monkeypatch.setattr(
        scopes, 'find_spec', lambda name: name in modules or None
    )
    scopes.complete_scopes()


@pytest.mark.parametrize(
    'distributions, modules, package',
    [
        (['mmsegmentation'], ['mmseg'], 'mmsegmentation'),
        (['onedl-mmsegmentation'], ['mmseg'], 'mmseg'),
        ([], [], 'mmsegmentation'),
    ],
    ids=['upstream', 'fork', 'absent'],
)
def test_scope_of_mmseg(monkeypatch, table, distributions, modules, package):
    others = {k: v for k, v in table.items() if k != 'mmseg'}
    for _ in range(2):
        complete(monkeypatch, distributions, modules)
        mmattn = {'mmattn': 'mmattn.version'}
        assert table == {**others, 'mmseg': package, **mmattn}


def test_distribution_look_up():
    assert scopes._is_distribution('pytest')
    assert not scopes._is_distribution('mmattn-has-no-such-distribution')


def test_table_is_the_one_of_the_registry():
    assert registry.MODULE2PACKAGE is MODULE2PACKAGE


@needs_mmseg
@pytest.mark.parametrize('distributions', [['mmsegmentation'], []])
def test_base_of_mmseg(monkeypatch, table, distributions, tmp_path):
    if distributions and not scopes._is_distribution('mmsegmentation'):
        pytest.skip('this mmseg is a fork')
    complete(monkeypatch, distributions, ['mmseg'])
    config = tmp_path / 'config.py'
    config.write_text("_base_ = 'mmseg::_base_/default_runtime.py'")
    assert Config.fromfile(config).default_scope == 'mmseg'


def test_base_of_mmattn(tmp_path):
    # However this mmattn is installed: editable installs need care.
    config = tmp_path / 'config.py'
    base = 'mmattn::scsa/faster-rcnn_r50-scsa_fpn_1x_coco.py'
    config.write_text(f'_base_ = {base!r}')
    (plugin,) = Config.fromfile(config).model.backbone.plugins
    assert plugin.cfg.type == 'mmattn.SCSA'


def test_base_of_mmattn_keeps_the_scope_of_its_framework(tmp_path):
    config = tmp_path / 'config.py'
    base = 'mmattn::demo/faster-rcnn_r18-scsa_fpn_15e_digits.py'
    config.write_text(f'_base_ = {base!r}')
    cfg = Config.fromfile(config)
    assert cfg.default_scope == 'mmdet'
    # Else CocoDataset would be looked up in mmattn, and not be found.
    assert cfg.train_dataloader.dataset.get('_scope_') is None
    assert cfg.model.get('_scope_') in (None, 'mmdet')


def test_the_look_up_of_bases_is_wrapped_once():
    look_up = Config._get_cfg_path
    scopes.complete_scopes()
    assert Config._get_cfg_path is look_up


def test_base_of_a_framework_keeps_its_scope(tmp_path):
    config = tmp_path / 'config.py'
    base = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'
    config.write_text(f'_base_ = {base!r}')
    assert Config.fromfile(config).model._scope_ == 'mmdet'
