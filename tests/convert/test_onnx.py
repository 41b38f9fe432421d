import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from models import RESNET, exact, plain_recipe, random_bundle

import pocketclip
from conftest import draw
from pocketclip.bundle import Bundle
from pocketclip.convert import onnx
from pocketclip.convert.convert import convert
from pocketclip.errors import ConvertError
from pocketclip.model.transformer import FUSED_ATTENTION_FROM


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """What no other format could hold: convolutions, a mean over tokens, two activations; and very long captions."""
    image, text = {"stem_channels": [8, 16], "pool": "mean", "activation": "quick_gelu"}, {"context_length": 300}
    assert text["context_length"] > FUSED_ATTENTION_FROM
    recipe = plain_recipe(image_tower=image, text_tower=text)
    return exact(random_bundle(tmp_path_factory.mktemp("onnx") / "bundle", recipe))


@pytest.fixture(scope="module")
def graphs(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs")
    onnx.write_onnx(bundle, path)
    return path


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    (found,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)
    return np.asarray(found)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_images_of_any_batch(batch: int, bundle: Bundle, graphs: Path) -> None:
    pixels = torch.randn(batch, 3, 32, 32)
    with torch.inference_mode():
        wanted = bundle.model.encode_images(pixels)
    np.testing.assert_allclose(run(graphs / "image.onnx", pixel_values=pixels.numpy()), wanted, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("length", [2, 3, 17, 300])
def test_captions_of_any_batch_and_length_read_at_their_first_end(
    batch: int, length: int, bundle: Bundle, graphs: Path
) -> None:
    end = bundle.tokenizer.end
    tokens = torch.randint(2, 300, (batch, length))
    tokens[:, -1] = end
    tokens[0, length // 2 :] = end
    if batch > 2:
        tokens[1, length // 2] = end  # and something else behind it
    ends = (tokens == end).int().argmax(dim=1)
    with torch.inference_mode():
        wanted = bundle.model.encode_texts(tokens, ends)
    np.testing.assert_allclose(run(graphs / "text.onnx", input_ids=tokens.numpy()), wanted, atol=1e-5)


def test_a_program_can_follow_the_description(trained: Path, tmp_path: Path) -> None:
    """The trained model beside its graphs, by preprocessing.json and tokenizer.json alone."""
    from PIL import Image
    from tokenizers import Tokenizer

    assert max(convert(trained / "bundle", tmp_path / "graphs", "onnx").differences.values()) < 1e-5
    says = json.loads((tmp_path / "graphs" / "preprocessing.json").read_text())
    captions = ["red circle left", "a bar in green, right"]
    (tmp_path / "a.png").write_bytes(draw("red", "circle", "left"))
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"), np.float32)
    assert pixels.shape[0] == says["image"]["size"]
    pixels = (pixels * says["image"]["scale"] - says["image"]["mean"]) / says["image"]["std"]
    image = run(tmp_path / "graphs" / "image.onnx", pixel_values=pixels.transpose(2, 0, 1)[None].astype(np.float32))
    tokenizer = Tokenizer.from_file(str(tmp_path / "graphs" / says["text"]["tokenizer"]))
    tokenizer.enable_padding(pad_id=says["text"]["pad"])
    tokens = np.array([one.ids for one in tokenizer.encode_batch(captions)])
    texts = run(tmp_path / "graphs" / "text.onnx", input_ids=tokens)
    bundle = exact(trained / "bundle")
    np.testing.assert_allclose(image, bundle.encode_images([tmp_path / "a.png"]), atol=1e-5)
    np.testing.assert_allclose(texts, bundle.encode_texts(captions), atol=1e-5)
    assert says["logit_scale"] == pytest.approx(float(bundle.model.scale().detach()))
    assert (image @ texts.T)[0].argmax() == 0


def test_a_resnet_in_batches_of_any_size(tmp_path: Path) -> None:
    recipe = plain_recipe(image={"size": 64}, image_tower=RESNET, train={"loss": "sigmoid"})
    bundle = exact(random_bundle(tmp_path / "bundle", recipe))
    graph, free = onnx.ImageGraph(bundle.model), {0: torch.export.Dim("batch")}
    onnx.write_graph(tmp_path / "image.onnx", graph, torch.zeros(2, 3, 64, 64), free)
    for batch in (1, 3):
        pixels = torch.randn(batch, 3, 64, 64)
        with torch.inference_mode():
            wanted = bundle.model.encode_images(pixels)
        np.testing.assert_allclose(run(tmp_path / "image.onnx", pixel_values=pixels.numpy()), wanted, atol=1e-5)


def test_graphs_tell_nothing_of_the_machine_that_made_them(graphs: Path) -> None:
    for name in ("image.onnx", "text.onnx"):
        content = (graphs / name).read_bytes()
        assert str(Path(pocketclip.__file__).parent).encode() not in content
        assert b"site-packages" not in content


def test_large_weights_lie_beside_the_graph(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "LARGEST_FILE", 1000)
    tokens = bundle.tokenizer.encode(["two dogs"])[0]
    graph = onnx.TextGraph(bundle.model, bundle.tokenizer.end)
    onnx.write_graph(
        tmp_path / "text.onnx", graph, torch.from_numpy(tokens).repeat(2, 1), {0: torch.export.Dim("batch")}
    )
    assert (tmp_path / "text.onnx").stat().st_size < (tmp_path / "text.onnx.data").stat().st_size
    np.testing.assert_allclose(
        run(tmp_path / "text.onnx", input_ids=tokens), bundle.encode_texts(["two dogs"]), atol=1e-5
    )


def test_a_missing_package_is_named(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ConvertError, match=r"onnxscript.*pip install 'pocketclip\[convert\]'"):
        onnx.write_onnx(bundle, tmp_path)
    assert not list(tmp_path.iterdir())
