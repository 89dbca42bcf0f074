# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import json
from functools import partial
from pathlib import Path

import pytest
from helpers import (
    below,
    boxes,
    coco,
    contents,
    pack,
    picture,
    read_report,
    records,
    unpack,
)
from mmengine.config import Config
from PIL import Image

CONFIG = (
    Path(__file__).parents[3]
    / 'configs/none/faster-rcnn_r50-none_fpn_1x_exdark.py'
)
HEADER = '% bbGt version=3\n'
REST = ' 0 0 0 0 0 0 0\n'
LIST = (
    'Name | Class | Light | In/Out | Train/Val/Test\r\n'
    '2015_00001.png 1 2 1 1\r\n'
    '2015_00650.JPEG 2 10 2 1\r\n'
    '2015_01659.jpg 5 1 2 1\r\n'
    '2017_07357.jpeg 12 9 1 3\r\n'
    '2017_07363.jpg 11 5 2 3\r\n'
    '2016_07356.JPG 4 3 2 2\r\n'
    '2015_07299.jpg 8 7 1 2\r\n'
)
IMAGES = {
    'Bicycle/2015_00001.png': picture(70, 50, suffix='.png'),
    'Boat/2015_00650.jpg': picture(90, 60),
    'Car/2015_01659.JPG': picture(80, 48, orientation=6),
    'Cup/2015_07299.JPEG': picture(64, 44),
    'Bus/2016_07356.jpg': picture(60, 40),
    # The decoder decides about the format, not the suffix.
    'Table/2017_07357.png': picture(50, 40, suffix='.jpg'),
    'People/2017_07363.JPG': picture(40, 56),
}
TEXTS = {
    'Bicycle/2015_00001.png.txt': HEADER + 'Bicycle 10 12 30 20' + REST
    + 'People 40 5 20 30' + REST
    + 'Bicyle 1 1 5 5' + REST
    + 'Bicycle 60 40 15 11' + REST
    + 'Bicycle 3 x 4 5' + REST
    + 'Cup 7 8\n'
    + 'Bicycle 70 1 9 9' + REST
    + 'Bicycle 20 20 9 0' + REST,
    'Boat/2015_00650.JPG.txt': HEADER + 'Boat 0 1 91 60' + REST
    + 'Boat 1 1 90 60' + REST,
    'Car/2015_01659.jpg.txt': HEADER + 'Car 60 10 18 30' + REST,
    'Cup/2015_07299.jpg.txt': HEADER + 'Table 5 6 20 15' + REST,
    'Bus/2016_07356.JPEG.txt': HEADER + 'Bus 2 3 40 30' + REST,
    'Table/2017_07357.jpg.txt': HEADER,
    'People/2017_07363.jpg.txt': HEADER + 'People 4 4 6 40' + REST
    + 'Dog 20 5 8 9' + REST,
}  # fmt: skip
CATEGORIES = [
    {'id': 1, 'name': 'Bicycle'},
    {'id': 2, 'name': 'Boat'},
    {'id': 3, 'name': 'Bottle'},
    {'id': 4, 'name': 'Bus'},
    {'id': 5, 'name': 'Car'},
    {'id': 6, 'name': 'Cat'},
    {'id': 7, 'name': 'Chair'},
    {'id': 8, 'name': 'Cup'},
    {'id': 9, 'name': 'Dog'},
    {'id': 10, 'name': 'Motorbike'},
    {'id': 11, 'name': 'People'},
    {'id': 12, 'name': 'Table'},
]
# (id, image_id, category_id, bbox, area, iscrowd)
RECORDS = {
    'train': [
        (1, 1, 1, [10, 12, 30, 20], 600, 0),
        (2, 1, 11, [40, 5, 20, 30], 600, 0),
        (3, 1, 1, [60, 40, 10, 10], 100, 0),
        (4, 2, 2, [0, 1, 90, 59], 5310, 0),
        (5, 2, 2, [1, 1, 89, 59], 5251, 0),
        (6, 3, 5, [60, 10, 18, 30], 540, 0),
    ],
    'val': [
        (1, 1, 12, [5, 6, 20, 15], 300, 0),
        (2, 2, 4, [2, 3, 40, 30], 1200, 0),
    ],
    'test': [
        (1, 2, 11, [4, 4, 6, 40], 240, 0),
        (2, 2, 9, [20, 5, 8, 9], 72, 0),
    ],
}
# (id, file_name, width, height, light, place)
LISTED = {
    'train': [
        (1, '2015_00001.png', 70, 50, 'Ambient', 'indoor'),
        (2, '2015_00650.jpg', 90, 60, 'Twilight', 'outdoor'),
        (3, '2015_01659.JPG', 80, 48, 'Low', 'outdoor'),
    ],
    'val': [
        (1, '2015_07299.JPEG', 64, 44, 'Screen', 'indoor'),
        (2, '2016_07356.jpg', 60, 40, 'Object', 'outdoor'),
    ],
    'test': [
        (1, '2017_07357.png', 50, 40, 'Shadow', 'indoor'),
        (2, '2017_07363.JPG', 40, 56, 'Weak', 'outdoor'),
    ],
}
CLASSES = [
    'Bicycle',
    'Boat',
    'Bottle',
    'Bus',
    'Car',
    'Cat',
    'Chair',
    'Cup',
    'Dog',
    'Motorbike',
    'People',
    'Table',
]
# Images, boxes, and those of each class in the order above.
OFFICIAL = {
    'train': [3000, 10381, 463, 530, 654, 333, 1238, 311, 1138, 864, 335, 490,
              3271, 754],
    'val': [1800, 6212, 239, 344, 506, 209, 770, 173, 630, 436, 193, 340, 1954,
            418],
    'test': [2563, 7117, 418, 515, 433, 164, 919, 425, 609, 356, 490, 242,
             2235, 311],
}  # fmt: skip
TOTAL = [7363, 23710, 1120, 1389, 1593, 706, 2927, 909, 2377, 1656, 1018, 1072,
         7460, 1483]  # fmt: skip
