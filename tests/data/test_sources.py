"""What sources.py and tables.py find, beside a plain reading of the same files."""

import csv
import io
import json
import os
import struct
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import draw
from pocketclip.data import sources, tables
from pocketclip.data.columns import Columns
from pocketclip.data.sources import OUTSIDE, Folder, Found, make_rows
from pocketclip.data.tables import Table
from pocketclip.errors import DataError

RED = draw("red", "bar", "left")
calm = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def read_folder(folder: Path, keys: tuple[str, ...] = ()) -> tuple[list[Found], Counter[str]]:
    dropped: Counter[str] = Counter()
    return list(Folder.look(folder).found(dropped, keys)), +dropped


def table(path: Path, columns: Columns | None = None) -> tuple[dict[str, list[str]], Counter[str]]:
    dropped: Counter[str] = Counter()
    found = list(Table.look(path, columns or Columns()).found(dropped))
    assert len({one.key for one in found}) == len(found)
    return {one.name: list(one.captions) for one in found}, +dropped


def bomb() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1_000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


# --- Folders


def test_captions_beside_images_are_those_that_a_walk_finds(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b/2.jpg": RED, "b/2.txt": "zwei\n\n  two \n", "b/2.json": json.dumps({"caption": "json two"}),
            "a/1.PNG": RED, "a/1.caption": "one", "a.webp": RED, "a.json": json.dumps({"captions": ["x", "y", 3]}),
            "c/none.png": RED, "c/alone.txt": "no image", "README.md": "", ".hidden/1.png": RED,
            "d/bad.png": RED, "d/bad.json": "{", "d/latin.png": RED, "d/latin.txt": b"caf\xe9",
            "d/bom.png": RED, "d/bom.txt": b"\xef\xbb\xbfbom", "d/list.png": RED, "d/list.json": "[1]",
        },
    )  # fmt: skip
    found, dropped = read_folder(tmp_path)
    assert {one.name: list(one.captions) for one in found} == {
        "a.webp": ["x", "y"],
        "a/1.PNG": ["one"],
        "b/2.jpg": ["json two", "zwei", "", "  two "],
        "c/none.png": [],
        "d/bom.png": ["bom"],
    }
    assert dropped == {
        "caption file without an image": 1,
        "file of another kind": 1,
        "caption file: not JSON": 1,
        "caption file: not UTF-8": 1,
        "caption file: not a JSON object": 1,
    }
    images = [
        Path(folder, name).relative_to(tmp_path).as_posix()
        for folder, _, names in os.walk(tmp_path)
        for name in names
        if name.lower().endswith((".jpg", ".png", ".webp")) and ".hidden" not in folder
    ]
    assert len(images) == Folder.look(tmp_path).total == len(found) + 3


def test_keys_of_the_json_can_be_named(tmp_path: Path) -> None:
    write(tmp_path, {"1.png": RED, "1.json": json.dumps({"caption": "a", "alt": "b", "raw": [{"raw": "c"}]})})
    found, _ = read_folder(tmp_path, ("alt", "raw"))
    assert [list(one.captions) for one in found] == [["b", "c"]]


def test_class_folders(tmp_path: Path) -> None:
    files = {f"{name}/{n}.jpg": RED for name in ("sea_lion", "rocking-chair", "deep/ibis") for n in range(3)}
    write(tmp_path, {**files, "top.png": RED, "sea_lion/Thumbs.db": b""})
    found, dropped = read_folder(tmp_path)
    assert {one.name: (list(one.captions), one.metadata["group"]) for one in found} == {
        name: ([folder.replace("_", " ").replace("-", " ")], folder)
        for name in files
        for folder in [name.split("/")[-2]]
    }
    assert dropped == {"not in a class folder": 1, "file of another kind": 1}
    assert [one.name for one in found] == [one.name for one in read_folder(tmp_path)[0]]


