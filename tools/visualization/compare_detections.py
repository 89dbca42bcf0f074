# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Show what models find beside the ground truth, where they differ most.

For detectors (boxes and masks), segmentors and classifiers, on the test data
of the first config::

    python tools/visualization/compare_detections.py --out-dir DIR \\
        --model CONFIG CHECKPOINT --model CONFIG CHECKPOINT --pick worst

Every model gets a score for every image:

* a detector its F1 at IoU 0.5, of what is drawn: 2 * right / (drawn + boxes
  of the ground truth). A detection is right if its IoU with a box of its
  class, not taken by one of a higher score, is at least 0.5; one half or more
  of which lies on a crowd of its class does not count. (AP is a poor score
  for one image: false boxes hardly lower it while true ones score higher, and
  it counts boxes that are too unsure to be drawn.) If every model finds masks
  and the ground truth has them, the IoU is that of masks;
* a segmentor the mean IoU over the classes that are in the image or were
  found there;
* a classifier the probability of the true class.

Where there is nothing to find and nothing is found, the score is 1. Images
are picked by how much another model, the last one if not told, gains or loses
against the first. Result::

    DIR/worst-1.png    ground truth and models side by side, the first pick
    DIR/worst.png      all picks, one below the other
    DIR/scores.csv     the scores of all images
"""

import argparse
import contextlib
import csv
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.dataset import Compose
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from mmattn.engine import innermost_test_dataset, one_line_errors
from mmattn.errors import ConfigError
from mmattn.visualization.trained import (
    TrainedModel,
    add_device_arguments,
    add_models,
    all_or_nothing,
    build_test_data,
    check_model_arguments,
    evenly,
    load_models,
)

MIN_IOU = 0.5  # of a detection with what it is right about
DPI = 100
GAP, LINE = 8, 24  # between panels, and height of a line of text, px
TRUTH = 'ground truth'


class Case(NamedTuple):
    """An image with its ground truth, in pixels of the file."""

    path: str
    image: np.ndarray  # (H, W, 3), uint8, BGR
    truth: BaseDataElement


class Score(NamedTuple):
    """How well a model does on an image."""

    value: float  # between 0 and 1
    text: str  # the same, as it stands under the picture


#: Scores a model's result: (ground truth, result) -> score.
Judge = Callable[[BaseDataElement, BaseDataElement], Score]


# ---------------------------------------------------------------------- data


class TestData:
    """The test images of a config with their ground truth.

    Args:
        model: The model whose config names the data.

    Raises:
        ConfigError: If the data has no ground truth.
        FileNotFoundError: If the data is not there.
    """

    def __init__(self, model: TrainedModel) -> None:
        self.scope = model.scope
        self.data = build_test_data(model.cfg)
        steps = innermost_test_dataset(model.cfg).get('pipeline', ())
        # Neither resized nor turned: as the models' results are given.
        kept = [s for s in steps if _name(s.type).startswith(('Load', 'Pack'))]
        if not kept:
            raise ConfigError(f'the test data of {model.name} has no pipeline')
        self.pipeline = Compose(kept)
        self._check_truth(model.name)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> Case:
        info = self.data.get_data_info(number)
        path = str(info.get('img_path', number))
        packed = self.pipeline(info)
        image = packed['inputs'].clamp(0, 255).byte().permute(1, 2, 0)
        truth = packed['data_samples']
        if self.scope == 'mmdet':
            _unpack(truth.gt_instances)
            _unpack(truth.ignored_instances)
        return Case(path, np.ascontiguousarray(image.numpy()), truth)

    def _check_truth(self, name: str) -> None:
        """Raise ConfigError unless the first image has a ground truth."""
        truth = self[0].truth
        if self.scope == 'mmdet':
            found = 'bboxes' in truth.gt_instances
        elif self.scope == 'mmseg':
            found = 'gt_sem_seg' in truth
        else:
            found = 'gt_label' in truth
        if not found:
            raise ConfigError(f'the test data of {name} has no ground truth')
        if self.scope == 'mmpretrain' and truth.gt_label.numel() != 1:
            raise ConfigError(
                f'the images of {name} have several labels each; only '
                'classifiers of one label are compared'
            )


def _name(kind: Any) -> str:
    """Return the name of a type in a config, without its scope."""
    return getattr(kind, '__name__', str(kind)).split('.')[-1]


def _unpack(instances: InstanceData) -> None:
    """Turn mmdet's boxes and masks into tensors, as a model gives them."""
    if 'bboxes' in instances:
        boxes = instances.bboxes
        instances.bboxes = getattr(boxes, 'tensor', boxes)
    if 'masks' in instances:
        masks = torch.from_numpy(instances.masks.to_ndarray()).bool()
        instances.masks = masks


