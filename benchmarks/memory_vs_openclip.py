"""Memory of a ViT-B/32 training step beside OpenCLIP's, and the largest batch that each trains in so much memory.

    python benchmarks/memory_vs_openclip.py --data data/openmoji --limit 16

Each figure is the most that a process of its own had resident (VmHWM), model, optimizer and library included, or on a
GPU what torch had allocated there; a first step with two pairs makes the optimizer's state. OpenCLIP's largest batch is
looked for by a line through smaller ones and then tried, without accumulation, which it has, but which changes its
loss. Ours is tried at `--times` of that: the batch is embedded in parts by itself (gradient caching), and its gradient
is the whole batch's. benchmarks/openclip.py says how to install OpenCLIP.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from openclip import OpenCLIPLearner, import_open_clip
from pocketclip.device import Device, choose_device
from pocketclip.train import memory
from pocketclip.train.learner import Learner
from pocketclip.train.memory import computed_tokens, fit_to_memory, memory_in_use
from throughput import SCHEDULE_STEPS, draw_pairs, recipe_for, wait


def step_alone(side: str, pairs: int, limit: float, data: Path) -> dict[str, float]:
    """Bytes and seconds of one step of `pairs` pairs, in this process."""
    device = choose_device()
    vocabulary = import_open_clip().SimpleTokenizer().vocab_size
    recipe = recipe_for(pairs, vocabulary)
    small, whole = (
        draw_pairs(recipe_for(2, vocabulary), data, 1)[0],
        draw_pairs(recipe, data, 1, side == "open_clip")[0],
    )
    chunk = 0
    if side == "ours":
        memory.free_memory = lambda _device: limit - resident(device)
        recipe, _ = fit_to_memory(recipe, computed_tokens(whole.ours, device), device)
        chunk = recipe.train.chunk_size
        ours = Learner(recipe, device, SCHEDULE_STEPS)
        ours.step(small.ours, 0)
        began = time.perf_counter()
        ours.step(whole.ours, 1)
    else:
        theirs = OpenCLIPLearner(recipe, device, recipe.image_tower.patch_size, SCHEDULE_STEPS, 500)
        theirs.step(small.images, small.texts, 0)
        began = time.perf_counter()
        theirs.step(whole.images, whole.texts, 1)
    wait(device)
    return {"bytes": resident(device), "seconds": time.perf_counter() - began, "chunk": chunk}


def resident(device: Device) -> float:
    """The most bytes that this process has had so far: resident, or allocated on its GPU."""
    if device.device.type == "cuda":
        return float(memory_in_use(device))
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def step(side: str, pairs: int, settings: argparse.Namespace) -> dict[str, float]:
    """The same in a process of its own; prints what it found."""
    command = [sys.executable, __file__, "--side", side, str(pairs), "--limit", str(settings.limit)]
    done = subprocess.run([*command, "--data", str(settings.data)], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    parts = f", {found['chunk']:.0f} pairs at a time" if found["chunk"] else ""
    print(f"{side:<10} {pairs:>7,} pairs: {found['bytes'] / 1e9:6.2f} GB, {found['seconds']:7.1f} s{parts}", flush=True)
    return found


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/openmoji"), help="folder that `pocketclip pack` wrote")
    parser.add_argument("--limit", type=float, default=16, help="memory, GB")
    parser.add_argument("--pairs", type=int, nargs="+", default=(32, 128), help="batches to compare")
    parser.add_argument("--times", type=float, default=20, help="our batch, in the largest of OpenCLIP's; 0: none")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    limit = settings.limit * 1e9
    if settings.side:
        side, pairs = settings.side
        print(json.dumps(step_alone(side, int(pairs), limit, settings.data)))
        return
    for pairs in settings.pairs:
        theirs, ours = (step(side, pairs, settings) for side in ("open_clip", "ours"))
        print(f"ratio of memory at {pairs} pairs: {ours['bytes'] / theirs['bytes']:.2f}")
    if not settings.times:
        return
    few, more = 2 * settings.pairs[0], 6 * settings.pairs[0]
    near, far = (step("open_clip", pairs, settings)["bytes"] for pairs in (few, more))
    largest = int(few + (more - few) * (limit - near) / (far - near))
    while (found := step("open_clip", largest, settings))["bytes"] > limit:
        largest = int(largest * 0.99 * limit / found["bytes"])
    pairs = int(largest * settings.times)
    ours = step("ours", pairs, settings)
    print(f"OpenCLIP trains {largest:,} pairs in {settings.limit:g} GB; ours {pairs:,} in {ours['bytes'] / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
