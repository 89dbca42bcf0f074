# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What `tools/train.py` and `tools/test.py` share.

Both serve mmdet, mmsegmentation and mmpretrain configs, with a GPU or without.
"""

import argparse
import contextlib
import errno
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import print_log
from mmengine.registry import MODELS, RUNNERS, DefaultScope
from mmengine.runner import CheckpointLoader, Runner

from mmattn.errors import ConfigError, DataError

from .checkpoints import find_fault, newest_checkpoint
from .safety import add_safety_arguments

#: Loops of mmengine that mmattn has a subclass of.
SAFE_LOOPS = (
    'EpochBasedTrainLoop',
    'IterBasedTrainLoop',
    'ValLoop',
    'TestLoop',
)
#: Where launchers write a process's rank, their number, and its local rank.
RANKS = {
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': (
        'OMPI_COMM_WORLD_RANK',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_LOCAL_RANK',
    ),
}
SYNC_NORMS = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm', 'NaiveSyncBN')


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors of the user's input into one line and exit code 1.

    Ctrl-C is one line, too; its exit code is 130, as of what it ends.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        print('interrupted', file=sys.stderr)
        raise SystemExit(130) from error
    except (ConfigError, DataError) as error:
        # One of a worker comes with the worker's traceback before it.
        line = str(error).strip().splitlines()[-1]
        line = line.removeprefix('mmattn.errors.DataError: ')
        raise SystemExit(f'error: {line}') from error
    except FileNotFoundError as error:
        raise SystemExit(
            f'error: {error} (relative paths start at {os.getcwd()})'
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SystemExit(
            f'error: {error}; what was saved before is whole: free some room '
            'and go on with --resume'
        ) from error
    except KeyError as error:
        # The registry's own message names what it looked for, and where.
        if 'registry' not in str(error):
            raise
        raise SystemExit(f'error: {error.args[0]}') from error


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share."""
    parser.add_argument('config', help='The config file.')
    parser.add_argument(
        '--work-dir',
        help='Folder for logs, checkpoints and metrics. Default: work_dir '
        "of the config, else work_dirs/<the config's name>.",
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='Override settings of the config: key=value pairs, where a '
        'list is written key="[a,b]" or key=a,b and nested ones '
        'key="[(a,b),(c,d)]", quoted and without spaces.',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='How the processes of a distributed run were started.',
    )
    # torchrun passes neither, torch.distributed.launch one or the other.
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help='Set by torch.distributed.launch; torchrun needs it not.',
    )
    add_safety_arguments(parser)


