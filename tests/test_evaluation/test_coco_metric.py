# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import json
import logging
import sys

import mmdet.evaluation
import numpy as np
import pytest
import torch
from mmdet.evaluation.metrics import coco_metric
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from pycocotools import mask as masks
from pycocotools.cocoeval import COCOeval

from mmattn.evaluation import CocoMetric

NAMES = ('cat', 'dog', 'owl', 'fox')
SIZE = 200
ITEMS = [
    *('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l'),
    *('AR@100', 'AR@300', 'AR@1000'),
    *('AR_s@1000', 'AR_m@1000', 'AR_l@1000'),
]


def annotation(number, image, label, box, **kwargs):
    return {
        'id': number,
        'image_id': image,
        'category_id': label + 1,
        'bbox': [float(value) for value in box],
        'area': float(box[2] * box[3]),
        'iscrowd': 0,
        **kwargs,
    }


def write(path, images, annotations):
    data = {
        'images': [
            {'id': i, 'file_name': '', 'width': SIZE, 'height': SIZE}
            for i in range(1, images + 1)
        ],
        'categories': [
            {'id': i, 'name': name} for i, name in enumerate(NAMES, 1)
        ],
        'annotations': annotations,
    }
    path.write_text(json.dumps(data))
    return str(path)


def sample(image, found, bitmaps=None):
    """Return what a detector says: (x, y, w, h, label, score) of each box."""
    rows = torch.tensor(found, dtype=torch.float32).reshape(-1, 6)
    instances = InstanceData(
        bboxes=torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1),
        labels=rows[:, 4].long(),
        scores=rows[:, 5],
    )
    if bitmaps is not None:
        shape = (len(rows), SIZE, SIZE)
        instances.masks = torch.from_numpy(
            np.array(bitmaps, bool).reshape(shape)
        )
    return {
        'img_id': image,
        'ori_shape': (SIZE, SIZE),
        'pred_instances': instances,
    }


def evaluate(file, samples, make=CocoMetric, **kwargs):
    metric = make(file, **kwargs)
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = {'classes': NAMES}
    evaluator.process(samples)
    return evaluator.evaluate(len(samples))


def ellipse(box):
    x, y, w, h = box
    across, down = np.arange(SIZE) - x - w / 2, np.arange(SIZE) - y - h / 2
    inside = (across / w) ** 2 + (down[:, None] / h) ** 2 <= 0.25
    return inside.astype(np.uint8)


def random_box(rng):
    size = np.exp(rng.uniform(np.log(8), np.log(160), 2)).round()
    return np.concatenate([(rng.random(2) * (SIZE - size)).round(), size])


def random_data(path, seed, with_masks):
    """Make 20 images, some without boxes or detections, with many ties."""
    rng = np.random.default_rng(seed)
    annotations, samples = [], []
    for image in range(1, 21):
        found = []
        for _ in range(rng.integers(0, 9)):
            box = random_box(rng)
            label = int(rng.integers(0, 4))
            more = {'iscrowd': int(rng.random() < 0.15)}
            if with_masks:
                code = masks.encode(np.asfortranarray(ellipse(box)))
                more['area'] = float(masks.area(code))
                code['counts'] = code['counts'].decode()
                more['segmentation'] = code
            number = len(annotations) + 1
            annotations.append(annotation(number, image, label, box, **more))
            for _ in range(rng.integers(0, 4)):
                moved = box + (rng.normal(0, 0.05, 4) * box[[2, 3, 2, 3]])
                other = int(rng.integers(0, 4))
                moved = moved.round().clip(1, SIZE)
                found.append([*moved, label if rng.random() < 0.9 else other])
        for _ in range(rng.integers(0, 4)):
            found.append([*random_box(rng), int(rng.integers(0, 4))])
        if image % 6 == 0:
            found = []
        if image == 5 and not with_masks:  # more than 100 of a class
            found += [[*random_box(rng), 2] for _ in range(150)]
        for row in found:
            row.append(round(rng.random(), 1))
        drawn = [ellipse(row[:4]) for row in found] if with_masks else None
        samples.append(sample(image, found, drawn))
    return write(path, 20, annotations), samples


@pytest.fixture
def without(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)


@pytest.fixture
def calls(monkeypatch):
    """Count the evaluations by the faster library."""
    faster = pytest.importorskip('faster_coco_eval').COCOeval_faster
    calls = []
    accumulate = faster.accumulate

    def count(self):
        calls.append(self.params.iouType)
        accumulate(self)

    monkeypatch.setattr(faster, 'accumulate', count)
    return calls


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('metric', [['bbox'], ['bbox', 'segm']])
def test_same_numbers(tmp_path, monkeypatch, calls, metric, seed):
    file, samples = random_data(tmp_path / 'a.json', seed, len(metric) == 2)
    kwargs = dict(metric=metric, classwise=True, metric_items=ITEMS)
    fast = evaluate(file, samples, **kwargs)
    assert calls == metric
    monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)
    slow = evaluate(file, samples, **kwargs)
    mmdets = evaluate(file, samples, mmdet.evaluation.CocoMetric, **kwargs)
    assert calls == metric
    assert fast == slow == mmdets
    assert len(fast) == 12 * len(metric) + 4
    assert 0.2 < fast[f'coco/{metric[-1]}_mAP'] < 0.8
    assert all(value > 0 for value in fast.values())


