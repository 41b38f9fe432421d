"""What a converted model must give back: the same embeddings, on the same few images and captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pocketclip.bundle import Bundle
from pocketclip.errors import ConvertError
from pocketclip.recipe.schema import Recipe

LARGEST_DIFFERENCE = 1e-4  # of any element of two embeddings of length one
CAPTIONS = (
    "a red circle",
    "A photo of two dogs, 17 years old!",
    "don't",
    "ein alter Stadtplan von São Paulo",
    "犬 🐕",
    "a woman firefighter with medium skin tone beside a very long table " * 10,  # longer than most context lengths
)


@dataclass(frozen=True)
class Sample:
    """Images of exactly the model's size, uint8 [images, size, size, 3], and captions."""

    pixels: Tensor
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Embeddings:
    """float32 [images, width] and [captions, width], rows of length one."""

    images: Tensor
    texts: Tensor


def sample(bundle: Bundle) -> Sample:
    """Noise and smooth colours for a bundle's image tower, captions for its text tower; always the same."""
    size = bundle.recipe.image.size
    noise = torch.randint(0, 256, (2, size, size, 3), generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 255, size)
    smooth = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size), 255 - ramp.expand(size, size)], 2)
    return Sample(torch.cat([noise, smooth[None].long()]).to(torch.uint8), CAPTIONS)


def require_plain(recipe: Recipe, project: str, others: Sequence[str] = ()) -> None:
    """Raise ConvertError if a recipe's vision transformer is none of OpenAI's: patches, a class token.

    others: what else the project's models do not have.
    """
    image, found = recipe.image_tower, list(others)
    if image.stem_channels and not image.stages:
        found.append(f"image_tower.stem_channels = {list(image.stem_channels)}")
    if image.pool != "class" and not image.stages:
        found.append(f"image_tower.pool = {image.pool!r}")
    if found:
        raise ConvertError(f"{project} has no model with {' and '.join(found)}; --to onnx can hold any model")


def embed(bundle: Bundle, some: Sample) -> Embeddings:
    """What a bundle gives for a sample."""
    return Embeddings(bundle.encode_pixels(some.pixels), bundle.encode_texts(some.captions))


def largest_difference(one: Embeddings, other: Embeddings, what: str) -> float:
    """The largest difference of any element; raises ConvertError if it is above the limit or no number.

    what: whose embeddings the other ones are, for the message.
    """
    pairs = ((one.images, other.images), (one.texts, other.texts))
    if any(ours.shape != theirs.shape for ours, theirs in pairs):
        raise ConvertError(f"{what} gives embeddings of another shape; nothing was written")
    difference = max(float((ours - theirs).abs().max().nan_to_num(torch.inf)) for ours, theirs in pairs)
    if difference > LARGEST_DIFFERENCE:
        raise ConvertError(
            f"{what} gives other embeddings: they differ by up to {difference:.2g}, {LARGEST_DIFFERENCE:.0e} is "
            "allowed; nothing was written"
        )
    return difference
