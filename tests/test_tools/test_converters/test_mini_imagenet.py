# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import gzip
import hashlib
import json
import tarfile
from functools import partial
from pathlib import Path

import pytest
from helpers import pack, picture, unpack

CONFIG = Path(__file__).parents[3] / 'configs/none'
CONFIG /= 'resnet50-none_2xb50-coslr_mini-imagenet.py'
# Of the list of Ravi and Larochelle, joined by blanks.
LIST_SHA256 = (
    'b9498a19cb394a2bbc630cf247e8f8a425974348160d122c35081d783273a576'
)
OUT = Path('data/mini-imagenet')
ROBIN, CARTON, TRIFLE = 'n01558993', 'n02971356', 'n07613480'
SIX = [(105, 120), (106, 120), (107, 120), (108, 120), (109, 120), (110, 120)]
THIN = f"""
_base_ = {str(CONFIG)!r}
model = dict(
    backbone=dict(depth=18, base_channels=8), head=dict(in_channels=64)
)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False
)
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
"""


def ravi(kind, number):
    return f'{kind}{number:08}.jpg'


def six(kind, folder=''):
    return {
        f'{folder}{kind}/{ravi(kind, number)}': picture(*size)
        for number, size in enumerate(SIX, start=1)
    }


def tree(root):
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob('*')
        if not path.is_dir()
    )


def report(out=OUT):
    return json.loads((out / 'report.json').read_text())


