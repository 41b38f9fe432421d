"""Whatever stands in the JSON files beside the weights: a bundle, or one clear line that names a file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import huggingface_folder, random_bundle

from pocketclip.convert.convert import convert
from pocketclip.convert.huggingface import read_huggingface
from pocketclip.convert.open_clip import read_open_clip
from pocketclip.convert.source import Source, to_bundle
from pocketclip.errors import ConvertError, PocketCLIPError

Reader = Callable[[Path, Path | None], Source]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([0, 1, 2, 8, 32, -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Reader]]:
    path = tmp_path_factory.mktemp("hostile")
    convert(random_bundle(path / "bundle"), path / "open_clip", "open_clip")
    convert(path / "bundle", path / "huggingface", "huggingface")
    huggingface_folder(path / "vocabulary")
    return {
        "open_clip_config.json": (path / "open_clip", read_open_clip),
        "config.json": (path / "huggingface", read_huggingface),
        "preprocessor_config.json": (path / "huggingface", read_huggingface),
        "tokenizer.json": (path / "huggingface", read_huggingface),
        "vocab.json": (path / "vocabulary", read_huggingface),
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in JSON, the whole included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [path, *(place for key, one in list(inner)[:40] for place in places(one, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def test_an_end_that_is_no_number(folders: dict[str, tuple[Path, Reader]], tmp_path: Path) -> None:
    folder, read = folders["config.json"]
    copy = Path(shutil.copytree(folder, tmp_path / "folder"))
    whole = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    whole["text_config"]["eos_token_id"] = "\n"
    (copy / "config.json").write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(ConvertError, match=r"config\.json: text_config.eos_token_id = '.n': has to be a number"):
        read(copy, None)


@pytest.mark.parametrize(
    "name", ["open_clip_config.json", "config.json", "preprocessor_config.json", "tokenizer.json", "vocab.json"]
)
@given(data=st.data())
def test_any_json_gives_a_bundle_or_one_clear_line(
    name: str,
    data: st.DataObject,
    folders: dict[str, tuple[Path, Reader]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, read = folders[name]
    whole = json.loads((folder / name).read_text(encoding="utf-8"))
    changed = replaced(whole, data.draw(st.sampled_from(places(whole))), data.draw(JSON))
    copy = Path(shutil.copytree(folder, tmp_path_factory.mktemp("changed") / "folder"))
    (copy / name).write_text(json.dumps(changed), encoding="utf-8")
    try:
        bundle = to_bundle(read(copy, None), "name")
        bundle.encode_texts(["a red circle"])
    except PocketCLIPError as error:
        assert str(copy) in str(error)
        assert "\n" not in str(error)
    finally:
        shutil.rmtree(copy.parent)