COUNTS = {
    'images': 3,
    'boxes': 6,
    'crowds': 0,
    'Bicycle': 2,
    'Boat': 2,
    'Bottle': 0,
    'Bus': 0,
    'Car': 1,
    'Cat': 0,
    'Chair': 0,
    'Cup': 0,
    'Dog': 0,
    'Motorbike': 0,
    'People': 1,
    'Table': 0,
}


def write_source(root, layout='folder', texts='ExDark_Annno'):
    root.mkdir()
    unpack({'imageclasslist.txt': LIST}, root)
    for top, files in (('ExDark', IMAGES), (texts, TEXTS)):
        if layout == 'folder':
            unpack(below(top, files), root)
        elif layout == 'nested':
            unpack(below(f'{top}/{top}', files), root)
        elif layout == 'one level down':
            unpack(below(f'{top}/unpacked', files), root)
        elif layout == 'zip':
            pack(below(top, files), root / f'{top}.zip')
        elif layout == 'renamed zip':
            pack(below(top, files), root / f'load {len(top)}.zip')
        elif layout == 'nested zip':
            pack(below(f'{top}/{top}', files), root / f'{top}.zip')
        elif layout == 'zip without top':
            pack(files, root / f'{top}.zip')
    return root


@pytest.fixture
def src(tmp_path):
    return write_source(tmp_path / 'src')


@pytest.fixture
def run(convert, tmp_path):
    def run(*words):
        convert('exdark', *words, '--out', 'out', '--allow-incomplete')
        return tmp_path / 'out'

    return run


@pytest.fixture
def refused(refuse):
    return partial(refuse, 'exdark')


def images(data):
    keys = ('id', 'file_name', 'width', 'height', 'light', 'place')
    return [tuple(image[key] for key in keys) for image in data['images']]


def notes_of(out, split):
    return read_report(out)['splits'][split]['notes']


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_boxes_by_hand(src, run, split):
    data = coco(run(src), split)
    assert data['categories'] == CATEGORIES
    assert images(data) == LISTED[split]
    assert records(data) == RECORDS[split]
    assert data['info']['split'] == split


def test_boxes_counted_from_one(src, run):
    assert records(coco(run(src, '--one-based'), 'train')) == [
        (1, 1, 1, [9, 11, 30, 20], 600, 0),
        (2, 1, 11, [39, 4, 20, 30], 600, 0),
        (3, 1, 1, [59, 39, 11, 11], 121, 0),
        (4, 1, 1, [69, 0, 1, 9], 9, 0),
        (5, 2, 2, [0, 0, 90, 60], 5400, 0),
        (6, 2, 2, [0, 0, 90, 60], 5400, 0),
        (7, 3, 5, [59, 9, 18, 30], 540, 0),
    ]


