"""From Wikipedia's words to a trained model over real HTTP on this machine, printed as one log.

    python benchmarks/collect_openclipart.py --dump FILE.xml.bz2 --pictures FOLDER --drawings FOLDER

The pictures are Open Clip Art Library's, which are in the public domain: Debian's packages openclipart-png (PNG) and
openclipart-svg (the drawings, whose metadata has their titles and keywords). A server on 127.0.0.1 speaks the image
services' documented JSON about them and serves the files, some of them with the troubles that the Web has: one in
twenty is missing, is a page of HTML, redirects in a circle or to a dead host, breaks off, never ends, is slower than
anyone waits, or has opted out. (A redirect to a private address is no trouble here, as this machine is one: see tests.)
Each verb of the command line runs as a process of its own, as a user would run it.
"""

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from aiohttp import web
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from collect.server import ImageServer, body, status

NAMES = {"dc": "http://purl.org/dc/elements/1.1/", "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#"}
TROUBLES = (
    "missing", "page of HTML", "redirects in a circle", "dead host", "breaks off", "never ends", "slow", "opted out",
)  # fmt: skip
DEAD = "http://127.0.0.1:9/"  # where nobody listens
WAIT = 8  # seconds that the rate limit lasts
EXAM = 60  # pictures that also stand in the benchmark

RECIPE = """
name = "openclipart"
data.folder = "data/openclipart"
words = { dump = "DUMP", minimum = 40, most = 250, nouns = "NOUNS" }
search.providers = ["unsplash", "wikimedia"]
search.images_per_word = 120
search.unsplash = "URL/unsplash"
search.wikimedia = "URL/wikimedia"
fetch = { allow_private = true, rows_per_shard = 500, timeout = 5.0, retries = 1, most_bytes = 5_000_000 }
clean = { short_side = 32, benchmarks = ["data/exam"], balance = 100, test = 0.1 }
image = { size = 64, mean = [0.85, 0.85, 0.85], std = [0.3, 0.3, 0.3] }
image_tower = { patch_size = 8, width = 192, layers = 4, heads = 3, stem_channels = [24, 48, 96] }
text_tower = { width = 192, layers = 4, heads = 3, context_length = 32 }
model.embedding_width = 192
tokenizer.vocabulary_size = 4000
train = { epochs = 30, batch_size = 128, learning_rate = 1e-3 }
evaluate.splits = ["test"]
"""


class Clipart(ImageServer):
    """The pictures that have a word in their title or keywords, as the services answer for that word."""

    def __init__(self, pictures: Path, drawings: Path) -> None:
        super().__init__({}, [web.get("/files/{name:.+}", self._file)])
        self.pictures = pictures
        self.about: dict[str, tuple[str, list[str], str]] = {}  # name -> title, keywords, author
        self.by_word: dict[str, list[str]] = defaultdict(list)
        for path in sorted(pictures.rglob("*.png")):
            name = path.relative_to(pictures).as_posix()
            found = read_metadata((drawings / name).with_suffix(".svg"))
            if found:
                self.about[name] = found
                for word in {*re.findall(r"[a-z]+", f"{found[0]} {' '.join(found[1])}".lower())}:
                    self.by_word[word].append(name)
        self.catalogue = {word: len(names) for word, names in self.by_word.items()}
        self.address = lambda query, number: f"{self.url}/files/{quote(self.by_word[query][number])}"
        self.served: Counter[str] = Counter()

    def limit_at(self, requests: int) -> None:
        """After so many requests the next one meets a rate limit."""
        if len(self.log) == requests:
            self.trouble("wikimedia", status(429, {"Retry-After": str(WAIT)}))

    def trouble_of(self, name: str) -> str:
        """What is wrong with one of twenty files, "" of the others."""
        lot = random.Random(name)
        return lot.choice(TROUBLES) if lot.random() < 0.05 else ""

    def image(self, provider: str, query: str, number: int) -> dict[str, Any]:
        """As the provider's documentation shows it."""
        found = super().image(provider, query, number)
        name = self.by_word[query][number]
        title, keywords, author = self.about[name]
        if provider == "unsplash":
            tags = [{"type": "search", "title": word} for word in keywords]
            return found | {"id": name, "description": title, "alt_description": None, "user": {"name": author},
                            "tags": tags}  # fmt: skip
        said = {"ObjectName": title, "Categories": "|".join(keywords), "Artist": author, "LicenseShortName": "CC0"}
        found["imageinfo"][0]["extmetadata"] = {key: {"value": value} for key, value in said.items()}
        return found | {"pageid": 1 + list(self.about).index(name), "title": f"File:{title}.png"}

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name = unquote(request.match_info["name"])
        trouble = self.trouble_of(name)
        self.served[trouble or "served"] += 1
        path = self.pictures / name
        if trouble == "missing":
            raise web.HTTPNotFound
        if trouble == "page of HTML":
            return web.Response(text="<html>Please log in</html>", content_type="image/png")
        if trouble == "redirects in a circle":
            raise web.HTTPFound(request.path)
        if trouble == "dead host":
            raise web.HTTPFound(DEAD + request.path)
        if trouble == "slow":
            await asyncio.sleep(60)
        if trouble == "breaks off":
            return web.Response(body=path.read_bytes()[:2000], content_type="image/png")
        if trouble == "never ends":
            response = web.StreamResponse()
            await response.prepare(request)
            with suppress(ConnectionError):  # as soon as the client has had enough
                while True:
                    await response.write(bytes(1 << 18))
            return response
        headers = {"X-Robots-Tag": "noai, noimageai"} if trouble == "opted out" else None
        return web.FileResponse(path, headers=headers)


