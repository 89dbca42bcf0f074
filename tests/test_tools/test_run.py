# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Train, test and infer, by the tools, for all three frameworks."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

ROOT = Path(__file__).parents[2]
DEMO = ROOT / 'configs' / 'demo'
FASTER = DEMO / 'faster-rcnn_r18-scsa_fpn_15e_digits.py'
RESNET = DEMO / 'resnet18-scsa_30e_digits.py'
NO_AUGMENTATION = (
    'train_dataloader.dataset.pipeline.1.crop_ratio_range=(1.0,1.0)',
    'train_dataloader.dataset.pipeline.1.aspect_ratio_range=(1.0,1.0)',
)
METRICS = {
    'faster-rcnn_r18-scsa_fpn_15e_digits': 'coco/bbox_mAP',
    'mask-rcnn_r18-scsa_fpn_15e_digits': 'coco/segm_mAP',
    'retinanet_r18-scsa_fpn_15e_digits': 'coco/bbox_mAP',
    'upernet_r18-scsa_15e_digits': 'mIoU',
    'resnet18-gsca_30e_digits': 'accuracy/top1',
}


def unsure(name):
    # So little trained a RetinaNet is sure of nothing.
    options = ['--cfg-options', 'model.test_cfg.score_thr=0.0']
    return options if 'retinanet' in name else []


pytestmark = pytest.mark.usefixtures('in_workspace')


@pytest.fixture
def in_workspace(digits, monkeypatch):
    monkeypatch.chdir(digits)


def run(*words, **env):
    """Run a command as a user does; return its exit code and output."""
    env = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'PYTHON': sys.executable,
        **env,
    }
    result = subprocess.run(
        [str(word) for word in words],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return result.returncode, result.stdout


def weights(checkpoint):
    return CheckpointLoader.load_checkpoint(str(checkpoint))['state_dict']


def latest_scores(work_dir):
    return mmengine.load(sorted(Path(work_dir).glob('*/*.json'))[-1])


@pytest.mark.parametrize(('name', 'metric'), METRICS.items())
def test_train_then_test_and_draw(name, metric, trained, run_tool, tmp_path):
    checkpoint = trained(name)
    drawn = tmp_path / 'drawn'
    dump = tmp_path / 'predictions.pkl'
    run_tool(
        'test.py', DEMO / f'{name}.py', checkpoint, '--work-dir', tmp_path,
        '--show-dir', drawn, '--out', dump,
        *unsure(name),
    )  # fmt: skip
    assert 0 <= latest_scores(tmp_path)[metric] <= 100
    images = 10 if 'accuracy' in metric else 4
    pictures = list(drawn.glob('*.png'))
    assert len(pictures) == images
    shape = cv2.imread(str(pictures[0])).shape
    # Ground truth and prediction side by side; a class is only text.
    assert shape[1] == shape[0] * (1 if 'accuracy' in metric else 2)
    assert len(pickle.loads(dump.read_bytes())) == images


@pytest.mark.parametrize('name', METRICS)
def test_infer_draws_each_image(name, trained, run_tool, digits, tmp_path):
    folder = (
        'classification/val/3' if name.startswith('resnet') else ('images/val')
    )
    images = sorted((digits / 'data/digits' / folder).glob('*.png'))[:2]
    run_tool(
        'infer.py', DEMO / f'{name}.py', trained(name), *images,
        '--out-dir', tmp_path, '--score-thr', 0, '--device', 'cpu',
        *unsure(name),
    )  # fmt: skip
    for image in images:
        drawn = cv2.imread(str(tmp_path / image.name))
        plain = cv2.imread(str(image))
        assert drawn is not None
        assert (
            drawn.shape != plain.shape
            or np.abs(drawn.astype(int) - plain).any()
        )


def predictions(name, trained, run_tool, folder, *words):
    """Return what test.py saves, by image."""
    dump = folder / 'predictions.pkl'
    run_tool(
        'test.py', DEMO / f'{name}.py', trained(name), '--out', dump,
        '--work-dir', folder, *words,
    )  # fmt: skip
    return {r['img_path']: r for r in pickle.loads(dump.read_bytes())}


def test_augmented_scores_are_the_mean_of_both_mirror_images(
    trained, run_tool, tmp_path
):
    args = 'resnet18-gsca_30e_digits', trained, run_tool, tmp_path
    plain = predictions(*args)
    flip = dict(type='RandomFlip', prob=1.0)
    config = Config.fromfile(DEMO / f'{args[0]}.py')
    pipeline = config.test_dataloader.dataset.pipeline
    pipeline.insert(1, flip)
    mirrored = tmp_path / 'mirrored.py'
    config.dump(mirrored)
    dump = tmp_path / 'mirrored.pkl'
    run_tool(
        'test.py', mirrored, trained(args[0]), '--out', dump,
        '--work-dir', tmp_path,
    )  # fmt: skip
    mirror = {r['img_path']: r for r in pickle.loads(dump.read_bytes())}
    both = predictions(*args, '--tta')
    for path, result in both.items():
        want = (plain[path]['pred_score'] + mirror[path]['pred_score']) / 2
        torch.testing.assert_close(result['pred_score'], want)


@pytest.mark.parametrize(
    'name',
    ['faster-rcnn_r18-scsa_fpn_15e_digits', 'upernet_r18-scsa_15e_digits'],
)
def test_test_time_augmentation_changes_the_result(
    name, trained, run_tool, tmp_path
):
    options = ['--cfg-options', 'model.test_cfg.rcnn.score_thr=0.0']
    options = options if 'rcnn' in name else []
    args = name, trained, run_tool, tmp_path
    plain = predictions(*args, *options)
    both = predictions(*args, '--tta', *options)
    assert plain.keys() == both.keys()
    if 'rcnn' in name:
        boxes = [
            [r['pred_instances']['bboxes'] for r in results.values()]
            for results in (plain, both)
        ]
        assert not all(map(torch.equal, *boxes))
        return
    same = [
        (plain[path]['pred_sem_seg'] == both[path]['pred_sem_seg']).float()
        for path in plain
    ]
    assert 0.5 < torch.stack(same).mean() < 1


def test_masks_cannot_be_averaged(run_tool):
    mask_rcnn = DEMO / 'mask-rcnn_r18-scsa_fpn_15e_digits.py'
    with pytest.raises(SystemExit, match='not masks'):
        run_tool('test.py', mask_rcnn, __file__, '--tta')


def test_resume_continues_the_run(short, run_tool, tmp_path):
    straight, resumed = tmp_path / 'straight', tmp_path / 'resumed'
    # A resumed run draws other random numbers, so there are none to draw.
    options = ['--cfg-options', *short, *NO_AUGMENTATION]
    run_tool('train.py', RESNET, '--work-dir', resumed, *options)
    options[1] = 'train_cfg.max_epochs=2'
    # The schedule of both is that of 15 epochs, so only the stop differs.
    run_tool('train.py', RESNET, '--work-dir', resumed, '--resume', *options)
    run_tool('train.py', RESNET, '--work-dir', straight, *options)
    log = sorted(resumed.glob('*/*.log'))[-1].read_text()
    assert 'resumed epoch: 1' in log
    a, b = (weights(d / 'epoch_2.pth') for d in (straight, resumed))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)


