"""A run that was trained and evaluated, read back from its folder; no torch."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pocketclip.data.images import BadImage, Pixels, open_image, to_square
from pocketclip.data.shards import Split, read_manifest
from pocketclip.errors import DataError
from pocketclip.evaluate.changes import Change, read_changes
from pocketclip.evaluate.results import Result, read_lines, read_results
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import load_resolved

Vectors = NDArray[np.float32]
LOGGED = ("step", "pairs", "seconds", "loss", "learning_rate", "memory_mb")
EVALUATED = ("split", "step", "pairs", "seconds", "top_1", "top_5", "chance_top_1")
TRAINING = {"steps", "pairs", "seconds", "loss"}


@dataclass(frozen=True)
class Captions:
    """Every caption that images were compared with. texts: [captions, width], of length one."""

    place: dict[str, int]
    texts: Vectors

    def cosines(self, images: Vectors, captions: list[str]) -> Vectors:
        """Cosines of images [images, width] of length one with some of the captions: [images, captions]."""
        result: Vectors = images @ self.texts[[self.place[caption] for caption in captions]].T
        return result


@dataclass(frozen=True)
class EvaluatedSplit:
    """One split of a run's evaluation, with what is needed to show its images.

    predictions: the lines of SPLIT-predictions.jsonl. images: their embeddings, [predictions, width], of length one.
    """

    result: Result
    predictions: list[dict[str, Any]]
    images: Vectors
    captions: Captions
    shards: Split

    @property
    def name(self) -> str:
        """The split's name."""
        return self.result.benchmark

    def thumbnail(self, number: int, size: int) -> Pixels:
        """The image of one prediction as the model saw it: uint8 [size, size, 3].

        Raises DataError if the shards no longer hold the image that was evaluated.
        """
        prediction, shards = self.predictions[number], self.shards
        row = prediction["row"]
        try:
            if not 0 <= row < len(shards) or not set(prediction["captions"]) <= set(shards.captions(row)):
                raise BadImage("other captions than it was evaluated with")
            return to_square(open_image(shards.image(row)), size)
        except BadImage as error:
            raise DataError(f"{shards.folder}: row {row} of {shards.name}: {error}; evaluate the run again") from None


class FinishedRun:
    """A run's folder, read and checked.

    recipe.toml, environment.json, metrics.jsonl, bundle/bundle.json and evaluation/results.json are read at once,
    embeddings and predictions where they are asked for.

    Raises DataError naming the file that is missing or damaged, and the command that writes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        training = f"`pocketclip train` writes it; is {folder} a run's folder?"
        recipe = _existing(folder / "recipe.toml", training)
        self.recipe: Recipe = load_resolved(recipe)
        self.recipe_text = recipe.read_text(encoding="utf-8")
        self.environment = json_object(folder / "environment.json", training)
        self.metrics, self.evaluations = read_metrics(folder), read_evaluations(folder)
        unfinished = "`pocketclip train` writes it when the run is complete; the same command goes on with it"
        bundle = json_object(folder / "bundle" / "bundle.json", unfinished)
        self.training: dict[str, Any] = bundle.get("training", {})
        if not isinstance(self.training, dict) or not set(self.training) >= TRAINING:
            raise DataError(f"{folder / 'bundle' / 'bundle.json'}: does not tell of its training; train the run anew")
        self.seal = str(bundle.get("seal", ""))
        self.results = read_results(
            _existing(folder / "evaluation" / "results.json", self._evaluating), self.seal or None
        )
        self.data = Path(self.recipe.data.folder)
        self.manifest = read_manifest(self.data) if (self.data / "manifest.json").exists() else {}

    @property
    def _evaluating(self) -> str:
        return f"`pocketclip evaluate {self.folder / 'bundle'}` writes it"

    @cached_property
    def parameters(self) -> int | None:
        """Numbers in the bundle's weights; None where they cannot be read."""
        return count_parameters(self.folder / "bundle" / "model.safetensors")

    @property
    def chance_loss(self) -> float | None:
        """The loss of a model that has learned nothing, nats; None where nobody knows."""
        return self.recipe.train.chance_loss(self.training.get("rows", 0))

    @cached_property
    def changes(self) -> list[Change]:
        """What training changed on each split, where it started from a bundle that was evaluated too."""
        return read_changes(self.folder / "evaluation") if self.recipe.train.start_from else []

    def test_splits(self) -> list[EvaluatedSplit]:
        """The evaluated splits that were not trained on; all of them if there are no others."""
        splits = [result for result in self.results if result.kind == "captions"]
        unseen = [result for result in splits if result.benchmark != self.recipe.data.split]
        if not splits:
            return []
        path = _existing(self.folder / "evaluation" / "embeddings.npz", self._evaluating)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                place = {caption: number for number, caption in enumerate(json.loads(arrays["captions"].tobytes()))}
                captions = Captions(place, _of_length_one(arrays["texts"]))
                return [
                    self._split(result, _of_length_one(arrays[f"images_{result.benchmark}"]), captions)
                    for result in unseen or splits
                ]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: damaged ({error}); evaluate the run again") from None

    def _split(self, result: Result, images: Vectors, captions: Captions) -> EvaluatedSplit:
        path = self.folder / "evaluation" / f"{result.benchmark}-predictions.jsonl"
        predictions = read_lines(_existing(path, self._evaluating))
        if not len(predictions) == len(images) == result.images:
            raise DataError(
                f"{path}: has {len(predictions)} lines, embeddings.npz {len(images)} images and results.json "
                f"{result.images}; they are of different evaluations: evaluate the run again"
            )
        return EvaluatedSplit(result, predictions, images, captions, Split(self.data, result.benchmark))