def read_metadata(drawing: Path) -> tuple[str, list[str], str] | None:
    """A drawing's title, keywords and author; None if it has no title."""
    try:
        work = ElementTree.parse(drawing)  # Debian's own files
    except (OSError, ElementTree.ParseError):
        return None
    title = (work.findtext(".//dc:title", "", NAMES) or "").strip()
    keywords = [(item.text or "").strip() for item in work.iterfind(".//dc:subject//rdf:li", NAMES)]
    author = (work.findtext(".//dc:creator//dc:title", "", NAMES) or "").strip()
    return (title, [word for word in keywords if word], author) if title else None


def write_exam(server: Clipart, folder: Path) -> None:
    """Some of the pictures as somebody else keeps them: in class folders, smaller, compressed anew."""
    names = sorted(name for name in server.about if not server.trouble_of(name))
    for name in random.Random(0).sample(names, EXAM):
        target = folder / Path(name).parts[0] / (Path(name).stem + ".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(server.pictures / name) as picture:
            upon = Image.new("RGBA", picture.size, "white")
            upon.alpha_composite(picture.convert("RGBA"))
            upon.thumbnail((150, 150))
            upon.convert("RGB").save(target, quality=80)


def verb(folder: Path, *words: str) -> Callable[[], None]:
    """One command, echoed as a user would type it, its output printed as it comes."""

    def go() -> None:
        print(f"\n$ pocketclip {' '.join(words)}", flush=True)
        began = time.monotonic()
        command = [sys.executable, "-m", "pocketclip", *words]
        subprocess.run(
            command, cwd=folder, check=True, env={**os.environ, "COLUMNS": "140", "UNSPLASH_ACCESS_KEY": "key"}
        )
        print(f"  ({time.monotonic() - began:.0f} s)", flush=True)

    return go


def main() -> None:
    """Run the chain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dump", type=Path, required=True, help="a Wikipedia dump, .xml or .xml.bz2")
    parser.add_argument("--pictures", type=Path, required=True, help="openclipart-png's folder")
    parser.add_argument("--drawings", type=Path, required=True, help="openclipart-svg's folder")
    parser.add_argument("--nouns", default="", help="WordNet's folder: keep only nouns that can be seen")
    parser.add_argument("--folder", type=Path, default=Path("collected"), help="where all is written")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True)
    with Clipart(asked.pictures, asked.drawings) as server:
        print(f"{len(server.about):,} pictures with titles behind {len(server.catalogue):,} words at {server.url}")
        text = RECIPE.replace("URL", server.url).replace("DUMP", str(asked.dump.resolve()))
        (asked.folder / "recipe.toml").write_text(text.replace("NOUNS", asked.nouns))
        write_exam(server, asked.folder / "exam")
        verb(asked.folder, "words", "recipe.toml")()
        server.trouble("unsplash", status(500), body(b'{"results": [{"id":'), status(503))
        server.when_asked = lambda _: server.limit_at(100)
        verb(asked.folder, "search", "recipe.toml")()
        time.sleep(WAIT)
        before = len(server.log)
        verb(asked.folder, "search", "recipe.toml")()
        print(f"  (the second search made {len(server.log) - before} requests, of {len(server.log)} in all)")
        verb(asked.folder, "join", "recipe.toml")()
        verb(asked.folder, "fetch", "recipe.toml")()
        print(f"  (the server's side: {dict(server.served.most_common())})")
    for words in (
        ["pack", "exam", "data/exam"],
        ["clean", "recipe.toml"],
        ["tokenizer", "recipe.toml"],
        ["check", "recipe.toml"],
        ["train", "recipe.toml"],
        ["evaluate", "runs/openclipart/bundle"],
        ["report", "runs/openclipart"],
    ):
        verb(asked.folder, *words)()


if __name__ == "__main__":
    main()
