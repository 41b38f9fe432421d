"""Cleaning as a whole: every row has its outcome, whatever happens on the way."""

import io
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from clean.test_duplicates import again, picture
from conftest import small_recipe
from pocketclip.clean.passes import clean
from pocketclip.data.rows import Row
from pocketclip.data.shards import Split, write_shards
from pocketclip.engine import LocalEngine, open_engine
from pocketclip.errors import DataError

SIZE = 96


class Here:
    """Does the work in this process."""

    def map(self, function, pieces, _inflight=None):
        return map(function, pieces)


class StopsBeforeWriting(Here):
    """As if killed between the second pass and the last."""

    def map(self, function, pieces, _inflight=None):
        if function.__name__ == "write_kept":
            raise KeyboardInterrupt
        return map(function, pieces)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def row(name: str, image: Image.Image | bytes, *captions: str, **metadata: object) -> Row:
    data = image if isinstance(image, bytes) else encoded(image)
    return Row(name, data, "png", captions or ("a picture of a dog",), metadata)


def some_rows() -> tuple[list[Row], dict[str, str]]:
    """Rows of every kind, and what must become of each."""
    good = [row(f"good-{number}", picture(number, SIZE), f"a dog and {number} cats") for number in range(12)]
    other = {
        "small": (row("small", picture(50, 40)), "short side below 64 pixels"),
        "long": (row("long", picture(51, SIZE).resize((400, 80))), "aspect above 3"),
        "broken": (row("broken", encoded(picture(52, SIZE))[:900]), "damaged image"),
        "text": (row("text", b"<html>not found</html>"), "no JPEG, PNG or WebP"),
        "same": (row("same", picture(3, SIZE), "the very same file"), "exact duplicate"),
        "like": (row("like", encoded(again(picture(4, SIZE), 70, 80), "JPEG")), "near duplicate"),
        "leak": (row("leak", again(picture(900, SIZE), 80, 90)), "in benchmark exam"),
        "mute": (row("mute", picture(53, SIZE), "IMG_1234.jpg", "untitled"), "no caption of use"),
        "foreign": (row("foreign", picture(54, SIZE), "это фотография собаки на улице"), "no caption of use"),
        "found": (row("found", picture(55, SIZE), "IMG_5.jpg", queries=["dog"]), "kept"),
        "partly": (row("partly", picture(56, SIZE), "photo.jpg", "a dog at the sea", licence="CC0"), "kept"),
    }
    expected = {one.key: "kept" for one in good} | {name: reason for name, (_, reason) in other.items()}
    return good + [one for one, _ in other.values()], expected


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_shards(some_rows()[0], folder, "train", rows_per_shard=5)
    return folder


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks") / "exam"
    write_shards([row("exam", picture(900, SIZE)), row("other", picture(901, SIZE))], folder, "test")
    return folder


@pytest.fixture(scope="module")
def engine():
    with open_engine("local", 2) as opened:
        yield opened


def run(
    source: Path, folder: Path, engine: LocalEngine | Here, words: tuple[str, ...] = (), **settings: object
) -> dict:
    recipe = small_recipe(folder, image={"size": SIZE}, clean=settings)
    return clean(source, folder, recipe, words, engine, Console(quiet=True))


def outcomes(folder: Path) -> dict[str, str]:
    return {one["key"]: one["outcome"] for one in pq.read_table(folder / "cleaned.parquet").to_pylist()}


