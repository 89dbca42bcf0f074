# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The page says what the runs say, and nothing in it runs or is fetched."""

import base64
import hashlib
import io
import json
import os
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmattn.engine import load_config, read_config
from mmattn.engine.cost import build_model, count

ROOT = Path(__file__).parents[2]
TOOL = 'analysis_tools/report.py'
RESNET = 'resnet18-gsca_30e_digits'
VOID = ('br', 'hr', 'img', 'input', 'link', 'meta')
LOG = """2026/01/02 03:04:05 - mmengine - INFO - Config:
a = 1
2026/01/02 03:04:05 - mmengine - INFO - \n{rule}
System environment:
    sys.platform: amiga
    Python: 3.11

Runtime environment:
    seed: {seed}
    GPU number: 4
{rule}

2026/01/02 03:04:06 - mmengine - INFO - begun
"""


@pytest.fixture(autouse=True)
def beside_plot_logs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools' / 'analysis_tools')


class Page(HTMLParser):
    """What a page consists of.

    Attributes:
        tags: (name, attributes) of all elements.
        texts: Element -> texts directly in elements of that name.
        table: Rows of (text, attributes) of each cell.
        sections: id -> all text.
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.table = [], [], []
        self.texts, self.sections = {}, {}
        self.section = None
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append('')
        if tag == 'section':
            self.section = attrs.get('id')
        if tag == 'tr':
            self.table.append([])
        if tag in ('th', 'td'):
            self.table[-1].append(['', attrs])

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == 'section':
            self.section = None

    def handle_data(self, data):
        if not self.open:
            return
        self.texts[self.open[-1]][-1] += data
        if {'th', 'td'} & set(self.open):
            self.table[-1][-1][0] += data
        if self.section:
            known = self.sections.get(self.section, '')
            self.sections[self.section] = known + data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def column(self, title):
        """Return text and value of the cells below a head."""
        heads = [text for text, _ in self.table[0]]
        cells = [row[heads.index(title)] for row in self.table[1:]]
        return [(text, attrs.get('data-value')) for text, attrs in cells]


def log_of(first, last, score=None, seconds=0.5):
    """Return records of epochs of two iterations."""
    records = []
    for epoch in range(first, last + 1):
        for number in (2 * epoch - 1, 2 * epoch):
            own = {'lr': 0.1, 'loss': 1 / number, 'time': seconds}
            own |= {'epoch': epoch, 'iter': number, 'step': number}
            records.append(own)
        if score:
            records.append({'accuracy/top1': score(epoch), 'step': epoch})
    return records


@pytest.fixture(scope='session')
def settings():
    """The resolved config of a small classifier."""
    path = ROOT / 'configs' / 'demo' / f'{RESNET}.py'
    return read_config(str(path)).pretty_text


@pytest.fixture
def make(tmp_path, settings):
    """Make a work_dir as mmengine leaves it."""

    def make(
        name, records, stamp='20260102_030405', text=None, seed=0,
        config='cat.py', **options,
    ):  # fmt: skip
        folder = tmp_path / name
        data = folder / stamp / 'vis_data'
        data.mkdir(parents=True)
        lines = ''.join(f'{json.dumps(record)}\n' for record in records)
        (data / 'scalars.json').write_text(lines)
        text = settings if text is None else text
        text += ''.join(f'\n{key} = {v!r}' for key, v in options.items())
        (data / 'config.py').write_text(text)
        (folder / config).write_text(text)
        log = LOG.format(rule='-' * 60, seed=seed)
        (data.parent / f'{stamp}.log').write_text(log)
        return folder

    return make


@pytest.fixture
def report(run_tool, tmp_path):
    """Run the tool; return the page."""

    def report(*words):
        out = tmp_path / 'report.html'
        run_tool(TOOL, *words, '--out', out)
        return Page(out.read_text())

    return report


def draw_picture(path, width, height, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3))
    Image.fromarray(pixels.astype('uint8')).save(path, **options)


def pictures_of(page):
    """Return the pictures that stand in a page."""
    found = []
    for attrs in page.all('img'):
        kind, content = attrs['src'].split(';base64,')
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert kind == f'data:image/{image.format.lower()}'
        image.load()
        found.append(image)
    return found


def commands_of(page, section):
    """Return the words of the commands of a run."""
    text = page.sections[section]
    return [
        shlex.split(line)
        for line in re.findall(r'^(?:python|bash) .*', text, re.M)
    ]


# ------------------------------------------------------------------- content


def test_what_a_page_says(make, report, settings, capsys):
    first = make('a', log_of(1, 3, lambda e: 10.0 * e, 0.25), config='cat.py')
    second = make(
        'b', log_of(1, 12, lambda e: 90.0 - abs(e - 10), 0.5), config='dog.py',
        stamp='20270203_040506',
    )  # fmt: skip
    third = make('c', log_of(1, 1), config='emu.py', text='model = None\n')
    page = report(first, second, third, '--title', 'Pets & more')
    assert page.texts['title'] == ['Pets & more'] == page.texts['h1']
    heads = [text for text, _ in page.table[0]]
    assert heads == [
        'run', 'accuracy/top1', 'best at', 'parameters, M', 'FLOPs, G',
        's/iteration', 'begun',
    ]  # fmt: skip
    assert page.column('run') == [
        (name, name) for name in ('cat', 'dog', 'emu')
    ]
    assert page.column('accuracy/top1') == [
        ('30.00', '30.0'), ('90.00', '90.0'), ('', None)
    ]  # fmt: skip
    assert page.column('best at') == [
        ('epoch 3', '3'), ('epoch 10', '10'), ('', None)
    ]  # fmt: skip
    assert [float(v) for _, v in page.column('s/iteration')] == [
        0.25,
        0.5,
        0.5,
    ]
    assert page.column('begun')[1][0] == '2027-02-03 04:05'
    cost = count(build_model(Config.fromstring(settings, '.py')))
    for title, own in (
        ('parameters, M', cost.params),
        ('FLOPs, G', cost.flops),
    ):
        one, two, none = page.column(title)
        assert one == two and one[1] == str(own) and none == ('', None)
    assert page.column('parameters, M')[0][0] == f'{cost.params / 1e6:.2f}'
    best = [
        attrs for _, attrs in page.table[2] if 'best' in attrs.get('class', '')
    ]
    assert [attrs['data-value'] for attrs in best] == ['90.0']
    told = page.sections['run-1']
    assert '    sys.platform: amiga' in told.replace('\n', '\n    ')
    assert 'seed: 0' in told and settings in told and 'begun\n' not in told
    assert f'224 x 224 pixels: {cost.flops:,}' in told
    assert 'the config has no model to count' in page.sections['run-3']
    assert 'emu: parameters and FLOPs were not' in capsys.readouterr().out


def test_the_page_is_complete_in_itself(make, report):
    folder = make('a', log_of(1, 2, lambda e: e))
    draw_picture(folder / 'pictures' / 'x.png', 20, 10)
    page = report(folder)
    assert not page.all('link') and len(page.all('script')) == 1
    for tag, attrs in page.tags:
        assert not any(name.startswith('on') for name in attrs)
        for name in ('src', 'href', 'xlink:href', 'srcset', 'data', 'action'):
            if value := attrs.get(name):
                assert value.startswith(('#', 'data:')), (tag, value)
    assert not re.search(r'url\((?!#)|@import|https?:', page.texts['style'][0])
    targets = {attrs.get('id') for _, attrs in page.tags}
    for attrs in page.all('a'):
        assert attrs['href'][1:] in targets
    (policy,) = [
        attrs['content'] for attrs in page.all('meta') if 'http-equiv' in attrs
    ]
    digest = hashlib.sha256(page.texts['script'][0].encode()).digest()
    assert f"'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert page.tags[0] == ('html', {'lang': 'en'})
    for text, attrs in page.table[0]:
        assert attrs['scope'] == 'col' and text
    assert len(page.all('button')) == len(page.table[0])


def test_curves_are_in_the_page(make, report):
    runs = [
        make('a', log_of(1, 3, lambda e: e)),
        make('b', log_of(1, 2), config='dog.py'),
    ]
    page = report(*runs, '--legend', 'one <b>', 'two', '--keys', 'loss', 'lr')
    (label,) = [attrs['aria-label'] for attrs in page.all('svg')]
    assert label == 'Curves of loss, lr'
    texts = [text.strip() for text in page.texts['text']]
    assert texts.count('loss') == 1 and texts.count('lr') == 1
    assert 'one <b>' in texts and 'two' in texts and 'iteration' in texts
    drawn = [attrs for attrs in page.all('path') if 'style' in attrs]
    assert not any('#000000' in attrs['style'] for attrs in drawn)
    assert any('stroke: currentColor' in attrs['style'] for attrs in drawn)


def test_pictures(make, report, tmp_path, capsys):
    one = make('a', log_of(1, 1))
    two = make('b', log_of(1, 1), config='dog=1.py')
    draw_picture(one / 'pictures' / 'large.png', 1500, 700)
    draw_picture(one / 'pictures' / 'small.jpg', 31, 17)
    (one / 'pictures' / 'zero.png').write_bytes(b'nothing')
    draw_picture(one / 'top.png', 3, 3)  # of a user, such as curves
    for number in range(5):
        draw_picture(tmp_path / 'x=y' / f'{number}.png', 4 + number, 4)
    pictures = f'dog=1={tmp_path}/x=y'
    page = report(one, two, '--pictures', pictures, '--show-limit', 3)
    sizes = [image.size for image in pictures_of(page)]
    assert sizes == [(640, 299), (31, 17), (4, 4), (5, 4), (6, 4)]
    captions = ['large.png', 'small.jpg', '0.png', '1.png', '2.png']
    assert page.texts['figcaption'] == captions
    assert page.all('img')[0]['alt'] == 'Result of cat for large.png'
    # A small one is not written anew.
    small = base64.b64encode((one / 'pictures/small.jpg').read_bytes())
    assert page.all('img')[1]['src'].endswith(small.decode())
    assert 'zero.png is no picture' in page.sections['run-1']
    assert 'zero.png is no picture' in capsys.readouterr().out
    assert not report(one, '--show-limit', 0).all('img')


def test_a_file_alone_makes_a_page_too(make, report, tmp_path):
    folder = make('a', log_of(1, 2, lambda e: e))
    file = tmp_path / 'moved.json'
    (log,) = folder.glob('*/vis_data/scalars.json')
    shutil.copy(log, file)
    page = report(file)
    assert page.column('accuracy/top1') == [('2.00', '2.0')]
    assert 'the config was not read: no config' in page.sections['run-1']
    assert not commands_of(page, 'run-1') and not page.all('details')
    assert page.column('begun') == [('', '')]
    # In its work_dir it has all that the work_dir has.
    page = report(log)
    assert len(page.all('details')) == 2 and page.column('run')[0][0] == 'cat'
    assert len(commands_of(page, 'run-1')) == 1


def test_a_config_that_cannot_be_read(make, report):
    imports = "custom_imports = dict(imports=['no_such_module'])\n"
    folder = make('a', log_of(1, 1), text=imports)
    page = report(folder)
    told = page.sections['run-1']
    assert re.search('config was not read: .*no_such_module', told)
    assert imports in told
    assert 'parameters, M' not in [text for text, _ in page.table[0]]


# ------------------------------------------------------------------ commands


def test_commands_of_a_run(make, report):
    folder = make('my run', log_of(1, 1))
    (folder / 'epoch_3.pth').touch()
    (folder / 'last_checkpoint').write_text('/elsewhere/my run/epoch_3.pth')
    config, test = str(folder / 'cat.py'), str(folder / 'test')
    train = [
        'python',
        'tools/train.py',
        config,
        '--work-dir',
        f'{folder}-again',
    ]
    tested = [str(folder / 'epoch_3.pth'), '--work-dir', test]
    assert commands_of(report(folder), 'run-1') == [
        train, ['python', 'tools/test.py', config, *tested]
    ]  # fmt: skip
    # The best one is preferred, and what a test has left is not trusted.
    (folder / 'best_coco_bbox_mAP_epoch_2.pth').touch()
    (folder / 'cat.py').write_text('load_from = "epoch_3.pth"\n')
    train, test = commands_of(report(folder), 'run-1')
    used = folder / '20260102_030405' / 'vis_data' / 'config.py'
    for words in (train, test):
        assert Path(words[2]).resolve() == used.resolve()
    assert test[3] == str(folder / 'best_coco_bbox_mAP_epoch_2.pth')


def test_what_a_resumed_run_began_with_is_restored(make, report):
    options = dict(randomness=dict(seed=None))
    make('a', log_of(1, 1), load_from='start.pth', seed=77, **options)
    folder = make(
        'a', log_of(2, 2), '20260102_030406', resume=True, load_from=None,
        seed=88, **options,
    )  # fmt: skip
    (train,) = commands_of(report(folder), 'run-1')
    assert train[5:] == [
        '--cfg-options', 'resume=False', 'load_from=start.pth',
        'randomness.seed=77',
    ]  # fmt: skip


def test_a_distributed_run(make, report):
    folder = make('a', log_of(1, 1))
    for config in folder.rglob('*.py'):
        config.write_text(f"{config.read_text()}\nlauncher = 'pytorch'\n")
    (train,) = commands_of(report(folder), 'run-1')
    assert train[:2] == ['bash', 'tools/dist_train.sh'] and train[3] == '4'


# ---------------------------------------------------------------- a real run


def test_a_trained_run_is_repeated_by_its_commands(
    trained, report, load_tool, run_tool, short, digits, tmp_path, monkeypatch
):
    checkpoint = trained(RESNET)
    monkeypatch.chdir(digits)
    work_dir = tmp_path / RESNET
    shutil.copytree(checkpoint.parent, work_dir)
    page = report(work_dir)
    # The newest, as other tests train the same.
    log = max(work_dir.glob('2*/2*.log')).read_text()
    told = re.search(r'accuracy/top1: ([\d.]+)', log)[1]
    ((text, value),) = page.column('accuracy/top1')
    assert float(value) == pytest.approx(float(told), abs=1e-3)
    platform = re.search(r'PyTorch: .*', log)[0]
    assert platform in page.sections['run-1']

    train, test = commands_of(page, 'run-1')
    original = ROOT / 'configs' / 'demo' / f'{RESNET}.py'
    tool = load_tool('train.py')
    wanted = load_config(
        tool.parse_args([str(original), '--cfg-options', *short])
    )
    found = load_config(tool.parse_args(train[2:]))
    assert found.pop('work_dir') == f'{work_dir}-again'
    wanted.pop('work_dir')
    assert found.to_dict() == wanted.to_dict()
    assert test[1] == 'tools/test.py'
    run_tool('test.py', *test[2:])
    (result,) = (work_dir / 'test').glob('*/*.json')
    score = json.loads(result.read_text())['accuracy/top1']
    assert score == pytest.approx(float(value))


# ------------------------------------------------------------------- hostile


HOSTILE = """<img src=x onerror=alert(1)>"'&amp;$<"""


