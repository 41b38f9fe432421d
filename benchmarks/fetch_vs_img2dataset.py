"""`pocketclip fetch` beside img2dataset: the same addresses on this machine, the same output size, in turns.

    python -m venv OTHER && OTHER/bin/pip install img2dataset
    python benchmarks/fetch_vs_img2dataset.py --peer-python OTHER/bin/python

A small server answers 20,000 addresses on 40 hosts of the loopback network (image_server.py). One row in 20 fails, in
one of 17 ways; what is wrong with each is known, so that each tool's reasons can be judged. Both tools keep a short
side of at most --size pixels, in JPEG of quality 90, a shard for each process; they have the same number of processes,
the same time-out, retries, largest number of pixels and opt-out tags. img2dataset goes without the hashes and EXIF that
it extracts by default, and with the best of some numbers of threads. Ours is timed from the call to its last file,
img2dataset by its own statistics from its first shard's begin to its last one's end: neither's imports count, nor the
start of its processes.

The server shares the cores with both; its processor time is printed, and that of whatever else ran meanwhile.
"""

import argparse
import importlib
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from image_server import HOSTS, SILENT, Server, photos

MOST_BYTES, MOST_PIXELS = 2_000_000, 50_000_000
UNDECODABLE = "Image decoding error"


@dataclass(frozen=True)
class Failure:
    """One way to fail. per_thousand: of 1,000 failures. ours, theirs: what is right to say of it; theirs: a pattern."""

    per_thousand: int
    ours: str
    theirs: str


FAILURES = {
    "404": Failure(240, "HTTP 404", "HTTP Error 404"),
    "410": Failure(100, "HTTP 410", "HTTP Error 410"),
    "403": Failure(50, "HTTP 403", "HTTP Error 403"),
    "429": Failure(50, "HTTP 429", "HTTP Error 429"),
    "500": Failure(80, "HTTP 500", "HTTP Error 500"),
    "page.as.jpg": Failure(120, "no JPEG, PNG or WebP", UNDECODABLE),
    "nothing": Failure(40, "no JPEG, PNG or WebP", rf"buf\.empty|{UNDECODABLE}"),
    "truncated": Failure(80, "damaged image", rf"truncated|damaged|{UNDECODABLE}"),
    "bomb": Failure(20, f"more than {MOST_PIXELS} pixels", "image area too large"),
    "opted-out": Failure(80, "opted out", "disallowed by X-Robots-Tag"),
    "large": Failure(20, f"more than {MOST_BYTES} bytes", "bytes|too large"),
    "unending": Failure(
        20, f"more than {MOST_BYTES} bytes", "bytes|too large"
    ),  # ends all the same: img2dataset would not
    "loop": Failure(20, "too many redirects", "infinite loop"),
    "cut": Failure(20, "connection broken", "IncompleteRead|Remote end closed|reset by peer"),
    "silent": Failure(20, "timed out", "timed out"),
    "refused": Failure(20, "cannot connect", "Connection refused"),
    "no-name": Failure(20, "no such host", "Name or service not known|name resolution|getaddrinfo failed"),
}
NO_NOTION = ("large", "unending")  # img2dataset has no limit of bytes


