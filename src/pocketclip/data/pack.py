"""Any source of rows -> a folder of shards with indexes and a manifest."""

import shutil
from pathlib import Path
from typing import Any

from pocketclip.data import openmoji
from pocketclip.data.shards import splits_in, write_manifest, write_shards
from pocketclip.errors import DataError

MANIFEST_FORMAT = 1
SOURCES = ("openmoji",)


def pack_openmoji(folder: Path, size: int, validation: bool = False) -> dict[str, Any]:
    """Render the embedded data set into `folder`; returns the manifest.

    size: side of the stored pictures, pixels. validation: only train, cut anew (`openmoji.rows`).
    Raises DataError if the folder holds another data set, or cannot be written.
    """
    try:
        return _pack(folder, size, validation)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}; choose another folder or make room") from None


def _pack(folder: Path, size: int, validation: bool) -> dict[str, Any]:
    folder = folder.resolve()
    if splits_in(folder) or (folder / "manifest.json").exists():
        raise DataError(f"{folder}: already holds shards; choose another folder, or delete them first")
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        rendered = openmoji.rows(size, validation)
        splits = {split: write_shards(rows, temporary, split) for split, rows in rendered.items()}
        manifest = {
            "format": MANIFEST_FORMAT,
            "source": "openmoji, train cut for validation" if validation else "openmoji",
            "image_size": size,
            "rows": splits,
            "attribution": openmoji.licence(),
        }
        write_manifest(temporary, manifest)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(temporary.iterdir(), key=lambda file: file.name == "manifest.json"):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest
