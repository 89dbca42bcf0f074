# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import json
from functools import partial

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

TOP = 'VisDrone2019-DET-'
A = '0000002_00005_d_0000014'
B = '0000293_03401_d_0000939'
C = '9999985_00000_d_0000020'
TEXTS = {
    'train': {
        A: '10,5,20,15,1,4,0,0\n'
        '30,20,12,8,0,1,1,2,\n'
        '0,0,40,10,0,0,0,0\n'
        '\n'
        '60,30,10,10,1,11,0,0\n'
        '50,40,9\n'
        '2,3,4,5,1,x,0,0\n'
        '70,30,10,10,1,12,0,0\n'
        '\n',
        B: '70,40,20,30,1,10,0,1\r\n'
        '-5,-6,15,16,1,2,1,0\r\n'
        '20,20,10,0,1,4,0,0\r\n'
        '5,5,30,0,0,0,0,0\r\n'
        '80,10,5,5,1,3,0,0\r\n'
        ' 7, 8, 9, 10, 1, 9, 0, 0\r\n'
        '50,10,12,14,0,0,0,0\r\n'
        '60,20,5,6,0,0,0,0\r\n',
        C: '1,1,30,20,1,8,0,0',
    },
    'val': {
        '0000001_02999_d_0000005': '1,9,4,5,1,1,0,0\n'
        '2,9,4,5,1,2,0,0\n'
        '3,9,4,5,1,3,0,0\n'
        '4,9,4,5,1,4,0,0\n'
        '5,9,4,5,1,5,0,0\n'
        '6,9,4,5,1,6,0,0\n'
        '7,9,4,5,1,7,0,0\n'
        '8,9,4,5,1,8,0,0\n'
        '9,9,4,5,1,9,0,0\n'
        '10,9,4,5,1,10,0,0\n',
        '0000001_03499_d_0000006': '6,7,20,22,1,4,0,0\n',
    },
    'test-dev': {
        '0000006_00159_d_0000001': '4,4,9,8,1,7,0,0\n',
        '9999938_00000_d_0000208': '',
    },
}
SIZES = {
    A: (100, 60),
    B: (80, 50),
    C: (64, 48),
    '0000001_02999_d_0000005': (60, 40),
    '0000001_03499_d_0000006': (48, 50),
    '0000006_00159_d_0000001': (44, 40),
    '9999938_00000_d_0000208': (40, 44),
}
CATEGORIES = [
    {'id': 1, 'name': 'pedestrian'},
    {'id': 2, 'name': 'people'},
    {'id': 3, 'name': 'bicycle'},
    {'id': 4, 'name': 'car'},
    {'id': 5, 'name': 'van'},
    {'id': 6, 'name': 'truck'},
    {'id': 7, 'name': 'tricycle'},
    {'id': 8, 'name': 'awning-tricycle'},
    {'id': 9, 'name': 'bus'},
    {'id': 10, 'name': 'motor'},
]
REGIONS = {A: [[0, 0, 40, 10]], B: [[50, 10, 12, 14], [60, 20, 5, 6]], C: []}
# (id, image_id, category_id, bbox, area, iscrowd)
TRAIN = [
    (1, 1, 4, [10, 5, 20, 15], 300, 0),
    (2, 1, 1, [30, 20, 12, 8], 96, 0),
    (3, 2, 10, [70, 40, 10, 10], 100, 0),
    (4, 2, 2, [0, 0, 10, 10], 100, 0),
    (5, 2, 9, [7, 8, 9, 10], 90, 0),
    (6, 3, 8, [1, 1, 30, 20], 600, 0),
]
COUNTS = {
    'images': 3,
    'boxes': 6,
    'crowds': 0,
    'pedestrian': 1,
    'people': 1,
    'bicycle': 0,
    'car': 1,
    'van': 0,
    'truck': 0,
    'tricycle': 0,
    'awning-tricycle': 1,
    'bus': 1,
    'motor': 1,
}
OFFICIAL = {
    'train': {
        'images': 6471,
        'boxes': 343204,
        'pedestrian': 79337,
        'people': 27059,
        'bicycle': 10480,
        'car': 144866,
        'van': 24956,
        'truck': 12875,
        'tricycle': 4812,
        'awning-tricycle': 3246,
        'bus': 5926,
        'motor': 29647,
    },
    'val': {
        'images': 548,
        'boxes': 38759,
        'pedestrian': 8844,
        'people': 5125,
        'bicycle': 1287,
        'car': 14064,
        'van': 1975,
        'truck': 750,
        'tricycle': 1045,
        'awning-tricycle': 532,
        'bus': 251,
        'motor': 4886,
    },
    'test': {
        'images': 1610,
        'boxes': 75102,
        'pedestrian': 21006,
        'people': 6376,
        'bicycle': 1302,
        'car': 28074,
        'van': 5771,
        'truck': 2659,
        'tricycle': 530,
        'awning-tricycle': 599,
        'bus': 2940,
        'motor': 5845,
    },
}


