# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""COCO's format, with the classes of the config and of the file compared."""

import logging
import math
from pathlib import Path

from mmdet.datasets import CocoDataset as _CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.logging import print_log

from mmattn.errors import ConfigError
from mmattn.registry import DATASETS


@DATASETS.register_module()
class CocoDataset(_CocoDataset):
    """mmdet's ``CocoDataset`` that refuses the classes of another file.

    mmdet numbers the labels by the order of ``categories`` in the annotation
    file and leaves out, without a word, each class of ``metainfo`` that the
    file lacks. A misspelt class or another order so shows as a bad score
    only; here it is an error.

    It also leaves out boxes with NaN or infinity, so that their objects count
    as background. Here their images are left out, with a warning, and too
    many of them are an error; in an evaluation one is too many.

    Args:
        ann_file: As mmdet's.
        metainfo: As mmdet's.
        args: The others of mmdet's.
        max_skipped: Images to leave out for boxes that are not finite.
        kwargs: The others of mmdet's.

    Raises:
        ConfigError: ``classes`` is a single string, one of them is not in
            the annotation file, they stand in another order there, the file
            is no JSON or lists no image, ``filter_cfg`` leaves none, or too
            many have boxes that are not finite.
        FileNotFoundError: There is no annotation file.
    """

    def __init__(
        self,
        ann_file: str = '',
        metainfo: dict | None = None,
        *args,
        max_skipped: int = 10,
        **kwargs,
    ) -> None:
        self.max_skipped = max_skipped
        classes = (metainfo or {}).get('classes')
        if isinstance(classes, str):
            raise ConfigError(
                f'metainfo.classes is the string {classes!r}; a single class '
                f'is written ({classes!r}, ), with a comma'
            )
        super().__init__(ann_file, metainfo, *args, **kwargs)

    def COCOAPI(self, path: str) -> COCO:  # noqa: N802 (mmdet's name)
        """Load an annotation file; mmdet calls it before it uses any."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f'no annotation file {path}; docs/datasets.md says where '
                'each data set comes from and how it is converted'
            )
        try:
            coco = COCO(path)
        except ValueError as error:
            raise ConfigError(f'{path} is no JSON: {error}') from error
        self._annotations = coco.dataset.get('annotations', [])
        if not coco.imgs:
            raise ConfigError(f'{path} lists no images')
        categories = coco.dataset.get('categories', [])
        check_classes(
            self.metainfo['classes'], [c['name'] for c in categories], path
        )
        return coco

    def load_data_list(self) -> list[dict]:
        """List the images, without those whose boxes are not finite."""
        data = super().load_data_list()
        damaged = {
            annotation['image_id']
            for annotation in self._annotations
            if not all(map(math.isfinite, annotation.get('bbox', ())))
        }
        self._annotations = []  # the parsed ones are enough
        paths = [d['img_path'] for d in data if d['img_id'] in damaged]
        if not paths:
            return data
        allowed = 0 if self.test_mode else self.max_skipped
        text = (
            f'{self.ann_file} has boxes with NaN or infinity in {len(paths)} '
            f'images (allowed: {allowed}), such as {paths[0]}'
        )
        if len(paths) > allowed:
            raise ConfigError(text)
        print_log(f'skipped: {text}', 'current', logging.WARNING)
        return [d for d in data if d['img_id'] not in damaged]

    def filter_data(self) -> list[dict]:
        """Leave out what ``filter_cfg`` says, but not everything."""
        data = super().filter_data()
        if self.data_list and not data:
            raise ConfigError(
                f'{self.ann_file}: filter_cfg={self.filter_cfg} leaves none '
                f'of its {len(self.data_list):,} images; has any a box of '
                f'{", ".join(self.metainfo["classes"])}?'
            )
        return data


def check_classes(classes: list[str], categories: list[str], path) -> None:
    """Compare the classes of a config with those of an annotation file.

    The file may have more classes, but what is wanted must be in it and in
    the same order, as that order numbers the labels.

    Args:
        classes: Names of the config, in order.
        categories: Names of the file, in order.
        path: The file, for the message.

    Raises:
        ConfigError: They do not agree; shows both lists.
    """
    if list(classes) == [name for name in categories if name in classes]:
        return
    missing = [repr(name) for name in classes if name not in categories]
    raise ConfigError(
        f'{path} has '
        + (f'no class {", ".join(missing)}' if missing else 'another order')
        + f'; classes of the config: {", ".join(classes)}; of the file: '
        + ', '.join(categories)
    )