def test_reasons_with_file_and_line(src, run):
    out = run(src)
    bicycle = 'src/ExDark_Annno/Bicycle/2015_00001.png.txt'
    boat = 'src/ExDark_Annno/Boat/2015_00650.JPG.txt'
    assert notes_of(out, 'train') == {
        'box clipped to the image': [
            f'{bicycle}:5',
            f'{boat}:2',
            f'{boat}:3',
        ],
        'box dropped: outside the image': [f'{bicycle}:8'],
        'box dropped: zero size': [f'{bicycle}:9'],
        'image with EXIF rotation, boxes are of the stored raster': [
            'src/ExDark/Car/2015_01659.JPG (6)'
        ],
        'line skipped: no class Bicyle': [f'{bicycle}:4'],
        'line skipped: not a label and four numbers': [
            f'{bicycle}:6',
            f'{bicycle}:7',
        ],
    }
    assert notes_of(out, 'val') == notes_of(out, 'test') == {}


def test_rotated_image_is_linked_as_it_is(src, run):
    image = run(src, '--copy') / 'images/train/2015_01659.JPG'
    assert image.read_bytes() == IMAGES['Car/2015_01659.JPG']
    with Image.open(image) as opened:
        assert opened.size == (80, 48) and opened.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    'layout',
    [
        'nested',
        'one level down',
        'zip',
        'renamed zip',
        'nested zip',
        'zip without top',
    ],
)
def test_layouts_give_the_same(convert, tmp_path, layout):
    for name in ('folder', layout):
        write_source(tmp_path / name, name)
        convert('exdark', name, '--out', f'{name} out', '--allow-incomplete')
    found = contents(tmp_path / f'{layout} out')
    wanted = contents(tmp_path / 'folder out')
    for report in ('report.json', 'report.txt'):
        del found[report], wanted[report]
    assert found == wanted and len(wanted) == 10
    data = coco(tmp_path / f'{layout} out', 'train')
    assert records(data) == RECORDS['train']


@pytest.mark.parametrize('layout', ['folder', 'zip', 'zip without top'])
def test_parts_as_sources(run, tmp_path, layout):
    parts = sorted(write_source(tmp_path / 'src', layout).iterdir())
    out = run(*parts)
    for split, wanted in RECORDS.items():
        assert records(coco(out, split)) == wanted


@pytest.mark.parametrize('folder', ['ExDark_Anno', 'Groundtruth'])
def test_other_names_of_the_annotations(run, tmp_path, folder):
    out = run(write_source(tmp_path / 'src', texts=folder))
    assert records(coco(out, 'train')) == RECORDS['train']


def test_list_where_the_repository_has_it(src, run):
    (src / 'Groundtruth').mkdir()
    name = 'imageclasslist.txt'
    (src / name).rename(src / 'Groundtruth' / name)
    assert images(coco(run(src), 'train')) == LISTED['train']


@pytest.mark.parametrize('kind', ['folder', 'zip'])
def test_junk_of_macos_is_skipped(run, tmp_path, kind):
    root = write_source(tmp_path / 'src', kind)
    (root / 'ExDark.zip').unlink(missing_ok=True)
    (root / 'ExDark_Annno.zip').unlink(missing_ok=True)
    for top, files in (('ExDark', IMAGES), ('ExDark_Annno', TEXTS)):
        junk = {f'{top}/.DS_Store': b'junk', f'{top}/Bicycle/.DS_Store': b''}
        for name in files:
            kind_of, file = name.split('/')
            junk[f'{top}/{kind_of}/._{file}'] = b'junk'
            junk[f'__MACOSX/{top}/{kind_of}/._{file}'] = b'junk'
            junk[f'__MACOSX/{top}/{name}'] = b'junk'
        if kind == 'zip':
            pack({**below(top, files), **junk}, root / f'{top}.zip')
        else:
            unpack(junk, root)
    out = run(root)
    for split in RECORDS:
        assert images(coco(out, split)) == LISTED[split]
        assert records(coco(out, split)) == RECORDS[split]
    assert len(notes_of(out, 'train')) == 6
    assert notes_of(out, 'val') == notes_of(out, 'test') == {}


def test_listed_image_that_is_not_there(src, run, refused):
    (src / 'ExDark/Boat/2015_00650.jpg').unlink()
    out = run(src)
    assert [image[:2] for image in images(coco(out, 'train'))] == [
        (1, '2015_00001.png'),
        (2, '2015_01659.JPG'),
    ]
    assert records(coco(out, 'train'))[-1] == (
        4, 2, 5, [60, 10, 18, 30], 540, 0
    )  # fmt: skip
    (where,) = (w for k, w in notes_of(out, 'train').items() if 'left' in k)
    assert len(where) == 1 and '2015_00650' in where[0]
    message = refused(src, '--out', 'x', '--strict', '--allow-incomplete')
    assert '2015_00650' in message


