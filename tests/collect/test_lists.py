"""Lists as their publishers write them, any other list, and what is wrong with lists in the wild."""

import csv
import gzip
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketclip.collect import lists
from pocketclip.collect.found import Found
from pocketclip.collect.layouts import Asked
from pocketclip.collect.lists import find_lists, read_list
from pocketclip.errors import CollectError

# The headers as they are published: unsplash/datasets how-to/psql/create_tables.sql with blur_hash of 1.2.0, and
# google-research-datasets/wit DATA.md.
PHOTOS = (
    "photo_id photo_url photo_image_url photo_submitted_at photo_featured photo_width photo_height photo_aspect_ratio "
    "photo_description photographer_username photographer_first_name photographer_last_name exif_camera_make "
    "exif_camera_model exif_iso exif_aperture_value exif_focal_length exif_exposure_time photo_location_name "
    "photo_location_latitude photo_location_longitude photo_location_country photo_location_city stats_views "
    "stats_downloads ai_description ai_primary_landmark_name ai_primary_landmark_latitude "
    "ai_primary_landmark_longitude ai_primary_landmark_confidence blur_hash"
)
KEYWORDS = "photo_id keyword ai_service_1_confidence ai_service_2_confidence suggested_by_user"
WIT = (
    "language page_url image_url page_title section_title hierarchical_section_title caption_reference_description "
    "caption_attribution_description caption_alt_text_description mime_type original_height original_width "
    "is_main_image attribution_passes_lang_id page_changed_recently context_page_description "
    "context_section_description"
)


def read(path: Path, asked: Asked | None = None) -> tuple[list[dict[str, Any]], Counter[str]]:
    left_out: Counter[str] = Counter()
    rows = [row for block in read_list(path, asked or Asked(), left_out, path.parent) for row in block.to_pylist()]
    return rows, left_out


