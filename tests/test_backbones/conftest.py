# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
import pytest
import torch
from mmengine.logging import MMLogger


@pytest.fixture
def image():
    return torch.randn(2, 3, 64, 64)


@pytest.fixture
def warned(caplog):
    """Return mmattn's warnings so far."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield lambda: [
        record.getMessage()
        for record in caplog.records
        if record.levelname == 'WARNING' and 'plugin' in record.getMessage()
    ]
    logger.removeHandler(caplog.handler)