def test_texts_are_not_markup(make, report):
    escape = '</pre></script><script>alert(1)</script>'
    folder = make(
        'a', log_of(1, 1, lambda e: 1), config=f'{HOSTILE}.py', seed=escape,
        evil=escape,
    )  # fmt: skip
    for record in folder.glob('*/vis_data/scalars.json'):
        extra = {'<i>loss</i>': 1.0, 'iter': 3, 'step': 3}
        record.write_text(f'{record.read_text()}{json.dumps(extra)}\n')
    draw_picture(folder / 'pictures' / f'{HOSTILE}.png', 3, 3)
    (folder / 'last_checkpoint').write_text('"<b>.pth')
    (folder / '"<b>.pth').touch()
    page = report(folder, '--title', HOSTILE, '--keys', '*')
    assert page.texts['title'] == [HOSTILE] == page.texts['h1']
    assert page.column('run') == [(HOSTILE, HOSTILE)]
    assert page.texts['figcaption'] == [f'{HOSTILE}.png']
    assert page.all('img')[0]['alt'].endswith(f'for {HOSTILE}.png')
    assert len(page.all('img')) == 1 and len(page.all('script')) == 1
    assert not page.all('b') and not page.all('i')
    assert page.sections['run-1'].count(escape) >= 2
    texts = [text.strip() for text in page.texts['text']]
    assert HOSTILE in texts and '<i>loss</i>' in texts
    train, test = commands_of(page, 'run-1')
    assert train[2] == str(folder / f'{HOSTILE}.py')
    assert test[3] == str(folder / '"<b>.pth')


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope='module')
def browser():
    """Headless Chromium, if there is one."""
    playwright = pytest.importorskip('playwright.sync_api')
    with playwright.sync_playwright() as running:
        names = ('chromium', 'chromium-browser', 'google-chrome')
        paths = [running.chromium.executable_path, *map(shutil.which, names)]
        path = next((p for p in paths if p and os.path.exists(p)), None)
        if path is None:
            pytest.skip('no Chromium, neither of playwright nor on PATH')
        chromium = running.chromium.launch(
            executable_path=path, args=['--no-sandbox']
        )
        yield chromium
        chromium.close()


