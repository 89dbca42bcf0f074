# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""The files that a converter reads, of folders and archives, as one tree."""

import io
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

JUNK = re.compile(r'(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$)')
UNSUPPORTED_ARCHIVES = ('.tgz', '.gz', '.bz2', '.xz', '.7z', '.rar')
ORIENTATION = 0x0112  # EXIF tag


class ConversionError(Exception):
    """The conversion cannot go on; the message says why, in one line."""


class Member(NamedTuple):
    """A file of a folder or of an archive."""

    size: int  # bytes
    read: Callable[[], bytes]
    path: Path | None  # on disk, None in an archive


class Tree:
    """The files of folders and archives, by name.

    A name is that of its source, an archive's without the suffix, and the
    path inside, joined by ``/``. Archives directly in a folder are opened
    too. What macOS and Windows leave in archives is skipped.

    Args:
        sources: Folders, ``.zip`` and ``.tar`` archives, and single files.

    Raises:
        ConversionError: A source does not exist or cannot be read.
    """

    def __init__(self, sources: Iterable[str | os.PathLike]) -> None:
        self.members: dict[str, Member] = {}
        self._opened: list[io.BufferedReader] = []  # as long as the tree
        for source in sources:
            path = Path(source).resolve()
            if path.is_dir():
                self._add_folder(path)
            elif path.is_file():
                self._add_file(path, path.name)
            else:
                raise ConversionError(f'{source}: does not exist')

    def _add_folder(self, root: Path) -> None:
        for folder, subfolders, names in os.walk(root, followlinks=True):
            subfolders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                inside = Path(root.name, path.relative_to(root)).as_posix()
                if path.parent == root and path.suffix in ('.zip', '.tar'):
                    self._add_file(path, inside)
                elif not JUNK.search(inside):
                    self._add_member(inside, path)

    def _add_file(self, path: Path, name: str) -> None:
        if path.suffix == '.zip':
            self._add_zip(path)
        elif path.suffix == '.tar':
            self._add_tar(path)
        elif path.suffix in UNSUPPORTED_ARCHIVES:
            raise ConversionError(
                f'{path}: only .zip and .tar are read as they are; unpack it'
            )
        else:
            self._add_member(name, path)

    def _add_member(self, name: str, path: Path) -> None:
        if path.is_file():  # no dangling link
            size = path.stat().st_size
            self.members[name] = Member(size, path.read_bytes, path)

    def _add_zip(self, path: Path) -> None:
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ConversionError(f'{path}: {error}; load it anew') from error
        for info in archive.infolist():
            name = f'{path.stem}/{info.filename}'
            if not info.is_dir() and not JUNK.search(name):
                read = partial(read_zipped, archive, info)
                self.members[name] = Member(info.file_size, read, None)

    def _add_tar(self, path: Path) -> None:
        try:
            with tarfile.open(path, 'r:') as archive:
                infos = [info for info in archive if info.isfile()]
        except tarfile.TarError as error:
            raise ConversionError(f'{path}: {error}; load it anew') from error
        file = path.open('rb')
        self._opened.append(file)
        for info in infos:
            name = f'{path.stem}/{info.name.removeprefix("./")}'
            if not JUNK.search(name):
                # Reads at a place of its own, so threads can share the file.
                read = partial(
                    os.pread, file.fileno(), info.size, info.offset_data
                )
                self.members[name] = Member(info.size, read, None)

    def index(self, pattern: str) -> dict[tuple[str, ...], str]:
        """Return the names that a pattern is found in, by its groups.

        Args:
            pattern: A regular expression. Letter case is ignored in the
                names; the groups are given in lower case.

        Returns:
            Groups -> name, sorted. Of several equally large files with the
            same groups the first counts, as when an archive lies beside the
            folder that it was unpacked to.

        Raises:
            ConversionError: Files of different size have the same groups.
        """
        found: dict[tuple[str, ...], str] = {}
        search = re.compile(pattern, re.IGNORECASE).search
        for name in sorted(self.members):
            if not (match := search(name)):
                continue
            key = tuple(group.lower() for group in match.groups())
            first = found.setdefault(key, name)
            if self.members[first].size != self.members[name].size:
                raise ConversionError(
                    f'{first} and {name} have one name and differ; '
                    'leave one of them out'
                )
        return dict(sorted(found.items()))

    def text(self, name: str) -> str:
        """Return the text of a file; what is no UTF-8 is replaced."""
        return self.members[name].read().decode('utf-8-sig', 'replace')

    def image_size(self, name: str) -> tuple[int, int, int]:
        """Return width, height and EXIF orientation of an image.

        The size is that of the raster as it is stored, before any rotation
        that EXIF asks for.

        Raises:
            OSError: It is no image that Pillow can read.
        """
        member = self.members[name]
        file = member.path or io.BytesIO(member.read())
        with Image.open(file) as image:
            return *image.size, image.getexif().get(ORIENTATION, 1)

    def describe(self) -> str:
        """Say which folders there are, for a message."""
        tops = {'/'.join(name.split('/')[:2]) for name in self.members}
        some = sorted(tops)[:8]
        return ', '.join(some) + (', ...' if len(tops) > len(some) else '')

    def place(self, name: str, target: Path, copy: bool) -> None:
        """Link a file to a new place, or copy it there.

        Raises:
            ConversionError: The file system has no symbolic links.
        """
        member = self.members[name]
        if member.path is None:
            target.write_bytes(member.read())
        elif copy:
            shutil.copyfile(member.path, target)
        else:
            try:
                target.symlink_to(member.path)
            except OSError as error:
                raise ConversionError(
                    f'{target}: cannot be made a link ({error.strerror}); '
                    'use --copy'
                ) from error


def read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Return a file of a zip archive.

    Raises:
        OSError: It is damaged.
    """
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise OSError(f'{archive.filename}: {error}; load it anew') from error