def part(name):
    files = {}
    for stem, text in TEXTS[name].items():
        files[f'images/{stem}.jpg'] = picture(*SIZES[stem])
        files[f'annotations/{stem}.txt'] = text
    return files


def write_source(root, layout='folder'):
    root.mkdir()
    for name in TEXTS:
        top, files = TOP + name, part(name)
        if layout == 'folder':
            unpack(below(top, files), root)
        elif layout == 'nested':
            unpack(below(f'{top}/{top}', files), root)
        elif layout == 'one level down':
            unpack(below(f'{top}/unpacked', files), root)
        elif layout == 'zip':
            pack(below(top, files), root / f'{top}.zip')
        elif layout == 'renamed zip':
            pack(below(top, files), root / f'{name} (1).zip')
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
        convert('visdrone', *words, '--out', 'out', '--allow-incomplete')
        return tmp_path / 'out'

    return run


@pytest.fixture
def refused(refuse):
    return partial(refuse, 'visdrone')


def train_notes(out):
    notes = read_report(out)['splits']['train']['notes']
    root = f'src/{TOP}train/annotations/'
    return {
        what: [name.removeprefix(root) for name in where]
        for what, where in notes.items()
    }


def test_boxes_by_hand(src, run):
    data = coco(run(src), 'train')
    assert data['categories'] == CATEGORIES
    assert data['images'] == [
        {
            'id': 1,
            'file_name': f'{A}.jpg',
            'width': 100,
            'height': 60,
            'ignored_regions': REGIONS[A],
        },
        {
            'id': 2,
            'file_name': f'{B}.jpg',
            'width': 80,
            'height': 50,
            'ignored_regions': REGIONS[B],
        },
        {
            'id': 3,
            'file_name': f'{C}.jpg',
            'width': 64,
            'height': 48,
            'ignored_regions': REGIONS[C],
        },
    ]
    assert records(data) == TRAIN
    assert data['info']['split'] == 'train'


def test_class_order_by_hand(src, run):
    data = coco(run(src), 'val')
    assert data['categories'] == CATEGORIES
    first = '0000001_02999_d_0000005.jpg'
    second = '0000001_03499_d_0000006.jpg'
    assert boxes(data) == [
        (first, 'pedestrian', 1, 9, 4, 5, 0),
        (first, 'people', 2, 9, 4, 5, 0),
        (first, 'bicycle', 3, 9, 4, 5, 0),
        (first, 'car', 4, 9, 4, 5, 0),
        (first, 'van', 5, 9, 4, 5, 0),
        (first, 'truck', 6, 9, 4, 5, 0),
        (first, 'tricycle', 7, 9, 4, 5, 0),
        (first, 'awning-tricycle', 8, 9, 4, 5, 0),
        (first, 'bus', 9, 9, 4, 5, 0),
        (first, 'motor', 10, 9, 4, 5, 0),
        (second, 'car', 6, 7, 20, 22, 0),
    ]


def test_image_without_objects_stays(src, run):
    data = coco(run(src), 'test')
    assert [
        (i['id'], i['file_name'], i['width'], i['height'])
        for i in data['images']
    ] == [
        (1, '0000006_00159_d_0000001.jpg', 44, 40),
        (2, '9999938_00000_d_0000208.jpg', 40, 44),
    ]
    assert records(data) == [(1, 1, 7, [4, 4, 9, 8], 72, 0)]