@pytest.fixture
def opened(make, report, browser, tmp_path):
    """The page of four runs in the browser, and what goes wrong there."""
    folders = [
        make('b', log_of(1, 9), config='Run9.py'),
        make('a', log_of(1, 2, lambda e: 9.5, 10.0), config='run10.py'),
        make('c', log_of(1, 12, lambda e: 100.0 - e, 9.0), config='zoo.py'),
        make('d', log_of(1, 11, lambda e: 1.0 * e, 0.25), config='ant.py'),
    ]
    draw_picture(folders[2] / 'pictures' / 'x.png', 700, 20)
    draw_picture(folders[3] / 'pictures' / 'y.jpg', 50, 20)
    report(*folders)
    wrong = []
    page = browser.new_page()
    page.on('console', lambda message: wrong.append(message.text))
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.on('request', lambda request: wrong.append(request.url))
    page.goto(f'file://{tmp_path / "report.html"}')
    yield page, wrong
    page.close()


NAMES = ['Run9', 'run10', 'zoo', 'ant']
ORDERS = {
    'run': (['ant', 'Run9', 'run10', 'zoo'], ['zoo', 'run10', 'Run9', 'ant']),
    # The best first, and a run without a score always last.
    'accuracy/top1': (
        ['zoo', 'ant', 'run10', 'Run9'],
        ['run10', 'ant', 'zoo', 'Run9'],
    ),
    'best at': (
        ['run10', 'zoo', 'ant', 'Run9'],
        ['ant', 'run10', 'zoo', 'Run9'],
    ),
    's/iteration': (
        ['ant', 'Run9', 'zoo', 'run10'],
        ['run10', 'zoo', 'Run9', 'ant'],
    ),
}


