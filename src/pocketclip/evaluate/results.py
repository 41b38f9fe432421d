"""What an evaluation leaves on disk, and how to read it back; no torch.

results.json                every figure, with its chance level
SPLIT-predictions.jsonl     a line an image: its captions, its rank, its five best captions with cosines
embeddings.npz              the captions with their embeddings, and the images' for each split
NAME-predictions.jsonl      of a benchmark, a line an image: its class, its rank, its five best classes with cosines
NAME-confusion.csv          how many images of each class (row) were taken for each class (column)
NAME-dropped.jsonl          a line an image that could not be used, with the reason; not there where there is none
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pocketclip.errors import DataError
from pocketclip.files import whole_file

FORMAT = 3
CUTS = (1, 5, 10)
WAYS = {"image_to_text": "image → caption", "text_to_image": "caption → image"}  # and what people call them
RECALLS = tuple(f"{way}_recall@{k}" for way in WAYS for k in CUTS)
RECALLS_AT_1 = tuple(f"{way}_recall@1" for way in WAYS)
PROBES = {"linear_top_1": "linear probe, top-1", "neighbours_top_1": "nearest neighbours, top-1"}
STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")  # of a file that may be anybody's


@dataclass(frozen=True)
class GroupResult:
    """Accuracy on the images of one group or class, percent."""

    __pydantic_config__: ClassVar = STRICT
    images: int
    top_1: float
    top_5: float


@dataclass(frozen=True)
class Measured:
    """One figure of a benchmark, percent.

    name: as in `Result`. title: what people call it. chance: what blind guessing would get; None where nobody knows.
    interval: between which values it lies with 95 % confidence; None where that is not measured.
    """

    name: str
    title: str
    value: float
    chance: float | None
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        about = [f"{self.interval[0]:.1f} to {self.interval[1]:.1f}"] if self.interval else []
        about += [f"chance {self.chance:.2f}"] if self.chance is not None else []
        return f"{self.value:.1f} %" + (f" ({'; '.join(about)})" if about else "")


@dataclass(frozen=True)
class Result:
    """One benchmark's figures; accuracies and recalls in percent.

    candidates: the number of captions, or of classes, that each image was compared with.
    chance_top_1 and so on: what blind guessing would get.
    mean_group_top_1: the mean over groups, so that large groups do not hide small ones.
    recall: image_to_text_recall@k and text_to_image_recall@k, within the benchmark's own images and captions.
    chance_recall: what blind guessing would get of each of them.
    dropped: reason -> images that could not be evaluated.
    kind: what images were compared with: "captions" of all of a data set's splits, "classes", which are the groups, or
        "retrieval", the benchmark's own captions.
    intervals: figure -> between which values it lies with 95 % confidence, by bootstrap over the images.
    further: figures that only some benchmarks have: linear_top_1 and neighbours_top_1 of `evaluate.probe`.
    missing: classes of the benchmark of which there was no image.
    """

    __pydantic_config__: ClassVar = STRICT
    benchmark: str
    images: int
    candidates: int
    top_1: float
    top_5: float
    top_10: float
    chance_top_1: float
    chance_top_5: float
    chance_top_10: float
    mean_group_top_1: float
    groups: dict[str, GroupResult]
    recall: dict[str, float]
    dropped: dict[str, int] = field(default_factory=dict)
    kind: str = "captions"
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    further: dict[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    chance_recall: dict[str, float] = field(default_factory=dict)

    @property
    def against(self) -> str:
        """What the candidates are."""
        return "classes" if self.kind == "classes" else "captions"

    @property
    def measured(self) -> list[Measured]:
        """Every figure with its chance and interval; of retrieval, whose top-k is a recall, the recalls."""
        found: list[tuple[str, str, float, float | None]] = []
        if self.kind != "retrieval":
            values = zip(CUTS, (self.top_1, self.top_5, self.top_10), strict=True)
            found += [(f"top_{k}", f"top-{k}", value, getattr(self, f"chance_top_{k}")) for k, value in values]
        if self.kind != "retrieval" and len(self.groups) > 1:
            classes = self.kind == "classes"  # of as many candidates each; groups of captions have more or fewer
            title = f"mean over {'classes' if classes else 'groups'}, top-1"
            found.append(("mean_group_top_1", title, self.mean_group_top_1, self.chance_top_1 if classes else None))
        for name, value in self.recall.items():
            way, k = parts_of_recall(name)
            found.append((name, f"{way} recall@{k}", value, self.chance_recall[name]))
        for name, title in PROBES.items():
            if name in self.further:
                found.append((name, title, self.further[name], self.chance_top_1))
        return [Measured(*one, self.intervals.get(one[0])) for one in found]

    def __str__(self) -> str:
        low, high = self.intervals["top_1"]
        found = ""
        if self.kind == "retrieval":
            each = (
                f"{name.replace('_', ' ')} {self.recall[name]:.1f} % (chance {self.chance_recall[name]:.2f})"
                for name in RECALLS
            )
            found = f"; {', '.join(each)}"
        if "linear_top_1" in self.further:
            found = (
                f"; of {self.further['probe_images']:,.0f} training images: linear probe "
                f"{self.further['linear_top_1']:.1f} %, nearest neighbours {self.further['neighbours_top_1']:.1f} %"
            )
        return (
            f"{self.benchmark}: top-1 {self.top_1:.1f} % (95 % interval {low:.1f} to {high:.1f}), "
            f"top-5 {self.top_5:.1f} % of {self.images:,} images against {self.candidates:,} {self.against} "
            f"(chance {self.chance_top_1:.2f} %, {self.chance_top_5:.2f} %){found}"
        )


def parts_of_recall(name: str) -> tuple[str, int]:
    """What people call a recall's way, and its k."""
    way, _, k = name.partition("_recall@")
    return WAYS[way], int(k)


