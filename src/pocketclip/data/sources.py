"""Anybody's images with captions -> rows; here what all sources share, and folders. Tables are in `data/tables.py`.

A row that cannot be used (no caption, a path that leads nowhere or out of its folder, not an image) is counted with its
reason and left out.
"""

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketclip.data.images import LARGEST_IMAGE, MAX_PIXELS, BadImage, read_file
from pocketclip.data.rows import Row, storable
from pocketclip.data.shards import MAX_CAPTION
from pocketclip.data.shrink import shrink
from pocketclip.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CAPTION_SUFFIXES = (".txt", ".caption", ".json")
CAPTION_KEYS = ("captions", "caption")  # of IMAGE.json
LARGEST_CAPTIONS = 250_000  # characters of one image's captions, which its JSON in a shard has room for
WORKERS = min(16, os.cpu_count() or 1)  # threads: Pillow decodes outside the interpreter's lock
OUTSIDE = "path outside the folder"


@dataclass(frozen=True, slots=True)
class Found:
    """An image with its captions, before anybody looked at it.

    name: what the source calls it; its hash is the row's key, and says whether the row is for testing.
    image: its bytes, or where they lie; bytes have no name that all rows of one picture share, and say themselves
        whether the row is for testing. again: tells it from others of the same name, "" where there are none.
    split: where the source has splits of its own; "" where it has none.
    """

    name: str
    image: bytes | Path
    captions: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    again: str = ""
    split: str = ""

    @property
    def key(self) -> str:
        """16 hexadecimal digits, the same on every machine."""
        return _digits(f"{self.again}\0{self.name}" if self.again else self.name)

    def split_of(self, test: float) -> str:
        """The source's own split, else "test" for this share of all names or images, else "train"."""
        lot = _digits(self.image if isinstance(self.image, bytes) else self.name)
        return self.split or ("test" if int(lot, 16) < test * 2**64 else "train")


def _digits(content: str | bytes) -> str:
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return hashlib.sha256(content).hexdigest()[:16]


def make_rows(
    found: Iterable[Found], short_side: int, dropped: Counter[str], threads: int = WORKERS
) -> Iterator[tuple[Found, Row | None]]:
    """Read, check and shrink the images, in order; None and a reason in `dropped` for one of no use.

    short_side: larger images are shrunk to this short side, pixels; 0 keeps all as they are. threads: how many images
    are decoded at a time, on all cores unless said; the rows are the same.
    """
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[Found, Future[Row | str]]] = deque()
        for one in found:
            ahead.append((one, pool.submit(_row, one, short_side)))
            if len(ahead) > 2 * threads:
                yield _finished(*ahead.popleft(), dropped)
        while ahead:
            yield _finished(*ahead.popleft(), dropped)


def _finished(found: Found, future: Future[Row | str], dropped: Counter[str]) -> tuple[Found, Row | None]:
    row = future.result()
    if isinstance(row, Row):
        return found, row
    dropped[row] += 1
    return found, None


def _row(found: Found, short_side: int) -> Row | str:
    """The row, or why there is none."""
    captions = _clean(found.captions)
    if not captions:
        return "no caption"
    if sum(map(len, captions)) > LARGEST_CAPTIONS:
        return f"more than {LARGEST_CAPTIONS:,} characters of captions"
    try:
        data = found.image if isinstance(found.image, bytes) else read_file(found.image, LARGEST_IMAGE)
        if len(data) > LARGEST_IMAGE:
            raise BadImage(f"more than {LARGEST_IMAGE:,} bytes")
        data, extension = shrink(data, short_side or MAX_PIXELS, quality=90)
    except BadImage as error:
        return str(error)
    source = storable(found.name)
    return Row(found.key, data, extension, captions, {"source": source, **found.metadata})


def _clean(captions: Sequence[str]) -> tuple[str, ...]:
    """Distinct captions without white space at their ends, at most MAX_CAPTION long; half characters become "?"."""
    texts = (storable(text.strip()[:MAX_CAPTION].strip()) for text in captions)
    return tuple(dict.fromkeys(text for text in texts if text))


