# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The kernels for GPUs, also where there is none.

With a GPU the kernels run on it. Without, the first test runs this file once
more with Triton's interpreter, which has to be chosen before triton is
imported, and the last compiles the kernels for GPUs that need not be here,
which finds what the interpreter forgives.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('triton')

import triton

from mmattn.attention import GSCA, SCSA
from mmattn.ops import gsca, gsca_triton, scsa, scsa_triton
from mmattn.ops.gsca import reference

ROOT = Path(__file__).parents[2]
INTERPRETS = os.environ.get('TRITON_INTERPRET') == '1'
GPU = torch.cuda.is_available() and not INTERPRETS
DEVICE = 'cuda' if GPU else 'cpu'
HALF = [torch.float16, torch.bfloat16]

runs = pytest.mark.skipif(
    not (GPU or INTERPRETS), reason='in the process of the first test'
)
layouts = pytest.mark.parametrize('last', [False, True], ids=['NCHW', 'NHWC'])


def start(*words, **variables):
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(GPU or INTERPRETS, reason='the tests run here')
def test_all_in_the_interpreter():
    words = '-m', 'pytest', '-q', '-p', 'no:cacheprovider', __file__
    start(*words, TRITON_INTERPRET='1')


def sample(*shape, dtype=torch.float64, last=False, scale=1.0, offset=0.0):
    x = torch.randn(shape, dtype=torch.float64).add(offset).mul(scale)
    wanted = torch.channels_last if last else torch.contiguous_format
    return x.to(DEVICE, dtype).contiguous(memory_format=wanted)


