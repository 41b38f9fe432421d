"""Shards: tar files in the WebDataset layout, each with an index that makes every row reachable at random.

    SPLIT-00000.tar          KEY.webp (or .jpg, .png), KEY.txt (the first caption), KEY.json (all of them, and more)
    SPLIT-00000.index.npz    where each row's members lie in the tar
    manifest.json            what the folder holds, where it comes from, what was dropped and why

Any tar that WebDataset or img2dataset wrote can be read: a missing index is made on first use.
"""

import hashlib
import json
import mmap
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pocketclip.data import tar
from pocketclip.data.rows import Row, storable
from pocketclip.errors import DataError
from pocketclip.files import whole_file

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
INDEX_FORMAT = 1
MAX_TEXT_BYTES = 1_000_000
MAX_CAPTION = 10_000  # characters; a longer one is cut, no model reads so far
LONGEST_KEY = 500  # characters; an index holds all keys of a shard at the length of the longest
OPEN_SHARDS = 256  # files at a time; a shuffle touches all shards, and systems allow about a thousand
CHECKED_HEADERS = 32
WILL_NEED: int = getattr(mmap, "MADV_WILLNEED", 0)  # Windows has none
Span = NDArray[np.int64]
Members = dict[str, dict[str, tuple[int, int]]]  # KEY -> extension -> start and length in the tar


def write_shards(rows: Iterable[Row], folder: Path, split: str, rows_per_shard: int = 10_000) -> int:
    """Write rows as SPLIT-00000.tar, SPLIT-00001.tar, ... with their indexes; returns the number of rows."""
    remaining = iter(rows)
    total = 0
    for number in range(100_000):
        chunk = list(islice(remaining, rows_per_shard))
        if not chunk:
            break
        write_shard(chunk, folder / f"{split}-{number:05d}.tar")
        total += len(chunk)
    return total


def write_shard(rows: Iterable[Row], path: Path) -> None:
    """Write rows as one tar, and its index."""
    with new_shard(path) as shard:
        for row in rows:
            shard.add(row)


@contextmanager
def new_shard(path: Path) -> Iterator["ShardWriter"]:
    """A tar to add rows to; it and its index are put in place when the block ends well."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        shard = ShardWriter(file)
        yield shard
        file.write(tar.end(file.tell()))
        size = file.tell()
    _save_index(path, shard.members, size, shard.dropped)


class ShardWriter:
    """Appends rows to a tar, and remembers where; those that `write_index` would leave out are counted in `dropped`."""

    def __init__(self, file: BinaryIO) -> None:
        self.members: Members = {}
        self.dropped: Counter[str] = Counter()
        self._file = file

    def add(self, row: Row) -> None:
        """Append a row's files. Raises ValueError for an extension that no reader would take for an image's."""
        if row.extension not in IMAGE_EXTENSIONS:
            raise ValueError(f"{row.key}.{row.extension}: the extension is none of {', '.join(IMAGE_EXTENSIONS)}")
        details = json.dumps({"captions": row.captions, **row.metadata}, ensure_ascii=False)
        texts = {"txt": row.captions[0], "json": details}  # which can hold half characters
        contents = {row.extension: row.image} | {name: text.encode(errors="replace") for name, text in texts.items()}
        files: dict[str, tuple[int, int]] = {}
        for extension, content in contents.items():
            whole = tar.member(f"{row.key}.{extension}", content)
            padding = -len(content) % tar.BLOCK
            files[extension] = self._file.tell() + len(whole) - padding - len(content), len(content)
            self._file.write(whole)
        _note_row(row.key, files, self.members, self.dropped)


def write_index(path: Path) -> None:
    """Scan a tar and write its index beside it.

    Rows without an image, without any caption file, with a key that an earlier row has, that is too long or not UTF-8,
    or that leads out of the folder where somebody unpacks the tar are left out and counted by reason in the index.
    Raises DataError if the tar ends early or is no tar.
    """
    dropped: Counter[str] = Counter()
    _save_index(path, _scan(path, dropped), path.stat().st_size, dropped)


def _save_index(path: Path, members: Members, size: int, dropped: Counter[str]) -> None:
    """Write the index of a tar of `size` bytes."""
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


def _scan(path: Path, dropped: Counter[str]) -> Members:
    """KEY -> extension -> (start, length) of a tar's files; raises DataError if it is damaged or ends early."""
    members: Members = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as file:
            for key, files in members_by_key(path, file, size):
                _note_row(key, files, members, dropped)
            end = file.offset
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a whole tar file ({error}); fetch or pack it again") from None
    check_end(path, end)
    return members


