# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from helpers import boxes, coco, pack, picture, unpack

CLASSES = [
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat',
    'chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person',
    'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor',
]  # fmt: skip
MAIN = 'ImageSets/Main'
SEVEN, TWELVE = 'VOCdevkit/VOC2007', 'VOCdevkit/VOC2012'
OUT = Path('data/voc0712')


def thing(name, xmin, ymin, xmax, ymax, difficult=0):
    return f"""
    <object>
        <name>{name}</name><pose>Left</pose><truncated>0</truncated>
        <difficult>{difficult}</difficult>
        <bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>
        <xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>
    </object>"""


def voc(*things):
    size = '<size><width>999</width><height>9</height><depth>3</depth></size>'
    return f'<annotation>{size}{"".join(things)}</annotation>'


ODD_ORDER = """
    <object>
        <part>
            <bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>
            </bndbox><name>head</name>
        </part>
        <bndbox><ymax>90</ymax><xmin>31</xmin>
        <ymin>45.70000076293945</ymin><xmax>70.5</xmax></bndbox>
        <part>
            <name>cat</name><bndbox><xmin>3</xmin><ymin>3</ymin>
            <xmax>8</xmax><ymax>8</ymax></bndbox>
        </part>
        <name>person</name>
    </object>"""
TRAINVAL_2007 = {
    f'{SEVEN}/{MAIN}/trainval.txt': '000012\n000005\n',
    f'{SEVEN}/{MAIN}/train.txt': '000012\n',
    f'{SEVEN}/{MAIN}/val.txt': '000005\n',
    f'{SEVEN}/{MAIN}/chair_trainval.txt': '000005  1\n000077 -1\n',
    f'{SEVEN}/JPEGImages/000005.jpg': picture(120, 80),
    f'{SEVEN}/JPEGImages/000012.jpg': picture(60, 90),
    f'{SEVEN}/JPEGImages/000077.jpg': picture(61, 90),
    f'{SEVEN}/Annotations/000005.xml': voc(
        thing('chair', 11, 21, 60, 70), thing('person', 1, 1, 120, 80)
    ),
    f'{SEVEN}/Annotations/000012.xml': voc(
        thing('car', 5, 6, 47, 58, difficult=1), thing('dog', 30, 20, 60, 90)
    ),
    f'{SEVEN}/Annotations/000077.xml': voc(thing('cat', 1, 1, 9, 9)),
}
TEST_2007 = {
    f'{SEVEN}/{MAIN}/test.txt': '000001\n000003\n',
    f'{SEVEN}/{MAIN}/chair_test.txt': '000001 -1\n000003  1\n',
    f'{SEVEN}/JPEGImages/000001.jpg': picture(70, 50),
    f'{SEVEN}/JPEGImages/000003.jpg': picture(50, 70),
    f'{SEVEN}/Annotations/000001.xml': voc(
        thing('tvmonitor', 8, 12, 52, 49), thing('bus', 2, 2, 3, 4, 1)
    ),
    f'{SEVEN}/Annotations/000003.xml': voc(thing('chair', 1, 2, 50, 70)),
}
TRAINVAL_2012 = {
    f'{TWELVE}/{MAIN}/trainval.txt': '2011_003353\n',
    f'{TWELVE}/{MAIN}/person_trainval.txt': '2011_003353  1\n',
    f'{TWELVE}/JPEGImages/2011_003353.jpg': picture(100, 110),
    f'{TWELVE}/Annotations/2011_003353.xml': voc(ODD_ORDER),
}
ALL = TRAINVAL_2007 | TEST_2007 | TRAINVAL_2012
TRAIN_BOXES = [
    ('000005.jpg', 'chair', 10, 20, 50, 50, 0),
    ('000005.jpg', 'person', 0, 0, 120, 80, 0),
    ('000012.jpg', 'car', 4, 5, 43, 53, 1),
    ('000012.jpg', 'dog', 29, 19, 31, 71, 0),
    ('2011_003353.jpg', 'person', 30, 44.7, 40.5, 45.3, 0),
]
TEST_BOXES = [
    ('000001.jpg', 'tvmonitor', 7, 11, 45, 38, 0),
    ('000001.jpg', 'bus', 1, 1, 2, 3, 1),
    ('000003.jpg', 'chair', 0, 1, 50, 69, 0),
]


