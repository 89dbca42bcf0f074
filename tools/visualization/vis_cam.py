# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Show where models look: class activation maps, models side by side.

For detectors, segmentors and classifiers::

    python tools/visualization/vis_cam.py IMAGES --out-dir DIR \\
        --model CONFIG CHECKPOINT --model CONFIG CHECKPOINT

Every row of the figure puts one question to all models, and it is the first
model that finds the questions. What a map explains is the score before the
softmax or sigmoid, as Grad-CAM has it:

* of a classifier, the score of the predicted class;
* of a detector, one map for each of the best boxes: the score that the box's
  class gets for that fixed box. With regions (Faster, Mask, Cascade R-CNN) the
  head classifies the box as if it were a proposal, Cascade's stages averaged.
  Without (RetinaNet and its kind) it is the score of the location that the
  box came from; in other models of the location that fits it best. Boxes
  themselves, proposals and their selection have no part in it;
* of a segmentor, the mean score of a class over the pixels that the first
  model gives to it.

Grad-CAM gives every channel one weight, the mean of its gradients, and so
forgets where they were: two boxes of a class get about the same map. For
detectors the default is therefore HiResCAM, which weights pixel by pixel, as
ODAM does for detectors (https://arxiv.org/abs/2304.06354).

Only gradients with respect to the image are computed, so frozen stages do not
matter. Result::

    DIR/cam-1.png    rows of questions, columns of models; more files follow
    DIR/cam.npz      with --npz, the maps as the layer has them

Keys of the npz: ``method``, ``models``, ``layers``, ``images``, ``labels``,
``boxes`` (x1, y1, x2, y2 in pixels of the image file, else nan), ``scores``
(rows by models) and, for row R and model M from 0, ``cam_R_M``: not negative,
neither scaled nor resized.
"""

import argparse
import difflib
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torchvision.ops import box_iou
from tqdm import tqdm

from mmattn.engine import one_line_errors
from mmattn.errors import ConfigError
from mmattn.visualization.trained import (
    TrainedModel,
    add_model_arguments,
    all_or_nothing,
    as_map,
    check_model_arguments,
    find_images,
    load_models,
)

# The methods of the package that ask for a class. EigenCAM and its kin do
# not, or have no sign; ScoreCAM and AblationCAM run the model once a channel.
METHODS = {
    'GradCAM': 'GradCAM',
    'GradCAM++': 'GradCAMPlusPlus',
    'XGradCAM': 'XGradCAM',
    'LayerCAM': 'LayerCAM',
    'HiResCAM': 'HiResCAM',
    'GradCAMElementWise': 'GradCAMElementWise',
}
SAME_BOX = 0.999  # overlap from which two boxes are one, but for rounding
SAME_OBJECT = 0.5  # overlap from which they may show one object


class Question(NamedTuple):
    """What all models are asked about an image: a row of the figure."""

    image: Path
    label: str  # name of the class
    index: int  # of the class in the first model; names may come twice
    box: np.ndarray | None = None  # x1, y1, x2, y2 in the file, px
    pixels: np.ndarray | None = None  # (H, W), bool, as the first model sees


class Answer(NamedTuple):
    """What a model says to a question: a panel of the figure."""

    cam: np.ndarray  # (H', W'), of the layer's size, not negative
    score: float  # between 0 and 1
    picture: np.ndarray  # (H, W, 3), uint8, RGB, as the model sees the image
    heat: np.ndarray  # (H, W), the map laid over it
    box: np.ndarray | None  # the question's, on the picture


class Row(NamedTuple):
    """A question with what the models answer, in their order."""

    question: Question
    answers: list[Answer]


# ----------------------------------------------------------------- questions


def classes_of(trained: TrainedModel) -> list[str]:
    """Return the names of a model's classes."""
    names = trained.model.dataset_meta.get('classes')
    if names:
        return [str(name) for name in names]
    head = getattr(trained.model, 'head', None)
    return [str(i) for i in range(getattr(head, 'num_classes', 0))]


def find_class(trained: TrainedModel, wanted: str) -> int:
    """Return the index of a class.

    Args:
        trained: The model.
        wanted: Name of the class; else its index.

    Raises:
        ConfigError: If there is none; names the ones that come close.
    """
    classes = classes_of(trained)
    if wanted in classes:
        return classes.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(classes):
        return int(wanted)
    close = [name for name in classes if wanted.lower() in name.lower()]
    close += difflib.get_close_matches(wanted, classes, n=6, cutoff=0.5)
    shown = list(dict.fromkeys([*close, *classes]))[:6]
    raise ConfigError(
        f'{trained.name} has no class {wanted!r}; there are '
        f'{", ".join(shown)}'
        + (f' and others, {len(classes)} in all' if len(classes) > 6 else '')
    )


def ask(
    trained: TrainedModel, image: Path, args: argparse.Namespace
) -> list[Question]:
    """Let a model find what the models are to be asked about an image.

    Returns:
        Nothing if it finds no box, or no pixel, of what is wanted.
    """
    wanted = None if args.target is None else find_class(trained, args.target)
    if trained.scope == 'mmpretrain':
        return ask_classifier(trained, image, wanted)
    if trained.scope == 'mmseg':
        return ask_segmentor(trained, image, wanted)
    return ask_detector(trained, image, wanted, args.boxes, args.score_thr)


def ask_classifier(
    trained: TrainedModel, image: Path, wanted: int | None
) -> list[Question]:
    """Ask about the wanted class, else about the predicted one."""
    if wanted is None:
        with torch.no_grad():
            data = trained.read(image)
            wanted = int(trained.model(data['inputs'], mode='tensor').argmax())
    return [Question(image, classes_of(trained)[wanted], wanted)]


def ask_detector(
    trained: TrainedModel,
    image: Path,
    wanted: int | None,
    count: int,
    score_thr: float,
) -> list[Question]:
    """Ask about the best boxes, best first."""
    found = trained.predict(image).pred_instances.cpu()
    found = found[found.scores >= score_thr]
    if wanted is not None:
        found = found[found.labels == wanted]
    found = found[found.scores.argsort(descending=True)[:count]]
    classes = classes_of(trained)
    return [
        Question(image, classes[index], index, box.numpy())
        for index, box in zip(found.labels.tolist(), found.bboxes)
    ]


def ask_segmentor(
    trained: TrainedModel, image: Path, wanted: int | None
) -> list[Question]:
    """Ask about the wanted class, else about the largest but background."""
    data = trained.read(image)
    with torch.no_grad():
        predicted = segment(trained.model, data, data['inputs'])[0].argmax(0)
    height, width = visible(data)
    predicted = predicted[:height, :width].cpu().numpy()
    classes = classes_of(trained)
    if wanted is None:
        sizes = np.bincount(predicted.ravel(), minlength=len(classes))
        for index, name in enumerate(classes):
            if 'background' in name.lower() and sizes[index] < sizes.sum():
                sizes[index] = 0
        wanted = int(sizes.argmax())
    pixels = predicted == wanted
    if not pixels.any():
        return []
    return [Question(image, classes[wanted], wanted, pixels=pixels)]


def visible(data: dict) -> tuple[int, int]:
    """Return height and width of a model's input without its padding."""
    height, width = data['inputs'].shape[2:]
    for sample in data['data_samples'] or ():
        height, width = sample.metainfo.get('img_shape', (height, width))[:2]
    return height, width


# -------------------------------------------------------------------- scores


class Scores(nn.Module):
    """A model that gives the score of each question, ``(K,)``.

    Args:
        trained: The model.
        data: What it read of an image.
        questions: K questions about that image.

    Raises:
        ConfigError: If it lacks a class.
    """

    def __init__(
        self,
        trained: TrainedModel,
        data: dict,
        questions: Sequence[Question],
    ) -> None:
        super().__init__()
        self.model = trained.model
        self.scope, self.name = trained.scope, trained.name
        self.data, self.questions = data, questions
        classes = classes_of(trained)
        labels = [
            q.index
            if classes[q.index : q.index + 1] == [q.label]
            else find_class(trained, q.label)
            for q in questions
        ]
        self.labels = torch.tensor(labels, device=data['inputs'].device)
        #: The scores between 0 and 1, of the last run.
        self.between = torch.zeros(len(questions))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scores before softmax or sigmoid.

        Args:
            inputs: ``(1, 3, H, W)``.
        """
        if self.scope == 'mmpretrain':
            logits = self.model(inputs, mode='tensor')
            return self._choose(logits.expand(len(self.labels), -1))
        if self.scope == 'mmseg':
            return self._pixels(segment(self.model, self.data, inputs)[0])
        features = self.model.extract_feat(inputs)
        if can_classify(getattr(self.model, 'roi_head', None)):
            return self._regions(features)
        if can_decode(getattr(self.model, 'bbox_head', None)):
            return self._locations(features)
        raise ConfigError(
            f'{self.name}: how a {type(self.model).__name__} comes to the '
            'score of a box is not known; RetinaNet, Faster, Mask and '
            'Cascade R-CNN and their kin are'
        )

    def _choose(self, logits: Tensor, sigmoid: bool = False) -> Tensor:
        """Return the labels' columns, ``(K, C)`` to ``(K,)``."""
        own = self.labels[:, None]
        every = logits.sigmoid() if sigmoid else logits.softmax(1)
        self.between = every.gather(1, own)[:, 0].detach().cpu()
        return logits.gather(1, own)[:, 0]

    def boxes(self) -> np.ndarray:
        """Return the questions' boxes as the model sees them, ``(K, 4)``."""
        boxes = np.stack([question.box for question in self.questions])
        scale = self.data['data_samples'][0].metainfo['scale_factor']
        return boxes * np.tile(scale, 2)

    def _regions(self, features: Sequence[Tensor]) -> Tensor:
        """Let the head on regions classify the boxes."""
        head = self.model.roi_head
        boxes = torch.from_numpy(self.boxes()).to(features[0])
        rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1)
        stages = getattr(head, 'num_stages', None)  # Cascade R-CNN's
        runs = [()] if stages is None else [(i,) for i in range(stages)]
        logits = [
            head._bbox_forward(*run, features, rois)['cls_score']
            for run in runs
        ]
        return self._choose(sum(logits) / len(logits))

    def _locations(self, features: Sequence[Tensor]) -> Tensor:
        """Find the locations of the boxes and return their scores."""
        head = self.model.bbox_head
        maps = head(features)
        logits = flatten(maps[0], head.cls_out_channels)
        offsets = flatten(maps[1], head.bbox_coder.encode_size)
        priors = head.prior_generator.grid_priors(
            [level.shape[2:] for level in maps[0]],
            dtype=offsets.dtype,
            device=offsets.device,
        )
        boxes = head.bbox_coder.decode(
            torch.cat(priors), offsets.detach(), max_shape=visible(self.data)
        )
        chosen = self._fitting(boxes, logits.detach())
        return self._choose(logits[chosen], head.use_sigmoid_cls)

    def _fitting(self, boxes: Tensor, logits: Tensor) -> Tensor:
        """Return which of many boxes, ``(N, 4)``, fits each question's.

        It is the very box, where the model has it, else the one of those on
        the same object whose score for the class is highest.
        """
        own = torch.from_numpy(self.boxes()).to(boxes)
        overlaps = box_iou(own, boxes)  # (K, N)
        best = overlaps.amax(1, keepdim=True)
        least = torch.where(
            best < SAME_BOX, best.clamp(max=SAME_OBJECT), SAME_BOX
        )
        scores = logits[:, self.labels].T
        return scores.where(overlaps >= least, -torch.inf).argmax(1)

    def _pixels(self, logits: Tensor) -> Tensor:
        """Return means over the questions' pixels, of ``(C, H, W)``."""
        height, width = visible(self.data)
        logits = logits[:, :height, :width]
        every = logits.detach().softmax(0)
        means, between = [], []
        for question, label in zip(self.questions, self.labels):
            pixels = question.pixels.astype(np.uint8)
            if pixels.shape != (height, width):  # another model's
                pixels = cv2.resize(
                    pixels, (width, height), interpolation=cv2.INTER_NEAREST
                )
            chosen = torch.from_numpy(pixels > 0).to(logits.device)
            means.append(logits[label][chosen].mean())
            between.append(every[label][chosen].mean())
        self.between = torch.stack(between).cpu()
        return torch.stack(means)


