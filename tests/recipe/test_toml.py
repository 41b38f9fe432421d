import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketclip.errors import RecipeError
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import differences, known_settings, load_recipe, override, parse_recipe, to_toml

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.toml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_states_only_differences(path: Path, trained: Path) -> None:
    stated = tomllib.loads(path.read_text())
    starts = "start_from" in stated["train"]
    recipe = load_recipe(path, [f"train.start_from={trained / 'bundle'}"] if starts else [])
    defaults = Recipe().model_dump(mode="json")
    for section, values in stated.items():
        for key, value in values.items() if isinstance(values, dict) else [(None, values)]:
            default = defaults[section][key] if key else defaults[section]
            assert value != default, f"{section}.{key} only repeats the default"
    assert recipe.name == path.stem


def test_the_resolved_copy_is_the_same_recipe(recipe: Recipe) -> None:
    assert parse_recipe(tomllib.loads(to_toml(recipe)), "copy") == recipe


def test_overrides_are_typed_as_in_toml(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[train]\nepochs = 3\n")
    changes = ["train.epochs=7", "train.precision=float32", "data.cache=true", "image.mean=[0.1, 0.2, 0.3]"]
    recipe = load_recipe(path, changes)
    assert (recipe.train.epochs, recipe.train.precision, recipe.data.cache) == (7, "float32", True)
    assert recipe.image.mean == (0.1, 0.2, 0.3)
    expected = ["data.cache", "image.mean", "train.epochs", "train.precision"]
    assert differences(recipe, Recipe()) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learing_rate=1", "train.learing_rate: unknown key; did you mean train.learning_rate?"),
        ("trian.epochs=1", "trian: unknown key; did you mean train?"),
        ("epochs=1", "epochs: unknown key; did you mean train.epochs?"),
        ("zzz=1", "zzz: unknown key; docs/settings.md lists all keys"),
        ("train.batch_size=big", "train.batch_size = 'big': input should be a valid integer"),
        ("train.batch_size=1.5", "train.batch_size = 1.5"),
        ("data.cache=False", "data.cache = 'False': input should be a valid boolean"),
        ("data.cache=0", "data.cache = 0: input should be a valid boolean"),
        ("train.warmup=2", "train.warmup = 2: input should be less than or equal to 1"),
        ("image_tower.patch_size=30", "image_tower.patch_size = 30 does not divide image.size = 224"),
        ("image_tower.heads=5", "heads = 5 does not divide width = 768"),
        ("image_tower.stem_channels=[8, 8, 8, 8, 8, 8]", "no multiple of the stem's stride, 64"),
        ("image.std=[0.0, 1.0, 1.0]", "image.std must be above 0"),
        ("image.crop=0.0", "image.crop = 0.0: input should be greater than 0"),
        ("image.decoding=fast", "image.decoding = 'fast': input should be 'scaled' or 'exact'"),
        ("train.learning_rate=nan", "train.learning_rate"),
        ("name=../evil", "name = '../evil'"),
        ("train", "'train' is no override; write key=value"),
        ("name=5", """to write it as text: 'name="5"'"""),
        ("train.beta_1=1.0", "train.beta_1 = 1.0: input should be less than 1"),
        ("seed=99999999999999999999999", "seed = 99999999999999999999999: input should be less than"),
        ("data.split=/x", "data.split = '/x': string should match"),
        ("name.x=1", "name = {'x': 1}: input should be a valid string"),
    ],
)
def test_a_mistake_is_named(override: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("")
    with pytest.raises(RecipeError) as error:
        load_recipe(path, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 3\r\n")
    assert load_recipe(path).seed == 3


def test_only_some_keys_can_be_changed_afterwards(recipe: Recipe) -> None:
    changed = override(recipe, ["evaluate.splits=['a']", "data.folder=there"], ("data.folder", "evaluate."))
    assert (changed.evaluate.splits, changed.data.folder) == (("a",), "there")
    with pytest.raises(RecipeError, match="'seed=1' cannot be changed here"):
        override(recipe, ["seed=1"], ("data.folder", "evaluate."))


def test_a_missing_or_malformed_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing\.toml: no such recipe file"):
        load_recipe(tmp_path / "nothing.toml")
    broken = tmp_path / "broken.toml"
    for content in (b"[train\n", b"\xff\xfe"):
        broken.write_bytes(content)
        with pytest.raises(RecipeError, match=r"broken\.toml: not valid TOML"):
            load_recipe(broken)


@given(st.text(), st.text())
def test_no_override_crashes(key: str, value: str) -> None:
    try:
        load_recipe(QUICKSTART, [f"{key}={value}"])
    except RecipeError as error:
        assert str(error)


def test_every_setting_is_described() -> None:
    for key, field in known_settings():
        assert field.description, key


def test_random_cuts_and_a_cache_of_squares_exclude_each_other() -> None:
    assert parse_recipe({"data": {"cache": True}, "image": {"crop": 1.0}}, "x").data.cache
    with pytest.raises(RecipeError, match=r"image\.crop = 0\.9 .* data\.cache = true .*; set data\.cache = false or"):
        parse_recipe({"data": {"cache": True}, "image": {"crop": 0.9}}, "x")
