"""The verb as a user meets it, and what it promises: checked, whole or not at all, one clear line."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from models import edit, exact, huggingface_folder, plain_recipe, random_bundle
from rich.console import Console
from safetensors.torch import load_file, save_file

from conftest import draw, small_recipe
from pocketclip.cli.main import main
from pocketclip.convert import check, huggingface, open_clip
from pocketclip.convert.check import embed, largest_difference, sample
from pocketclip.convert.convert import convert, detect
from pocketclip.errors import ConvertError
from pocketclip.recipe.toml import load_recipe
from pocketclip.train.loop import train


@pytest.fixture(scope="session")
def trained_plain(folder: Path, tmp_path_factory: pytest.TempPathFactory, console: Console) -> Path:
    """A trained model that every format can hold."""
    image = {"stem_channels": [], "pool": "class", "patch_size": 8}
    recipe = small_recipe(folder, image_tower=image, train={"epochs": 40})
    return train(recipe, tmp_path_factory.mktemp("runs") / "plain", console)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_bundle(tmp_path_factory.mktemp("ours") / "bundle")


def test_a_trained_model_goes_everywhere_and_comes_back(trained_plain: Path, tmp_path: Path) -> None:
    before, captions = exact(trained_plain), ["red circle left", "blue pole right", "green bar left"]
    images = [draw(*caption.split()) for caption in captions]
    wanted = before.encode_images(images) @ before.encode_texts(captions).T
    assert wanted.argmax(1).tolist() == [0, 1, 2]
    source = trained_plain
    for number, to in enumerate(["open_clip", "huggingface", "open_clip", "bundle", "onnx"]):
        differences = convert(source, tmp_path / str(number), to).differences  # type: ignore[arg-type]
        assert max(differences.values()) < 1e-5, to
        source = source if to == "onnx" else tmp_path / str(number)
    after = exact(source)
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], tensor), name
    assert torch.equal(after.encode_images(images) @ after.encode_texts(captions).T, wanted)


def test_training_starts_from_what_was_converted(
    trained_plain: Path, folder: Path, tmp_path: Path, console: Console
) -> None:
    """There and back through OpenCLIP, whose captions are mended; a small step more, and nothing is forgotten."""
    convert(trained_plain, tmp_path / "theirs", "open_clip")
    edit(tmp_path / "theirs" / "open_clip_config.json", pocketclip=None)
    convert(tmp_path / "theirs", tmp_path / "start")
    start = {
        "start_from": str(tmp_path / "start"),
        "batch_size": 15,
        "epochs": 1,
        "learning_rate": 1e-5,
        "device": "cpu",
    }
    (tmp_path / "more.toml").write_text(tomli_w.dumps({"data": {"folder": str(folder)}, "train": start}))
    recipe = load_recipe(tmp_path / "more.toml")
    assert recipe.tokenizer.mend
    assert recipe.image_tower == exact(tmp_path / "start").recipe.image_tower
    after, captions = exact(train(recipe, tmp_path / "run", console)), ["red circle left", "blue pole right"]
    images = [draw(*caption.split()) for caption in captions]
    assert (after.encode_images(images) @ after.encode_texts(captions).T).argmax(1).tolist() == [0, 1]
    assert after.tokenizer.mend


def test_the_printed_line_says_the_difference(ours: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pocketclip", "convert", ours, tmp_path / "hf", "--to", "huggingface"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'hf'}: huggingface; embeddings differ by at most 0.0e+00 (read back), ")
    assert "(transformers " in done.stdout
    assert len({path.stat().st_mode for path in (tmp_path / "hf").iterdir()}) == 1


def runs_code(source: Path, tmp_path: Path) -> tuple[str, ...]:
    class Runs:
        def __reduce__(self) -> object:
            return (os.mknod, (str(tmp_path / "it ran"),))

    torch.save({"state_dict": Runs()}, source / "open_clip_pytorch_model.bin")
    (source / "open_clip_model.safetensors").unlink()
    return "open_clip_pytorch_model.bin: refused", "mknod", "run code", "safetensors"


def other_architecture(source: Path, _: Path) -> tuple[str, ...]:
    state = load_file(source / "open_clip_model.safetensors")
    convnext = {name: tensor for name, tensor in state.items() if "visual" not in name}
    save_file({**convnext, "visual.trunk.stem.0.weight": torch.zeros(2)}, source / "open_clip_model.safetensors")
    return "weights of another architecture", "visual.trunk.stem.0.weight unknown", "visual.class_embedding", "missing"


def other_vocabulary(source: Path, tmp_path: Path) -> tuple[str, ...]:
    huggingface_folder(tmp_path / "vocabulary")
    shutil.copy(tmp_path / "vocabulary" / "vocab.json", source)
    shutil.copy(tmp_path / "vocabulary" / "merges.txt", source)
    (source / "tokenizer.json").unlink()
    return "tokenizer is of another vocabulary", "has ids up to", "the model knows 400", "--tokenizer"


def truncated(source: Path, _: Path) -> tuple[str, ...]:
    path = source / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "open_clip_model.safetensors: damaged or truncated", "copy it again"


def contradiction(source: Path, _: Path) -> tuple[str, ...]:
    edit(source / "open_clip_config.json", model_cfg__text_cfg__layers=12)
    return "contradicts its weights", "text_cfg.layers = 12", "the weights have 3"


def nothing(source: Path, _: Path) -> tuple[str, ...]:
    (source / "open_clip_config.json").unlink()
    return "no model that can be read", "open_clip_config.json", "config.json", "bundle.json"


@pytest.mark.parametrize("spoil", [runs_code, other_architecture, other_vocabulary, truncated, contradiction, nothing])
def test_bad_input_is_one_clear_line_and_nothing_is_written(
    spoil: Callable[[Path, Path], tuple[str, ...]],
    ours: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    convert(ours, tmp_path / "source", "open_clip")
    words = spoil(tmp_path / "source", tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sys, "argv", ["pocketclip", "convert", str(tmp_path / "source"), str(tmp_path / "empty")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}")
    for word in words:
        assert word in line
    assert not list((tmp_path / "empty").iterdir())
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
    assert not (tmp_path / "it ran").exists()


def test_a_full_destination_is_left_alone(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("full", "file"):
        with pytest.raises(ConvertError, match=f"{name}: is there already"):
            convert(ours, tmp_path / name, "onnx")
    assert (tmp_path / "full" / "precious").read_text() == (tmp_path / "file").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    convert(ours, tmp_path / "empty", "open_clip")
    assert (tmp_path / "empty" / "open_clip_config.json").is_file()


def test_options_that_do_not_fit_the_source(ours: Path, tmp_path: Path) -> None:
    convert(ours, tmp_path / "theirs", "open_clip")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (ours, {}, "is a bundle; say what to make of it: --to"),
        (ours, {"to": "bundle"}, "is a bundle; say what to make of it: --to"),
        (ours, {"to": "onnx", "activation": "gelu"}, "is a bundle, which has its tokenizer and activation"),
        (ours, {"to": "onnx", "tokenizer": ours}, "is a bundle, which has its tokenizer and activation"),
        (tmp_path / "theirs", {"activation": "gelu"}, "its configuration says the activation"),
        (tmp_path / "theirs", {"tokenizer": tmp_path / "none"}, "none: no such file or folder"),
        (tmp_path / "none", {}, "none: no such file or folder"),
    ]
    for source, options, message in cases:
        with pytest.raises(ConvertError, match=message):
            convert(source, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
    assert [detect(one) for one in (ours, tmp_path / "theirs", ours / "recipe.toml")] == [
        "bundle",
        "open_clip",
        "checkpoint",
    ]


def swapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A mistake that no shape shows: keys taken for queries in the first block of the text tower."""
    names = [f"text_model.encoder.layers.0.self_attn.{part}_proj.weight" for part in "qk"]
    return {**state, names[0]: state[names[1]], names[1]: state[names[0]]}