def segment(model: nn.Module, data: dict, inputs: Tensor) -> Tensor:
    """Return a segmentor's scores of every pixel, ``(1, C, H, W)``."""
    metas = [sample.metainfo for sample in data['data_samples']]
    logits = model.encode_decode(inputs, metas)
    # One channel stands for the second of two classes.
    return logits if logits.shape[1] > 1 else torch.cat([-logits, logits], 1)


def can_classify(head: nn.Module | None) -> bool:
    """Tell whether a head on regions is that of a (Cascade) R-CNN."""
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

    forward = getattr(type(head), '_bbox_forward', None)
    return forward in (
        StandardRoIHead._bbox_forward,
        CascadeRoIHead._bbox_forward,
    )


def can_decode(head: nn.Module | None) -> bool:
    """Tell whether each box of a dense head is its prior, decoded."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    return hasattr(head, 'bbox_coder') and all(
        getattr(type(head), step, None) is getattr(BaseDenseHead, step)
        for step in ('predict_by_feat', '_predict_by_feat_single')
    )


def flatten(levels: Sequence[Tensor], width: int) -> Tensor:
    """Order a dense head's maps like its priors, to ``(N, width)``."""
    levels = [level.permute(0, 2, 3, 1) for level in levels]
    return torch.cat([level.reshape(-1, width) for level in levels])


