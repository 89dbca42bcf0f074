# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import json
import math
import random

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData

from mmattn.errors import ConfigError
from mmattn.evaluation import VisDroneMetric

NAMES = ('car', 'van', 'bus')
KEYS = ('AP', 'AP50', 'AP75', 'AR1', 'AR10', 'AR100', 'AR500')


def write(path, images, names, size):
    """Write images: boxes (x, y, w, h, label) and ignored regions of each.

    A box may have a sixth value, then it is a crowd.
    """
    data = {
        'images': [],
        'annotations': [],
        'categories': [
            {'id': i, 'name': name} for i, name in enumerate(names, 1)
        ],
    }
    for number, (boxes, regions) in enumerate(images, 1):
        image = {'id': number, 'width': size[0], 'height': size[1]}
        if regions is not None:
            image['ignored_regions'] = [list(region) for region in regions]
        data['images'].append(image)
        for *box, label, crowd in ((*box, 0)[:6] for box in boxes):
            data['annotations'].append(
                {
                    'id': len(data['annotations']) + 1,
                    'image_id': number,
                    'category_id': label + 1,
                    'bbox': [float(value) for value in box],
                    'iscrowd': crowd,
                }
            )
    path.write_text(json.dumps(data))
    return str(path)


def sample(image, found):
    """Return what a detector says: (x, y, w, h, label, score) of each box."""
    rows = torch.tensor(found, dtype=torch.float32).reshape(-1, 6)
    instances = InstanceData(
        bboxes=torch.cat([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1),
        labels=rows[:, 4].long(),
        scores=rows[:, 5],
    )
    data = DetDataSample(metainfo={'img_id': image})
    data.pred_instances = instances
    return data


@pytest.fixture
def evaluate(tmp_path):
    """Evaluate detections of images 1, 2, ... against boxes and regions."""

    def run(images, found, order=None, classes=NAMES, size=(300, 200)):
        file = write(tmp_path / 'a.json', images, NAMES, size)
        samples = [sample(i, rows) for i, rows in enumerate(found, 1)]
        evaluator = Evaluator([VisDroneMetric(file)])
        evaluator.dataset_meta = {'classes': classes}
        for index in order or range(len(samples)):
            evaluator.process([samples[index]])
        found = evaluator.evaluate(len(samples))
        assert all(key.startswith('visdrone/') for key in found)
        return {key.removeprefix('visdrone/'): found[key] for key in found}

    return run


def far(label, times, score):
    """Return detections of nothing."""
    return [(200, 100, 10, 10, label, score)] * times


# Cars: images 1, 2, 3 have 2, 1, 1, so the weight is 3. Vans: images 1 and 2
# have one each, weight 2. A detection 6.2 high of a box 10 high has an IoU of
# 0.62, right at 3 thresholds, one 7.2 high at 5.
IMAGES = [
    ([(10, 10, 10, 10, 0), (50, 10, 10, 10, 0), (10, 50, 10, 10, 1)], None),
    ([(10, 10, 10, 10, 0), (100, 10, 10, 10, 1)], None),
    ([(10, 10, 10, 10, 0)], None),
]
FOUND = [
    [
        (10, 10, 10, 10, 0, 0.65),  # a second time
        (50, 10, 10, 6.2, 0, 0.7),
        (10, 10, 10, 10, 0, 0.9),
        (10, 50, 10, 7.2, 1, 0.8),
    ],
    [(10, 10, 10, 10, 0, 0.5), *far(0, 20, 0.6)],
    [(10, 10, 10, 10, 0, 0.3), *far(1, 200, 0.4)],
]
# Recall of cars at 3 low and 7 high thresholds, mean, and of vans at 5 and 5:
#   1 detection an image       1/4 and 1/4  0.25   0    and 0  0
#   10, without 20 wrong cars  2/4 and 1/4  0.325  1/2  and 0  0.25
#   100, without 200 vans      3/4 and 2/4  0.575  1/2  and 0  0.25
#   500                        4/4 and 3/4  0.825  1/2  and 0  0.25
# AR1 = (3 * 0.25 + 2 * 0) / 5 = 0.15, AR10 = (0.975 + 0.5) / 5 = 0.295,
# AR100 = (1.725 + 0.5) / 5 = 0.445, AR500 = (2.475 + 0.5) / 5 = 0.595.
# Precision of cars by score, low thresholds: right 1/1, right 2/2, wrong, 20
# wrong, right 3/24, right 4/25. As 4/25 > 3/24, the average precision is
# (1 + 1 + 0.16 + 0.16) / 4 = 0.58. High ones: right 1/1, 22 wrong, 2/24, 3/25,
# hence (1 + 0.12 + 0.12) / 4 = 0.31. Vans: 1 at half the recall, 0.5, or 0.
# AP50 = (3 * 0.58 + 2 * 0.5) / 5 = 0.548, AP75 = 3 * 0.31 / 5 = 0.186; at 0.65
# and 0.7 it is (3 * 0.31 + 2 * 0.5) / 5 = 0.386.
# AP = (3 * 0.548 + 2 * 0.386 + 5 * 0.186) / 10 = 0.3346.
WANT = [33.46, 54.8, 18.6, 15.0, 29.5, 44.5, 59.5]


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_by_hand(evaluate, order):
    assert evaluate(IMAGES, FOUND, order) == dict(zip(KEYS, WANT))


def test_some_classes_of_the_file(evaluate):
    # Cars alone: 0.58 * 0.3 + 0.31 * 0.7 = 0.391, and the one of image 3 is
    # the first there.
    found = [[row for row in rows if row[4] == 0] for rows in FOUND]
    assert evaluate(IMAGES, found, classes=('car',)) == dict(
        zip(KEYS, [39.1, 58.0, 31.0, 50.0, 57.5, 82.5, 82.5])
    )
    # Vans and buses, their labels no longer those of the file.
    found = [
        [(*box, label - 1, score) for *box, label, score in rows if label]
        for rows in FOUND
    ]
    assert evaluate(IMAGES, found, classes=('van', 'bus')) == dict(
        zip(KEYS, [25.0, 50.0, 0.0, 25.0, 25.0, 25.0, 25.0])
    )


def test_classes_of_another_file(evaluate):
    with pytest.raises(ConfigError, match='another order'):
        evaluate(IMAGES, FOUND, classes=('van', 'car'))
    with pytest.raises(ConfigError, match="no class 'cab'"):
        evaluate(IMAGES, FOUND, classes=('cab',))


def test_500_detections_of_an_image(evaluate):
    image = ([(10, 10, 10, 10, 0)], None)
    last = (10, 10, 10, 10, 0, 0.1)
    within = evaluate([image], [[last, *far(1, 499, 0.5)]])
    assert within['AP'] == within['AR500'] == 100
    assert within['AR100'] == 0
    beyond = evaluate([image], [[last, *far(1, 500, 0.5)]])
    assert beyond == dict.fromkeys(KEYS, 0)


def test_all_found_and_nothing_found(evaluate):
    perfect = [[(*row, 0.5) for row in boxes] for boxes, _ in IMAGES]
    found = evaluate(IMAGES, perfect)
    assert found['AP'] == found['AR10'] == found['AR500'] == 100
    # Of cars 3 of 4, of vans 0 of 2 come first in their images.
    assert found['AR1'] == 45
    assert evaluate(IMAGES, [[], [], []]) == dict.fromkeys(KEYS, 0)
    wrong = [far(0, 3, 0.9)] * 3
    assert evaluate(IMAGES, wrong) == dict.fromkeys(KEYS, 0)


def test_images_without_boxes(evaluate):
    images = [*IMAGES, ([], None), ([], [(1, 1, 9, 9)])]
    assert evaluate(images, [*FOUND, [], []]) == dict(zip(KEYS, WANT))
    # A wrong car before the others: (2/3 + 2/3 + 4/26 + 4/26) / 4 = 0.410256,
    # (1/2 + 3/26 + 3/26) / 4 = 0.182692.
    found = evaluate(images, [*FOUND, far(0, 1, 0.95), []])
    assert found['AP50'] == 44.62 and found['AP75'] == 10.96
    assert [found[key] for key in KEYS[3:]] == WANT[3:]


def test_no_box_to_be_found(evaluate):
    assert evaluate([([], None), ([], None)], [far(0, 2, 0.9), []]) == {}


def test_a_box_is_found_by_the_best_detection_only(evaluate):
    box = (50, 50, 20, 20, 0)
    found = evaluate(
        [([box], None)],
        [[(50, 50, 20, 12, 0, 0.9), (*box, 0.8)]],  # an IoU of 0.6
    )
    # Right, then wrong up to 0.6; wrong, then right above.
    assert found['AP50'] == 100 and found['AP75'] == 50
    assert found['AP'] == 65 and found['AR1'] == 30 and found['AR10'] == 100


@pytest.mark.parametrize('step', [1, -1])
def test_a_detection_finds_the_box_that_it_overlaps_most(evaluate, step):
    boxes = [(10, 10, 20, 20, 0), (10, 13, 20, 20, 0)]
    # IoU of the first with the boxes: 17/23 and 1, of the second: 17/23 and
    # 14/26. So both are right up to 0.7, then only the first.
    rows = [(10, 13, 20, 20, 0, 0.9), (10, 7, 20, 20, 0, 0.8)]
    found = evaluate([(boxes[::step], None)], [rows])
    assert found['AP'] == found['AR10'] == 75 and found['AR1'] == 50


def test_of_equal_overlaps_the_last_counts(evaluate):
    boxes = [(10, 12, 20, 20, 0), (10, 8, 20, 20, 0)]
    # IoU of the first with either: 18/22, of the second: 14/26 and 18/22. The
    # second finds its box, now the other one, at 0.5 only.
    rows = [(10, 10, 20, 20, 0, 0.9), (10, 6, 20, 20, 0, 0.8)]
    found = evaluate([(boxes, None)], [rows])
    assert found['AP50'] == 100 and found['AP75'] == 50
    assert found['AP'] == found['AR10'] == 40 and found['AR1'] == 35


def test_a_threshold_is_met_by_an_equal_overlap(evaluate):
    for height, want in ((10, 10), (12, 30), (15, 60), (16, 70), (19, 100)):
        box = (50, 50, 20, 20, 0)
        found = evaluate([([box], None)], [[(50, 50, 20, height, 0, 0.9)]])
        assert found['AP'] == found['AR1'] == want


def test_a_class_finds_no_other(evaluate):
    found = evaluate(
        [([(50, 50, 20, 20, 0)], None)], [[(50, 50, 20, 20, 1, 0.9)]]
    )
    assert found == dict.fromkeys(KEYS, 0)


def test_the_order_of_equal_scores_is_kept(evaluate):
    box, other = (50, 50, 20, 20, 0), (90, 90, 20, 20, 0)
    rows = [(*box, 0.5), (*other, 0.5)]
    assert evaluate([([box], None)], [rows])['AP'] == 100
    assert evaluate([([box], None)], [rows[::-1]])['AP'] == 50
    images = [([], None), ([box], None)]
    late = [[(*other, 0.5)], [(*box, 0.5)]]
    for order in ((0, 1), (1, 0)):
        assert evaluate(images, late, order)['AP'] == 50
    early = [[(*box, 0.5)], [(*other, 0.5)]]
    for order in ((0, 1), (1, 0)):
        assert evaluate(images[::-1], early, order)['AP'] == 100


def test_crowds_are_no_boxes(evaluate):
    box, crowd = (10, 10, 10, 10, 0), (50, 10, 90, 90, 0, 1)
    for index in (0, 1):
        found = evaluate(
            [([box], None), ([box, crowd][index:], None)],
            [[(*box, 0.9)], [(*box, 0.9)][index:]],
        )
        assert found['AP'] == 100


# Position and length along an axis of 200 pixels, of an ignored region and of
# a box. The region x, w has the pixels x - 1 to x + w - 1, a box x to x + w -
# 1, but from 1 if x is 0 (a region as well: 0 to w).
REGIONS = [
    ((152, 60), (100, 100), True),  # 151 to 199: 49 of 100
    ((151, 60), (100, 100), False),  # 150 to 199: 50
    ((50, 99), (100, 100), True),  # 100 to 148: 49
    ((50, 100), (100, 100), False),  # 100 to 149: 50
    ((0, 49), (0, 100), True),  # 1 to 49: 49
    ((0, 50), (0, 100), False),  # 1 to 50: 50
    ((1, 49), (0, 100), True),
    ((1, 50), (0, 100), False),
    ((0, 0), (0, 3), True),  # no length counts as 1: 1 of 3
    ((0, 0), (0, 2), False),
    ((152, 48), (100, 100), True),  # up to the border
    ((151, 49), (100, 100), False),
    ((250, 40), (100, 100), True),  # beyond it
    ((100, 100), (170, 61), True),  # 170 to 199: 30 of 61
    ((100, 100), (170, 60), False),
    ((100, 100), (169, 62), False),
    ((10, 9), (100, 100), True),  # elsewhere
    ((100, 9), (100, 9), False),  # all of it
    ((0, 149), (100.5, 100), True),  # 101 to 149: 49
    ((0, 150), (100.5, 100), False),
    ((0, 148), (100, 98.5), True),  # 100 to 148: 49 of 99
    ((0, 149), (100, 98.5), False),
]


def turn(rows):
    """Exchange x and y."""
    return [(y, x, h, w, *rest) for x, y, w, h, *rest in rows]


@pytest.mark.parametrize('turned', [False, True])
@pytest.mark.parametrize(('region', 'box', 'kept'), REGIONS)
def test_half_in_an_ignored_region(evaluate, region, box, kept, turned):
    regions = [(region[0], 30, region[1], 50)]
    box, other = (box[0], 40, box[1], 20, 0), (10, 95, 20, 20, 0)

    def run(boxes, found):
        if turned:
            image, size = (turn(boxes), turn(regions)), (120, 200)
            return evaluate([image], [turn(found)], size=size)
        return evaluate([(boxes, regions)], [found], size=(200, 120))

    found = run([box, other], [(*other, 0.9)])
    assert found['AP'] == found['AR500'] == (50 if kept else 100)
    found = run([other], [(*box, 0.9), (*other, 0.8)])
    assert found['AP'] == (50 if kept else 100)
    assert found['AR1'] == (0 if kept else 100)


def test_regions_that_overlap_count_once(evaluate):
    box, other = (100, 40, 100, 20, 0), (10, 95, 20, 20, 0)
    for second, kept in ((90, True), (170, False)):
        # Pixels 99 to 129 and again 89 to 119, or 169 to 199: 30 or 61.
        regions = [(100, 30, 30, 50), (second, 30, 30, 50)]
        found = evaluate([([box, other], regions)], [[(*other, 0.9)]])
        assert found['AP'] == (50 if kept else 100)


def test_removed_detections_are_not_among_the_first(evaluate):
    image = ([(10, 95, 20, 20, 0)], [(100, 0, 150, 150)])
    rows = [(10, 95, 20, 20, 0, 0.1), *far(1, 600, 0.9)]
    assert evaluate([image], [rows]) == dict.fromkeys(KEYS, 100)
    # A region is of its image alone.
    images = [([], image[1]), (image[0], None)]
    assert evaluate(images, [[], rows]) == dict.fromkeys(KEYS, 0)


def test_a_class_weighs_what_is_left(evaluate):
    regions = [(100, 0, 150, 150)]
    car, van = (10, 95, 20, 20, 0), (10, 40, 20, 20, 1)
    lost = (150, 50, 20, 20)
    # The van of image 1 is not found, the car is: each is in one image.
    images = [([car, van], None), ([(*lost, 0)], regions)]
    assert evaluate(images, [[(*car, 0.9)], []])['AP'] == 50
    # No van is left.
    images = [([car], None), ([(*lost, 1), car], regions)]
    found = evaluate(images, [[(*car, 0.9)], [(*car, 0.9)]])
    assert found == dict.fromkeys(KEYS, 100)
    assert evaluate([([(*lost, 1)], regions)], [[]]) == {}


# What follows goes the way of the toolkit: a loop over everything.
def in_regions(box, regions, size):
    """Return the share of a box in ignored regions, counted by pixels."""
    x, y, w, h = (max(1, math.floor(value + 0.5)) for value in box)
    inside = 0
    for column in range(x + 1, min(x + w, size[0]) + 1):
        for row in range(y + 1, min(y + h, size[1]) + 1):
            inside += any(
                left <= column <= left + width and top <= row <= top + height
                for left, top, width, height in regions
            )
    return inside / (w * h)


def overlap(a, b):
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0
    return w * h / (a[2] * a[3] + b[2] * b[3] - w * h)


def judge(found, boxes, threshold):
    """Yield score and rightness of detections of a class in an image."""
    taken = set()
    for row in sorted(found, key=lambda row: -row[5]):
        best, chosen = threshold, None
        for number, box in enumerate(boxes):
            share = overlap(row, box)
            if number not in taken and share >= best:
                best, chosen = share, number
        if chosen is not None:
            taken.add(chosen)
        yield row[5], chosen is not None


def curve(images, label, threshold, most):
    """Return recall and precision after each detection of a class."""
    judged, total = [], 0
    for boxes, found in images:
        mine = [box for box in boxes if box[4] == label]
        first = [row for row in found[:most] if row[4] == label]
        judged += judge(first, mine, threshold)
        total += len(mine)
    right, recall, precision = 0, [], []
    for number, (_, ok) in enumerate(sorted(judged, key=lambda j: -j[0]), 1):
        right += ok
        recall.append(right / max(total, 1))
        precision.append(right / number)
    return recall, precision


def area(recall, precision):
    recall, precision = [0, *recall, 1], [0, *precision, 0]
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    return sum(
        (recall[i] - recall[i - 1]) * precision[i]
        for i in range(1, len(recall))
    )


def mean(values):
    return 100 * sum(values) / len(values)


def toolkit(images, found, size):
    left = []
    for (boxes, regions), rows in zip(images, found):
        regions = [[max(1, value) for value in row] for row in regions]
        rows = sorted(rows, key=lambda row: -row[5])
        left.append(
            [
                [r for r in part if in_regions(r[:4], regions, size) < 0.5]
                for part in (boxes, rows)
            ]
        )
    classes = [  # once for each image that has it
        label
        for label in range(len(NAMES))
        for boxes, _ in left
        if label in [box[4] for box in boxes]
    ]
    thresholds = [0.5 + 0.05 * i for i in range(10)]
    curves = {
        (label, i, most): curve(left, label, threshold, most)
        for label in {*classes}
        for i, threshold in enumerate(thresholds)
        for most in (1, 10, 100, 500)
    }
    ap = [
        [area(*curves[label, i, 500]) for label in classes] for i in range(10)
    ]
    values = [mean(sum(ap, [])), mean(ap[0]), mean(ap[5])]
    for most in (1, 10, 100, 500):
        values.append(
            mean(
                [
                    max(curves[label, i, most][0], default=0)
                    for label in classes
                    for i in range(10)
                ]
            )
        )
    return dict(zip(KEYS, values))


def random_box(rng, size, step):
    w, h = (rng.randrange(1, 6) * 8 for _ in size)
    x, y = (rng.randrange(0, int((s - 4) / step)) * step for s in size)
    return x, y, w, h


def random_data(seed, size):
    """Make 6 images with many equal scores and overlaps."""
    rng = random.Random(seed)
    step = (1, 4, 0.5)[seed % 3]
    images, found = [], []
    for number in range(6):
        boxes = [
            (*random_box(rng, size, step), rng.choice((0, 0, 1, 2)))
            for _ in range(rng.randrange(3, 12) if number != 1 else 0)
        ]
        regions = [
            random_box(rng, size, 1)
            for _ in range(rng.randrange(3) if number else 2)
        ]
        rows = []
        for *box, label in boxes:
            for _ in range(rng.randrange(4)):
                moved = [v + rng.choice((-1, 0, 0, 1)) * step for v in box]
                rows.append([*moved, label, rng.randrange(9) / 8])
        wrong = {2: 0, 3: 520}.get(number, 15)
        for _ in range(wrong):
            score = rng.randrange(5) / 8
            rows.append(
                [*random_box(rng, size, step), rng.randrange(3), score]
            )
        if number == 4:
            rows = []
        rng.shuffle(rows)
        images.append((boxes, regions))
        found.append(rows)
    return images, found


@pytest.mark.parametrize('seed', range(6))
def test_as_the_toolkit(evaluate, seed):
    size = (160, 120)
    images, found = random_data(seed, size)
    order = random.Random(seed).sample(range(6), 6)
    got = evaluate(images, found, order, size=size)
    want = toolkit(images, found, size)
    assert 10 < want['AP'] < want['AP50'] < 90
    assert want['AR1'] < want['AR10'] < want['AR100'] < 90
    assert got == pytest.approx(want, abs=0.0051)
