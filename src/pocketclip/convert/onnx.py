"""A bundle as two ONNX graphs, image.onnx and text.onnx, with a tokenizer and what a program must know to use them."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketclip.bundle import Bundle
from pocketclip.convert.check import Embeddings, Sample
from pocketclip.data.images import normalise
from pocketclip.errors import ConvertError
from pocketclip.model.clip import CLIP

IMAGE, TEXT, DESCRIPTION = "image.onnx", "text.onnx", "preprocessing.json"
LARGEST_FILE = 1.9e9  # bytes of weights; a file of ONNX cannot have more than two GiB, so larger ones lie beside it
EXAMPLES = 2  # with one image or caption, the exporter would take the number for a constant


class ImageGraph(nn.Module):
    """The image tower: pixel_values, float32 [batch, 3, size, size], normalised -> [batch, width] of length one."""

    takes, gives = "pixel_values", "image_embeds"

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """As the class says."""
        return self.model.encode_images(pixel_values)


class TextGraph(nn.Module):
    """The text tower: input_ids, int64 [batch, length] -> [batch, width] of length one.

    It finds the captions' ends itself; what stands behind an end does not matter.
    """

    takes, gives = "input_ids", "text_embeds"

    def __init__(self, model: CLIP, end: int) -> None:
        super().__init__()
        self.model, self.end = model, end

    def forward(self, input_ids: Tensor) -> Tensor:
        """As the class says."""
        return self.model.encode_texts(input_ids, (input_ids == self.end).int().argmax(dim=1))


def write_onnx(bundle: Bundle, folder: Path) -> None:
    """Write both graphs for batches of any size and captions of any length, the tokenizer and preprocessing.json.

    Raises ConvertError if a package of the extra `convert` is missing.
    """
    require_packages()
    recipe, tokenizer = bundle.recipe, bundle.tokenizer
    size, longest = recipe.image.size, recipe.text_tower.context_length
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=longest)
    pixels, tokens = torch.zeros(EXAMPLES, 3, size, size), torch.full((EXAMPLES, longest), tokenizer.end)
    write_graph(folder / IMAGE, ImageGraph(bundle.model), pixels, {0: batch})
    write_graph(folder / TEXT, TextGraph(bundle.model, tokenizer.end), tokens, {0: batch, 1: length})
    (folder / DESCRIPTION).write_text(json.dumps(_description(bundle), indent=2) + "\n", encoding="utf-8")
    tokenizer.save(folder)


def write_graph(path: Path, graph: ImageGraph | TextGraph, example: Tensor, free: dict[int, Any]) -> None:
    """Write one graph. example: what it takes, of any values. free: the dimensions of it that can change."""
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            input_names=[graph.takes],
            output_names=[graph.gives],
            dynamic_shapes=(free,),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # in which file of this machine each operation is written
    tower = graph.model.visual if isinstance(graph, ImageGraph) else graph.model.text
    weights = sum(parameter.nbytes for parameter in tower.parameters())
    program.save(path, external_data=weights > LARGEST_FILE)


def onnx_embeddings(folder: Path, bundle: Bundle, some: Sample) -> Embeddings:
    """What ONNX Runtime gives with such a folder; captions one by one, so that another length is tried with each."""
    onnxruntime = require_packages()
    image, text = (
        onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"]) for name in (IMAGE, TEXT)
    )
    pixels = normalise(some.pixels, bundle.recipe.image).contiguous().numpy()
    texts = [text.run(None, {"input_ids": bundle.tokenizer.encode([caption])[0]})[0][0] for caption in some.captions]
    (images,) = image.run(None, {"pixel_values": pixels})
    return Embeddings(torch.from_numpy(images), torch.stack([torch.from_numpy(one) for one in texts]))


def require_packages() -> Any:
    """The module onnxruntime; raises ConvertError if it, onnx or onnxscript is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConvertError(f"{error}: ONNX needs more packages; pip install 'pocketclip[convert]'") from None
    return onnxruntime


def _description(bundle: Bundle) -> dict[str, Any]:
    recipe, tokenizer = bundle.recipe, bundle.tokenizer
    return {
        "image": {
            "graph": IMAGE,
            "input": "pixel_values: float32 [batch, 3, size, size], RGB",
            "output": "image_embeds: float32 [batch, embedding_width], of length one",
            "size": recipe.image.size,
            "resize": "short side to size, bicubic and antialiased, then the middle square",
            "scale": 1 / 255,
            "mean": recipe.image.mean,
            "std": recipe.image.std,
        },
        "text": {
            "graph": TEXT,
            "input": "input_ids: int64 [batch, length], each caption with its end",
            "output": "text_embeds: float32 [batch, embedding_width], of length one",
            "tokenizer": "tokenizer.json",
            "mended_first": tokenizer.mend,
            "context_length": tokenizer.context_length,
            "end": tokenizer.end,
            "pad": tokenizer.end,
        },
        "embedding_width": recipe.model.embedding_width,
        "logit_scale": float(bundle.model.scale().detach()),
        "logit_bias": 0.0 if bundle.model.logit_bias is None else float(bundle.model.logit_bias.detach()),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: packages that it would have liked, its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(before)