# ---------------------------------------------------------------------- maps


def package() -> ModuleType:
    """Return the package that has the methods."""
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise ConfigError(
            f'vis_cam.py needs a package that is not there ({error}): '
            'pip install grad-cam'
        ) from error
    return pytorch_grad_cam


def activation_maps(
    scores: Scores, layer: nn.Module, name: str, method: str
) -> list[np.ndarray]:
    """Compute the class activation map of every score.

    Args:
        scores: The model and its questions.
        layer: The layer whose map is weighted.
        name: Its name, for messages.
        method: A key of ``METHODS``.

    Returns:
        Maps ``(H', W')``, of the layer's size, not negative.

    Raises:
        ConfigError: If the layer has no map of the image, or no part in a
            score.
    """
    scores.requires_grad_(False)  # no gradient of weights is wanted
    inputs = scores.data['inputs'].detach().requires_grad_()
    size = tuple(inputs.shape[2:])
    cam = getattr(package(), METHODS[method])(
        model=scores,
        target_layers=[layer],
        # The package keeps no copy, and what follows may work in place.
        reshape_transform=lambda out: as_map(out, size, name).clone(),
    )
    recorded = cam.activations_and_grads
    try:
        with torch.enable_grad():
            values = recorded(inputs)
            maps = []
            for value in values:
                recorded.gradients = []
                torch.autograd.grad(value, inputs, retain_graph=True)
                pair = [recorded.activations, recorded.gradients]
                check_recorded(scores, name, *pair)
                pair = [of[0].float().numpy() for of in pair]
                image = cam.get_cam_image(inputs, layer, None, *pair, False)
                maps.append(np.maximum(image[0], 0))
    finally:
        recorded.release()
    return maps