def test_the_table_sorts(opened):
    page, wrong = opened

    def names():
        return page.locator('tbody th').all_inner_texts()

    assert names() == NAMES
    assert page.locator('th[aria-sort]').count() == 0
    for title, orders in ORDERS.items():
        head = page.locator('thead th', has_text=title)
        for number, order in enumerate(orders):
            head.locator('button').click()
            assert names() == order, (title, number)
            falls = number == (title != 'accuracy/top1')
            assert head.get_attribute('aria-sort') == (
                'descending' if falls else 'ascending'
            )
            assert page.locator('th[aria-sort]').count() == 1
    # By the keyboard as well.
    page.locator('thead button').first.focus()
    page.keyboard.press('Enter')
    assert names() == ORDERS['run'][0]
    assert [
        url for url in wrong if not url.startswith(('file:', 'data:'))
    ] == []


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_the_page_shows(opened, scheme):
    page, wrong = opened
    page.emulate_media(color_scheme=scheme)
    widths = page.evaluate('[...document.images].map(i => i.naturalWidth)')
    assert widths == [640, 50]
    # Text, and the text of the curves, against the page.
    style = "getComputedStyle(document.querySelector('{}')).{}"
    back = page.evaluate(style.format('body', 'backgroundColor'))
    for where, what in (('body', 'color'), ('svg text', 'fill')):
        ink = page.evaluate(style.format(where, what))
        light, dark = [
            sum(map(int, re.findall(r'\d+', color)[:3]))
            for color in ((back, ink) if scheme == 'light' else (ink, back))
        ]
        assert light - dark > 400, (where, back, ink)
    details = page.locator('details').first
    assert not details.locator('pre').is_visible()
    details.locator('summary').click()
    assert details.locator('pre').is_visible()
    page.set_viewport_size({'width': 400, 'height': 800})
    wide = 'document.documentElement.scrollWidth'
    assert page.evaluate(wide) <= 400
    assert [
        url for url in wrong if not url.startswith(('file:', 'data:'))
    ] == []


