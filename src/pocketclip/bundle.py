"""A trained model in one folder: all that leaves training, and all that evaluation, search and export read.

model.safetensors        the weights
recipe.toml              the complete recipe: sizes, preprocessing, how it was trained
tokenizer.json           the vocabulary; with tokenizer_config.json it loads in transformers.AutoTokenizer
bundle.json              format, training summary, SHA-256 of every other file and of itself
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from pocketclip.data.images import BadImage, Pixels, normalise, to_square
from pocketclip.data.square import decode
from pocketclip.device import Device, choose_device
from pocketclip.errors import BundleError, DataError
from pocketclip.files import sha256, whole_folder
from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import ImageSettings, Recipe
from pocketclip.recipe.toml import load_resolved, to_toml
from pocketclip.tokenizer import CaptionTokenizer, load_tokenizer

FORMAT = 1
TOKENS_IN_CACHE = 2_560
WEIGHTS, RECIPE, DESCRIPTION = "model.safetensors", "recipe.toml", "bundle.json"
TOKENIZER, TOKENIZER_SETTINGS = "tokenizer.json", "tokenizer_config.json"


@dataclass
class Bundle:
    """A trained model, ready to embed images and captions."""

    model: CLIP
    recipe: Recipe
    tokenizer: CaptionTokenizer
    description: dict[str, Any]
    device: Device

    @property
    def seal(self) -> str:
        """What tells it from every other bundle; empty while it is being trained."""
        return str(self.description.get("seal", ""))

    def encode_images(self, images: Sequence[Path | str | bytes | Image.Image]) -> Tensor:
        """Embed images, given as files, encoded bytes or Pillow images.

        Files and bytes become the very pixels of training. A Pillow image is decoded already: it is resized as
        `image.decoding = "exact"` does, whatever the recipe says, and its EXIF is not looked at.

        Returns float32 [images, embedding width], each row of length one, on the CPU.
        Raises DataError naming the image that cannot be read.
        """
        found = [np.zeros((0, self.recipe.model.embedding_width), np.float32)]
        for start in range(0, len(images), self.recipe.evaluate.batch_size):
            some = images[start : start + self.recipe.evaluate.batch_size]
            pixels = np.stack([_square(image, self.recipe.image) for image in some])
            found.append(self.encode_pixels(torch.from_numpy(pixels)).numpy())
        return torch.from_numpy(np.concatenate(found))

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [batch, size, size, 3] -> float32 [batch, embedding width] of length one, on the CPU.

        A CPU computes them in even parts, each of which stays in its cache (docs/log.md, 2026-11-27).
        """
        tokens = len(pixels) * (self.recipe.image.size // self.recipe.image_tower.patch_size) ** 2
        parts = min(len(pixels), math.ceil(tokens / TOKENS_IN_CACHE)) if self.device.device.type == "cpu" else 1
        with self.device.autocast():
            found = [
                self.model.encode_images(normalise(part.to(self.device.device), self.recipe.image)).cpu()
                for part in pixels.tensor_split(max(1, parts))
            ]
        return torch.cat(found)

    @torch.inference_mode()
    def encode_texts(self, captions: Sequence[str]) -> Tensor:
        """Captions -> float32 [captions, embedding width], each row of length one, on the CPU."""
        found = [torch.zeros(0, self.recipe.model.embedding_width)]
        for start in range(0, len(captions), self.recipe.evaluate.batch_size):
            some = captions[start : start + self.recipe.evaluate.batch_size]
            tokens, ends = map(torch.from_numpy, self.tokenizer.encode(some))
            with self.device.autocast():
                found.append(self.model.encode_texts(tokens.to(self.device.device), ends).cpu())
        return torch.cat(found)


def save_bundle(
    folder: Path, model: CLIP, recipe: Recipe, tokenizer: CaptionTokenizer, training: dict[str, Any]
) -> None:
    """Write a bundle whole or not at all; one that was there stays until the new one is complete.

    training: what is worth knowing of the run (steps, loss, seconds), kept in bundle.json.
    """
    try:
        with whole_folder(folder) as temporary:
            (temporary / WEIGHTS).write_bytes(weights_of(model))
            (temporary / RECIPE).write_text(to_toml(recipe), encoding="utf-8")
            tokenizer.save(temporary)
            sums = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
            description = {"format": FORMAT, "training": training, "sha256": sums}
            description["seal"] = _seal(description)
            (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written: {error.strerror}; nothing there was changed") from None


def weights_of(model: CLIP) -> bytes:
    """A model's weights as a safetensors file holds them."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return to_safetensors(state, metadata={"format": "pt"})


def load(folder: Path | str, device: str = "auto") -> Bundle:
    """Read a bundle, check it, and put its model in evaluation mode on a device.

    Raises BundleError naming the file that is missing, damaged or of another version.
    """
    folder = Path(folder)
    description = _checked_description(folder)
    recipe = load_resolved(folder / RECIPE)
    tokenizer = load_tokenizer(folder / TOKENIZER, recipe.text_tower.context_length, recipe.tokenizer.mend)
    chosen = choose_device(device, recipe.train.precision)
    model = CLIP(recipe)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"{folder / WEIGHTS}: does not fit its recipe: {error}") from None
    return Bundle(model.to(chosen.device).eval(), recipe, tokenizer, description, chosen)


def seal_of(folder: Path) -> str:
    """What tells a bundle from every other: the SHA-256 over all of it. Raises BundleError where it is damaged."""
    return str(_checked_description(folder)["seal"])


def _checked_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version, sums = description["format"], dict(description["sha256"])
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{folder}: no bundle ({DESCRIPTION} is missing); training writes runs/NAME/bundle") from None
    except (ValueError, KeyError, TypeError, OSError):
        raise BundleError(f"{path}: damaged; copy the bundle again or train it again") from None
    if version != FORMAT:
        raise BundleError(f"{path}: format {version}, this version reads {FORMAT}; use the version that wrote it")
    if description.get("seal") != _seal(description):
        raise BundleError(f"{path}: damaged; copy the bundle again or train it again")
    for name in (WEIGHTS, RECIPE, TOKENIZER, TOKENIZER_SETTINGS):
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name}: missing; copy the bundle again or train it again")
        if sums.get(name) != sha256(folder / name):
            raise BundleError(f"{folder / name}: damaged (its SHA-256 is not the one in {DESCRIPTION}); copy it again")
    return dict(description)


def _seal(description: dict[str, Any]) -> str:
    """SHA-256 over all of bundle.json but itself."""
    sealed = {name: value for name, value in description.items() if name != "seal"}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def _square(image: Path | str | bytes | Image.Image, settings: ImageSettings) -> Pixels:
    if isinstance(image, Image.Image):
        return to_square(image.convert("RGB"), settings.size)
    try:
        return decode(image if isinstance(image, bytes) else Path(image).read_bytes(), settings)
    except OSError as error:
        raise DataError(f"{image!s}: cannot be read: {error.strerror}") from None
    except BadImage as error:
        name = "the given bytes" if isinstance(image, bytes) else str(image)
        raise DataError(f"{name}: {error}") from None
