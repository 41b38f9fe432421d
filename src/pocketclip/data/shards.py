"""Shards: tar files in the WebDataset layout, each with an index that makes every row reachable at random.

    SPLIT-00000.tar          KEY.webp (or .jpg, .png), KEY.txt (the first caption), KEY.json (all of them, and more)
    SPLIT-00000.index.npz    where each row's members lie in the tar
    manifest.json            what the folder holds, where it comes from, what was dropped and why

Any tar that WebDataset or img2dataset wrote can be read: a missing index is made on first use.
"""

import io
import json
import mmap
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.data.rows import Row
from pocketclip.errors import DataError
from pocketclip.files import whole_file

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
INDEX_FORMAT = 1
MAX_TEXT_BYTES = 1_000_000
Span = NDArray[np.int64]


def write_shards(rows: Iterable[Row], folder: Path, split: str, rows_per_shard: int = 10_000) -> int:
    """Write rows as SPLIT-00000.tar, SPLIT-00001.tar, ... with their indexes; returns the number of rows."""
    remaining = iter(rows)
    total = 0
    for number in range(100_000):
        chunk = list(islice(remaining, rows_per_shard))
        if not chunk:
            break
        path = folder / f"{split}-{number:05d}.tar"
        with whole_file(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for row in chunk:
                _add_row(tar, row)
        write_index(path)
        total += len(chunk)
    return total


def _add_row(tar: tarfile.TarFile, row: Row) -> None:
    details = json.dumps({"captions": row.captions, **row.metadata}, ensure_ascii=False)
    members = ((row.extension, row.image), ("txt", row.captions[0].encode()), ("json", details.encode()))
    for extension, content in members:
        member = tarfile.TarInfo(f"{row.key}.{extension}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def write_index(path: Path) -> None:
    """Scan a tar and write its index beside it.

    Rows without an image or without any caption file are left out and counted by reason in the index.
    Raises DataError if the tar ends early or is no tar.
    """
    members: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.rpartition(".")
                if not member.isreg() or not key:
                    continue
                if member.offset_data + member.size > size:
                    raise DataError(f"{path}: ends inside {member.name}; the file is truncated, fetch or pack it again")
                members[key][extension.lower()] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a whole tar file ({error}); fetch or pack it again") from None
    if not _ends_properly(path):
        raise DataError(f"{path}: has no end-of-archive mark; the file is truncated, fetch or pack it again")
    dropped: Counter[str] = Counter()
    keys, spans = [], []
    for key, files in members.items():
        image = next((files[extension] for extension in IMAGE_EXTENSIONS if extension in files), None)
        if image is None:
            dropped["no image file"] += 1
        elif "json" not in files and "txt" not in files:
            dropped["no caption file"] += 1
        else:
            keys.append(key)
            spans.append((*image, *files.get("json", (0, 0)), *files.get("txt", (0, 0))))
    with whole_file(index_path(path)) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            format=np.int64(INDEX_FORMAT),
            tar_size=np.int64(size),
            keys=np.array(keys, dtype=np.str_),
            spans=np.array(spans, dtype=np.int64).reshape(-1, 6),
            dropped=np.array([f"{count} {reason}" for reason, count in dropped.items()], dtype=np.str_),
        )


def _ends_properly(path: Path) -> bool:
    """Whether a tar closes with its two blocks of zeros: one cut between two members would else go unnoticed."""
    with path.open("rb") as file:
        file.seek(-min(1024, path.stat().st_size), io.SEEK_END)
        return file.read() == bytes(1024)


def index_path(tar: Path) -> Path:
    """Where a tar's index lies."""
    return tar.with_suffix(".index.npz")


class Shard:
    """One tar, mapped into memory, with its index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        index = index_path(path)
        if not index.exists():
            write_index(path)
        try:
            with index.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                tar_size, self.keys, self.spans = int(arrays["tar_size"]), arrays["keys"], arrays["spans"]
                self.dropped = [str(text) for text in arrays["dropped"]]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            raise DataError(f"{index}: damaged index; delete it, and it is made anew") from None
        size = path.stat().st_size
        if size != tar_size:
            raise DataError(
                f"{path}: has {size} bytes, its index was made for {tar_size}; the tar is truncated or was replaced: "
                f"fetch or pack it again, or delete {index.name} if it is whole"
            )
        if len(self.spans) and (self.spans.min() < 0 or (self.spans[:, ::2] + self.spans[:, 1::2]).max() > size):
            raise DataError(f"{index}: points outside the tar; delete it, and it is made anew")

    @cached_property
    def _bytes(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process maps the file again."""
        return {name: value for name, value in self.__dict__.items() if name != "_bytes"}

    def image(self, row: int) -> bytes:
        """The row's encoded image."""
        return self._span(row, 0)

    def metadata(self, row: int) -> dict[str, Any]:
        """The row's JSON, empty if it has none or it cannot be read."""
        try:
            found = json.loads(self._span(row, 2)[:MAX_TEXT_BYTES] or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def captions(self, row: int) -> list[str]:
        """The row's captions: the JSON's list if it has one, else the text file; blank ones left out."""
        listed = self.metadata(row).get("captions")
        if not isinstance(listed, list):
            listed = [self._span(row, 4)[:MAX_TEXT_BYTES].decode("utf-8", errors="replace")]
        return [text.strip() for text in listed if isinstance(text, str) and text.strip()]

    def _span(self, row: int, column: int) -> bytes:
        start, length = self.spans[row, column : column + 2]
        return self._bytes[start : start + length]


class Split:
    """All rows of one split, numbered from 0 across its shards."""

    def __init__(self, folder: Path | str, split: str) -> None:
        self.folder, self.name = Path(folder), split
        paths = sorted(self.folder.glob(f"{split}-[0-9]*.tar"))
        if not paths:
            raise DataError(f"{self.folder}: no shards named {split}-*.tar; `pocketclip pack` writes them")
        self.shards = [Shard(path) for path in paths]
        self._ends = np.cumsum([len(shard.spans) for shard in self.shards])
        if not len(self):
            raise DataError(f"{self.folder}: the shards of split {split} hold no rows")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, row: int) -> tuple[Shard, int]:
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self.shards[number], row - (int(self._ends[number - 1]) if number else 0)

    def key(self, row: int) -> str:
        """The row's name."""
        shard, inside = self._locate(row)
        return str(shard.keys[inside])

    def image(self, row: int) -> bytes:
        """The row's encoded image."""
        shard, inside = self._locate(row)
        return shard.image(inside)

    def captions(self, row: int) -> list[str]:
        """The row's captions; empty if it has none."""
        shard, inside = self._locate(row)
        return shard.captions(inside)

    def metadata(self, row: int) -> dict[str, Any]:
        """The row's JSON."""
        shard, inside = self._locate(row)
        return shard.metadata(inside)

    def every_caption(self) -> Iterator[str]:
        """The captions of all rows, in order."""
        for row in range(len(self)):
            yield from self.captions(row)


def splits_in(folder: Path) -> list[str]:
    """The names of the splits whose shards a folder holds, sorted."""
    return sorted({path.name.rpartition("-")[0] for path in folder.glob("*-[0-9]*.tar")})


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json."""
    with whole_file(folder / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read manifest.json; raises DataError where there is none."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; `pocketclip pack` writes it") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); pack the data set again") from None
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: not a JSON object; pack the data set again")
    return manifest
