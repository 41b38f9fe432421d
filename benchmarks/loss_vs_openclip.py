"""The softmax loss beside OpenCLIP's `ClipLoss`: time, peak memory, values and gradients of one batch.

    python benchmarks/loss_vs_openclip.py --pairs 32768

Each turn is a process of its own, forward and backward in float32; the sides take turns. Memory is what the process had
at most (VmHWM, the kernel's own count of resident pages; on a GPU what torch had allocated) beyond what it had with the
inputs made. Both are held against the same loss in float64. Needs OpenCLIP (benchmarks/openclip.py says how to install
it).
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from openclip import import_open_clip
from pocketclip.train.losses import softmax_loss


def resident(what: str, device: str) -> float:
    """MB that this process has (VmRSS), or had at most (VmHWM)."""
    if device == "cuda":
        torch.cuda.synchronize()
        return (torch.cuda.memory_allocated() if what == "VmRSS" else torch.cuda.max_memory_allocated()) / 1e6
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 1e3


def turn(side: str, pairs: int, width: int, scale: float, output: Path, device: str) -> None:
    """One side's loss and gradients, written to a file; prints seconds and MB."""
    generator = torch.Generator().manual_seed(0)
    # Texts are images with twice as much noise, so that losses and gradients are those of a half-trained model.
    images = F.normalize(torch.randn(pairs, width, generator=generator), dim=1)
    texts = F.normalize(images + torch.randn(pairs, width, generator=generator) * 2 * width**-0.5, dim=1)
    kind = torch.float64 if side == "float64" else torch.float32
    inputs = [one.to(device, kind).requires_grad_() for one in (images, texts, torch.tensor(scale))]
    small = [inputs[0][:64], inputs[1][:64], inputs[2]]
    if side != "OpenCLIP":
        numbers = torch.arange(pairs)
        softmax_loss(*small, numbers[:64]).backward()
    else:
        loss_of = import_open_clip().ClipLoss()
        loss_of(*small).backward()
    for one in inputs:
        one.grad = None
    before, began = resident("VmRSS", device), time.perf_counter()
    loss = loss_of(*inputs) if side == "OpenCLIP" else softmax_loss(*inputs, numbers)
    loss.backward()
    most = resident("VmHWM", device)  # which waits for a GPU
    print(time.perf_counter() - began, most - before)
    torch.save([one.cpu() for one in (loss.detach(), *(one.grad for one in inputs))], output)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=32_768)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--scale", type=float, default=30.0, help="what cosines are multiplied with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        turn(asked.side[0], asked.pairs, asked.width, asked.scale, Path(asked.side[1]), asked.device)
        return
    figures: dict[str, list[tuple[float, float]]] = {"ours": [], "OpenCLIP": []}
    sizes = ["--pairs", str(asked.pairs), "--width", str(asked.width), "--scale", str(asked.scale)]
    sizes += ["--device", asked.device]
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder) / side for side in figures}
        for number in range(asked.rounds):
            for side, found in figures.items():
                command = [sys.executable, __file__, *sizes, "--side", side, str(files[side])]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, megabytes = map(float, done.stdout.split())
                found.append((seconds, megabytes))
                print(f"round {number + 1}: {side:8s} {seconds:7.2f} s {megabytes:9,.0f} MB", flush=True)
        command = [sys.executable, __file__, *sizes, "--device", "cpu", "--side", "float64", f"{folder}/float64"]
        subprocess.run(command, capture_output=True, check=True)
        results = [torch.load(files[side]) for side in figures]
        truth = torch.load(f"{folder}/float64")
    ours, peer = ([statistics.median(column) for column in zip(*figures[side], strict=True)] for side in figures)
    time_ratio, memory_ratio = (one / other for one, other in zip(ours, peer, strict=True))
    print(f"medians: time {time_ratio:.2f} of OpenCLIP's, memory {memory_ratio:.4f} (1/{1 / memory_ratio:.1f})")
    for name, true, *found in zip(("loss", "images", "texts", "scale"), truth, *results, strict=True):
        # Gradients are of the size 1/pairs: they are compared as shares of their largest entry.
        differences = [float((one - true).abs().max() / true.abs().max()) for one in found]
        between = float((found[0] - found[1]).abs().max() / true.abs().max())
        print(
            f"{name}: from float64 ours {differences[0]:.1e}, OpenCLIP {differences[1]:.1e}; between them {between:.1e}"
        )


if __name__ == "__main__":
    main()
