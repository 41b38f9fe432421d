"""Small true-to-format samples of what benchmarks come in: each writes a few coloured pictures where it is told."""

import gzip
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}


def picture(colour: str, size: int = 32) -> np.ndarray:
    """uint8 [size, size, 3], darker towards the right so that no side can be taken for another."""
    shade = np.linspace(1, 0.5, size)[None, :, None]
    return np.broadcast_to(np.array(COLOURS[colour]) * shade, (size, size, 3)).astype(np.uint8)


def encoded(colour: str, kind: str = "PNG", size: int = 32) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture(colour, size)).save(content, kind)
    return content.getvalue()


class _Python2(pickle._Pickler):  # the pickler in Python, as the one in C lets nobody choose how bytes are written
    """Writes byte strings as Python 2 did, in which CIFAR's authors wrote theirs."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_byte_string(self, content: bytes) -> None:
        length = len(content)
        short = pickle.SHORT_BINSTRING + bytes([length % 256])
        self.write((short if length < 256 else pickle.BINSTRING + struct.pack("<i", length)) + content)
        self.memoize(content)

    dispatch[bytes] = save_byte_string


def python_2_pickle(values: dict) -> bytes:
    """Protocol 2, NumPy's module by its old name."""
    content = io.BytesIO()
    _Python2(content, 2).dump(values)
    return content.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_cifar(folder: Path, labels: dict[str, Sequence[int]], names: Sequence[str], hundred: bool = False) -> None:
    """labels: of each batch's images, which have the colour of their label's place in COLOURS."""
    folder.mkdir(parents=True, exist_ok=True)
    key, about, meta = (
        (b"fine_labels", b"fine_label_names", "meta") if hundred else (b"labels", b"label_names", "batches.meta")
    )
    (folder / meta).write_bytes(python_2_pickle({about: [name.encode() for name in names]}))
    for batch, some in labels.items():
        colours = [list(COLOURS)[label % len(COLOURS)] for label in some]
        data = np.stack([picture(colour).transpose(2, 0, 1).reshape(-1) for colour in colours])
        content = {b"batch_label": b"testing", key: list(some), b"data": data, b"filenames": [b"x.png"] * len(some)}
        (folder / batch).write_bytes(python_2_pickle(content))


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: Sequence[int], compressed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("images-idx3", images), ("labels-idx1", np.array(labels, np.uint8))):
        content = idx(values)
        if compressed:
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{prefix}-{name}-ubyte").write_bytes(content)


def write_class_folders(folder: Path, images: dict[str, bytes]) -> None:
    """images: CLASS/NAME.SUFFIX -> the file."""
    for name, content in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def write_clip_benchmark(
    folder: Path, rows: Sequence[dict[str, bytes]], classes: Sequence[str], templates: Sequence[str], per_tar: int = 2
) -> None:
    """As CLIP_benchmark's `webdataset_builder` writes it. rows: extension -> content."""
    (folder / "test").mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    tars = range(0, len(rows), per_tar)
    for number, start in enumerate(tars):
        with tarfile.open(folder / "test" / f"{number}.tar", "w") as tar:
            for row, files in enumerate(rows[start : start + per_tar], start):
                for extension, content in files.items():
                    member = tarfile.TarInfo(f"s{row:07d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (folder / "test" / "nshards.txt").write_text(f"{len(tars)}\n")


def write_coco(folder: Path, images: dict[str, tuple[bytes, list[str]]]) -> Path:
    """As COCO is unpacked: annotations/captions_val2017.json and val2017. images: file -> content, captions."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "val2017").mkdir(exist_ok=True)
    about, annotations = [], []
    for number, (name, (content, captions)) in enumerate(images.items(), 100):
        (folder / "val2017" / name).write_bytes(content)
        about.append({"license": 4, "file_name": name, "height": 32, "width": 32, "id": number})
        for caption in captions:
            annotations.append({"image_id": number, "id": len(annotations), "caption": caption})
    path = folder / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps({"info": {}, "images": about, "licenses": [], "annotations": annotations}))
    return path


def write_karpathy(path: Path, images: Sequence[tuple[str, str, str, list[str]]]) -> None:
    """As Karpathy's lists. images: folder, file, split, captions."""
    entries = [
        {
            **({"filepath": folder} if folder else {}),
            "filename": name,
            "imgid": number,
            "split": split,
            "sentences": [{"tokens": text.lower().split(), "raw": text, "imgid": number} for text in captions],
        }
        for number, (folder, name, split, captions) in enumerate(images)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": entries, "dataset": "flickr30k"}))


def write_parquet(
    path: Path, images: Sequence[bytes | None], labels: Sequence[int | str | None], names: Sequence[str] = ()
) -> None:
    """As Hugging Face's `datasets` writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    label = {"names": list(names), "_type": "ClassLabel"} if names else {"dtype": "string", "_type": "Value"}
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    cells = [None if image is None else {"bytes": image, "path": "x.png"} for image in images]
    kind = pa.int64() if names else pa.string()
    image_kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(cells, image_kind), "label": pa.array(labels, kind)})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), path, row_group_size=2)