def read_config(path: str, options: dict | None = None) -> Config:
    """Read a config and override settings of it.

    Args:
        path: The config file.
        options: Settings by dotted key, as ``--cfg-options`` gives them.

    Raises:
        FileNotFoundError: If the file, or a base of it, does not exist.
        ConfigError: If the file is no Python.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no config {path}')
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:  # mmengine names neither file nor base
        raise ConfigError(
            f'{path} or a base of it has a syntax error: {error}'
        ) from error
    cfg.merge_from_dict(options or {})
    return cfg


def check_checkpoint(path: str) -> None:
    """Raise FileNotFoundError unless a checkpoint is a file or a URL."""
    if '://' not in path and not Path(path).is_file():
        raise FileNotFoundError(f'no checkpoint {path}')


def innermost_test_dataset(cfg: Config) -> ConfigDict:
    """Return the config of the test data set without its wrappers."""
    data = cfg.test_dataloader.dataset
    while 'dataset' in data:
        data = data.dataset
    return data


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the shared arguments to it.

    Args:
        args: Namespace with what :func:`add_run_arguments` adds.

    Returns:
        The config, ready for :func:`build_runner`.

    Raises:
        FileNotFoundError: If the file, or a base of it, does not exist.
        ConfigError: If the file is no Python.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    cfg.launcher = args.launcher
    if not torch.cuda.is_available():
        _fit_to_cpu(cfg, keep_amp=bool(getattr(args, 'amp', None)))
    keep_safe(cfg)
    return cfg


def keep_safe(cfg: Config) -> None:
    """Take mmattn's loops and hooks, which can be interrupted and resumed.

    mmengine's own are replaced; loops and hooks that a config has of another
    kind stay. A config changes their settings by the same keys as before,
    those of `PreemptionHook` and `InvalidLossHook` by
    ``default_hooks.preemption`` and ``default_hooks.invalid_loss``.

    Args:
        cfg: The config, which is changed.
    """
    for key in ('train_cfg', 'val_cfg', 'test_cfg'):
        loop = cfg.get(key)
        if loop is None:  # while {} is one with the usual settings
            continue
        if 'by_epoch' in loop:
            by_epoch = loop.pop('by_epoch')
            loop.type = f'{"Epoch" if by_epoch else "Iter"}BasedTrainLoop'
        loop.setdefault('type', {'val_cfg': 'ValLoop'}.get(key, 'TestLoop'))
        if loop.type in SAFE_LOOPS:
            loop.type = f'mmattn.{loop.type}'
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    checkpoint = hooks.setdefault('checkpoint', ConfigDict(interval=1))
    if checkpoint and checkpoint.setdefault('type', 'CheckpointHook') == (
        'CheckpointHook'
    ):
        checkpoint.type = 'mmattn.CheckpointHook'
    for name, hook in (
        ('preemption', 'PreemptionHook'),
        ('invalid_loss', 'InvalidLossHook'),
        ('mean_loss', 'MeanLossHook'),
    ):
        settings = hooks.setdefault(name, ConfigDict())
        if settings is None:  # the runner knows that of its own hooks only
            del hooks[name]
        else:
            settings.setdefault('type', f'mmattn.{hook}')
    randomness = cfg.setdefault('randomness', ConfigDict())
    if randomness.get('seed') is None:
        randomness.seed = 0
    check_seed(randomness.seed)


def check_seed(seed: int) -> None:
    """Raise ConfigError unless a seed is a whole number from 0."""
    if not isinstance(seed, int) or seed < 0:
        raise ConfigError(
            f'the seed must be a whole number from 0, not {seed}'
        )


def enable_amp(cfg: Config, dtype: str = 'auto') -> None:
    """Train in mixed precision.

    Args:
        cfg: The config, which is changed.
        dtype: ``'fp16'`` or ``'float16'``, ``'bf16'`` or ``'bfloat16'``, or
            ``'auto'``: on a GPU what the config's own ``AmpOptimWrapper``
            says, else float16; bfloat16 on a CPU.

    Raises:
        ConfigError: If the device has no such precision, or the config's
            optimiser wrapper is of another kind.
    """
    gpu = torch.cuda.is_available()
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(
            f'--amp needs optim_wrapper.type OptimWrapper or AmpOptimWrapper '
            f'in the config, which has {kind}'
        )
    if dtype == 'auto' and gpu and kind == 'AmpOptimWrapper':
        return
    if dtype == 'auto':
        dtype = 'float16' if gpu else 'bfloat16'
    if dtype in ('fp16', 'float16'):
        if not gpu:
            raise ConfigError(
                f'--amp {dtype} needs a GPU and there is none; --amp bf16 '
                'trains on the CPU'
            )
        wrapper.type = 'AmpOptimWrapper'
        wrapper.dtype = 'float16'
        wrapper.setdefault('loss_scale', 'dynamic')
        return
    if gpu and not torch.cuda.is_bf16_supported():
        raise ConfigError(
            f'--amp {dtype}: {torch.cuda.get_device_name()} has no bfloat16; '
            'use --amp fp16'
        )
    wrapper.type = 'mmattn.BFloat16OptimWrapper'
    _drop_amp_settings(wrapper)


def _drop_amp_settings(wrapper: ConfigDict) -> None:
    """Remove what only mmengine's AmpOptimWrapper takes."""
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        wrapper.pop(key, None)


def start_backbone(cfg: Config, path: str) -> None:
    """Make the backbone start from that of a trained model.

    Args:
        cfg: The config, which is changed.
        path: Checkpoint of a model of any framework with the same backbone,
            or of the backbone alone.

    Raises:
        ConfigError: If the checkpoint has no weights of the backbone.
        FileNotFoundError: If it does not exist.
    """
    check_checkpoint(path)
    checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    weights = checkpoint.get('state_dict', checkpoint)
    prefix = 'backbone.'
    if not any(key.startswith(prefix) for key in weights):
        prefix = ''
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        wanted = MODELS.build(cfg.model.backbone).state_dict()
    if not any(prefix + key in weights for key in wanted):
        raise ConfigError(
            f'{path} has no weights of the backbone; it has '
            f'{", ".join(list(weights)[:3])}, ..., wanted are '
            f'{", ".join(list(wanted)[:3])}, ...'
        )
    cfg.model.pop('pretrained', None)  # mmseg's and mmdet's older forms
    cfg.model.backbone.pop('pretrained', None)
    cfg.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=path, prefix=prefix or None
    )


def make_deterministic(cfg: Config) -> None:
    """Give the same bits every time, on a GPU too."""
    cfg.randomness.deterministic = True
    # What cuBLAS asks for; it has to be there before the first GPU call.
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')


