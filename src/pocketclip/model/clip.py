"""CLIP: an image tower and a text tower that meet in one space, and a learned temperature.

Source: Radford et al. 2021, "Learning transferable visual models from natural language supervision".
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketclip.model.image_tower import ImageTower
from pocketclip.model.resnet import ResNet
from pocketclip.model.text_tower import TextTower
from pocketclip.model.transformer import Block, Transformer
from pocketclip.recipe.schema import Recipe

COMPILED = 64  # kinds of a block at most; torch would leave the ninth uncompiled


class CLIP(nn.Module):
    """The two towers and the temperature.

    The state's keys are those of OpenCLIP's `CustomTextCLIP`: `visual.*`, `text.*`, `logit_scale` and, for the sigmoid
    loss, `logit_bias`; without the prefix `text.` they are those of OpenAI's CLIP.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        image_tower = ResNet if recipe.image_tower.stages else ImageTower
        self.visual = image_tower(recipe.image_tower, recipe.image.size, recipe.model.embedding_width)
        self.text = TextTower(recipe.text_tower, recipe.tokenizer.vocabulary_size, recipe.model.embedding_width)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / recipe.model.initial_temperature)))
        self.logit_bias: nn.Parameter | None = None
        if recipe.train.loss == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor(-math.log(recipe.train.batch_size - 1)))
        self.max_logit_scale = recipe.model.max_logit_scale

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[batch, 3, size, size], normalised -> [batch, embedding width] of length one, float32."""
        return F.normalize(self.visual(pixels).float(), dim=-1)

    def encode_texts(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """[batch, length] ids and [batch] end positions -> [batch, embedding width] of length one, float32."""
        return F.normalize(self.text(tokens, ends).float(), dim=-1)

    def scale(self) -> Tensor:
        """The factor that turns cosines into logits, exp(logit_scale)."""
        return self.logit_scale.exp()

    def recompute_blocks(self, recompute: bool) -> None:
        """Whether transformer blocks keep only their inputs, and are computed once more in the backward pass.

        Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".
        """
        for module in self.modules():
            if isinstance(module, Transformer):
                module.recompute = recompute

    def compile_blocks(self) -> None:
        """Let torch compile the transformer blocks, each as it is first run: all of a tower share what comes of it.

        Shapes are taken as unknown from the beginning, so that what is compiled does not depend on which came first.
        The state's keys stay.
        """
        torch._dynamo.config.recompile_limit = COMPILED  # each tower, with and without a gradient, and so on
        for module in self.modules():
            if isinstance(module, Block):
                module.compile(dynamic=True)

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the scale at most `max_logit_scale`; called after each step (section 2.5).

        The parameter itself is clamped: a clamp in `scale` would leave it without a gradient beyond the bound.
        """
        self.logit_scale.clamp_(max=math.log(self.max_logit_scale))
