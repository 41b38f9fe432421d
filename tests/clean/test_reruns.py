"""Cleaning into a folder that is not empty, from shards that are not what they were, or of names that meet."""

import io
import tarfile
from pathlib import Path

import pytest
from filelock import FileLock

from clean.test_duplicates import picture
from clean.test_passes import SIZE, Here, StopsBeforeWriting, contents, encoded, outcomes, row, run
from pocketclip.clean import passes
from pocketclip.data.shards import Split, splits_in, write_manifest, write_shard, write_shards
from pocketclip.errors import DataError

HERE = Here()


def write(folder: Path, caption: str = "a red dog", rows: int = 6) -> Path:
    """A source of two shards; returns its folder."""
    pictures = [row(f"row-{number}", picture(number, SIZE), caption) for number in range(rows)]
    write_shards(pictures, folder, "train", rows_per_shard=rows // 2)
    return folder


def stop(source: Path, folder: Path, **settings: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(source, folder, StopsBeforeWriting(), **settings)


def test_no_two_shards_are_written_to_one_file(tmp_path: Path) -> None:
    for place, name in enumerate(("00000", "test-00000", "train-00000", "benchmark-000-exam-00000")):
        rows = [row(f"{name}-{number}", picture(20 * place + number, SIZE)) for number in range(20)]
        write_shard(rows, tmp_path / "raw" / f"{name}.tar")
    write_shards([row("exam", picture(900, SIZE))], tmp_path / "exam", "exam")
    settings = {"test": 0.3, "benchmarks": [str(tmp_path / "exam")]}
    manifest = run(tmp_path / "raw", tmp_path / "out", HERE, **settings)
    splits = {name: Split(tmp_path / "out", name) for name in splits_in(tmp_path / "out")}
    assert manifest["rows"] == {name: len(split) for name, split in splits.items()}
    assert sum(manifest["rows"].values()) == 80
    assert manifest["shards"] == sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    kept = [split.key(number) for split in splits.values() for number in range(len(split))]
    assert sorted(kept) == sorted(outcomes(tmp_path / "out"))


def test_test_rows_are_drawn_of_the_training_split_alone(tmp_path: Path) -> None:
    for place, split in enumerate(("train", "validation")):
        write_shards([row(f"{split}-{n}", picture(40 * place + n, SIZE)) for n in range(40)], tmp_path / "raw", split)
    rows = run(tmp_path / "raw", tmp_path / "out", HERE, test=0.5)["rows"]
    assert rows["validation"] == 40
    assert rows["test"] + rows["train"] == 40
    assert 8 < rows["test"] < 32


def test_other_captions_in_shards_of_the_same_size_are_noticed(tmp_path: Path) -> None:
    source = write(tmp_path / "raw")
    sizes = [path.stat().st_size for path in sorted(source.glob("*.tar"))]
    stop(source, tmp_path / "stopped")
    run(source, tmp_path / "whole", HERE)
    write(source, "a cat")
    assert sizes == [path.stat().st_size for path in sorted(source.glob("*.tar"))]
    with pytest.raises(DataError, match="cleaned with other shards; choose another"):
        run(source, tmp_path / "whole", HERE)
    run(source, tmp_path / "stopped", HERE)
    assert set(Split(tmp_path / "stopped", "train").every_caption()) == {"a cat"}


def test_one_folder_by_two_paths_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, exam = write(tmp_path / "raw"), write(tmp_path / "work" / "exam", rows=2)
    monkeypatch.chdir(exam)
    first = run(Path("../../raw"), Path("../../out"), HERE, benchmarks=["."])
    assert first["dropped"] == {"in benchmark exam": 2}
    monkeypatch.chdir(tmp_path)
    assert run(source, tmp_path / "out", HERE, benchmarks=["work/exam"]) == first


def test_a_worker_may_have_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "raw")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    class Elsewhere(Here):
        def map(self, function, pieces, _inflight=None):
            for piece in pieces:
                with monkeypatch.context() as there:
                    there.chdir(tmp_path / "elsewhere")
                    result = function(piece)
                yield result

    assert run(Path("raw"), Path("out"), Elsewhere())["rows"] == {"train": 6}


def test_what_fails_before_a_shard_is_written_locks_nobody_out(tmp_path: Path) -> None:
    source, out = write(tmp_path / "raw"), tmp_path / "out"
    with pytest.raises(DataError, match="'eng' is not known"):
        run(source, out, HERE, languages=["eng"])
    with pytest.raises(DataError, match="no row is left"):
        run(source, out, HERE, aspect=1, most_words=1)
    stop(source, out, aspect=2.0)
    run(source, out, HERE)
    run(source, tmp_path / "at-once", HERE)
    assert contents(out) == contents(tmp_path / "at-once")
    with pytest.raises(DataError, match="cleaned with other aspect"):
        run(source, out, HERE, aspect=2.0)


def test_features_of_other_settings_are_not_taken(tmp_path: Path) -> None:
    source, out = write(tmp_path / "raw", "a red dog at the sea"), tmp_path / "out"
    stop(source, out, most_words=2)
    (out / "clean.json").unlink()
    assert run(source, out, HERE)["rows"] == {"train": 6}


def dies_after(function):
    """The function, and then as if the process were killed."""

    def call(*arguments: object) -> None:
        function(*arguments)
        raise KeyboardInterrupt

    return call


def test_what_a_kill_after_the_manifest_leaves_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write(tmp_path / "raw"), tmp_path / "out"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(passes, "write_manifest", dies_after(write_manifest))
        run(source, out, HERE)
    assert (out / "cleaning").exists()
    run(source, out, HERE)
    assert not (out / "cleaning").exists()


def test_half_files_of_a_killed_clean_go_and_those_of_others_stay(tmp_path: Path) -> None:
    source, out = write(tmp_path / "raw"), tmp_path / "out"
    ours = ("train-00000.tar", "train-00001.index.npz", "cleaned.parquet", "manifest.json", "clean.json")
    others = ("words.tsv", "rows.parquet")
    out.mkdir()
    for name in (*ours, *others):
        (out / f".{name}.12345.part").touch()
    run(source, out, HERE)
    assert {path.name for path in out.glob(".*")} == {f".{name}.12345.part" for name in others}


def test_shards_that_were_written_and_are_gone_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(tmp_path / "raw"), tmp_path / "out"
    run(source, tmp_path / "whole", HERE)
    for gone in ("train-00000.tar", "train-00001.index.npz"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(passes, "_manifest", dies_after(passes._manifest))
            run(source, out, HERE)
        (out / gone).unlink()
    run(source, out, HERE)
    assert contents(out) == contents(tmp_path / "whole")


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    source, out = write(tmp_path / "raw"), tmp_path / "out"
    out.mkdir()
    with FileLock(out / "clean.lock"), pytest.raises(DataError, match="another process is cleaning into it"):
        run(source, out, HERE)


def test_an_unfinished_fetch_is_no_source(tmp_path: Path) -> None:
    source, out = write(tmp_path / "fetched"), tmp_path / "out"
    outcomes_of = source / "outcomes"
    outcomes_of.mkdir()
    for name in ("fetch.json", "outcomes/train-00000.parquet", "outcomes/train-00001.parquet"):
        (source / name).touch()

    def refused() -> None:
        with pytest.raises(DataError, match="fetched: holds an unfinished fetch; run `pocketclip fetch` to its end"):
            run(source, out, HERE)
        assert not out.exists()

    refused()  # no manifest
    write_manifest(source, {"format": 1, "rows": {"train": 6}})
    spool = outcomes_of / ".train-00001.spool"
    spool.touch()
    refused()
    spool.unlink()
    with FileLock(source / "fetch.lock"):
        refused()
    shard = source / "train-00001.tar"
    shard.rename(source / "away")
    refused()
    (source / "away").rename(shard)
    assert run(source, out, HERE)["rows"] == {"train": 6}


def test_text_that_is_no_unicode_stops_nothing(tmp_path: Path) -> None:
    details = {
        "0": b'{"captions": [], "queries": ["dog \\ud83d", 5, " "], "alt": "x \\ud83d"}',
        "1": b'{"captions": ["a red cat \\ud83d"]}',
        "caf\udce9": b'{"captions": ["a dog"]}',
    }
    (tmp_path / "raw").mkdir()
    with tarfile.open(tmp_path / "raw" / "train-00000.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for number, (key, text) in enumerate(details.items()):
            for name, content in ((f"{key}.png", encoded(picture(number, SIZE))), (f"{key}.json", text)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    manifest = run(tmp_path / "raw", tmp_path / "out", HERE)
    assert list(Split(tmp_path / "out", "train").every_caption()) == ["dog ?", "a red cat ?"]
    assert manifest["dropped"] == {"name that is not UTF-8": 1}
