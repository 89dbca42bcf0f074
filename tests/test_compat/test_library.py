# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What stands in for custom ops before torch 2.4, on any torch."""

import torch

from mmattn.compat import library


def test_a_function_takes_the_gradient_that_is_registered(monkeypatch):
    monkeypatch.setattr(library, 'HAS_CUSTOM_OPS', False)

    @library.custom_op('mmattn::scaled')
    def scaled(x, factor):
        return x * factor, x.exp()

    @scaled.register_fake
    def _(x, factor):
        return torch.empty_like(x), torch.empty_like(x)

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y, _ = scaled(x, 3.0)  # without a gradient of its own: that of torch
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [3, 3]

    def keep(ctx, inputs, output):
        x, ctx.factor = inputs
        ctx.save_for_backward(x, output[1])

    def differentiate(ctx, grad, _):
        x, exp = ctx.saved_tensors
        assert torch.equal(exp, x.exp())
        return 100 * grad * ctx.factor, None

    scaled.register_autograd(differentiate, setup_context=keep)
    y, _ = scaled(x, 3.0)
    assert y.tolist() == [3, 6]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [300, 300]
