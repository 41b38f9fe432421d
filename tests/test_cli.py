"""The command line as a user meets it: real processes, exit codes, one clear line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import small_recipe
from pocketclip.recipe.toml import to_toml


def pocketclip(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "pocketclip", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=300)


def assert_one_clear_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture
def recipe_file(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(to_toml(small_recipe(folder)))
    return path


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.bath_size=4", ("train.bath_size", "did you mean train.batch_size")),
        ("train.epochs=many", ("train.epochs", "'many'", "integer")),
        ("image_tower.patch_size=7", ("image_tower: patch_size = 7", "stem's stride, 4")),
        ("image_tower.patch_size=12", ("image_tower.patch_size = 12", "image.size = 32")),
    ],
)
def test_mistakes_in_a_recipe(recipe_file: Path, override: str, words: tuple[str, ...]) -> None:
    assert_one_clear_line(pocketclip("train", recipe_file, override), str(recipe_file), *words)


def test_missing_things_are_named(recipe_file: Path, tmp_path: Path) -> None:
    assert_one_clear_line(pocketclip("train", tmp_path / "no.toml"), "no.toml", "no such recipe file")
    assert_one_clear_line(pocketclip("evaluate", tmp_path / "bundle"), "no bundle")
    assert_one_clear_line(pocketclip("evaluate", recipe_file), "no bundle")
    assert_one_clear_line(pocketclip("pack", "zip", tmp_path / "x"), "zip", "unknown source", "openmoji")
    usage = pocketclip("pack")
    assert usage.returncode == 2
    assert "Missing argument" in usage.stderr
    assert_one_clear_line(pocketclip("train", recipe_file, f"data.folder={tmp_path}/none"), "none", "no shards")


@pytest.mark.skipif(os.name == "nt", reason="names are no bytes there")
def test_names_that_are_not_utf_8_are_refused(recipe_file: Path) -> None:
    source = os.fsdecode(b"fetched\xff")
    assert_one_clear_line(pocketclip("clean", recipe_file, "--source", source), r"'fetched\udcff'", "not UTF-8")


def test_packaged_recipes_are_found_from_anywhere(tmp_path: Path) -> None:
    assert_one_clear_line(pocketclip("tokenizer", "quickstart", cwd=tmp_path), "data/openmoji", "no shards")


def test_a_bundle_is_evaluated_on_other_data_than_its_recipe_names(trained: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    done = pocketclip("evaluate", trained / "bundle", "--output", tmp_path / "a", "evaluate.splits=[]")
    assert_one_clear_line(done, "names nothing to evaluate on", "evaluate.splits=")
    changes = (f"data.folder={tmp_path}/elsewhere", 'evaluate.splits=["test"]')
    done = pocketclip("evaluate", trained / "bundle", *changes, "--output", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["test"]


def test_a_batch_that_cannot_fit_is_refused_before_training(recipe_file: Path) -> None:
    done = pocketclip("check", recipe_file, "text_tower.width=65536", "text_tower.layers=100")
    assert_one_clear_line(done, "train.batch_size", "GB are free")


def test_pack_does_not_overwrite(folder: Path) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    assert_one_clear_line(pocketclip("pack", "openmoji", folder), "already holds shards")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir()) == before


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_read_only_run_folder(recipe_file: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        runs = Path("/proc/pocketclip-runs")  # not even root can write there
    else:
        runs = tmp_path / "runs"
        runs.mkdir(mode=0o555)
    assert_one_clear_line(pocketclip("train", recipe_file, "--runs", runs), str(runs), "cannot be written")


def test_what_the_file_system_refuses_is_one_line_too(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    done = pocketclip("evaluate", trained / "bundle", "--output", tmp_path / "file" / "results")
    assert_one_clear_line(done, str(tmp_path / "file"), "Not a directory", "choose another place")
    assert (tmp_path / "file").read_text() == "precious"


def test_check_prints_the_price(recipe_file: Path) -> None:
    done = pocketclip("check", recipe_file)
    assert done.returncode == 0, done.stderr
    for line in (
        r"parameters +0\.0\d M",
        r"FLOPs a pair +0\.0\d+ G",
        r"rows, steps +45 rows, 12 steps",
        r"memory +\d+ MB",
    ):
        assert re.search(line, done.stdout), line
    assert re.search(r"speed +[\d,]+ pairs/s", done.stdout)
    assert re.search(r"time +\d+ s", done.stdout)


def test_the_whole_chain_in_small(tmp_path: Path) -> None:
    """The quickstart verb on the real embedded data with a tiny model: pack to report."""
    if shutil.disk_usage(tmp_path).free < 1e8:
        pytest.fail("this test needs 100 MB of disk")
    recipe = Path(__file__).parents[1] / "recipes" / "quickstart.toml"
    tiny = ["train.epochs=1", "image.size=16", "image_tower.stem_channels=[8,8]", "image_tower.patch_size=8"]
    tiny += ["image_tower.layers=1", "text_tower.layers=1", "name=tiny"]
    done = pocketclip("quickstart", recipe, *tiny, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "tiny"
    for name in ("recipe.toml", "environment.json", "metrics.jsonl", "report.html", "evaluation/results.json"):
        assert (run / name).is_file(), name
    assert list((run / "figures").glob("*.png"))
    for name in ("manifest.json", "tokenizer.json", "train-00000.tar", "train-00000.index.npz"):
        assert (tmp_path / "data" / "openmoji" / name).is_file(), name
    accuracy = r"top-1 [\d.]+ % \(95 % interval [\d.]+ to [\d.]+\), top-5 [\d.]+ %"
    assert re.search(rf"compositions: {accuracy} of 304 images against [\d,]+ captions", done.stdout)
    again = pocketclip("quickstart", recipe, *tiny, cwd=tmp_path)
    assert again.returncode == 0
    assert "is complete" in again.stdout


def test_quickstart_takes_settings_without_a_recipe(tmp_path: Path) -> None:
    done = pocketclip("quickstart", "train.epoch=1", "name=short", cwd=tmp_path)
    assert_one_clear_line(done, "quickstart: train.epoch: unknown key; did you mean train.epochs")