def test_links_never_lead_out_of_a_folder(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret", {"key.txt": "password", "x.png": RED})
    data = write(tmp_path / "data", {"a/1.png": RED, "a/1.txt": "one", "a/2.png": RED, "a/4.png": RED})
    (data / "a/2.txt").symlink_to(secret / "key.txt")
    (data / "a/3.png").symlink_to(secret / "x.png")
    (data / "a/5.png").symlink_to("1.png")
    (data / "a/5.txt").symlink_to("1.txt")
    (data / "a/4.txt").symlink_to("4.txt")
    (data / "a/out").symlink_to(secret)
    (data / "a/loop").symlink_to(data)
    found, dropped = read_folder(data)
    assert [one.name for one in found] == ["a/1.png", "a/5.png"]
    assert dropped.pop(OUTSIDE) == 2
    assert dropped.pop("link to a folder") == 2
    assert dropped.total() == 1, "a link to itself"


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a/1.png": RED})
    scan = os.scandir

    def refused(path: Any) -> Any:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"a: cannot be read: Permission denied"):
        Folder.look(tmp_path)


def test_names_and_captions_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write(tmp_path, {f"{name}/{name}.png": RED})
    found, _ = read_folder(tmp_path)
    [(_, row)] = make_rows(found, 0, Counter())
    assert row is not None
    assert row.captions == ("caf?",)
    json.dumps(row.metadata, ensure_ascii=False).encode()


# --- Rows


def test_rows_come_in_order_and_every_reason_is_counted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    wide = io.BytesIO()
    Image.new("RGB", (400, 200), "red").save(wide, "PNG")
    many = [Found(f"good {n}", RED, [" a ", "a", "", "b\ud800"]) for n in range(100)]
    bad = [
        Found("1", b"GIF89a", ["x"]), Found("2", RED[:-30], ["x"]), Found("3", bomb(), ["x"]),
        Found("4", tmp_path / "pipe.png", ["x"]), Found("5", tmp_path / "gone.png", ["x"]), Found("6", RED, [" ", ""]),
        Found("7", bytes(sources.LARGEST_IMAGE + 1), ["x"]), Found("8", RED, ["x" * 9_000 + str(n) for n in range(50)]),
    ]  # fmt: skip
    dropped: Counter[str] = Counter()
    made = list(make_rows([*many[:50], *bad, *many[50:], Found("wide", wide.getvalue(), ["w" * 20_000])], 32, dropped))
    assert [one.name for one, row in made if row] == [one.name for one in many] + ["wide"]
    assert dropped == {
        "no JPEG, PNG or WebP": 1, "damaged image": 1, "more than 50000000 pixels": 1, "not a plain file": 1,
        "cannot be read: No such file or directory": 1, "no caption": 1, "more than 50,000,000 bytes": 1,
        "more than 250,000 characters of captions": 1,
    }  # fmt: skip
    first, last = made[0][1], made[-1][1]
    assert first is not None
    assert last is not None
    assert (first.image, first.extension, first.captions) == (RED, "png", ("a", "b?"))
    assert Image.open(io.BytesIO(last.image)).size == (64, 32)
    assert len(last.captions[0]) == 10_000


def test_a_share_of_names_is_for_testing() -> None:
    found = [Found(str(n), Path("a.png"), []) for n in range(4000)]
    tested = [one for one in found if one.split_of(0.1) == "test"]
    assert 330 < len(tested) < 470
    assert {one.split_of(0.1) for one in tested} == {
        Found(one.name, one.image, [], again="3").split_of(0.1) for one in tested
    }
    assert all(one.split_of(0) == "train" for one in found)
    assert Found("x", b"", [], split="validation").split_of(0.5) == "validation"
    images = [Found(str(n), str(n // 4).encode(), []) for n in range(4000)]
    tested = [one for one in images if one.split_of(0.1) == "test"]
    assert 250 < len(tested) < 550
    assert not {one.image for one in tested} & {one.image for one in images if one.split_of(0.1) == "train"}


# --- CSV, TSV, JSON Lines

cells = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
lines = st.lists(st.tuples(st.sampled_from(["a.png", "b/c.png", "d e.png", "ü.png"]), cells), max_size=12)


@calm
@given(lines, st.sampled_from([(".csv", ","), (".csv", ";"), (".tsv", "\t"), (".txt", "|")]), st.booleans())
def test_a_table_is_read_as_the_csv_module_writes_it(
    tmp_path: Path, content: list[tuple[str, str]], kind: tuple[str, str], bom: bool
) -> None:
    path = tmp_path / f"table{kind[0]}"
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=kind[1], quoting=csv.QUOTE_ALL if bom else csv.QUOTE_MINIMAL)
        writer.writerows([("Image_Name", "n", "Caption"), *((name, "1", text) for name, text in content)])
    wanted: dict[str, list[str]] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file, delimiter=kind[1]):
            wanted.setdefault(row["Image_Name"], []).append(row["Caption"])
    found, dropped = table(path)
    assert found == wanted
    assert list(found) == list(wanted)
    assert not dropped


@calm
@given(lines)
def test_json_lines_are_read_as_json_reads_them(tmp_path: Path, content: list[tuple[str, str]]) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps({"file_name": n, "text": [t, "same"]}) + "\n" for n, t in content) + "\n")
    wanted: dict[str, list[str]] = {}
    for line in path.read_text().splitlines()[: len(content)]:
        wanted.setdefault(json.loads(line)["file_name"], []).extend(json.loads(line)["text"])
    assert table(path) == (wanted, {})


