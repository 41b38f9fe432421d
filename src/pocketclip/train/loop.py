"""The training loop: a recipe and shards in, a run folder with a bundle out."""

import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from pocketclip.bundle import save_bundle, seal_of
from pocketclip.data.batches import Batch, TrainingBatches, load_batches
from pocketclip.data.shards import Split
from pocketclip.device import Device, choose_device
from pocketclip.errors import CheckpointError, DataError, Stopped, TokenizerError, TrainingError
from pocketclip.recipe.schema import Recipe
from pocketclip.tokenizer import CaptionTokenizer, load_tokenizer
from pocketclip.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pocketclip.train.features import cache_features, features_path
from pocketclip.train.learner import Learner
from pocketclip.train.log import MetricsLog, ProgressLine
from pocketclip.train.memory import computed_tokens, fit_to_memory, memory_in_use
from pocketclip.train.ranks import Ranks, open_ranks
from pocketclip.train.run_folder import alone_in, check_folder, prepare_folder
from pocketclip.train.schedule import learning_rate
from pocketclip.train.teach import open_teacher
from pocketclip.train.tensorboard import TensorBoard, require_tensorboard
from pocketclip.train.watch import Seen, Watch

LOG_EVERY = 10
CHANCE = {"softmax": "ln(batch size)", "global": "ln(rows)", "sigmoid": "ln(batch size) + 1"}  # to a tenth


@dataclass
class Tally:
    """What has been counted so far in the run, across stops."""

    seconds: float = 0.0
    pairs: int = 0
    loss: float = math.nan
    metrics_bytes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass
class Counted:
    """What this rank has counted since the last line of the log."""

    pairs: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def train(recipe: Recipe, folder: Path, console: Console) -> Path:
    """Train a model, or go on with a run that was stopped; returns the bundle's folder.

    folder: the run's own; it must be new, empty, or hold a run of the same recipe. Under `torchrun` every process calls
    this; each makes its part of the batches, and the first writes the files and speaks.

    Raises TrainingError, CheckpointError, DataError or TokenizerError, and Stopped after Ctrl-C or SIGTERM.
    """
    if recipe.train.tensorboard:
        require_tensorboard()
    device = choose_device(recipe.train.device, recipe.train.precision)
    with open_ranks(device.device) as ranks:
        return _train(recipe, folder, console, device, ranks)


def _train(recipe: Recipe, folder: Path, console: Console, device: Device, ranks: Ranks) -> Path:
    """The same as one of the ranks."""
    if recipe.train.batch_size < ranks.count:
        raise TrainingError(
            f"train.batch_size = {recipe.train.batch_size}: each of the {ranks.count} processes needs a pair of it; "
            "raise it, or start fewer"
        )
    split = Split(recipe.data.folder, recipe.data.split)
    tokenizer = open_tokenizer(recipe)
    teacher = open_teacher(recipe, split) if recipe.train.distillation else None
    features = _features(recipe, split, console, ranks)
    batches = TrainingBatches(split, recipe, tokenizer.encode, ranks.rank, ranks.count, features, teacher)
    bundle = folder / "bundle"
    ranks.first_does(lambda: check_folder(folder, recipe))
    with alone_in(folder, ranks):
        if ranks.first_does(bundle.exists):
            console.print(f"{bundle} is complete; delete {folder} to train it anew")
            return bundle
        tokens = computed_tokens(require_pairs(batches[0, 0], split), device)
        fitted = ranks.first_does(lambda: fit_to_memory(recipe, tokens, device, ranks.count)[0])
        if fitted != recipe:
            console.print(
                f"a whole batch does not fit the memory: {fitted.train.chunk_size} pairs are embedded at once"
            )
        learner = Learner(fitted, device, recipe.train.steps_of_run(batches.steps_per_epoch), len(split), ranks)
        watch = Watch(recipe, folder, learner, tokenizer, batches.steps_per_epoch, console)
        run = Run(recipe, folder, console, learner, batches, watch)
        # What is refused until here leaves no trace: with the mistake mended the same name is free.
        ranks.first_does(lambda: prepare_folder(folder, recipe, device, ranks.count))
        run.resume()
        run.go()
        summary = {"rows": len(split), "steps": run.done, **vars(run.tally), **watch.summary(), **run.origin}
        ranks.first_does(lambda: save_bundle(bundle, watch.chosen(), recipe, tokenizer, summary))
    return bundle


def _features(recipe: Recipe, split: Split, console: Console, ranks: Ranks) -> Path | None:
    """The file of a locked image tower's embeddings, where one is of use; several ranks use it if it is there."""
    if not (recipe.has_constant_features and recipe.train.cache_features):
        return None
    if ranks.count > 1:
        return ranks.first_does(lambda: path if (path := features_path(recipe, split)).exists() else None)
    found = cache_features(recipe, split, console)
    torch.cuda.empty_cache()  # what is kept of a GPU for more of the same would not count as free
    return found


