# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import pytest
import torch

from mmattn.attention import SCSA
from mmattn.ops import scsa as ops
from mmattn.ops import scsa_eager
from mmattn.ops.scsa import fused, reference, scsa

pytestmark = pytest.mark.skipif(
    not hasattr(torch.library, 'custom_op'), reason='needs torch 2.4'
)
SHAPES = [
    (1, 4, 1, 1),
    (2, 8, 7, 7),
    (3, 8, 5, 17),
    (2, 4, 23, 16),
    (1, 16, 40, 31),
]
STEPS = {
    'mmattn::axis_means': lambda x, h, w, c: (x,),
    'mmattn::gated_pool': lambda x, h, w, c: (x, h, w, [2, 3]),
    'mmattn::gate': lambda x, h, w, c: (x, h, w, c),
    'mmattn::gate_backward': lambda x, h, w, c: (x + 1, x, h, w, c),
    'mmattn::axis_means_backward': lambda x, h, w, c: (x, h, w),
    'mmattn::gated_pool_backward': lambda x, h, w, c: (
        (x + 1, x, h, w, x[:, :, :2, :2].contiguous(), [2, 3])
    ),
}


@pytest.fixture(params=[32, 2**20], ids=['many pieces', 'one piece'])
def tile(request, monkeypatch):
    monkeypatch.setattr(scsa_eager, 'TILE', request.param)


def networks(channels, dtype, window):
    """The arguments of a path: networks that mix all that they see."""
    torch.manual_seed(0)
    mix = torch.randn(3, channels, channels, dtype=dtype)
    mix = (mix / channels**0.5).requires_grad_()
    up = torch.float64 if dtype is torch.float64 else torch.float32

    def axis_gates(rows, columns):
        rows = torch.einsum('ij,bjl->bil', mix[0].to(up), rows.to(up))
        columns = torch.einsum('ij,bjl->bil', mix[1].to(up), columns.to(up))
        return torch.sigmoid(2 * rows), torch.sigmoid(2 * columns)

    def channel_gate(pooled):
        pooled = pooled.to(up)
        seen = pooled.mean((2, 3)) + pooled.square().sum((2, 3))
        return torch.sigmoid(seen @ mix[2].to(up))

    return (axis_gates, channel_gate, window), mix


def gradients(path, x, grad, window=7):
    x = x.detach().requires_grad_()
    arguments, weights = networks(x.shape[1], x.dtype, window)
    y = path(x, *arguments)
    return y, *torch.autograd.grad(y, (x, weights), grad)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('window', [1, 3, 7, None])
def test_equals_the_reference(tile, shape, window):
    x, grad = torch.randn(2, *shape, dtype=torch.float64)
    got = gradients(fused, x, grad, window)
    want = gradients(reference, x, grad, window)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16, torch.bfloat16]
)
@pytest.mark.parametrize('offset', [0.0, 1.0])
def test_rounds_no_more_than_the_reference(dtype, offset):
    x = (torch.randn(2, 32, 33, 29) + offset).to(dtype)
    grad = torch.randn_like(x)
    exact = gradients(reference, x.double(), grad.double())[:2]
    plain = gradients(reference, x, grad)
    fast = gradients(fused, x, grad)
    for want, slow, quick in zip(exact, plain, fast):
        allowed = 2 * (slow - want).abs().max()
        allowed += torch.finfo(dtype).eps * want.abs().max()
        assert (quick - want).abs().max() <= allowed
        assert quick.dtype == dtype


@pytest.mark.parametrize('fill', [0.0, 1e-6, 1.0, 1e4])
def test_constant_maps(fill):
    x = torch.full((2, 8, 9, 8), fill, requires_grad=True)
    module = SCSA(8)
    y = module(x)
    y.sum().backward()
    gates = y.detach().double() / (fill or 1)
    assert gates.isfinite().all() and x.grad.isfinite().all()
    assert (gates >= 0).all() and (gates <= 1).all()