def test_image_without_annotation(src, run, refused):
    (src / 'ExDark_Annno/Bus/2016_07356.JPEG.txt').unlink()
    out = run(src)
    assert images(coco(out, 'val')) == LISTED['val'][:1]
    assert notes_of(out, 'val') == {
        'image left out: no annotation file': ['src/ExDark/Bus/2016_07356.jpg']
    }
    (src / 'ExDark_Annno/Bicycle/2015_00001.png.txt').write_text(HEADER)
    message = refused(src, '--out', 'x', '--strict', '--allow-incomplete')
    assert 'Bus/2016_07356.jpg' in message


def test_image_that_is_not_listed(src, run):
    unpack({'ExDark/Dog/2015_09999.jpg': picture(40, 40)}, src)
    unpack({'ExDark_Annno/Dog/2015_09999.jpg.txt': HEADER}, src)
    out = run(src)
    for split in LISTED:
        assert images(coco(out, split)) == LISTED[split]
    everywhere = [notes_of(out, split) for split in LISTED]
    (where,) = (w for n in everywhere for k, w in n.items() if 'listed' in k)
    assert where == ['src/ExDark/Dog/2015_09999.jpg']


def test_one_stem_twice_is_refused(src, refused):
    other = src / 'ExDark/Dog/2015_00001.JPG'
    unpack({other.name: picture(40, 41)}, other.parent)
    message = refused(src, '--out', 'out', '--allow-incomplete')
    assert 'Bicycle/2015_00001.png' in message
    assert 'Dog/2015_00001.JPG' in message
    other.unlink()
    (src / 'imageclasslist.txt').write_text(LIST + '2015_00001.JPG 9 1 1 3\n')
    message = refused(src, '--out', 'out', '--allow-incomplete')
    assert 'imageclasslist.txt' in message and '2015_00001.JPG' in message


@pytest.mark.parametrize(
    'line', ['2015_01659.jpg 5 1 2', '2015_01659.jpg 5 1 2 4', 'x y z 1 2',
             '2015_01659.jpg 5 11 2 1', '2015_01659.jpg 13 1 2 1',
             '2015_01659.jpg 0 1 2 1', '2015_01659.jpg 5 1 2 0']
)  # fmt: skip
def test_bad_line_of_the_list(src, run, refused, line):
    text = LIST.replace('2015_01659.jpg 5 1 2 1', line)
    (src / 'imageclasslist.txt').write_bytes(text.encode())
    out = run(src)
    assert images(coco(out, 'train')) == LISTED['train'][:2]
    whole = (out / 'report.json').read_text()
    assert 'imageclasslist.txt:4' in whole
    message = refused(src, '--out', 'x', '--strict', '--allow-incomplete')
    assert 'imageclasslist.txt:4' in message


def test_list_of_the_user(src, convert, tmp_path):
    (tmp_path / 'mine.txt').write_text(
        '2015_01659.jpg 5 1 2 3\n'
        '2015_07299.JPG 8 7 1 1\n'
        '2017_07363.jpg 11 5 2 1\n'
    )
    convert('exdark', src, '--list', 'mine.txt', '--out', 'out')
    out = tmp_path / 'out'
    train, test = coco(out, 'train'), coco(out, 'test')
    assert boxes(train) == [
        ('2015_07299.JPEG', 'Table', 5, 6, 20, 15, 0),
        ('2017_07363.JPG', 'People', 4, 4, 6, 40, 0),
        ('2017_07363.JPG', 'Dog', 20, 5, 8, 9, 0),
    ]
    assert boxes(test) == [('2015_01659.JPG', 'Car', 60, 10, 18, 30, 0)]
    assert 'mine.txt' in train['info']['protocol']
    assert sorted(p.name for p in (out / 'images').iterdir()) == [
        'test',
        'train',
    ]


def test_list_of_the_user_needs_no_other(src, convert, tmp_path):
    (src / 'imageclasslist.txt').unlink()
    (tmp_path / 'mine.txt').write_bytes(LIST.encode('utf-8-sig'))
    convert('exdark', src, '--list', 'mine.txt', '--out', 'out')
    for split in LISTED:
        assert images(coco(tmp_path / 'out', split)) == LISTED[split]


