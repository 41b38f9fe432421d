"""One model from one format to another, checked before it appears under its name."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pocketclip.bundle import DESCRIPTION, Bundle, load, save_bundle
from pocketclip.convert import huggingface, onnx, open_clip
from pocketclip.convert.check import Embeddings, Sample, embed, largest_difference, sample
from pocketclip.convert.source import EXACT, to_bundle
from pocketclip.errors import ConvertError
from pocketclip.files import sha256, whole_folder
from pocketclip.recipe.kinds import NAME

Format = Literal["bundle", "open_clip", "huggingface", "onnx"]
Library = Callable[[Path, Sample, Tensor | None], Embeddings | None]
LIBRARIES: dict[str, tuple[str, Library]] = {
    "open_clip": ("open_clip_torch", open_clip.open_clip_embeddings),
    "huggingface": ("transformers", huggingface.huggingface_embeddings),
}


@dataclass(frozen=True)
class Converted:
    """What was written: its format, and the largest difference of an embedding, by who computed it."""

    format: str
    differences: dict[str, float]


def convert(
    source: Path,
    destination: Path,
    to: Format | None = None,
    tokenizer: Path | None = None,
    activation: str | None = None,
) -> Converted:
    """Read a model of any format that can be read and write it in another one.

    source: a bundle; a folder of OpenCLIP's or Hugging Face's; a file of OpenCLIP's or OpenAI's weights.
    destination: a folder that is not there yet, or is empty; it appears whole or not at all.
    to: the format to write; None: a bundle, unless the source is one.
    tokenizer: a file or folder, where the source comes without one. activation: gelu or quick_gelu, where a file of
        weights does not say.

    The result is read back, by its own library too where that is installed, and has to give the same embeddings; so
    has the source.
    Raises ConvertError, or what reading a bundle raises; nothing is left behind then.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConvertError(f"{destination}: is there already; name a folder that is not, or delete it")
    found = detect(source)
    to = to or ("bundle" if found != "bundle" else None)
    if to is None or to == found == "bundle":
        raise ConvertError(f"{source}: is a bundle; say what to make of it: --to open_clip, huggingface or onnx")
    bundle, origin = read(source, found, tokenizer, activation, destination.name)
    some = sample(bundle)
    expected = embed(bundle, some)
    differences: dict[str, float] = {}
    if found in LIBRARIES:
        tokens = _tokens(bundle, some) if tokenizer else None
        differences |= _by_library(found, source, source, some, expected, tokens)
    with whole_folder(destination) as temporary:
        write(bundle, to, temporary, origin)
        differences |= _read_back(bundle, to, temporary, destination, some, expected)
    return Converted(to, differences)


def detect(source: Path) -> str:
    """The format of a folder or file by the files in it; raises ConvertError if it is none that can be read."""
    if source.is_file():
        return "checkpoint"
    known = {DESCRIPTION: "bundle", open_clip.CONFIGURATION: "open_clip", huggingface.CONFIGURATION: "huggingface"}
    for name, found in known.items():
        if (source / name).is_file():
            return found
    if not source.exists():
        raise ConvertError(f"{source}: no such file or folder; name a bundle, a folder or a file of weights")
    raise ConvertError(f"{source}: no model that can be read; a folder of one holds {', '.join(known)}")


def read(
    source: Path, found: str, tokenizer: Path | None, activation: str | None, name: str
) -> tuple[Bundle, dict[str, Any]]:
    """A model of a detected format as a bundle on the CPU in float32, and what to say of where it comes from."""
    if found == "bundle":
        if tokenizer or activation:
            raise ConvertError(f"{source}: is a bundle, which has its tokenizer and activation; leave the options away")
        bundle = load(source, "cpu")
        return replace(bundle, device=EXACT), dict(bundle.description["training"])
    if tokenizer and not tokenizer.exists():
        raise ConvertError(f"{tokenizer}: no such file or folder; name a tokenizer.json or a list of merges")
    if activation and found != "checkpoint":
        raise ConvertError(f"{source}: its configuration says the activation; leave --activation away")
    if found == "checkpoint":
        described = open_clip.read_checkpoint(source, tokenizer, activation)
    else:
        reader = open_clip.read_open_clip if found == "open_clip" else huggingface.read_huggingface
        described = reader(source, tokenizer)
    bundle = to_bundle(described, name if re.match(NAME, name) else "converted")
    weights = described.weights
    return bundle, {"converted_from": found, "weights": weights.name, "weights_sha256": sha256(weights)}


def write(bundle: Bundle, to: Format, folder: Path, origin: dict[str, Any]) -> None:
    """Write a bundle in a format into an empty folder.

    origin: what bundle.json says of where the weights come from.
    """
    if to == "bundle":
        save_bundle(folder, bundle.model, bundle.recipe, bundle.tokenizer, origin)
    elif to == "open_clip":
        open_clip.write_open_clip(bundle, folder)
    elif to == "huggingface":
        huggingface.write_huggingface(bundle, folder)
    else:
        onnx.write_onnx(bundle, folder)


def _read_back(
    bundle: Bundle, to: Format, folder: Path, destination: Path, some: Sample, expected: Embeddings
) -> dict[str, float]:
    """The differences of what was written into a temporary folder, which is to become the destination."""
    if to == "onnx":
        found = onnx.onnx_embeddings(folder, bundle, some)
        return {_named("onnxruntime"): largest_difference(expected, found, f"{destination}: ONNX Runtime")}
    again, _ = read(folder, to, None, None, "again")
    differences = {"read back": largest_difference(expected, embed(again, some), f"{destination}: read back, it")}
    if to in LIBRARIES:
        differences |= _by_library(to, folder, destination, some, expected, None)
    return differences


def _by_library(
    name: str, folder: Path, shown: Path, some: Sample, expected: Embeddings, tokens: Tensor | None
) -> dict[str, float]:
    """The difference to what a format's own library gives; empty where that is not installed.

    shown: what the folder is called in messages.
    """
    package, library = LIBRARIES[name]
    try:
        found = library(folder, some, tokens)
    except Exception as error:  # whatever another project raises
        reason = " ".join(str(error).split())[:300]
        raise ConvertError(f"{shown}: {package} cannot use it ({reason}); nothing was written") from None
    return {} if found is None else {_named(package): largest_difference(expected, found, f"{shown}: {package}")}


def _named(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # onnxruntime is published under several names
        return package


def _tokens(bundle: Bundle, some: Sample) -> Tensor:
    """[captions, context length] ids, filled up with the end token."""
    tokens, _ = bundle.tokenizer.encode(some.captions)
    padding = bundle.tokenizer.context_length - tokens.shape[1]
    return torch.nn.functional.pad(torch.from_numpy(tokens), (0, padding), value=bundle.tokenizer.end)