# -------------------------------------------------------------------- scores


def judge_of(data: TestData, models: list[TrainedModel], thr: float) -> Judge:
    """Return what scores the models' results.

    Args:
        data: The test data.
        models: The models, which must be of the data's framework.
        thr: Lowest score of a detection that counts.

    Raises:
        ConfigError: If a model does not find what is to be scored.
    """
    if data.scope == 'mmpretrain':
        return probability
    if data.scope == 'mmseg':
        metrics = models[0].cfg.test_evaluator
        metrics = metrics if isinstance(metrics, list) else [metrics]
        ignored = {m['ignore_index'] for m in metrics if 'ignore_index' in m}
        return partial(
            mean_iou,
            classes=len(data.data.metainfo['classes']),
            ignored=ignored.pop() if ignored else 255,
        )
    first = data[0]
    found = [model.predict(first.image) for model in models]
    for model, result in zip(models, found):
        if 'pred_instances' not in result:
            raise ConfigError(f'{model.name} finds no boxes')
    masks = 'masks' in first.truth.gt_instances and all(
        'masks' in result.pred_instances for result in found
    )
    return partial(f1, thr=thr, masks=masks)


def f1(
    truth: BaseDataElement, result: BaseDataElement, thr: float, masks: bool
) -> Score:
    """Return the F1 of what a detector finds in an image.

    Args:
        truth: mmdet's sample with ``gt_instances`` and, where crowds are,
            ``ignored_instances``.
        result: mmdet's sample with ``pred_instances``.
        thr: Detections must score more than that.
        masks: Whether to compare masks; else boxes.
    """
    found = result.pred_instances.cpu()
    found = found[found.scores > thr]
    wanted = truth.gt_instances
    crowds = truth.get('ignored_instances', wanted[:0])
    right = false = 0
    for label in found.labels.unique():
        hits, misses = match(
            *(g[g.labels == label] for g in (found, wanted, crowds)), masks
        )
        right, false = right + hits, false + misses
    total = right + false + len(wanted)
    value = 2 * right / total if total else 1.0
    kind = 'mask' if masks else 'box'
    return Score(
        value,
        f'{kind} F1 {value:.2f} ({right} of {len(wanted)}, {false} false)',
    )


def match(
    found: InstanceData,
    wanted: InstanceData,
    crowds: InstanceData,
    masks: bool,
) -> tuple[int, int]:
    """Count the right and the false detections of one class.

    Args:
        found: What was found.
        wanted: What is there.
        crowds: Regions where nothing counts as false.
        masks: Whether to compare masks; else boxes.
    """
    found = found[found.scores.argsort(descending=True, stable=True)]
    overlaps = iou(found, wanted, masks, crowd=False)
    ignored = iou(found, crowds, masks, crowd=True).max(axis=1, initial=0)
    free = np.ones(len(wanted), bool)
    right = false = 0
    for own, crowd in zip(overlaps, ignored):
        own = np.where(free, own, 0)
        if own.max(initial=0) >= MIN_IOU:
            free[own.argmax()] = False
            right += 1
        elif crowd < MIN_IOU:
            false += 1
    return right, false


def iou(
    found: InstanceData, others: InstanceData, masks: bool, crowd: bool
) -> np.ndarray:
    """Return the IoU of detections with others, ``(found, others)``.

    With ``crowd`` it is the share of the detection that lies on the other.
    """
    shape = len(found), len(others)
    if not all(shape):
        return np.zeros(shape)
    pair = [_regions(group, masks) for group in (found, others)]
    return coco_mask.iou(*pair, [int(crowd)] * shape[1])


def _regions(instances: InstanceData, masks: bool) -> Any:
    """Return boxes (x, y, w, h) or masks as pycocotools takes them."""
    if masks:
        arrays = instances.masks.cpu().numpy().astype(np.uint8)
        return [coco_mask.encode(np.asfortranarray(a)) for a in arrays]
    boxes = instances.bboxes.cpu().double().numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def mean_iou(
    truth: BaseDataElement,
    result: BaseDataElement,
    classes: int,
    ignored: int,
) -> Score:
    """Return the mean IoU of an image, over the classes that occur in it.

    Args:
        truth: mmseg's sample with ``gt_sem_seg``.
        result: mmseg's sample with ``pred_sem_seg``.
        classes: Number of classes.
        ignored: Label of the pixels that do not count.
    """
    from mmseg.evaluation import IoUMetric

    common, union, *_ = IoUMetric.intersect_and_union(
        result.pred_sem_seg.data.squeeze(0).cpu(),
        truth.gt_sem_seg.data.squeeze(0).long(),
        classes,
        ignored,
    )
    there = union > 0
    value = float((common / union)[there].mean()) if there.any() else 1.0
    return Score(value, f'mIoU {value:.2f}')