def _note_row(key: str, files: dict[str, tuple[int, int]], members: Members, dropped: Counter[str]) -> None:
    """Add files that lie together to the rows of a tar, or count why not."""
    if len(key) > LONGEST_KEY:
        dropped[f"name of more than {LONGEST_KEY} characters"] += 1
    elif key != storable(key):
        dropped["name that is not UTF-8"] += 1
    elif not stays_inside(key):
        dropped["name that leads out of the folder"] += 1
    elif members.get(key, {}).keys() & files.keys():  # not more files of one row, but another row
        dropped["key that another row has"] += 1
    else:
        members.setdefault(key, {}).update(files)


def members_by_key(path: Path, file: tarfile.TarFile, size: int) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Files of one key that lie one behind the other, each extension once: a row, or a part of one."""
    last, files = "", dict[str, tuple[int, int]]()
    for member in file:
        key, _, extension = member.name.rpartition(".")
        if not member.isreg() or not key:
            continue
        if not 0 <= member.size <= size - member.offset_data:
            raise DataError(f"{path}: ends inside {member.name}; the file is truncated, fetch or pack it again")
        if files and (key != last or extension.lower() in files):
            yield last, files
            files = {}
        last, files[extension.lower()] = key, (member.offset_data, member.size)
    if files:
        yield last, files


def stays_inside(key: str) -> bool:
    """Whether a file of that name, unpacked anywhere, lies below the folder where it was unpacked."""
    return not key.startswith(("/", "\\")) and ":" not in key[:2] and ".." not in re.split(r"[/\\]", key)


def check_end(path: Path, end: int) -> None:
    """Raise DataError unless all that follows the last member is two or more blocks of zeros.

    Without them a tar that was cut between two members, or has a damaged header, would lose its other rows unnoticed:
    `tarfile` takes both for the end.
    """
    with path.open("rb") as file:
        file.seek(end)
        found = 0
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise DataError(f"{path}: damaged at byte {end:,}, a file's header; fetch or pack it again")
            found += len(block)
    if found < 1024:
        raise DataError(f"{path}: has no end-of-archive mark; the file is truncated, fetch or pack it again")


def index_path(tar: Path) -> Path:
    """Where a tar's index lies."""
    return tar.with_suffix(".index.npz")


class Shard:
    """One tar with its index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        index = index_path(path)
        if not index.exists():
            write_index(path)
        try:
            with index.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                version, tar_size = int(arrays["format"]), int(arrays["tar_size"])
                self.keys, self.spans = arrays["keys"], arrays["spans"]
                self.dropped = _counts(arrays["dropped"])
            whole = self.keys.dtype.kind == "U" and self.spans.dtype == np.int64
            if not whole or self.spans.shape != (*self.keys.shape, 6) or self.keys.ndim != 1:
                raise ValueError
        except (OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, zipfile.BadZipFile):
            raise DataError(f"{index}: damaged index; delete it, and it is made anew") from None
        if version != INDEX_FORMAT:
            raise DataError(f"{index}: format {version}, this version reads {INDEX_FORMAT}; delete it, it is made anew")
        size = path.stat().st_size
        if len(self.spans) and (self.spans.min() < 0 or (self.spans[:, ::2] + self.spans[:, 1::2]).max() > tar_size):
            raise DataError(f"{index}: points outside the tar; delete it, and it is made anew")
        if size != tar_size or not self._headers_match():
            raise DataError(
                f"{path}: has {size} bytes, its index was made for another tar, of {tar_size}; it is truncated or was "
                f"replaced: fetch or pack it again, or delete {index.name} if it is whole"
            )

    def _headers_match(self) -> bool:
        """Whether some rows, spread over the tar, are where the index has them; another tar can have the same size."""
        some = np.linspace(0, len(self) - 1, CHECKED_HEADERS, dtype=np.int64) if len(self) else ()
        for row in np.unique(some):
            start, key = int(self.spans[row, 0]), str(self.keys[row])
            if not key.isascii() or len(key) > 90:  # such a name is not in the member's own header
                continue
            name = _mapped(self)[max(0, start - 512) : max(0, start - 412)].rstrip(b"\0")
            if name.rpartition(b".")[0] != key.encode():
                return False
        return True

    def __len__(self) -> int:
        return len(self.spans)

    def image(self, row: int) -> bytes:
        """The row's encoded image."""
        return self._span(row, 0)

    def extension(self, row: int) -> str:
        """What kind of file the image is, by its first bytes: "png", "webp", else "jpg"."""
        start = int(self.spans[row, 0])
        head = _mapped(self)[start : start + 12]
        if head.startswith(b"\x89PNG"):
            return "png"
        return "webp" if head[:4] == b"RIFF" and head[8:] == b"WEBP" else "jpg"

    def metadata(self, row: int) -> dict[str, Any]:
        """The row's JSON, empty if it has none or it cannot be read."""
        try:
            found = json.loads(self._span(row, 2)[:MAX_TEXT_BYTES] or b"{}")
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def captions(self, row: int) -> list[str]:
        """The row's captions: the JSON's list if it has one, else the text file; blank ones left out, long ones cut."""
        listed = self.metadata(row).get("captions")
        if not isinstance(listed, list):
            listed = [self._span(row, 4)[:MAX_TEXT_BYTES].decode("utf-8", errors="replace")]
        return [text for text in map(_clean, listed) if text]

    def _span(self, row: int, column: int) -> bytes:
        start, length = self.spans[row, column : column + 2]
        return _mapped(self)[start : start + length]


