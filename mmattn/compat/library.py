# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""``torch.library.custom_op``, or what stands in for it before torch 2.4."""

from collections.abc import Callable
from typing import Any

import torch

HAS_CUSTOM_OPS = hasattr(torch.library, 'custom_op')


class _Function:
    """A function that only autograd knows about, with a gradient of its own.

    It computes what the custom op would, for whoever calls it by name; to
    torch.compile and to other devices it is no op.
    """

    def __init__(self, function: Callable) -> None:
        self.function = self.apply = function

    def __call__(self, *args: Any) -> Any:
        return self.apply(*args)

    def register_fake(self, function: Callable) -> Callable:
        return function

    def register_autograd(
        self, backward: Callable, *, setup_context: Callable
    ) -> None:
        methods = {
            'forward': self.function,
            'setup_context': setup_context,
            'backward': backward,
        }
        methods = {name: staticmethod(m) for name, m in methods.items()}
        name = self.function.__name__
        self.apply = type(name, (torch.autograd.Function,), methods).apply


def custom_op(name: str, mutates_args: tuple[str, ...] = ()) -> Callable:
    """Return a decorator that registers a function as a custom op."""
    if HAS_CUSTOM_OPS:
        return torch.library.custom_op(name, mutates_args=mutates_args)
    return _Function