@calm
@given(st.binary(max_size=300), st.sampled_from([".csv", ".tsv", ".txt", ".jsonl", ".parquet"]))
def test_any_bytes_are_rows_or_counted_or_one_clear_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    for start in (b"", b"path,caption\n"):
        path.write_bytes(start + content)
        try:
            table(path)
        except DataError as error:
            assert str(path) in str(error)


def test_every_bad_line_of_a_csv_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    bad = [
        b"1.png,caf\xe9\n", b"2.png,a\0b\n", b"3.png\n", b"4.png,a,b\n", b"5.png," + b"x" * 10_000_000 + b"\n",
        b"../6.png,x\n", b"/etc/7.png,x\n", b",x\n", b"..,x\n", b".,x\n", b"8.png," + b"x" * 200_000 + b"\n",
    ]  # fmt: skip
    path.write_bytes(b"path,caption\n\ngood.png,one\n" + b"".join(bad) + b'good.png,two\nlast.png,"never\nx.png,y\n')
    found, dropped = table(path)
    assert found == {"good.png": ["one", "two"]}
    assert dropped == {
        "line is not UTF-8": 1, "NUL in the line": 1, "wrong number of fields": 2, OUTSIDE: 4, "no path": 1,
        "line longer than 1,048,576 bytes": 1, "quotes not closed, or a field too long": 3,
    }  # fmt: skip


