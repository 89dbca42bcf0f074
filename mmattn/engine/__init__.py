# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from .launch import (
    add_run_arguments,
    build_runner,
    enable_amp,
    leave_processes,
    load_config,
    one_line_errors,
)

__all__ = [
    'add_run_arguments',
    'build_runner',
    'enable_amp',
    'leave_processes',
    'load_config',
    'one_line_errors',
]
