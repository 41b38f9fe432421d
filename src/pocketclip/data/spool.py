"""What a shard under way has so far: rows as they come, kept so that a killed process loses none that was finished.

A tar of ROW.json (the outcome) behind ROW.EXTENSION (the image, if there is one), in the order in which downloads end.
A last member that was cut short is dropped when the file is opened again.
"""

import io
import json
import tarfile
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from pocketclip.data.outcomes import Outcome
from pocketclip.errors import DataError

BLOCK = tarfile.BLOCKSIZE


class Spool:
    """Finished rows of one shard; `with` opens and closes it.

    outcomes: row -> outcome, of this process and of those before. Images are read back from the file, not held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[int, Outcome] = {}
        self._images: dict[int, tuple[int, int, str]] = {}

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        end = self._read()
        self._file.truncate(end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self) -> int:
        """Take over what the file holds; returns where the last whole row ends."""
        whole = 0
        image: dict[int, tuple[int, int, str]] = {}
        self._file.seek(0)
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for member in tar:
                    row, _, extension = member.name.partition(".")
                    if extension != "json":
                        image[int(row)] = (member.offset_data, member.size, extension)
                        continue
                    content = tar.extractfile(member)
                    text = content.read() if content else b""
                    if len(text) < member.size:
                        break
                    self.outcomes[int(row)] = Outcome(**json.loads(text))
                    if int(row) in image:
                        self._images[int(row)] = image.pop(int(row))
                    whole = member.offset_data + -(-member.size // BLOCK) * BLOCK
        except (tarfile.TarError, ValueError, TypeError, OSError):
            pass  # the tail of a killed process
        return whole

    def add(self, outcome: Outcome, image: bytes | None, extension: str = "") -> None:
        """Keep a finished row; it outlives this process from here on."""
        start = self._file.seek(0, io.SEEK_END)
        content = json.dumps(asdict(outcome)).encode()
        if image is None:
            self._file.write(_member(f"{outcome.row}.json", content))
        else:
            self._file.write(_member(f"{outcome.row}.{extension}", image) + _member(f"{outcome.row}.json", content))
            self._images[outcome.row] = (start + BLOCK, len(image), extension)
        self._file.flush()
        self.outcomes[outcome.row] = outcome

    def image(self, row: int) -> tuple[bytes, str] | None:
        """A row's image and its extension; None where it has none."""
        if row not in self._images:
            return None
        start, size, extension = self._images[row]
        self._file.seek(start)
        data = self._file.read(size)
        if len(data) != size:
            raise DataError(f"{self.path}: damaged; delete it, and its rows are fetched again")
        return data, extension


def _member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)
