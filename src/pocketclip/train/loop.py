"""The training loop: a recipe and shards in, a run folder with a bundle out."""

import json
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch
from filelock import FileLock, Timeout
from rich.console import Console
from torch import Tensor, nn

from pocketclip.bundle import save_bundle
from pocketclip.data.batches import Batch, TrainingBatches, load_batches
from pocketclip.data.images import normalise
from pocketclip.data.shards import Split
from pocketclip.device import Device, choose_device, describe_environment
from pocketclip.errors import CheckpointError, DataError, Stopped, TokenizerError, TrainingError
from pocketclip.files import remove_unfinished, whole_file
from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import differences, load_recipe, to_toml
from pocketclip.tokenizer import CaptionTokenizer, load_tokenizer
from pocketclip.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pocketclip.train.log import MetricsLog, ProgressLine
from pocketclip.train.losses import contrastive_loss
from pocketclip.train.optimizer import build_optimizer
from pocketclip.train.schedule import learning_rate

LOG_EVERY = 10
LOCK = "training.lock"
CHANGEABLE = ("data.workers", "train.checkpoint_minutes", "evaluate.")  # settings that cannot change the weights


class Learner:
    """A model with its optimizer on a device: what one step needs."""

    def __init__(self, recipe: Recipe, device: Device, steps: int) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.steps = recipe, device, steps
        self.model = CLIP(recipe).to(device.device).train()
        self.optimizer = build_optimizer(self.model, recipe.train)

    def step(self, batch: Batch, number: int) -> tuple[Tensor, Tensor]:
        """One optimisation step; returns the loss and the gradient's length before clipping, still on the device.

        number: 0 for the first step of the run; it sets the learning rate.
        """
        settings = self.recipe.train
        device = self.device.device
        tokens = batch.tokens.to(device, non_blocking=True)
        with self.device.autocast():
            images = self.model.encode_images(normalise(batch.pixels.to(device, non_blocking=True), self.recipe.image))
            texts = self.model.encode_texts(tokens, batch.ends.to(device, non_blocking=True))
        loss = contrastive_loss(images, texts, self.model.scale(), tokens, settings.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        length = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        rate = learning_rate(number, self.steps, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.clamp_scale()
        return loss.detach(), length.detach()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, but for the data's position."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        if self.device.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state that `state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if "random_cuda" in state and self.device.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"])


@dataclass
class Tally:
    """What has been counted so far in the run, across stops."""

    seconds: float = 0.0
    pairs: int = 0
    loss: float = math.nan
    metrics_bytes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


def train(recipe: Recipe, folder: Path, console: Console) -> Path:
    """Train a model, or go on with a run that was stopped; returns the bundle's folder.

    folder: the run's own; it must be new, empty, or hold a run of the same recipe.

    Raises TrainingError, CheckpointError, DataError or TokenizerError, and Stopped after Ctrl-C or SIGTERM.
    """
    device = choose_device(recipe.train.device, recipe.train.precision)
    split = Split(recipe.data.folder, recipe.data.split)
    tokenizer = open_tokenizer(recipe)
    batches = TrainingBatches(split, recipe, tokenizer.encode)
    bundle = folder / "bundle"
    check_folder(folder, recipe)
    with alone_in(folder):
        if bundle.exists():
            console.print(f"{bundle} is complete; delete {folder} to train it anew")
            return bundle
        prepare_folder(folder, recipe, device)
        learner = Learner(recipe, device, batches.steps_per_epoch * recipe.train.epochs)
        run = Run(recipe, folder, console, learner, batches, tokenizer.fingerprint())
        run.resume()
        run.go()
        summary = {"steps": run.learner.steps, **vars(run.tally)}
        save_bundle(bundle, run.learner.model, recipe, tokenizer, summary)
    return bundle


class Run:
    """One run in its folder."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        console: Console,
        learner: Learner,
        batches: TrainingBatches,
        vocabulary: str,
    ) -> None:
        self.recipe, self.folder, self.console = recipe, folder, console
        self.learner, self.batches = learner, batches
        self.start, self.tally = 0, Tally(dropped=dict(batches.split.dropped))
        self.data = {"rows": len(batches.split), "data": batches.split.fingerprint(), "tokenizer": vocabulary}

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        checkpoint = load_checkpoint(self.folder / "checkpoint")
        if checkpoint is None:
            return
        changed = [what for what, value in self.data.items() if checkpoint.description.get(what) != value]
        if changed:
            raise CheckpointError(
                f"{self.folder}: was training on other files than {self.recipe.data.folder} now holds ({changed[0]} "
                f"changed); restore them, or delete {self.folder} to start anew"
            )
        self.learner.restore(checkpoint.tensors)
        self.start, self.tally = checkpoint.step, Tally(**checkpoint.description["tally"])
        self.console.print(f"going on from step {self.start} of {self.learner.steps}")

    def go(self) -> None:
        """Train from `start` to the end of the run, saving on the way."""
        steps = self.learner.steps
        lines = ProgressLine(self.console, steps, self.start)
        log = MetricsLog(self.folder / "metrics.jsonl", self.tally.metrics_bytes)
        batches = load_batches(self.batches, self.start, steps, self.recipe.data.workers)
        before, losses = self.tally.seconds, list[Tensor]()
        began = saved = time.monotonic()
        with stop_requested() as stop, log as metrics, lines:
            for done, batch in enumerate(batches, start=self.start + 1):
                self._count(batch)
                loss, gradient = self.learner.step(batch, done - 1)
                losses.append(loss)
                stopping = stop.is_set() and done < steps
                if done % LOG_EVERY == 0 or done == steps or stopping:
                    self.tally.seconds = before + time.monotonic() - began
                    self._log(metrics, lines, done, losses, float(gradient))
                    losses = []
                due = time.monotonic() - saved > self.recipe.train.checkpoint_minutes * 60
                if stopping or done == steps or (due and not losses):
                    self._save(metrics, done)
                    saved = time.monotonic()
                if stopping:
                    raise Stopped(
                        f"stopped after step {done} of {steps}, saved in {self.folder}; the same command goes on"
                    )

    def _count(self, batch: Batch) -> None:
        self.tally.pairs += len(require_pairs(batch, self.batches.split).pixels)
        self.tally.dropped = dict(Counter(self.tally.dropped) + batch.dropped)

    def _log(self, metrics: MetricsLog, lines: ProgressLine, done: int, losses: list[Tensor], gradient: float) -> None:
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss) or not math.isfinite(gradient):
            raise TrainingError(
                f"the loss became {loss} between steps {done - len(losses) + 1} and {done}; "
                f"nothing was saved since the last checkpoint; try a lower train.learning_rate or a longer train.warmup"
            )
        self.tally.loss = loss
        rate = self.tally.pairs / self.tally.seconds
        memory = memory_in_use(self.learner.device) / 1e6
        metrics.write(
            {
                "step": done,
                "epoch": done / self.batches.steps_per_epoch,
                "loss": loss,
                "learning_rate": self.learner.optimizer.param_groups[0]["lr"],
                "scale": float(self.learner.model.scale().detach()),
                "gradient_norm": gradient,
                "pairs": self.tally.pairs,
                "seconds": self.tally.seconds,
                "memory_mb": memory,
                "dropped": self.tally.dropped,
            }
        )
        left = (self.learner.steps - done) * self.tally.seconds / done
        lines.update(done, loss, rate, memory, left)
        self._warn_if_stuck(done, loss)

    def _warn_if_stuck(self, done: int, loss: float) -> None:
        """Say so once, plainly, when a quarter of the run has taught nothing."""
        settings, steps = self.recipe.train, self.learner.steps
        due = max(LOG_EVERY, int(steps * max(0.25, 1.5 * settings.warmup)) // LOG_EVERY * LOG_EVERY)
        chance = math.log(settings.batch_size)
        if done == due and loss > 0.97 * chance:
            self.console.print(
                f"[yellow]warning:[/] the loss is {loss:.2f}, which is ln(batch size) = {chance:.2f}: nothing is being "
                "learned. Usual causes: captions that do not belong to their images, a learning rate too high "
                "(try a third of train.learning_rate) or a warm-up too short."
            )

    def _save(self, metrics: MetricsLog, step: int) -> None:
        self.tally.metrics_bytes = metrics.sync()
        description = {**self.data, "tally": vars(self.tally)}
        save_checkpoint(self.folder / "checkpoint", Checkpoint(step, self.learner.state(), description))


def require_pairs(batch: Batch, split: Split) -> Batch:
    """The batch; raises DataError if every row of it had to be dropped."""
    if not len(batch.pixels):
        reasons = ", ".join(f"{count} x {reason}" for reason, count in batch.dropped.items())
        raise DataError(f"{split.folder}: not one row of a whole batch can be used: {reasons}")
    return batch


def open_tokenizer(recipe: Recipe) -> CaptionTokenizer:
    """The data folder's tokenizer, checked against the recipe."""
    path = Path(recipe.data.folder) / "tokenizer.json"
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


def check_folder(folder: Path, recipe: Recipe) -> None:
    """Raise TrainingError if a folder holds a run of another recipe, or something else than a run."""
    kept = folder / "recipe.toml"
    if kept.exists():
        changed = [key for key in differences(load_recipe(kept), recipe) if not key.startswith(CHANGEABLE)]
        if changed:
            raise TrainingError(
                f"{folder}: holds a run of another recipe ({', '.join(changed)} differ); choose another name=..., "
                f"or delete the folder"
            )
    elif folder.exists() and any(file.name != LOCK and not file.name.endswith(".part") for file in folder.iterdir()):
        raise TrainingError(f"{folder}: is not empty and holds no run; choose another name=...")


def prepare_folder(folder: Path, recipe: Recipe, device: Device) -> None:
    """Write recipe.toml and environment.json, as they are for this start; a killed process's leftovers go."""
    texts = {
        "recipe.toml": to_toml(recipe),
        "environment.json": json.dumps(describe_environment(device), indent=2) + "\n",
    }
    try:
        remove_unfinished(folder, "*")
        for name, text in texts.items():
            with whole_file(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written: {error.strerror}; choose another run folder") from None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the run's folder; raises TrainingError while another process trains in it.

    The system lets go of the lock when its process ends, however that happens.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise TrainingError(
            f"{folder}: another process is training in it; wait for it, or choose another name=..."
        ) from None
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written: {error.strerror}; choose another run folder") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set while the block runs; a second one of them acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous: dict[signal.Signals, Any] = {}

    def request(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        for one, handler in previous.items():
            signal.signal(one, handler)

    for one in (signal.SIGINT, signal.SIGTERM):
        previous[one] = signal.signal(one, request)
    try:
        yield stop
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)


def memory_in_use(device: Device) -> int:
    """Bytes: of the GPU at most so far, or of this process now."""
    if device.device.type == "cuda":
        return torch.cuda.max_memory_allocated(device.device)
    return int(psutil.Process().memory_info().rss)
