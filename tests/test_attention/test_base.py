# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from mmattn.attention import Attention
from mmattn.attention.base import check_positive, normalize, upcast


class Blank(Attention):
    """Starts at zero, with a layer of mmcv's that starts itself."""

    def __init__(self, in_channels, init_cfg=None):
        super().__init__(init_cfg)
        self.layer = ConvModule(in_channels, in_channels, 1, act_cfg=None)
        self.other = nn.Sequential(ConvModule(in_channels, in_channels, 1))
        self.reset_parameters()

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.zeros_(self.layer.conv.weight)


def test_a_layer_that_starts_itself_does_not_undo_the_start():
    layer = Blank(4)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 7.0)
    layer.init_weights()
    assert (layer.layer.conv.weight == 0).all()
    weight = layer.other[0].conv.weight
    assert weight.std() > 0.1 and (weight != 7).all()


def test_own_init_cfg_still_comes_last():
    layer = Blank(4, dict(type='Constant', val=2.0, layer='Conv2d'))
    layer.init_weights()
    assert (layer.layer.conv.weight == 2).all()


def test_batch_norm_of_one_value_takes_the_running_statistics():
    norm = nn.BatchNorm2d(3)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    x = torch.randn(1, 3, 1, 1)
    with pytest.raises(ValueError, match='more than 1 value'):
        norm(x)
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    want = (x[0, :, 0, 0] - mean) / (var + norm.eps).sqrt()
    torch.testing.assert_close(normalize(norm, x)[0, :, 0, 0], want)
    assert torch.equal(norm.running_mean, mean)


def test_batch_norm_of_more_values_takes_theirs():
    norm = nn.BatchNorm2d(3)
    x = torch.randn(2, 3, 1, 1)
    want = (x - x.mean(0)) / (x.var(0, correction=0) + norm.eps).sqrt()
    torch.testing.assert_close(normalize(norm, x), want)
    assert not torch.equal(norm.running_mean, torch.zeros(3))


def test_norms_work_in_the_precision_of_their_weights():
    assert normalize(nn.GroupNorm(1, 2), torch.ones(1, 2).half()).dtype == (
        torch.float32
    )
    assert upcast(torch.ones(1).bfloat16()).dtype == torch.float32
    assert upcast(torch.ones(1).double()).dtype == torch.float64


def test_sizes_are_named():
    check_positive(a=1, b=2)
    with pytest.raises(ValueError, match='b=0 must be an integer, at least 1'):
        check_positive(a=1, b=0)
    with pytest.raises(ValueError, match='a=1.5 must'):
        check_positive(a=1.5)
