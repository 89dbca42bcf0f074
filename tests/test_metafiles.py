# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What the READMEs and metafiles of the configs say is true and complete."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import modelindex
import pytest
import yaml
from mmengine.analysis import parameter_count
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.apis.model import ModelHub

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
FOLDERS = sorted(
    path.name
    for path in CONFIGS.iterdir()
    if path.is_dir() and path.name != '_base_'
)
WITHOUT_PAPER = {'none', 'demo', 'study'}
MARKS = '<!-- configs -->', '<!-- end of configs -->'


def configs_of(folder):
    paths = (CONFIGS / folder).rglob('*.py')
    return sorted(f'configs/{path.relative_to(CONFIGS)}' for path in paths)


def models_of(folder):
    text = (CONFIGS / folder / 'metafile.yml').read_text()
    return yaml.safe_load(text)['Models']


def rows_of(folder):
    """Return the rows of a README's table, as dicts by its heads."""
    text = (CONFIGS / folder / 'README.md').read_text()
    text = text.split(MARKS[0])[1].split(MARKS[1])[0]
    lines = [line for line in text.splitlines() if line.startswith('|')]
    head, _, *rows = ([c.strip() for c in r[1:-1].split('|')] for r in lines)
    assert all(len(row) == len(head) for row in rows)
    return [dict(zip(head, row)) for row in rows]


def config_of(row, folder):
    """Return the config that a row links to, by the name that it shows."""
    name, link = re.fullmatch(r'\[(.+)\]\((.+)\)', row['config']).groups()
    assert Path(link).stem == name
    return f'configs/{folder}/{link}'


def numbers(text):
    return Counter(float(n) for n in re.findall(r'\d+\.\d+', text))


def test_all_files_are_current():
    command = [sys.executable, ROOT / 'tools/update_metafiles.py', '--check']
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('folder', FOLDERS)
def test_every_config_is_in_its_metafile_and_readme_once(folder):
    want = configs_of(folder)
    models = models_of(folder)
    assert sorted(model['Config'] for model in models) == want
    assert sorted(config_of(row, folder) for row in rows_of(folder)) == want
    for model in models:
        assert model['Name'] == Path(model['Config']).stem