def test_resume_from_a_named_checkpoint(trained, run_tool, tmp_path):
    checkpoint = trained('resnet18-gsca_30e_digits')
    config = DEMO / 'resnet18-gsca_30e_digits.py'
    run_tool(
        'train.py', config, '--work-dir', tmp_path, '--resume', checkpoint,
        '--cfg-options', 'train_cfg.max_epochs=2',
        'default_hooks.checkpoint.interval=1',
    )  # fmt: skip
    assert (tmp_path / 'epoch_2.pth').is_file()
    assert not (tmp_path / 'epoch_1.pth').exists()


def test_work_dir_priority(load_tool, tmp_path):
    launch = load_tool('train.py')
    config = tmp_path / 'mine.py'
    config.write_text(f"_base_ = '{RESNET}'\n")
    words = [str(config)]

    def work_dir():
        return launch.load_config(launch.parse_args(words)).work_dir

    assert work_dir() == str(Path('work_dirs') / 'mine')
    config.write_text(f"_base_ = '{RESNET}'\nwork_dir = 'from_config'\n")
    assert work_dir() == 'from_config'
    words += ['--work-dir', 'from_line']
    assert work_dir() == 'from_line'


def test_auto_scale_lr_is_said_to_be_missing(run_tool, tmp_path):
    config = tmp_path / 'plain.py'
    config.write_text(f"_base_ = '{RESNET}'\nauto_scale_lr = None\n")
    with pytest.raises(SystemExit, match='base_batch_size'):
        run_tool('train.py', config, '--auto-scale-lr')


