# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Whether torch is compiling or exporting, under one name for all torches."""

import torch

if hasattr(torch.compiler, 'is_compiling'):
    is_compiling = torch.compiler.is_compiling
else:  # torch 2.1 and 2.2
    is_compiling = torch._utils.is_compiling
