from pathlib import Path

import numpy as np
import pytest
import torch

from pocketclip.bundle import Bundle, load
from pocketclip.evaluate.prompts import class_embeddings

PROMPTS = [["red circle left", "a circle in red, left"], ["blue pole", "one long pole that is blue and on the right"]]


@pytest.fixture
def bundle(trained: Path) -> Bundle:
    return load(trained / "bundle")


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts(bundle: Bundle) -> None:
    found = class_embeddings(bundle, PROMPTS)
    for one, prompts in zip(found, PROMPTS, strict=True):
        each = torch.stack([bundle.encode_texts([prompt])[0] for prompt in prompts])
        torch.testing.assert_close(each.norm(dim=1), torch.ones(2))
        expected = torch.nn.functional.normalize(each.mean(dim=0), dim=0)
        torch.testing.assert_close(torch.from_numpy(one), expected, atol=1e-6, rtol=0)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1])


def test_embeddings_are_kept_for_this_bundle_and_these_prompts(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = class_embeddings(bundle, PROMPTS, tmp_path)
    (kept,) = tmp_path.glob("*.npy")
    calls = []
    usual = Bundle.encode_texts
    monkeypatch.setattr(Bundle, "encode_texts", lambda self, texts: calls.append(1) or usual(self, texts))
    assert np.array_equal(class_embeddings(bundle, PROMPTS, tmp_path), first)
    assert not calls
    other = class_embeddings(bundle, PROMPTS[::-1], tmp_path)
    assert len(calls) == 1
    assert np.allclose(other[::-1], first, atol=1e-6)
    seal, bundle.description["seal"] = bundle.description["seal"], "another"
    class_embeddings(bundle, PROMPTS, tmp_path)
    assert len(calls) == 2
    bundle.description["seal"] = seal
    kept.write_bytes(kept.read_bytes()[:-4])
    assert np.array_equal(class_embeddings(bundle, PROMPTS, tmp_path), first)
    assert len(calls) == 3


def test_weights_under_training_are_never_kept(bundle: Bundle, tmp_path: Path) -> None:
    bundle.description = {}
    class_embeddings(bundle, PROMPTS, tmp_path)
    assert not list(tmp_path.iterdir())