def pairs(path: Path, asked: Asked | None = None) -> tuple[list[tuple[str, list[str]]], Counter[str]]:
    rows, left_out = read(path, asked)
    return [(row["url"], row["captions"]) for row in rows], left_out


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def table(header: str, *rows: dict[str, str]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, header.split(), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def found(url: str, *captions: str, **more: Any) -> dict[str, Any]:
    row = Found(url, captions, **more).to_json()
    return row | {"captions": list(captions), "queries": list(row["queries"])}


def test_our_own_rows(tmp_path: Path) -> None:
    row = Found(
        "http://a/1", ("one", "two"), ("dog",), "openverse", "7", "http://a", "Ann", "by", "http://cc", 640, 480
    )
    bare = Found("http://a/2", ("x",))
    path = put(tmp_path / "dog.jsonl", "".join(json.dumps(one.to_json()) + "\n" for one in (row, bare)))
    full = row.to_json() | {"captions": ["one", "two"], "queries": ["dog"]}
    assert read(path) == ([full, found("http://a/2", "x")], Counter())


def test_unsplash_with_its_keywords(tmp_path: Path) -> None:
    photo = {
        "photo_id": "XMyPniM9LF0",
        "photo_url": "https://unsplash.com/photos/XMyPniM9LF0",
        "photo_image_url": "https://images.unsplash.com/uploads/149/7edb9bdc",
        "photo_width": "4272",
        "photo_height": "2848",
        "photo_description": 'Woman "exploring" a forest',
        "photographer_username": "michellespencer77",
        "photographer_first_name": "Michelle",
        "photographer_last_name": "Spencer",
        "ai_description": "woman walking in the middle of forest",
    }
    other = {"photo_id": "rDLBArZUl1c", "photo_image_url": "https://images.unsplash.com/photo-1"}
    put(tmp_path / "photos.tsv000", table(PHOTOS, photo))
    put(tmp_path / "photos.tsv001", table(PHOTOS, other))
    words = [
        {"photo_id": name, "keyword": word}
        for name, word in (("XMyPniM9LF0", "tree"), ("x", "y"), ("XMyPniM9LF0", "fog"), ("XMyPniM9LF0", "oak"))
    ]
    put(tmp_path / "keywords.tsv000", table(KEYWORDS, *words[:2]))
    put(tmp_path / "keywords.tsv001", table(KEYWORDS, *words[2:]))
    put(tmp_path / "colors.tsv000", "photo_id\thex\n")
    one, two = find_lists([tmp_path])
    assert (one.name, two.name) == ("photos.tsv000", "photos.tsv001")
    (row,), left_out = read(one)
    assert row == found(
        photo["photo_image_url"],
        photo["photo_description"],
        photo["ai_description"],
        "tree, fog, oak",
        provider="unsplash",
        id="XMyPniM9LF0",
        page=photo["photo_url"],
        author="Michelle Spencer",
        licence="Unsplash",
        licence_url="https://unsplash.com/license",
        width=4272,
        height=2848,
    )
    assert not left_out
    assert [text for text in read(two)[0][0]["captions"] if text] == []


def test_cc3m_and_cc12m(tmp_path: Path) -> None:
    url = "http://lh6.ggpht.com/-IvRtNLNcG8o/image.jpg"
    text = '"very typical bus station'
    assert read(put(tmp_path / "Train_GCC-training.tsv", f"{text}\t{url}\nb\t{url}2\n"))[0] == [
        found(url, text, provider="cc3m"),
        found(url + "2", "b", provider="cc3m"),
    ]
    assert read(put(tmp_path / "cc12m.tsv", f"{url}\t{text}\n{url}2\tb\n"))[0] == [
        found(url, text, provider="cc12m"),
        found(url + "2", "b", provider="cc12m"),
    ]


def test_wit_in_english(tmp_path: Path) -> None:
    row = {
        "language": "en",
        "page_url": "https://en.wikipedia.org/wiki/Half_Dome",
        "image_url": "https://upload.wikimedia.org/half_dome.jpg",
        "page_title": "Half Dome",
        "caption_reference_description": "Half Dome as viewed from\nGlacier Point",
        "caption_attribution_description": "English: Half Dome",
        "caption_alt_text_description": "",
        "original_height": "3000",
        "original_width": "4000",
    }
    content = table(WIT, row, row | {"language": "de"}, row | {"language": "fr"})
    path = put(tmp_path / "wit_v1.train.all-00000-of-00010.tsv.gz", gzip.compress(content.encode()))
    texts = (row["caption_reference_description"], "", row["caption_attribution_description"], "Half Dome")
    expected = found(row["image_url"], *texts, provider="wit", page=row["page_url"], width=4000, height=3000)
    assert read(path) == ([expected], Counter({"language is not en": 2}))
    assert len(read(path, Asked(language="de"))[0]) == 1
    names = [name for name in WIT.split() if name in row]
    pq.write_table(
        pa.table({name: [row[name], row[name]] for name in names[1:]} | {"language": ["en", None]}),
        tmp_path / "wit.parquet",
    )
    assert read(tmp_path / "wit.parquet") == ([expected], Counter({"language is not en": 1}))


@pytest.mark.parametrize(
    "header", ["url,caption", "caption,URL", "TEXT,image_url", "Alt,Link", "title;src", "url|text"]
)
def test_columns_by_their_usual_names(header: str, tmp_path: Path) -> None:
    delimiter = next(mark for mark in ",;|" if mark in header)
    names = header.split(delimiter)
    place = [name.lower() in ("url", "image_url", "link", "src") for name in names].index(True)
    fields = ["words", "words"]
    fields[place] = "http://a/1"
    assert pairs(put(tmp_path / "a.csv", f"\ufeff{header}\r\n{delimiter.join(fields)}\r\n"))[0] == [
        ("http://a/1", ["words"])
    ]


def test_columns_that_the_caller_names(tmp_path: Path) -> None:
    asked = Asked("where it's", ('what "it" is', "more"))
    rows = [{"where it's": "http://a/1", 'what "it" is': "x", "more": "y", "url": "no"}]
    put(tmp_path / "a.jsonl", json.dumps(rows[0]))
    put(tmp_path / "a.csv", 'where it\'s,"what ""it"" is",more,url\nhttp://a/1,x,y,no\n')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert pairs(tmp_path / name, asked)[0] == [("http://a/1", ["x", "y"])]
    with pytest.raises(CollectError, match=r"a\.csv: no column 'gone'; give --url-column, one of \"where it's\", "):
        read(tmp_path / "a.csv", Asked("gone"))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.jsonl", "a.parquet"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="[\r"), min_size=1),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="[\r"), min_size=1),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_every_format_gives_the_same_rows(name: str, rows: list[tuple[str, str]], tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(
            pa.table({"url": [url for url, _ in rows], "text": [text for _, text in rows]}), path, row_group_size=7
        )
    elif name == "a.jsonl":
        put(path, "".join(json.dumps({"url": url, "text": text}) + "\n" for url, text in rows))
    else:
        file = io.StringIO()
        writer = csv.writer(file, delimiter="\t" if "tsv" in name else ",", lineterminator="\n")
        writer.writerows([("url", "text"), *rows])
        content = file.getvalue().encode()
        put(path, gzip.compress(content) if name.endswith("gz") else content)
    assert pairs(path) == ([(url, [text]) for url, text in rows], Counter())


def test_rows_keep_their_order_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "BLOCK_ROWS", 128)
    urls = [f"http://a/{n}" for n in range(1000)]
    put(tmp_path / "a.jsonl", "".join(json.dumps({"url": url, "text": "x"}) + "\n" for url in urls))
    pq.write_table(pa.table({"url": urls, "text": ["x"] * 1000}), tmp_path / "a.parquet", row_group_size=90)
    for name in ("a.jsonl", "a.parquet"):
        blocks = list(read_list(tmp_path / name, Asked(), Counter(), tmp_path))
        assert [url for block in blocks for url in block.column("url").to_pylist()] == urls
        assert max(map(len, blocks)) <= 2048  # DuckDB gives its vectors whole


def test_lines_that_are_no_rows_are_counted(tmp_path: Path) -> None:
    lines = [b"url,caption", b"http://a/1,one", b"http://a/2,two,three", b"http://a/3", b"http://a/4,caf\xe9"]
    lines += [
        b'http://a/5,"nul\0in"\r',
        b"",
        b"http://a/6," + b"x" * 10_000_000,
        b"http://a/9,stray\rend",
        b'http://a/7,"it ""is""\nopen"',
        b"http://a/8,x",
    ]
    rows, left_out = pairs(put(tmp_path / "a.csv", b"\n".join(lines)))
    assert rows == [
        ("http://a/1", ["one"]),
        ("http://a/5", ["nul\0in"]),
        ("http://a/7", ['it "is"\nopen']),
        ("http://a/8", ["x"]),
    ]
    assert left_out == {
        "wrong number of fields": 2,
        "not UTF-8": 1,
        "line too long": 1,
        "carriage return inside a field": 1,
    }


@pytest.mark.parametrize("lost", [500, 100_000])
def test_a_quote_that_is_never_closed_costs_counted_lines(lost: int, tmp_path: Path) -> None:
    content = 'url,caption\nhttp://a/1,one\nhttp://a/2,"open\n' + "http://a/3,x\n" * (lost - 1)
    rows, left_out = pairs(put(tmp_path / "a.csv", content))
    assert rows[0] == ("http://a/1", ["one"])
    assert len(rows) - 1 + left_out.total() == lost
    assert left_out["quote not closed"] >= min(lost, 50_000)


def test_lines_that_are_no_json_are_counted(tmp_path: Path) -> None:
    lines = [
        b'{"url": "http://a/1", "captions": ["a", 5, null, {}]}',
        b'{"url": bad',
        b"[1]",
        b"",
        b'{"url": "caf\xe9"}',
    ]
    lines += [b'{"url": "\\ud800"}', b"[" * 100_000, b'{"url": ' + b"9" * 5000 + b"}", b'{"caption": "no url"}']
    lines += [
        b'{"url": ["x"], "captions": {"a": 1}}',
        b'{"url": "http://a/2", "captions": "\\ud83d\\ude00"}',
        b'{"url": "cut',
    ]
    rows, left_out = pairs(put(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert rows == [
        ("http://a/1", ["a", "5", "", "", ""]),
        ("", ["", "no url"]),
        ("", ["", ""]),
        ("http://a/2", ["😀", ""]),
    ]
    assert left_out == {"not JSON": 4, "not a JSON object": 1, "not UTF-8": 2}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_half_a_character_in_json_inside_a_field_costs_that_character_alone(name: str, tmp_path: Path) -> None:
    captions = r'["x \ud800", "\ud83d\ude00"]'
    if name == "a.jsonl":
        content = json.dumps({"url": "http://a/1", "captions": captions, "queries": captions})
    else:
        content = table("url captions queries", {"url": "http://a/1", "captions": captions, "queries": captions})
        content = content if name == "a.tsv" else content.replace("\t", ",")
    ((row,), left_out) = read(put(tmp_path / name, content))
    assert (row["captions"], row["queries"], left_out) == (["x ?", "😀"], ["x ?", "😀"], Counter())


@pytest.mark.parametrize(
    "field", ["url", "captions", "queries", "provider", "id", "page", "author", "licence", "width"]
)
def test_half_a_character_in_any_field_crashes_nothing(field: str, tmp_path: Path) -> None:
    for value in ("\ud800", ["\ud800"], {"\ud800": 1}, '["\ud800"]', r'["\ud800"]'):
        record = found("http://a/1", "x", provider="p") | {field: value}
        fields = {name: str(one) for name, one in record.items()}
        read(put(tmp_path / "a.jsonl", json.dumps(record) + '\n{"url": "", "captions": ""}'))
        read(put(tmp_path / "a.tsv", table(" ".join(fields), fields).encode(errors="replace")))


def test_a_file_whose_name_is_no_text_names_its_rows(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.csv")
    try:
        put(path, "url,caption\nhttp://a/1,x\n")
    except (OSError, UnicodeError):
        pytest.skip("names of files are text here")
    assert read(path)[0] == [found("http://a/1", "x", provider="caf?")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "empty"),
        ("a.csv", b"name,size\nx,1\n", r"no column of url .* one of 'name', 'size'"),
        ("a.csv", b"url,size\nhttp://a,1\n", r"no column of captions .* give --caption-column, one of 'url', 'size'"),
        ("a.csv", b"http://a/1,one\n", "write a header"),
        ("a.tsv", b"http://a/1\tone\t2\n", "write a header"),
        ("a.csv", "url,caption\n".encode("utf-16"), "UTF-16"),
        ("a.csv", "url,caption\n".encode("utf-16-le"), "no text"),
        ("a.csv", b"x" * 900_000 + b"\n", "no column"),
        ("a.csv", b'"' + b"x,\n" * 700_000, "header"),
        ("a.csv.gz", gzip.compress(b"url,caption\n" * 99999)[:-300], "damaged or truncated"),
        ("a.csv.gz", b"\x1f\x8b\x08\x00" + b"\xff" * 99, "damaged"),
        ("a.csv.bz2", b"BZh9", r"Name it \.csv"),
        ("a.csv", b"BZh91AY&SY", "packed by bzip2"),
        ("a.jsonl", b"PK\x03\x04", "packed by zip"),
        ("a.jsonl", b"not json\n", "no line is a JSON object"),
        ("a.jsonl", b'{"a": 1}\n', "no column of url"),
        ("a.parquet", b"url,caption\n", "no Parquet"),
        ("a.parquet", b"PAR1" + b"\0" * 100, "damaged"),
        ("a.txt", b"", r"Name it \.csv"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(CollectError, match=message) as raised:
        read(put(tmp_path / name, content))
    assert str(tmp_path / name) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 2000


def test_a_parquet_of_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for columns, message in (
        ({"image": [b"x"], "label": [1]}, r"no column of url .* one of 'image', 'label'"),
        ({"url": [7], "text": ["x"]}, "column 'url' is BIGINT; url must be VARCHAR"),
        ({"url": ["http://a"], "text": [{"en": "x"}]}, "column 'text' is STRUCT.*; captions must be VARCHAR or"),
    ):
        pq.write_table(pa.table(columns), path)
        with pytest.raises(CollectError, match=message):
            read(path)


def test_a_parquet_of_many_kinds_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "it's *list*?.parquet"
    columns = {
        "url": ["http://a", None],
        "captions": [["x", None], None],
        "text": ["y", None],
        "width": [3.0, -1.0],
        "height": ["4", "x"],
    }
    pq.write_table(pa.table(columns), path)
    pq.write_table(
        pa.table(columns), tmp_path / "it's [a] my list!.parquet"
    )  # which the name as a pattern may match too
    name = "it's *list*?"
    assert read(path)[0] == [
        found("http://a", "x", None, "y", provider=name, width=3, height=4),
        found(None, None, provider=name),
    ]


def test_a_truncated_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": [f"http://a/{n}" for n in range(9999)], "text": ["x"] * 9999}), path)
    content = path.read_bytes()
    for damaged in (content[:-100], content[:200] + b"\xff" * 300 + content[500:]):
        with pytest.raises(CollectError, match=r"a\.parquet: damaged"):
            read(put(path, damaged))


def test_what_cannot_be_found_is_named(tmp_path: Path) -> None:
    with pytest.raises(CollectError, match=r"gone\.csv: cannot be read"):
        read(tmp_path / "gone.csv")
    with pytest.raises(CollectError, match=r"gone\.csv: missing"):
        find_lists([tmp_path / "gone.csv"])
    with pytest.raises(CollectError, match="holds no"):
        find_lists([tmp_path])
    with pytest.raises(CollectError, match="no list"):
        find_lists([])


def test_a_folder_is_its_lists_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", ".c.jsonl", "d.txt", "e.parquet", "b.jsonl.part"):
        put(tmp_path / name, "")
    assert [path.name for path in find_lists([tmp_path])] == ["a.csv", "b.jsonl", "e.parquet"]


def test_a_word_of_which_nothing_was_found_is_an_empty_list(tmp_path: Path) -> None:
    assert read(put(tmp_path / "a.jsonl", "")) == ([], Counter())
