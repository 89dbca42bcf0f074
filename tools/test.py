# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Evaluate a checkpoint on the test split of its config."""

import argparse
from collections.abc import Sequence
from copy import deepcopy

import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults

from mmattn.engine import (
    add_run_arguments,
    build_runner,
    check_checkpoint,
    innermost_test_dataset,
    leave_processes,
    load_config,
    one_line_errors,
)
from mmattn.errors import ConfigError
from mmattn.visualization import ResultDrawer, ShowResultsHook

#: Test-time augmentation of a config that states none, by default scope.
TTA_MODELS = {
    'mmdet': dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    'mmseg': dict(type='SegTTAModel'),
    'mmpretrain': dict(type='AverageClsScoreTTA'),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser)
    parser.add_argument('checkpoint', help='The checkpoint file or URL.')
    parser.add_argument(
        '--out',
        metavar='FILE.pkl',
        help='Save the predictions, one dict an image, for offline use.',
    )
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help='Draw ground truth and prediction of the images into DIR.',
    )
    parser.add_argument(
        '--show-limit',
        type=int,
        metavar='N',
        help='Draw the first N images only.',
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='Average over test-time augmentations: those of the config, '
        'else the image and its mirror image.',
    )
    return parser.parse_args(argv)


def augment_tests(cfg: Config) -> None:
    """Wrap the model so that it averages over augmented images.

    Raises:
        ConfigError: If the framework cannot average this model's results.
    """
    wrapper = cfg.get('tta_model') or TTA_MODELS.get(cfg.default_scope)
    if wrapper is None:
        raise ConfigError(
            f'--tta: the config has no tta_model, and there is no default '
            f'for default_scope={cfg.default_scope!r}'
        )
    if 'mask_head' in (cfg.model.get('roi_head') or {}):
        raise ConfigError('--tta: mmdet averages boxes, but not masks')
    data = innermost_test_dataset(cfg)
    if 'tta_pipeline' not in cfg:
        flips = [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)]
        pack = deepcopy(data.pipeline[-1])
        if 'meta_keys' in pack:
            # Merging needs to know which results to mirror back.
            pack.meta_keys = (*pack.meta_keys, 'flip', 'flip_direction')
        cfg.tta_pipeline = [
            *deepcopy(data.pipeline[:-1]),
            dict(type='TestTimeAug', transforms=[flips, [pack]]),
        ]
    data.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**wrapper, module=cfg.model)


class DumpLabels(DumpResults):
    """Saves a segmentor's labels; its logits would fill the memory."""

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the labels of a batch, as 16-bit integers."""
        for sample in data_samples:
            labels = sample['pred_sem_seg']['data'].to('cpu', torch.int16)
            self.results.append(
                {
                    'img_path': sample['img_path'],
                    'ori_shape': sample['ori_shape'],
                    'pred_sem_seg': labels,
                }
            )


def dump_metric(cfg: Config, path: str) -> DumpResults:
    """Return the metric that saves predictions; masks are saved as RLE."""
    if not path.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out {path} must end in .pkl or .pickle')
    if cfg.default_scope == 'mmseg':
        return DumpLabels(path)
    if cfg.default_scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(path)
    return DumpResults(path)


def main() -> None:
    """Test."""
    args = parse_args()
    with one_line_errors():
        check_checkpoint(args.checkpoint)
        cfg = load_config(args)
        cfg.load_from = args.checkpoint
        if args.tta:
            augment_tests(cfg)
        dump = dump_metric(cfg, args.out) if args.out else None
        runner = build_runner(cfg)
        if dump:
            runner.test_evaluator.metrics.append(dump)
        if args.show_dir:
            meta = runner.test_dataloader.dataset.metainfo
            drawer = ResultDrawer(cfg, meta, args.show_dir, draw_gt=True)
            runner.register_hook(ShowResultsHook(drawer, args.show_limit))
        runner.test()
        leave_processes()


if __name__ == '__main__':
    main()
