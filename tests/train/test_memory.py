from pathlib import Path

import pytest

from conftest import small_recipe
from pocketclip.device import choose_device
from pocketclip.errors import DataError, TrainingError
from pocketclip.train import memory
from pocketclip.train.check import Imagined, check, utilisation
from pocketclip.train.memory import fit_to_memory

CPU = choose_device("cpu", "float32")


def has_free(bytes_: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: bytes_)


def test_the_largest_half_that_fits_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(folder, train={"batch_size": 4096})
    has_free(1e12, monkeypatch)
    fitted, whole = fit_to_memory(recipe, 8, CPU)
    assert fitted == recipe
    has_free(whole.memory_bytes, monkeypatch)  # a tenth of which stays free
    fitted, half = fit_to_memory(recipe, 8, CPU)
    assert fitted.train.chunk_size == 2048
    assert half.memory_bytes < whole.memory_bytes
    assert half.flops_per_pair == pytest.approx(whole.flops_per_pair * 4 / 3)
    assert fit_to_memory(recipe, 8, CPU, ranks=2)[0] == recipe, "each rank has a half"
    has_free(1e8, monkeypatch)
    with pytest.raises(TrainingError, match=r"train\.batch_size = 4096: .* one pair at a time, 0\.1 GB are free"):
        fit_to_memory(recipe, 8, CPU)


def test_a_given_chunk_size_is_kept_or_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small_recipe(folder, train={"batch_size": 4096, "chunk_size": 1000})
    has_free(1e12, monkeypatch)
    assert fit_to_memory(recipe, 8, CPU)[0] == recipe
    has_free(1e8, monkeypatch)
    with pytest.raises(TrainingError, match=r"train\.chunk_size = 1000: .*leave it at 0"):
        fit_to_memory(recipe, 8, CPU)


def test_a_price_needs_no_data(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path / "nothing", train={"batch_size": 10, "epochs": 2})
    estimate = check(recipe, Imagined(1005, 6))
    assert (estimate.rows, estimate.steps) == (1005, 200)
    assert estimate.seconds == pytest.approx(2000 / estimate.pairs_per_second)


def test_captions_that_are_imagined_are_as_many_as_an_image_has(folder: Path) -> None:
    found = check(small_recipe(folder, caption={"per_image": 3}), Imagined(1000, 12))
    assert found.rows == 1000
    assert found.pairs_per_second > 0


def test_less_than_a_batch_has_no_price(folder: Path) -> None:
    with pytest.raises(DataError, match=r"14 rows are less than one batch of train\.batch_size = 15"):
        check(small_recipe(folder), Imagined(14, 12))


def test_a_known_gpu_is_told_how_much_of_it_is_used() -> None:
    assert utilisation("NVIDIA H100 80GB HBM3", 287e12) == ", 29% of the 989 TFLOP/s of one H100"
    assert utilisation("NVIDIA GeForce RTX 4090", 80e12).endswith("165 TFLOP/s of one RTX 4090")
    assert utilisation("", 1e12) == ""