def test_reasons_with_file_and_line(src, run):
    assert train_notes(run(src)) == {
        'box clipped to the image': [f'{B}.txt:1', f'{B}.txt:2'],
        'box dropped: category others': [f'{A}.txt:5'],
        'box dropped: outside the image': [f'{B}.txt:5'],
        'box dropped: zero size': [f'{B}.txt:3'],
        'ignored region of zero size': [f'{B}.txt:4'],
        'line skipped: no category 12': [f'{A}.txt:8'],
        'line skipped: not eight whole numbers': [
            f'{A}.txt:6',
            f'{A}.txt:7',
        ],
    }


def test_ignored_regions_as_crowds_of_every_class(src, run):
    out = run(src, '--ignored-regions', 'crowd')
    data = coco(out, 'train')
    found = records(data)
    assert [item[0] for item in found] == list(range(1, 37))
    plain = [item[1:] for item in found if not item[5]]
    assert plain == [item[1:] for item in TRAIN]
    crowds = sorted(item[1:] for item in found if item[5])
    assert crowds == sorted(
        (image, category, box, area, 1)
        for image, box, area in [
            (1, [0, 0, 40, 10], 400),
            (2, [50, 10, 12, 14], 168),
            (2, [60, 20, 5, 6], 30),
        ]
        for category in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    )
    assert [i['ignored_regions'] for i in data['images']] == [
        REGIONS[A],
        REGIONS[B],
        REGIONS[C],
    ]
    counts = read_report(out)['splits']['train']['counts']
    assert counts == {**COUNTS, 'crowds': 30}


def test_crowds_tell_their_line(src, run):
    text = '1,1,5,5,1,4,0,0\n90,50,20,20,0,0,0,0\n'
    (src / f'{TOP}train/annotations/{A}.txt').write_text(text)
    out = run(src, '--ignored-regions', 'crowd')
    clipped = train_notes(out)['box clipped to the image']
    assert set(clipped) == {f'{A}.txt:2', f'{B}.txt:1', f'{B}.txt:2'}


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
        convert('visdrone', name, '--out', f'{name} out', '--allow-incomplete')
    found = contents(tmp_path / f'{layout} out')
    wanted = contents(tmp_path / 'folder out')
    for report in ('report.json', 'report.txt'):
        del found[report], wanted[report]
    assert found == wanted and len(wanted) == 10
    assert records(coco(tmp_path / f'{layout} out', 'train')) == TRAIN


@pytest.mark.parametrize('layout', ['folder', 'zip', 'zip without top'])
def test_parts_as_sources(run, tmp_path, layout):
    parts = sorted(write_source(tmp_path / 'src', layout).iterdir())
    out = run(*parts)
    assert records(coco(out, 'train')) == TRAIN
    assert len(coco(out, 'val')['images']) == 2
    assert len(coco(out, 'test')['images']) == 2


def test_archive_beside_its_folder_counts_once(src, run):
    pack(below(f'{TOP}train', part('train')), src / f'{TOP}train.zip')
    assert records(coco(run(src), 'train')) == TRAIN


def test_test_challenge_is_left_out(src, run):
    name = 'images/9999996_00000_d_0000001.jpg'
    unpack({f'{TOP}test-challenge/{name}': picture(40, 40)}, src)
    out = run(src)
    assert len([n for n in contents(out) if n.endswith('.jpg')]) == 7
    assert 'test-challenge' not in (out / 'report.json').read_text()


def test_images_are_links(src, run):
    folder = run(src) / 'images/test'
    for stem in TEXTS['test-dev']:
        image = folder / f'{stem}.jpg'
        origin = src / f'{TOP}test-dev/images/{stem}.jpg'
        assert image.is_symlink() and image.resolve() == origin.resolve()
    assert len(list(folder.iterdir())) == 2


def test_copies_are_files(src, run):
    folder = run(src, '--copy') / 'images/test'
    for stem in TEXTS['test-dev']:
        image = folder / f'{stem}.jpg'
        assert not image.is_symlink()
        assert image.read_bytes() == picture(*SIZES[stem])


