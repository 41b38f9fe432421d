"""One optimisation step: a batch in, moved weights out."""

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from pocketclip.data.batches import Batch
from pocketclip.data.images import normalise
from pocketclip.data.teacher import Taught
from pocketclip.device import Device, require_compiler
from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import Recipe
from pocketclip.train.average import AveragedModel
from pocketclip.train.distillation import distillation_loss
from pocketclip.train.global_loss import RememberedNegatives, global_loss
from pocketclip.train.grad_cache import Embeddings, cached_backward
from pocketclip.train.losses import ALONE, caption_numbers, sigmoid_loss, softmax_loss
from pocketclip.train.optimizer import Optimizer
from pocketclip.train.ranks import Ranks
from pocketclip.train.schedule import learning_rate, renewed_share
from pocketclip.train.start import interpolate, lock, start_from


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a batch: pixels, or features, and end positions on the CPU; token ids on the device."""

    pixels: Tensor
    tokens: Tensor
    ends: Tensor


class Towers(nn.Module):
    """Both towers of a model; the temperature stays outside."""

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.visual, self.text = model.visual, model.text
        self.encode_images, self.encode_texts = model.encode_images, model.encode_texts

    def forward(self, pixels: Tensor, tokens: Tensor, ends: Tensor) -> Embeddings:
        """Normalised pixels, token ids and end positions -> embeddings of images and of captions.

        What comes in the place of pixels as [batch, width] is embedded already.
        """
        images = F.normalize(pixels, dim=-1) if pixels.ndim == 2 else self.encode_images(pixels)
        return images, self.encode_texts(tokens, ends)


class Learner:
    """A model with its optimizer on a device.

    steps, rows: of the run and of the data set. ranks: the processes that each hold a part of the batch, and all the
    same model.
    """

    def __init__(self, recipe: Recipe, device: Device, steps: int, rows: int = 0, ranks: Ranks = ALONE) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.steps, self.ranks = recipe, device, steps, ranks
        self.chunk_size = recipe.train.chunk_size
        self.model = CLIP(recipe).to(device.device).train()
        self.model.recompute_blocks(recipe.train.recompute)
        if recipe.train.compile:
            require_compiler(device.device)
            self.model.compile_blocks()
        self.start: dict[str, Tensor] | None = None  # the weights before training, where they are needed again
        if recipe.train.start_from:
            start_from(self.model, Path(recipe.train.start_from))
            lock(self.model, recipe)
            if recipe.train.interpolation < 1:
                self.start = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
        self.towers = self._towers()
        self.copying = torch.cuda.Stream(device.device) if device.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.optimizer = Optimizer(self.model, recipe.train)
        self.average = AveragedModel(self.model, recipe.train.ema_decay) if recipe.train.ema_decay else None
        self.remembered = RememberedNegatives(rows, device.device) if recipe.train.loss == "global" else None

    def _towers(self) -> nn.Module:
        """Both towers in one forward pass, whose gradients are averaged over the ranks as they come."""
        towers = Towers(self.model)
        if self.ranks.count == 1:
            return towers
        device = self.device.device
        if device.type == "cuda":  # elsewhere torch has none: a batch norm there sees its rank's part of the batch
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(towers)  # without `device_ids`: it would move the captions' ends to the GPU

    def step(self, batch: Batch, number: int) -> tuple[Tensor, Tensor]:
        """One optimisation step; returns the loss and the gradient's length before clipping, still on the device.

        batch: this rank's part of it. number: 0 for the first step of the run; it sets the learning rate, and with the
        seed and the rank all that is random in the step.
        """
        seeds = np.random.SeedSequence([self.recipe.seed, number, self.ranks.rank])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        loss = self.backward(batch, number)
        length = self._clip_gradients()
        self.optimizer.step(learning_rate(number, self.steps, self.recipe.train))
        self.model.clamp_scale()
        if self.average:
            self.average.update(self.model, number)
        return loss, length.detach()

    def _clip_gradients(self) -> Tensor:
        """Shorten the gradient to the recipe's length if it is longer; returns its length before."""
        parameters = list(self.model.parameters())
        length = nn.utils.get_total_norm(one.grad for one in parameters if one.grad is not None)
        # Torch multiplies all gradients, by 1 where they are short enough. A GPU would have to stop to know that.
        if length.device.type != "cpu" or length > self.recipe.train.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.recipe.train.clip_norm, length)
        return length

    def backward(self, batch: Batch, number: int = 0) -> Tensor:
        """Give every parameter its gradient, that of the batch of all ranks; returns the loss of that."""
        tokens, rows = (one.to(self.device.device, non_blocking=True) for one in (batch.tokens, batch.rows))
        captions = caption_numbers(batch.tokens, batch.ends)

        def loss_of(images: Tensor, texts: Tensor) -> Tensor:
            loss = self._loss(images, texts, captions, rows, number)
            loss = self._with_teacher(loss, images, texts, batch.taught)
            return loss * self.ranks.count  # as the gradients are averaged

        parts = self._parts(batch.pixels, tokens, batch.ends)
        not_last = self.towers.no_sync if isinstance(self.towers, DistributedDataParallel) else nullcontext
        loss = cached_backward(parts, self._embed, loss_of, self.model, not_last)
        for parameter in (self.model.logit_scale, self.model.logit_bias):  # of no tower
            if self.ranks.count > 1 and parameter is not None and parameter.grad is not None:
                parameter.grad = self.ranks.sum(parameter.grad) / self.ranks.count
        return self.ranks.sum(loss) / self.ranks.count

    def _parts(self, pixels: Tensor, tokens: Tensor, ends: Tensor) -> list[Part]:
        """The batch in parts of nearly equal size, the pixels of each on the device when it is its turn."""
        count = 1
        if self.chunk_size:
            rows = self.ranks.each(len(pixels))  # all ranks have as many parts, as they meet in each; none is empty
            count = max(1, min(math.ceil(max(rows) / self.chunk_size), min(rows)))
        each, length = self.recipe.caption.per_image, tokens.shape[1]  # an image's captions stay with it
        columns = [one.tensor_split(count) for one in (pixels, tokens.view(-1, each, length), ends.view(-1, each))]
        return [Part(some, ids.flatten(0, 1), places.flatten()) for some, ids, places in zip(*columns, strict=True)]

    def _embed(self, part: Part) -> Embeddings:
        pixels = self._copied(part.pixels)
        with self.device.autocast():
            images = pixels if pixels.is_floating_point() else normalise(pixels, self.recipe.image)
            found: Embeddings = self.towers(images, part.tokens, part.ends)
        return found

    def _copied(self, pixels: Tensor) -> Tensor:
        """Pixels on the device; a GPU copies them beside what it still has to compute, of the step before or a part."""
        if self.copying is None:
            return pixels.to(self.device.device)
        with torch.cuda.stream(self.copying):
            there = pixels.to(self.device.device, non_blocking=True)
        computing = torch.cuda.current_stream()
        computing.wait_stream(self.copying)
        there.record_stream(computing)
        return there

    def _loss(self, images: Tensor, texts: Tensor, captions: Tensor, rows: Tensor, number: int) -> Tensor:
        """The share of this rank in the loss; with several captions an image, the mean over its first, second, ..."""
        if self.remembered is not None:
            share = renewed_share(number, self.steps, self.recipe.train)
            scale = self.model.scale()
            return global_loss(images, texts, scale, captions, rows, self.remembered, share, self.ranks)
        by_place = zip(self._by_place(texts), self._by_place(captions), strict=True)
        return torch.stack([self._loss_of_pairs(images, some, numbers) for some, numbers in by_place]).mean()

    def _by_place(self, captions: Tensor) -> tuple[Tensor, ...]:
        """[pairs * captions, ...] -> [pairs, ...] of each image's first caption, of its second, ..."""
        return captions.view(-1, self.recipe.caption.per_image, *captions.shape[1:]).unbind(1)

    def _loss_of_pairs(self, images: Tensor, texts: Tensor, captions: Tensor) -> Tensor:
        scale, bias = self.model.scale(), self.model.logit_bias
        if bias is not None:
            return sigmoid_loss(images, texts, scale, bias, captions, self.ranks)
        return softmax_loss(images, texts, scale, captions, self.recipe.train.label_smoothing, self.ranks)

    def _with_teacher(self, loss: Tensor, images: Tensor, texts: Tensor, taught: Taught | None) -> Tensor:
        """The loss with the teacher's share in it; captions that the teacher was not shown have no part in that."""
        if taught is None:
            return loss
        their_images, their_texts = (
            F.normalize(one.to(self.device.device, non_blocking=True).float()) for one in (taught.images, taught.texts)
        )
        losses = []
        all_shown = self._by_place(taught.texts[:, 0].isfinite())  # found on the CPU: asking a GPU would stop its queue
        for some, wanted, is_shown in zip(self._by_place(texts), self._by_place(their_texts), all_shown, strict=True):
            shown = is_shown.nonzero()[:, 0].to(self.device.device, non_blocking=True)
            losses.append(
                distillation_loss(
                    images, some[shown], self.model.scale(), their_images, wanted[shown], taught.scale, self.ranks
                )
            )
        share = self.recipe.train.distillation
        return (1 - share) * loss + share * torch.stack(losses).mean()

    def finished(self) -> CLIP:
        """The model that the bundle would get now: averaged, interpolated, as the recipe says; to be read only."""
        model = self.average.model if self.average else self.model
        assert isinstance(model, CLIP)
        if self.start is not None:
            model = copy.deepcopy(model)
            interpolate(model, self.start, self.recipe.train.interpolation)
        return model

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, but for the data's position."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state(),
        }
        if self.average:
            state["average"] = self.average.state()
        if self.remembered is not None:
            state["remembered"] = self.remembered.means
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state that `state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.restore(state["optimizer"])
        if self.average:
            self.average.restore(state["average"])
        if self.remembered is not None:
            self.remembered.means.copy_(state["remembered"])
