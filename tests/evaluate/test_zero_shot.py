import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from pocketclip.evaluate import zero_shot
from pocketclip.evaluate.captions import recall
from pocketclip.evaluate.zero_shot import best_captions, ranks, top_k


def unit(rows: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(params=[7, 1024])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block size that leaves a ragged last one, and the usual one."""
    monkeypatch.setattr(zero_shot, "BLOCK", request.param)


@pytest.mark.usefixtures("block")
def test_top_k_equals_scikit_learns() -> None:
    images, texts = unit(50, 8, 0), unit(12, 8, 1)
    true = np.random.default_rng(2).integers(0, 12, 50)
    found = ranks(images, texts, [[label] for label in true])
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(true, images @ texts.T, k=k, labels=range(12))
        assert top_k(found, k) == pytest.approx(100 * expected)


@pytest.mark.usefixtures("block")
def test_best_captions_equal_a_full_sort() -> None:
    images, texts = unit(20, 8, 0), unit(31, 8, 1)
    order, cosines = best_captions(images, texts, 5)
    for image in range(20):
        scores = [float(images[image] @ text) for text in texts]
        assert order[image].tolist() == sorted(range(31), key=lambda c: -scores[c])[:5]
        assert cosines[image] == pytest.approx(sorted(scores, reverse=True)[:5], abs=1e-6)
    assert best_captions(images, texts[:3], 5)[0].shape == (20, 3)


@settings(deadline=None)
@given(st.data())
def test_best_captions_equal_a_stable_sort_where_many_are_equal(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
    values = st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0, float("nan")])
    cells = data.draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))
    scores = np.array(cells, np.float32).reshape(rows, columns)
    count = data.draw(st.integers(1, 6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zero_shot, "SCORES", data.draw(st.sampled_from([1, 50, 1 << 24])))
        found, cosines = best_captions(scores, np.eye(columns, dtype=np.float32), count)
    if not np.isnan(scores).any():  # a product spreads what is no number over its row
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        assert found.tolist() == expected.tolist()
        assert cosines.tolist() == np.take_along_axis(scores, expected, axis=1).tolist()
    assert zero_shot._first(scores, count).tolist() == np.argsort(-scores, axis=1, kind="stable")[:, :count].tolist()


def test_chance_and_intervals_of_recall() -> None:
    """Chance beside guessing at random; a caption's interval beside images drawn again one by one."""
    images, texts = unit(40, 8, 0), unit(100, 8, 1)
    random = np.random.default_rng(2)
    owner = np.concatenate([np.arange(40), random.integers(0, 40, 60)])
    true = [np.flatnonzero(owner == image).tolist() for image in range(40)]
    found = recall(images, texts, true)
    guessed = [np.mean([set(random.permutation(100)[:5]) & set(own) != set() for own in true]) for _ in range(2000)]
    assert found.chance["image_to_text_recall@5"] == pytest.approx(100 * np.mean(guessed), abs=1)
    assert found.chance["text_to_image_recall@10"] == pytest.approx(25)
    hits = ranks(texts, images, owner[:, None].tolist()) < 10
    redrawn = []
    for _ in range(3000):
        drawn = random.integers(0, 40, 40)
        redrawn.append(100 * np.mean(np.concatenate([hits[true[image]] for image in drawn])))
    assert found.intervals["text_to_image_recall@10"] == pytest.approx(np.percentile(redrawn, (2.5, 97.5)), abs=2)


@settings(deadline=None)
@given(st.data())
def test_ranks_and_recall_equal_a_plain_count(data: st.DataObject) -> None:
    number = data.draw(st.integers(1, 8))
    counts = data.draw(st.lists(st.integers(1, 3), min_size=number, max_size=number))
    total = sum(counts)
    images, texts = unit(number, 4, data.draw(st.integers(0, 99))), unit(total, 4, data.draw(st.integers(100, 199)))
    ends = np.cumsum([0, *counts])
    true = [list(range(ends[i], ends[i + 1])) for i in range(number)]
    if data.draw(st.booleans()):
        true[0] = sorted({*true[0], total - 1})  # one caption that two images share
    scores = images @ texts.T
    plain = []
    for image in range(number):
        order = sorted(range(total), key=lambda c: -scores[image, c])
        plain.append(min(order.index(caption) for caption in true[image]))
    assert ranks(images, texts, true).tolist() == plain
    found = recall(images, texts, true)
    for k in (1, 5, 10):
        assert found.values[f"image_to_text_recall@{k}"] == pytest.approx(100 * np.mean([rank < k for rank in plain]))
        hits = []
        for caption in range(total):
            order = sorted(range(number), key=lambda i: -scores[i, caption])[:k]
            hits.append(any(caption in true[image] for image in order))
        assert found.values[f"text_to_image_recall@{k}"] == pytest.approx(100 * np.mean(hits))


def test_equal_scores_never_look_like_success() -> None:
    constant = np.ones((3, 4), dtype=np.float32) / 2
    assert ranks(constant, np.ones((10, 4), dtype=np.float32) / 2, [[0], [4], [9]]).tolist() == [9, 9, 9]


def test_a_model_whose_embeddings_are_no_numbers_is_never_right() -> None:
    texts = np.eye(4, dtype=np.float32)
    assert ranks(np.full((2, 4), np.nan, np.float32), texts, [[0], [3]]).tolist() == [3, 3]
    texts[1] = np.nan
    assert ranks(np.eye(4, dtype=np.float32)[:1], texts, [[0]]).tolist() == [1]
