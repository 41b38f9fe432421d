"""A locked image tower (LiT) whose embeddings are kept, beside one that computes them: time of an epoch, loss curves.

    python benchmarks/locked_tower.py --start runs/quickstart/bundle --output locked.json

Every turn is `pocketclip train` in a process of its own, on the embedded data, from the same bundle, without
augmentation. The sides take turns: `kept` reads the embeddings that `train.cache_features` keeps in the data folder;
`computed` decodes the images once (`data.cache`) and embeds them in every epoch; `decoded` decodes them in every
epoch too, as sets that do not fit the memory have to. Seconds are the run's own, by metrics.jsonl, its first epoch
left out; what it costs to embed all images once is told apart. The loss curves have to be equal but for the half
precision in which embeddings are kept: no line of the log may differ by more than 0.02 nats. Without --start a bundle
is trained for an epoch first.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

TOLERANCE = 0.02  # nats; float16 keeps 11 bits of each number of an embedding, and steps carry the difference on
SIDES = {
    "kept": ["train.cache_features=true"],
    "computed": ["train.cache_features=false", "data.cache=true"],
    "decoded": ["train.cache_features=false"],
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One run. seconds_per_epoch: without the first. seconds: of the whole process. losses: at each line of the log."""

    side: str
    seconds_per_epoch: float
    seconds: float
    losses: list[float]


def pocketclip(*arguments: str) -> None:
    """A verb, as a user calls it; its output is shown if it fails."""
    command = [sys.executable, "-m", "pocketclip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def run_turn(side: str, start: Path, data: Path, runs: Path, name: str, asked: argparse.Namespace) -> Turn:
    """Train once; read what the run wrote."""
    recipe = runs / "locked.toml"
    recipe.write_text("")
    settings = {
        "name": name, "data.folder": data, "train.start_from": start, "image_tower.locked_layers": 10_000,
        "train.epochs": asked.epochs, "train.batch_size": asked.batch_size, "train.learning_rate": 5e-4,
    }  # fmt: skip
    changes = [*(f"{key}={value}" for key, value in settings.items()), *SIDES[side]]
    began = time.perf_counter()
    pocketclip("train", str(recipe), *changes, "--runs", str(runs))
    seconds = time.perf_counter() - began
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["epoch"] >= 1)  # what is decoded once is decoded by then
    last = lines[-1]
    per_epoch = (last["seconds"] - first["seconds"]) / (last["epoch"] - first["epoch"])
    return Turn(side, per_epoch, seconds, [line["loss"] for line in lines])


def prepare(asked: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """(bundle to start from, data of its own, where embeddings are kept)."""
    data = folder / "data"
    pocketclip("pack", "openmoji", str(data))
    if asked.start:
        return asked.start, data
    pocketclip("tokenizer", "quickstart", f"data.folder={data}")
    pocketclip("train", "quickstart", f"data.folder={data}", "train.epochs=1", "name=start", "--runs", str(folder))
    return folder / "start" / "bundle", data


def compare(turns: list[Turn]) -> float:
    """Print the table; returns the largest difference of two loss curves, nats."""
    kept = next(turn for turn in turns if turn.side == "kept")
    most = 0.0
    print("\n| images | s an epoch (all turns) | times slower | loss, first and last | differs by at most |")
    print("|---|---|---|---|---|")
    fast = statistics.median(turn.seconds_per_epoch for turn in turns if turn.side == "kept")
    for side in SIDES:
        some = [turn for turn in turns if turn.side == side]
        each = [turn.seconds_per_epoch for turn in some]
        difference = max(abs(a - b) for turn in some for a, b in zip(turn.losses, kept.losses, strict=True))
        most = max(most, difference)
        print(
            f"| {side} | {statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f}) | "
            f"{statistics.median(each) / fast:.2f} | {some[0].losses[0]:.4f}, {some[0].losses[-1]:.4f} | "
            f"{difference:.1e} |"
        )
    return most


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=Path, help="a bundle; else one is trained for an epoch")
    parser.add_argument("--epochs", type=int, default=5, help="of each run; the first one is not timed")
    parser.add_argument("--batch-size", type=int, default=256, help="pairs")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--output", type=Path, help="where the figures go as JSON")
    return parser.parse_args()


def main() -> None:
    """Take turns, print, and fail where the curves differ."""
    asked = read_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start, data = prepare(asked, folder)
        turns = []
        for number in range(asked.rounds):
            for side in SIDES:
                turns.append(run_turn(side, start, data, folder, f"{side}-{number}", asked))
                print(f"round {number + 1}: {side} {turns[-1].seconds_per_epoch:.2f} s an epoch", flush=True)
    most = compare(turns)
    first, *later = [turn.seconds for turn in turns if turn.side == "kept"]
    if later:
        print(f"\nembedding all images once, and keeping that: {first - statistics.median(later):.1f} s")
    if asked.output:
        asked.output.write_text(json.dumps([asdict(turn) for turn in turns], indent=2) + "\n", encoding="utf-8")
    if most > TOLERANCE:
        sys.exit(f"loss curves differ by {most:.3f} nats, more than {TOLERANCE}")


if __name__ == "__main__":
    main()
