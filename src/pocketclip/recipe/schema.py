"""Every setting of a run: its type, unit, bounds and default. No torch, no numpy.

A recipe file states only what differs from these defaults; `docs/settings.md` is generated from this file and
`collecting.py`.
Values are strict: "true" is no boolean, 1.5 is no integer.
"""

from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pocketclip.recipe.collecting import CleanSettings, FetchSettings, SearchSettings, WordsSettings
from pocketclip.recipe.kinds import NAME, TOO_LARGE, Activation, Colour, Natural, Positive, Settings, Share
from pocketclip.recipe.zoo import IMAGE_TOWERS, TEXT_TOWERS


class DataSettings(Settings):
    """Where the rows come from."""

    folder: str = Field("data", description="folder of shards, as `pocketclip pack` writes it")
    split: Annotated[str, Field(pattern=NAME)] = Field(
        "train", description="the split to train on: the shards named SPLIT-*.tar"
    )
    workers: Natural = Field(0, description="processes that decode images; 0 decodes in the training process")
    cache: bool = Field(
        False, description="keep decoded images in memory (size x size x 3 bytes each); for sets that fit"
    )


class ImageSettings(Settings):
    """How bytes become pixels, in training and in evaluation alike."""

    size: Positive = Field(224, description="side of the square that the model sees, pixels")
    mean: Colour = Field(
        (0.48145466, 0.4578275, 0.40821073), description="subtracted from red, green, blue in 0-1 (default: OpenAI's)"
    )
    std: Colour = Field(
        (0.26862954, 0.26130258, 0.27577711), description="what they are then divided by (default: OpenAI's)"
    )
    decoding: Literal["scaled", "exact"] = Field(
        "scaled",
        description="`scaled`: a JPEG is decoded no larger than needed; `exact`: whole, and resized as OpenCLIP does, "
        "in three times the time",
    )
    crop: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="training only: smallest share of the area that a random cut keeps, of proportions from 3:4 to 4:3 "
        "(OpenCLIP: 0.9); 1: always the middle square",
    )
    shift: Share = Field(0.0, description="training only: random shift, at most this share of the side, edges repeated")
    augmented: Share = Field(
        1.0,
        description="training only: share of the draws that are cut, shifted and mirrored; others are left as they are",
    )
    flip: bool = Field(False, description="training only: mirror half of the images; wrong where captions say left")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(value <= 0 for value in self.std):
            raise ValueError("image.std must be above 0")
        return self


class CaptionSettings(Settings):
    """How captions are varied in training."""

    per_image: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="training only: captions of a row that are used at a time, its image being embedded once for all"
    )
    unknown_words: Share = Field(
        0.0,
        description="training only: share of the captions in which one word, mostly a rare one, is replaced by an "
        "invented one, so that unknown words come to mean nothing in particular",
    )


class TokenizerSettings(Settings):
    """The byte-level byte-pair vocabulary."""

    vocabulary_size: Annotated[int, Field(ge=258, lt=TOO_LARGE)] = Field(
        16384, description="entries: 256 bytes, 2 special tokens, the rest merges"
    )
    lowercase: bool = Field(True, description="fold capitals before splitting, as OpenAI's tokenizer does")
    mend: bool = Field(
        False,
        description="mend captions first, as OpenAI's tokenizer does: broken Unicode, HTML entities, curly quotes, "
        "white space; needs the package `ftfy`",
    )


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


