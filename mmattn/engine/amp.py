# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Mixed precision in bfloat16, on the CPU as on a GPU."""

import contextlib
from collections.abc import Iterator

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmattn.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Run the model in bfloat16 autocast, on the device that it is on.

    Beside mmengine's ``AmpOptimWrapper``, which needs a GPU. bfloat16 has the
    range of float32, so that the loss is not scaled and no state is added to
    a checkpoint. Weights and their updates stay in float32.

    Args:
        **kwargs: As of :class:`mmengine.optim.OptimWrapper`.
    """

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast the forward pass, and hold back needless communication.

        Args:
            model: The model whose forward pass is to come.
        """
        device = next(model.parameters()).device.type
        autocast = torch.autocast(device, dtype=torch.bfloat16)
        with super().optim_context(model), autocast:
            yield
