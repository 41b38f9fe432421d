"""Several processes give what one gives; they meet over gloo on this machine."""

import gc
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn import functional as F

from conftest import small_recipe
from pocketclip.device import choose_device
from pocketclip.train.distillation import distillation_loss
from pocketclip.train.global_loss import RememberedNegatives, global_loss
from pocketclip.train.learner import Learner
from pocketclip.train.losses import sigmoid_loss, softmax_loss
from pocketclip.train.ranks import Ranks
from train.test_losses import unit
from train.test_teach import taught_batch

PAIRS, WIDTH = 11, 6
CAPTIONS = {"different": list(range(PAIRS)), "repeated": [1, 2, 1, 4, 2, 6, 1, 8, 8, 9, 10]}
LOSSES = ("softmax", "smoothed", "sigmoid", "global", "distillation")
ROWS = 20  # of the data set, of which the batch is a part


def inputs() -> list[Tensor]:
    torch.manual_seed(0)
    vectors = [F.normalize(torch.randn(PAIRS, WIDTH, dtype=torch.float64), dim=1) for _ in range(2)]
    return [*vectors, torch.tensor(12.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)]


def loss_and_gradients(loss: str, captions: Tensor, rows: slice, ranks: Ranks) -> list[Tensor]:
    images, texts, scale, bias = (one.requires_grad_() for one in inputs())
    if loss == "distillation":
        teacher = [unit(PAIRS, WIDTH - 2, dtype=torch.float64) for _ in range(2)]
        shown = rows.start + (captions[rows] % 4 != 1).nonzero()[:, 0]  # some of the captions, another number a rank
        value = distillation_loss(images[rows], texts[shown], scale, teacher[0][rows], teacher[1][shown], 9.0, ranks)
    elif loss == "sigmoid":
        value = sigmoid_loss(images[rows], texts[rows], scale, bias, captions[rows], ranks)
    elif loss == "global":
        remembered = RememberedNegatives(ROWS, torch.device("cpu"))
        remembered.means = torch.linspace(-2, 0, 2 * ROWS, dtype=torch.float64).view(2, ROWS)
        places = torch.arange(3, 3 + PAIRS)[rows]
        value = global_loss(images[rows], texts[rows], scale, captions[rows], places, remembered, 0.3, ranks)
    else:
        value = softmax_loss(images[rows], texts[rows], scale, captions[rows], 0.2 * (loss == "smoothed"), ranks)
    gradients = torch.autograd.grad(value, [images, texts, scale, bias], materialize_grads=True)
    found = [value.detach(), *gradients]
    return [*found, remembered.means / ranks.count] if loss == "global" else found


def a_rank(rank: int, count: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=count)
    ends = [PAIRS * part // count + (part == 1) for part in range(count)] + [PAIRS]  # parts of different lengths
    found = {}
    for name, captions in CAPTIONS.items():
        for loss in LOSSES:
            rows = slice(ends[rank], ends[rank + 1])
            found[f"{name}, {loss}"] = loss_and_gradients(loss, torch.tensor(captions), rows, Ranks(rank, count))
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("count", [2, 4])
def test_the_losses_of_ranks_add_up_to_the_whole_batchs(count: int, tmp_path: Path) -> None:
    multiprocessing.spawn(a_rank, (count, str(tmp_path)), nprocs=count)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(count)]
    for name, captions in CAPTIONS.items():
        for loss in LOSSES:
            whole = loss_and_gradients(loss, torch.tensor(captions), slice(0, PAIRS), Ranks())
            for expected, *shares in zip(whole, *(part[f"{name}, {loss}"] for part in parts), strict=True):
                torch.testing.assert_close(sum(shares), expected, rtol=1e-9, atol=1e-10)


def a_learner(folder: Path, ranks: Ranks) -> Learner:
    training: dict[str, object] = {"chunk_size": 3, "teacher": "a bundle", "distillation": 0.4}
    recipe = small_recipe(folder, image_tower={"stem_channels": [], "layers": 2}, train=training)
    return Learner(recipe, choose_device("cpu", "float32"), 10, ROWS, ranks)


def gradients_of_a_batch(learner: Learner, rows: slice) -> list[Tensor]:
    batch = taught_batch()
    assert batch.taught is not None
    taught = replace(batch.taught, images=batch.taught.images[rows], texts=batch.taught.texts[rows])
    part = replace(
        batch,
        pixels=batch.pixels[rows],
        tokens=batch.tokens[rows],
        ends=batch.ends[rows],
        rows=batch.rows[rows],
        taught=taught,
    )
    loss = learner.backward(part)
    return [loss, *(parameter.grad for parameter in learner.model.parameters() if parameter.grad is not None)]


def a_learning_rank(rank: int, count: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=count)
    rows = slice(8 * rank // count, 8 * (rank + 1) // count)
    found = gradients_of_a_batch(a_learner(Path(folder), Ranks(rank, count)), rows)
    torch.save(found, f"{folder}/{rank}.pt")
    gc.collect()  # DistributedDataParallel must go before its group: else a process now and then ends by SIGABRT
    distributed.destroy_process_group()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_each_rank_has_the_whole_batchs_gradient(count: int, tmp_path: Path) -> None:
    multiprocessing.spawn(a_learning_rank, (count, str(tmp_path)), nprocs=count)
    expected = gradients_of_a_batch(a_learner(tmp_path, Ranks()), slice(0, 8))
    assert len(expected) > 40
    for rank in range(count):
        for one, other in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
