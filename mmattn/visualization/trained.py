# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""A trained model with its config, as every tool that looks at one needs it.

Alike for the detectors of mmdet, the segmentors of mmsegmentation and the
classifiers of mmpretrain.
"""

import argparse
import difflib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import CheckpointLoader
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmattn.engine import (
    check_checkpoint,
    innermost_test_dataset,
    read_config,
)
from mmattn.errors import ConfigError

SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--cfg-options``."""
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='Where to run. Default: a GPU if there is one.',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='Override settings of the config, as in tools/train.py.',
    )


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


class TrainedModel:
    """A config's model with the weights of a checkpoint, in evaluation mode.

    Args:
        config: Path of the config file.
        checkpoint: Path or URL of the checkpoint.
        device: Where to run, like ``'cpu'``.
        options: Settings that override the config's, by dotted key.

    Attributes:
        cfg (Config): The config.
        model (nn.Module): The model. Its ``dataset_meta`` holds the class
            names and colours: those with which it was trained, where the
            checkpoint says, else those of the test data.
        name (str): Name of the config, for titles.
        scope (str): ``'mmdet'``, ``'mmseg'`` or ``'mmpretrain'``.
        pipeline (Compose): The test pipeline without the steps that read
            ground truth.

    Raises:
        FileNotFoundError: If a file does not exist.
        ConfigError: If the checkpoint does not fit the config; says which
            keys are missing and which are not expected.
    """

    def __init__(
        self,
        config: str | Path,
        checkpoint: str | Path,
        device: str = 'cpu',
        options: dict | None = None,
    ) -> None:
        check_checkpoint(str(checkpoint))
        self.cfg = read_config(str(config), options)
        self.name = Path(config).stem
        self.scope = self.cfg.default_scope
        init_default_scope(self.scope)
        self.model = load_model(self.cfg, str(checkpoint), device)
        steps = innermost_test_dataset(self.cfg).pipeline
        self.pipeline = Compose(
            [step for step in steps if 'Annotations' not in step.type]
        )

    def read(self, image: str | Path | np.ndarray) -> dict:
        """Take an image through the test pipeline and the preprocessor.

        Args:
            image: Path, or values ``(H, W, 3)``, uint8, BGR.

        Returns:
            What ``model(**data, mode=...)`` takes: ``inputs``, ``(1, 3, H,
            W)``, normalised and padded, and ``data_samples``.
        """
        data = self.model.data_preprocessor(self._collate(image))
        if data.get('data_samples') is None:  # mmpretrain, without labels
            data['data_samples'] = None
        return data

    def predict(self, image: str | Path | np.ndarray) -> BaseDataElement:
        """Return the model's result for an image, as ``test_step`` does."""
        with torch.no_grad():
            (sample,) = self.model.test_step(self._collate(image))
        return sample

    def _collate(self, image: str | Path | np.ndarray) -> dict:
        if not isinstance(image, np.ndarray):
            data = dict(img_path=str(image), img_id=0)
            return pseudo_collate([self.pipeline(data)])
        size = image.shape[:2]
        data = dict(img=image, img_shape=size, ori_shape=size)
        data.update(img_path='', img_id=0)
        for step in self.pipeline.transforms[1:]:  # all but the reading
            data = step(data)
        return pseudo_collate([data])

    def picture(self, inputs: Tensor) -> np.ndarray:
        """Undo the normalisation of what :meth:`read` returns.

        Args:
            inputs: ``(1, 3, H, W)``.

        Returns:
            RGB, ``(H, W, 3)``, uint8, of the size that the model sees.
        """
        preprocessor = self.model.data_preprocessor
        image = inputs[0].float().cpu()
        if getattr(preprocessor, '_enable_normalize', False):
            mean, std = preprocessor.mean.cpu(), preprocessor.std.cpu()
            image = image * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
        image = image.clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
        # Images are read as BGR; these settings swap that for the model.
        cfg = self.cfg.model.data_preprocessor
        rgb = cfg.get('bgr_to_rgb') or cfg.get('to_rgb')
        return np.ascontiguousarray(image if rgb else image[..., ::-1])

    def module(self, name: str) -> nn.Module:
        """Return a module by its dotted name, with or without ``backbone.``.

        Raises:
            ConfigError: If there is none; names the ones that come close.
        """
        modules = dict(self.model.named_modules())
        for full in (name, f'backbone.{name}'):
            if full in modules:
                return modules[full]
        short = [full.removeprefix('backbone.') for full in modules if full]
        close = difflib.get_close_matches(name, short, n=8, cutoff=0.3)
        parts = name.split('.')
        parent = '.'.join(parts[:-1])
        beside = [n for n in short if n.rpartition('.')[0] == parent]
        shown = list(dict.fromkeys([*close, *beside]))[:12]
        raise ConfigError(
            f'{self.name} has no layer {name!r}; there are '
            f'{", ".join(shown)} and others, {len(short)} in all'
        )


def load_model(cfg: Config, checkpoint: str, device: str) -> nn.Module:
    """Build the config's model with a checkpoint's weights, for inference.

    Raises:
        ConfigError: If the checkpoint does not fit the config.
    """
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    cfg.model.pop('pretrained', None)
    cfg.model.backbone.pop('init_cfg', None)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state = loaded.get('state_dict', loaded)
    state = {key.removeprefix('module.'): v for key, v in state.items()}
    _load_state(model, state, checkpoint)
    data = innermost_test_dataset(cfg)
    model.dataset_meta = {
        **getattr(DATASETS.get(data.type), 'METAINFO', {}),
        **data.get('metainfo', {}),
        **loaded.get('meta', {}).get('dataset_meta', {}),
    }
    return model.to(device).eval()


def _load_state(model: nn.Module, state: dict, checkpoint: str) -> None:
    """Load weights that fit, all of them."""
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    # What older checkpoints lack and inference does not use.
    missing = [key for key in missing if 'num_batches_tracked' not in key]
    unexpected = [key for key in state if key not in own]
    shapes = [
        key
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    groups = {
        'missing in it': missing,
        'not in the model': unexpected,
        'of another shape': shapes,
    }
    found = [
        f'{what}: {_group(keys)}' for what, keys in groups.items() if keys
    ]
    if found:
        raise ConfigError(
            f'{checkpoint} does not fit the config; {"; ".join(found)}'
        )
    model.load_state_dict(state, strict=False)


def _group(keys: list[str]) -> str:
    """Name the modules of keys, those of most keys first.

    ``backbone.layer1.0.scsa.norm.weight`` counts for
    ``backbone.layer1.*.scsa``, for blocks repeat each other.
    """
    counts = Counter(
        '.'.join(
            '*' if part.isdigit() else part for part in key.split('.')[:4]
        )
        for key in keys
    )
    shown = [f'{name} ({count})' for name, count in counts.most_common(6)]
    more = len(counts) - len(shown)
    return ', '.join(shown) + (f' and {more} more' if more > 0 else '')