def probability(truth: BaseDataElement, result: BaseDataElement) -> Score:
    """Return the probability that a classifier gives to the true class.

    Args:
        truth: mmpretrain's sample with ``gt_label``.
        result: mmpretrain's sample with ``pred_score``.
    """
    value = float(result.pred_score[int(truth.gt_label)])
    return Score(value, f'true class {value:.2f}')


# ------------------------------------------------------------------- picking


def pick(values: np.ndarray, how: str, num: int, seed: int) -> list[int]:
    """Choose images.

    Args:
        values: What is gained in each image.
        how: ``'worst'`` for the lowest values, ``'best'`` for the highest,
            ``'random'``.
        num: How many, if there are so many.
        seed: Seed of the random choice.

    Returns:
        Indices, the most extreme first; of equals the earlier first.
    """
    if how == 'random':
        order = np.random.default_rng(seed).permutation(len(values))
    else:
        order = np.argsort(-values if how == 'best' else values, kind='stable')
    return order[:num].tolist()


def compared(names: list[str], against: str | None) -> int:
    """Return the index of the model that is compared with the first.

    Args:
        names: Titles of the models.
        against: Title of one, or its number from 1; None for the last.

    Raises:
        ConfigError: If there is no such model, or it is the first.
    """
    if against is None:
        return len(names) - 1
    if against in names[1:]:
        return names.index(against)
    if against.isdecimal() and 2 <= int(against) <= len(names):
        return int(against) - 1
    raise ConfigError(
        f'--against {against}: must be the title or the number, from 2, of a '
        f'model other than the first; there are {", ".join(names)}'
    )


# ------------------------------------------------------------------- drawing


class Panels:
    """Draws ground truth and results with the framework's visualizer.

    Args:
        model: The model whose config names the visualizer.
        meta: Class names, and colours if there are any.
        width: Width of a picture, px.
        thr: Lowest score of a box to draw.

    Raises:
        ConfigError: If the config has no visualizer.
    """

    def __init__(
        self, model: TrainedModel, meta: dict, width: int, thr: float
    ) -> None:
        cfg = model.cfg.get('visualizer')
        if cfg is None:
            raise ConfigError(f'{model.name} has no visualizer')
        name = f'compare_{id(self)}'
        self.visualizer = VISUALIZERS.build(
            {**cfg, 'name': name, 'vis_backends': None}
        )
        self.visualizer.dataset_meta = meta
        self.scope = model.scope
        self.width = width
        self.thr = thr

    def draw(
        self, case: Case, result: BaseDataElement | None = None
    ) -> np.ndarray:
        """Return a picture, ``(H, W, 3)``, uint8, RGB.

        Args:
            case: The image.
            result: A model's result; None draws the ground truth.
        """
        height, width = case.image.shape[:2]
        size = max(1, round(height * self.width / width)), self.width
        shrinks = self.width < width
        image = cv2.resize(
            case.image[..., ::-1],
            size[::-1],
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC,
        )
        sample = resized(
            case.truth if result is None else result, (height, width), size
        )
        args = dict(draw_gt=result is None, draw_pred=result is not None)
        with same_colours():
            if self.scope == 'mmpretrain':
                self.visualizer.visualize_cls(image, sample, **args)
            elif self.scope == 'mmseg':
                self.visualizer.add_datasample('', image, sample, **args)
            else:
                self.visualizer.add_datasample(
                    '', image, sample, **args, pred_score_thr=self.thr
                )
        return self.visualizer.get_image()


@contextlib.contextmanager
def same_colours() -> Iterator[None]:
    """Let mmdet, which varies the colours of masks, vary them the same."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def resized(
    sample: BaseDataElement, old: tuple[int, int], new: tuple[int, int]
) -> BaseDataElement:
    """Return a sample as it were of a larger or smaller image.

    Lines and letters then have one size in all pictures, and small images
    stay visible below them.

    Args:
        sample: Ground truth or result, of any of the frameworks.
        old: Height and width of its image.
        new: Height and width wanted.
    """
    sample = sample.cpu()  # its parts are new, their tensors are not
    factor = torch.tensor([new[1] / old[1], new[0] / old[0]] * 2)
    for key, part in list(sample.items()):
        if isinstance(part, PixelData) and key != 'seg_logits':
            setattr(sample, key, PixelData(data=_resize(part.data, new)))
        elif isinstance(part, InstanceData):
            if 'masks' in part:
                part.masks = _resize(part.masks, new)
            if 'bboxes' in part:
                part.bboxes = part.bboxes * factor
    return sample


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps ``(N, H, W)`` without mixing their values."""
    if not len(maps):
        return maps.new_zeros(0, *size)
    large = F.interpolate(maps[None].float(), size, mode='nearest')[0]
    return large.to(maps.dtype)


