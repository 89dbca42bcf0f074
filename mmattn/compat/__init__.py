# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What makes one mmattn run on many versions of the frameworks.

The only code of the package that knows about versions, forks and missing
compiled ops. It imports none of mmcv, mmdet, mmseg and mmpretrain.
"""

from contextlib import suppress

from . import checkpoint, finder, scopes

__all__ = ['setup']


def setup() -> None:
    """Prepare the process; called once, when mmattn is imported.

    Serves `mmcv._ext` where no compiled one exists, lets `torch.load` read
    mmengine's checkpoints, and completes the scopes of config bases. Calling
    it again changes nothing. It never fails on a package that is absent or
    broken: `import mmattn` must work where there is something to diagnose,
    and whoever needs the package meets the error when importing it.
    """
    finder.install()
    for adapt in (checkpoint.allow_checkpoint_types, scopes.complete_scopes):
        # Anything: half-installed packages raise what they like.
        with suppress(Exception):
            adapt()