def test_same_unrounded_numbers(tmp_path, calls, monkeypatch):
    file, samples = random_data(tmp_path / 'a.json', 3, with_masks=False)
    seen = []
    summarize = COCOeval.summarize

    def keep(self):
        summarize(self)
        seen.append([self.eval['precision'], self.eval['recall'], self.stats])

    monkeypatch.setattr(COCOeval, 'summarize', keep)
    evaluate(file, samples)
    assert len(calls) == 1
    monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)
    evaluate(file, samples)
    assert len(calls) == 1 and len(seen) == 2
    for fast, slow in zip(*seen):
        assert np.shape(fast) == np.shape(slow)
        assert np.abs(fast - slow).max() < 1e-12


def test_proposals_have_the_same_numbers(tmp_path, monkeypatch, calls):
    file, samples = random_data(tmp_path / 'a.json', 4, with_masks=False)
    fast = evaluate(file, samples, metric='proposal')
    assert calls == ['bbox'] and len(fast) == 6
    monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)
    assert evaluate(file, samples, metric='proposal') == fast


# 20 false cats and a true one, then 110 false dogs and a true one. COCO
# counts the detections of each class: the dog is none of the first 100.
LONG = [(100, 100, 20, 20, 0, 0.5)] * 20 + [(10, 10, 20, 20, 0, 0.4)]
LONG += [(100, 100, 20, 20, 1, 0.3)] * 110 + [(50, 10, 20, 20, 1, 0.2)]


@pytest.fixture
def long(tmp_path):
    cat = annotation(1, 1, 0, (10, 10, 20, 20))
    dog = annotation(2, 1, 1, (50, 10, 20, 20))
    return write(tmp_path / 'a.json', 1, [cat, dog])


# The cat's precision is 1 / 21 at all recalls, the dog's is 0 or 1 / 111.
FIRST_100 = 0.024  # 0.0238 = (1 / 21 + 0) / 2
FIRST_1000 = 0.028  # 0.0283 = (1 / 21 + 1 / 111) / 2


def check_long(file):
    found = evaluate(file, [sample(1, LONG)], metric_items=ITEMS)
    assert found['coco/bbox_mAP'] == FIRST_100
    for key in ('mAP_50', 'mAP_75', 'mAP_s'):
        assert found[f'coco/bbox_{key}'] == FIRST_1000
    assert found['coco/bbox_mAP_m'] == found['coco/bbox_mAP_l'] == -1
    assert found['coco/bbox_AR@100'] == 0.5
    assert found['coco/bbox_AR@300'] == found['coco/bbox_AR@1000'] == 1
    # mmdet's documented trap: no AP without 100 among the numbers.
    nums = (10, 30, 500)
    found = evaluate(file, [sample(1, LONG)], proposal_nums=nums)
    assert found['coco/bbox_mAP'] == -1
    assert found['coco/bbox_mAP_50'] == FIRST_1000
    nums = (10, 30, 100)
    found = evaluate(file, [sample(1, LONG)], proposal_nums=nums)
    assert found['coco/bbox_mAP_50'] == FIRST_100


def test_ap_is_of_100_detections(long, calls):
    check_long(long)
    assert len(calls) == 3


@pytest.mark.usefixtures('without')
def test_ap_is_of_100_detections_without_the_library(long):
    check_long(long)


def test_mmdets_class_is_back(long, calls, monkeypatch):
    assert coco_metric.COCOeval is COCOeval
    evaluate(long, [sample(1, LONG)])
    assert coco_metric.COCOeval is COCOeval
    with pytest.raises(KeyError):
        evaluate(long, [sample(1, LONG)], metric='segm')
    assert coco_metric.COCOeval is COCOeval
    evaluate(long, [sample(1, LONG)], mmdet.evaluation.CocoMetric)
    assert calls == ['bbox']


def check_nothing_found(file):
    for classwise in (False, True):
        for metric in (['bbox'], ['bbox', 'segm']):
            drawn = [] if len(metric) == 2 else None
            found = evaluate(
                file,
                [sample(1, [], drawn)],
                metric=metric,
                classwise=classwise,
            )
            assert found == {}


def test_nothing_found(long):
    pytest.importorskip('faster_coco_eval')
    check_nothing_found(long)


@pytest.mark.usefixtures('without')
def test_nothing_found_without_the_library(long):
    check_nothing_found(long)


@pytest.fixture
def log():
    """Collect what mmengine logs."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


BOXES = 'Boxes of each class: '


@pytest.mark.usefixtures('without')
def test_boxes_of_each_class(tmp_path, log):
    boxes = [(0, 1, 0), (1, 1, 0), (0, 1, 1), (0, 2, 0), (2, 2, 1)]
    file = write(
        tmp_path / 'a.json',
        2,
        [
            annotation(i, image, label, (10, 10, 30, 30), iscrowd=crowd)
            for i, (label, image, crowd) in enumerate(boxes, 1)
        ],
    )
    samples = [sample(1, [(10, 10, 30, 30, 0, 0.9)]), sample(2, [])]
    evaluate(file, samples)
    assert not [line for line in log if line.startswith(BOXES)]
    evaluate(file, samples, classwise=True)
    lines = [line for line in log if line.startswith(BOXES)]
    assert lines == [BOXES + 'cat 2, dog 1, owl 0, fox 0']


@pytest.mark.usefixtures('without')
def test_only_formatting(long, tmp_path, log):
    prefix = str(tmp_path / 'out')
    evaluate(
        long,
        [sample(1, LONG)],
        classwise=True,
        format_only=True,
        outfile_prefix=prefix,
    )
    assert len(json.loads((tmp_path / 'out.bbox.json').read_text())) == 132
    assert not [line for line in log if line.startswith(BOXES)]
