# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Draw what a model finds in images: boxes, masks, segments or a class."""

import argparse
from pathlib import Path

import cv2
import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn
from tqdm import tqdm

from mmattn.engine import (
    check_checkpoint,
    innermost_test_dataset,
    one_line_errors,
    read_config,
)
from mmattn.errors import ConfigError
from mmattn.visualization import ResultDrawer

SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='The config file.')
    parser.add_argument('checkpoint', help='The checkpoint file or URL.')
    parser.add_argument(
        'images', nargs='+', help='Image files, or folders of them.'
    )
    parser.add_argument(
        '--out-dir', required=True, help='Folder for the pictures.'
    )
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='Where to run. Default: a GPU if there is one.',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='Lowest score of a box to draw. Default: %(default)s.',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='Override settings of the config, as in tools/train.py.',
    )
    return parser.parse_args(argv)


def find_images(paths: list[str]) -> list[Path]:
    """List image files, folders replaced by the images in them, sorted.

    Raises:
        FileNotFoundError: If a path does not exist or a folder has no image.
        ConfigError: If a file is no image.
    """
    images = []
    for path in map(Path, paths):
        if path.is_file():
            if not cv2.haveImageReader(str(path)):
                raise ConfigError(f'{path} is no readable image')
            images.append(path)
            continue
        found = [p for p in path.glob('*') if p.suffix.lower() in SUFFIXES]
        if not found:
            raise FileNotFoundError(f'no image {path}, nor a folder of images')
        images += sorted(found)
    return images


def load_model(cfg: Config, checkpoint: str, device: str) -> nn.Module:
    """Build the config's model with a checkpoint's weights, for inference.

    Its ``dataset_meta`` holds the class names and colours: those with which
    it was trained, where the checkpoint says, else those of the test data.
    """
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    cfg.model.pop('pretrained', None)
    cfg.model.backbone.pop('init_cfg', None)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    state = load_checkpoint(model, checkpoint, map_location='cpu')
    data = innermost_test_dataset(cfg)
    model.dataset_meta = {
        **getattr(DATASETS.get(data.type), 'METAINFO', {}),
        **data.get('metainfo', {}),
        **state.get('meta', {}).get('dataset_meta', {}),
    }
    return model.to(device).eval()


def build_pipeline(cfg: Config) -> Compose:
    """Return the test pipeline without the steps that read ground truth."""
    steps = innermost_test_dataset(cfg).pipeline
    return Compose([step for step in steps if 'Annotations' not in step.type])


def main() -> None:
    """Infer and draw."""
    args = parse_args()
    with one_line_errors():
        images = find_images(args.images)
        check_checkpoint(args.checkpoint)
        cfg = read_config(args.config, args.cfg_options)
        init_default_scope(cfg.default_scope)
        model = load_model(cfg, args.checkpoint, args.device)
        pipeline = build_pipeline(cfg)
        drawer = ResultDrawer(
            cfg, model.dataset_meta, args.out_dir, False, args.score_thr
        )
        for path in tqdm(images, unit='image'):
            data = pipeline(dict(img_path=str(path), img_id=0))
            with torch.no_grad():
                (sample,) = model.test_step(pseudo_collate([data]))
            drawer.draw(sample)
    print(f'{len(images)} pictures in {args.out_dir}')


if __name__ == '__main__':
    main()