class TrainSettings(Settings):
    """The optimisation."""

    start_from: str = Field(
        "",
        description="a bundle whose weights training starts from, with its tokenizer; its sizes and preprocessing hold "
        "where the recipe says nothing; empty: from scratch",
    )
    cache_features: bool = Field(
        True,
        description="of a locked image tower without augmentation: embed the images once, and keep that in data.folder",
    )
    interpolation: Share = Field(
        1.0, description="share of the trained weights in the bundle, the rest is `start_from`'s (WiSE-FT); 1: all"
    )
    batch_size: Annotated[int, Field(ge=2, lt=TOO_LARGE)] = Field(128, description="pairs a step")
    epochs: Positive = Field(32, description="passes over the training rows")
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-4, description="peak, reached after the warm-up")
    final_learning_rate: Share = Field(0.0, description="where the cosine ends, as a share of the peak")
    warmup: Share = Field(0.05, description="share of the run in which the rate rises to its peak")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.2, description="on matrices; never on biases, norms, embeddings"
    )
    beta_1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="AdamW's decay of the mean")
    beta_2: Annotated[float, Field(ge=0, lt=1)] = Field(0.98, description="AdamW's decay of the variance")
    epsilon: Annotated[float, Field(gt=0)] = Field(1e-6, description="AdamW's epsilon")
    clip_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="gradients longer than this are shortened to it")
    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="CLIP's, each pair against the whole batch, or SigLIP's, each pair for itself"
    )
    label_smoothing: Share = Field(0.0, description="share of each target spread over the whole batch; softmax only")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="`muon`: for the matrices inside the blocks, AdamW for all else"
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="each layer below the top learns slower by this factor; for fine-tuning"
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="the bundle holds weights averaged over steps with this decay, e.g. 0.999; 0: the last ones"
    )
    chunk_size: Natural = Field(
        0,
        description="pairs embedded at a time (gradient caching): the batch's own gradient in less memory and a third "
        "more time; 0: the whole batch",
    )
    recompute: bool = Field(
        False,
        description="keep only the inputs of blocks (activation checkpointing): less memory, a third more time",
    )
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="`auto`: bfloat16 autocast where the chip has units for it, float32 elsewhere"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="`auto`: CUDA, then Apple's GPU, then CPU"
    )
    best_by: str = Field(
        "",
        description="the bundle holds the weights of the evaluation (`evaluate.every`) with the highest top-1 on this "
        "split, or, by `loss`, with the lowest mean training loss since the one before; empty: the last weights",
    )
    patience: Natural = Field(
        0, description="evaluations without a better one (`best_by`) after which the run ends early; 0: never"
    )
    checkpoint_minutes: Annotated[float, Field(gt=0)] = Field(10.0, description="minutes between checkpoints")
    tensorboard: bool = Field(
        False, description="log for TensorBoard too, into the run's folder; needs the extra `pocketclip[tensorboard]`"
    )


class EvaluateSettings(Settings):
    """What is measured after training, and during it."""

    splits: tuple[str, ...] = Field((), description="splits of data.folder to evaluate; empty: none")
    every: Annotated[float, Field(ge=0)] = Field(
        0.0, description="epochs from one evaluation during training to the next (and one at the end); 0: never"
    )
    batch_size: Positive = Field(256, description="images or captions at a time")


class Recipe(Settings):
    """A whole run. The same recipe and the same data give the same weights on the same machine."""

    name: Annotated[str, Field(pattern=NAME)] = Field("clip", description="the run's folder is runs/NAME")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="of the initial weights, the shuffle and the augmentation"
    )
    words: WordsSettings = WordsSettings()
    search: SearchSettings = SearchSettings()
    fetch: FetchSettings = FetchSettings()
    clean: CleanSettings = CleanSettings()
    data: DataSettings = DataSettings()
    image: ImageSettings = ImageSettings()
    caption: CaptionSettings = CaptionSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    image_tower: ImageTowerSettings = ImageTowerSettings()
    text_tower: TextTowerSettings = TextTowerSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    @model_validator(mode="after")
    def _crops_come_from_whole_images(self) -> Self:
        if self.data.cache and self.image.crop < 1:
            raise ValueError(
                f"image.crop = {self.image.crop} cuts from whole images, of which data.cache = true keeps the middle "
                f"squares; set data.cache = false or image.crop = 1"
            )
        return self

    @property
    def has_constant_features(self) -> bool:
        """Whether a row's image has one and the same embedding in the whole run."""
        image = self.image
        return self.image_tower.locked and image.shift == 0 and not image.flip and image.crop == 1

    @model_validator(mode="after")
    def _starts_from_something(self) -> Self:
        if not self.train.start_from:
            for section, tower in (("image_tower", self.image_tower), ("text_tower", self.text_tower)):
                if tower.locked_layers:
                    raise ValueError(f"{section}.locked_layers = {tower.locked_layers} needs weights: train.start_from")
            if self.train.interpolation < 1:
                raise ValueError("train.interpolation needs weights to go back to: train.start_from")
        return self

    @model_validator(mode="after")
    def _evaluates_something(self) -> Self:
        every, splits, by = self.evaluate.every, self.evaluate.splits, self.train.best_by
        if self.train.patience and not by:
            raise ValueError(f"train.patience = {self.train.patience} waits for something better: set train.best_by")
        if by and not every:
            raise ValueError(f"train.best_by = {by!r} chooses among evaluations during training: set evaluate.every")
        if by and by != "loss" and by not in splits:
            raise ValueError(
                f"train.best_by = {by!r} is none of evaluate.splits ({', '.join(splits) or 'none'}), nor `loss`"
            )
        if every and not splits and not by:
            raise ValueError(f"evaluate.every = {every} has nothing to evaluate on: name splits in evaluate.splits")
        return self

    @model_validator(mode="after")
    def _patches_fill_image(self) -> Self:
        tower = self.image_tower
        if self.image.size % tower.patch_size and not (tower.cut_edges and self.image.size >= tower.patch_size):
            raise ValueError(
                f"image_tower.patch_size = {self.image_tower.patch_size} does not divide image.size = {self.image.size}"
            )
        return self
