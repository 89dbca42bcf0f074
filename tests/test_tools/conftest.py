# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import sys

import pytest


@pytest.fixture(scope='session')
def digits(load_tool, tmp_path_factory):
    """A folder whose data/digits is a miniature of the demo data."""
    root = tmp_path_factory.mktemp('workspace')
    load_tool('dataset_converters/digits.py').make_digits(
        root / 'data' / 'digits', train=8, val=4, cls_train=2, cls_val=1
    )
    return root


@pytest.fixture
def run_tool(load_tool, monkeypatch):
    """Run a script of tools/ in this process with a command line."""

    def run(path, *words):
        monkeypatch.setattr(sys, 'argv', [path, *map(str, words)])
        load_tool(path).main()

    return run