def test_list_with_a_byte_order_mark(src, convert, tmp_path):
    rows = LIST.split('\r\n', 1)[1]
    (tmp_path / 'mine.txt').write_bytes(rows.encode('utf-8-sig'))
    convert('exdark', src, '--list', 'mine.txt', '--out', 'out')
    assert images(coco(tmp_path / 'out', 'train')) == LISTED['train']


@pytest.mark.parametrize(
    'text',
    ['2015_00001.png\n2015_00650.jpg\n', '2015_00002.png 1 2 1 1\n', ''],
)
def test_list_of_nothing_is_refused(src, refused, tmp_path, text):
    (tmp_path / 'mine.txt').write_text(text)
    assert 'list' in refused(src, '--list', 'mine.txt', '--out', 'out')
    assert not (tmp_path / 'out').exists()


def test_protocol_tells_the_splits_apart(src, convert, tmp_path):
    (tmp_path / 'mine.txt').write_text(LIST)
    told = set()
    for words in ([], ['--one-based'], ['--list', 'mine.txt']):
        out = f'out{len(told)}'
        convert('exdark', src, '--out', out, '--allow-incomplete', *words)
        told.add(coco(tmp_path / out, 'train')['info']['protocol'])
    assert len(told) == 3


def place(root, split):
    folder = root / 'images' / split
    origins = {name.split('/')[1]: name for name in IMAGES}
    return {path: origins[path.name] for path in folder.iterdir()}


def test_images_are_links(src, run):
    for path, origin in place(run(src), 'train').items():
        target = (src / 'ExDark' / origin).resolve()
        assert path.is_symlink() and path.resolve() == target


def test_copies_are_files(src, run):
    for path, origin in place(run(src, '--copy'), 'train').items():
        assert not path.is_symlink()
        assert path.read_bytes() == IMAGES[origin]


def test_images_of_an_archive_are_unpacked(run, tmp_path):
    out = run(write_source(tmp_path / 'src', 'zip'))
    for path, origin in place(out, 'train').items():
        assert not path.is_symlink()
        assert path.read_bytes() == IMAGES[origin]


def test_report_has_the_official_figures(src, run):
    report = read_report(run(src))
    assert report['dataset'] == 'ExDark'
    splits = report['splits']
    keys = ['images', 'boxes', *CLASSES]
    for name, numbers in OFFICIAL.items():
        assert splits[name]['official'] == dict(zip(keys, numbers))
        assert sorted(splits[name]['differs']) == sorted(keys)
    for key, total in zip(keys, TOTAL):
        assert sum(s['official'][key] for s in splits.values()) == total
    assert splits['train']['counts'] == COUNTS
    assert splits['val']['counts']['Table'] == 1
    assert splits['test']['counts']['images'] == 2
    assert splits['test']['counts']['boxes'] == 2


def test_report_for_people(src, run, capsys):
    text = (run(src) / 'report.txt').read_text()
    assert text in capsys.readouterr().out
    parts = text.split('\n\n')
    assert [p.split()[0] for p in parts[1:]] == ['train', 'val', 'test']
    lines = [line.split() for line in parts[1].splitlines()]
    assert ['images', '3', '3,000', 'differs'] in lines
    assert ['boxes', '6', '10,381', 'differs'] in lines
    assert ['Bicycle', '2', '463', 'differs'] in lines
    assert ['Cat', '0', '311', 'differs'] in lines
    (unknown,) = (p for p in parts[1].splitlines() if 'Bicyle' in p)
    assert unknown.split()[:2] == ['1', 'x']
    assert 'Bicycle/2015_00001.png.txt:4' in unknown


def test_right_counts_are_written(src, load_tool, tmp_path):
    tool = load_tool('dataset_converters/exdark.py')
    tool.OFFICIAL = {
        'train': {k: v for k, v in COUNTS.items() if k != 'crowds'},
        'val': {'images': 2, 'boxes': 2},
        'test': {'images': 2, 'boxes': 2},
    }
    tool.main([str(src), '--out', str(tmp_path / 'out')])
    assert records(coco(tmp_path / 'out', 'train')) == RECORDS['train']
    for key in ('images', 'boxes', 'Table'):
        tool.OFFICIAL['train'][key] += 1
        with pytest.raises(SystemExit, match='differ'):
            tool.main([str(src), '--out', str(tmp_path / key)])
        assert not (tmp_path / key).exists()
        tool.OFFICIAL['train'][key] -= 1