def short_names(sources: Sequence[Path]) -> list[str]:
    """What runs, or results.json files, are called side by side: their folders' names; whole paths where two agree."""

    def short(path: Path) -> str:
        path = path.resolve()
        if path.name != "results.json":
            return path.name.removesuffix(".json")
        return path.parents[1 if path.parent.name == "evaluation" else 0].name

    names = [short(one) for one in sources]
    return names if len(set(names)) == len(names) else [str(one) for one in sources]


def count_parameters(path: Path) -> int | None:
    """Numbers in a file of weights, read from its header; None where there is none."""
    try:
        with safe_open(path, framework="np") as weights:
            return sum(int(prod(weights.get_slice(name).get_shape())) for name in weights.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, at least one; raises DataError where there is none."""
    path = folder / "metrics.jsonl"
    lines = read_lines(_existing(path, f"`pocketclip train` writes it; is {folder} a run's folder?"))
    if not lines:
        raise DataError(f"{path}: holds no whole line; train the run anew")
    _require_keys(path, lines, LOGGED)
    return lines


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's evaluations during training; none where there were none."""
    path = folder / "evaluations.jsonl"
    lines = read_lines(path) if path.exists() else []
    _require_keys(path, lines, EVALUATED)
    return lines


def _require_keys(path: Path, lines: Sequence[Any], keys: Sequence[str]) -> None:
    """Raise DataError where a line of a log lacks what figures are made of."""
    for number, line in enumerate(lines, start=1):
        lacking = [key for key in keys if not isinstance(line, dict) or key not in line]
        if lacking:
            raise DataError(f"{path}: line {number} is damaged (no {lacking[0]}); train the run anew")


def _of_length_one(vectors: NDArray[Any]) -> Vectors:
    """Undo the rounding of the stored half-precision vectors."""
    wide = vectors.astype(np.float32)
    result: Vectors = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return result


def _existing(path: Path, origin: str) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: missing; {origin}")
    return path


def json_object(path: Path, origin: str) -> dict[str, Any]:
    """A JSON object in a file; raises DataError, with `origin` where it is missing."""
    try:
        found = json.loads(_existing(path, origin).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); train the run anew") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a JSON object; train the run anew")
    return found
