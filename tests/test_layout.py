"""The README, the docs and the layout, held against the code."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pocketclip.cli.main import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
VERBS = {
    "words", "search", "join", "fetch", "clean", "pack", "tokenizer", "check", "teach", "train", "evaluate",
    "report", "convert", "runs", "quickstart", "matrix", "explain", "export-results",
}  # fmt: skip


def test_the_verbs_are_frozen() -> None:
    named = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert {name.replace("_", "-") for name in named} == VERBS


def test_every_command_in_the_readme_exists() -> None:
    commands = re.findall(r"^(?:pocketclip|\.venv/bin/pocketclip) (.+)$", README, flags=re.M)
    assert {shlex.split(command, comments=True)[0] for command in commands} == VERBS
    for command in commands:
        verb, *arguments = shlex.split(command, comments=True)
        options = [word.split("=")[0] for word in arguments if word.startswith("--")]
        page = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).output
        assert all(option in page for option in options), command


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"\bmake ([a-z-]+)", README))
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert {"quickstart", "test"} <= targets <= known


def test_every_file_on_the_map_exists_and_every_module_is_on_it() -> None:
    block = README.split("<!-- map -->")[1]
    named = set(re.findall(r"`([\w/.-]+)`", block))
    assert named
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "src/pocketclip" / name).exists(), name
    for module in (ROOT / "src/pocketclip").rglob("*.py"):
        relative = module.relative_to(ROOT / "src/pocketclip")
        if module.name not in ("__init__.py", "__main__.py"):
            assert relative.as_posix() in named, f"{relative} is not on the README's map"


def test_the_readme_is_short_and_attributes_the_pictures() -> None:
    assert len(README.splitlines()) < 200
    assert "CC BY-SA 4.0" in README
    assert "OpenMoji" in README


def test_links_inside_the_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("__init__.py")), ids=str)
def test_folders_do_nothing_on_import(path: Path) -> None:
    if path.parent.name != "pocketclip":
        assert path.read_text() == ""


def test_files_stay_readable_in_one_sitting() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["train", "quickstart", "train.epoch=1"]])
def test_help_and_recipe_mistakes_answer_without_torch(command: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['pocketclip', *sys.argv[1:]]\n"
        "from pocketclip.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip().endswith("False False"), done.stdout


def test_the_recipe_in_the_readme_loads() -> None:
    import tomllib

    from pocketclip.recipe.toml import parse_recipe

    (block,) = re.findall(r"```toml\n(.*?)```", README, flags=re.S)
    assert parse_recipe(tomllib.loads(block), "README").name == "mine"


def test_the_python_in_the_readme_runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import draw

    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    shutil.copytree(trained / "bundle", tmp_path / "runs" / "quickstart" / "bundle")
    (tmp_path / "photo.jpg").write_bytes(draw("red", "circle", "left"))
    monkeypatch.chdir(tmp_path)
    exec(block, {})