def told(word, split='train'):
    return [
        where
        for what, places in report()['splits'][split]['notes'].items()
        for where in places
        if word in what
    ]


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Three classes of six images in folders."""
    monkeypatch.chdir(tmp_path)
    unpack(six(TRIFLE) | six(ROBIN) | six(CARTON), tmp_path / 'mini')
    return tmp_path / 'mini'


@pytest.fixture
def thin(convert):
    def run(*words):
        convert('mini_imagenet', *words, '--allow-incomplete')

    return run


@pytest.fixture
def refusal(refuse):
    return partial(refuse, 'mini_imagenet')


def test_classes(load_tool):
    classes = load_tool('dataset_converters/mini_imagenet.py').CLASSES
    assert len(classes) == 100
    assert classes[:3] == ('n01532829', 'n01558993', 'n01704323')
    assert classes[-3:] == ('n09256479', 'n13054560', 'n13133613')
    digest = hashlib.sha256(' '.join(classes).encode()).hexdigest()
    assert digest == LIST_SHA256


def test_folders_of_six(source, thin):
    thin('mini')
    assert tree(OUT) == [
        'meta/train.txt',
        'meta/val.txt',
        'report.json',
        'report.txt',
        'train/n01558993/n0155899300000001.jpg',
        'train/n01558993/n0155899300000002.jpg',
        'train/n01558993/n0155899300000003.jpg',
        'train/n01558993/n0155899300000004.jpg',
        'train/n01558993/n0155899300000005.jpg',
        'train/n02971356/n0297135600000001.jpg',
        'train/n02971356/n0297135600000002.jpg',
        'train/n02971356/n0297135600000003.jpg',
        'train/n02971356/n0297135600000004.jpg',
        'train/n02971356/n0297135600000005.jpg',
        'train/n07613480/n0761348000000001.jpg',
        'train/n07613480/n0761348000000002.jpg',
        'train/n07613480/n0761348000000003.jpg',
        'train/n07613480/n0761348000000004.jpg',
        'train/n07613480/n0761348000000005.jpg',
        'val/n01558993/n0155899300000006.jpg',
        'val/n02971356/n0297135600000006.jpg',
        'val/n07613480/n0761348000000006.jpg',
    ]
    assert (OUT / 'meta/train.txt').read_text() == (
        'n01558993/n0155899300000001.jpg 0\n'
        'n01558993/n0155899300000002.jpg 0\n'
        'n01558993/n0155899300000003.jpg 0\n'
        'n01558993/n0155899300000004.jpg 0\n'
        'n01558993/n0155899300000005.jpg 0\n'
        'n02971356/n0297135600000001.jpg 1\n'
        'n02971356/n0297135600000002.jpg 1\n'
        'n02971356/n0297135600000003.jpg 1\n'
        'n02971356/n0297135600000004.jpg 1\n'
        'n02971356/n0297135600000005.jpg 1\n'
        'n07613480/n0761348000000001.jpg 2\n'
        'n07613480/n0761348000000002.jpg 2\n'
        'n07613480/n0761348000000003.jpg 2\n'
        'n07613480/n0761348000000004.jpg 2\n'
        'n07613480/n0761348000000005.jpg 2\n'
    )
    assert (OUT / 'meta/val.txt').read_text() == (
        'n01558993/n0155899300000006.jpg 0\n'
        'n02971356/n0297135600000006.jpg 1\n'
        'n07613480/n0761348000000006.jpg 2\n'
    )
    link = OUT / 'train/n02971356/n0297135600000004.jpg'
    assert link.readlink() == source / CARTON / ravi(CARTON, 4)
    found = report()
    assert found['dataset'] == 'Mini-ImageNet'
    assert 'sorted' in found['protocol'] and '500' in found['protocol']
    assert found['splits']['train']['counts'] == {
        'images': 15, 'classes': 3, ROBIN: 5, CARTON: 5, TRIFLE: 5,
    }  # fmt: skip
    assert not any(split['notes'] for split in found['splits'].values())


def test_official_figures(source, thin):
    thin('mini')
    for split, images, each in (('train', 50000, 500), ('val', 10000, 100)):
        official = report()['splits'][split]['official']
        assert official.pop('images') == images
        assert official.pop('classes') == 100
        assert len(official) == 100 and set(official.values()) == {each}
        assert ' '.join(official).startswith('n01532829 n01558993 n01704323')


def test_600_are_500_and_100(tmp_path, thin):
    tiny = picture(8, 8)
    pack(
        {f'{ROBIN}/{ROBIN}_{n}.JPEG': tiny for n in range(600)},
        tmp_path / 'mini.zip',
    )
    thin(tmp_path / 'mini.zip', '--small')
    order = sorted(map(str, range(600)))
    assert order[499:501] == ['548', '549']
    for split, numbers in (('train', order[:500]), ('val', order[500:])):
        names = [f'{ROBIN}/{ROBIN}_{number}.JPEG' for number in numbers]
        lines = ''.join(f'{name} 0\n' for name in names)
        assert (OUT / 'meta' / f'{split}.txt').read_text() == lines
        assert tree(OUT / split) == sorted(names)
        assert ROBIN not in report()['splits'][split]['differs']


def test_other_counts_write_nothing(source, refusal, capsys):
    message = refusal('mini')
    assert '204 of the counts' in message and '--allow-incomp' in message
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['images', '15', '50,000', 'differs'] in lines
    assert [TRIFLE, '1', '100', 'differs'] in lines


def test_right_counts_need_no_flag(tmp_path, load_tool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tool = load_tool('dataset_converters/mini_imagenet.py')
    files = {
        f'{kind}/{ravi(kind, number)}': picture(7 + number, 9)
        for kind in tool.CLASSES
        for number in (3, 1, 2)
    }
    unpack(files, tmp_path / 'mini')
    monkeypatch.setattr(tool, 'TRAIN', 2)
    monkeypatch.setattr(tool, 'VAL', 1)
    tool.main(['mini', '--small'])
    train = (OUT / 'meta/train.txt').read_text().splitlines()
    assert len(train) == 200
    assert train[0] == 'n01532829/n0153282900000001.jpg 0'
    assert train[199] == 'n13133613/n1313361300000002.jpg 99'
    val = (OUT / 'meta/val.txt').read_text().splitlines()
    assert len(val) == 100
    assert val[43] == 'n02981792/n0298179200000003.jpg 43'
    assert val[99] == 'n13133613/n1313361300000003.jpg 99'


def few_shot(second):
    """The flat layout: a list for each split, of whole classes."""
    files = {
        f'mini/images/{ravi(kind, number)}': picture(*size)
        for kind in (TRIFLE, ROBIN, CARTON)
        for number, size in enumerate(SIX, start=1)
    }
    for name, kind in (('train', TRIFLE), ('val', ROBIN), ('test', CARTON)):
        rows = [f'{ravi(kind, number)},{kind}' for number in range(6, 0, -1)]
        text = '\r\n'.join([f'filename,{second}', *rows, ''])
        files[f'mini/{name}.csv'] = text
    return files


@pytest.mark.parametrize('second', ['label', 'class'])
@pytest.mark.parametrize('zipped', [False, True])
def test_flat_images_with_lists(source, tmp_path, thin, second, zipped):
    thin('mini', '--out', 'expected')
    if zipped:
        pack(few_shot(second), tmp_path / 'flat.zip')
    else:
        unpack(few_shot(second), tmp_path / 'flat')
    thin('flat.zip' if zipped else 'flat')
    assert tree(OUT) == tree(Path('expected'))
    for name in ('meta/train.txt', 'meta/val.txt', 'report.json'):
        expected = Path('expected', name).read_text()
        assert (OUT / name).read_text() == expected


def test_bad_lines_of_a_list(tmp_path, thin, refusal):
    files = few_shot('label')
    files['mini/val.csv'] += f'a.jpg\nb.jpg,robin\nc.jpg,{ROBIN}\n'
    unpack(files, tmp_path / 'flat')
    thin('flat')
    assert report()['splits']['train']['counts'][ROBIN] == 5
    name = 'flat/mini/val.csv'
    assert told('skipped') == [f'{name}:8', f'{name}:9']
    assert told('listed') == [f'{name}:10, c.jpg']
    message = refusal('flat', '--allow-incomplete', '--force', '--strict')
    assert f'{name}:8' in message


def test_train_and_val_are_kept_as_given(tmp_path, thin):
    files = {
        f'{split}/{kind}/{kind}_{number}.JPEG': picture(100 + number, 130)
        for kind in (ROBIN, CARTON)
        for split, number in [('train', 9), ('train', 4), ('val', 1)]
    }
    files[f'val/{CARTON}/{CARTON}_0.JPEG'] = picture(140, 130)
    unpack(files, tmp_path / 'given')
    thin(tmp_path / 'given')
    assert (OUT / 'meta/train.txt').read_text() == (
        'n01558993/n01558993_4.JPEG 0\n'
        'n01558993/n01558993_9.JPEG 0\n'
        'n02971356/n02971356_4.JPEG 1\n'
        'n02971356/n02971356_9.JPEG 1\n'
    )
    assert (OUT / 'meta/val.txt').read_text() == (
        'n01558993/n01558993_1.JPEG 0\n'
        'n02971356/n02971356_0.JPEG 1\n'
        'n02971356/n02971356_1.JPEG 1\n'
    )
    assert tree(OUT / 'val') == [
        'n01558993/n01558993_1.JPEG',
        'n02971356/n02971356_0.JPEG',
        'n02971356/n02971356_1.JPEG',
    ]
    assert report()['protocol'] == 'train and val as they were given'


def test_few_shot_folders_are_split_anew(source, tmp_path, thin):
    thin('mini', '--out', 'expected')
    files = six(TRIFLE, 'train/') | six(ROBIN, 'val/') | six(CARTON, 'test/')
    unpack(files, tmp_path / 'few')
    thin('few')
    for name in ('meta/train.txt', 'meta/val.txt', 'report.json'):
        expected = Path('expected', name).read_text()
        assert (OUT / name).read_text() == expected


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_archives(source, tmp_path, thin, kind):
    thin('mini', '--out', 'expected')
    path = tmp_path / f'ravi.{kind}'
    if kind == 'zip':
        pack(six(TRIFLE) | six(ROBIN) | six(CARTON), path)
    else:
        with tarfile.open(path, 'w') as archive:
            archive.add(source, 'mini')
    thin(path)
    assert tree(OUT) == tree(Path('expected'))
    image = OUT / 'val' / ROBIN / ravi(ROBIN, 6)
    assert not image.is_symlink() and image.read_bytes() == picture(110, 120)


def test_an_archive_beside_its_folder_counts_once(source, tmp_path, thin):
    thin('mini', '--out', 'expected')
    unpack(six(TRIFLE) | six(ROBIN) | six(CARTON), tmp_path / 'all/mini')
    pack(
        six(TRIFLE, 'mini/') | six(ROBIN, 'mini/') | six(CARTON, 'mini/'),
        tmp_path / 'all/mini.zip',
    )
    thin('all')
    for name in ('meta/train.txt', 'meta/val.txt', 'report.json'):
        expected = Path('expected', name).read_text()
        assert (OUT / name).read_text() == expected


def test_two_images_of_one_name(source, tmp_path, refusal):
    name = f'{ROBIN}/{ravi(ROBIN, 1)}'
    unpack({name: picture(130, 100)}, tmp_path / 'other')
    message = refusal('mini', 'other', '--allow-incomplete')
    assert f'mini/{name}' in message and f'other/{name}' in message


def test_copies_and_same_bytes_for_workers(source, thin):
    contents = []
    for workers in ('1', '7'):
        out = Path(f'out{workers}')
        thin('mini', '--workers', workers, '--out', out, '--copy')
        assert not any(path.is_symlink() for path in out.rglob('*'))
        contents.append([(p, (out / p).read_bytes()) for p in tree(out)])
    assert contents[0] == contents[1] and len(contents[0]) == 22


def test_a_corrupt_image_is_left_out(source, thin, refusal):
    (source / CARTON / ravi(CARTON, 2)).write_bytes(b'\xff\xd8\xff\xe0')
    thin('mini')
    names = [ravi(CARTON, number) for number in (1, 3, 4, 5)]
    assert tree(OUT / 'train' / CARTON) == names
    assert tree(OUT / 'val' / CARTON) == [ravi(CARTON, 6)]
    where = f'mini/{CARTON}/{ravi(CARTON, 2)}'
    assert told('unreadable') == [where]
    message = refusal('mini', '--allow-incomplete', '--force', '--strict')
    assert where in message


def shrunk(side):
    return {
        f'{ROBIN}/{ravi(ROBIN, number)}': picture(side, side + number)
        for number in range(1, 7)
    }


def test_copies_of_84_px_are_refused(tmp_path, refusal, thin):
    unpack(shrunk(84), tmp_path / 'shrunk')
    message = refusal('shrunk', '--allow-incomplete')
    assert '84 px' in message and '--small' in message
    thin('shrunk', '--small')
    assert len(tree(OUT / 'train')) == 5


def test_a_few_small_images_are_no_shrunk_copy(source, thin):
    unpack(shrunk(84), source)
    thin('mini')
    assert len(tree(OUT / 'train' / ROBIN)) == 5


def test_a_folder_of_something_else(tmp_path, refusal):
    unpack({'holiday/beach/sea.jpg': picture(120, 120)}, tmp_path)
    message = refusal('holiday')
    assert 'train.csv' in message and 'holiday/beach' in message


def test_a_packed_tar_is_refused_with_advice(tmp_path, refusal):
    (tmp_path / 'mini.tar.gz').write_bytes(gzip.compress(b'tar'))
    message = refusal('mini.tar.gz')
    assert 'mini.tar.gz' in message and 'unpack' in message


def test_a_truncated_zip(tmp_path, refusal):
    pack(six(ROBIN), tmp_path / 'mini.zip')
    whole = (tmp_path / 'mini.zip').read_bytes()
    (tmp_path / 'mini.zip').write_bytes(whole[:-40])
    message = refusal('mini.zip', '--allow-incomplete')
    assert 'mini.zip' in message and 'load it anew' in message


def test_what_macos_packs_is_no_image(source, thin):
    unpack({f'{ROBIN}/._{ravi(ROBIN, 1)}': b'\0'}, source)
    unpack({f'__MACOSX/{ROBIN}/{ravi(ROBIN, 1)}': b'\0'}, source)
    thin('mini', '--strict')
    assert len(tree(OUT / 'train' / ROBIN)) == 5


def test_train_and_score(source, thin, run_tool):
    thin('mini')
    Path('thin.py').write_text(THIN)
    run_tool('train.py', 'thin.py', '--work-dir', 'run')
    (log,) = Path('run').glob('*/vis_data/scalars.json')
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert 0 <= records[-1]['accuracy/top1'] <= 100
