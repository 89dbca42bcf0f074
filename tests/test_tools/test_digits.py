# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import importlib
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('sklearn', reason='the digits come with scikit-learn')
COCO = pytest.importorskip('pycocotools.coco').COCO

SCRIPT = Path(__file__).parents[2] / 'tools/dataset_converters/digits.py'
SMALL = {'train': 16, 'val': 8, 'cls_train': 3, 'cls_val': 2}
# Of its first val scenes, as they were before there were variants: photograph,
# its crop, images of the digits, box of the first, mean of all pixels.
RECORDED = [
    (
        ('flower.jpg', [419, 234, 146, 146]),
        [1465, 1461, 890, 693, 1570, 812],
        [68, 53, 42, 52],
        71.24,
    ),
    (('china.jpg', [61, 24, 101, 101]), [879], [107, 43, 16, 27], 197.30),
    (('china.jpg', [46, 99, 147, 147]), [338, 626], [30, 20, 36, 56], 90.58),
]
TINY = {'train': 1, 'val': 1, 'size': 64, 'cls_train': 1, 'cls_val': 1}


def load_script():
    spec = importlib.util.spec_from_file_location('digits_tool', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


digits = load_script()


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'digits'
    return out, digits.make_digits(out, **SMALL)


@pytest.fixture(scope='module')
def variants(made):
    """The folders of all variants, by name."""
    folders = {'plain': made[0]}
    for name in ('dark', 'tiny'):
        folders[name] = made[0].with_name(f'digits-{name}')
        digits.make_digits(folders[name], **SMALL, variant=name)
    return folders


@pytest.fixture
def compat():
    # Before any framework: provides mmcv._ext where mmcv is not compiled.
    return importlib.import_module('mmattn')


def read_json(root, split):
    path = root / 'annotations' / f'instances_{split}.json'
    return json.loads(path.read_text())


def file_bytes(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def overlap(a, b):
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(w, 0) * max(h, 0)


def test_layout(made):
    root, stats = made
    names = Counter(str(Path(name).parent) for name in file_bytes(root))
    expected = {'annotations': 2}
    for split in ('train', 'val'):
        expected[f'images/{split}'] = SMALL[split]
        expected[f'masks/{split}'] = SMALL[split]
        for label in range(10):
            folder = f'classification/{split}/{label}'
            expected[folder] = SMALL[f'cls_{split}']
    assert names == expected
    assert stats['train']['icons'] == 30
    image = cv2.imread(str(root / 'images/val/000008.png'), -1)
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    icon = cv2.imread(str(root / 'classification/val/9/000002.png'), -1)
    assert icon.shape == (32, 32, 3)
    # A temporary folder of mode 0700 must not shut other users out.
    (root.parent / 'plain').mkdir()
    assert root.stat().st_mode == (root.parent / 'plain').stat().st_mode


@pytest.mark.parametrize('split', ['train', 'val'])
def test_coco_records(made, split):
    root, stats = made
    coco = COCO(str(root / 'annotations' / f'instances_{split}.json'))
    assert coco.getCatIds() == list(range(1, 11))
    names = [cat['name'] for cat in coco.loadCats(coco.getCatIds())]
    assert names == list('0123456789')
    assert coco.getImgIds() == list(range(1, SMALL[split] + 1))
    assert coco.getAnnIds() == list(range(1, len(coco.anns) + 1))
    counts = Counter(ann['category_id'] - 1 for ann in coco.anns.values())
    assert [counts[label] for label in range(10)] == stats[split]['boxes']
    assert max(counts.values()) - min(counts.values()) <= 1
    assert stats[split]['left_out'] == 0
    for ann in coco.anns.values():
        mask = coco.annToMask(ann)
        rows, cols = np.nonzero(mask)
        tight = [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
        assert ann['bbox'] == [int(value) for value in tight]
        assert ann['area'] == mask.sum() and ann['iscrowd'] == 0
        assert 18 <= max(ann['bbox'][2:]) <= 64


@pytest.mark.parametrize('split', ['train', 'val'])
def test_digits_stay_apart(made, split):
    coco = COCO(str(made[0] / 'annotations' / f'instances_{split}.json'))
    for image_id in coco.getImgIds():
        anns = coco.imgToAnns[image_id]
        assert 1 <= len(anns) <= 6
        assert sum(coco.annToMask(ann) for ann in anns).max() == 1
        boxes = [ann['bbox'] for ann in anns]
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                small = min(a[2] * a[3], b[2] * b[3])
                # Boxes are placed with their soft rim, hence not 0.05.
                assert overlap(a, b) <= 0.08 * small


@pytest.mark.parametrize('split', ['train', 'val'])
def test_semantic_mask_is_union(made, split):
    root = made[0]
    coco = COCO(str(root / 'annotations' / f'instances_{split}.json'))
    for image in coco.imgs.values():
        expected = np.zeros((128, 128), np.uint8)
        for ann in coco.imgToAnns[image['id']]:
            expected[coco.annToMask(ann) > 0] = ann['category_id']
        path = root / 'masks' / split / image['file_name']
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, expected)


def test_holes_stay(made):
    coco = COCO(str(made[0] / 'annotations/instances_train.json'))
    holes = 0
    zeros = coco.loadAnns(coco.getAnnIds(catIds=[1]))
    for ann in zeros:
        outside = np.pad(1 - coco.annToMask(ann), 1, constant_values=1)
        # Paper around the digit is one part, each hole one more.
        parts, _ = cv2.connectedComponents(outside, connectivity=4)
        holes += parts > 2
    assert holes >= 0.7 * len(zeros)


def test_digits_stand_out(made):
    """The ink differs from the rim around it, in every instance."""
    root = made[0]
    coco = COCO(str(root / 'annotations/instances_train.json'))
    gaps = []
    for image in coco.imgs.values():
        path = root / 'images/train' / image['file_name']
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(float)
        for ann in coco.imgToAnns[image['id']]:
            mask = coco.annToMask(ann)
            ink = cv2.erode(mask, np.ones((2, 2))) > 0
            rim = cv2.dilate(mask, np.ones((9, 9)))
            rim -= cv2.dilate(mask, np.ones((5, 5)))
            gaps.append(abs(grey[ink].mean() - grey[rim > 0].mean()))
    assert min(gaps) > 20 and np.median(gaps) > 45


def test_split_is_disjoint_and_stratified():
    labels = digits.load_sources().labels
    parts = digits.split_digits(labels, seed=0)
    joined = np.concatenate([parts['train'], parts['val']])
    assert np.array_equal(np.sort(joined), np.arange(1797))
    for label, total in enumerate(np.bincount(labels)):
        share = np.mean(labels[parts['val']] == label) * len(parts['val'])
        assert abs(share / total - 0.25) < 0.01, label
    other = digits.split_digits(labels, seed=1)
    assert not np.array_equal(parts['val'], other['val'])


def test_no_image_appears_twice_in_the_source():
    # The split is by index; equal pictures under two indices would leak.
    from sklearn.datasets import load_digits

    images = load_digits().images
    assert len({image.tobytes() for image in images}) == len(images)


def test_files_follow_the_split(tmp_path, monkeypatch):
    """Watch what is really drawn: scenes, icons and backgrounds."""
    drawn, seen = {'train': set(), 'val': set()}, []
    compose = digits.compose_scene

    def watch(sources, chosen, split, *args):
        scene = compose(sources, chosen, split, *args)
        drawn[split].update(chosen.tolist())
        seen.append((split, scene.photo, scene.crop))
        return scene

    monkeypatch.setattr(digits, 'compose_scene', watch)
    out = tmp_path / 'digits'
    digits.make_digits(out, **SMALL)
    parts = digits.split_digits(digits.load_sources().labels, seed=0)
    for split in drawn:
        used = {a['digit_index'] for a in read_json(out, split)['annotations']}
        assert used <= drawn[split] <= set(parts[split].tolist())
    assert not drawn['train'] & drawn['val']
    train = [item[1:] for item in seen if item[0] == 'train']
    val = [item[1:] for item in seen if item[0] == 'val']
    assert {photo for photo, _ in val} == {'china.jpg', 'flower.jpg'}
    for photo, crop in train:
        assert not any(photo == p and overlap(crop, c) for p, c in val)


def test_labels_match_the_source(made):
    labels = digits.load_sources().labels
    for split in ('train', 'val'):
        for ann in read_json(made[0], split)['annotations']:
            assert ann['category_id'] == labels[ann['digit_index']] + 1


def test_bytes_repeat_by_seed(made, tmp_path):
    first = file_bytes(made[0])
    digits.make_digits(tmp_path / 'elsewhere', **SMALL)
    assert file_bytes(tmp_path / 'elsewhere') == first
    digits.make_digits(tmp_path / 'other', **SMALL, seed=1)
    other = file_bytes(tmp_path / 'other')
    assert other.keys() == first.keys()
    pictures = [name for name in first if name.startswith('images/')]
    assert all(other[name] != first[name] for name in pictures)


def test_plain_scenes_are_what_they_were(made):
    data = read_json(made[0], 'val')
    assert data['info']['settings'] == {**SMALL, 'seed': 0, 'size': 128}
    for image, (origin, drawn, box, mean) in zip(data['images'], RECORDED):
        assert (image['photo'], image['photo_crop']) == origin
        own = [a for a in data['annotations'] if a['image_id'] == image['id']]
        assert [ann['digit_index'] for ann in own] == drawn
        # Other versions of OpenCV may round otherwise.
        assert np.abs(np.subtract(own[0]['bbox'], box)).max() <= 1
        pixels = cv2.imread(str(made[0] / 'images/val' / image['file_name']))
        assert pixels.mean() == pytest.approx(mean, abs=0.5)


@pytest.mark.parametrize('name', ['plain', 'dark', 'tiny'])
def test_variants_repeat(variants, name, tmp_path):
    out = tmp_path / 'digits'
    digits.make_digits(out, **SMALL, variant=name)
    assert file_bytes(out) == file_bytes(variants[name])


@pytest.mark.parametrize('folder', ['images', 'classification'])
def test_dark_is_plain_in_little_light_with_noise(variants, folder):
    shares, noises = [], []
    for path in sorted((variants['plain'] / folder).rglob('*.png')):
        name = path.relative_to(variants['plain'])
        plain = cv2.imread(str(path)).astype(float).ravel()
        dark = cv2.imread(str(variants['dark'] / name)).astype(float).ravel()
        bright = plain > 150  # so that the noise is not cut off at 0
        if bright.sum() < 1000:
            continue
        share = (dark @ plain) / (plain @ plain)
        shares.append(share)
        noises.append(np.std(dark[bright] - share * plain[bright]))
    assert 0.08 < min(shares) < 0.2 < max(shares) < 0.42
    assert 4.5 < np.median(noises) < 7
    assert len(shares) > 10


def test_dark_has_the_labels_of_plain(variants):
    for split in ('train', 'val'):
        plain = read_json(variants['plain'], split)
        dark = read_json(variants['dark'], split)
        assert dark['info'].pop('settings').pop('variant') == 'dark'
        plain['info'].pop('settings')
        assert dark == plain
    masks = file_bytes(variants['plain'] / 'masks')
    assert file_bytes(variants['dark'] / 'masks') == masks


@pytest.mark.parametrize('split', ['train', 'val'])
def test_tiny_has_more_and_smaller_digits(variants, split):
    data = read_json(variants['tiny'], split)
    sides = [max(ann['bbox'][2:]) for ann in data['annotations']]
    assert 6 <= min(sides) < 10 and 18 < max(sides) <= 24
    counts = Counter(ann['image_id'] for ann in data['annotations'])
    assert len(counts) == SMALL[split]
    assert min(counts.values()) >= 6 and 12 < max(counts.values()) <= 16
    labels = digits.load_sources().labels
    for ann in data['annotations']:
        assert ann['category_id'] == labels[ann['digit_index']] + 1
    plain = read_json(variants['plain'], split)['annotations']
    assert np.mean(sides) < 0.5 * np.mean([max(a['bbox'][2:]) for a in plain])


def test_folder_and_refusal_of_a_variant(tmp_path):
    assert digits.parse_args([]).out == 'data/digits'
    for name in ('dark', 'tiny'):
        args = digits.parse_args(['--variant', name])
        assert args.out == f'data/digits-{name}'
    assert digits.parse_args(['--variant', 'tiny', '--out', 'x']).out == 'x'
    with pytest.raises(ValueError, match='--variant night: .*dark, tiny'):
        digits.make_digits(tmp_path / 'night', variant='night')
    assert not list(tmp_path.iterdir())


def test_refuses_then_forces(tmp_path):
    out = tmp_path / 'digits'
    digits.make_digits(out, **TINY)
    before = file_bytes(out)
    with pytest.raises(FileExistsError, match='--force'):
        digits.make_digits(out, **TINY, seed=1)
    assert file_bytes(out) == before
    digits.make_digits(out, **TINY, seed=1, force=True)
    assert file_bytes(out) != before
    assert list(tmp_path.iterdir()) == [out]


def test_force_spares_other_folders(tmp_path):
    (tmp_path / 'thesis.tex').write_text('years of work')
    with pytest.raises(FileExistsError, match='not a digits data set'):
        digits.make_digits(tmp_path, **TINY, force=True)
    assert (tmp_path / 'thesis.tex').read_text() == 'years of work'
    (tmp_path / 'empty').mkdir()
    digits.make_digits(tmp_path / 'empty', **TINY, force=True)
    assert (tmp_path / 'empty/images/train/000001.png').exists()


@pytest.mark.parametrize('error', [OSError('disk full'), KeyboardInterrupt])
@pytest.mark.parametrize('replace', [False, True])
def test_failure_leaves_nothing(tmp_path, monkeypatch, error, replace):
    out = tmp_path / 'digits'
    if replace:
        digits.make_digits(out, **TINY)
    before = file_bytes(out)
    write, calls = digits._write_png, []

    def fail(path, image):
        calls.append(path)
        if len(calls) > 5:
            raise error
        write(path, image)

    monkeypatch.setattr(digits, '_write_png', fail)
    argv = ['--out', str(out), '--train', '9', '--val', '1', '--force']
    with pytest.raises(SystemExit, match='^error: ') as caught:
        digits.main(argv)
    assert '\n' not in str(caught.value)
    assert len(calls) == 6 and not calls[0].exists()
    assert list(tmp_path.iterdir()) == ([out] if replace else [])
    assert file_bytes(out) == before


def test_failed_rename_puts_the_old_back(tmp_path, monkeypatch):
    out = tmp_path / 'digits'
    digits.make_digits(out, **TINY)
    before = file_bytes(out)
    rename = Path.rename

    def fail(self, target):
        if self.name == 'new':
            raise OSError('no')
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', fail)
    with pytest.raises(OSError, match='no'):
        digits.make_digits(out, **TINY, force=True)
    assert file_bytes(out) == before
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ('flag', 'value'),
    [
        ('--size', '63'),
        ('--size', '9999'),
        ('--train', '0'),
        ('--val', '-3'),
        ('--cls-train', '0'),
        ('--cls-val', '0'),
        ('--seed', '-1'),
        ('--variant', 'night'),
        ('--train', 'many'),
        ('--tra', '5'),
    ],
)
def test_wrong_flags(tmp_path, flag, value):
    out = tmp_path / 'digits'
    with pytest.raises(SystemExit) as caught:
        digits.main(['--out', str(out), flag, value])
    # A text as the exit code is printed and means exit code 1.
    message = caught.value.code
    assert message.startswith('error: ') and '\n' not in message
    assert flag in message and value in message
    assert not list(tmp_path.iterdir())


def test_missing_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(SystemExit, match='pip install scikit-learn'):
        digits.main(['--out', str(tmp_path / 'digits')])
    assert not list(tmp_path.iterdir())


def test_crowded_scene_counts_what_it_leaves_out(tmp_path):
    numbers = {**TINY, 'train': 60}
    stats = digits.make_digits(tmp_path / 'digits', **numbers)['train']
    found = read_json(tmp_path / 'digits', 'train')['annotations']
    assert stats['left_out'] > 0 and sum(stats['boxes']) == len(found)
    assert {ann['image_id'] for ann in found} == set(range(1, 61))


def test_command_line(tmp_path):
    """As a user runs it: summary on stdout, exit codes, one error line."""
    argv = [sys.executable, str(SCRIPT), '--out', 'deep/digits']
    argv += ['--train', '2', '--val', '1', '--cls-train', '1']
    argv += ['--cls-val', '1']
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith('train: 2 scenes, ')
    assert lines[1].startswith('val: 1 scenes, ')
    assert 'deep/digits' in lines[2] and len(lines) == 3
    again = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 1 and not again.stdout
    assert again.stderr == (
        'error: --out deep/digits: exists already; --force replaces it\n'
    )


def test_mmpretrain_reads_the_image_folder(made, compat):
    pytest.importorskip('mmpretrain')
    from mmpretrain.datasets import CustomDataset

    folder = str(made[0] / 'classification/train')
    data = CustomDataset(data_prefix=folder, with_label=True)
    assert list(data.CLASSES) == [str(digit) for digit in range(10)]
    assert Counter(data.get_gt_labels().tolist()) == dict.fromkeys(
        range(10), 3
    )


def test_mmseg_reads_the_masks(made, compat):
    pytest.importorskip('mmseg')
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import LoadAnnotations

    data = BaseSegDataset(
        data_root=str(made[0]),
        data_prefix={'img_path': 'images/val', 'seg_map_path': 'masks/val'},
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo={'classes': ('background', *'0123456789')},
        pipeline=[LoadAnnotations()],
    )
    assert len(data) == 8
    coco = COCO(str(made[0] / 'annotations/instances_val.json'))
    for index in range(len(data)):
        sample = data[index]
        image_id = int(Path(sample['img_path']).stem)
        anns = coco.imgToAnns[image_id]
        present = {ann['category_id'] for ann in anns}
        assert set(np.unique(sample['gt_seg_map'])) == {0} | present


def test_mmdet_reads_boxes_and_masks(made, compat):
    pytest.importorskip('mmdet')
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations

    data = CocoDataset(
        data_root=str(made[0]),
        ann_file='annotations/instances_train.json',
        data_prefix={'img': 'images/train/'},
        metainfo={'classes': tuple('0123456789')},
        pipeline=[
            LoadImageFromFile(),
            LoadAnnotations(with_bbox=True, with_mask=True),
        ],
    )
    coco = COCO(str(made[0] / 'annotations/instances_train.json'))
    assert len(data) == 16
    for sample in data:
        assert sample['img'].shape == (128, 128, 3)
        anns = coco.imgToAnns[sample['img_id']]
        expected = [int(a['category_id']) - 1 for a in anns]
        assert sample['gt_bboxes_labels'].tolist() == expected
        masks = np.stack([coco.annToMask(ann) for ann in anns])
        assert np.array_equal(sample['gt_masks'].to_ndarray(), masks)
