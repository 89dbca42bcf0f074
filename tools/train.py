# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Train the model of a config: detector, segmentor or classifier."""

import argparse

from mmattn.engine import (
    add_run_arguments,
    build_runner,
    describe_learning_rate,
    enable_amp,
    leave_processes,
    load_config,
    one_line_errors,
    start_backbone,
)
from mmattn.errors import ConfigError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser)
    parser.add_argument(
        '--amp',
        nargs='?',
        const='auto',
        choices=['fp16', 'bf16', 'float16', 'bfloat16'],
        help='Train in mixed precision; without a value in float16 on a GPU '
        'and in bfloat16 on the CPU, which has no other.',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='Scale the learning rate by the batch size, as '
        'auto_scale_lr=dict(enable=True) in the config does.',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='Continue from a checkpoint; without a value from the latest '
        'one in the work dir.',
    )
    parser.add_argument(
        '--backbone',
        metavar='CHECKPOINT',
        help='Start the backbone from that of a trained model, such as a '
        "classifier with the same attention, instead of the config's own "
        'start.',
    )
    return parser.parse_args(argv)


def main() -> None:
    """Train."""
    args = parse_args()
    with one_line_errors():
        cfg = load_config(args)
        if args.amp is not None:
            enable_amp(cfg, args.amp)
        if args.auto_scale_lr:
            if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
                raise ConfigError(
                    f'--auto-scale-lr: {args.config} has no auto_scale_lr='
                    'dict(base_batch_size=...) that says for which batch '
                    'size its learning rate is meant'
                )
            cfg.auto_scale_lr.enable = True
        if args.resume is not None:
            cfg.resume = True
            cfg.load_from = None if args.resume == 'auto' else args.resume
        if args.backbone is not None:
            start_backbone(cfg, args.backbone)
        runner = build_runner(cfg)
        runner.logger.info(describe_learning_rate(cfg, runner.world_size))
        runner.train()
        leave_processes()


if __name__ == '__main__':
    main()
