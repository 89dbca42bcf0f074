# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
from .launch import (
    add_run_arguments,
    build_runner,
    check_checkpoint,
    check_seed,
    describe_learning_rate,
    enable_amp,
    innermost_test_dataset,
    leave_processes,
    load_config,
    make_deterministic,
    one_line_errors,
    read_config,
    resume,
    start_backbone,
)
from .record import record_run

__all__ = [
    'add_run_arguments',
    'build_runner',
    'check_checkpoint',
    'check_seed',
    'describe_learning_rate',
    'enable_amp',
    'innermost_test_dataset',
    'leave_processes',
    'load_config',
    'make_deterministic',
    'one_line_errors',
    'read_config',
    'record_run',
    'resume',
    'start_backbone',
]
