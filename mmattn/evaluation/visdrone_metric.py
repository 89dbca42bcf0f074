# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The metric of the VisDrone challenge for detection in images.

Written after the official toolkit for Matlab (VisDrone2018-DET-toolkit).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine import load
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from mmattn.datasets.coco import check_classes
from mmattn.registry import METRICS

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the IoU
MAX_DETECTIONS = (1, 10, 100, 500)  # of an image, all classes together


class Truth(NamedTuple):
    """What is in an image."""

    boxes: np.ndarray  # (N, 4), x, y, w, h in px
    labels: np.ndarray  # (N, )
    regions: np.ndarray  # (R, 4) ignored regions
    size: tuple[int, int]  # height, width in px


class Matches(NamedTuple):
    """The detections of a class, of one image or of several, by score."""

    scores: np.ndarray  # (N, )
    ranks: np.ndarray  # (N, ) among all detections of the image, from 0
    correct: np.ndarray  # (10, N) bool, at each threshold


@METRICS.register_module()
class VisDroneMetric(BaseMetric):
    """AP and AR as the VisDrone challenge computes them, in percent.

    They are not COCO's: the precision is taken at every recall, not at 101,
    the 1, 10, 100 or 500 best detections of an image count over all classes
    together, boxes and detections of which half or more lies in ignored
    regions are removed, and a class weighs as much as it occurs in images.
    ``AP``, ``AP50`` and ``AP75`` are of 500 detections, ``AR1`` to ``AR500``
    are the mean over the thresholds 0.5 to 0.95 of the highest recall.

    Args:
        ann_file: What tools/dataset_converters/visdrone.py has written.
        collect_device: See mmengine's ``BaseMetric``.
        prefix: Goes in front of the names of the metrics.
    """

    default_prefix = 'visdrone'

    def __init__(
        self,
        ann_file: str,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ann_file = ann_file

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the detections of a batch."""
        for sample in data_samples:
            found = sample['pred_instances']
            boxes = found['bboxes'].cpu().numpy().astype(float)
            boxes[:, 2:] -= boxes[:, :2]
            scores = found['scores'].cpu().numpy()
            # Matlab's sort keeps the order of equals too.
            order = np.argsort(-scores, kind='stable')
            self.results.append(
                (
                    sample['img_id'],
                    boxes[order],
                    found['labels'].cpu().numpy()[order],
                    scores[order],
                )
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the metrics of all images.

        Args:
            results: Image id, boxes (x, y, w, h), labels and scores of each
                image, by falling score.

        Raises:
            ConfigError: The classes of the data set are not those of the
                annotation file.
        """
        classes = self.dataset_meta['classes']
        truths = read_truths(self.ann_file, classes)
        matches: list[list[Matches]] = [[] for _ in classes]
        boxes = np.zeros(len(classes), int)
        weights = np.zeros(len(classes), int)
        for image_id, *found in sorted(results, key=lambda r: r[0]):
            truth, (found, labels, scores) = keep(truths[image_id], *found)
            for label in range(len(classes)):
                wanted = truth.boxes[truth.labels == label]
                boxes[label] += len(wanted)
                weights[label] += len(wanted) > 0
                ranks = np.flatnonzero(labels == label)
                ranks = ranks[ranks < MAX_DETECTIONS[-1]]
                matches[label].append(
                    Matches(scores[ranks], ranks, match(found[ranks], wanted))
                )
        if not weights.any():
            print_log(f'{self.ann_file}: no box to be found', 'current')
            return {}
        scores = [score(m, n) for m, n in zip(matches, boxes)]
        precision, recall = map(np.stack, zip(*scores))
        return summarize(precision, recall, weights)


def summarize(
    precision: np.ndarray, recall: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    """Average over the classes.

    Args:
        precision: Average precision, (classes, 10 thresholds).
        recall: Highest recall, (classes, 4 numbers of detections, 10).
        weights: Number of images that have the class, (classes, ).

    Returns:
        The metrics, in percent.
    """
    ap = 100 * np.average(precision, axis=0, weights=weights)
    ar = 100 * np.average(recall, axis=0, weights=weights).mean(axis=-1)
    metrics = {'AP': ap.mean(), 'AP50': ap[0], 'AP75': ap[5]}
    metrics |= {f'AR{n}': value for n, value in zip(MAX_DETECTIONS, ar)}
    return {name: round(float(value), 2) for name, value in metrics.items()}


def read_truths(path: str | Path, classes: Sequence[str]) -> dict[int, Truth]:
    """Read an annotation file: image id -> what is in the image."""
    data = load(path)
    names = [category['name'] for category in data['categories']]
    check_classes(classes, names, path)
    labels = {
        category['id']: list(classes).index(category['name'])
        for category in data['categories']
        if category['name'] in classes
    }
    found: dict[int, list] = {image['id']: [] for image in data['images']}
    for item in data['annotations']:
        if item['category_id'] in labels and not item['iscrowd']:
            found[item['image_id']].append(
                (*item['bbox'], labels[item['category_id']])
            )
    truths = {}
    for image in data['images']:
        rows = np.array(found[image['id']], float).reshape(-1, 5)
        regions = np.array(image.get('ignored_regions', []), int)
        truths[image['id']] = Truth(
            rows[:, :4],
            rows[:, 4].astype(int),
            regions.reshape(-1, 4),
            (image['height'], image['width']),
        )
    return truths


def keep(
    truth: Truth, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> tuple[Truth, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Remove boxes and detections that lie in ignored regions."""
    wanted = outside(truth.boxes, truth)
    found = outside(boxes, truth)
    left = truth._replace(
        boxes=truth.boxes[wanted], labels=truth.labels[wanted]
    )
    return left, (boxes[found], labels[found], scores[found])


def outside(boxes: np.ndarray, truth: Truth) -> np.ndarray:
    """Tell of which boxes less than half lies in ignored regions.

    Pixels are counted as in the toolkit, where a region starts a pixel
    earlier than its numbers say, and no box starts at pixel 0.

    Args:
        boxes: Boxes, x, y, w, h in px, (N, 4).
        truth: The image.

    Returns:
        Bools, (N, ).
    """
    if not len(truth.regions):
        return np.ones(len(boxes), bool)
    height, width = truth.size
    ignored = np.zeros(truth.size)
    for x, y, w, h in np.maximum(truth.regions, 1):
        ignored[y - 1 : y + h, x - 1 : x + w] = 1
    sums = np.pad(ignored.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    x, y, w, h = np.maximum(np.floor(boxes + 0.5), 1).astype(int).T
    left, right = np.minimum(x, width), np.minimum(x + w, width)
    top, bottom = np.minimum(y, height), np.minimum(y + h, height)
    inside = (
        sums[bottom, right]
        - sums[top, right]
        - sums[bottom, left]
        + sums[top, left]
    )
    return inside / (w * h) < 0.5


def match(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Match detections with boxes of their class, the best detection first.

    Args:
        found: Detections by falling score, x, y, w, h, (D, 4).
        wanted: Boxes, (N, 4).

    Returns:
        Whether each detection is correct at each threshold, (10, D).
    """
    correct = np.zeros((len(THRESHOLDS), len(found)), bool)
    if not len(wanted):
        return correct
    free = np.ones((len(THRESHOLDS), len(wanted)), bool)
    levels = np.arange(len(THRESHOLDS))
    for number, overlaps in enumerate(iou(found, wanted)):
        open_overlaps = np.where(free, overlaps, -1)
        # Of equal overlaps the toolkit takes the last.
        best = len(wanted) - 1 - open_overlaps[:, ::-1].argmax(axis=1)
        hit = open_overlaps[levels, best] >= THRESHOLDS
        correct[:, number] = hit
        free[levels[hit], best[hit]] = False
    return correct


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes, (A, 4), (B, 4): (A, B)."""
    low = np.maximum(a[:, None, :2], b[:, :2])
    high = np.minimum((a[:, :2] + a[:, 2:])[:, None], b[:, :2] + b[:, 2:])
    overlap = np.maximum(high - low, 0).prod(axis=2)
    union = a[:, None, 2:].prod(axis=2) + b[:, 2:].prod(axis=1) - overlap
    return overlap / np.maximum(union, np.finfo(float).tiny)


def score(matches: list[Matches], boxes: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute precision and recall of a class.

    Args:
        matches: Of each image.
        boxes: Number of boxes to be found, in all images.

    Returns:
        Average precision of 500 detections an image, (10, ), and the highest
        recall of 1, 10, 100 and 500, (4, 10).
    """
    correct = np.concatenate([m.correct for m in matches], axis=1)
    ranks = np.concatenate([m.ranks for m in matches])
    scores = np.concatenate([m.scores for m in matches])
    recalls = [
        correct[:, ranks < most].sum(axis=1) / max(boxes, 1)
        for most in MAX_DETECTIONS
    ]
    correct = correct[:, np.argsort(-scores, kind='stable')]
    hits = correct.cumsum(axis=1)
    precision = hits / np.arange(1, len(scores) + 1)
    # The highest precision at this recall or a higher one.
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    average = (precision * correct).sum(axis=1) / max(boxes, 1)
    return average, np.stack(recalls)
