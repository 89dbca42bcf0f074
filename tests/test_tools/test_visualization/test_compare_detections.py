# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Scores of single images are right, and so is what is drawn of them."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from pycocotools import mask as coco_mask

from mmattn.engine import read_config
from mmattn.errors import ConfigError
from mmattn.visualization.trained import TrainedModel

TOOL = 'visualization/compare_detections.py'
FASTER = 'faster-rcnn_r18-none_fpn_15e_digits'
MASK = 'mask-rcnn_r18-scsa_fpn_15e_digits'
UPERNET = 'upernet_r18-scsa_15e_digits'
RESNET = 'resnet18-gsca_30e_digits'
NAMES = ('faster-rcnn_r18-scsa_fpn_15e_digits', UPERNET, RESNET)
FILES = [f'00000{i}.png' for i in range(1, 5)]


@MODELS.register_module(force=True)
class Knower(BaseModel):
    """Knows the boxes of the digits by heart, but for one image."""

    def __init__(self, backbone, data_preprocessor):
        super().__init__(data_preprocessor)
        self.missed = torch.nn.Parameter(torch.zeros(()))
        root = Path('data/digits')
        data = json.loads(
            (root / 'annotations/instances_val.json').read_text()
        )
        self.known = {}
        for image in data['images']:
            own = [
                [*a['bbox'], a['category_id'] - 1]
                for a in data['annotations']
                if a['image_id'] == image['id']
            ]
            pixels = cv2.imread(str(root / 'images/val' / image['file_name']))
            self.known[int(pixels.sum())] = image['id'], torch.tensor(own)

    def forward(self, inputs, data_samples, mode):
        for image, sample in zip(inputs, data_samples):
            number, rows = self.known[int(image.long().sum())]
            boxes = rows[:, :4].float()
            boxes[:, 2:] += boxes[:, :2]
            found = InstanceData(
                bboxes=boxes,
                labels=rows[:, 4].long(),
                scores=torch.ones(len(rows)),
            )
            missed = number == int(self.missed)
            sample.pred_instances = found[:0] if missed else found
        return data_samples


@pytest.fixture(scope='module')
def tool(load_tool):
    return load_tool(TOOL)


@pytest.fixture
def knower(digits, demo, monkeypatch, tmp_path):
    """A config of a model that knows all, and one that misses image 3."""
    monkeypatch.chdir(digits)
    config = tmp_path / 'knower.py'
    config.write_text(
        f"_base_ = '{demo / FASTER}.py'\n"
        "model = dict(_delete_=True, type='Knower', backbone=dict(),\n"
        "    data_preprocessor=dict(type='DetDataPreprocessor'))\n"
    )
    words = {}
    for name, missed in (('all', 0.0), ('most', 3.0)):
        state = dict(missed=torch.tensor(missed))
        torch.save(dict(state_dict=state), tmp_path / f'{name}.pth')
        words[name] = ('--model', config, tmp_path / f'{name}.pth')
    return SimpleNamespace(config=config, **words)


