"""OpenCLIP as a peer to measure: imported, built and trained as its own training script does.

It is no dependency of PocketCLIP. Install it by hand into the same environment:

    pip install --no-deps open_clip_torch==3.3.0 torchvision timm
    pip install ftfy regex huggingface_hub safetensors tqdm pyyaml

`--no-deps` keeps the torch that is there. A torchvision that was built for another torch lacks its compiled operators
then, none of which OpenCLIP's transforms need.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pocketclip.device import Device
from pocketclip.recipe.schema import Recipe

# src/open_clip_train/params.py, get_default_params for ViT and the default of --wd
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 5e-4, (0.9, 0.98), 1e-6, 0.2
MAX_LOG_SCALE = 4.6052  # ln(100), as src/open_clip_train/train.py clamps


def import_open_clip() -> ModuleType:
    """The package `open_clip`; ends the program with one line and code 2 where it is missing."""
    try:
        try:
            import_module("torchvision")
        except RuntimeError:  # its compiled operators do not fit this torch: import it without registering them
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
        import_module("open_clip_train.scheduler")
        return import_module("open_clip")
    except ImportError as error:
        sys.stderr.write(f"error: OpenCLIP is not installed ({error}); benchmarks/openclip.py says how\n")
        raise SystemExit(2) from None


def build_model(recipe: Recipe, patch_size: int) -> torch.nn.Module:
    """OpenCLIP's `CLIP` with the recipe's widths, depths and heads, its own vocabulary and context length.

    patch_size: side of the square that becomes one token, pixels.
    """
    import_open_clip()
    sizes = import_module("open_clip.model")
    image, text = recipe.image_tower, recipe.text_tower
    vision_sizes = sizes.CLIPVisionCfg(
        layers=image.layers,
        width=image.width,
        head_width=image.width // image.heads,
        mlp_ratio=image.mlp_ratio,
        patch_size=patch_size,
        image_size=recipe.image.size,
    )
    text_sizes = sizes.CLIPTextCfg(width=text.width, heads=text.heads, layers=text.layers, mlp_ratio=text.mlp_ratio)
    model: torch.nn.Module = sizes.CLIP(recipe.model.embedding_width, vision_sizes, text_sizes, output_dict=True)
    return model


def build_optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW as src/open_clip_train/main.py builds it."""
    kept, decayed = [], []
    for name, parameter in model.named_parameters():
        exclude = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        (kept if exclude else decayed).append(parameter)
    groups = [{"params": kept, "weight_decay": 0.0}, {"params": decayed, "weight_decay": WEIGHT_DECAY}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)


class OpenCLIPLearner:
    """A model with its optimizer and schedule; `step` does what one step of its `train_one_epoch` does.

    The precision is its `amp_bf16` where ours is bfloat16, else its `fp32`. It has no gradient clipping by default.
    """

    def __init__(self, recipe: Recipe, device: Device, patch_size: int, steps: int, warmup_steps: int) -> None:
        torch.manual_seed(recipe.seed)
        self.device = device
        self.model = build_model(recipe, patch_size).to(device.device).train()
        self.loss = import_open_clip().ClipLoss()
        self.optimizer = build_optimizer(self.model)
        scheduler: Any = import_module("open_clip_train.scheduler")
        self.schedule = scheduler.cosine_lr(self.optimizer, LEARNING_RATE, warmup_steps, steps)
        self.autocast = import_module("open_clip_train.precision").get_autocast(
            "amp_bf16" if device.bfloat16 else "fp32", device_type=device.device.type
        )

    def step(self, images: Tensor, texts: Tensor, number: int) -> Tensor:
        """One optimisation step; returns the loss, still on the device.

        images: float32 [pairs, 3, size, size], normalised. texts: [pairs, 77] ids. number: 0 for the first step.
        """
        self.schedule(number)
        images, texts = (one.to(self.device.device, non_blocking=True) for one in (images, texts))
        self.optimizer.zero_grad()
        with self.autocast():
            loss: Tensor = sum(self.loss(**self.model(images, texts), output_dict=True).values())
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOG_SCALE)
        return loss.detach()
