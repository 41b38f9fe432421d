"""What became of images that are in no figure: counted, named on the console, and all of them in a file."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pocketclip.data.labelled.kinds import Dropped
from pocketclip.files import whole_file

NAMED = 3  # on the console, where many have one reason


def counted(dropped: Sequence[Dropped]) -> dict[str, int]:
    """Reason -> images."""
    return dict(Counter(one.reason for one in dropped))


def say(benchmark: str, dropped: Sequence[Dropped], console: Console) -> None:
    """A line a reason, with the first names."""
    for reason, count in counted(dropped).items():
        names = [one.name for one in dropped if one.reason == reason]
        more = ", ..." if count > NAMED else ""
        line = f"{benchmark}: dropped {count:,} x {reason} ({', '.join(names[:NAMED])}{more})"
        console.print(line, highlight=False, markup=False)


def write_dropped(path: Path, dropped: Sequence[Dropped]) -> None:
    """A line an image; no file where there is none."""
    if not dropped:
        path.unlink(missing_ok=True)
        return
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for one in dropped:
            file.write(json.dumps({"name": one.name, "reason": one.reason}, ensure_ascii=False) + "\n")
