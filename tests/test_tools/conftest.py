# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import pytest


@pytest.fixture(scope='session')
def digits(load_tool, tmp_path_factory):
    """A folder whose data/digits is a miniature of the demo data."""
    root = tmp_path_factory.mktemp('workspace')
    load_tool('dataset_converters/digits.py').make_digits(
        root / 'data' / 'digits', train=8, val=4, cls_train=2, cls_val=1
    )
    return root