def read(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def instances(boxes, labels, scores=None, **more):
    given = dict(
        bboxes=torch.tensor(boxes, dtype=torch.float).reshape(-1, 4),
        labels=torch.tensor(labels, dtype=torch.long),
        **more,
    )
    if scores is not None:
        given['scores'] = torch.tensor(scores)
    return InstanceData(**given)


# -------------------------------------------------------------------- scores


@pytest.fixture
def truth():
    """Two boxes of class 0, one of class 1, and a crowd of class 0."""
    return BaseDataElement(
        gt_instances=instances(
            [[0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]], [0, 0, 1]
        ),
        ignored_instances=instances([[50, 50, 90, 90]], [0]),
    )


FOUND = {
    'right': ([[0, 0, 10, 10]], [0], [0.9], 1, 0),
    'half': ([[0, 0, 10, 5]], [0], [0.9], 1, 0),
    'less than half': ([[0, 0, 10, 4.9]], [0], [0.9], 0, 1),
    'another class': ([[0, 0, 10, 10]], [1], [0.9], 0, 1),
    'twice': ([[0, 0, 10, 10], [0, 0, 10, 9]], [0, 0], [0.9, 0.8], 1, 1),
    'unsure': ([[0, 0, 10, 10]], [0], [0.3], 0, 0),
    'in a crowd': (
        [[50, 50, 60, 60], [45, 50, 55, 60], [44, 50, 54, 60]],
        [0, 0, 0],
        [0.9, 0.9, 0.9],
        0,
        1,  # less than half of the last lies on it
    ),
    'in a crowd of another class': ([[50, 50, 60, 60]], [1], [0.9], 0, 1),
    'all': (
        [[0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]],
        [0, 0, 1],
        [0.9, 0.8, 0.7],
        3,
        0,
    ),
    'nothing': ([], [], [], 0, 0),
}


@pytest.mark.parametrize('case', FOUND)
def test_f1_of_boxes(case, tool, truth):
    boxes, labels, scores, right, false = FOUND[case]
    result = BaseDataElement(pred_instances=instances(boxes, labels, scores))
    score = tool.f1(truth, result, 0.3, masks=False)
    precision = right / max(right + false, 1)
    recall = right / 3
    want = 2 * precision * recall / max(precision + recall, 1e-9)
    assert score.value == pytest.approx(want)
    assert score.text == (f'box F1 {want:.2f} ({right} of 3, {false} false)')


@pytest.mark.parametrize(('score', 'right'), [(0.9, 1), (0.7, 2)])
def test_the_surest_detection_comes_first(tool, score, right):
    truth = BaseDataElement(
        gt_instances=instances([[0, 0, 10, 10], [0, 3, 10, 13]], [0, 0])
    )
    # IoUs with the boxes: 9 / 11 and 8 / 12; 8 / 12 and 5 / 15. If it comes
    # first, the first detection takes the only box of the second.
    found = instances([[0, 1, 10, 11], [0, -2, 10, 8]], [0, 0], [score, 0.8])
    result = BaseDataElement(pred_instances=found)
    assert tool.f1(truth, result, 0.3, masks=False).value == right / 2


def test_f1_where_there_is_nothing(tool):
    empty = BaseDataElement(gt_instances=instances([], []))
    none = BaseDataElement(pred_instances=instances([], [], []))
    one = BaseDataElement(pred_instances=instances([[0, 0, 9, 9]], [0], [0.9]))
    assert tool.f1(empty, none, 0.3, masks=False).value == 1
    assert tool.f1(empty, one, 0.3, masks=False).value == 0


def test_f1_of_masks(tool):
    wanted = torch.zeros(2, 8, 8, dtype=torch.bool)
    wanted[0, :4], wanted[1, 4:] = True, True  # 32 pixels each
    found = torch.zeros(2, 8, 8, dtype=torch.bool)
    found[0, :4, :4] = True  # 16 of 32, an IoU of one half
    found[1, 4:, :3] = True  # 12 of 32
    boxes = [[0, 0, 8, 4], [0, 4, 8, 8]]  # the boxes are all the same
    truth = BaseDataElement(
        gt_instances=instances(boxes, [0, 0], masks=wanted)
    )
    result = BaseDataElement(
        pred_instances=instances(boxes, [0, 0], [0.9, 0.8], masks=found)
    )
    score = tool.f1(truth, result, 0.3, masks=True)
    assert score.text == 'mask F1 0.50 (1 of 2, 1 false)'
    assert tool.f1(truth, result, 0.3, masks=False).value == 1


def test_mean_iou_of_an_image(tool):
    wanted = torch.tensor([[0, 0, 1, 1, 255, 3]])
    found = torch.tensor([[0, 2, 1, 1, 1, 2]])
    truth = BaseDataElement(gt_sem_seg=PixelData(data=wanted[None]))
    result = BaseDataElement(pred_sem_seg=PixelData(data=found[None]))
    # Classes 0: 1 / 2, 1: 2 / 2, 2: 0 / 2, 3: 0 / 1; class 4 does not occur.
    score = tool.mean_iou(truth, result, 5, 255)
    assert score.value == pytest.approx(1.5 / 4)
    # Without the pixel of class 3, but with that of 255, which is no class.
    score = tool.mean_iou(truth, result, 5, 3)
    assert score.value == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert score.text == 'mIoU 0.39'
    truth.gt_sem_seg.data[:] = 255
    assert tool.mean_iou(truth, result, 5, 255).value == 1


def test_probability_of_the_true_class(tool):
    truth = BaseDataElement(gt_label=torch.tensor([2]))
    result = BaseDataElement(pred_score=torch.tensor([0.5, 0.125, 0.375]))
    assert tool.probability(truth, result) == (0.375, 'true class 0.38')


def test_picking(tool):
    values = np.array([0.0, -0.5, 0.5, 0.0, -0.5])
    assert tool.pick(values, 'worst', 3, 0) == [1, 4, 0]
    assert tool.pick(values, 'best', 2, 0) == [2, 0]
    some = tool.pick(values, 'random', 4, 7)
    assert some == tool.pick(values, 'random', 4, 7) and len(set(some)) == 4
    assert (
        len({tuple(tool.pick(values, 'random', 4, i)) for i in range(9)}) > 5
    )
    assert sorted(tool.pick(values, 'random', 99, 0)) == [0, 1, 2, 3, 4]


def test_the_model_that_is_compared(tool):
    names = ['a', 'b', '2']
    assert tool.compared(names, None) == 2
    assert tool.compared(names, 'b') == tool.compared(names, '2') - 1 == 1
    assert tool.compared(names, '3') == 2
    assert tool.compared(['a'], None) == 0
    for wrong in ('a', '1', '4', 'c'):
        with pytest.raises(ConfigError, match=f'--against {wrong}: .*a, b, 2'):
            tool.compared(names, wrong)


# ---------------------------------------------------------------------- data


def load_data(tool, demo, name, options=()):
    cfg = read_config(str(demo / f'{name}.py'), dict(options))
    init_default_scope(cfg.default_scope)
    return tool.TestData(
        SimpleNamespace(cfg=cfg, scope=cfg.default_scope, name=name)
    )


def test_truth_of_detectors_is_that_of_the_file(
    tool, demo, digits, monkeypatch, tmp_path
):
    monkeypatch.chdir(digits)
    path = Path('data/digits/annotations/instances_val.json')
    want = json.loads(path.read_text())
    own = [a for a in want['annotations'] if a['image_id'] == 2]
    own[0]['iscrowd'] = 1
    changed = tmp_path / 'crowd.json'
    changed.write_text(json.dumps(want))
    data = load_data(
        tool, demo, MASK,
        {'test_dataloader.dataset.ann_file': str(changed),
         'test_dataloader.dataset.pipeline.1.scale': (300, 300)},
    )  # fmt: skip
    assert len(data) == 4
    case = data[1]
    assert case.path.endswith('images/val/000002.png')
    assert np.array_equal(case.image, cv2.imread(case.path))
    for group, wanted in (
        (case.truth.ignored_instances, own[:1]),
        (case.truth.gt_instances, own[1:]),
    ):
        boxes = torch.tensor([a['bbox'] for a in wanted]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert torch.equal(group.bboxes.long(), boxes.long())
        labels = [a['category_id'] - 1 for a in wanted]
        assert group.labels.tolist() == labels
        for mask, item in zip(group.masks, wanted):
            assert np.array_equal(
                mask.numpy(), coco_mask.decode(item['segmentation'])
            )


def test_truth_of_segmentors_and_classifiers(tool, demo, digits, monkeypatch):
    monkeypatch.chdir(digits)
    for case, name in zip(load_data(tool, demo, UPERNET), FILES):
        mask = cv2.imread(f'data/digits/masks/val/{name}', -1)
        assert np.array_equal(case.truth.gt_sem_seg.data[0].numpy(), mask)
    data = load_data(tool, demo, RESNET)
    assert len(data) == 10
    for number in range(10):
        case = data[number]
        assert int(case.truth.gt_label) == int(Path(case.path).parent.name)
        assert np.array_equal(case.image, cv2.imread(case.path))


# ------------------------------------------------------------------- drawing


def test_results_grow_with_the_picture(tool):
    masks = torch.zeros(1, 4, 6, dtype=torch.bool)
    masks[0, 1, 2] = True
    sample = BaseDataElement(
        pred_instances=instances([[2, 1, 3, 2]], [0], [0.9], masks=masks),
        pred_sem_seg=PixelData(data=masks.long() * 7),
    )
    large = tool.resized(sample, (4, 6), (12, 30))
    assert large.pred_instances.bboxes.tolist() == [[10, 3, 15, 6]]
    want = np.kron(masks[0], np.ones((3, 5)))
    assert np.array_equal(large.pred_instances.masks[0], want)
    assert np.array_equal(large.pred_sem_seg.data[0], 7 * want)
    assert sample.pred_instances.masks.shape == (1, 4, 6)
    assert sample.pred_instances.bboxes.tolist() == [[2, 1, 3, 2]]
    none = BaseDataElement(
        pred_instances=instances([], [], [], masks=masks[:0])
    )
    assert tool.resized(none, (4, 6), (8, 12)).pred_instances.masks.shape == (
        0, 8, 12,
    )  # fmt: skip


def look_alike(got, want):
    """Tell whether images are the same but for a shift of about a pixel.

    Versions of matplotlib place the image differently on the canvas.
    """
    small = [
        cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA).astype(int)
        for image in (got, want)
    ]
    return np.abs(small[0] - small[1]).mean() < 12


def test_what_is_drawn(tool, demo, digits, monkeypatch):
    monkeypatch.chdir(digits)
    data = load_data(tool, demo, MASK)
    case = data[0]
    found = case.truth.gt_instances.clone()
    found.scores = torch.full((len(found),), 0.5)
    result = BaseDataElement(pred_instances=found)
    model = SimpleNamespace(
        cfg=read_config(str(demo / f'{MASK}.py')), scope='mmdet', name=MASK
    )
    low, high = (
        tool.Panels(model, data.data.metainfo, 64, thr) for thr in (0.4, 0.6)
    )
    nothing = BaseDataElement(pred_instances=found[:0])
    plain = high.draw(case, nothing)
    want = cv2.resize(case.image, (64, 64), interpolation=cv2.INTER_AREA)
    assert look_alike(plain, want[..., ::-1])
    assert np.array_equal(high.draw(case, result), plain)
    drawn = low.draw(case, result)
    inside = case.truth.gt_instances.masks.any(0).numpy().astype(np.uint8)
    inside = cv2.erode(inside, np.ones((9, 9)))[1::2, 1::2] > 0
    assert inside.any() and (drawn != plain).any(-1)[inside].all()
    # mmdet draws the colours of masks at random.
    np.random.seed(9)
    assert np.array_equal(low.draw(case, result), drawn)
    assert np.random.rand() == np.random.RandomState(9).rand()
    assert not np.array_equal(low.draw(case), drawn)  # without scores


def test_pictures_stand_pixel_for_pixel(tool, tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        [rng.integers(0, 256, (h, 61, 3), np.uint8) for _ in range(3)]
        for h in (50, 33)
    ]
    texts = [['a', 'b', 'c']] * 2
    tool.compose(rows, texts, ['x', 'y', 'z']).savefig(tmp_path / 'p.png')
    page = cv2.imread(str(tmp_path / 'p.png'))[..., ::-1]
    gap, line = tool.GAP, tool.LINE
    assert page.shape == (83 + 3 * line + 2 * gap, 3 * 61 + 4 * gap, 3)
    top = line
    for row in rows:
        for column, image in enumerate(row):
            left = gap + column * (61 + gap)
            part = page[top : top + len(image), left : left + 61]
            assert np.array_equal(part, image)
            below = page[top + len(image) :][:line, left : left + 61]
            assert below.min() < 100  # there is a caption
        top += len(row[0]) + line + gap
    assert page[:line].min() < 100  # and a title


# --------------------------------------------------------------- command line


def test_worst_picks_the_planted_image(
    knower, tool, run_tool, tmp_path, capsys
):
    out = tmp_path / 'out'
    run_tool(
        TOOL, *knower.all, *knower.most, '--out-dir', out, '--num', 2,
        '--width', 256, '--names', 'all', 'most',
    )  # fmt: skip
    rows = read(out / 'scores.csv')
    assert [Path(row['image']).name for row in rows] == FILES
    assert [row['all'] for row in rows] == ['1.0000'] * 4
    values = ['1.0000', '1.0000', '0.0000', '1.0000']
    assert [row['most'] for row in rows] == values
    assert [float(row['gain']) for row in rows] == [0, 0, -1, 0]
    assert [row['picked'] for row in rows] == ['2', '', '1', '']
    assert sorted(path.name for path in out.iterdir()) == [
        'scores.csv',
        'worst-1.png',
        'worst-2.png',
        'worst.png',
    ]
    first, second, grid = (
        cv2.imread(str(out / f'worst{end}.png')) for end in ('-1', '-2', '')
    )
    assert np.array_equal(grid[tool.LINE :][:256], first[tool.LINE :][:256])
    assert len(grid) == len(first) + len(second) - tool.LINE
    plain = cv2.imread('data/digits/images/val/000003.png')
    plain = cv2.resize(plain, (256, 256), interpolation=cv2.INTER_CUBIC)
    columns = [tool.GAP + i * (256 + tool.GAP) for i in range(3)]
    truth, all_of_it, most = (
        first[tool.LINE :][:256, x : x + 256] for x in columns
    )
    assert look_alike(most, plain)
    plain = most  # it finds nothing there
    # Boxes are drawn where they are; the lines of one have the same place.
    x, y, w, h = (2 * value for value in first_box_of(3))
    for panel in (truth, all_of_it):
        changed = (panel != plain).any(axis=-1)
        assert changed[y + h // 2, x - 1 : x + 2].any()
        assert changed[y + h // 2, x + w - 1 : x + w + 2].any()
        assert not changed[y + h // 2 + 2, x + w // 2]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f'2 images drawn into {out}'
    assert lines[-4].split() == ('1.000 0.750 -0.250 mean of 4 images'.split())
    assert lines[-3].split()[:3] == ['1.000', '0.000', '-1.000']


def first_box_of(number):
    path = Path('data/digits/annotations/instances_val.json')
    data = json.loads(path.read_text())
    found = (a for a in data['annotations'] if a['image_id'] == number)
    return next(found)['bbox']


def test_best_against_another_model(knower, run_tool, tmp_path):
    run_tool(
        TOOL, *knower.most, *knower.all, *knower.most, '--against', 'all',
        '--pick', 'best', '--num', 1, '--out-dir', tmp_path / 'out',
        '--names', 'most', 'all', 'again', '--layout', 'images',
    )  # fmt: skip
    names = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert names == ['best-1.png', 'scores.csv']
    rows = read(tmp_path / 'out/scores.csv')
    assert [row['picked'] for row in rows] == ['', '', '1', '']


def test_a_single_model_is_taken_by_its_score(knower, run_tool, tmp_path):
    run_tool(
        TOOL, *knower.most, '--out-dir', tmp_path / 'out', '--num', 1,
        '--layout', 'grid', '--limit', 2,
    )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'scores.csv',
        'worst.png',
    ]
    rows = read(tmp_path / 'out/scores.csv')
    assert list(rows[0]) == ['image', 'knower', 'picked']
    assert [Path(row['image']).name for row in rows] == FILES[::2]
    assert [row['picked'] for row in rows] == ['', '1']


@pytest.mark.parametrize('name', NAMES)
def test_trained_models(
    name, tool, trained, digits, demo, tmp_path, monkeypatch, run_tool
):
    config, checkpoint = demo / f'{name}.py', trained(name)
    monkeypatch.chdir(digits)
    run_tool(
        TOOL, '--model', config, checkpoint, '--model', config, checkpoint,
        '--names', 'a', 'b', '--out-dir', tmp_path / 'out', '--num', 1,
        '--limit', 4, '--width', 100, '--pick', 'random', '--score-thr', 0,
    )  # fmt: skip
    rows = read(tmp_path / 'out/scores.csv')
    picture = tmp_path / 'out/random-1.png'
    page = cv2.imread(str(picture))
    size = 100 + 2 * tool.LINE + tool.GAP, 3 * 100 + 4 * tool.GAP
    assert page.shape[:2] == size
    panels = [
        page[tool.LINE :][:100, tool.GAP + i * (100 + tool.GAP) :][:, :100]
        for i in range(3)
    ]
    assert np.array_equal(panels[1], panels[2])
    assert not np.array_equal(panels[0], panels[1])
    model = TrainedModel(config, checkpoint)
    assert len(rows) == 4
    for row in rows:
        assert row['a'] == row['b'] and float(row['gain']) == 0
        result = model.predict(row['image'])
        if name == RESNET:
            label = int(Path(row['image']).parent.name)
            want = float(result.pred_score[label])
        elif name == UPERNET:
            mask = row['image'].replace('images', 'masks')
            truth = cv2.imread(mask, -1)
            found = result.pred_sem_seg.data[0].numpy()
            want = np.mean(
                [
                    ((truth == c) & (found == c)).sum()
                    / ((truth == c) | (found == c)).sum()
                    for c in np.union1d(truth, found)
                ]
            )
        else:
            # As it learnt nothing in one epoch, its F1 is about none.
            continue
        assert float(row['a']) == pytest.approx(want, abs=1e-4)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ('words', 'reason'),
    [
        (['--num', 0], '--num 0: must be 1 or more'),
        (['--limit', 0], '--limit 0'),
        (['--width', 9], '--width 9: must be 50'),
        (['--score-thr', 1], '--score-thr 1.0'),
        (['--against', 'x'], '--against x: must be'),
        (['--names', 'a'], '--names gives 1 titles to 2 models'),
        (['--names', 'a', 'a'], 'a title comes twice'),
        (['--device', 'tpu9'], '--device tpu9'),
        (['--out-dir', '{tmp}/all.pth/out'], 'all.pth is a file'),
        (['--model', 'gone.py', 'gone.pth'], 'gone.pth'),
        (
            ['--cfg-options', 'test_dataloader.dataset.ann_file=gone.json'],
            'no annotation file data/digits/gone.json',
        ),
        (
            [
                '--cfg-options',
                'test_dataloader.dataset.pipeline.2.with_bbox=False',
            ],
            'the test data of knower has no ground truth',
        ),
        (['--cfg-options', 'visualizer=None'], 'knower has no visualizer'),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(words, reason, knower, run_tool, tmp_path):
    words = [str(word).replace('{tmp}', str(tmp_path)) for word in words]
    before = sorted(tmp_path.rglob('*'))
    names = [] if '--names' in words else ['--names', 'knower', 'b']
    if '--model' in words:
        names = []
    with pytest.raises(SystemExit) as error:
        run_tool(
            TOOL, *knower.all, *knower.most, '--out-dir', tmp_path / 'out',
            *names, *words,
        )  # fmt: skip
    message = error.value.code
    assert message.startswith('error: ') and '\n' not in message.strip()
    assert reason in message, message
    assert sorted(tmp_path.rglob('*')) == before


def test_models_that_cannot_be_compared(
    knower, trained, digits, demo, run_tool, tmp_path
):
    out = ('--out-dir', tmp_path / 'out')
    resnet = ('--model', demo / f'{RESNET}.py', trained(RESNET))
    with pytest.raises(SystemExit, match='of mmpretrain, knower one of mmdet'):
        run_tool(TOOL, *knower.all, *resnet, *out)
    state = torch.load(knower.all[2])
    meta = dict(dataset_meta=dict(classes=('cat', 'dog')))
    torch.save(dict(**state, meta=meta), tmp_path / 'cats.pth')
    with pytest.raises(SystemExit) as error:
        run_tool(TOOL, '--model', knower.config, tmp_path / 'cats.pth', *out)
    assert 'to find cat, dog (2 classes); the test data' in error.value.code
    assert '0, 1, 2, 3, 4, ... (10 classes)' in error.value.code
    with pytest.raises(SystemExit, match='2 models are called knower all; gi'):
        run_tool(TOOL, *knower.all, *knower.all, *out)
    assert not (tmp_path / 'out').exists()