def tar(files, path):
    with tarfile.open(path, 'w') as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def refusal(convert, *words):
    before = sorted(Path().rglob('*'))
    with pytest.raises(SystemExit) as caught:
        convert('voc', *words)
    message = caught.value.code
    assert message.startswith('error: ') and '\n' not in message
    assert sorted(Path().rglob('*')) == before
    return message


def told(split, word, out=OUT):
    notes = json.loads((out / 'report.json').read_text())['splits'][split]
    return [
        where
        for what, places in notes['notes'].items()
        for where in places
        if word in what
    ]


@pytest.fixture
def devkit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(**changes):
        files = {**ALL}
        for stem, content in changes.items():
            files[f'{SEVEN}/Annotations/{stem.strip("_")}.xml'] = content
        unpack(files, tmp_path)

    make()
    return make


def test_records_of_train(devkit, convert):
    convert('voc', 'VOCdevkit', '--allow-incomplete')
    assert coco(OUT, 'train') == {
        'info': {
            'description': 'Pascal VOC',
            'split': 'train',
            'protocol': 'trainval 2007 and 2012, test 2007',
        },
        'categories': [
            {'id': number, 'name': name}
            for number, name in enumerate(CLASSES, start=1)
        ],
        'images': [
            {'id': 1, 'file_name': '000005.jpg', 'width': 120, 'height': 80},
            {'id': 2, 'file_name': '000012.jpg', 'width': 60, 'height': 90},
            {
                'id': 3,
                'file_name': '2011_003353.jpg',
                'width': 100,
                'height': 110,
            },
        ],
        'annotations': [
            {
                'id': 1,
                'image_id': 1,
                'category_id': 9,
                'bbox': [10, 20, 50, 50],
                'area': 2500,
                'iscrowd': 0,
            },
            {
                'id': 2,
                'image_id': 1,
                'category_id': 15,
                'bbox': [0, 0, 120, 80],
                'area': 9600,
                'iscrowd': 0,
            },
            {
                'id': 3,
                'image_id': 2,
                'category_id': 7,
                'bbox': [4, 5, 43, 53],
                'area': 2279,
                'iscrowd': 1,
            },
            {
                'id': 4,
                'image_id': 2,
                'category_id': 12,
                'bbox': [29, 19, 31, 71],
                'area': 2201,
                'iscrowd': 0,
            },
            {
                'id': 5,
                'image_id': 3,
                'category_id': 15,
                'bbox': [30, 44.7, 40.5, 45.3],
                'area': 1834.65,
                'iscrowd': 0,
            },
        ],
    }
    names = {'000005.jpg', '000012.jpg', '2011_003353.jpg'}
    assert {p.name for p in (OUT / 'images/train').iterdir()} == names
    report = json.loads((OUT / 'report.json').read_text())['splits']
    assert not report['train']['notes'] and not report['test']['notes']
    counts = report['train']['counts']
    assert (counts['images'], counts['boxes'], counts['crowds']) == (3, 4, 1)
    assert (counts['person'], counts['car']) == (2, 0)


def test_three_tars_as_published(tmp_path, convert):
    folder = tmp_path / 'loaded'
    folder.mkdir()
    tar(TRAINVAL_2007, folder / 'VOCtrainval_06-Nov-2007.tar')
    tar(TEST_2007, folder / 'VOCtest_06-Nov-2007.tar')
    tar(TRAINVAL_2012, folder / 'VOCtrainval_11-May-2012.tar')
    convert('voc', 'loaded', '--allow-incomplete')
    assert boxes(coco(OUT, 'train')) == TRAIN_BOXES
    assert boxes(coco(OUT, 'test')) == TEST_BOXES
    image = OUT / 'images/train/2011_003353.jpg'
    assert not image.is_symlink()
    assert image.read_bytes() == picture(100, 110)


