# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Train the model of a config: detector, segmentor or classifier."""

import argparse

from mmengine.config import Config

from mmattn.engine import (
    add_run_arguments,
    build_runner,
    check_seed,
    describe_learning_rate,
    enable_amp,
    leave_processes,
    load_config,
    make_deterministic,
    one_line_errors,
    record_run,
    resume,
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
        choices=['auto', 'fp16', 'bf16', 'float16', 'bfloat16'],
        help='Train in mixed precision: by itself (auto) in float16 on a GPU '
        'and in bfloat16 on the CPU, which has no float16.',
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
        'whole one in the work dir, or from the start if there is none.',
    )
    parser.add_argument(
        '--seed',
        type=int,
        help='Seed of the run. Default: that of the config, else 0.',
    )
    parser.add_argument(
        '--deterministic',
        action='store_true',
        help='Use algorithms that give the same bits every time, also on a '
        'GPU, where some are slower and operations without one are refused.',
    )
    parser.add_argument(
        '--backbone',
        metavar='CHECKPOINT',
        help='Start the backbone from that of a trained model, such as a '
        "classifier with the same attention, instead of the config's own "
        'start.',
    )
    return parser.parse_args(argv)


def training_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the command line to it.

    Raises:
        ConfigError: They do not fit.
    """
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
    if args.seed is not None:
        check_seed(args.seed)
        cfg.randomness.seed = args.seed
    if args.deterministic:
        make_deterministic(cfg)
    if args.backbone is not None:
        start_backbone(cfg, args.backbone)
    if args.resume is not None:
        resume(cfg, args.resume)
    elif cfg.get('resume'):
        resume(cfg, cfg.get('load_from') or 'auto')
    return cfg


def main() -> None:
    """Train."""
    args = parse_args()
    with one_line_errors():
        cfg = training_config(args)
        runner = build_runner(cfg)
        record_run(runner, args.config)
        runner.logger.info(describe_learning_rate(cfg, runner.world_size))
        runner.train()
        leave_processes()


if __name__ == '__main__':
    main()
