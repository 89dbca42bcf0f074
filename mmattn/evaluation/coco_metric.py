# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""COCO's metric, computed by the faster of two libraries."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmdet.evaluation import CocoMetric as _CocoMetric
from mmdet.evaluation.metrics import coco_metric
from mmengine.logging import print_log

from mmattn.registry import METRICS


@METRICS.register_module()
class CocoMetric(_CocoMetric):
    """mmdet's ``CocoMetric``, faster where ``faster-coco-eval`` is installed.

    The numbers are the same. With ``classwise`` the number of boxes of each
    class is logged too: a score on a handful of boxes means little, and a
    class without any is in no mean. All arguments are mmdet's.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the metrics of all images; see mmdet."""
        with _faster_coco_eval():
            metrics = super().compute_metrics(results)
        if self.classwise and not self.format_only:
            self._log_boxes()
        return metrics

    def _log_boxes(self) -> None:
        """Log how many boxes each class has, crowds left out."""
        coco = self._coco_api
        counts = {
            coco.cats[i]['name']: len(
                coco.getAnnIds(catIds=[i], iscrowd=False)
            )
            for i in self.cat_ids
        }
        words = [f'{name} {count:,}' for name, count in counts.items()]
        print_log(f'Boxes of each class: {", ".join(words)}', 'current')


@contextmanager
def _faster_coco_eval() -> Iterator[None]:
    """Let mmdet's metric use faster-coco-eval, if it is installed.

    mmdet has no setting for the class that it evaluates with, only a name in
    its module.
    """
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError:
        yield
        return
    slow = coco_metric.COCOeval

    class Faster(COCOeval_faster):
        # Its own AP is of the last number of maxDets, COCO's of 100.
        summarize = slow.summarize

    coco_metric.COCOeval = Faster
    try:
        yield
    finally:
        coco_metric.COCOeval = slow
