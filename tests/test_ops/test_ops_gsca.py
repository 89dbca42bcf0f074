# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import pytest
import torch

from mmattn.ops import gsca as ops
from mmattn.ops import gsca_eager
from mmattn.ops.gsca import fused, gsca, reference

pytestmark = pytest.mark.skipif(
    not hasattr(torch.library, 'custom_op'), reason='needs torch 2.4'
)
SETTINGS = (2.0, True, 1e-8)
SHAPES = [
    (1, 4, 1, 1),
    (2, 8, 1, 7),
    (3, 16, 5, 3),
    (2, 64, 13, 17),
    (1, 256, 40, 30),
]


@pytest.fixture(params=[64, 2**15], ids=['many pieces', 'few pieces'])
def tile(request, monkeypatch):
    monkeypatch.setattr(gsca_eager, 'TILE', request.param)


def gradients(function, x, grad, *arguments):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x, *arguments)
    return y.detach(), torch.autograd.grad(y, x, grad)[0]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('num_heads', [1, 4])
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('reverse', [False, True])
def test_equals_the_reference(tile, shape, num_heads, channels_last, reverse):
    x = torch.randn(shape, dtype=torch.float64) + 0.5
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    grad = torch.randn(shape, dtype=torch.float64)
    # A large epsilon shows whether its own gradient is right.
    settings = (1.7, reverse, 0.1)
    got = gradients(fused, x, grad, num_heads, *settings)
    want = gradients(
        reference, x, grad, num_heads, 1.7, reverse, 'correlation', 0.1
    )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert got[0].stride() == x.stride()


@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16, torch.bfloat16]
)
@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e4])
@pytest.mark.parametrize('offset', [0.0, 1.0])
def test_rounds_no_more_than_the_reference(dtype, scale, offset):
    x = (torch.randn(2, 128, 33, 29) + offset).mul(scale).to(dtype)
    grad = torch.randn_like(x)
    exact = gradients(reference, x.double(), grad.double(), 2)
    plain = gradients(reference, x, grad, 2)
    fast = gradients(fused, x, grad, 2, *SETTINGS)
    for want, slow, quick in zip(exact, plain, fast):
        allowed = 2 * (slow - want).abs().max()
        allowed += torch.finfo(dtype).eps * want.abs().max()
        assert (quick - want).abs().max() <= allowed
        assert quick.dtype == dtype


@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float16, torch.bfloat16]
)
@pytest.mark.parametrize('fill', [0.0, 1e-6, 0.7, 1e4])
def test_constant_maps_have_no_correlations(dtype, fill):
    x = torch.full((2, 64, 6, 5), fill, dtype=dtype)
    y, dx = gradients(fused, x, torch.ones_like(x), 1, *SETTINGS)
    torch.testing.assert_close(y, x / 4)
    torch.testing.assert_close(dx, torch.full_like(x, 0.25))


def test_other_layouts():
    x = torch.randn(2, 7, 8, 5, dtype=torch.float64).transpose(1, 2)
    grad = torch.randn(x.shape, dtype=torch.float64)
    got = gradients(fused, x, grad, 2, *SETTINGS)
    torch.testing.assert_close(got, gradients(reference, x, grad, 2))
    expanded = torch.randn(1, 8, 1, 1).expand(2, 8, 3, 4)
    got = fused(expanded, 2, *SETTINGS)
    torch.testing.assert_close(got, reference(expanded, 2))


def test_inference_mode():
    x = torch.randn(2, 8, 5, 4)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x, 2, *SETTINGS), reference(x, 2))


def test_second_derivative(tile):
    x = torch.randn(1, 6, 3, 2, dtype=torch.float64, requires_grad=True)

    def function(x):
        return fused(x, 2, 2.0, True, 0.1)

    assert torch.autograd.gradgradcheck(function, x)


def test_keeps_the_map_and_little_else():
    x = torch.randn(2, 64, 32, 32, requires_grad=True)
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fused(x, 1, *SETTINGS)
    assert x.data_ptr() in saved
    assert sum(saved.values()) < 1.06 * x.numel()


@pytest.mark.parametrize('requires_grad', [False, True])
def test_opcheck(requires_grad):
    x = torch.randn(2, 8, 5, 4, requires_grad=requires_grad)
    torch.library.opcheck(torch.ops.mmattn.gsca, (x, 2, *SETTINGS))
    grad = torch.randn_like(x)
    outputs = torch.ops.mmattn.gsca(x.detach(), 2, *SETTINGS)[1:]
    torch.library.opcheck(
        torch.ops.mmattn.gsca_backward, (grad, x, *outputs, *SETTINGS)
    )


@pytest.fixture
def taken(monkeypatch):
    """The paths that were taken."""
    paths = []

    def watch(name):
        function = getattr(ops, name)

        def spy(*args, **kwargs):
            paths.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(ops, name, spy)

    watch('fused')
    watch('reference')
    return paths


@pytest.mark.parametrize('trains', [False, True])
@pytest.mark.parametrize('wanted', [None, 'auto', 'eager', 'reference'])
@pytest.mark.parametrize('similarity', ['correlation', 'dot'])
def test_path(monkeypatch, taken, trains, wanted, similarity):
    if wanted:
        monkeypatch.setenv('MMATTN_OPS', wanted)
    x = torch.randn(1, 8, 3, 3, requires_grad=trains)
    if (wanted, similarity) == ('eager', 'dot'):
        return  # refused, see below
    gsca(x, 2, similarity=similarity)
    fast = wanted != 'reference' and similarity == 'correlation'
    assert taken == ['fused' if fast else 'reference']


@pytest.mark.parametrize(
    ('wanted', 'arguments', 'reason'),
    [
        ('eager', {'similarity': 'dot'}, "eager .* no similarity='dot'"),
        ('fast', {}, 'MMATTN_OPS=fast: must be auto or one of reference'),
    ],
)
def test_a_path_that_cannot_be_taken(monkeypatch, wanted, arguments, reason):
    monkeypatch.setenv('MMATTN_OPS', wanted)
    with pytest.raises(RuntimeError, match=reason):
        gsca(torch.randn(1, 8, 3, 3), 2, **arguments)


def test_compilers_get_the_reference(taken):
    x = torch.randn(1, 8, 3, 3, requires_grad=True)
    torch.jit.trace(lambda x: gsca(x, 2), x, check_trace=False)
    assert set(taken) == {'reference'}