def compose(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]],
    titles: Sequence[str],
) -> Figure:
    """Set pictures side by side, pixel for pixel.

    Args:
        rows: Pictures of each row, ``(H, W, 3)``, of one size in a row.
        captions: Text below each of them.
        titles: Text above each column.
    """
    width = rows[0][0].shape[1]
    total = (
        len(titles) * (width + GAP) + GAP,
        LINE + sum(len(row[0]) + LINE + GAP for row in rows),
    )
    figure = Figure([side / DPI for side in total], dpi=DPI)

    def write(text: str, x: float, y: float) -> None:
        # Some 0.6 of the size is the width of a letter.
        size = min(LINE * 0.5, width / max(len(text), 1) / 0.6)
        figure.text(
            (x + width / 2) / total[0],
            1 - (y + LINE / 2) / total[1],
            text,
            size=size * 72 / DPI,
            ha='center',
            va='center',
        )

    places = [GAP + i * (width + GAP) for i in range(len(titles))]
    for x, title in zip(places, titles):
        write(title, x, 0)
    y = LINE
    for row, texts in zip(rows, captions):
        height = len(row[0])
        for x, image, text in zip(places, row, texts):
            figure.figimage(image, x, total[1] - y - height)
            write(text, x, y + height)
        y += height + LINE + GAP
    return figure


