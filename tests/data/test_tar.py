"""Tars that are written without `tarfile` are, byte for byte, those that it writes."""

import io
import tarfile

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pocketclip.data import tar
from pocketclip.data.rows import Row
from pocketclip.data.shards import index_path, write_index, write_shard

ANY = st.characters(codec="utf-8", exclude_characters="\0")
NAMES = st.from_regex(r"[ -~]{1,100}", fullmatch=True) | st.text(ANY, min_size=1, max_size=150)


@given(st.lists(st.tuples(NAMES, st.binary(max_size=2000))))
def test_a_tar_is_what_tarfile_makes(files):
    ours, theirs = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
            ours.write(tar.member(name, content))
    ours.write(tar.end(ours.tell()))
    assert ours.getvalue() == theirs.getvalue()


def test_a_file_of_more_than_eight_gigabytes_has_the_header_that_tarfile_gives_it():
    for size in (tar.MOST - 1, tar.MOST, 10 * tar.MOST):
        info = tarfile.TarInfo("large.bin")
        info.size = size
        assert tar.header("large.bin", size) == info.tobuf(tarfile.PAX_FORMAT)


def test_the_index_that_is_kept_while_writing_is_the_one_that_a_scan_makes(tmp_path):
    keys = ["a", "b" * 120, "a", "../out", "grüße", "c/d.e", "b"]
    rows = [Row(key, bytes(100 * n), "png", (f"caption {n}", "ünd"), {"n": n}) for n, key in enumerate(keys)]
    path = tmp_path / "train-00000.tar"
    write_shard(rows, path)
    with np.load(index_path(path)) as arrays:
        written = dict(arrays)
    index_path(path).unlink()
    write_index(path)
    with np.load(index_path(path)) as arrays:
        assert len(arrays["keys"]) == 5
        assert written.keys() == arrays.keys()
        for name in written:
            np.testing.assert_array_equal(written[name], arrays[name])