BAD = {
    'no config': (['nowhere.py'], ['nowhere.py']),
    'syntax': (['{tmp}/syntax.py'], ['syntax.py']),
    'no data': (
        [FASTER, '--cfg-options', 'train_dataloader.dataset.data_root=gone/'],
        ['gone/annotations/instances_train.json'],
    ),
    'position': (['{tmp}/position.py'], ["'after_conv9'", 'after_conv2']),
    'type': (['{tmp}/type.py'], ["'mmattn.SCSAA'", 'mmattn.SCSA']),
    'model': (['{tmp}/model.py'], ['FasterRCNNN']),
    'launcher': ([FASTER, '--launcher', 'slurm'], ['slurm', 'dist_train.sh']),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line(case, run_tool, tmp_path):
    if case == 'launcher' and torch.cuda.is_available():
        pytest.skip('is about the absence of a GPU')
    base = f"_base_ = '{FASTER}'\n"
    plugin = "plugins=[dict(cfg=dict(type='{}'), position='{}')]"
    model = base + 'model = dict(backbone=dict(' + plugin + '))\n'
    files = {
        'syntax': 'model = dict(\n',
        'position': model.format('mmattn.SCSA', 'after_conv9'),
        'type': model.format('mmattn.SCSAA', 'after_conv1'),
        'model': base + "model = dict(type='FasterRCNNN')\n",
    }
    for name, text in files.items():
        (tmp_path / f'{name}.py').write_text(text)
    words, wanted = BAD[case]
    words = [str(word).replace('{tmp}', str(tmp_path)) for word in words]
    with pytest.raises(SystemExit) as error:
        run_tool('train.py', *words, '--work-dir', tmp_path / 'work')
    message = error.value.code
    assert message.startswith('error: ') and '\n' not in message.strip()
    assert all(text in message for text in wanted), message


def test_bad_input_of_test_and_infer_is_one_line(run_tool, digits):
    image = digits / 'data/digits/images/val/000001.png'
    with pytest.raises(SystemExit, match='no checkpoint gone.pth'):
        run_tool('test.py', FASTER, 'gone.pth')
    with pytest.raises(SystemExit, match='no checkpoint gone.pth'):
        run_tool('infer.py', FASTER, 'gone.pth', image, '--out-dir', 'x')
    with pytest.raises(SystemExit, match='no image gone.png'):
        run_tool('infer.py', FASTER, 'gone.pth', 'gone.png', '--out-dir', 'x')
    with pytest.raises(SystemExit, match='is no readable image'):
        run_tool('infer.py', FASTER, __file__, __file__, '--out-dir', 'x')
    with pytest.raises(SystemExit, match='must end in .pkl'):
        run_tool('test.py', FASTER, __file__, '--out', 'x.json')


def test_exit_code_and_line_of_a_real_process():
    code, output = run(sys.executable, ROOT / 'tools/train.py', 'nowhere.py')
    assert code == 1
    assert output.strip().splitlines()[-1].startswith('error: ')
    assert 'Traceback' not in output


@pytest.mark.parametrize('with_model', [True, False])
def test_backbone_of_a_classifier_starts_a_detector(
    short, with_model, trained, run_tool, tmp_path
):
    start = trained('resnet18-scsa_30e_digits')
    want = {
        key: value
        for key, value in weights(start).items()
        if key.startswith('backbone.')
    }
    if not with_model:
        start = tmp_path / 'backbone.pth'
        torch.save(
            {k.removeprefix('backbone.'): v for k, v in want.items()}, start
        )
    run_tool(
        'train.py', FASTER, '--work-dir', tmp_path, '--backbone', start,
        '--cfg-options', *short, 'optim_wrapper.optimizer.lr=0.0',
        'optim_wrapper.optimizer.weight_decay=0.0',
    )  # fmt: skip
    got = weights(tmp_path / 'epoch_1.pth')
    # All of it, the attention too; only statistics of batches have moved.
    assert any('.scsa.' in key for key in want)
    assert {k for k in got if k.startswith('backbone.')} == set(want)
    for key, value in want.items():
        if 'running_' not in key and 'num_batches' not in key:
            assert torch.equal(got[key], value), key
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'stay as initialised' not in log
    assert '1 x 8 images a step, learning rate 0' in log


def test_backbone_of_another_kind_is_refused(run_tool, tmp_path):
    other = tmp_path / 'other.pth'
    torch.save(dict(state_dict={'encoder.weight': torch.zeros(1)}), other)
    with pytest.raises(SystemExit) as error:
        run_tool('train.py', FASTER, '--backbone', other)
    assert 'has no weights of the backbone' in str(error.value)
    assert 'encoder.weight' in str(error.value)