def check_recorded(
    scores: Scores, name: str, activations: list, gradients: list
) -> None:
    """Raise ConfigError unless a layer ran once, on the image as a whole."""
    which = f'{scores.name}: layer {name!r}'
    if len(activations) > 1:
        raise ConfigError(
            f'{which} runs {len(activations)} times in one pass; name a layer '
            'that runs once, such as one of the backbone'
        )
    if not activations or not gradients:
        raise ConfigError(f'{which} has no part in the score')
    if len(activations[0]) != 1:
        raise ConfigError(
            f'{which} sees {len(activations[0])} regions, not the image'
        )


def answer(
    trained: TrainedModel,
    layer: str,
    questions: Sequence[Question],
    method: str,
) -> list[Answer]:
    """Put questions about one image to a model."""
    data = trained.read(questions[0].image)
    scores = Scores(trained, data, questions)
    maps = activation_maps(scores, trained.module(layer), layer, method)
    size, (height, width) = data['inputs'].shape[2:], visible(data)
    picture = trained.picture(data['inputs'])[:height, :width]
    boxes = [None] * len(maps) if questions[0].box is None else scores.boxes()
    return [
        Answer(
            cam,
            float(score),
            picture,
            cv2.resize(cam, tuple(size[::-1]))[:height, :width],
            box,
        )
        for cam, score, box in zip(maps, scores.between, boxes)
    ]


