"""Files and folders that are written whole or not at all."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketclip.errors import DataError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well it is synced and takes the name, at once.

    If the block fails, or the machine does, `path` is what it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder; one that was there is replaced only when the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
    for leftover in path.parent.glob(f".{path.name}.*.part"):  # of a killed process; one writes a folder at a time
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
        sync(path.parent)
    except BaseException:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        raise
    finally:
        for leftover in (temporary, replaced):
            shutil.rmtree(leftover, ignore_errors=True)


def remove_unfinished(folder: Path, name: str) -> None:
    """Remove what killed processes had half written of a folder's files; for who alone writes those now.

    name: the files' name, or a pattern such as `train-*.tar`.
    """
    for leftover in folder.glob(f".{name}.*.part"):
        leftover.unlink(missing_ok=True)


def text_lines(path: Path, most: int) -> list[str]:
    """A text's lines that are not empty, without white space at their ends; UTF-8, with or without a mark.

    most: bytes. Raises DataError where the file is larger, or cannot be read.
    """
    try:
        if path.stat().st_size > most:
            raise DataError(f"{path}: has more than {most:,} bytes, too many for a list")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut; a folder where the system can."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
