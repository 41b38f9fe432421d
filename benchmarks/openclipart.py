r"""Two tables for a model of clip art: what it is trained on, and pictures of another hand that it never sees.

    python benchmarks/openclipart.py --output data/clipart
    pocketclip pack data/clipart/openclipart.jsonl data/clipart-shards --image-folder /usr/share/openclipart/png \
        --short-side 96 --test 0.1
    pocketclip tokenizer benchmarks/openclipart.toml
    python benchmarks/quickstart_vs_openclip.py --recipe benchmarks/openclipart.toml --output clipart.json

The first table has Open Clip Art Library's pictures (public domain; Debian's openclipart-png) with the titles and
keywords of their drawings (openclipart-svg), each of those a caption too; the second OpenMoji's things, animals and
faces with all of their names. Beside it is a folder of fewer emoji by what they are, for a model that has seen little
and may know what an animal is, if not what a tapir is.
"""

import argparse
import csv
import json
from pathlib import Path

from collect_openclipart import read_metadata
from pocketclip.data import openmoji

PICTURES, DRAWINGS = Path("/usr/share/openclipart/png"), Path("/usr/share/openclipart/svg")
GROUPS = ("things", "faces", "signs and symbols")
SIDE = 128  # pixels of an emoji
KINDS = {  # where Unicode has them: the first code point and the last
    "animal": ((0x1F400, 0x1F43D), (0x1F980, 0x1F9AD)),
    "plant": ((0x1F331, 0x1F344),),
    "fruit": ((0x1F345, 0x1F353),),
    "food": ((0x1F354, 0x1F372), (0x1F950, 0x1F95F)),
    "drink": ((0x1F375, 0x1F37C),),
    "vehicle": ((0x1F680, 0x1F6A4),),
    "building": ((0x1F3E0, 0x1F3ED), (0x1F3EF, 0x1F3F0)),
    "clothing": ((0x1F451, 0x1F462),),
    "clock": ((0x1F550, 0x1F567),),
    "face": ((0x1F600, 0x1F637),),
    "flag": ((0x1F1E6, 0x1F1FF),),  # two of them
}
MOST = 60  # emoji of a kind


def write_openclipart(pictures: Path, drawings: Path, table: Path) -> int:
    """A line a picture: its path, and as captions its title and its keywords; returns their number."""
    count = 0
    with table.open("w", encoding="utf-8") as file:
        for path in sorted(pictures.rglob("*.png")):
            name = path.relative_to(pictures)
            found = read_metadata((drawings / name).with_suffix(".svg"))
            if found:
                title, keywords, _ = found
                captions = [title, *([" ".join(keywords)] if keywords else []), *keywords]
                file.write(json.dumps({"path": name.as_posix(), "captions": captions}, ensure_ascii=False) + "\n")
                count += 1
    return count


def write_openmoji(folder: Path, table: Path) -> int:
    """A line a caption of each emoji that is no variant of another; returns the number of pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = [entry for entry in openmoji.list_emoji() if entry.group in GROUPS and not entry.modified]
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption"])
        for entry in shown:
            path = folder / f"{entry.key}.png"
            openmoji.render(entry, SIDE).save(path)
            writer.writerows([f"{folder.name}/{path.name}", caption] for caption in entry.captions)
    return len(shown)


def write_kinds(folder: Path) -> int:
    """A folder of emoji for each kind; returns their number."""
    count = 0
    for kind, ranges in KINDS.items():
        shown = [
            entry
            for entry in openmoji.list_emoji()
            if any(low <= entry.sequence[0] <= high for low, high in ranges)
            and (len(entry.sequence) == 1 or entry.group == "flags")
        ]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for entry in shown[:: max(1, -(-len(shown) // MOST))]:
            openmoji.render(entry, SIDE).save(folder / kind / f"{entry.key}.png")
            count += 1
    return count


def main() -> None:
    """Write all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="openclipart-png's folder")
    parser.add_argument("--drawings", type=Path, default=DRAWINGS, help="openclipart-svg's folder")
    parser.add_argument("--output", type=Path, default=Path("data/clipart"), help="folder of the tables")
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    count = write_openclipart(asked.pictures, asked.drawings, asked.output / "openclipart.jsonl")
    print(f"{asked.output / 'openclipart.jsonl'}: {count:,} pictures with titles")
    count = write_openmoji(asked.output / "openmoji", asked.output / "openmoji.csv")
    print(f"{asked.output / 'openmoji.csv'}: {count:,} emoji")
    count = write_kinds(asked.output / "emoji-kinds")
    print(f"{asked.output / 'emoji-kinds'}: {count:,} emoji of {len(KINDS)} kinds")


if __name__ == "__main__":
    main()