def test_images_of_an_archive_are_unpacked(run, tmp_path):
    folder = run(write_source(tmp_path / 'src', 'zip')) / 'images/test'
    for stem in TEXTS['test-dev']:
        image = folder / f'{stem}.jpg'
        assert not image.is_symlink()
        assert image.read_bytes() == picture(*SIZES[stem])


def test_report_has_the_official_figures(src, run):
    report = read_report(run(src))
    assert report['dataset'] == 'VisDrone2019-DET'
    splits = report['splits']
    assert {name: s['official'] for name, s in splits.items()} == OFFICIAL
    assert splits['train']['counts'] == COUNTS
    assert splits['val']['counts']['images'] == 2
    assert splits['val']['counts']['boxes'] == 11
    assert splits['val']['counts']['car'] == 2
    assert splits['test']['counts']['boxes'] == 1
    for split in splits.values():
        # The bicycles of train differ too: there are none.
        assert sorted(split['differs']) == sorted(OFFICIAL['train'])


def test_report_for_people(src, run, capsys):
    text = (run(src) / 'report.txt').read_text()
    assert text in capsys.readouterr().out
    parts = text.split('\n\n')
    assert [p.split()[0] for p in parts[1:]] == ['train', 'val', 'test']
    lines = [line.split() for line in parts[1].splitlines()]
    assert ['images', '3', '6,471', 'differs'] in lines
    assert ['boxes', '6', '343,204', 'differs'] in lines
    assert ['car', '1', '144,866', 'differs'] in lines
    assert ['bicycle', '0', '10,480', 'differs'] in lines
    (skipped,) = (p for p in parts[1].splitlines() if 'whole' in p)
    assert skipped.split()[:2] == ['2', 'x']
    assert f'{A}.txt:6' in skipped and f'{A}.txt:7' in skipped


def test_right_counts_are_written(src, load_tool, tmp_path):
    tool = load_tool('dataset_converters/visdrone.py')
    tool.OFFICIAL = {
        'train': {k: v for k, v in COUNTS.items() if k != 'crowds'},
        'val': {'images': 2, 'boxes': 11},
        'test': {'images': 2, 'boxes': 1},
    }
    tool.main([str(src), '--out', str(tmp_path / 'out')])
    assert records(coco(tmp_path / 'out', 'train')) == TRAIN
    for key in ('images', 'boxes', 'motor'):
        tool.OFFICIAL['train'][key] += 1
        with pytest.raises(SystemExit, match='differ'):
            tool.main([str(src), '--out', str(tmp_path / key)])
        assert not (tmp_path / key).exists()
        tool.OFFICIAL['train'][key] -= 1


def test_wrong_counts_write_nothing(src, refused, tmp_path, capsys):
    message = refused(src, '--out', 'out')
    assert 'differ' in message and '--allow-incomplete' in message
    assert list(tmp_path.iterdir()) == [src]
    assert 'bicycle' in capsys.readouterr().out


