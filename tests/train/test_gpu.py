"""What a GPU does beside what the CPU does, and that the training loop never waits for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from conftest import small_recipe
from pocketclip.bundle import load
from pocketclip.data.batches import Batch
from pocketclip.data.teacher import Taught
from pocketclip.device import choose_device
from pocketclip.evaluate.splits import evaluate_splits
from pocketclip.model import transformer
from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import Recipe
from pocketclip.train import losses
from pocketclip.train.learner import Learner, Towers
from pocketclip.train.loop import train
from pocketclip.train.losses import sigmoid_loss, softmax_loss
from train.test_losses import CAPTIONS, unit
from train.test_optimizer import a_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]


def recipe_of(folder: Path, **changes: object) -> Recipe:
    """Three layers a tower, without batch norm; float32, so that both chips can agree."""
    tower: dict[str, object] = {"layers": 3, "stem_channels": [], "pool": "class"}
    text = {"layers": 3, "context_length": 16}
    return small_recipe(folder, image_tower=tower, text_tower=text, train={"batch_size": 8, **changes})


def mixed_batch() -> Batch:
    """Captions of very different lengths, one of them twice."""
    batch = a_batch()
    tokens = torch.cat([batch.tokens, batch.tokens], 1)
    tokens[3] = tokens[0]
    return replace(batch, tokens=tokens, ends=torch.tensor([11, 2, 1, 11, 2, 5, 3, 3]))


def gradients(recipe: Recipe, batch: Batch, device: str) -> dict[str, Tensor]:
    learner = Learner(recipe, choose_device(device, "float32"), 10, 45)
    learner.model.load_state_dict(CLIP(recipe).state_dict() | start_of(recipe))
    learner.backward(batch)
    return {name: one.grad.cpu() for name, one in learner.model.named_parameters() if one.grad is not None}


def start_of(recipe: Recipe) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return CLIP(recipe).state_dict()


@pytest.mark.parametrize(
    "changes", [{}, {"loss": "sigmoid"}, {"loss": "global"}, {"chunk_size": 3}, {"recompute": True}], ids=str
)
def test_a_steps_gradients_are_the_cpus(changes: dict[str, object], folder: Path) -> None:
    recipe = recipe_of(folder, **changes)
    on_cpu, on_gpu = (gradients(recipe, mixed_batch(), device) for device in ("cpu", "cuda"))
    assert on_cpu.keys() == on_gpu.keys()
    for name, value in on_cpu.items():
        torch.testing.assert_close(on_gpu[name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("block", [(4, 2), (8192, 8192)], ids=["blocks", "one block"])
@pytest.mark.parametrize("captions", CAPTIONS.values(), ids=CAPTIONS.keys())
def test_losses_are_the_cpus(captions: Tensor, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses.BLOCK, "cuda", block)
    torch.manual_seed(0)
    inputs = [unit(9, 8), unit(9, 8), torch.tensor(14.0), torch.tensor(-2.0)]
    found = []
    for device in ("cpu", "cuda"):
        there = [one.to(device).requires_grad_() for one in inputs]
        loss = softmax_loss(*there[:3], captions, 0.1) + sigmoid_loss(*there, captions)
        found.append([one.cpu() for one in (loss, *torch.autograd.grad(loss, there))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Fail where the CPU waits for the GPU while the block runs."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": "sigmoid"},
        {"loss": "global"},
        {"label_smoothing": 0.1, "ema_decay": 0.9, "chunk_size": 3},
        {"optimizer": "muon", "layer_decay": 0.8, "recompute": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_never_waits_for_the_gpu(changes: dict[str, object], precision: str, folder: Path) -> None:
    recipe = recipe_of(folder, **changes)
    recipe = recipe.model_copy(update={"image_tower": recipe.image_tower.model_copy(update={"patch_dropout": 0.25})})
    learner = Learner(recipe, choose_device("cuda", precision), 10, 45)
    batches = [a_batch().pin_memory(), mixed_batch().pin_memory()]
    for number, batch in enumerate(batches):  # the first of each shape may
        learner.step(batch, number)
    with without_waiting():
        for number, batch in enumerate(batches):
            learner.step(batch, number)


def test_nor_does_a_step_with_a_teacher(folder: Path) -> None:
    learner = Learner(recipe_of(folder, distillation=0.5, teacher="bundle"), choose_device("cuda", "float32"), 10, 45)
    texts = unit(8, 4).half()
    texts[2] = torch.nan
    batch = replace(mixed_batch(), taught=Taught(unit(8, 4).half(), texts, 20.0)).pin_memory()
    learner.step(batch, 0)
    with without_waiting():
        learner.step(batch, 1)


def test_packed_captions_are_the_padded_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(folder)
    packed = gradients(recipe, mixed_batch(), "cuda")
    monkeypatch.setattr(transformer, "PACKED_AT_MOST", 0.0)
    for name, value in gradients(recipe, mixed_batch(), "cuda").items():
        torch.testing.assert_close(packed[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("changes", [{}, {"recompute": True}], ids=str)
def test_compiled_blocks_are_the_eager_ones(changes: dict[str, object], folder: Path) -> None:
    torch._dynamo.reset()
    eager = gradients(recipe_of(folder, **changes), mixed_batch(), "cuda")
    for name, value in gradients(recipe_of(folder, compile=True, **changes), mixed_batch(), "cuda").items():
        torch.testing.assert_close(eager[name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_gradients_pass_through_several_gpus_wrapper(folder: Path, tmp_path: Path) -> None:
    """One process of NCCL: the captions' ends stay on the CPU within DistributedDataParallel."""
    recipe, device = recipe_of(folder), choose_device("cuda", "float32")
    batch, model = mixed_batch(), CLIP(recipe).to(device.device)
    tokens, pixels = batch.tokens.to(device.device), torch.randn(8, 3, 32, 32, device=device.device)
    distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        found = []
        for towers in (Towers(model), DistributedDataParallel(Towers(model))):
            model.zero_grad()
            images, texts = towers(pixels, tokens, batch.ends)
            F.mse_loss(images, texts).backward()
            found.append([one.grad.clone() for one in model.parameters() if one.grad is not None])
    finally:
        distributed.destroy_process_group()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_run_learns_and_is_evaluated(folder: Path, tmp_path: Path, console: Console) -> None:
    recipe = small_recipe(folder, train={"epochs": 60, "device": "cuda", "precision": "auto"})
    bundle = train(recipe, tmp_path / "run", console)
    split = evaluate_splits(load(bundle), folder, ["train"], tmp_path / "found", console, "bundle")[0]
    assert split.top_1 > 50
