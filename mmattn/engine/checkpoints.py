# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""Checkpoints that are whole or not there, and the newest whole one."""

import contextlib
import logging
import os
import zipfile
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log

#: Name of what is saved when a run is preempted.
PREEMPTED = 'preempted.pth'


@register_backend('mmattn_atomic')
class AtomicBackend(LocalBackend):
    """Files that are replaced in one move, and removed late.

    Who reads a file meets the old one or the new one, never a part; a full
    disk or a killed process leaves the old one. mmengine removes a checkpoint
    before it saves the next: here `remove` only notes the file, until
    :meth:`clear` is called.
    """

    def __init__(self) -> None:
        #: By path, which file was meant: the path may be written again.
        self.removed: dict[str, int] = {}

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file that is on the disk when this returns.

        Raises:
            OSError: It cannot be written; what was there still is.
        """
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + '.part')
        try:
            with open(part, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error
        _sync_folder(path.parent)

    def remove(self, filepath: str | Path) -> None:
        """Note a file for removal."""
        self.removed[str(filepath)] = os.stat(filepath).st_ino

    def clear(self) -> None:
        """Remove what was noted, unless it was replaced since."""
        for path, inode in self.removed.items():
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        self.removed.clear()


def _sync_folder(folder: Path) -> None:
    # Not every file system can.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def find_fault(path: str | Path) -> str:
    """Say what is wrong with a checkpoint; empty if it is whole.

    Every byte is compared with the checksums that torch has written, which
    its own reader does not look at.
    """
    try:
        with zipfile.ZipFile(path) as file:
            part = file.testzip()
    except Exception as error:  # damaged headers fail in any way
        return f'{type(error).__name__}: {error}'
    return f'its part {part} is damaged' if part else ''


def newest_checkpoint(folder: str | Path) -> str | None:
    """Find the checkpoint to resume a run from.

    Args:
        folder: The run's folder.

    Returns:
        Path of the one written last among the whole ones, and None if there
        is none. A damaged one is passed over with a warning.
    """
    names = ('epoch_*.pth', 'iter_*.pth', PREEMPTED)
    found = [path for name in names for path in Path(folder).glob(name)]
    for path in sorted(found, key=os.path.getmtime, reverse=True):
        fault = find_fault(path)
        if not fault:
            return str(path)
        print_log(
            f'{path} is damaged and not used: {fault}',
            logger='current',
            level=logging.WARNING,
        )
    return None