def test_absent_split_counts_as_different(src, convert, tmp_path):
    for path in sorted((src / f'{TOP}test-dev').rglob('*'), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    convert('visdrone', 'src', '--out', 'out', '--allow-incomplete')
    split = read_report(tmp_path / 'out')['splits']['test']
    assert split['counts']['images'] == 0 and 'images' in split['differs']
    assert not (tmp_path / 'out/annotations/instances_test.json').exists()


@pytest.mark.parametrize(
    'line',
    ['50,40,9', '1,2,3,4,1,4,0', '2,3,4,5,1,x,0,0', '1,2,3,4,1,12,0,0'],
)
def test_strict_stops_at_a_line(src, refused, tmp_path, line):
    path = src / f'{TOP}val/annotations/0000001_03499_d_0000006.txt'
    for name in (A, B):
        (src / f'{TOP}train/annotations/{name}.txt').write_text('')
    path.write_text(f'6,7,20,22,1,4,0,0\n\n{line}\n')
    words = ('--out', 'out', '--strict', '--allow-incomplete')
    message = refused(src, *words)
    assert '0000001_03499_d_0000006.txt:3' in message
    assert list(tmp_path.iterdir()) == [src]


def test_strict_takes_what_is_no_defect(src, run):
    for name, text in [
        (A, '30,20,12,8,0,1,1,2,\n\n60,30,10,10,0,11,0,0\n'),
        (B, '50,10,12,14,0,0,0,0\n'),
    ]:
        (src / f'{TOP}train/annotations/{name}.txt').write_text(text)
    assert boxes(coco(run(src, '--strict'), 'train')) == [
        (f'{A}.jpg', 'pedestrian', 30, 20, 12, 8, 0),
        (f'{C}.jpg', 'awning-tricycle', 1, 1, 30, 20, 0),
    ]


def damage(root, kind):
    if kind == 'no image':
        (root / f'images/{A}.jpg').unlink()
    elif kind == 'no annotation':
        (root / f'annotations/{A}.txt').unlink()
    else:
        (root / f'images/{A}.jpg').write_bytes(b'no image')


@pytest.mark.parametrize('kind', ['no image', 'no annotation', 'unreadable'])
def test_half_a_pair_is_left_out(src, run, refused, kind):
    damage(src / f'{TOP}train', kind)
    out = run(src)
    data = coco(out, 'train')
    assert [(i['id'], i['file_name']) for i in data['images']] == [
        (1, f'{B}.jpg'),
        (2, f'{C}.jpg'),
    ]
    assert records(data)[0] == (1, 1, 10, [70, 40, 10, 10], 100, 0)
    assert not (out / f'images/train/{A}.jpg').exists()
    notes = read_report(out)['splits']['train']['notes']
    (where,) = (w for what, w in notes.items() if 'left out' in what)
    assert len(where) == 1 and A in where[0]
    message = refused(src, '--out', 'x', '--strict', '--allow-incomplete')
    assert A in message


def test_wrong_layout_tells_what_is_missing(refused, tmp_path):
    unpack({'pictures/a.jpg': picture(40, 40)}, tmp_path / 'src')
    message = refused('src', '--out', 'out')
    for word in (TOP, 'train', 'images', 'annotations', 'src/pictures'):
        assert word in message
    assert 'nowhere' in refused('nowhere', '--out', 'out')
    assert list(tmp_path.iterdir()) == [tmp_path / 'src']


def test_force(src, run, refused, tmp_path):
    before = contents(run(src))
    (src / f'{TOP}train/annotations/{A}.txt').write_text('')
    words = (src, '--out', 'out', '--allow-incomplete')
    assert '--force' in refused(*words)
    assert contents(tmp_path / 'out') == before
    run(src, '--force')
    assert records(coco(tmp_path / 'out', 'train'))[0][1:3] == (2, 10)
    assert sorted(tmp_path.iterdir()) == [tmp_path / 'out', src]


def test_force_spares_other_folders(src, run, refused, tmp_path):
    (tmp_path / 'out').mkdir()
    run(src, '--force')
    report = json.loads((tmp_path / 'out/report.json').read_text())
    other = json.dumps({**report, 'dataset': 'ExDark'})
    words = (src, '--allow-incomplete', '--force', '--out')
    for name, content in [('thesis.tex', 'years'), ('report.json', other)]:
        unpack({name: content}, tmp_path / 'mine')
        assert 'mine' in refused(*words, 'mine')
        assert (tmp_path / 'mine' / name).read_text() == content


def test_failed_force_keeps_the_old(src, run, refused, tmp_path):
    before = contents(run(src))
    refused(src, '--out', 'out', '--force')
    assert contents(tmp_path / 'out') == before


def test_workers_change_nothing(src, convert, tmp_path):
    for workers in (1, 7):
        convert(
            'visdrone', src, '--out', str(workers), '--allow-incomplete',
            '--workers', workers, '--ignored-regions', 'crowd',
        )  # fmt: skip
    assert contents(tmp_path / '1') == contents(tmp_path / '7')
    assert len(contents(tmp_path / '1')) == 12


def test_trains(src, convert, train_once):
    convert('visdrone', src, '--allow-incomplete')
    scores = train_once('faster-rcnn_r50-none_fpn_1x_visdrone.py')
    # -1 where nothing was to be found.
    assert 0 <= scores['coco/bbox_mAP'] <= 1
    assert 0 <= scores['visdrone/AP'] <= 100
