"""The keys of a recipe that say how the model learns, and what is measured."""

import math
from typing import Annotated, Literal

from pydantic import Field

from pocketclip.recipe.kinds import TOO_LARGE, Natural, Positive, Settings, Share


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
    teacher: str = Field(
        "",
        description="a bundle that training learns from; `pocketclip teach` embeds the split by it once; empty: none",
    )
    distillation: Share = Field(
        0.0,
        description="share of the loss that is how far the batch's similarities are from the teacher's (MobileCLIP); "
        "the rest is `loss`; 0: no teacher",
    )
    batch_size: Annotated[int, Field(ge=2, lt=TOO_LARGE)] = Field(128, description="pairs a step")
    epochs: Positive = Field(32, description="passes over the training rows")
    steps: Natural = Field(
        0, description="the run has so many steps, a part of an epoch or several, whatever `epochs` says; 0: by epochs"
    )
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
    loss: Literal["softmax", "sigmoid", "global"] = Field(
        "softmax",
        description="CLIP's, each pair against the whole batch; SigLIP's, each pair for itself; or SogCLR's, each pair "
        "against the whole data set, for small batches",
    )
    renewed_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2,
        description="`global` only: how much a row's new negatives count beside those it remembers; 1 at first, this "
        "from the middle of the run on",
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
        description="pairs embedded at a time (gradient caching): the batch's own gradient, but for batch norms, in "
        "less memory and a third more time; 0: the whole batch",
    )
    recompute: bool = Field(
        False,
        description="keep only the inputs of blocks (activation checkpointing): less memory, a third more time",
    )
    compile: bool = Field(
        False,
        description="let torch compile the transformer blocks: a fifth faster on a GPU, next to nothing on a CPU, for "
        "most of a minute at the first start; needs a C++ compiler",
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

    def chance_loss(self, rows: int) -> float | None:
        """The loss of a model that tells nothing apart, nats; None where a teacher has a part in it.

        rows: of the data set; 0 if nobody knows.
        """
        if self.distillation or (self.loss == "global" and not rows):
            return None
        others = self.batch_size - 1
        beside = others * math.log1p(1 / others) if self.loss == "sigmoid" else 0.0  # what its many negatives cost
        return math.log(rows if self.loss == "global" else self.batch_size) + beside

    def steps_of_run(self, steps_per_epoch: int) -> int:
        """How many steps the whole run has, where an epoch has so many."""
        return self.steps or steps_per_epoch * self.epochs


class EvaluateSettings(Settings):
    """What is measured after training, and during it."""

    splits: tuple[str, ...] = Field((), description="splits of data.folder to evaluate; empty: none")
    every: Annotated[float, Field(ge=0)] = Field(
        0.0, description="epochs from one evaluation during training to the next (and one at the end); 0: never"
    )
    batch_size: Positive = Field(256, description="images or captions at a time")
    benchmarks: tuple[str, ...] = Field(
        (),
        description="benchmarks to evaluate on: NAME of a known one, NAME=PATH, or the PATH of a folder of one's own",
    )
    folder: str = Field("data/benchmarks", description="where known benchmarks are looked for")
    explained: Natural = Field(
        0, description="images of each split of which is kept, for the report, what their similarity comes from"
    )
    robustness: bool = Field(
        False, description="after training: also evaluate on damaged images and on images with words written upon them"
    )
    robustness_images: Positive = Field(1000, description="at most so many images of each for `robustness`")
    probe: bool = Field(
        False,
        description="benchmarks of classes after training: also judge the image tower alone, by a linear classifier "
        "and by nearest neighbours that learn from the benchmark's training images",
    )