def write_results(path: Path, bundle: str, seal: str, results: Sequence[Result]) -> None:
    """Write results.json whole or not at all; other benchmarks' figures of the very same bundle stay in it.

    Splits are evaluated all at once: new ones replace all that were there. seal: the bundle's.
    """
    fresh = {result.benchmark for result in results}
    splits = any(result.kind == "captions" for result in results)
    kept = [
        asdict(result)
        for result in _of_same_bundle(path, seal)
        if result.benchmark not in fresh and not (splits and result.kind == "captions")
    ]
    content = {
        "format": FORMAT,
        "bundle": bundle,
        "seal": seal,
        "results": [asdict(result) for result in results] + kept,
    }
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def require_own_results(path: Path) -> None:
    """Raise DataError where something of another hand has the name of results that are to be written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        own = isinstance(content, dict) and {"format", "bundle", "results"} <= content.keys()
    except OSError:
        return
    except ValueError:
        own = False
    if not own:
        raise DataError(f"{path}: is there, and no results of PocketCLIP's; choose another --output")


def _of_same_bundle(path: Path, seal: str) -> list[Result]:
    try:
        return read_results(path, seal)
    except DataError:  # missing, of an earlier version or another bundle, or damaged: made anew
        return []


def read_results(path: Path, seal: str | None = None) -> list[Result]:
    """Read results.json, which may be anybody's; raises DataError if it is missing, damaged or of another format.

    seal: of the bundle whose results they have to be; None: any.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(f"{path}: format {content['format']}, this version reads {FORMAT}; evaluate again")
        if seal is not None and content["seal"] != seal:
            raise DataError(f"{path}: is of another bundle than lies beside it; evaluate again")
        return [_result(path, one) for one in content["results"]]
    except FileNotFoundError:
        raise DataError(f"{path}: missing; `pocketclip evaluate BUNDLE` writes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); evaluate again") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file; a last line that was cut short is left out."""
    try:
        lines = path.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1] if line]
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error})") from None


def _result(path: Path, values: Any) -> Result:
    try:
        found: Result = TypeAdapter(Result).validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: damaged: {where or 'a result'}: {first['msg']}; evaluate again") from None
    recalls = set(RECALLS) if found.recall else set()
    if "top_1" not in found.intervals or not set(found.recall) == set(found.chance_recall) == recalls:
        raise DataError(f"{path}: damaged: {found.benchmark}: lacks an interval or a recall; evaluate again")
    return found