# -------------------------------------------------------------- command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n')[0], allow_abbrev=False
    )
    add_models(parser)
    parser.add_argument(
        '--out-dir', required=True, help='Folder for pictures and scores.'
    )
    parser.add_argument(
        '--pick',
        choices=('worst', 'best', 'random'),
        default='worst',
        help='Which images to draw: where a model loses most against the '
        'first (worst), where it gains most (best), or any. A single model '
        'is taken by its score. Default: %(default)s.',
    )
    parser.add_argument(
        '--against',
        metavar='MODEL',
        help='Title, or number from 2, of the model to compare with the '
        'first. Default: the last.',
    )
    numbers = {
        'num': (8, 'Number of images to draw'),
        'seed': (0, 'Seed of the random choice'),
        'limit': (None, 'Look at N images only, evenly spread over the data'),
        'width': (400, 'Width of each picture in px'),
    }
    for name, (default, text) in numbers.items():
        end = '.' if default is None else '. Default: %(default)s.'
        parser.add_argument(
            f'--{name}',
            type=int,
            default=default,
            metavar='N',
            help=text + end,
        )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='Boxes that score more are drawn and counted. Default: '
        '%(default)s.',
    )
    parser.add_argument(
        '--layout',
        choices=('both', 'images', 'grid'),
        default='both',
        help='Draw a picture of each image, a grid of all, or both. Default: '
        '%(default)s.',
    )
    add_device_arguments(parser)
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Raise ConfigError for what cannot be done, before any work."""
    check_model_arguments(args)
    lowest = {'num': 1, 'seed': 0, 'limit': 1, 'width': 50}
    for name, low in lowest.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise ConfigError(f'--{name} {value}: must be {low} or more')
    if not 0 <= args.score_thr < 1:
        raise ConfigError(
            f'--score-thr {args.score_thr}: must be 0 or more and below 1'
        )


def check_models(models: list[TrainedModel]) -> None:
    """Raise ConfigError unless the models can be compared."""
    first = models[0]
    for model in models:
        if model.scope != first.scope:
            raise ConfigError(
                f'{model.name} is a model of {model.scope}, {first.name} one '
                f'of {first.scope}; they do not find the same things'
            )


def check_classes(models: list[TrainedModel], data: TestData) -> None:
    """Raise ConfigError unless the models know the classes of the data."""
    classes = list(data.data.metainfo.get('classes') or ())
    for model in models:
        own = list(model.model.dataset_meta.get('classes') or classes)
        if classes and own != classes:
            raise ConfigError(
                f'{model.name} was trained to find {_short(own)}; the test '
                f'data of {models[0].name} has {_short(classes)}'
            )


def _short(classes: list[str]) -> str:
    """Name a few classes, and the number of all."""
    more = ', ...' if len(classes) > 5 else ''
    return f'{", ".join(classes[:5])}{more} ({len(classes)} classes)'


def score_all(
    models: list[TrainedModel],
    data: TestData,
    numbers: list[int],
    judge: Judge,
) -> tuple[list[str], np.ndarray]:
    """Score every model on images.

    Nothing else is kept of the results: masks of a whole data set would not
    fit into the memory.

    Returns:
        Paths of the images, and the scores, ``(images, models)``.
    """
    paths, values = [], []
    for number in tqdm(numbers, unit='image'):
        case = data[number]
        paths.append(case.path)
        values.append(
            [judge(case.truth, m.predict(case.image)).value for m in models]
        )
    return paths, np.array(values)


def write_scores(
    path: Path,
    images: list[str],
    columns: dict[str, np.ndarray],
    picked: list[int],
) -> None:
    """Write the scores of all images, in the order of the data.

    Args:
        path: Where to.
        images: Paths of the images.
        columns: Heading -> a number for each image.
        picked: Indices of the images that are drawn.
    """
    ranks = {index: rank for rank, index in enumerate(picked, start=1)}
    with path.open('w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['image', *columns, 'picked'])
        for i, (image, *row) in enumerate(zip(images, *columns.values())):
            cells = [f'{value:.4f}' for value in row]
            writer.writerow([image, *cells, ranks.get(i, '')])


def draw_picked(
    folder: Path,
    models: list[TrainedModel],
    cases: list[Case],
    judge: Judge,
    panels: Panels,
    args: argparse.Namespace,
) -> None:
    """Write the pictures.

    Args:
        folder: Where to.
        models: The models, in the order of their columns.
        cases: The images, in the order of their rows.
        judge: Scores the results.
        panels: Draws them.
        args: ``pick`` and ``layout`` of the command line.
    """
    titles = [TRUTH, *(model.name for model in models)]
    rows, captions = [], []
    digits = len(str(len(cases)))
    for rank, case in enumerate(tqdm(cases, unit='picture'), start=1):
        results = [model.predict(case.image) for model in models]
        row = [panels.draw(case, result) for result in (None, *results)]
        name = Path(case.path)
        texts = [f'{name.parent.name}/{name.name}']  # the folder, a class
        texts += [judge(case.truth, result).text for result in results]
        if args.layout != 'grid':
            file = folder / f'{args.pick}-{rank:0{digits}}.png'
            compose([row], [texts], titles).savefig(file)
        if args.layout != 'images':
            rows.append(row)
            captions.append(texts)
    if rows:
        compose(rows, captions, titles).savefig(folder / f'{args.pick}.png')


def report(
    images: list[str], columns: dict[str, np.ndarray], picked: list[int]
) -> None:
    """Print the means, and the scores of the picked images.

    Args:
        images: Paths of the images.
        columns: Heading -> a number for each image.
        picked: Indices of the images that are drawn.
    """
    widths = [max(8, len(head)) for head in columns]
    table = np.stack(list(columns.values()), axis=1)
    lines = {f'mean of {len(images)} images': table.mean(axis=0)}
    lines |= {images[index]: table[index] for index in picked}
    heads = [f'{head:>{width}}' for head, width in zip(columns, widths)]
    print(*heads, 'image', sep='  ')
    for text, row in lines.items():
        cells = [f'{value:{width}.3f}' for value, width in zip(row, widths)]
        print(*cells, text, sep='  ')


def main() -> None:
    """Score all images, pick some and draw them."""
    args = parse_args()
    with one_line_errors():
        check_args(args)
        models = load_models(args)
        check_models(models)
        data = TestData(models[0])
        check_classes(models, data)
        names = [model.name for model in models]
        other = compared(names, args.against)
        judge = judge_of(data, models, args.score_thr)
        meta = data.data.metainfo
        panels = Panels(models[0], meta, args.width, args.score_thr)
        numbers = evenly(len(data), args.limit)
        images, values = score_all(models, data, numbers, judge)
        columns = dict(zip(names, values.T))
        if other:
            columns['gain'] = values[:, other] - values[:, 0]
        decisive = list(columns.values())[-1]
        picked = pick(decisive, args.pick, args.num, args.seed)
        cases = [data[numbers[index]] for index in picked]
        with all_or_nothing(args.out_dir) as folder:
            draw_picked(folder, models, cases, judge, panels, args)
            write_scores(folder / 'scores.csv', images, columns, picked)
        report(images, columns, picked)
        print(f'{len(picked)} images drawn into {args.out_dir}')


if __name__ == '__main__':
    main()