@pytest.mark.parametrize('copy', [False, True])
def test_zip_and_unpacked_together(tmp_path, convert, copy):
    pack(TRAINVAL_2007, tmp_path / 'seven.zip')
    unpack(TEST_2007 | TRAINVAL_2012, tmp_path / 'rest')
    words = ['seven.zip', 'rest', '--allow-incomplete']
    convert('voc', *words, *(['--copy'] if copy else []))
    assert boxes(coco(OUT, 'train')) == TRAIN_BOXES
    assert boxes(coco(OUT, 'test')) == TEST_BOXES
    zipped = OUT / 'images/train/000005.jpg'
    assert zipped.read_bytes() == picture(120, 80)
    assert not zipped.is_symlink()
    image = OUT / 'images/test/000003.jpg'
    assert image.read_bytes() == picture(50, 70)
    assert image.is_symlink() is not copy
    if not copy:
        original = tmp_path / 'rest' / SEVEN / 'JPEGImages/000003.jpg'
        assert image.readlink() == original


def test_the_years_as_sources(devkit, convert):
    convert('voc', SEVEN, TWELVE, '--allow-incomplete', '--out', 'both')
    assert boxes(coco(Path('both'), 'train')) == TRAIN_BOXES
    assert not OUT.exists()


def test_exclusive_is_a_pixel_smaller(devkit, convert):
    convert('voc', 'VOCdevkit', '--exclusive', '--allow-incomplete')
    data = coco(OUT, 'train')
    assert boxes(data) == [
        ('000005.jpg', 'chair', 10, 20, 49, 49, 0),
        ('000005.jpg', 'person', 0, 0, 119, 79, 0),
        ('000012.jpg', 'car', 4, 5, 42, 52, 1),
        ('000012.jpg', 'dog', 29, 19, 30, 70, 0),
        ('2011_003353.jpg', 'person', 30, 44.7, 39.5, 44.3, 0),
    ]
    assert 'a pixel smaller' in data['info']['protocol']


def test_2007_alone(devkit, convert):
    convert('voc', 'VOCdevkit', '--years', '2007', '--allow-incomplete')
    data = coco(OUT, 'train')
    assert boxes(data) == TRAIN_BOXES[:4]
    assert data['info']['protocol'] == 'trainval 2007, test 2007'
    assert boxes(coco(OUT, 'test')) == TEST_BOXES


@pytest.mark.parametrize(
    ('years', 'images', 'plain', 'difficult'),
    [
        (['2007', '2012'], 16551, 40058, 47223 - 40058),
        (['2012', '2007'], 16551, 40058, 47223 - 40058),
        (['2007', '2007'], 5011, 12608, 15662 - 12608),
        (['2007'], 5011, 12608, 15662 - 12608),
        (['2012'], 11540, 27450, 31561 - 27450),
    ],
)
def test_official_figures(devkit, convert, years, images, plain, difficult):
    convert('voc', 'VOCdevkit', '--years', *years, '--allow-incomplete')
    splits = json.loads((OUT / 'report.json').read_text())['splits']
    assert splits['train']['official'] == {
        'images': images,
        'boxes': plain,
        'crowds': difficult,
    }
    assert splits['test']['official'] == {
        'images': 4952,
        'boxes': 12032,
        'crowds': 14976 - 12032,
    }


def test_other_counts_write_nothing(devkit, convert, capsys):
    message = refusal(convert, 'VOCdevkit')
    assert '6 of the counts' in message and '--allow-incomplete' in message
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['images', '3', '16,551', 'differs'] in lines
    assert ['crowds', '1', '2,944', 'differs'] in lines


def test_right_counts_need_no_flag(devkit, load_tool, monkeypatch, capsys):
    tool = load_tool('dataset_converters/voc.py')
    monkeypatch.setattr(
        tool,
        'COUNTS',
        {
            ('2007', 'trainval'): (2, 3, 4),
            ('2012', 'trainval'): (1, 1, 1),
            ('2007', 'test'): (2, 2, 3),
        },
    )
    tool.main(['VOCdevkit'])
    assert boxes(coco(OUT, 'train')) == TRAIN_BOXES
    assert 'differs' not in capsys.readouterr().out


NO_BOX = '<object><name>cow</name></object>'
HALF_A_BOX = (
    '<object><name>cow</name><bndbox><xmin>1</xmin><ymin>1</ymin>'
    '<xmax>9</xmax></bndbox></object>'
)