def test_every_bad_line_of_json_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"path": "a.png", "caption": "a"}\n{\n[1]\n"x"\n{"caption": "x"}\n{"path": 3, "caption": "x"}\n'
        '{"path": "\\u0000.png", "caption": "x"}\n{"path": "\\ud800.png", "caption": "x"}\n'
        '{"path": "b.png", "caption": "\\ud800"}\n' + "[" * 100_000 + "\n"
    )
    found, dropped = table(path)
    assert found == {"a.png": ["a"], "b.png": ["\ud800"]}
    assert dropped == {
        "line is not JSON": 2, "line is not a JSON object": 2, "no path": 1,
        "line without a known column of paths or of captions": 1, OUTSIDE: 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"path,words\na,b\n", "no caption column of a known name; its columns are 'path', 'words'"),
        ("a.csv", b"words,caption\na,b\n", "no image column of a known name"),
        ("a.csv", "path,caption\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("a.csv", b"\0\0\0\n", "no line of text"),
        ("a.csv", b"x" * 200_000, "column names cannot be read"),
        ("a.jsonl", b"", "is empty"),
        ("a.parquet", b"", "not a Parquet file"),
        ("a.parquet", b"PAR1" + b"x" * 100 + b"PAR1", "not a Parquet file"),
    ],
)
def test_a_table_of_no_use_is_named_with_what_to_do(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        table(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_columns_and_the_folder_of_images_can_be_named(tmp_path: Path) -> None:
    images = tmp_path / "images"
    write(tmp_path, {"images/a.png": RED, "t.csv": "path,caption,where,says,more\nno,no,a.png,one,two\n"})
    columns = Columns("where", ("says", "more"), images)
    found = list(Table.look(tmp_path / "t.csv", columns).found(Counter()))
    assert [(one.image, list(one.captions)) for one in found] == [(images / "a.png", ["one", "two"])]
    with pytest.raises(DataError, match="no column 'gone'"):
        table(tmp_path / "t.csv", Columns("gone"))
    with pytest.raises(DataError, match="no such folder"):
        table(tmp_path / "t.csv", Columns(folder=tmp_path / "gone"))


def test_lines_of_one_image_are_one_row_and_beyond_the_window_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, {"t.csv": "path,caption\na,1\nb,2\n./a,3\nc/../b,4\na,5\n"}) / "t.csv"
    assert table(path)[0] == {"a": ["1", "3", "5"], "b": ["2", "4"]}
    monkeypatch.setattr(tables, "MERGED_LINES", 2)
    found = list(Table.look(path, Columns()).found(Counter()))
    assert [(one.name, list(one.captions)) for one in found] == [
        ("a", ["1"]), ("b", ["2"]), ("a", ["3"]), ("b", ["4"]), ("a", ["5"]),
    ]  # fmt: skip
    assert len({one.key for one in found}) == 5
    assert len({one.split_of(0.5) for one in found if one.name == "a"}) == 1


# --- Parquet


def hugging_face(path: Path, columns: dict[str, Any], features: dict[str, Any]) -> Path:
    """As `datasets` writes it: struct<bytes, path> and a note of the features."""
    fields = {
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "label": pa.int64(),
        "caption": pa.list_(pa.string()),
    }
    schema = pa.schema({name: fields.get(name, pa.string()) for name in columns})
    note = json.dumps({"info": {"features": features}})
    pq.write_table(pa.table(columns, schema=schema).replace_schema_metadata({"huggingface": note}), path)
    return path


IMAGE, TEXT = {"_type": "Image"}, {"dtype": "string", "_type": "Value"}


def test_hugging_face_captions_and_bytes(tmp_path: Path) -> None:
    images = [{"bytes": RED + bytes([n]), "path": f"{n}.png"} for n in range(200)]
    images[7] = {"bytes": None, "path": "7.png"}
    images[8] = {"bytes": None, "path": "../8.png"}
    images[9] = None  # type: ignore[call-overload]
    captions = [[f"one {n}", f"two {n}"] for n in range(200)]
    path = hugging_face(
        tmp_path / "validation-00000-of-00002.parquet",
        {"image": images, "caption": captions},
        {"image": IMAGE, "caption": {"feature": TEXT, "_type": "Sequence"}},
    )
    dropped: Counter[str] = Counter()
    found = list(Table.look(path, Columns()).found(dropped))
    assert Table.look(path, Columns()).total == 200
    assert dropped == {OUTSIDE: 1, "no path": 1}
    plain = pq.read_table(path).to_pylist()
    inside = [(row["image"]["bytes"], row["caption"]) for row in plain if row["image"] and row["image"]["bytes"]]
    assert [(one.image, list(one.captions)) for one in found if isinstance(one.image, bytes)] == inside
    assert [(one.image, list(one.captions)) for one in found if one.name == "7.png"] == [
        (tmp_path / "7.png", captions[7])
    ]
    assert {one.split for one in found} == {"validation"}
    assert len({one.key for one in found}) == 198


def test_class_numbers_get_their_names(tmp_path: Path) -> None:
    label = {"names": ["n01 tench", "tree_frog"], "_type": "ClassLabel"}
    path = hugging_face(
        tmp_path / "t.parquet",
        {"picture": ["a", "b", "c", "d"], "label": [1, 0, -1, 2]},
        {"label": label},
    )
    found = list(Table.look(path, Columns("picture")).found(Counter()))
    assert [(list(one.captions), one.metadata) for one in found] == [
        (["tree frog"], {"group": "tree_frog"}), (["n01 tench"], {"group": "n01 tench"}), ([], {}), ([], {}),
    ]  # fmt: skip


def test_the_column_that_hugging_face_calls_an_image_is_the_image(tmp_path: Path) -> None:
    columns = {"path": ["x"], "pixels": ["a.png"], "text": ["t"]}
    path = hugging_face(tmp_path / "t.parquet", columns, {"pixels": IMAGE, "path": TEXT, "text": TEXT})
    assert table(path) == ({"a.png": ["t"]}, {})


@pytest.mark.parametrize("note", [b"{", b"[]", b'{"info": 3}', b'{"info": {"features": {"label": 3}}}', b"\xff"])
def test_a_damaged_note_is_no_note(tmp_path: Path, note: bytes) -> None:
    made = pa.table({"path": ["a"], "label": pa.array(["dog"])}).replace_schema_metadata({b"huggingface": note})
    pq.write_table(made, tmp_path / "t.parquet")
    assert table(tmp_path / "t.parquet") == ({"a": ["dog"]}, {})


def test_parquet_of_another_schema_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [1], "caption": ["x"]}), path)
    with pytest.raises(DataError, match="column 'image' is int64"):
        table(path)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(DataError, match="no image column of a known name; its columns are 'x'"):
        table(path)
    texts = pa.array([b"\xff\xfe"]).view(pa.binary())
    broken = pa.StringArray.from_buffers(1, texts.buffers()[1], texts.buffers()[2])
    pq.write_table(pa.table({"path": ["a"], "caption": broken}), path)
    with pytest.raises(DataError, match="damaged"):
        table(path)
    pq.write_table(pa.table({"path": [f"{n}" for n in range(5000)], "caption": ["x"] * 5000}), path, compression="gzip")
    content = bytearray(path.read_bytes())
    content[20:2000] = bytes(1980)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet: damaged"):
        table(path)


