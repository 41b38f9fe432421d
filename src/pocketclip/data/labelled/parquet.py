"""Parquet as Hugging Face's `datasets` writes it: images as bytes, a column of labels, their names in the metadata."""

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from pocketclip.data.columns import CLASS_COLUMNS, Columns, choose
from pocketclip.data.labelled.kinds import SPLITS, Dropped, Labelled
from pocketclip.data.outcomes import arrow
from pocketclip.data.parquet import ROWS, features_of, first_line, open_parquet
from pocketclip.errors import DataError

UNKNOWN = -1


class ParquetImages:
    """SPLIT-*.parquet, or SPLIT.parquet, in a folder or in its `data`; a file alone is for testing."""

    templates: tuple[str, ...] = ()

    def __init__(self, place: Path, split: str) -> None:
        self.place, self.paths = place, _complete(_paths(place, split))
        if not self.paths:
            raise DataError(f"{place}: has no {SPLITS[split][0]}-*.parquet")
        self.total: int | None = 0
        for path in self.paths:
            with open_parquet(path) as file:
                self.total += int(file.metadata.num_rows)
                self.image, self.label = _columns(path, file.schema_arrow)
                names = features_of(file.schema_arrow).get(self.label, {}).get("names")
        self.classes = tuple(map(str, names)) if isinstance(names, list) else ()

    @staticmethod
    def known(place: Path) -> bool:
        """Whether it is a Parquet file, or a folder of such."""
        return any(_paths(place, split) for split in SPLITS)

    def items(self, dropped: list[Dropped]) -> Iterator[Labelled]:
        """See LabelledImages."""
        pa, _ = arrow()
        for path in self.paths:
            rows = count()
            with open_parquet(path) as file:
                try:
                    for batch in file.iter_batches(ROWS, columns=[self.image, self.label]):
                        for cells in batch.to_pylist():
                            name = f"{path.name}/{next(rows)}"
                            image, label = _bytes(cells[self.image]), cells[self.label]
                            if image is None:
                                dropped.append(Dropped(name, "no image"))
                            elif not isinstance(label, int | str):
                                dropped.append(Dropped(name, "no label"))
                            else:
                                yield Labelled(name, image, label)
                except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
                    raise DataError(f"{path}: damaged ({first_line(error)}); fetch or write it again") from None


def _paths(place: Path, split: str) -> list[Path]:
    """The files of a split; of several for testing, as validation and test, the first that has labels."""
    if place.is_file():
        return [place] if place.suffix == ".parquet" and split == "test" else []
    candidates = [
        found
        for folder in (place, place / "data")
        for name in SPLITS[split]
        if (found := sorted([*folder.glob(f"{name}-*.parquet"), *folder.glob(f"{name}.parquet")]))
    ]
    return next((found for found in candidates if len(candidates) == 1 or _has_labels(found[0])), [])


def _has_labels(path: Path) -> bool:
    """Whether the first row has a label; -1 is what Hugging Face writes where there is none."""
    with open_parquet(path) as file:
        _, label = _columns(path, file.schema_arrow)
        first = next(file.iter_batches(1, columns=[label]), None)
        return first is not None and first.to_pylist()[0][label] != UNKNOWN


def _complete(paths: list[Path]) -> list[Path]:
    """The same; raises DataError where their names say that some are missing."""
    there = [match for path in paths if (match := re.search(r"-(\d+)-of-(\d+)\.parquet$", path.name))]
    missing = sorted(set(range(int(there[0][2]))) - {int(match[1]) for match in there}) if there else []
    if missing:
        some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{paths[0].parent}: {len(there)} of {int(there[0][2])} files are there, not {some}; fetch them"
        )
    return paths


def _columns(path: Path, schema: Any) -> tuple[str, str]:
    """The column of images and that of labels, by what Hugging Face notes of them or by their usual names."""
    kinds = {name: kind.get("_type") for name, kind in features_of(schema).items() if name in schema.names}
    image = next((name for name, kind in kinds.items() if kind == "Image"), "")
    usual = [name for name in CLASS_COLUMNS if name in schema.names]
    labels = usual or [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if not labels:
        raise DataError(f"{path}: has no column of labels; known names are {', '.join(CLASS_COLUMNS)}")
    return choose(path, schema.names, Columns(image, (labels[0],)))[0], labels[0]


def _bytes(cell: Any) -> bytes | None:
    """The image; where there is a path alone it leads to somebody else's disk."""
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    return found if isinstance(found, bytes) else None