def table(path: Path, rows: int, images: int, port: int, refused: int) -> list[str]:
    """Write the table of addresses; returns what is true of each.

    That is a name in FAILURES, "photo", or "once" for a photo whose server is busy when it is first asked for.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = random.Random(0)
    truth = [name for name, one in FAILURES.items() for _ in range(rows // 20 * one.per_thousand // 1000)]
    truth += ["once"] * (rows // 100)
    truth += ["photo"] * (rows - len(truth))
    chance.shuffle(truth)
    urls = []
    for number, name in enumerate(truth):
        image = chance.randrange(images)
        first = {"photo": f"photo-{image}", "once": f"once/{image}"}.get(name, name)
        host = {"silent": f"{SILENT[number % len(SILENT)]}:{port}", "refused": f"127.0.0.1:{refused}"}
        host["no-name"] = f"pictures-{number}.invalid"
        urls.append(f"http://{host.get(name, f'{chance.choice(HOSTS)}:{port}')}/{first}/{number}.jpg")
    captions = [f"picture number {number}" for number in range(rows)]
    columns = {
        "key": [f"{number:016x}" for number in range(rows)],
        "url": urls,
        "caption": captions,
        "captions": pa.array([[caption] for caption in captions], pa.list_(pa.string())),
        "queries": pa.array([["picture"]] * rows, pa.list_(pa.string())),
    }
    pq.write_table(pa.table(columns), path)
    return truth


def ours(rows: Path, folder: Path, shard: int, size: int, processes: int, timeout: int) -> float:
    """Fetch with PocketCLIP; returns seconds."""
    from pocketclip.engine import open_engine
    from pocketclip.recipe.collecting import FetchSettings

    settings = FetchSettings(
        allow_private=True, timeout=timeout, retries=1, quality=90, rows_per_shard=shard,
        most_bytes=MOST_BYTES, most_pixels=MOST_PIXELS,
    )  # fmt: skip
    with open_engine("local", processes) as engine:
        list(engine.map(load, range(processes)))
        from rich.console import Console

        from pocketclip.data.fetch import fetch

        began = time.perf_counter()
        fetch(rows, folder, size, settings, engine, Console(quiet=True), again=False)
        return time.perf_counter() - began


def load(_: int) -> None:
    """Import what a worker needs, and take long enough for every worker to get one such piece of work."""
    for name in ("aiohttp", "pyarrow.parquet", "torch", "pocketclip.data.fetch"):
        importlib.import_module(name)
    time.sleep(3)


def theirs(rows: Path, folder: Path, shard: int, size: int, processes: int, timeout: int, threads: int) -> float:
    """Fetch with img2dataset; returns seconds, by its own statistics."""
    from img2dataset import download

    download(
        url_list=str(rows), input_format="parquet", url_col="url", caption_col="caption",
        output_folder=str(folder), output_format="webdataset", number_sample_per_shard=shard,
        image_size=size, resize_mode="keep_ratio", resize_only_if_bigger=True, skip_reencode=True,
        encode_quality=90, max_image_area=MOST_PIXELS, processes_count=processes, thread_count=threads,
        timeout=timeout, retries=1, extract_exif=False, compute_hash=None,
    )  # fmt: skip
    shards = [json.loads(path.read_text()) for path in folder.glob("*_stats.json")]
    return max(one["end_time"] for one in shards) - min(one["start_time"] for one in shards)


@dataclass(frozen=True)
class Turn:
    """One run of one tool. whole: seconds of its process, from start to end.

    tool, server, others: seconds of processor time of it, imports included, of the server, and of all else meanwhile.
    reasons: URL -> what the tool says of it, "" where it has the image.
    """

    seconds: float
    whole: float
    tool: float
    server: float
    others: float
    reasons: dict[str, str]

    @property
    def images(self) -> int:
        """How many it has."""
        return sum(not reason for reason in self.reasons.values())

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def turn(side: str, python: str, rows: Path, settings: argparse.Namespace, server: Server, threads: int = 0) -> Turn:
    """Run one tool in a process of its own."""
    import psutil
    import pyarrow.parquet as pq

    while settings.calm and psutil.cpu_percent(5) > settings.calm:
        pass
    shard = min(10_000, -(-pq.read_metadata(rows).num_rows // settings.processes))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        numbers = [shard, settings.size, settings.processes, settings.timeout, *([threads] if threads else [])]
        command = [python, __file__, "--side", side, str(rows), str(folder), *map(str, numbers)]
        quiet = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}  # else its imports ask the network for a newer version
        server.forget()
        server_before, tool_before, all_before = server.processor(), children(), busy()
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=quiet)
        whole = time.perf_counter() - began
        server_used, tool_used = server.processor() - server_before, children() - tool_before
        others = busy() - all_before - server_used - tool_used
        if done.returncode:
            raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        reasons = said_by_us(folder) if side == "ours" else said_by_them(folder)
    return Turn(float(done.stdout.split()[-1]), whole, tool_used, server_used, max(0.0, others), reasons)


def children() -> float:
    """Seconds of processor time of all processes that this one has started and seen end, theirs included."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def busy() -> float:
    """Seconds of processor time of the machine, and of others on its chip."""
    import psutil

    times = psutil.cpu_times()
    return float(sum(times[:8]) - times.idle - times.iowait)


def said_by_us(folder: Path) -> dict[str, str]:
    """URL -> reason, "" where the image was fetched."""
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "outcomes.parquet", columns=["url", "outcome"]).to_pylist()
    return {row["url"]: "" if row["outcome"] == "fetched" else row["outcome"] for row in rows}


def said_by_them(folder: Path) -> dict[str, str]:
    """URL -> reason, "" where the image was fetched."""
    import pyarrow.parquet as pq

    found = {}
    for path in folder.glob("*.parquet"):
        for row in pq.read_table(path, columns=["url", "status", "error_message"]).to_pylist():
            found[row["url"]] = "" if row["status"] == "success" else row["error_message"] or row["status"]
    return found


