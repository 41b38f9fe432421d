"""One optimisation step: a batch in, moved weights out."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pocketclip.data.batches import Batch
from pocketclip.data.images import normalise
from pocketclip.device import Device
from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import Recipe
from pocketclip.train.average import AveragedModel
from pocketclip.train.grad_cache import Embeddings, cached_backward
from pocketclip.train.losses import caption_numbers, sigmoid_loss, softmax_loss
from pocketclip.train.optimizer import Optimizer
from pocketclip.train.schedule import learning_rate


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a batch, on the device: uint8 pixels, token ids, end positions."""

    pixels: Tensor
    tokens: Tensor
    ends: Tensor


class Learner:
    """A model with its optimizer on a device.

    chunk_size: rows that are embedded at a time; 0: the whole batch.
    """

    def __init__(self, recipe: Recipe, device: Device, steps: int, chunk_size: int = 0) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.steps = recipe, device, steps
        self.chunk_size = chunk_size or recipe.train.chunk_size
        self.model = CLIP(recipe).to(device.device).train()
        self.model.recompute_blocks(recipe.train.recompute)
        self.optimizer = Optimizer(self.model, recipe.train)
        self.average = AveragedModel(self.model, recipe.train.ema_decay) if recipe.train.ema_decay else None

    def step(self, batch: Batch, number: int) -> tuple[Tensor, Tensor]:
        """One optimisation step; returns the loss and the gradient's length before clipping, still on the device.

        number: 0 for the first step of the run; it sets the learning rate.
        """
        loss = self.backward(batch)
        length = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.train.clip_norm)
        self.optimizer.step(learning_rate(number, self.steps, self.recipe.train))
        self.model.clamp_scale()
        if self.average:
            self.average.update(self.model, number)
        return loss, length.detach()

    def backward(self, batch: Batch) -> Tensor:
        """Give every parameter its gradient; returns the loss."""
        tokens, ends = (one.to(self.device.device, non_blocking=True) for one in (batch.tokens, batch.ends))
        captions = caption_numbers(tokens, ends)
        parts = self._parts(batch.pixels, tokens, ends)
        return cached_backward(
            parts, self._embed, lambda images, texts: self._loss(images, texts, captions), self.model
        )

    def _parts(self, pixels: Tensor, tokens: Tensor, ends: Tensor) -> list[Part]:
        """The batch in parts of nearly equal size, the pixels of each on the device when it is its turn."""
        count = math.ceil(len(pixels) / self.chunk_size) if self.chunk_size else 1
        columns = (one.tensor_split(max(1, count)) for one in (pixels, tokens, ends))
        return [Part(*some) for some in zip(*columns, strict=True)]

    def _embed(self, part: Part) -> Embeddings:
        pixels = part.pixels.to(self.device.device, non_blocking=True)
        with self.device.autocast():
            images = self.model.encode_images(normalise(pixels, self.recipe.image))
            return images, self.model.encode_texts(part.tokens, part.ends)

    def _loss(self, images: Tensor, texts: Tensor, captions: Tensor) -> Tensor:
        scale = self.model.scale()
        if self.model.logit_bias is not None:
            return sigmoid_loss(images, texts, scale, self.model.logit_bias, captions)
        return softmax_loss(images, texts, scale, captions, self.recipe.train.label_smoothing)

    def finished(self) -> CLIP:
        """The model that the bundle gets: the averaged one, where there is one."""
        model = self.average.model if self.average else self.model
        assert isinstance(model, CLIP)
        return model

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, but for the data's position."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state(),
            "random": torch.get_rng_state(),
        }
        if self.average:
            state["average"] = self.average.state()
        if self.device.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state that `state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.restore(state["optimizer"])
        torch.set_rng_state(state["random"])
        if self.average:
            self.average.restore(state["average"])
        if "random_cuda" in state and self.device.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"])