def resume(cfg: Config, checkpoint: str = 'auto') -> None:
    """Continue a run.

    Args:
        cfg: The config, which is changed.
        checkpoint: A file or URL; or ``'auto'`` for the newest whole one in
            the run's folder, or the start if there is none.

    Raises:
        ConfigError: The checkpoint is damaged.
        FileNotFoundError: It does not exist.
    """
    if checkpoint == 'auto':
        checkpoint = newest_checkpoint(cfg.work_dir)
        if checkpoint is None:
            _note(f'no checkpoint in {cfg.work_dir}: from the start')
            return
    check_checkpoint(checkpoint)
    if '://' not in checkpoint and (fault := find_fault(checkpoint)):
        raise ConfigError(
            f'{checkpoint} is damaged: {fault}; --resume without a value '
            'takes the newest one that is whole'
        )
    cfg.resume = True
    cfg.load_from = checkpoint


def describe_learning_rate(cfg: Config, processes: int) -> str:
    """Say in a line which rate a run starts with, beside the papers'.

    Args:
        cfg: The config. Its ``papers``, if any, hold ``batch_size`` and
            ``lr`` of each paper.
        processes: Number of processes, one a GPU.
    """
    each = cfg.train_dataloader.batch_size
    if 'optimizer' not in cfg.optim_wrapper:
        return f'{processes} x {each} images a step, several optimisers'
    lr = cfg.optim_wrapper.optimizer.lr
    scale = cfg.get('auto_scale_lr') or {}
    if scale.get('enable'):
        lr *= processes * each / scale['base_batch_size']
    papers = [
        f'{name} {paper["lr"]:g} for {paper["batch_size"]}'
        for name, paper in (cfg.get('papers') or {}).items()
    ]
    return (
        f'{processes} x {each} images a step, learning rate {lr:g}'
        + (' (papers: ' if papers else '')
        + ', '.join(papers)
        + (')' if papers else '')
    )


def build_runner(cfg: Config) -> Runner:
    """Build the config's runner, after joining the other processes.

    Raises:
        ConfigError: The launcher did not tell this process its rank.
    """
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        # mmengine's launchers call torch.cuda.set_device; a group that
        # exists already makes it skip that.
        _read_ranks(cfg.launcher)
        torch.distributed.init_process_group('gloo')
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def _read_ranks(launcher: str) -> None:
    """Set the variables of torchrun from those of another launcher."""
    wanted = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
    for name, source in zip(wanted, RANKS.get(launcher, wanted)):
        if source not in os.environ:
            raise ConfigError(
                f'--launcher {launcher}: {source} is not set; start the '
                'processes with tools/dist_train.sh, tools/slurm_train.sh or '
                'mpirun'
            )
        os.environ[name] = os.environ[source]
    os.environ.setdefault('MASTER_ADDR', _first_host())
    os.environ.setdefault('MASTER_PORT', '29500')


def _first_host() -> str:
    """Return the host of rank 0: Slurm's first, else this one."""
    nodes = os.environ.get('SLURM_STEP_NODELIST')
    if not nodes:
        return '127.0.0.1'
    command = ['scontrol', 'show', 'hostnames', nodes]
    return subprocess.check_output(command, text=True).split()[0]


def leave_processes() -> None:
    """Part from the other processes of a distributed run, at its end.

    A process that ends with its threads of communication running may abort,
    and torchrun would then call a finished run a failure.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _fit_to_cpu(cfg: Config, keep_amp: bool = False) -> None:
    """Replace what only a GPU can do by what the CPU does as well.

    Args:
        cfg: The config, which is changed.
        keep_amp: Leave mixed precision to :func:`enable_amp`.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type') == 'AmpOptimWrapper' and not keep_amp:
        _note(
            "the config's mixed precision needs a GPU and there is none: "
            'float32 is used (--amp bf16 trains in bfloat16 on the CPU)'
        )
        wrapper.type = 'OptimWrapper'
        _drop_amp_settings(wrapper)
    if cfg.launcher == 'none':
        return
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    # The runner would pass the local rank, which is refused for CPU modules.
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    replaced = _replace_sync_norms(cfg.model)
    if cfg.pop('sync_bn', None) or replaced:
        _note('synchronised batch norm needs GPUs: BN of each process is used')


def _replace_sync_norms(node: object) -> int:
    """Make every synchronised norm below a config node a BN; count them."""
    if isinstance(node, (list, tuple)):
        return sum(map(_replace_sync_norms, node))
    if not isinstance(node, dict):
        return 0
    count = sum(map(_replace_sync_norms, node.values()))
    if node.get('type') in SYNC_NORMS:
        node['type'] = 'BN'
        count += 1
    return count


def _note(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