def test_a_mistake_in_the_conversion_is_noticed(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, back = huggingface.to_huggingface, huggingface.from_huggingface
    monkeypatch.setattr(huggingface, "to_huggingface", lambda state: swapped(right(state)))
    with pytest.raises(ConvertError, match=r"hf: read back, it gives other embeddings: .* nothing was written"):
        convert(ours, tmp_path / "hf", "huggingface")
    monkeypatch.setattr(huggingface, "from_huggingface", lambda state: back(swapped(state)))  # as wrong, so it fits
    with pytest.raises(ConvertError, match=r"hf: transformers gives other embeddings: .* nothing was written"):
        convert(ours, tmp_path / "hf", "huggingface")
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_misread_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = huggingface_folder(tmp_path / "theirs", activation="gelu")
    back = huggingface.from_huggingface
    monkeypatch.setattr(huggingface, "from_huggingface", lambda state: back(swapped(state)))
    with pytest.raises(ConvertError, match=r"theirs: transformers gives other embeddings"):
        convert(source, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_without_a_formats_library_it_is_read_back_alone(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for to in ("open_clip", "huggingface"):
        assert convert(ours, tmp_path / to, to).differences == {"read back": 0.0}  # type: ignore[arg-type]


def test_what_a_library_raises_is_one_line(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("one\ntwo " * 1000)

    monkeypatch.setattr(huggingface, "_embeddings", fail)
    with pytest.raises(ConvertError, match=r"hf: transformers cannot use it \(one two") as caught:
        convert(ours, tmp_path / "hf", "huggingface")
    assert len(str(caught.value)) < 1000
    assert not (tmp_path / "hf").exists()


def test_differences_and_what_is_no_number_are_refused(ours: Path) -> None:
    bundle = exact(ours)
    some = sample(bundle)
    assert some.pixels.shape == (3, 32, 32, 3)
    found = embed(bundle, some)
    assert largest_difference(found, found, "it") == 0
    for change in (2 * check.LARGEST_DIFFERENCE, torch.nan):
        texts = found.texts.clone()
        texts[1, 2] += change
        with pytest.raises(ConvertError, match="it gives other embeddings: they differ by up to"):
            largest_difference(found, check.Embeddings(found.images, texts), "it")
    with pytest.raises(ConvertError, match="embeddings of another shape"):
        largest_difference(found, check.Embeddings(found.images, found.texts[:2]), "it")


def test_two_formats_in_one_folder_are_read_as_open_clips(tmp_path: Path) -> None:
    """As OpenCLIP's models are published: with Hugging Face's files beside theirs."""
    source = random_bundle(tmp_path / "bundle", plain_recipe())
    convert(source, tmp_path / "both", "huggingface")
    convert(source, tmp_path / "theirs", "open_clip")
    shutil.copytree(tmp_path / "theirs", tmp_path / "both", dirs_exist_ok=True)
    assert detect(tmp_path / "both") == "open_clip"
    assert open_clip.read_open_clip(tmp_path / "both", None).weights.name == "open_clip_model.safetensors"