@pytest.mark.parametrize('folder', FOLDERS)
def test_rows_say_what_the_metafile_says(folder):
    models = {model['Config']: model for model in models_of(folder)}
    for row in rows_of(folder):
        model = models[config_of(row, folder)]
        data = model['Metadata']
        assert row['parameters'] == f'{data["Parameters"] / 1e6:.2f}M'
        length = data.get('Epochs', data.get('Iterations', 0) // 1000)
        assert re.match(rf'{length}( epochs|k iterations)\b', row['schedule'])
        assert {r['Dataset'] for r in model['Results']} == {row['data set']}
        metrics = [r.get('Metrics', {}) for r in model['Results']]
        want = [str(v) for each in metrics for v in each.values()]
        assert re.findall(r'\d+\.\d+', row['measured']) == want


@pytest.fixture(scope='module')
def index():
    return modelindex.load(str(ROOT / 'model-index.yml'))


def test_the_index_imports_every_metafile_in_order():
    imported = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert imported == [f'configs/{name}/metafile.yml' for name in FOLDERS]


def test_the_index_finds_every_config_by_a_name_of_its_own(index):
    names = [model.name for model in index.models]
    assert len(set(names)) == len(names)
    assert sorted(model.config for model in index.models) == sorted(
        config for folder in FOLDERS for config in configs_of(folder)
    )
    # mim asks in lower case, and iterates over the results of every model.
    assert names == [name.lower() for name in names]
    for model in index.models:
        assert all(result.task and result.dataset for result in model.results)


def test_the_index_has_no_other_errors_than_all_openmmlab_indices(index):
    # A README counts from the root, and a result may have no metrics yet.
    usual = r'.*(README file configs/\w+/README.md is not a valid file\.|'
    usual += r"Field 'Metrics' is missing)"
    errors = index.check(silent=True)
    assert [e for e in errors if not re.fullmatch(usual, e)] == []


def test_collections_name_their_readme_paper_and_code(index):
    assert len(index.collections) == len(FOLDERS)
    for name, entry in zip(FOLDERS, index.collections):
        assert entry.readme == f'configs/{name}/README.md'
        title = (ROOT / entry.readme).read_text().splitlines()[0]
        assert title == f'# {entry.name}'
        if name in WITHOUT_PAPER:
            assert entry.paper is None
            continue
        assert entry.paper['Title']
        # The GSCA paper is anonymous and has no address.
        assert ('URL' in entry.paper) == (name != 'gsca')
        source = (ROOT / entry.code['URL']).read_text()
        assert entry.paper.get('URL', 'GSCA') in source


def test_mmpretrain_reads_the_index(monkeypatch):
    monkeypatch.setattr(ModelHub, '_models_dict', {})
    ModelHub.register_model_index(ROOT / 'model-index.yml', ROOT)
    models = ModelHub._models_dict
    assert len(models) == sum(len(configs_of(name)) for name in FOLDERS)
    assert all(Path(model.config).is_file() for model in models.values())


# Known from torchvision, whose ResNets have the same parameters.
@pytest.mark.parametrize(
    ('depth', 'size'), [(50, 25557032), (101, 44549160), (152, 60192808)]
)
def test_sizes_of_the_resnets_are_known(depth, size):
    name = f'resnet{depth}-none_4xb64-coslr-lbs_in1k'
    sizes = {m['Name']: m['Metadata']['Parameters'] for m in models_of('none')}
    assert sizes[name] == size


@pytest.mark.parametrize(
    ('config', 'tasks'),
    [
        ('demo/resnet18-scsa_30e_digits', 'Image Classification'),
        (
            'demo/mask-rcnn_r18-scsa_fpn_15e_digits',
            'Object Detection, Instance Segmentation',
        ),
        ('demo/upernet_r18-scsa_15e_digits', 'Semantic Segmentation'),
        ('se/retinanet_r50-se_fpn_1x_coco', 'Object Detection'),
        (
            'gsca/upernet_r50-gsca_4xb4-80k_ade20k-512x512',
            'Semantic Segmentation',
        ),
        (
            'gsca/mobilenet-v2-gsca_4xb64-coslr-lbs_in1k',
            'Image Classification',
        ),
    ],
)
def test_metadata_is_that_of_the_built_model(config, tasks):
    cfg = Config.fromfile(CONFIGS / f'{config}.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    folder, name = config.split('/')
    (entry,) = (m for m in models_of(folder) if m['Name'] == name)
    data = entry['Metadata']
    assert data['Parameters'] == parameter_count(model)['']
    assert data.get('Epochs') == cfg.train_cfg.get('max_epochs')
    assert data.get('Iterations') == cfg.train_cfg.get('max_iters')
    assert [r['Task'] for r in entry['Results']] == tasks.split(', ')


def test_measured_are_the_scores_of_the_main_readme_and_no_others():
    text = (ROOT / 'README.md').read_text()
    rows = re.findall(r'^\| `(\w\S+digits)` \| (.+?) \|', text, flags=re.M)
    want = {name: numbers(scores) for name, scores in rows}
    assert len(want) == len(configs_of('demo'))
    found = {
        model['Name']: sum(
            (Counter(r['Metrics'].values()) for r in model['Results']),
            Counter(),
        )
        for folder in FOLDERS
        if folder != 'study'  # has runs of its own
        for model in models_of(folder)
        if any('Metrics' in result for result in model['Results'])
    }
    assert found == want


def test_all_other_scores_are_a_papers_and_say_so():
    tables = yaml.safe_load((CONFIGS / 'paper-tables.yml').read_text())
    shown = {'gsca': {}, 'scsa': {}}
    for folder in FOLDERS:
        for row in rows_of(folder):
            config = config_of(row, folder).removeprefix('configs/')
            for paper, found in shown.items():
                cell = row.pop(f"{paper.upper()} paper's", '')
                for score, where in re.findall(r'([^,]+?) \((.+?)\)', cell):
                    for table in re.findall(r'\d+', where):
                        found.setdefault((config, int(table)), set()).add(
                            score.strip()
                        )
            assert list(row) == [
                'config', 'data set', 'schedule', 'parameters', 'measured',
            ]  # fmt: skip
    for paper, found in shown.items():
        want = {}
        for table, rows in tables[paper].items():
            for row in rows:
                scores = want.setdefault((row['config'], table), set())
                if 'top1' in row:
                    scores.add(f'top-1 {row["top1"]:.2f}')
                elif 'miou' in row:
                    scores.add(f'mIoU {row["miou"]:.2f}')
                else:
                    masks = (paper, table) in {('gsca', 7), ('scsa', 6)}
                    kind = 'mask' if masks else 'box'
                    scores.add(f'{kind} AP {row["ap"]:.1f}')
        assert found == want


@pytest.mark.parametrize('folder', FOLDERS)
def test_readme_has_the_usual_parts(folder):
    text = (CONFIGS / folder / 'README.md').read_text()
    heads = re.findall(r'^## (.+)$', text, flags=re.M)
    parts = ['Abstract', 'Results and models', 'Training', 'Citation']
    assert heads == parts
    assert text.count('<!-- [ALGORITHM] -->') == 1
    abstract = text.split('## Abstract\n')[1].split('##')[0].strip()
    assert 2 <= len(re.findall(r'\.(?=\s|$)', abstract)) <= 4
    commands = re.findall(r'tools/\S+ (configs/\S+)', text)
    assert commands and {*commands} <= {*configs_of(folder)}
    if folder not in WITHOUT_PAPER:
        assert text.count('```bibtex\n@') == 1


@pytest.mark.parametrize('folder', FOLDERS)
def test_links_lead_to_files(folder):
    text = (CONFIGS / folder / 'README.md').read_text()
    links = re.findall(r'\]\((?!https://)(\S+?)\)', text)
    assert links
    for link in links:
        assert (CONFIGS / folder / link).is_file(), link


README = '# A\n\n> [T](u)\n\n<!-- configs -->\n\n<!-- end of configs -->\n'


@pytest.fixture
def project(tmp_path, load_tool, monkeypatch):
    """A project of one config; returns its folder and a run of the tool."""
    tool = load_tool('update_metafiles.py')
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    folder = tmp_path / 'configs' / 'a'
    folder.mkdir(parents=True)
    base = CONFIGS / 'demo/resnet18-none_30e_digits.py'
    (folder / 'resnet18-a_digits.py').write_text(f"_base_ = '{base}'\n")
    (folder / 'README.md').write_text(README)
    tables = '{gsca: {8: [{config: a/resnet18-a_digits.py, row: 1, '
    tables += 'turned: 90, top1: 70.5}]}}'
    (tmp_path / 'configs/paper-tables.yml').write_text(tables)

    def run(*words):
        monkeypatch.setattr(sys, 'argv', ['update_metafiles.py', *words])
        tool.main()

    return folder, run


def stop(run, *words):
    """Run the tool, which has to end with one line; return that line."""
    with pytest.raises(SystemExit) as error:
        run(*words)
    assert error.value.code.startswith('error: ')
    assert '\n' not in error.value.code
    return error.value.code


def test_first_run_writes_all_and_a_second_nothing(project):
    folder, run = project
    assert 'resnet18-a_digits.py is not in' in stop(run, '--check')
    run()
    assert '| 30 epochs | 1.58M |' in (folder / 'README.md').read_text()
    files = [folder / 'README.md', folder / 'metafile.yml']
    files.append(folder.parents[1] / 'model-index.yml')
    before = [path.stat().st_mtime_ns for path in files]
    run()
    run('--check')
    assert [path.stat().st_mtime_ns for path in files] == before
    assert not list(folder.parents[1].rglob('*.new'))


def test_a_score_under_a_condition_shows_the_condition(project):
    folder, run = project
    run()
    text = (folder / 'README.md').read_text()
    assert '| top-1 70.50 at turned 90 (table 8) |' in text


def test_what_is_added_by_hand_stays_and_is_shown(project):
    folder, run = project
    run()
    path = folder / 'metafile.yml'
    metafile = yaml.safe_load(path.read_text())
    (model,) = metafile['Models']
    model['Results'][0]['Metrics'] = {'Top 1 Accuracy': 12.5}
    model['Weights'] = 'https://example.org/a.pth'
    path.write_text(yaml.safe_dump(metafile))
    assert 'README.md' in stop(run, '--check')
    run()
    assert yaml.safe_load(path.read_text()) == metafile
    assert '| Top 1 Accuracy 12.5 |' in (folder / 'README.md').read_text()


def test_changes_are_noticed(project):
    folder, run = project
    run()
    readme, metafile = folder / 'README.md', folder / 'metafile.yml'
    for path, old, new in [
        (readme, '1.58M', '1.60M'),
        (readme, '70.50', '80.50'),
        (metafile, 'Collections:\n- Name: A', 'Collections:\n- Name: B'),
    ]:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        assert path.name in stop(run, '--check')
        path.write_text(text)
    run('--check')
    (folder / 'resnet18-a_digits.py').unlink()
    assert 'metafile.yml' in stop(run, '--check')


def test_bad_input_is_one_line_and_changes_nothing(project):
    folder, run = project
    run()
    before = (folder / 'metafile.yml').read_text()
    config = folder / 'resnet18-a_digits.py'
    config.rename(folder / 'resnet18-a_moon.py')
    message = stop(run)
    assert "resnet18-a_moon.py: its name ends with 'moon'" in message
    assert 'in1k' in message and 'DATASETS' in message
    (folder / 'resnet18-a_moon.py').rename(config)
    (folder / 'README.md').write_text('# A\n')
    assert 'configs/a/README.md: must' in stop(run)
    (folder / 'README.md').unlink()
    assert 'configs/a/README.md: must' in stop(run)
    assert (folder / 'metafile.yml').read_text() == before
