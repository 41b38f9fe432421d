"""Two tables for a model of clip art: what it is trained on, and pictures of another hand that it never sees.

    python benchmarks/openclipart.py --output data/clipart
    pocketclip pack data/clipart/openclipart.jsonl data/clipart-shards --image-folder /usr/share/openclipart/png
    pocketclip evaluate runs/NAME/bundle --on data/clipart/openmoji.csv

The first table has Open Clip Art Library's pictures (public domain; Debian's openclipart-png) with the titles and
keywords of their drawings (openclipart-svg); the second OpenMoji's things, animals and faces, of which a model of
clip art may know the words.
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


def write_openclipart(pictures: Path, drawings: Path, table: Path) -> int:
    """A line a picture: its path, and as captions its title and its keywords; returns their number."""
    count = 0
    with table.open("w", encoding="utf-8") as file:
        for path in sorted(pictures.rglob("*.png")):
            name = path.relative_to(pictures)
            found = read_metadata((drawings / name).with_suffix(".svg"))
            if found:
                title, keywords, _ = found
                captions = [title, *([" ".join(keywords)] if keywords else [])]
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


def main() -> None:
    """Write both."""
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


if __name__ == "__main__":
    main()