def state_of(path: Path | str) -> str:
    """A file's size in bytes and the time of its last change, "" where there is none: another state, another file."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def inside(folder: Path, name: str) -> Path | None:
    """The file that `name` means in a resolved folder, links followed; None if it leads out of the folder."""
    try:
        path = Path(os.path.realpath(folder / name))
    except (ValueError, OSError):  # a NUL, half a character
        return None
    return path if path != folder and path.is_relative_to(folder) else None


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of images, each with its captions beside it or, if none has any, in a folder named after its class.

    Captions beside IMAGE.jpg: IMAGE.txt or IMAGE.caption, one a line, or IMAGE.json with "caption" or "captions".
    Class folders: CLASS/IMAGE.jpg; the name of the folder that holds the image is the caption, "_" and "-" as spaces.
    Names that begin with a dot are passed over; links to folders are counted and not followed.
    total: image files. beside: how many of them have captions beside them. state: a hash of the names, sizes and times
        of the images and their captions; another one where any of them has changed.
    """

    place: Path
    total: int
    beside: int
    state: str

    @classmethod
    def look(cls, place: Path) -> "Folder":
        """Count a folder's images."""
        total = beside = 0
        state = hashlib.sha256()
        for listed in _walk(place, Counter()):
            for name, captions in listed.images():
                total += 1
                beside += bool(captions)
                for file in (name, *captions):
                    path = f"{listed.folder}{os.sep}{file}"
                    state.update(f"{path}\0{state_of(path)}\0".encode(errors="surrogateescape"))
        return cls(place, total, beside, state.hexdigest())

    def found(self, dropped: Counter[str], caption_keys: Sequence[str] = ()) -> Iterator[Found]:
        """Its images in the order of their names, folder by folder."""
        root = Path(os.path.realpath(self.place))
        for listed in _walk(root, dropped):
            below = "" if listed.folder == root else f"{listed.folder.relative_to(root).as_posix()}/"
            for name, captions in listed.images():
                path, relative = listed.folder / name, below + name
                links = [one for one in (name, *captions) if one in listed.links]  # nothing else can lead outside
                if any(inside(root, str(listed.folder / one)) is None for one in links):
                    dropped[OUTSIDE] += 1
                elif self.beside:
                    try:
                        texts = [text for one in captions for text in _texts(listed.folder / one, caption_keys)]
                    except BadImage as error:
                        dropped[f"caption file: {error}"] += 1
                    else:
                        yield Found(relative, path, texts)
                elif listed.folder == root:
                    dropped["not in a class folder"] += 1
                else:
                    group = storable(listed.folder.name)
                    yield Found(relative, path, [group.replace("_", " ").replace("-", " ")], {"group": group})


@dataclass(frozen=True, slots=True)
class _Listed:
    """One folder's files, by name. links: those of them that are links to elsewhere."""

    folder: Path
    names: Sequence[str]
    links: Set[str]

    def images(self) -> Iterator[tuple[str, list[str]]]:
        """Each image's name with the names of its caption files."""
        stems: dict[str, list[str]] = {}
        for name in self.names:
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            if suffix.lower() in CAPTION_SUFFIXES:
                stems.setdefault(stem, []).append(name)
        for name in self.names:
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            if suffix.lower() in IMAGE_SUFFIXES:
                yield name, stems.get(stem, [])


def _walk(root: Path, dropped: Counter[str]) -> Iterator[_Listed]:
    """A folder and all below it, each with its files; in memory are the names of one folder at a time."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                listed = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
                folders = [entry for entry in listed if _is_folder(entry)]
        except OSError as error:
            raise DataError(f"{folder}: cannot be read: {error.strerror}; make it readable, or move it away") from None
        files = [entry.name for entry in listed if not _is_folder(entry)]
        _count_others(files, dropped)
        yield _Listed(folder, files, {entry.name for entry in listed if entry.is_symlink()})
        dropped["link to a folder"] += sum(entry.is_symlink() for entry in folders)
        waiting += [folder / entry.name for entry in reversed(folders) if not entry.is_symlink()]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _count_others(files: Sequence[str], dropped: Counter[str]) -> None:
    """Count the files that are neither images nor their captions."""
    parts = [os.path.splitext(name) for name in files]  # noqa: PTH122
    images = {stem for stem, suffix in parts if suffix.lower() in IMAGE_SUFFIXES}
    for stem, suffix in parts:
        if suffix.lower() in CAPTION_SUFFIXES:
            dropped["caption file without an image"] += stem not in images
        elif suffix.lower() not in IMAGE_SUFFIXES:
            dropped["file of another kind"] += 1


def _texts(path: Path, keys: Sequence[str]) -> list[str]:
    """The captions in a file; raises BadImage if it cannot be read or is not UTF-8 or JSON."""
    try:
        text = read_file(path, 4 * LARGEST_CAPTIONS).decode("utf-8-sig")
        if path.suffix.lower() != ".json":
            return text.splitlines()
        found = json.loads(text)
    except UnicodeDecodeError:
        raise BadImage("not UTF-8") from None
    except (ValueError, RecursionError):
        raise BadImage("not JSON") from None
    if not isinstance(found, dict):
        raise BadImage("not a JSON object")
    return [text for key in keys or CAPTION_KEYS for text in texts_in(found.get(key))]


def texts_in(cell: object) -> list[str]:
    """The captions in one value: a text, a list of them (as text, too), or COCO's {"raw": text}."""
    if isinstance(cell, str) and cell.startswith('["'):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return [str(cell)]
    texts = cell if isinstance(cell, list) else [cell]
    texts = [text.get("raw") if isinstance(text, dict) else text for text in texts]
    return [text for text in texts if isinstance(text, str)]