@pytest.mark.parametrize(
    ('bad', 'word'),
    [
        (thing('unicorn', 1, 1, 9, 9), 'unicorn'),
        (thing('Person', 1, 1, 9, 9), 'Person'),
        ('<object><difficult>0</difficult></object>', 'class'),
        (NO_BOX, 'bndbox'),
        (HALF_A_BOX, 'bndbox'),
        (thing('cow', 'one', 1, 9, 9), 'bndbox'),
        (thing('cow', 'nan', 1, 9, 9), 'finite'),
        (thing('cow', 1, 1, 9, 'inf'), 'finite'),
    ],
)
def test_a_bad_object_is_told_and_skipped(devkit, convert, bad, word):
    devkit(_000005=voc(bad, thing('chair', 11, 21, 60, 70)))
    convert('voc', 'VOCdevkit', '--allow-incomplete')
    assert boxes(coco(OUT, 'train'))[:2] == [
        ('000005.jpg', 'chair', 10, 20, 50, 50, 0),
        ('000012.jpg', 'car', 4, 5, 43, 53, 1),
    ]
    where = f'{SEVEN}/Annotations/000005.xml, object 1'
    assert told('train', word) == [where]
    assert where in refusal(
        convert, 'VOCdevkit', '--allow-incomplete', '--force', '--strict'
    )


def test_boxes_are_clipped_or_dropped(devkit, convert):
    things = [
        thing('cow', -3, 0, 130, 40),
        thing('cow', 121, 1, 140, 40),
        thing('cow', 50, 40, 49, 60),
        thing('cow', 60, 30, 50, 60),
    ]
    devkit(_000005=voc(*things))
    convert('voc', 'VOCdevkit', '--allow-incomplete')
    assert boxes(coco(OUT, 'train'))[0] == (
        '000005.jpg', 'cow', 0, 0, 120, 40, 0,
    )  # fmt: skip
    assert boxes(coco(OUT, 'train'))[1][0] == '000012.jpg'
    name = f'{SEVEN}/Annotations/000005.xml'
    assert told('train', 'clipped') == [f'{name}, object 1']
    assert told('train', 'outside') == [f'{name}, object 2']
    assert told('train', 'zero size') == [
        f'{name}, object 3',
        f'{name}, object 4',
    ]


@pytest.mark.parametrize(
    'text',
    [
        '<annotation><object>',
        '',
        'chair 11 21 60 70',
        b'\xff\xd8\xff',
        '<?xml version="1.0" encoding="koi-7"?><annotation/>',
        '<?xml version="1.0" encoding="utf-32"?><annotation/>',
    ],
)
def test_no_xml_leaves_the_image_out(devkit, convert, text):
    devkit(_000005=text)
    convert('voc', 'VOCdevkit', '--allow-incomplete')
    data = coco(OUT, 'train')
    assert boxes(data) == TRAIN_BOXES[2:]
    assert [image['id'] for image in data['images']] == [1, 2]
    assert not (OUT / 'images/train/000005.jpg').exists()
    image = f'{SEVEN}/JPEGImages/000005.jpg'
    assert told('train', 'Annotations/000005.xml is no XML') == [image]
    assert '000005.xml' in refusal(
        convert, 'VOCdevkit', '--allow-incomplete', '--force', '--strict'
    )


@pytest.mark.parametrize(
    ('gone', 'word'),
    [
        ('JPEGImages/000012.jpg', 'no image'),
        ('Annotations/000012.xml', 'no annotation'),
    ],
)
def test_listed_without_a_file(devkit, convert, gone, word):
    Path(SEVEN, gone).unlink()
    convert('voc', 'VOCdevkit', '--allow-incomplete')
    assert boxes(coco(OUT, 'train')) == TRAIN_BOXES[:2] + TRAIN_BOXES[4:]
    assert told('train', word) == ['VOC2007, 000012']
    assert 'VOC2007, 000012' in refusal(
        convert, 'VOCdevkit', '--allow-incomplete', '--force', '--strict'
    )