@calm
@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 45), st.integers(0, 45))
def test_part_of_a_parquet_file_is_those_rows_of_the_whole(
    tmp_path: Path, rows: int, group: int, start: int, stop: int
) -> None:
    path = tmp_path / "t.parquet"
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = [{"bytes": b"%d" % n if n % 5 else None, "path": f"{n % 2}.png"} for n in range(rows)]
    columns = {"image": pa.array(images, kind), "caption": pa.array(list(map(str, range(rows))), pa.string())}
    pq.write_table(pa.table(columns), path, row_group_size=group)
    table = Table.look(path, Columns())
    assert table.total == rows
    assert sum(table.groups) == rows
    part = replace(table, start=start, stop=stop)
    found = list(part.found(Counter()))
    wanted = list(range(start, min(stop, rows)))
    assert [(one.name, one.image) for one in found if isinstance(one.image, bytes)] == [
        (f"t.parquet row {n}", b"%d" % n) for n in wanted if n % 5
    ]
    paths = {one.name: list(one.captions) for one in found if isinstance(one.image, Path)}
    merged: dict[str, list[str]] = {}
    for n in wanted:
        if n % 5 == 0:
            merged.setdefault(f"{n % 2}.png", []).append(str(n))
    assert paths == merged
    assert {one.again for one in found if isinstance(one.image, Path)} <= {str(start or "")}


def test_groups_before_a_part_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    columns = {"image": [bytes(1000)] * 40, "caption": ["x"] * 40}
    pq.write_table(pa.table(columns), path, row_group_size=10, compression="gzip", use_dictionary=False)
    end = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    path.write_bytes(bytes(end) + path.read_bytes()[end:])
    table = Table.look(path, Columns())
    assert [one.name for one in replace(table, start=18, stop=22).found(Counter())] == [
        f"t.parquet row {n}" for n in range(18, 22)
    ]
    with pytest.raises(DataError, match="damaged"):
        list(replace(table, start=9, stop=22).found(Counter()))


def test_parquet_of_paths_alone_is_told_from_parquet_with_images(tmp_path: Path) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    path, row = tmp_path / "t.parquet", {"bytes": None, "path": "a.png"}

    def written(values: Any, of: Any, **how: Any) -> Table:
        images = pa.array(values, of)
        pq.write_table(pa.table({"image": images, "caption": ["x"] * len(images)}), path, row_group_size=2, **how)
        return Table.look(path, Columns())

    assert written([row, None, row], kind).groups == ()
    assert written(["a.png"] * 3, pa.string()).groups == ()
    assert written(["a.png"] * 3, pa.dictionary(pa.int32(), pa.string())).groups == ()
    assert written([{"path": "a.png"}] * 3, pa.struct({"path": pa.string()})).groups == ()
    assert sum(written([], kind).groups) == 0
    assert written([row, row, {"bytes": RED, "path": "a"}], kind).groups == (2, 1)
    assert written([row] * 3, kind, write_statistics=False).groups == (2, 1), "nobody knows"
    assert written([RED] * 3, pa.binary()).groups == (2, 1)
    assert written([RED] * 3, pa.large_binary()).groups == (2, 1)
    assert written([RED] * 3, pa.dictionary(pa.int32(), pa.binary())).groups == (2, 1)
    captions = {one.name: list(one.captions) for one in written([row] * 5, kind).found(Counter())}
    assert captions == {"a.png": ["x"] * 5}