def rows_of(
    models: Sequence[TrainedModel],
    layers: Sequence[str],
    image: Path,
    args: argparse.Namespace,
) -> list[Row]:
    """Ask the first model about an image and let all models answer.

    Raises:
        ConfigError: If the image cannot be read.
    """
    if cv2.imread(str(image)) is None:
        raise ConfigError(f'{image} is no readable image')
    questions = ask(models[0], image, args)
    if not questions:
        return []
    answers = [
        answer(model, layer, questions, args.method)
        for model, layer in zip(models, layers)
    ]
    return [
        Row(question, list(own))
        for question, own in zip(questions, zip(*answers))
    ]


# -------------------------------------------------------------------- figure


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a map over a picture, red where it is highest and blue at zero."""
    heat = heat / (heat.max() or 1)
    colours = colormaps['jet'](heat)[..., :3] * 255
    return ((picture + colours) / 2).round().astype(np.uint8)


def draw_figure(rows: Sequence[Row], names: Sequence[str], path: Path) -> None:
    """Write the PNG of rows."""
    height, width = rows[0].answers[0].picture.shape[:2]
    side = 2.0  # inches, of a panel's longer side
    wide, high = (side * edge / max(height, width) for edge in (width, height))
    figure = Figure(
        figsize=((wide + 0.1) * (len(names) + 1), (high + 0.3) * len(rows)),
        layout='constrained',
    )
    grid = figure.subplots(len(rows), len(names) + 1, squeeze=False)
    for axes, row in zip(grid, rows):
        draw_question(axes[0], row)
        for panel, one in zip(axes[1:], row.answers):
            zero = '' if one.cam.any() else ', map is zero'
            shown = overlay(one.picture, one.heat)
            draw_panel(panel, shown, f'score {one.score:.2f}{zero}', one.box)
    for panel, name in zip(grid[0], ('input', *names)):
        panel.set_title(textwrap.fill(name, 22), fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches='tight', pad_inches=0.05)


def draw_question(axes: Axes, row: Row) -> None:
    """Draw the image with what is asked about it."""
    question, first = row.question, row.answers[0]
    draw_panel(axes, first.picture, question.label[:32], first.box)
    axes.set_ylabel(question.image.stem[-24:], fontsize=7, labelpad=3)
    if question.pixels is not None and not question.pixels.all():
        axes.contour(question.pixels, [0.5], colors='white', linewidths=0.8)


def draw_panel(
    axes: Axes, image: np.ndarray, text: str, box: np.ndarray | None
) -> None:
    """Draw an image with a line of text below it."""
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(text, fontsize=7, labelpad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if box is not None:
        left, top, right, bottom = box - 0.5  # where imshow's pixels begin
        axes.add_patch(
            Rectangle(
                (left, top),
                right - left,
                bottom - top,
                fill=False,
                color='white',
                linewidth=1,
            )
        )


class Arrays:
    """The npz, row by row.

    Args:
        single: What does not depend on a row.
    """

    def __init__(self, **single: str | Sequence[str]) -> None:
        self.single = single
        self.columns: dict[str, list] = dict(
            images=[], labels=[], boxes=[], scores=[]
        )
        self.maps: dict[str, np.ndarray] = {}

    def add(self, row: Row) -> None:
        """Take a row."""
        question, answers = row
        number = len(self.columns['images'])
        values = dict(
            images=str(question.image),
            labels=question.label,
            boxes=np.full(4, np.nan) if question.box is None else question.box,
            scores=[one.score for one in answers],
        )
        for key, value in values.items():
            self.columns[key].append(value)
        for m, one in enumerate(answers):
            self.maps[f'cam_{number}_{m}'] = one.cam

    def write(self, path: Path) -> None:
        """Write all rows."""
        np.savez_compressed(path, **self.single, **self.columns, **self.maps)


# ------------------------------------------------------------------- program


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument(
        '--target-layer',
        nargs='+',
        metavar='NAME',
        help='The layer whose map is weighted, such as layer4.2: one for all '
        'models, or one for each. Default: the last stage of the backbone.',
    )
    parser.add_argument(
        '--method',
        choices=METHODS,
        help='How the map is weighted. Default: HiResCAM for detectors, '
        'GradCAM for others.',
    )
    parser.add_argument(
        '--target',
        metavar='CLASS',
        help='Ask about this class, given by name or index. Default: what '
        'the first model predicts, of a segmentor the class of most pixels '
        'but background.',
    )
    parser.add_argument(
        '--boxes',
        type=int,
        default=3,
        metavar='N',
        help='Of detectors, boxes of each image. Default: %(default)s.',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='Lowest score of a box. Default: %(default)s.',
    )
    parser.add_argument(
        '--rows',
        type=int,
        default=8,
        help='Rows of a figure; more than that fill another. Default: '
        '%(default)s.',
    )
    parser.add_argument(
        '--npz', action='store_true', help='Also write the maps, as arrays.'
    )
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Raise ConfigError for what cannot be done, before any work."""
    check_model_arguments(args)
    package()
    for option in ('boxes', 'rows'):
        if getattr(args, option) < 1:
            raise ConfigError(f'--{option} must be 1 or more')
    if len(args.target_layer or [0]) not in (1, len(args.model)):
        raise ConfigError(
            f'--target-layer names {len(args.target_layer)} layers for '
            f'{len(args.model)} models; one for all or one for each'
        )