def differentiate(function, inputs, grads):
    """Return results and gradients."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    outputs = function(*inputs)
    return outputs, torch.autograd.grad(outputs, inputs, grads)


def assert_exact(got, want):
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def assert_no_worse(got, plain, exact, dtype):
    """Allow twice the error of torch in the same precision."""
    # A GPU approximates float32 exponentials and logarithms.
    steps = 8 if GPU and dtype == torch.float32 else 1
    allowed = 2 * (plain - exact).abs().max()
    allowed += steps * torch.finfo(dtype).eps * exact.abs().max()
    assert (got - exact).abs().max() <= allowed


# ---------------------------------------------------------------------- GSCA


def run_gsca(x, grad, heads, alpha=2.0, reverse=True, eps=1e-8):
    out, *kept = gsca_triton.forward(x, heads, alpha, reverse, eps)
    dx = gsca_triton.backward(grad, x, *kept, alpha, reverse, eps)
    for y in (out, dx):
        assert y.dtype == x.dtype and y.stride() == x.stride()
    return (out, dx), kept


def run_reference(x, grad, heads, alpha=2.0, reverse=True, eps=1e-8):
    def function(x):
        return reference(x, heads, alpha, reverse, 'correlation', eps)

    y, (dx,) = differentiate(function, [x], grad)
    return y.detach(), dx


def statistics(x, num_heads, eps):
    x = x.double().unflatten(1, (num_heads, -1)).flatten(3)

    def standardize(x, floor):
        centred = x - x.mean(2, keepdim=True)
        variance = centred.square().mean(2, keepdim=True)
        scale = (variance + eps * floor + 1e-20) ** -0.5
        return centred * scale, scale

    mean = x.mean(2, keepdim=True)
    pixels, scale = standardize(x, mean**2)
    square = (x**2).mean((2, 3), keepdim=True)
    key, key_scale = standardize(x.mean(3, keepdim=True), square)
    rho = (key * pixels).mean(2, keepdim=True)
    return rho, mean, scale, key, key_scale


@runs
@layouts
@pytest.mark.parametrize(
    ('shape', 'heads', 'reverse'),
    [
        ((1, 4, 1, 1), 1, True),
        ((1, 4, 1, 1), 4, False),
        ((3, 16, 1, 7), 1, True),
        ((1, 48, 5, 3), 16, True),
        ((2, 24, 8, 6), 2, False),
        ((1, 20, 13, 17), 1, False),
        ((1, 1, 5, 4), 1, True),
        pytest.param((1, 6, 33, 35), 1, True, id='runs of sums'),
        pytest.param((1, 1040, 3, 5), 1, True, id='channels in chunks'),
        *([((2, 256, 200, 335), 4, True)] * GPU),
        *([((32, 512, 7, 7), 1, False)] * GPU),
    ],
)
def test_gsca_is_exact(shape, heads, reverse, last):
    x = sample(*shape, last=last, offset=0.5)
    grad = sample(*shape)
    # A large epsilon shows whether its own gradient is right.
    settings = heads, 1.7, reverse, 0.1
    got, kept = run_gsca(x, grad, *settings)
    assert_exact(got, run_reference(x, grad, *settings))
    assert_exact(tuple(kept), statistics(x, heads, 0.1))


@runs
@layouts
@pytest.mark.parametrize('dtype', [torch.float32, *HALF])
@pytest.mark.parametrize(
    ('scale', 'offset'), [(1, 0), (1e-6, 1), (1e4, 0), (1, 30)]
)
def test_gsca_rounds_no_more_than_torch(dtype, scale, offset, last):
    x = sample(
        1, 40, 7, 15, dtype=dtype, last=last, scale=scale, offset=offset
    )
    grad = sample(*x.shape, dtype=dtype)
    exact = run_reference(x.double(), grad.double(), 2)
    plain = run_reference(x, grad, 2)
    got, kept = run_gsca(x, grad, 2)
    for triple in zip(got, plain, exact):
        assert_no_worse(*triple, dtype)
    for value, want in zip(kept, statistics(x, 2, 1e-8)):
        assert value.dtype == torch.float32 and value.shape == want.shape
        error = (value - want).abs().max()
        assert error <= 1e-4 * want.abs().max()


@runs
@pytest.mark.parametrize('dtype', [torch.float32, *HALF])
@pytest.mark.parametrize('fill', [0.0, 1e-6, 0.7, 1e4])
def test_gsca_of_constant_maps(dtype, fill):
    x = torch.full((1, 256, 3, 5), fill, dtype=dtype, device=DEVICE)
    got, kept = run_gsca(x, torch.ones_like(x), 1)
    assert all(t.isfinite().all() for t in kept)
    near = dict(rtol=1e-4, atol=0) if dtype == torch.float32 else {}
    torch.testing.assert_close(got, (x / 4, torch.ones_like(x) / 4), **near)


@runs
@layouts
def test_gsca_of_other_gradients(last):
    x = sample(1, 8, 5, 3, last=last)
    grad = sample(1, 3, 5, 8).permute(0, 3, 2, 1)
    for flow in (grad, torch.ones_like(x[:1, :1, :1, :1]).expand_as(x)):
        assert_exact(run_gsca(x, flow, 2)[0], run_reference(x, flow, 2))


@runs
@layouts
def test_no_image(last):
    x = sample(0, 8, 5, 3, last=last)
    (y, dx), _ = run_gsca(x, x, 2)
    assert y.shape == dx.shape == x.shape
    gates = x.mean(3), x.mean(2), x.mean((2, 3), keepdim=True)
    assert scsa_triton.axis_means(x)[0].shape == (0, 8, 5)
    assert scsa_triton.gated_pool(x, *gates[:2], (2, 3)).shape == (0, 8, 2, 1)
    assert scsa_triton.gate_backward(x, x, *gates)[3].shape == (0, 8, 1, 1)


def test_a_layout_that_is_neither():
    x = torch.randn(2, 3, 4, 5).transpose(1, 2)
    with pytest.raises(ValueError, match='contiguous or channels_last'):
        gsca_triton.forward(x, 1, 2.0, True, 1e-8)
    with pytest.raises(ValueError, match='contiguous or channels_last'):
        scsa_triton.axis_means(x)


# ---------------------------------------------------------------------- SCSA

maps = pytest.mark.parametrize(
    ('shape', 'sides'),
    [
        ((1, 4, 1, 1), (1, 1)),
        ((2, 3, 4, 9), (4, 7)),
        ((2, 9, 15, 16), (7, 7)),
        ((1, 33, 8, 7), (2, 2)),
        pytest.param((1, 2, 36, 11), (36, 11), id='runs of rows'),
        pytest.param((2, 2, 3, 133), (2, 3), id='tiles of columns'),
        pytest.param((1, 2, 19, 133), (19, 133), id='a wide window'),
        *([((2, 64, 200, 336), (7, 7)), ((32, 512, 7, 7), (7, 7))] * GPU),
    ],
)
ways = pytest.mark.parametrize(
    ('dtype', 'gates'),
    [
        (torch.float32, torch.float32),
        *((half, gates) for half in HALF for gates in (half, torch.float32)),
    ],
    ids=str,
)


def inputs(shape, dtype=torch.float64, gates=None, last=False):
    """Return a map and gates for rows, columns and channels."""
    batch, channels, height, width = shape
    lengths = (height,), (width,), (1, 1)
    return (
        sample(*shape, dtype=dtype, last=last),
        *(sample(*shape[:2], *n, dtype=gates or dtype) for n in lengths),
    )


def plain_means(x):
    return x.mean(3), x.mean(2)


def plain_pool(x, gate_h, gate_w, sides):
    return F.avg_pool2d(x * gate_h[..., None] * gate_w[:, :, None], sides)


def plain_gate(x, gate_h, gate_w, gate_c):
    return x * gate_h[..., None] * gate_w[:, :, None] * gate_c


def run_means(x, base, grads):
    dx = base.clone(memory_format=torch.preserve_format)
    rows, columns = scsa_triton.axis_means(x)
    assert scsa_triton.axis_means_backward(dx, *grads) is None
    return rows, columns, dx


def run_pool(x, gate_h, gate_w, base, grad, sides):
    dx = base.clone(memory_format=torch.preserve_format)
    pooled = scsa_triton.gated_pool(x, gate_h, gate_w, sides)
    gates = scsa_triton.gated_pool_backward(dx, x, gate_h, gate_w, grad, sides)
    return pooled, dx, *gates


def run_gate(x, gate_h, gate_w, gate_c, grad):
    gates = gate_h, gate_w, gate_c
    y = scsa_triton.gate(x, *gates)
    dx, *others = scsa_triton.gate_backward(grad, x, *gates)
    for map_ in (y, dx):
        assert map_.dtype == x.dtype and map_.stride() == x.stride()
    return y, dx, *others


def compare_means(x):
    base = sample(*x.shape, dtype=x.dtype)
    base = base.contiguous(memory_format=layout_of(x))
    grads = [sample(*t.shape, dtype=x.dtype) for t in plain_means(x)]

    def plain(x, base, *grads):
        means, (dx,) = differentiate(plain_means, [x], grads)
        return *means, base + dx

    return run_means(x, base, grads), plain, (x, base, *grads)


def compare_pool(x, gate_h, gate_w, sides):
    base = sample(*x.shape, dtype=x.dtype)
    base = base.contiguous(memory_format=layout_of(x))
    grad = sample(*plain_pool(x, gate_h, gate_w, sides).shape, dtype=x.dtype)

    def plain(x, gate_h, gate_w, base, grad):
        pooled, (dx, *gates) = differentiate(
            lambda *t: plain_pool(*t, sides), [x, gate_h, gate_w], grad
        )
        return pooled, base + dx, *gates

    got = run_pool(x, gate_h, gate_w, base, grad, sides)
    return got, plain, (x, gate_h, gate_w, base, grad)


def compare_gate(*values):
    grad = sample(*values[0].shape, dtype=values[0].dtype)

    def plain(*values):
        y, gradients = differentiate(plain_gate, values[:-1], values[-1])
        return y, *gradients

    return run_gate(*values, grad), plain, (*values, grad)


def layout_of(x):
    return (
        torch.contiguous_format if x.is_contiguous() else torch.channels_last
    )


@runs
@layouts
@maps
def test_scsa_is_exact(shape, sides, last):
    x, gate_h, gate_w, gate_c = inputs(shape, last=last)
    for got, plain, values in (
        compare_means(x),
        compare_pool(x, gate_h, gate_w, sides),
        compare_gate(x, gate_h, gate_w, gate_c),
    ):
        assert_exact(got, tuple(plain(*values)))


@runs
@layouts
@ways
def test_scsa_rounds_no_more_than_torch(dtype, gates, last):
    x, *others = inputs((1, 9, 15, 22), dtype, gates, last)
    for got, plain, values in (
        compare_means(x),
        compare_pool(x, *others[:2], (7, 7)),
        compare_gate(x, *others),
    ):
        exact = plain(*(t.double() for t in values))
        rounded = plain(*(t.to(dtype) for t in values))
        for triple in zip(got, rounded, exact):
            assert_no_worse(*triple, dtype)


@runs
def test_dtypes_of_scsa():
    x, *gates = inputs((1, 3, 4, 5), torch.float16, torch.float32)
    assert {t.dtype for t in scsa_triton.axis_means(x)} == {torch.float32}
    pooled = scsa_triton.gated_pool(x, *gates[:2], (2, 2))
    assert pooled.dtype == torch.float32
    for dtype in (torch.float16, torch.float32):
        gates = [t.to(dtype) for t in gates]
        found = scsa_triton.gate_backward(x, x, *gates)[1:]
        found += scsa_triton.gated_pool_backward(
            x.clone(), x, *gates[:2], pooled, (2, 2)
        )
        assert {t.dtype for t in found} == {dtype}


@runs
@layouts
def test_scsa_of_other_gradients(last):
    x, *gates = inputs((1, 8, 5, 3), last=last)
    grad = sample(1, 3, 5, 8).permute(0, 3, 2, 1)
    got = scsa_triton.gate_backward(grad, x, *gates)
    assert_exact(got, differentiate(plain_gate, [x, *gates], grad)[1])
    dx = torch.zeros_like(x)
    share = torch.ones(1, 1, 1, dtype=x.dtype, device=DEVICE)
    scsa_triton.axis_means_backward(
        dx, share.expand(1, 8, 5), share.expand(1, 8, 3)
    )
    assert_exact(dx, torch.full_like(dx, 1 / 3 + 1 / 5))


@pytest.mark.skipif(not GPU, reason='the interpreter has one thread')
@layouts
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_equal_maps_give_equal_results(dtype, last):
    shape = 2, 64, 100, 168
    x, *gates = inputs(shape, dtype, last=last)
    for function in (
        lambda: run_gsca(x, x, 2)[0],
        lambda: run_pool(x, *gates[:2], x, x[..., :14, :24], (7, 7)),
        lambda: run_gate(x, *gates, x),
    ):
        for first, second in zip(function(), function()):
            assert torch.equal(first, second)


# ------------------------------------------------------------------ compiler

KERNELS = {
    *('_sum_channels', '_standardize_key', '_weigh'),
    *('_reach', '_differentiate_key', '_differentiate_map'),
    *('_average_axes', '_add_axes', '_pool', '_differentiate_pool'),
    *('_gate', '_differentiate_gate', '_collapse'),
}
LOADS = {'_weigh': 2, '_reach': 5}
PTXAS = Path(triton.__file__).parent / 'backends/nvidia/bin/ptxas'


@pytest.mark.skipif(
    INTERPRETS or not triton.__version__.startswith('3.6.'),
    reason="uses the compiler as Triton 3.6 has it, not the interpreter's",
)
@pytest.mark.skipif(not PTXAS.exists(), reason='needs the compiler of CUDA')
def test_kernels_compile(tmp_path):
    start(__file__, TRITON_CACHE_DIR=str(tmp_path))


def call_all(shape, dtype, last):
    """Call every function on maps without storage."""
    wanted = torch.channels_last if last else torch.contiguous_format
    x = torch.empty(shape, dtype=dtype, device='meta', memory_format=wanted)
    gates = *plain_means(x), x.mean((2, 3), keepdim=True)
    run_gsca(x, x, 2)
    run_means(x, x, gates[:2])
    run_pool(x, *gates[:2], x, plain_pool(x, *gates[:2], (7, 7)), (7, 7))
    run_gate(x, *gates, x)


@runs
@layouts
@pytest.mark.parametrize('module', [GSCA(16, num_heads=2), SCSA(16)])
def test_modules_take_the_kernels(monkeypatch, module, last):
    """The functions give to the kernels what these expect."""
    found = {'gsca': gsca_triton, 'scsa': scsa_triton}
    module = copy.deepcopy(module).to(DEVICE, torch.float64)
    x = sample(2, 16, 9, 15, last=last).requires_grad_()
    wanted = [x, *module.parameters()]
    results = []
    for path in ('reference', 'auto'):
        monkeypatch.setenv('MMATTN_OPS', path)
        y = module(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), wanted)))
        for function in (gsca, scsa):
            monkeypatch.setattr(function, 'choose', lambda *_: 'triton')
            monkeypatch.setattr(function, 'kernels', lambda _, n: found[n])
    assert_exact(*results)
    assert results[0][0].stride() == results[1][0].stride()


class Recorder:
    """Takes the place of launching, and keeps what would be compiled."""

    def __init__(self):
        self.found = {}

    def __call__(self, kernel, *args, grid, warmup, num_warps=4, **kwargs):
        from triton.runtime.jit import mangle_type

        values = {**dict(zip(kernel.arg_names, args)), **kwargs}
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(kernel.params):
            name, value = parameter.name, values[parameter.name]
            is_map = isinstance(value, torch.Tensor)
            settled = not is_map and not parameter.do_not_specialize
            if parameter.is_constexpr or (settled and value == 1):
                signature[name], constants[name] = 'constexpr', value
                continue
            signature[name] = mangle_type(value)
            if is_map or (settled and value % 16 == 0):
                attributes[(i,)] = [['tt.divisibility', 16]]
        source = kernel, signature, constants, attributes, num_warps
        self.found[kernel.fn.__name__, str(source[1:])] = source


def compile_all():
    """Compile all kernels; for a process of its own, without a GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    for architecture, dtype, last, shapes in (
        # Another size of the image is nothing to be compiled for.
        (80, torch.float16, False, [(2, 64, 104, 168), (1, 64, 88, 136)]),
        (90, torch.bfloat16, True, [(2, 64, 104, 168), (1, 64, 88, 136)]),
        # Places in this map need 64 bits.
        (90, torch.float32, False, [(1, 64, 2**14, 2**12)]),
    ):
        record = Recorder()
        JITFunction.run = lambda *args, record=record, **kwargs: record(
            *args, **kwargs
        )
        call_all(shapes[0], dtype, last)
        sources = list(record.found.values())
        for shape in shapes[1:]:
            call_all(shape, dtype, last)
        assert len(record.found) == len(sources)
        assert {kernel.fn.__name__ for kernel, *_ in sources} == KERNELS
        for kernel, *source, num_warps in sources:
            compiled = triton.compile(
                ASTSource(kernel, *source),
                target=GPUTarget('cuda', architecture, 32),
                options={'num_warps': num_warps},
            )
            assert compiled.asm['cubin']
            # The loops over the channels share what they load.
            loads = compiled.asm['ttgir'].count('tt.load')
            assert loads == LOADS.get(kernel.fn.__name__, loads)


if __name__ == '__main__':
    compile_all()
