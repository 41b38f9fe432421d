"""Every setting of a run: its type, unit, bounds and default. No torch, no numpy.

A recipe file states only what differs from these defaults; `docs/settings.md` is generated from this file and those
that it imports. What no single key can say, how they fit together, is checked here.
Values are strict: "true" is no boolean, 1.5 is no integer.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pocketclip.recipe.collecting import CleanSettings, FetchSettings, SearchSettings, WordsSettings
from pocketclip.recipe.kinds import NAME, TOO_LARGE, Colour, Natural, Positive, Settings, Share
from pocketclip.recipe.towers import ImageTowerSettings, ModelSettings, TextTowerSettings
from pocketclip.recipe.training import EvaluateSettings, TrainSettings


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
    growth: tuple[tuple[Positive, Share], ...] = Field(
        (),
        description="training only: smaller sides that a run begins with, and the share of its steps that each has, "
        "e.g. [[112, 0.6], [160, 0.2]]; what is left has `size`",
    )
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
        sizes = [size for size, _ in self.phases]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"growth: the sides {', '.join(map(str, sizes))}, of which size is the last, must grow")
        if self.growth and self.phases[-1][1] < 1e-9:
            raise ValueError("growth: the shares must leave some of the run for size; let them add up to less than 1")
        return self

    @property
    def phases(self) -> tuple[tuple[int, float], ...]:
        """The sides that images have in the course of a run, and the share of its steps that each has."""
        return *self.growth, (self.size, 1 - sum(share for _, share in self.growth))

    def at(self, done: float) -> Self:
        """These settings with the side that images have when a share of the run, from 0 to 1, is done.

        Sources: Li et al. 2023, "An inverse scaling law for CLIP training" (small images first, fine-tuning at the full
        size); Touvron et al. 2019, "Fixing the train-test resolution discrepancy" (that a short one suffices).
        """
        end = 0.0
        for size, share in self.growth:
            end += share
            if done < end:
                return self.model_copy(update={"size": size})
        return self

    def shown(self, done: float) -> float:
        """The share of a run's pixels that its first part shows, which is less than that part while images are small.

        done: the part, from 0 to 1.
        """
        begun = before = whole = 0.0
        for size, share in self.phases:
            before += size**2 * min(share, max(0.0, done - begun))
            whole += size**2 * share
            begun += share
        return before / whole


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

    @model_validator(mode="after")
    def _loss_fits(self) -> Self:
        loss, smoothing, each = self.train.loss, self.train.label_smoothing, self.caption.per_image
        if loss == "global" and each > 1:
            raise ValueError(f'train.loss = "global" remembers one caption a row, caption.per_image = {each}')
        if loss != "softmax" and smoothing:
            raise ValueError(f'train.label_smoothing = {smoothing} is of train.loss = "softmax", not of "{loss}"')
        return self

    @property
    def has_constant_features(self) -> bool:
        """Whether a row's image has one and the same embedding in the whole run."""
        image = self.image
        return self.image_tower.locked and image.shift == 0 and not image.flip and image.crop == 1 and not image.growth

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
    def _learns_from_somebody(self) -> Self:
        if self.train.distillation and not self.train.teacher:
            raise ValueError(f"train.distillation = {self.train.distillation} needs a teacher's bundle: train.teacher")
        return self

    @model_validator(mode="after")
    def _evaluates_something(self) -> Self:
        every, by = self.evaluate.every, self.train.best_by
        named = self.evaluate.splits + tuple(one.partition("=")[0] for one in self.evaluate.benchmarks)
        if self.train.patience and not by:
            raise ValueError(f"train.patience = {self.train.patience} waits for something better: set train.best_by")
        if by and not every:
            raise ValueError(f"train.best_by = {by!r} chooses among evaluations during training: set evaluate.every")
        if by and by != "loss" and by not in named:
            raise ValueError(
                f"train.best_by = {by!r} is none of evaluate.splits and evaluate.benchmarks "
                f"({', '.join(named) or 'none'}), nor `loss`"
            )
        if every and not named and not by:
            raise ValueError(
                f"evaluate.every = {every} has nothing to evaluate on: name some in evaluate.splits or "
                "evaluate.benchmarks"
            )
        return self

    @model_validator(mode="after")
    def _patches_fill_image(self) -> Self:
        tower = self.image_tower
        if tower.cut_edges and tower.stem_channels:
            raise ValueError("image_tower.cut_edges is for plain patches: a stem's convolutions see all of the image")
        for size, _ in self.image.phases:
            if size % tower.patch_size and not (tower.cut_edges and size >= tower.patch_size):
                key = "image.size =" if size == self.image.size else "image.growth's"
                raise ValueError(f"image_tower.patch_size = {tower.patch_size} does not divide {key} {size}")
        return self
