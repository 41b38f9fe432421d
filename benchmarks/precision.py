"""The loss curve of ViT-B/32 in bfloat16 beside float32's, over seeds.

    python benchmarks/precision.py --data data/openmoji --runs runs/precision

Each run is `pocketclip train` with our default towers; runs differ in `train.precision` and `seed` alone. The losses
are those of metrics.jsonl, means over ten steps; `pocketclip report` draws all curves in one figure. Runs that are
there are not trained again.
"""

import argparse
import json
import statistics
from itertools import combinations
from pathlib import Path

from rich.console import Console

from pocketclip.recipe.toml import parse_recipe
from pocketclip.train.loop import train

PRECISIONS = ("float32", "bfloat16")


def losses(precision: str, seed: int, asked: argparse.Namespace) -> list[float]:
    """Of a run, every ten steps, nats."""
    name = f"{precision}-{seed}"
    training = {"precision": precision, "steps": asked.steps, "batch_size": asked.batch_size}
    training |= {"learning_rate": 1e-4, "warmup": 0.2}  # at 5e-4 so short a run learns nothing
    values = {"name": name, "seed": seed, "data": {"folder": str(asked.data)}, "train": training}
    tokenizer = {"tokenizer": {"vocabulary_size": 2048}}  # the quickstart's
    train(parse_recipe(values | tokenizer, "benchmarks/precision.py"), asked.runs / name, Console(stderr=True))
    lines = map(json.loads, (asked.runs / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if line["step"] % 10 == 0]  # a run that was stopped wrote one more


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/openmoji"), help="folder that `pocketclip pack` wrote")
    parser.add_argument("--runs", type=Path, default=Path("runs/precision"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    asked = parser.parse_args()
    curves = {kind: [losses(kind, seed, asked) for seed in asked.seeds] for kind in PRECISIONS}
    exact, rounded = curves.values()
    print(f"{'step':>6}{'float32, by seed':>28}{'bfloat16, by seed':>28}{'same seed':>12}{'two seeds':>12}")
    for place, step in enumerate(range(10, asked.steps + 1, 10)):
        both = [[f"{curve[place]:.3f}" for curve in some] for some in (exact, rounded)]
        same = statistics.mean(abs(a[place] - b[place]) for a, b in zip(exact, rounded, strict=True))
        spread = statistics.mean(abs(a[place] - b[place]) for a, b in combinations(exact, 2))
        print(f"{step:>6}{' '.join(both[0]):>28}{' '.join(both[1]):>28}{same:>12.4f}{spread:>12.4f}")
    print("same seed: mean distance of the precisions; two seeds: mean distance of two float32 runs; nats")


if __name__ == "__main__":
    main()