@pytest.mark.parametrize('frozen', [False, True])
def test_second_derivative(frozen):
    x = torch.randn(1, 4, 4, 3, dtype=torch.float64, requires_grad=not frozen)
    (gates, channel, _), weights = networks(4, torch.float64, 2)

    def first(path):
        y = path(x, gates, channel, 2)
        wanted = [weights] if frozen else [x, weights]
        found = torch.autograd.grad(
            y.square().sum(), wanted, create_graph=True
        )
        return torch.autograd.grad(
            sum(g.square().sum() for g in found), wanted
        )

    torch.testing.assert_close(first(fused), first(reference))


def test_a_frozen_map_and_frozen_networks():
    x = torch.randn(2, 4, 8, 8)
    arguments, weights = networks(4, torch.float32, 7)
    fused(x, *arguments).sum().backward()
    want = networks(4, torch.float32, 7)
    reference(x, *want[0]).sum().backward()
    torch.testing.assert_close(weights.grad, want[1].grad)
    x.requires_grad_()
    with torch.no_grad():
        assert not fused(x, *arguments).requires_grad
    weights.requires_grad_(False)
    fused(x, *arguments).sum().backward()
    got, x.grad = x.grad, None
    reference(x, *arguments).sum().backward()
    torch.testing.assert_close(got, x.grad)


def test_the_gradient_of_the_result_stays_as_it_is():
    """What goes back is changed in place, but not what came in."""
    x = torch.randn(1, 4, 9, 9, requires_grad=True)
    grad = torch.randn(1, 4, 9, 9)
    before = grad.clone()
    y = fused(x, *networks(4, torch.float32, 7)[0])
    first = torch.autograd.grad(y, x, grad, retain_graph=True)
    assert torch.equal(grad, before)
    assert torch.equal(first[0], torch.autograd.grad(y, x, grad)[0])


def test_keeps_the_map_and_little_else():
    x = torch.randn(2, 64, 56, 56, requires_grad=True)
    module = SCSA(64)
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x)
    assert x.untyped_storage().data_ptr() in saved
    assert sum(saved.values()) < 1.6 * x.nbytes


@pytest.mark.parametrize('name', STEPS)
def test_opcheck(name):
    x = torch.randn(2, 4, 5, 6)
    h, w, c = torch.rand(2, 4, 5), torch.rand(2, 4, 6), torch.rand(2, 4)
    space, _, step = name.partition('::')
    op = getattr(getattr(torch.ops, space), step)
    torch.library.opcheck(op, STEPS[name](x, h, w, c))


def test_attention_equals_its_formula(monkeypatch):
    q, k, v = torch.randn(3, 2, 2, 6, 5, dtype=torch.float64)
    scores = torch.einsum('bhin,bhjn->bhij', q, k).exp()
    weights = scores / scores.sum(-1, keepdim=True)
    want = torch.einsum('bhij,bhjn->bhin', weights, v)
    torch.testing.assert_close(ops.attend(q, k, v, 0.0), want)
    monkeypatch.setenv('MMATTN_OPS', 'reference')
    torch.testing.assert_close(ops.attend(q, k, v, 0.0), want)
    assert (ops.attend(q, k, v, 0.9) - want).abs().max() > 0.1


@pytest.mark.parametrize('wanted', [None, 'auto', 'eager', 'reference'])
@pytest.mark.parametrize('channels_last', [False, True])
def test_path(monkeypatch, wanted, channels_last):
    paths = []
    for name in ('fused', 'reference'):
        monkeypatch.setattr(ops, name, lambda *_, n=name: paths.append(n))
    if wanted:
        monkeypatch.setenv('MMATTN_OPS', wanted)
    x = torch.randn(1, 8, 3, 3)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    if (wanted, channels_last) == ('eager', True):
        with pytest.raises(RuntimeError, match='for contiguous maps'):
            scsa(x, None, None, 7)
        return
    scsa(x, None, None, 7)
    slow = wanted == 'reference' or channels_last
    assert paths == ['reference' if slow else 'fused']