def choose_layers(
    models: Sequence[TrainedModel], args: argparse.Namespace
) -> list[str]:
    """Return the name of each model's layer.

    Raises:
        ConfigError: If there is none of that name, or the models do not
            serve one task, or lack the class.
    """
    kinds = {model.scope for model in models}
    if len(kinds) > 1:
        raise ConfigError(
            f'models of {", ".join(sorted(kinds))} have no common question'
        )
    names = args.target_layer or [model.stages()[-1] for model in models]
    names = names * len(models) if len(names) == 1 else names
    for model, name in zip(models, names):
        model.module(name)
        if args.target is not None:
            find_class(model, args.target)
    return names


def all_rows(
    models: Sequence[TrainedModel],
    layers: Sequence[str],
    images: Sequence[Path],
    args: argparse.Namespace,
) -> Iterator[Row]:
    """Yield the rows of all images; tell of those without one at the end."""
    empty = []
    for image in tqdm(images, unit='image'):
        rows = rows_of(models, layers, image, args)
        yield from rows
        if not rows:
            empty.append(image.name)
    if empty:
        shown = ', '.join(empty[:5]) + (', ...' if len(empty) > 5 else '')
        print(f'nothing to ask about in {len(empty)} images: {shown}')


def write_results(
    rows: Iterator[Row],
    names: Sequence[str],
    layers: Sequence[str],
    folder: Path,
    args: argparse.Namespace,
) -> int:
    """Write figures and, if asked, arrays; return the number of figures."""
    arrays = Arrays(method=args.method, models=names, layers=layers)
    pages = iter(lambda: list(itertools.islice(rows, args.rows)), [])
    number = 0
    for number, page in enumerate(pages, 1):
        draw_figure(page, names, folder / f'cam-{number}.png')
        for row in page:
            arrays.add(row)
    if number and args.npz:
        arrays.write(folder / 'cam.npz')
    if any(cam.size == 1 for cam in arrays.maps.values()):
        print(
            'some maps are of one value, which shows nothing: name an '
            'earlier layer with --target-layer, or feed larger images'
        )
    return number


def main() -> None:
    """Ask, draw and write."""
    args = parse_args()
    with one_line_errors():
        check_args(args)
        images = find_images(args.images)
        models = load_models(args)
        layers = choose_layers(models, args)
        if args.method is None:
            detects = models[0].scope == 'mmdet'
            args.method = 'HiResCAM' if detects else 'GradCAM'
        names = [model.name for model in models]
        with all_or_nothing(args.out_dir) as folder:
            rows = all_rows(models, layers, images, args)
            count = write_results(rows, names, layers, folder, args)
            if not count:
                raise ConfigError(
                    f'{names[0]} finds nothing to ask about; lower '
                    '--score-thr, or name another --target'
                )
    print(f'{args.method}, {count} figures in {args.out_dir}')


if __name__ == '__main__':
    main()
