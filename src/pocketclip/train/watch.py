"""Evaluation during training: how good the weights are so far, which were the best, and whether to go on.

evaluations.jsonl    a line an evaluation and split
best/                the best weights so far, where the recipe chooses by them
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from pocketclip.bundle import Bundle
from pocketclip.evaluate.benchmarks.catalogue import Place
from pocketclip.evaluate.everything import measure_all, usable_places
from pocketclip.evaluate.results import RECALLS_AT_1, Result
from pocketclip.evaluate.splits import require_splits
from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import Recipe
from pocketclip.tokenizer import CaptionTokenizer
from pocketclip.train.best import forget_others, load_best, save_best
from pocketclip.train.learner import Learner
from pocketclip.train.log import MetricsLog
from pocketclip.train.tensorboard import TensorBoard


@dataclass(frozen=True)
class Seen:
    """What evaluations have found so far; a checkpoint keeps it.

    step: of the last one. seconds: that all of them took. log_bytes: length of evaluations.jsonl.
    losses, steps: sum of the training losses since the last one, and of how many steps.
    best, best_step, best_seal: by what the recipe chooses, at which step, the SHA-256 of its weights.
    worse: evaluations since the best one.
    """

    step: int = 0
    seconds: float = 0.0
    log_bytes: int = 0
    losses: float = 0.0
    steps: int = 0
    best: float | None = None
    best_step: int = 0
    best_seal: str = ""
    worse: int = 0


class Watch:
    """Evaluates a learner's weights, as the bundle would have them, every so many epochs and at the end.

    Nothing that training depends on is changed. All ranks call the same methods; the first evaluates while others wait.
    Raises DataError for a split that is missing.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        learner: Learner,
        tokenizer: CaptionTokenizer,
        steps_per_epoch: int,
        console: Console,
    ) -> None:
        self.recipe, self.folder, self.learner, self.tokenizer = recipe, folder, learner, tokenizer
        self.console, self.ranks, self.seen = console, learner.ranks, Seen()
        self.board: TensorBoard | None = None  # which gets the same lines as the log
        self.data, self.by, self.patience = Path(recipe.data.folder), recipe.train.best_by, recipe.train.patience
        self.steps_per_epoch, self.interval = steps_per_epoch, recipe.evaluate.every * steps_per_epoch
        self.places: list[Place] = []
        if self.interval:
            self.ranks.first_does(lambda: require_splits(self.data, recipe.evaluate.splits))
            self.places = self.ranks.first_does(lambda: usable_places(recipe))
            for asked, place in zip(recipe.evaluate.benchmarks, self.places, strict=True):
                if self.by in (asked, asked.partition("=")[0]):
                    self.by = place.name

    def due(self, step: int) -> bool:
        """Whether the weights after a step are to be evaluated, and have not been."""
        if not self.interval or step <= self.seen.step:
            return False
        before, now = (int(number / self.interval + 1e-6) for number in (step - 1, step))
        return now > before or step == self.learner.steps

    @property
    def verdict(self) -> str:
        """Why the run is to end early; empty while it goes on."""
        seen = self.seen
        if not self.patience or seen.worse < self.patience:
            return ""
        value = f"mean loss {seen.best:.3f}" if self.by == "loss" else f"top-1 {seen.best:.1f} % on {self.by}"
        return f"{value} at step {seen.best_step} was not bettered in {seen.worse} evaluations"

    def note_losses(self, losses: Sequence[float]) -> None:
        """Tell the training losses of more steps."""
        total = self.seen.losses
        for loss in losses:  # one by one, which `sum` does not: the same wherever a run was stopped
            total += loss
        self.seen = replace(self.seen, losses=total, steps=self.seen.steps + len(losses))

    def evaluate(self, step: int, pairs: int, seconds: float) -> float:
        """Evaluate the weights after a step; returns the seconds that it took.

        pairs, seconds: of training so far.
        """
        began = time.monotonic()
        self.seen = self.ranks.first_does(lambda: self._evaluate(step, pairs, seconds))
        return time.monotonic() - began

    def _evaluate(self, step: int, pairs: int, seconds: float) -> Seen:
        began = time.monotonic()
        model, loss = self.learner.finished(), self.seen.losses / max(1, self.seen.steps)
        results = self._measure(model)
        took = time.monotonic() - began
        position = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "pairs": pairs,
            "seconds": seconds,
            "loss": loss,
        }
        length = self._write([position | _figures(result) | {"evaluation_seconds": took} for result in results])
        found = [f"{one.benchmark} top-1 {one.top_1:.1f} %, top-5 {one.top_5:.1f} %" for one in results]
        said = ", ".join(found or [f"mean loss {loss:.3f}"])
        self.console.print(
            f"step {step}/{self.learner.steps}  {said}  evaluated in {took:.1f} s", highlight=False, markup=False
        )
        seen = replace(self.seen, step=step, seconds=self.seen.seconds + took, log_bytes=length, losses=0.0, steps=0)
        values = {one.benchmark: one.top_1 for one in results} | {"loss": loss}
        return self._judged(seen, values[self.by], model) if self.by else seen

    def _judged(self, seen: Seen, value: float, model: CLIP) -> Seen:
        """Keep the weights if they are better than all before."""
        better = seen.best is None or (value < seen.best if self.by == "loss" else value > seen.best)
        if not better:
            return replace(seen, worse=seen.worse + 1)
        seal = save_best(self.folder / "best", seen.step, model)
        return replace(seen, best=value, best_step=seen.step, best_seal=seal, worse=0)

    def _measure(self, model: CLIP) -> list[Result]:
        bundle = Bundle(model, self.recipe, self.tokenizer, {}, self.learner.device)
        with evaluation_mode(model):
            return measure_all(bundle, self.places)

    def chosen(self) -> CLIP:
        """The model for the bundle: with the best weights where the recipe asks for them, else the last ones."""
        model = self.learner.finished()
        if self.by:
            load_best(self.folder / "best", self.seen.best_step, self.seen.best_seal, model)
        return model

    def saved(self) -> None:
        """To be told that a checkpoint holds what was seen so far: older best weights are needed no more."""
        if self.by:
            forget_others(self.folder / "best", self.seen.best_step)

    def summary(self) -> dict[str, Any]:
        """What is worth knowing of it in bundle.json."""
        found: dict[str, Any] = {"evaluation_seconds": self.seen.seconds} if self.interval else {}
        if self.by:
            found["best"] = {"by": self.by, "value": self.seen.best, "step": self.seen.best_step}
        return found | ({"ended_early": self.verdict} if self.verdict else {})

    def _write(self, lines: Sequence[dict[str, Any]]) -> int:
        """Append to the log, in the place of what a killed process may have written; returns its length in bytes."""
        with MetricsLog(self.folder / "evaluations.jsonl", self.seen.log_bytes, self.board) as log:
            for line in lines:
                log.write(line)
            return log.sync()


def _figures(result: Result) -> dict[str, Any]:
    """What the log keeps of a result; accuracies and recalls in percent."""
    names = ("images", "candidates", "top_1", "top_5", "chance_top_1", "chance_top_5")
    figures = {name: getattr(result, name) for name in names}
    return {"split": result.benchmark} | figures | {name: result.recall[name] for name in RECALLS_AT_1 if result.recall}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """What is random or learns from batches is off in the block; then each part is as it was, locked ones too."""
    before = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