def contents(folder: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return {name: data for name, data in files.items() if name != "clean.lock" and name != "clean.json"}


def test_every_row_has_its_outcome(source: Path, exam: Path, engine: LocalEngine, tmp_path: Path) -> None:
    manifest = run(source, tmp_path, engine, benchmarks=[str(exam)])
    expected = some_rows()[1]
    assert outcomes(tmp_path) == expected
    counted = Counter(expected.values())
    kept = counted.pop("kept")
    assert manifest["dropped"] == dict(counted)
    assert manifest["rows"] == {"train": kept}
    assert manifest["dropped_captions"] == {"boilerplate": 4, "another language": 1}
    repeats = {one["key"]: one["repeats"] for one in pq.read_table(tmp_path / "cleaned.parquet").to_pylist()}
    assert {name: of for name, of in repeats.items() if of} == {"same": "good-3", "like": "good-4", "leak": "exam"}
    split = Split(tmp_path, "train")
    found = {split.key(number): split.captions(number) for number in range(len(split))}
    assert set(found) == {name for name, outcome in expected.items() if outcome == "kept"}
    assert found["found"] == ["dog"]
    assert found["partly"] == ["a dog at the sea"]
    before = {one.key: one for one in some_rows()[0]}
    for number in range(len(split)):
        assert split.image(number) == before[split.key(number)].image
    partly = next(number for number in range(len(split)) if split.key(number) == "partly")
    assert split.metadata(partly) == {"captions": ["a dog at the sea"], "licence": "CC0"}
    assert not (tmp_path / "cleaning").exists()


def test_settings_can_let_all_pass(source: Path, engine: LocalEngine, tmp_path: Path) -> None:
    settings = {"short_side": 0, "aspect": 100.0, "duplicates": "keep", "languages": [], "boilerplate": False}
    run(source, tmp_path, engine, **settings)
    undecodable = {"broken", "text"}
    assert {key for key, outcome in outcomes(tmp_path).items() if outcome != "kept"} == undecodable
    exact = tmp_path / "exact"
    run(source, exact, engine, duplicates="exact")
    assert outcomes(exact)["same"] == "exact duplicate"
    assert outcomes(exact)["like"] == "kept"


def test_the_larger_of_two_alike_stays_and_test_rows_before_training_rows(engine: LocalEngine, tmp_path: Path) -> None:
    small, large = picture(1, SIZE), picture(1, 2 * SIZE)
    write_shards([row("small", small), row("large", large)], tmp_path / "one", "train")
    run(tmp_path / "one", tmp_path / "first", engine)
    assert outcomes(tmp_path / "first") == {"small": "near duplicate", "large": "kept"}
    write_shards([row("large", large)], tmp_path / "two", "train")
    write_shards([row("small", small)], tmp_path / "two", "test")
    run(tmp_path / "two", tmp_path / "second", engine)
    assert outcomes(tmp_path / "second") == {"small": "kept", "large": "near duplicate"}


def test_balancing_thins_what_is_frequent(engine: LocalEngine, tmp_path: Path) -> None:
    rows = [row(f"dog-{number}", picture(number, SIZE), "a dog on the grass") for number in range(120)]
    rows += [row(f"yak-{number}", picture(200 + number, SIZE), "a yak and a dog") for number in range(5)]
    rows += [row(f"none-{number}", picture(300 + number, SIZE), "sunset over mountains") for number in range(3)]
    write_shards(rows, tmp_path / "raw", "train", rows_per_shard=50)
    manifest = run(tmp_path / "raw", tmp_path / "out", engine, ("the", "dog", "yak"), balance=40)
    became = outcomes(tmp_path / "out")
    assert all(became[f"yak-{number}"] == "kept" for number in range(5))
    assert all(became[f"none-{number}"] == "no word of the list" for number in range(3))
    # dog: 40 of 125; the: 40 of 120. A row with both stays if either draw keeps it.
    expected = 120 * (1 - (1 - 40 / 125) * (1 - 40 / 120))
    kept = sum(became[f"dog-{number}"] == "kept" for number in range(120))
    assert abs(kept - expected) < 25
    assert manifest["dropped"] == {"balanced away": 120 - kept, "no word of the list": 3}
    with pytest.raises(DataError, match="needs a word list"):
        run(tmp_path / "raw", tmp_path / "other", engine, balance=40)


def test_a_test_split_is_cut_after_duplicates_are_gone(engine: LocalEngine, tmp_path: Path) -> None:
    rows = [row(f"{number:04d}", picture(number, SIZE)) for number in range(60)]
    copies = [row(f"copy-{number}", picture(number, SIZE), "a copy of a dog") for number in range(60)]
    write_shards(rows + copies, tmp_path / "raw", "train", rows_per_shard=30)
    manifest = run(tmp_path / "raw", tmp_path / "out", engine, test=0.3)
    train, test = Split(tmp_path / "out", "train"), Split(tmp_path / "out", "test")
    assert manifest["rows"] == {"test": len(test), "train": len(train)}
    assert len(train) + len(test) == 60
    assert 8 <= len(test) <= 28
    images = [{split.image(number) for number in range(len(split))} for split in (train, test)]
    assert not images[0] & images[1]


def test_the_same_bytes_wherever_it_runs_and_after_a_stop(
    source: Path, exam: Path, engine: LocalEngine, tmp_path: Path
) -> None:
    settings = {"benchmarks": [str(exam)], "balance": 5, "test": 0.2}
    words = ("dog", "cats", "sea")
    run(source, tmp_path / "two", engine, words, **settings)

    class Breaks(Here):
        left = 0

        def map(self, function, pieces, _inflight=None):
            for piece in pieces:
                if not self.left:
                    raise KeyboardInterrupt
                Breaks.left -= 1
                yield function(piece)

    run(source, tmp_path / "here", Here(), words, **settings)
    assert contents(tmp_path / "here") == contents(tmp_path / "two")
    for pieces in range(1, 8):
        Breaks.left = pieces  # of eleven: six are looked at, five written
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "stopped", Breaks(), words, **settings)
        assert not (tmp_path / "stopped" / "manifest.json").exists()
    written = {path: path.stat().st_ino for path in (tmp_path / "stopped").glob("*.tar")}
    assert written
    run(source, tmp_path / "stopped", Here(), words, **settings)
    assert all(path.stat().st_ino == number for path, number in written.items())  # not written twice
    assert contents(tmp_path / "stopped") == contents(tmp_path / "two")
    again = run(source, tmp_path / "stopped", None, words, **settings)
    assert again == json.loads((tmp_path / "two" / "manifest.json").read_text())


