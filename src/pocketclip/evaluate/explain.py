"""Which parts of an image its similarity to a caption comes from.

Source: Sundararajan et al. 2017, "Axiomatic attribution for deep networks" (integrated gradients): on the way from an
image of nothing but its mean colour to the image itself each pixel changes the cosine a little; its changes are added
up. All of them together are the difference of the two cosines, whatever the towers are made of.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pocketclip.bundle import Bundle
from pocketclip.data.images import Pixels, normalise
from pocketclip.evaluate.zero_shot import Embeddings
from pocketclip.files import whole_file

STEPS = 64


@dataclass(frozen=True)
class Explanation:
    """An image's cosine with a caption, and what each patch adds to it.

    patches: float32 [rows, columns], from the upper left; their sum is `cosine` - `blank`, but for what is lost between
        the steps. blank: the cosine of the same image, all of its mean colour.
    """

    cosine: float
    blank: float
    patches: NDArray[np.float32]


def explain(bundle: Bundle, pixels: Pixels, texts: Embeddings) -> list[Explanation]:
    """Explain an image's cosine with each of some captions, in float32.

    pixels: uint8 [size, size, 3]. texts: [captions, width], of length one.
    """
    size, patch = len(pixels), bundle.recipe.image_tower.patch_size
    side = size // patch
    image = torch.from_numpy(pixels.copy())[None]  # Pillow's memory is read-only
    blank = image.float().mean(dim=(1, 2), keepdim=True).round().to(torch.uint8).expand_as(image)
    device = bundle.device.device
    whole, nothing = (normalise(one.to(device), bundle.recipe.image) for one in (image, blank))
    captions = torch.from_numpy(texts).to(device)
    way = (torch.arange(STEPS, device=device) + 0.5) / STEPS  # the middles of equal steps
    between = nothing + way[:, None, None, None] * (whole - nothing)
    with torch.inference_mode():
        ends = (bundle.model.encode_images(torch.cat([whole, nothing])) @ captions.T).cpu().numpy()
    found = []
    for number, caption in enumerate(captions):
        added = torch.zeros_like(whole)
        for start in range(0, STEPS, bundle.recipe.evaluate.batch_size):
            some = between[start : start + bundle.recipe.evaluate.batch_size]
            points = some.clone().requires_grad_()
            cosines = bundle.model.encode_images(points) @ caption
            (gradients,) = torch.autograd.grad(cosines.sum(), points)
            added += gradients.sum(dim=0, keepdim=True) / STEPS
        pixelwise = ((whole - nothing) * added).sum(dim=1)[0, : side * patch, : side * patch]
        patches = pixelwise.reshape(side, patch, side, patch).sum(dim=(1, 3)).cpu().numpy()
        found.append(Explanation(float(ends[0, number]), float(ends[1, number]), patches))
    return found


def write_explained(
    bundle: Bundle,
    squares: Sequence[Pixels],
    captions: Sequence[Sequence[str]],
    texts: Sequence[Embeddings],
    path: Path,
) -> None:
    """Explain images, each with some captions of its own, into a JSON file that has the images too.

    texts: of each image's captions, [captions, width].
    """
    lines = []
    for pixels, some, embedded in zip(squares, captions, texts, strict=True):
        found = explain(bundle, pixels, embedded)
        each = [
            {
                "caption": caption,
                "cosine": one.cosine,
                "cosine_of_mean_colour": one.blank,
                "patches": one.patches.tolist(),
            }
            for caption, one in zip(some, found, strict=True)
        ]
        lines.append({"image": encoded_png(pixels), "captions": each})
    with whole_file(path) as temporary:
        content = {"seal": bundle.seal, "images": lines}
        temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def encoded_png(pixels: Pixels) -> str:
    """An image as a PNG in base64, as JSON can hold it."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