def test_an_unreadable_image_is_left_out(devkit, convert):
    name = f'{TWELVE}/JPEGImages/2011_003353.jpg'
    Path(name).write_text('not found')
    convert('voc', 'VOCdevkit', '--allow-incomplete')
    assert boxes(coco(OUT, 'train')) == TRAIN_BOXES[:4]
    assert told('train', 'unreadable') == [name]


def test_a_year_without_its_list(devkit, convert):
    Path(TWELVE, MAIN, 'trainval.txt').unlink()
    convert('voc', 'VOCdevkit', '--allow-incomplete')
    assert boxes(coco(OUT, 'train')) == TRAIN_BOXES[:4]
    assert told('train', 'no list') == [f'VOC2012/{MAIN}/trainval.txt']


def test_the_stored_raster_counts(devkit, convert):
    name = f'{SEVEN}/JPEGImages/000005.jpg'
    Path(name).write_bytes(picture(120, 80, orientation=6))
    convert('voc', 'VOCdevkit', '--allow-incomplete')
    image = coco(OUT, 'train')['images'][0]
    assert (image['width'], image['height']) == (120, 80)
    assert told('train', 'EXIF') == [f'{name} (6)']


def test_a_folder_of_something_else(tmp_path, convert, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unpack({'holiday/beach/sea.jpg': b'blue'}, tmp_path)
    message = refusal(convert, 'holiday')
    assert 'VOC2007/ImageSets/Main/trainval.txt' in message
    assert 'holiday/beach' in message


def test_a_packed_tar_is_refused_with_advice(tmp_path, convert, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tar(TRAINVAL_2007, tmp_path / 'voc.tar')
    packed = gzip.compress((tmp_path / 'voc.tar').read_bytes())
    (tmp_path / 'voc.tar.gz').write_bytes(packed)
    message = refusal(convert, 'voc.tar.gz')
    assert 'voc.tar.gz' in message and 'unpack' in message


@pytest.mark.parametrize(
    ('make', 'name'), [(pack, 'voc.zip'), (tar, 'voc.tar')]
)
def test_a_truncated_archive(tmp_path, convert, monkeypatch, make, name):
    monkeypatch.chdir(tmp_path)
    make(ALL, tmp_path / name)
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: whole.index(picture(50, 70)) + 99])
    message = refusal(convert, name, '--allow-incomplete')
    assert name in message and 'load it anew' in message


def damage(archive, content):
    whole = archive.read_bytes()
    assert whole.count(content) == 1
    archive.write_bytes(whole.replace(content, content[::-1]))


def test_a_damaged_image_in_a_zip_is_left_out(tmp_path, convert):
    pack(ALL, tmp_path / 'voc.zip')
    damage(tmp_path / 'voc.zip', picture(120, 80))
    convert('voc', 'voc.zip', '--allow-incomplete')
    assert boxes(coco(OUT, 'train')) == TRAIN_BOXES[2:]
    image = f'voc/{SEVEN}/JPEGImages/000005.jpg'
    assert told('train', 'unreadable') == [image]


def test_a_damaged_text_in_a_zip(tmp_path, convert, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pack(ALL, tmp_path / 'voc.zip')
    damage(tmp_path / 'voc.zip', b'2011_003353\n')
    message = refusal(convert, 'voc.zip', '--allow-incomplete')
    assert 'voc.zip' in message


def test_workers_do_not_matter(devkit, convert):
    contents = []
    for workers in ('1', '7'):
        out = Path(f'out{workers}')
        convert(
            'voc', 'VOCdevkit', '--allow-incomplete', '--workers', workers,
            '--out', out, '--copy',
        )  # fmt: skip
        files = sorted(p for p in out.rglob('*') if p.is_file())
        contents.append([(p.relative_to(out), p.read_bytes()) for p in files])
    assert contents[0] == contents[1] and len(contents[0]) == 9


def test_train_and_score(devkit, convert, train_once):
    convert('voc', 'VOCdevkit', '--allow-incomplete')
    scores = train_once('faster-rcnn_r50-none_fpn_1x_voc0712.py')
    assert 0 <= scores['coco/bbox_mAP'] <= 1
    assert 0 <= scores['pascal_voc/mAP'] <= 1