def test_wrong_counts_write_nothing(src, refused, tmp_path, capsys):
    message = refused(src, '--out', 'out')
    assert 'differ' in message and '--allow-incomplete' in message
    assert list(tmp_path.iterdir()) == [src]
    assert 'Motorbike' in capsys.readouterr().out


@pytest.mark.parametrize(
    'line', ['Dogs 1 2 3 4' + REST, 'Dog 1 2 3\n', 'Dog 1 2 x 4' + REST]
)
def test_strict_stops_at_a_line(src, refused, tmp_path, line):
    (src / 'ExDark_Annno/Bicycle/2015_00001.png.txt').write_text(HEADER)
    path = src / 'ExDark_Annno/People/2017_07363.jpg.txt'
    path.write_text(HEADER + 'People 4 4 6 40' + REST + '\n' + line)
    words = ('--out', 'out', '--strict', '--allow-incomplete')
    assert '2017_07363.jpg.txt:4' in refused(src, *words)
    assert list(tmp_path.iterdir()) == [src]


def test_strict_takes_what_is_no_defect(src, run):
    path = src / 'ExDark_Annno/Bicycle/2015_00001.png.txt'
    path.write_text(HEADER + 'People 60 40 15 11' + REST)
    out = run(src, '--strict')
    assert boxes(coco(out, 'train'))[0] == (
        '2015_00001.png', 'People', 60, 40, 10, 10, 0
    )  # fmt: skip
    assert records(coco(out, 'test')) == RECORDS['test']


def test_wrong_layout_tells_what_is_missing(src, refused, tmp_path):
    (src / 'ExDark_Annno').rename(src / 'labels')
    message = refused('src', '--out', 'out')
    assert 'ExDark_Annno' in message and 'src/labels' in message
    (src / 'ExDark').rename(src / 'pictures')
    message = refused('src', '--out', 'out')
    assert 'ExDark/' in message and 'src/pictures' in message
    (src / 'imageclasslist.txt').unlink()
    assert 'imageclasslist.txt' in refused('src', '--out', 'out')
    assert 'nowhere' in refused('nowhere', '--out', 'out')
    assert 'none.txt' in refused('src', '--list', 'none.txt')
    assert list(tmp_path.iterdir()) == [src]


def test_force(src, run, refused, tmp_path):
    before = contents(run(src))
    (src / 'ExDark_Annno/Bicycle/2015_00001.png.txt').write_text(HEADER)
    words = (src, '--out', 'out', '--allow-incomplete')
    assert '--force' in refused(*words)
    assert contents(tmp_path / 'out') == before
    refused(src, '--out', 'out', '--force')
    assert contents(tmp_path / 'out') == before
    run(src, '--force')
    assert records(coco(tmp_path / 'out', 'train'))[0][1:3] == (2, 2)
    assert sorted(tmp_path.iterdir()) == [tmp_path / 'out', src]


def test_force_spares_other_folders(src, run, refused, tmp_path):
    (tmp_path / 'out').mkdir()
    run(src, '--force')
    report = read_report(tmp_path / 'out')
    other = json.dumps({**report, 'dataset': 'VisDrone2019-DET'})
    words = (src, '--allow-incomplete', '--force', '--out')
    for name, content in [('thesis.tex', 'years'), ('report.json', other)]:
        unpack({name: content}, tmp_path / 'mine')
        assert 'mine' in refused(*words, 'mine')
        assert (tmp_path / 'mine' / name).read_text() == content


def test_workers_change_nothing(src, convert, tmp_path):
    for workers in (1, 7):
        convert(
            'exdark', src, '--out', str(workers), '--allow-incomplete',
            '--workers', workers,
        )  # fmt: skip
    assert contents(tmp_path / '1') == contents(tmp_path / '7')
    assert len(contents(tmp_path / '1')) == 12


def test_config_loads_the_stored_raster(src, run):
    from mmcv.transforms import TRANSFORMS

    path = run(src) / 'images/train/2015_01659.JPG'
    config = Config.fromfile(CONFIG)
    for name in ('train', 'val', 'test'):
        pipeline = config[f'{name}_dataloader'].dataset.pipeline
        load = TRANSFORMS.build(pipeline[0])
        image = load({'img_path': str(path)})['img']
        assert image.shape == (48, 80, 3)


def test_trains(src, convert, train_once):
    convert('exdark', src, '--allow-incomplete')
    scores = train_once(CONFIG.name)
    # -1 where nothing was to be found.
    assert 0 <= scores['coco/bbox_mAP'] <= 1
