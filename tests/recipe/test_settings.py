"""Integers that are too large for what lies below are refused as settings, not by a library's traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

from pocketclip.errors import RecipeError
from pocketclip.recipe.toml import known_settings, parse_recipe

WHOLE = {key: field.annotation is not int for key, field in known_settings() if "int" in str(field.annotation)}


def nested(key: str, value: object) -> dict[str, object]:
    *sections, last = key.split(".")
    values: dict[str, object] = {last: value}
    for section in reversed(sections):
        values = {section: values}
    return values


def test_the_settings_below_are_those_that_hold_integers() -> None:
    for key, field in known_settings():
        assert (type(field.default) is int) == (key in WHOLE and not WHOLE[key]), key
    lists = ["image.growth", "image_tower.stem_channels", "image_tower.stages"]
    assert [key for key, is_list in WHOLE.items() if is_list] == lists


@pytest.mark.parametrize("key", WHOLE)
@pytest.mark.parametrize("value", [10**30, 2**63, -(10**30)])
def test_an_integer_of_any_setting_has_bounds(key: str, value: int) -> None:
    given = [[value, 0.5]] if key == "image.growth" else [value] if WHOLE[key] else value
    with pytest.raises(RecipeError, match=rf"recipe: {key}(\.0)* = {value}: input should be"):
        parse_recipe(nested(key, given), "recipe")


def test_the_command_line_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").touch()
    command = [sys.executable, "-m", "pocketclip", "words", "mine.toml", f"words.most={10**30}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"words.most = {10**30}: input should be less than 2147483648" in done.stderr
