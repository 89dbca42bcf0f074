# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Pictures of results, alike for detectors, segmentors and classifiers."""

from collections.abc import Sequence
from pathlib import Path

import mmcv
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import VISUALIZERS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement


class ResultDrawer:
    """Draws results with the visualizer of the config's framework.

    Args:
        cfg: Config with ``visualizer`` and ``default_scope``.
        dataset_meta: Class names, and colours if there are any.
        out_dir: Folder for the pictures.
        draw_gt: Whether to draw the ground truth, on the left.
        score_thr: Lowest score of a box to draw.
    """

    def __init__(
        self,
        cfg: Config,
        dataset_meta: dict,
        out_dir: str | Path,
        draw_gt: bool,
        score_thr: float = 0.3,
    ) -> None:
        self.scope = cfg.default_scope
        self.visualizer = VISUALIZERS.build(
            {
                **cfg.visualizer,
                'name': f'results_{id(self)}',
                'vis_backends': None,
            }
        )
        self.visualizer.dataset_meta = dataset_meta
        self.out_dir = Path(out_dir)
        self.draw_gt = draw_gt
        self.score_thr = score_thr
        self.taken: set[str] = set()

    def draw(self, sample: BaseDataElement) -> Path:
        """Draw one result and return the picture's path.

        Args:
            sample: Prediction, with ``img_path`` and the ground truth, of any
                of the frameworks.
        """
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        out_file = self.out_dir / self._name(Path(sample.img_path))
        args = dict(
            name=out_file.stem,
            image=image,
            data_sample=sample.cpu(),
            draw_gt=self.draw_gt,
            out_file=str(out_file),
        )
        if self.scope == 'mmpretrain':
            self.visualizer.visualize_cls(**args)
        elif self.scope == 'mmseg':
            self.visualizer.add_datasample(**args)
        else:
            self.visualizer.add_datasample(
                **args, pred_score_thr=self.score_thr
            )
        return out_file

    def _name(self, path: Path) -> str:
        # Class folders often hold files of the same names, and processes do
        # not know each other's.
        name = path.stem
        if get_world_size() > 1:
            name = f'{path.parent.name}_{name}'
        for parent in path.parents:
            if name not in self.taken:
                break
            name = f'{parent.name}_{name}'
        self.taken.add(name)
        return f'{name}.png'


class ShowResultsHook(Hook):
    """Draws test results, ground truth beside prediction.

    Args:
        drawer: What draws them.
        limit: Number of images to draw, in each process; None draws all.
    """

    def __init__(self, drawer: ResultDrawer, limit: int | None) -> None:
        self.drawer = drawer
        self.limit = limit

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Draw the results of a batch."""
        for sample in outputs or ():
            if self.limit is None or len(self.drawer.taken) < self.limit:
                self.drawer.draw(sample)
