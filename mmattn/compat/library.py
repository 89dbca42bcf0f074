# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""``torch.library.custom_op``, or what stands in for it before torch 2.4."""

from collections.abc import Callable

import torch

HAS_CUSTOM_OPS = hasattr(torch.library, 'custom_op')


class _Unregistered:
    """A function that takes the registrations of a custom op and drops them.

    What is built on custom ops is not used then; the module that defines
    them has to be importable all the same.
    """

    def __init__(self, function: Callable) -> None:
        self.function = function

    def register_fake(self, function: Callable) -> Callable:
        return function

    def register_autograd(self, function: Callable, **_: Callable) -> None:
        pass


def custom_op(name: str, mutates_args: tuple[str, ...] = ()) -> Callable:
    """Return a decorator that registers a function as a custom op."""
    if HAS_CUSTOM_OPS:
        return torch.library.custom_op(name, mutates_args=mutates_args)
    return _Unregistered
