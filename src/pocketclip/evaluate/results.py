"""What an evaluation leaves on disk, and how to read it back; no torch.

results.json                every figure, with its chance level
SPLIT-predictions.jsonl     a line an image: its captions, its rank, its five best captions with cosines
embeddings.npz              the captions with their embeddings, and the images' for each split
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pocketclip.errors import DataError
from pocketclip.files import whole_file

FORMAT = 1


@dataclass(frozen=True)
class GroupResult:
    """Accuracy on the images of one group, percent."""

    images: int
    top_1: float
    top_5: float


@dataclass(frozen=True)
class Result:
    """One benchmark's figures; accuracies and recalls in percent.

    candidates: the number of captions that each image was compared with.
    chance_top_1, chance_top_5: what blind guessing would get.
    mean_group_top_1: the mean over groups, so that large groups do not hide small ones.
    recall: image_to_text_recall@k and text_to_image_recall@k, within the benchmark's own images and captions.
    dropped: reason -> images that could not be evaluated.
    """

    benchmark: str
    images: int
    candidates: int
    top_1: float
    top_5: float
    chance_top_1: float
    chance_top_5: float
    mean_group_top_1: float
    groups: dict[str, GroupResult]
    recall: dict[str, float]
    dropped: dict[str, int] = field(default_factory=dict)


def write_results(path: Path, bundle: str, results: list[Result]) -> None:
    """Write results.json whole or not at all."""
    content = {"format": FORMAT, "bundle": bundle, "results": [asdict(result) for result in results]}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_results(path: Path) -> list[Result]:
    """Read results.json; raises DataError if it is missing or of another format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DataError(f"{path}: format {content['format']}, this version reads {FORMAT}; evaluate again")
        return [_result(one) for one in content["results"]]
    except FileNotFoundError:
        raise DataError(f"{path}: missing; `pocketclip evaluate BUNDLE` writes it") from None
    except (ValueError, KeyError, TypeError) as error:
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


def _result(values: dict[str, Any]) -> Result:
    groups = {name: GroupResult(**group) for name, group in values["groups"].items()}
    return Result(**{**values, "groups": groups})