def test_other_settings_or_rows_are_refused_in_the_same_folder(
    source: Path, engine: LocalEngine, tmp_path: Path
) -> None:
    run(source, tmp_path, engine)
    before = contents(tmp_path)
    with pytest.raises(DataError, match=r"cleaned with other aspect \(3.0, now 2.0\)"):
        run(source, tmp_path, engine, aspect=2.0)
    write_shards(some_rows()[0][:3], tmp_path / "other", "train")
    with pytest.raises(DataError, match="cleaned with other source"):
        run(tmp_path / "other", tmp_path, engine)
    with pytest.raises(DataError, match="were not cleaned here"):
        run(tmp_path, source, engine)
    with pytest.raises(DataError, match="to another folder"):
        run(source, source, engine)
    with pytest.raises(DataError, match="no shards named"):
        run(tmp_path / "nothing", tmp_path / "new", engine)
    (tmp_path / "clean.json").write_text("{")
    with pytest.raises(DataError, match=r"clean.json is damaged"):
        run(source, tmp_path, engine)
    assert contents(tmp_path) == before


def test_nothing_left_is_said(engine: LocalEngine, tmp_path: Path) -> None:
    write_shards([row("a", picture(1, 40)), row("b", picture(2, 40))], tmp_path / "raw", "train")
    with pytest.raises(DataError, match="no row is left \\(2 x short side below 64 pixels\\)"):
        run(tmp_path / "raw", tmp_path / "out", engine)


def test_damaged_features_are_named(source: Path, engine: LocalEngine, tmp_path: Path) -> None:
    run(source, tmp_path / "whole", engine)

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", StopsBeforeWriting())
    (features,) = (tmp_path / "out" / "cleaning").glob("*/*-train-00001.parquet")
    features.write_bytes(features.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"train-00001.parquet: damaged .* looked at again"):
        run(source, tmp_path / "out", engine)
    features.unlink()
    run(source, tmp_path / "out", engine)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_killed_process_and_the_command_line(source: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(f'data.folder = "data"\nimage.size = {SIZE}\nclean.test = 0.2\n')
    command = [sys.executable, "-m", "pocketclip", "clean", "recipe.toml", "--source", str(source), "--workers", "2"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list(tmp_path.glob("data/cleaning/*/*.parquet")):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "1 rows dropped: exact duplicate" in done.stdout
    assert "4 captions dropped: boilerplate" in done.stdout
    wrong = subprocess.run(
        [*command[:4], "recipe.toml", "clean.aspect=0.5"], cwd=tmp_path, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert "clean.aspect" in wrong.stderr
