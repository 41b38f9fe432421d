"""Recipe files and `key=value` overrides <-> `Recipe`, with errors that name the key."""

import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import tomli_w
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pocketclip.errors import RecipeError
from pocketclip.recipe.kinds import Settings
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.zoo import SIZED, with_sizes, without_sizes


def load_resolved(path: Path) -> Recipe:
    """Read the complete copy that a run or a bundle keeps; raises RecipeError if it is missing or damaged."""
    return parse_recipe(_read(path, str(path)), str(path))


def _read(path: Path, named: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise RecipeError(f"{named}: not valid TOML: {error}") from None
    except OSError as error:
        raise RecipeError(f"{named}: cannot be read: {error.strerror}") from None


# What a run takes over from the bundle that it starts from, but for the keys that are each run's own.
STARTED = {
    "image": {"growth", "shift", "augmented", "flip", "crop"},
    "image_tower": {"locked_layers", "patch_dropout"},
    "text_tower": {"locked_layers"},
    "model": {"initial_temperature"},
    "tokenizer": set[str](),
}


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply overrides.

    path: a TOML file; a bare name such as "quickstart" means a recipe that comes with the package.
    overrides: "section.key=value", the value written as in TOML; quotes around plain text may be left out.

    Raises RecipeError for a missing or malformed file, an unknown key (with the nearest known one), a wrong
    type, a value out of bounds or values that contradict each other.
    """
    values = _read(_find(Path(path)), str(path))
    for override in overrides:
        _apply(values, override)
    return parse_recipe(_with_start(values), str(path))


def _with_start(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values with what the bundle that training starts from has and they do not say.

    Raises RecipeError where that is no bundle.
    """
    training = values.get("train")
    bundle = training.get("start_from") if isinstance(training, dict) else None
    if not bundle:
        return values
    try:
        started = tomllib.loads((Path(str(bundle)) / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"train.start_from = {bundle!r}: no bundle ({error}); training writes runs/NAME/bundle, and `pocketclip "
            "convert` makes one of others' weights"
        ) from None
    values = with_sizes(values)
    for section, own in STARTED.items():
        given = values.get(section, {})
        if isinstance(given, dict):
            found = {key: value for key, value in started.get(section, {}).items() if key not in own}
            values = values | {section: found | given}
    return values


def override(recipe: Recipe, overrides: Sequence[str], allowed: tuple[str, ...]) -> Recipe:
    """A recipe with overrides of keys that begin with one of `allowed`; raises RecipeError for others."""
    values = recipe.model_dump(mode="json")
    for one in overrides:
        if not one.strip().startswith(allowed):
            raise RecipeError(f"{one!r} cannot be changed here; only {', '.join(allowed)} can")
        _apply(values, one)
    return parse_recipe(values, "override")


def parse_recipe(values: dict[str, Any], source: str) -> Recipe:
    """Nested values -> a checked recipe; `source` is named in errors."""
    try:
        return Recipe.model_validate_json(json.dumps(with_sizes(values), default=str))
    except ValidationError as error:
        raise RecipeError("; ".join(f"{source}: {_explain(dict(e))}" for e in error.errors())) from None


def to_toml(recipe: Recipe) -> str:
    """The complete recipe, every default included, as TOML."""
    return tomli_w.dumps(recipe.model_dump(mode="json"))


def differences(one: Recipe, other: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ."""
    first, second = dict(_flat(one.model_dump())), dict(_flat(other.model_dump()))
    return [key for key in first if first[key] != second[key]]


def known_settings(section: type[Settings] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of the schema with its field, in order."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from known_settings(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if path.suffix == "" and path.parent == Path():
        package = cast("Path", resources.files("pocketclip"))
        # Beside the user, in an installed package, in a checkout that was installed as it lies.
        for folder in (Path("recipes"), package / "recipes", package.parent.parent / "recipes"):
            candidate = folder / f"{path.name}.toml"
            if candidate.is_file():
                return candidate
    raise RecipeError(f"{path}: no such recipe file; recipes/ holds the ones that come with PocketCLIP")


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{override!r} is no override; write key=value, for example train.epochs=5")
    *sections, last = key.strip().split(".")
    if last == "size" and sections and sections[0] in SIZED and isinstance(values.get(sections[0], {}), dict):
        without_sizes(values, sections[0])  # another size replaces what an earlier one, or the file, had said
    target = values
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise RecipeError(f"override {key}: {section} is a value, not a section")
    try:
        target[last] = tomllib.loads(f"value = {text}")["value"]
    except ValueError:  # also of a number with thousands of digits, which is no TOMLDecodeError
        target[last] = text


def _explain(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        names = [name for name, _ in known_settings()]
        close = difflib.get_close_matches(key, [*names, *{name.split(".")[0] for name in names}], n=1, cutoff=0.4)
        if not close:  # the right name in the wrong section
            close = [name for name in names if name.split(".")[-1] == key.split(".")[-1]][:1]
        hint = f"; did you mean {close[0]}?" if close else "; docs/settings.md lists all keys"
        return f"{key}: unknown key{hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}: {message}" if key else message
    hint = f"""; to write it as text: '{key}="{error["input"]}"'""" if error["type"] == "string_type" else ""
    return f"{key} = {error['input']!r}: {message[0].lower()}{message[1:]}{hint}"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