def judge(truth: list[str], urls: list[str], our: Turn, peer: Turn) -> None:
    """Print what both say of each kind of row, and how often that is right."""
    said = {"ours": defaultdict(Counter), "img2dataset": defaultdict(Counter)}
    right: Counter[tuple[str, str]] = Counter()
    for url, name in zip(urls, truth, strict=True):
        for tool, reasons in (("ours", our.reasons), ("img2dataset", peer.reasons)):
            reason = reasons.get(url, "no word of it") or "an image"
            said[tool][name][reason.replace("\n", " ")] += 1
            if name not in FAILURES:
                good = reason == "an image"
            elif tool == "ours":
                good = reason == FAILURES[name].ours
            else:
                good = bool(re.search(FAILURES[name].theirs, reason))
            right[tool, name] += good
    print("\n| what is true | rows | ours right | ours says | img2dataset right | img2dataset says |")
    print("|---|---|---|---|---|---|")
    for name in ["photo", "once", *FAILURES]:
        cells = []
        for tool in said:
            shown = [f"{reason[:70]} ({count})" for reason, count in said[tool][name].most_common(3)]
            cells.append(f"{right[tool, name]} | {'; '.join(shown)}")
        print(f"| {name} | {truth.count(name)} | {' | '.join(cells)} |")
    failures = Counter(name for name in truth if name in FAILURES)
    known = failures.total() - sum(failures[name] for name in NO_NOTION)
    for tool in said:
        count = sum(right[tool, name] for name in FAILURES)
        less = count - sum(right[tool, name] for name in NO_NOTION)
        print(f"{tool}: {count} of {failures.total()} failures rightly named; {less} of {known} but for too many bytes")


def measure(settings: argparse.Namespace, images: list[bytes], server: Server, folder: Path, refused: int) -> None:
    """All turns."""
    import pyarrow.parquet as pq

    rows, few = folder / "rows.parquet", folder / "few.parquet"
    truth = table(rows, settings.rows, len(images), server.port, refused)
    table(few, max(1000, settings.rows // 5), len(images), server.port, refused)
    best = settings.threads[0]
    if len(settings.threads) > 1:
        peer = settings.peer_python
        tried = {number: turn("img2dataset", peer, few, settings, server, number).rate for number in settings.threads}
        best = max(tried, key=tried.__getitem__)
        shown = ", ".join(f"{rate:.0f} with {number}" for number, rate in tried.items())
        print(f"img2dataset's threads, images/s on fewer rows: {shown}; {best} from here on", flush=True)
    rounds: list[tuple[Turn, Turn]] = []
    for number in range(settings.rounds):
        our = turn("ours", sys.executable, rows, settings, server)
        peer = turn("img2dataset", settings.peer_python, rows, settings, server, best)
        rounds.append((our, peer))
        print(f"round {number + 1}: ratio {our.rate / peer.rate:.2f}")
        for tool, one in (("ours", our), ("img2dataset", peer)):
            print(
                f"  {tool:11s} {one.images:,} images in {one.seconds:.1f} s: {one.rate:.0f} images/s; "
                f"{one.whole:.1f} s with its start and end; processor",
                end=" ",
            )
            print(f"{one.tool:.0f} s, the server's {one.server:.0f} s, others' {one.others:.0f} s", flush=True)
    ratios = [our.rate / peer.rate for our, peer in rounds]
    medians = [statistics.median(one.rate for one in side) for side in zip(*rounds, strict=True)]
    print(f"medians: ours {medians[0]:.0f}, img2dataset {medians[1]:.0f} images/s; ratio", end=" ")
    print(
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); short side {settings.size} of",
        end=" ",
    )
    print(f"{len(images)} images of {statistics.mean(map(len, images)) / 1000:.0f} kB, {settings.processes} processes")
    judge(truth, pq.read_table(rows)["url"].to_pylist(), *rounds[-1])


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with img2dataset")
    parser.add_argument("--images", type=Path, help="folder of images to serve, as Debian's openclipart-png has them")
    parser.add_argument("--pixels", type=int, nargs=2, default=[640, 480], help="of the images that are made without")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=224, help="short side of what is kept, pixels")
    parser.add_argument("--processes", type=int, default=2, help="of each side")
    parser.add_argument("--threads", type=int, nargs="+", default=[16, 32, 64], help="img2dataset's, to choose from")
    parser.add_argument("--timeout", type=int, default=3, help="seconds, of each side")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument(
        "--calm", type=float, default=0, help="wait before a turn until less of the machine is used, %%"
    )
    settings = parser.parse_args()
    if subprocess.run([settings.peer_python, "-c", "import img2dataset"], capture_output=True).returncode:
        raise SystemExit(f"{settings.peer_python}: has no img2dataset; install it there, or give another --peer-python")
    if settings.images:
        paths = sorted(path for path in settings.images.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".webp"))
        images = [path.read_bytes() for path in random.Random(0).sample(paths, min(len(paths), 1000))]
    else:
        images = photos(64, *settings.pixels)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as refused:
        refused.bind((HOSTS[0], 0))  # and nobody listens
        with Server(images) as server:
            measure(settings, images, server, Path(folder), refused.getsockname()[1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        _, _, side, rows_, folder_, *numbers = sys.argv
        print((ours if side == "ours" else theirs)(Path(rows_), Path(folder_), *map(int, numbers)))
    else:
        main()