@lru_cache(maxsize=OPEN_SHARDS)
def _mapped(shard: Shard) -> mmap.mmap:
    """The tar's bytes, mapped into memory; the least used ones are closed."""
    with shard.path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _clean(caption: object) -> str:
    """A caption as it is used: white space at its ends off, at most `MAX_CAPTION` characters, half characters marked.

    JSON can hold one half of a pair of surrogates, as where somebody cut a string; no tokenizer takes it.
    """
    if not isinstance(caption, str):
        return ""
    return storable(caption[:MAX_CAPTION].strip())


def _counts(lines: NDArray[np.str_]) -> Counter[str]:
    """How many rows were left out, by reason, from lines such as `3 no image file`."""
    return Counter({reason: int(count) for count, _, reason in (str(line).partition(" ") for line in lines)})


class Split:
    """All rows of one split, numbered from 0 across its shards."""

    def __init__(self, folder: Path | str, split: str) -> None:
        self.folder, self.name = Path(folder), split
        paths = sorted(path for path in self.folder.glob("*.tar") if split_of(path) == split)
        if not paths:
            raise DataError(f"{self.folder}: no shards named {split}-00000.tar, ...; `pocketclip pack` writes them")
        self.shards = [Shard(path) for path in paths]
        self.dropped = sum((shard.dropped for shard in self.shards), Counter[str]())
        self._ends = np.cumsum([len(shard) for shard in self.shards])
        if not len(self):
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.dropped.items())
            raise DataError(
                f"{self.folder}: the shards of split {split} hold no rows" + (f" ({reasons})" if reasons else "")
            )

    def fingerprint(self) -> str:
        """SHA-256 over which rows the split has and where they lie: other data, other fingerprint."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update("\n".join([shard.path.name, *map(str, shard.keys)]).encode())
            digest.update(shard.spans.tobytes())
        return digest.hexdigest()

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

    def announce(self, rows: Iterable[int]) -> None:
        """Have the system read rows into memory, all at once; one by one a disk takes as long as decoding does."""
        for shard, inside in map(self._locate, rows) if WILL_NEED else ():
            for start, length in shard.spans[inside].reshape(3, 2).tolist():
                page = start - start % mmap.PAGESIZE
                _mapped(shard).madvise(WILL_NEED, page, start + length - page)

    def every_caption(self) -> Iterator[str]:
        """The captions of all rows, in order."""
        for row in range(len(self)):
            yield from self.captions(row)


def splits_in(folder: Path) -> list[str]:
    """The names of the splits whose shards a folder holds, sorted."""
    return sorted({split for path in folder.glob("*.tar") if (split := split_of(path))})


def split_of(path: Path) -> str:
    """SPLIT of SPLIT-00000.tar, "train" of img2dataset's 00000.tar; "" for a tar of another name."""
    named = re.fullmatch(r"(?:(.+)-)?\d+\.tar", path.name)
    return named[1] or "train" if named else ""


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