class Run:
    """One run in its folder."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        console: Console,
        learner: Learner,
        batches: TrainingBatches,
        watch: Watch,
    ) -> None:
        self.recipe, self.folder, self.console, self.watch = recipe, folder, console, watch
        self.learner, self.batches, self.ranks = learner, batches, learner.ranks
        self.origin = {"start": seal_of(Path(start))} if (start := recipe.train.start_from) else {}
        self.done, self.tally, self.here = 0, Tally(dropped=dict(batches.split.dropped)), Counted()
        vocabulary = watch.tokenizer.fingerprint()
        self.data = {"rows": len(batches.split), "data": batches.split.fingerprint(), "tokenizer": vocabulary}
        self.data |= self.origin
        if batches.teacher:
            self.data["teacher"] = batches.teacher.folder.name

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        checkpoint = self.ranks.first_does(lambda: load_checkpoint(self.folder / "checkpoint"))
        if checkpoint is None:
            return
        changed = [what for what, value in self.data.items() if checkpoint.description.get(what) != value]
        if changed:
            where = self.recipe.train.start_from if changed == ["start"] else self.recipe.data.folder
            raise CheckpointError(
                f"{self.folder}: was training on other files than {where} now holds ({changed[0]} "
                f"changed); restore them, or delete {self.folder} to start anew"
            )
        self.learner.restore(checkpoint.tensors)
        # Whatever memory is free now: other parts are rounded otherwise, and batch norms see them.
        self.learner.chunk_size = checkpoint.description.get("chunk_size", self.learner.chunk_size)
        self.done, self.tally = checkpoint.step, Tally(**checkpoint.description["tally"])
        self.watch.seen = Seen(**checkpoint.description.get("evaluations", {}))
        self.console.print(f"going on from step {self.done} of {self.learner.steps}")

    def go(self) -> None:
        """Train from where it is to the end of the run, saving on the way."""
        steps = self.learner.steps
        lines = ProgressLine(self.console, steps, self.done)
        path = self.folder / "metrics.jsonl" if self.ranks.first else None
        batches = load_batches(self.batches, self.done, steps, self.recipe.data.workers)
        before, losses = self.tally.seconds, list[Tensor]()
        with (
            stop_requested(once=self.ranks.count == 1) as stop,
            self._board() as self.watch.board,
            MetricsLog(path, self.tally.metrics_bytes, self.watch.board) as metrics,
            lines,
        ):
            if self.watch.due(self.done):  # the run was stopped before it could be
                self._evaluate()
                self._save(metrics)
            began = saved = time.monotonic()
            for batch in batches if not self.watch.verdict else ():
                self._count(batch)
                loss, gradient = self.learner.step(batch, self.done)
                losses.append(loss)
                self.done += 1
                stopping = self.ranks.any(stop.is_set()) and self.done < steps
                evaluating = self.watch.due(self.done)
                if self.done % LOG_EVERY == 0 or self.done == steps or stopping or evaluating:
                    self.tally.seconds = before + time.monotonic() - began
                    self._log(metrics, lines, losses, float(gradient))
                    losses = []
                if evaluating and not stopping:
                    began += self._evaluate()  # which is no training
                ended = self.done == steps or bool(self.watch.verdict)
                due = time.monotonic() - saved > self.recipe.train.checkpoint_minutes * 60
                if stopping or ended or (not losses and self.ranks.any(due)):
                    self._save(metrics)
                    saved = time.monotonic()
                if stopping:
                    raise Stopped(
                        f"stopped after step {self.done} of {steps}, saved in {self.folder}; the same command goes on"
                    )
                if ended:
                    break
        if self.watch.verdict:
            self.console.print(f"ended early after step {self.done} of {steps}: {self.watch.verdict}", highlight=False)

    def _board(self) -> AbstractContextManager[TensorBoard | None]:
        if not (self.recipe.train.tensorboard and self.ranks.first):
            return nullcontext()
        return TensorBoard(self.folder / "tensorboard", self.done)

    def _evaluate(self) -> float:
        return self.watch.evaluate(self.done, self.tally.pairs, self.tally.seconds)

    def _count(self, batch: Batch) -> None:
        self.here.pairs += len(require_pairs(batch, self.batches.split).pixels)
        self.here.dropped.update(batch.dropped)

    def _count_all_ranks(self) -> None:
        """Add what all ranks have counted since the last time to the run's tally."""
        total = Counter(self.tally.dropped)
        for one in self.ranks.gather_objects(self.here):
            self.tally.pairs += one.pairs
            total += one.dropped
        self.tally.dropped, self.here = dict(total), Counted()

    def _log(self, metrics: MetricsLog, lines: ProgressLine, losses: list[Tensor], gradient: float) -> None:
        self._count_all_ranks()
        done, each = self.done, torch.stack(losses)
        loss = float(each.mean())
        if not math.isfinite(loss) or not math.isfinite(gradient):
            raise TrainingError(
                f"the loss became {loss} between steps {done - len(losses) + 1} and {done}; "
                f"nothing was saved since the last checkpoint; try a lower train.learning_rate or a longer train.warmup"
            )
        self.tally.loss = loss
        self.watch.note_losses(each.tolist())
        rate = self.tally.pairs / self.tally.seconds
        memory = memory_in_use(self.learner.device) / 1e6
        metrics.write(
            {
                "step": done,
                "epoch": done / self.batches.steps_per_epoch,
                "loss": loss,
                "learning_rate": learning_rate(done - 1, self.learner.steps, self.recipe.train),
                "scale": float(self.learner.model.scale().detach()),
                "gradient_norm": gradient,
                "pairs": self.tally.pairs,
                "seconds": self.tally.seconds,
                "memory_mb": memory,
                "dropped": self.tally.dropped,
            }
        )
        shown = self.recipe.image.shown(done / self.learner.steps)
        left = (1 - shown) * self.tally.seconds / shown
        lines.update(done, loss, rate, memory, left)
        self._warn_if_stuck(done, loss)

    def _warn_if_stuck(self, done: int, loss: float) -> None:
        """Say so once, plainly, when a quarter of the run has taught nothing."""
        settings, steps = self.recipe.train, self.learner.steps
        due = max(LOG_EVERY, int(steps * max(0.25, 1.5 * settings.warmup)) // LOG_EVERY * LOG_EVERY)
        chance = settings.chance_loss(len(self.batches.split))
        if done == due and chance and loss > 0.97 * chance:
            self.console.print(
                f"[yellow]warning:[/] the loss is {loss:.2f}, which is {CHANCE[settings.loss]} = {chance:.2f}: nothing "
                "is being learned. Usual causes: captions that do not belong to their images, a learning rate too high "
                "(try a third of train.learning_rate) or a warm-up too short."
            )

    def _save(self, metrics: MetricsLog) -> None:
        self.tally.metrics_bytes = metrics.sync()
        description = {**self.data, "tally": vars(self.tally), "evaluations": vars(self.watch.seen)}
        description["chunk_size"] = self.learner.chunk_size
        checkpoint = Checkpoint(self.done, self.learner.state(), description)

        def save() -> None:
            save_checkpoint(self.folder / "checkpoint", checkpoint)
            self.watch.saved()

        self.ranks.first_does(save)


def require_pairs(batch: Batch, split: Split) -> Batch:
    """The batch; raises DataError if every row of it had to be dropped."""
    if not len(batch.pixels):
        reasons = ", ".join(f"{count} x {reason}" for reason, count in batch.dropped.items())
        raise DataError(f"{split.folder}: not one row of a batch, or of a process's part of it, can be used: {reasons}")
    return batch


def open_tokenizer(recipe: Recipe) -> CaptionTokenizer:
    """The data folder's tokenizer, or that of the bundle that training starts from, checked against the recipe."""
    path = Path(recipe.train.start_from or recipe.data.folder) / "tokenizer.json"
    tokenizer = load_tokenizer(path, recipe.text_tower.context_length, recipe.tokenizer.mend)
    if tokenizer.lowercase != recipe.tokenizer.lowercase:
        raise TokenizerError(
            f"{path}: was learned with tokenizer.lowercase = {str(tokenizer.lowercase).lower()}; run `pocketclip "
            "tokenizer` with this recipe, or change the setting"
        )
    if tokenizer.vocabulary_size > recipe.tokenizer.vocabulary_size:
        raise TokenizerError(
            f"{path}: has {tokenizer.vocabulary_size} entries, tokenizer.vocabulary_size is "
            f"{recipe.tokenizer.vocabulary_size}; run `pocketclip tokenizer` with this recipe"
        )
    return tokenizer


@contextmanager
def stop_requested(once: bool = True) -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set while the block runs.

    once: a second one of them acts as usual; else it changes nothing, as `torchrun` sends SIGTERM after a Ctrl-C.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous: dict[signal.Signals, Any] = {}

    def request(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        for one, handler in previous.items() if once else ():
            signal.signal(one, handler)

    for one in (signal.SIGINT, signal.SIGTERM):
        previous[one] = signal.signal(one, request)
    try:
        yield stop
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)
