"""The keys of a recipe that say what the model is: both towers, and where they meet."""

from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pocketclip.recipe.kinds import TOO_LARGE, Activation, Natural, Positive, Settings
from pocketclip.recipe.zoo import IMAGE_TOWERS, TEXT_TOWERS


class TransformerSettings(Settings):
    """The size of one tower's transformer."""

    width: Positive = Field(512, description="width of the tower")
    layers: Positive = Field(12, description="number of blocks")
    heads: Positive = Field(8, description="attention heads; must divide the width")
    mlp_ratio: Annotated[float, Field(gt=0)] = Field(4.0, description="width of the perceptron, in tower widths")
    activation: Activation = Field("gelu", description="`quick_gelu` for OpenAI's weights")
    locked_layers: Natural = Field(
        0,
        description="blocks from below that do not learn, nor what lies below them; `layers` or more: the whole tower",
    )

    @property
    def mlp_width(self) -> int:
        """Width of the perceptron inside each block."""
        return int(self.width * self.mlp_ratio)

    @property
    def locked(self) -> bool:
        """Whether nothing of the tower learns."""
        return self.locked_layers >= self.layers

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")
        return self


def _require_known(size: str, sizes: dict[str, Any]) -> None:
    if size and size not in sizes:
        close = get_close_matches(size, sizes, n=1, cutoff=0)
        raise ValueError(f"size = {size!r}: no such size; the nearest is {close[0]!r}, all are {', '.join(sizes)}")


class ImageTowerSettings(TransformerSettings):
    """The image tower: a vision transformer, or a ResNet."""

    size: str = Field(
        "",
        description="a size by its name, which sets the keys below and image.size; keys that are given beside it count",
    )
    width: Positive = Field(768, description="width of the tower")
    heads: Positive = Field(12, description="attention heads; must divide the width")
    patch_size: Positive = Field(32, description="side of the square that becomes one token, pixels; must divide size")
    stem_channels: tuple[Positive, ...] = Field(
        (), description="channels of stride-2 convolutions before the tokens, e.g. [48, 96, 192]; empty: plain patches"
    )
    patch_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="training only: share of the patches that each image goes without; the step is shorter by them"
    )
    pool: Literal["class", "mean"] = Field("class", description="read a class token, or the mean over all tokens")
    cut_edges: bool = Field(
        False, description="patches need not fill the image: what is left at the right and the lower edge is not seen"
    )
    stages: tuple[Positive, ...] = Field(
        (),
        description="blocks of each stage of a ResNet as OpenAI's CLIP has it, e.g. [3, 4, 6, 3]; width is then that "
        "of its first stage, and layers, pool and stem_channels do not count; empty: a vision transformer",
    )

    @property
    def stem_stride(self) -> int:
        """How many pixels one position after the stem stands for, per side."""
        return int(2 ** len(self.stem_channels))

    @model_validator(mode="after")
    def _known(self) -> Self:
        _require_known(self.size, IMAGE_TOWERS)
        if self.stages and self.locked_layers and not self.locked:
            raise ValueError(
                f"locked_layers = {self.locked_layers}: a ResNet is locked whole, by {self.layers}, or not"
            )
        if self.stages and self.patch_size != 2 ** (len(self.stages) + 1):
            raise ValueError(
                f"patch_size = {self.patch_size}: a ResNet of {len(self.stages)} stages shrinks the picture to one in "
                f"{2 ** (len(self.stages) + 1)}; set patch_size to that"
            )
        return self

    @model_validator(mode="after")
    def _stem_divides_patch(self) -> Self:
        if self.patch_size % self.stem_stride:
            raise ValueError(
                f"patch_size = {self.patch_size} is no multiple of the stem's stride, {self.stem_stride} "
                f"(2 to the number of stem_channels)"
            )
        return self


class TextTowerSettings(TransformerSettings):
    """The causal text transformer."""

    size: str = Field("", description="a size by its name: sets the keys below; keys that are given beside it count")
    context_length: Annotated[int, Field(ge=3, lt=TOO_LARGE)] = Field(
        77, description="longest caption, tokens, with start and end; longer ones are cut"
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        _require_known(self.size, TEXT_TOWERS)
        return self


class ModelSettings(Settings):
    """Where the towers meet."""

    embedding_width: Positive = Field(512, description="width of the shared space")
    initial_temperature: Annotated[float, Field(gt=0)] = Field(0.07, description="learned from this value on")
    max_logit_scale: Annotated[float, Field(ge=1)] = Field(100.0, description="upper bound of 1 / temperature")