def test_a_table_knows_its_rows_when_it_has_given_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"t.csv": "path,caption\n" + "".join(f"{n % 7}.png,{n}\n" for n in range(20))})
    for lines, total in ((20, 7), (19, None)):
        monkeypatch.setattr(tables, "MERGED_LINES", lines)
        known = Table.look(tmp_path / "t.csv", Columns())
        assert known.total is None
        found = known.found(Counter())
        next(found)
        assert known.total == total
        list(found)
        assert known.total == total


# --- COCO


def coco(path: Path, images: Any, annotations: Any, **more: Any) -> Path:
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, **more}))
    return path


def test_coco_s_annotations(tmp_path: Path) -> None:
    images = [
        {"id": 7, "file_name": "a.png", "width": 3}, {"id": 0, "file_name": "b/c"}, {"id": "x", "file_name": "d.png"},
        {"id": 9, "file_name": "../e.png"}, {"id": 10, "file_name": "/f.png"}, {"id": 11}, {"file_name": "g.png"},
        {"id": 7, "file_name": "h.png"}, 3, {"id": 12, "file_name": "./a.png"}, {"id": 13, "file_name": "i.png"},
        {"id": 14, "file_name": 5}, {"id": 15, "file_name": ["j.png"]},
    ]  # fmt: skip
    said = [
        (0, "zero"), (7, "seven"), (9, "no"), (7, "7"), ("x", "ex"), (12, "twelve"), (99, "nobody"), (None, "none"),
        ([], "list"), (0, None), (0, 3), (0, ["l1", "l2"]), (0, {"raw": "r"}),
    ]  # fmt: skip
    annotations = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(said)]
    path = coco(tmp_path / "captions.json", images, [*annotations, "x", {"caption": "alone"}])
    found, dropped = table(path)
    assert found == {"a.png": ["seven", "7", "twelve"], "b/c": ["zero", "l1", "l2", "r"], "d.png": ["ex"], "i.png": []}
    assert dropped == {
        "image without an id": 2, "id of another image": 1, "annotation of no image": 5, OUTSIDE: 2, "no path": 3,
    }  # fmt: skip


def test_keys_of_coco_s_lists_and_its_images_folder_can_be_named(tmp_path: Path) -> None:
    write(tmp_path, {"images/a.png": RED})
    path = coco(tmp_path / "c.json", [{"id": 1, "name": "a.png"}], [{"image_id": 1, "text": "t", "alt": "u"}])
    found = list(Table.look(path, Columns("name", ("text", "alt"), tmp_path / "images")).found(Counter()))
    assert [(one.image, list(one.captions)) for one in found] == [(tmp_path / "images/a.png", ["t", "u"])]
    for columns, said in ((Columns(), "no image has 'file_name'"), (Columns("name"), "no annotation has 'caption'")):
        with pytest.raises(DataError, match=said):
            table(path, columns)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "raw", "x"]), inner, max_size=2),
    max_leaves=4,
)
entries = st.lists(
    junk
    | st.fixed_dictionaries(
        {},
        optional={
            "id": junk, "image_id": junk, "caption": junk,
            "file_name": junk | st.sampled_from(["a", "../a", "/a", "b/a"]),
        },
    ),
    max_size=6,
)  # fmt: skip


@calm
@given(st.fixed_dictionaries({}, optional={"images": entries | junk, "annotations": entries | junk}) | junk)
def test_any_json_is_rows_of_this_folder_or_counted_or_one_clear_error(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    dropped: Counter[str] = Counter()
    try:
        found = list(Table.look(path, Columns()).found(dropped))
    except DataError as error:
        assert str(path) in str(error)
        return
    assert all(isinstance(one.image, Path) and one.image.is_relative_to(tmp_path) for one in found)
    assert all(isinstance(text, str) for one in found for text in one.captions)
    assert len(found) + dropped.total() <= len(content["images"]) + len(content["annotations"])
    assert list(make_rows(found, 0, dropped)) is not None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", 'is not of COCO\'s form, {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'),
        (b'{"images": [], "annotations": {}}', "write other lists as JSON Lines"),
        (b'{"images": [{"id": 1}], "annotations": []}', "no image has 'file_name'"),
        (b'{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1}]}', "give the file with captions"),
        (b" " * 2_000, "has more than 1,000 bytes"),
    ],
)  # fmt: skip
def test_json_of_no_use_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    monkeypatch.setattr(tables, "LARGEST_JSON", 1_000 if b" " * 1_000 in content else 1_000_000)
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        table(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
