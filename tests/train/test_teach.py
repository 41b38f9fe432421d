"""A teacher's embeddings beside the shards, and training by them."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import pocketclip
from conftest import draw, example_rows, small_recipe
from pocketclip.data.batches import Batch, TrainingBatches, load_batches
from pocketclip.data.rows import Row
from pocketclip.data.shards import Split, write_shards
from pocketclip.data.teacher import CAPTIONS, DESCRIPTION, IMAGES, OFFSETS, Taught
from pocketclip.device import choose_device
from pocketclip.errors import BundleError, CheckpointError, DataError, RecipeError, Stopped, TrainingError
from pocketclip.recipe.schema import Recipe
from pocketclip.tokenizer import load_tokenizer
from pocketclip.train.distillation import distillation_loss
from pocketclip.train.features import Squares
from pocketclip.train.learner import Learner
from pocketclip.train.loop import train
from pocketclip.train.teach import open_teacher, teach
from train.test_loop import assert_same_weights, stop_after
from train.test_optimizer import a_batch

BAD = "cut"


@pytest.fixture
def data(folder: Path, tmp_path: Path) -> Path:
    """The small set with a row that cannot be used, one without and one with three captions; 48 in all."""
    rows = [
        Row("none", draw("red", "bar", "left"), "png", (" ",)),
        Row("three", draw("black", "bar", "left"), "png", ("one", "a second", "and the third")),
        *example_rows(test=False),
        Row(BAD, draw("red", "bar", "left")[:90], "png", ("cut off",)),
    ]
    write_shards(rows, tmp_path / "data", "train", rows_per_shard=20)
    shutil.copy(folder / "tokenizer.json", tmp_path / "data")
    return tmp_path / "data"


def student_of(trained: Path, shards: Path, **sections: dict[str, object]) -> Recipe:
    """Of another width and picture size than its teacher."""
    training = {"teacher": str(trained / "bundle"), "distillation": 0.5, **sections.pop("train", {})}
    sections = {"model": {"embedding_width": 24}, "image": {"size": 24}, "evaluate": {"batch_size": 10}, **sections}
    return small_recipe(shards, train=training, **sections)


def batches_of(recipe: Recipe) -> TrainingBatches:
    split = Split(recipe.data.folder, "train")
    encode = load_tokenizer(Path(recipe.data.folder) / "tokenizer.json", 16).encode
    return TrainingBatches(split, recipe, encode, teacher=open_teacher(recipe, split))


def test_they_are_the_teachers_embeddings_of_every_image_and_caption(
    trained: Path, data: Path, console: Console
) -> None:
    found = teach(student_of(trained, data), console)
    images, captions, offsets = (np.load(found / name) for name in (IMAGES, CAPTIONS, OFFSETS))
    split, bundle = Split(data, "train"), pocketclip.load(trained / "bundle")
    bad = next(row for row in range(len(split)) if split.key(row) == BAD)
    assert np.isnan(images[bad]).all()
    good = [row for row in range(len(split)) if row != bad]
    expected = bundle.encode_images([split.image(row) for row in good]).numpy()
    np.testing.assert_allclose(images[good], expected, atol=1e-3)
    np.testing.assert_allclose(captions, bundle.encode_texts(list(split.every_caption())).numpy(), atol=1e-3)
    assert np.diff(offsets).tolist() == [len(split.captions(row)) for row in range(len(split))]
    assert {0, 1, 2, 3} == set(np.diff(offsets))
    assert json.loads((found / DESCRIPTION).read_text())["scale"] == pytest.approx(bundle.model.scale().item())
    assert {path.name for path in found.iterdir()} == {IMAGES, CAPTIONS, OFFSETS, DESCRIPTION}


def test_workers_decode_the_same(trained: Path, data: Path, console: Console) -> None:
    found = teach(student_of(trained, data), console)
    alone = np.load(found / IMAGES)
    shutil.rmtree(found)
    teach(student_of(trained, data, data={"workers": 2}), console)
    np.testing.assert_array_equal(np.load(found / IMAGES), alone)


@pytest.mark.parametrize("stop", [0, 3])
def test_a_killed_pass_goes_on_where_it_was(
    stop: int, trained: Path, data: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = student_of(trained, data)
    found = teach(recipe, console)
    whole = {name: np.load(found / name) for name in (IMAGES, CAPTIONS)}
    shutil.rmtree(found)
    for owner, name in ((Squares, "__getitem__"), (pocketclip.bundle.Bundle, "encode_texts")):
        original, calls = getattr(owner, name), []

        def stopping(self: object, some: object, original=original, calls=calls) -> object:
            calls.append(some)
            if len(calls) == stop + 1:
                raise KeyboardInterrupt
            return original(self, some)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopping)
            with pytest.raises(KeyboardInterrupt):
                teach(recipe, console)
        with pytest.raises(TrainingError, match="missing there, or not all are computed; run `pocketclip teach`"):
            open_teacher(recipe, Split(data, "train"))
    again, original = [], Squares.__getitem__
    monkeypatch.setattr(Squares, "__getitem__", lambda self, rows: (again.append(rows), original(self, rows))[1])
    assert teach(recipe, console) == found
    assert again == [], "images were all done"
    for name, values in whole.items():
        np.testing.assert_array_equal(np.load(found / name), values)


def test_a_batch_has_what_the_teacher_says_of_its_own_pairs(trained: Path, data: Path, console: Console) -> None:
    recipe = student_of(trained, data, caption={"per_image": 2}, image={"size": 32, "shift": 0.0})
    teach(recipe, console)
    data_set, bundle = batches_of(recipe), pocketclip.load(trained / "bundle")
    tokenizer = load_tokenizer(data / "tokenizer.json", 16).tokenizer
    for batch in (data_set[0, 0], data_set[1, 2], *load_batches(data_set, 0, 2, workers=2)):
        assert batch.taught is not None
        assert batch.taught.scale == pytest.approx(bundle.model.scale().item())
        expected = bundle.encode_pixels(batch.pixels)
        torch.testing.assert_close(batch.taught.images.float(), expected, rtol=0, atol=1e-3)
        captions = [tokenizer.decode(ids.tolist()).strip() for ids in batch.tokens]
        assert len(captions) == 2 * len(batch.pixels)
        torch.testing.assert_close(batch.taught.texts.float(), bundle.encode_texts(captions), rtol=0, atol=1e-3)


def test_captions_with_an_invented_word_are_none_that_the_teacher_was_shown(
    trained: Path, data: Path, console: Console
) -> None:
    recipe = student_of(trained, data, caption={"unknown_words": 0.5})
    teach(recipe, console)
    data_set = batches_of(recipe)
    known = {caption.casefold() for caption in data_set.split.every_caption()}
    tokenizer = load_tokenizer(data / "tokenizer.json", 16).tokenizer
    shown = []
    for step in range(3):
        batch = data_set[0, step]
        assert batch.taught is not None
        for ids, text in zip(batch.tokens, batch.taught.texts, strict=True):
            shown.append(bool(text.isfinite().all()))
            assert shown[-1] == (tokenizer.decode(ids.tolist()).strip() in known)
    assert 10 < sum(shown) < 35


def test_an_image_that_only_the_teacher_cannot_use_is_dropped_with_that_reason(
    trained: Path, data: Path, console: Console
) -> None:
    recipe = student_of(trained, data, train={"batch_size": 48})
    found = teach(recipe, console)
    images = np.load(found / IMAGES)
    images[5] = np.nan
    np.save(found / IMAGES, images)
    dropped = batches_of(recipe)[0, 0].dropped
    assert dropped == {"image that the teacher cannot use": 1, "empty caption": 1, "damaged image": 1}


def learner_of(folder: Path, **sections: dict[str, object]) -> Learner:
    training = {"teacher": "a bundle", "distillation": 0.3, **sections.pop("train", {})}
    towers: dict[str, object] = {"stem_channels": [], "layers": 2}
    return Learner(
        small_recipe(folder, image_tower=towers, train=training, **sections), choose_device("cpu", "float32"), 10
    )


def taught_batch(captions: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(2)
    batch = a_batch()
    tokens = torch.randint(2, 300, (8 * captions, 6), generator=generator)
    texts = torch.randn(8 * captions, 5, generator=generator).half()
    texts[[1, 4]] = torch.nan
    taught = Taught(torch.randn(8, 5, generator=generator).half(), texts, 7.0)
    return replace(batch, tokens=tokens, ends=torch.full((8 * captions,), 5), taught=taught)


def gradients_of(learner: Learner, batch: Batch) -> list[torch.Tensor]:
    return [learner.backward(batch), *(one.grad for one in learner.model.parameters() if one.grad is not None)]


@pytest.mark.parametrize("captions", [1, 2])
def test_the_learner_mixes_both_losses(captions: int, folder: Path) -> None:
    batch = taught_batch(captions)
    assert batch.taught is not None
    mixed, alone = (learner_of(folder, caption={"per_image": captions}) for _ in range(2))
    loss, contrastive = mixed.backward(batch), alone.backward(replace(batch, taught=None))
    (part,) = alone._parts(batch.pixels, batch.tokens, batch.ends)
    images, texts = alone._embed(part)
    theirs = [torch.nn.functional.normalize(one.float()) for one in (batch.taught.images, batch.taught.texts)]
    distances = []
    for place in range(captions):
        shown = [row for row in range(place, 8 * captions, captions) if row not in (1, 4)]
        distances.append(distillation_loss(images, texts[shown], alone.model.scale(), theirs[0], theirs[1][shown], 7.0))
    torch.testing.assert_close(loss, 0.7 * contrastive + 0.3 * torch.stack(distances).mean().detach())


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("captions", [1, 2])
def test_the_gradient_of_parts_is_the_whole_batchs(loss: str, captions: int, folder: Path) -> None:
    whole, cached = (
        learner_of(folder, caption={"per_image": captions}, train={"chunk_size": size, "loss": loss}) for size in (0, 3)
    )
    expected = gradients_of(whole, taught_batch(captions))
    assert len(expected) > 40
    for one, other in zip(gradients_of(cached, taught_batch(captions)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_stopped_run_goes_on_to_the_same_weights(
    trained: Path, data: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = student_of(trained, data, caption={"unknown_words": 0.3})
    teach(recipe, console)
    train(recipe, tmp_path / "whole", console)
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(Stopped):
            train(recipe, tmp_path / "stopped", console)
    train(student_of(trained, data, caption={"unknown_words": 0.3}, data={"workers": 1}), tmp_path / "stopped", console)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    train(
        student_of(trained, data, caption={"unknown_words": 0.3}, train={"distillation": 0.0}), tmp_path / "x", console
    )
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "whole", tmp_path / "x")


def test_a_run_does_not_go_on_with_another_teacher_of_the_same_name(
    trained: Path, data: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path / "teacher")
    recipe = student_of(tmp_path / "teacher", data)
    teach(recipe, console)
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stopped):
            train(recipe, tmp_path / "run", console)
    shutil.rmtree(tmp_path / "teacher")
    train(small_recipe(data, train={"epochs": 1}), tmp_path / "teacher", console)
    with pytest.raises(TrainingError, match="run `pocketclip teach`"):
        train(recipe, tmp_path / "run", console)
    teach(recipe, console)
    with pytest.raises(CheckpointError, match=r"\(teacher changed\)"):
        train(recipe, tmp_path / "run", console)


def test_a_student_learns_from_the_teacher_alone(trained: Path, data: Path, tmp_path: Path, console: Console) -> None:
    """Without the contrastive loss, what it says of images and captions comes near to what the teacher says."""
    recipe = student_of(trained, data, train={"distillation": 1.0, "epochs": 40})
    teach(recipe, console)
    bundle = pocketclip.load(train(recipe, tmp_path / "run", console))
    teacher, split = pocketclip.load(trained / "bundle"), Split(data, "train")
    rows = [row for row in range(45) if split.captions(row)]
    images, captions = [split.image(row) for row in rows], [split.captions(row)[0] for row in rows]
    said = [
        (one.model.scale().detach() * one.encode_images(images) @ one.encode_texts(captions).T).log_softmax(1)
        for one in (bundle, teacher)
    ]
    distance = (said[1].exp() * (said[1] - said[0])).sum(1).mean()
    of_nothing = (said[1].exp() * (said[1] + math.log(len(rows)))).sum(1).mean()  # all captions alike
    assert distance < 0.6 * of_nothing


def test_what_is_missing_is_named(trained: Path, data: Path, tmp_path: Path, console: Console) -> None:
    recipe = student_of(trained, data)
    with pytest.raises(TrainingError, match=r"teacher.train-.*run `pocketclip teach` with this recipe"):
        train(recipe, tmp_path / "run", console)
    assert not (tmp_path / "run").exists()
    found = teach(recipe, console)
    np.save(found / OFFSETS, np.arange(3))
    with pytest.raises(DataError, match="damaged; delete it and run `pocketclip teach`"):
        train(recipe, tmp_path / "run", console)
    with pytest.raises(RecipeError, match=r"train\.distillation = 0\.5 needs a teacher's bundle: train\.teacher"):
        small_recipe(data, train={"distillation": 0.5})
    with pytest.raises(RecipeError, match=r"train\.teacher is empty"):
        teach(small_recipe(data), console)
    with pytest.raises(BundleError, match=r"train\.teacher = .*no bundle"):
        teach(small_recipe(data, train={"teacher": str(tmp_path)}), console)
    (data / "teacher").rename(data / "elsewhere")
    (data / "teacher").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot be written"):
        teach(recipe, console)