# ----------------------------------------------------------------- bad input


BAD = {
    'no run': (['nowhere'], 'no run nowhere'),
    'no log': (['{tmp}'], 'no run in it'),
    'name': (['{run}', '--pictures', 'dog=x'], 'NAME=FOLDER with one of the '
             'names cat'),
    'no picture': (['{run}', '--pictures', 'cat={tmp}'], 'no PNG or JPEG'),
    'no pictures': (['{run}', '--pictures', 'cat=gone'], 'no PNG or JPEG'),
    'limit': (['{run}', '--show-limit', '-1'], '--show-limit -1'),
    'shape': (['{run}', '--shape', '1', '2', '3'], '--shape 1 2 3'),
    'key': (['{run}', '--keys', 'los'], '--keys los: no run has it'),
    'smooth': (['{run}', '--smooth', '0'], '--smooth 0'),
    'folder': (['{run}', '--out', 'gone/x.html'], '--out gone/x.html'),
    'suffix': (['{run}', '--out', 'x.png'], '--out x.png: must be a file'),
}  # fmt: skip


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line(case, make, run_tool, tmp_path, monkeypatch):
    run = make('run', log_of(1, 1))
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    words, wanted = BAD[case]
    words = [w.replace('{tmp}', str(tmp_path)) for w in words]
    words = [w.replace('{run}', str(run)) for w in words]
    with pytest.raises(SystemExit) as error:
        run_tool(TOOL, *words)
    message = error.value.code
    assert message.startswith('error: ') and '\n' not in message.strip()
    assert wanted in message
    assert not list(Path().iterdir())
