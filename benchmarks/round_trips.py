"""What a model's embeddings lose on the way to another format and back: nothing, or what float32 rounds.

Each way is `pocketclip convert`, which compares every format with its own library; a line says the largest difference
that any of them gave, on the images and captions of `convert/check.py`. OpenCLIP is no dependency: openclip.py says how
to install it.

    python benchmarks/round_trips.py runs/quickstart/bundle ...
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from openclip import import_open_clip
from pocketclip.bundle import load, save_bundle
from pocketclip.convert.convert import convert
from pocketclip.errors import ConvertError
from pocketclip.model.clip import CLIP

MODELS = ("ViT-B-32", "ViT-B-32-quickgelu", "RN50")
WAYS = (("open_clip", "bundle"), ("huggingface", "bundle"), ("onnx",))


def open_clips_folder(name: str, folder: Path) -> Path:
    """One of OpenCLIP's own models with random weights, as it would be published."""
    open_clip = import_open_clip()
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    configuration = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(configuration))
    return folder


def random_bundle(bundle: Path, folder: Path) -> Path:
    """A bundle of the same recipe and tokenizer with random weights, norms and biases too, so that all count."""
    like = load(bundle, "cpu")
    torch.manual_seed(0)
    model = CLIP(like.recipe)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_bundle(folder, model, like.recipe, like.tokenizer, {})
    return folder


def go(source: Path, way: Sequence[str], folder: Path) -> dict[str, float]:
    """Convert along a way; returns the largest difference by who computed it. Equal weights at the end are asserted."""
    largest: dict[str, float] = {}
    first = source
    for number, to in enumerate(way):
        destination = folder / f"{number}-{to}"
        for who, difference in convert(source, destination, to).differences.items():  # type: ignore[arg-type]
            largest[who] = max(difference, largest.get(who, 0.0))
        source = destination
    if way[-1] == "bundle" and (first / "bundle.json").exists():
        before, after = (load(path, "cpu").model.state_dict() for path in (first, source))
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    return largest


def main() -> None:
    """Print a line a way of each model."""
    import_open_clip()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        starts: list[tuple[str, Path]] = []
        for number, given in enumerate(sys.argv[1:]):
            starts.append((f"{given}, as trained", Path(given)))
            starts.append((f"{given}, random weights", random_bundle(Path(given), folder / f"random-{number}")))
        for name in MODELS:
            theirs = open_clips_folder(name, folder / name)
            report(f"OpenCLIP's {name}, random weights", theirs, ("bundle",), folder)
            convert(theirs, folder / f"{name}-bundle")
            starts.append((f"{name} as a bundle", folder / f"{name}-bundle"))
        for name, source in starts:
            for way in WAYS:
                report(name, source, way, folder)


def report(name: str, source: Path, way: Sequence[str], folder: Path) -> None:
    """Print one line, and remove what was written."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        try:
            largest = go(source, way, Path(place))
        except ConvertError as error:
            sys.stdout.write(f"{name} -> {' -> '.join(way)}: {error}\n")
            return
    differences = ", ".join(f"{difference:.1e} ({who})" for who, difference in largest.items())
    sys.stdout.write(f"{name} -> {' -> '.join(way)}: {differences}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
