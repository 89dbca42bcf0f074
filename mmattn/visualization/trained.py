# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""A trained model with its config, as every tool that looks at one needs it.

Alike for the detectors of mmdet, the segmentors of mmsegmentation and the
classifiers of mmpretrain.
"""

import argparse
import contextlib
import difflib
import io
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from mmattn.engine.safety import add_safety_arguments
from mmattn.errors import ConfigError

SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, ``--cfg-options`` and the switches of safety."""
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
    add_safety_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what tools have that set several models side by side.

    Those are the images, ``--out-dir`` and what :func:`add_models` and
    :func:`add_device_arguments` add.
    """
    parser.add_argument(
        'images', nargs='+', help='Image files, or folders of them.'
    )
    add_models(parser)
    parser.add_argument(
        '--out-dir', required=True, help='Folder for the results.'
    )
    add_device_arguments(parser)


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add ``--model`` and ``--names``."""
    parser.add_argument(
        '--model',
        nargs=2,
        action='append',
        required=True,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='A config and its checkpoint, a file or URL. Once for each of '
        'the models that are to stand side by side.',
    )
    parser.add_argument(
        '--names',
        nargs='+',
        help='Titles of the models. Default: the names of their configs.',
    )


def check_model_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for what cannot be done, before any work.

    Args:
        args: Namespace with what :func:`add_model_arguments` adds.
    """
    names = args.names or []
    if names and len(names) != len(args.model):
        raise ConfigError(
            f'--names gives {len(names)} titles to {len(args.model)} models'
        )
    if len(set(names)) < len(names):
        raise ConfigError(f'--names {" ".join(names)}: a title comes twice')
    there = _first_existing(Path(args.out_dir).absolute())
    if not there.is_dir():
        raise ConfigError(f'--out-dir {args.out_dir}: {there} is a file')
    try:
        torch.empty(1, device=args.device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).partition('\n')[0]
        raise ConfigError(f'--device {args.device}: {reason}') from error


def load_models(args: argparse.Namespace) -> list['TrainedModel']:
    """Load the models of ``--model``, each with a ``name`` of its own.

    Args:
        args: Namespace with what :func:`add_model_arguments` adds.

    Raises:
        ConfigError: If two would have one name, or a checkpoint does not fit
            its config.
        FileNotFoundError: If a file does not exist.
    """
    names = args.names or [Path(config).stem for config, _ in args.model]
    if len(set(names)) < len(names):  # one config, several checkpoints
        names = [
            f'{name} {Path(checkpoint).stem}'
            for name, (_, checkpoint) in zip(names, args.model)
        ]
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(
                f'{count} models are called {name}; give --names'
            )
    models = [
        TrainedModel(config, checkpoint, args.device, args.cfg_options)
        for config, checkpoint in args.model
    ]
    for model, name in zip(models, names):
        model.name = name
    return models


@contextlib.contextmanager
def all_or_nothing(folder: str | Path) -> Iterator[Path]:
    """Give a folder whose files go into another one at the end.

    After an error there is none of them, and no new folder.
    """
    folder = Path(folder).absolute()
    with tempfile.TemporaryDirectory(
        prefix='.partial-', dir=_first_existing(folder)
    ) as partial:
        yield Path(partial)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(Path(partial).iterdir()):
            os.replace(file, folder / file.name)


def _first_existing(folder: Path) -> Path:
    """Return an absolute path, or the nearest parent that there is."""
    return next(p for p in (folder, *folder.parents) if p.exists())


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


def evenly(total: int, limit: int | None) -> list[int]:
    """Choose images of a data set, evenly spread, as it is often sorted.

    Args:
        total: Number of images that there are.
        limit: Number of images wanted; None for all.

    Returns:
        Their indices, rising.
    """
    count = min(total, limit or total)
    return (np.arange(count) * total // count).tolist()


def build_test_data(cfg: Config) -> Any:
    """Build the test data set of a config, without a word.

    Raises:
        ConfigError: If it cannot be read, as when it has no images.
        FileNotFoundError: If it is not there.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return DATASETS.build(cfg.test_dataloader.dataset)
    except ConfigError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).partition('\n')[0]
        raise ConfigError(
            f'the test data cannot be read; is it complete? {reason}'
        ) from error


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
        return np.ascontiguousarray(
            image if self._takes_rgb() else image[..., ::-1]
        )

    def normalize(self, image: np.ndarray) -> Tensor:
        """Do what :meth:`picture` undoes, without the test pipeline.

        Args:
            image: RGB, ``(H, W, 3)``, uint8.

        Returns:
            ``(1, 3, H, W)``, on the model's device.
        """
        preprocessor = self.model.data_preprocessor
        image = image if self._takes_rgb() else image[..., ::-1]
        image = np.ascontiguousarray(image.transpose(2, 0, 1))
        inputs = torch.from_numpy(image).to(preprocessor.device).float()
        if getattr(preprocessor, '_enable_normalize', False):
            inputs = (inputs - preprocessor.mean) / preprocessor.std
        return inputs[None]

    def _takes_rgb(self) -> bool:
        # Images are read as BGR; these settings swap that for the model.
        cfg = self.cfg.model.data_preprocessor
        return bool(cfg.get('bgr_to_rgb') or cfg.get('to_rgb'))

    def stages(self) -> list[str]:
        """Name the layers at the ends of the backbone's stages, in order.

        Stages are numbered as plugins number them; MobileNetV2 and
        ShuffleNetV2 have a convolution behind them, which comes last.

        Raises:
            ConfigError: If the backbone is not built of stages.
        """
        backbone = self.model.backbone
        kinds = ('res_layers', 'stages', 'layers')
        kind = next((k for k in kinds if getattr(backbone, k, None)), None)
        if kind is None:
            raise ConfigError(
                f'{self.name}: it is not known what the stages of a '
                f'{type(backbone).__name__} are'
            )
        stages = getattr(backbone, kind)
        names = [
            stage if isinstance(stage, str) else f'{kind}.{i}'
            for i, stage in enumerate(stages)
        ]
        # A stage of Swin returns more than its map, its last block does not.
        blocks = [getattr(self.module(name), 'blocks', ()) for name in names]
        return [
            f'{name}.blocks.{len(inner) - 1}' if len(inner) else name
            for name, inner in zip(names, blocks)
        ]

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


def as_map(output: Tensor, size: tuple[int, int], name: str) -> Tensor:
    """Lay out what a layer returns as a map.

    Args:
        output: Map ``(B, C, H', W')``, which is returned as it is, or tokens
            ``(B, H' * W', C)``, as Swin's blocks return them.
        size: Height and width of the model's input.
        name: Name of the layer, for the message.

    Raises:
        ConfigError: If it is neither.
    """
    dimensions = output.ndim if isinstance(output, Tensor) else 0
    if dimensions == 4:
        return output
    for stride in (4, 8, 16, 32, 64) if dimensions == 3 else ():
        grid = [-(-side // stride) for side in size]
        if output.shape[1] == grid[0] * grid[1]:
            return output.transpose(1, 2).unflatten(2, grid)
    what = (
        f'of shape {tuple(output.shape)}'
        if dimensions
        else f'a {type(output).__name__}'
    )
    raise ConfigError(f'layer {name!r} returns {what}, which is no map')


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
