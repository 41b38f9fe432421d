"""Zero-shot evaluation beside OpenCLIP's own code: the same predictions, and how much sooner.

    python benchmarks/zero_shot_vs_openclip.py --bundle runs/plain/bundle --idx /usr/share/datasets/fashion-mnist
    python benchmarks/zero_shot_vs_openclip.py --speed

The first converts a bundle (of plain patches) to OpenCLIP's format and lets both sides evaluate it, in float32: on an
IDX data set, and on a clip-benchmark folder that is written for the purpose from the same images. What is compared is
the class that each side puts first, image by image. The second times both sides at ViT-B/32 with random weights, in
turns: images of 640 x 480 from JPEG files to predictions, and 1,000 classes of 18 prompts to their embeddings. OpenCLIP
decodes in the workers of its data loader, ours in threads; nothing else may run. benchmarks/openclip.py says how to
install it.
"""

import argparse
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, Dataset, IterableDataset

from openclip import import_open_clip
from pocketclip.bundle import Bundle, load
from pocketclip.convert.convert import convert
from pocketclip.data.labelled.source import open_labelled
from pocketclip.evaluate.benchmarks.catalogue import Benchmark, Place, describe
from pocketclip.evaluate.classes import evaluate_classes, measure_classes
from pocketclip.evaluate.prompts import class_embeddings
from pocketclip.evaluate.results import read_lines

FASHION = "fashion-mnist"
FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist
PER_TAR = 3_000
SIZE = (640, 480)


class Images(Dataset[tuple[torch.Tensor, int]]):
    """What OpenCLIP's loader takes: images as Pillow opens them, transformed, with their classes' numbers."""

    def __init__(self, images: list[tuple[Any, int]], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        image, label = self.images[row]
        opened = Image.fromarray(image) if isinstance(image, np.ndarray) else Image.open(image)
        return self.transform(opened), label


class Recorded:
    """In the place of OpenCLIP's `accuracy`, which NumPy 2.4 refuses: the same count, and what is first."""

    def __init__(self, module: Any) -> None:
        self.module, self.usual, self.first = module, module.accuracy, list[int]()

    def __call__(self, output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
        """Images of a batch whose class is among the first k, for each k."""
        best = output.topk(max(topk), 1, True, True)[1]
        self.first += best[:, 0].tolist()
        return [float((best[:, :k] == target[:, None]).sum()) for k in topk]

    def __enter__(self) -> "Recorded":
        self.module.accuracy = self
        return self

    def __exit__(self, *_: object) -> None:
        self.module.accuracy = self.usual


def theirs(
    model: torch.nn.Module, tokenizer: Any, benchmark: Benchmark, images: Any, precision: str
) -> tuple[list[int], float, float]:
    """OpenCLIP's zero-shot code (open_clip_train/zero_shot.py): what it puts first, its top-1 and top-5 in percent."""
    module: Any = import_module("open_clip_train.zero_shot")
    settings = Namespace(device="cpu", precision=precision, batch_size=images.batch_size or 1)
    autocast = import_module("open_clip_train.precision").get_autocast(precision, device_type="cpu")
    with autocast():
        classifier = module.build_zero_shot_classifier(
            model, tokenizer, list(benchmark.classes), list(benchmark.prompts), num_classes_per_batch=10, device="cpu"
        )
    with Recorded(module) as recorded:
        top_1, top_5 = module.run(model, classifier, images, settings)
    return recorded.first, 100 * top_1, 100 * top_5


def write_clip_benchmark(folder: Path, benchmark: Benchmark, images: list[tuple[Any, int]]) -> None:
    """The same images as CLIP_benchmark publishes data sets."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(benchmark.classes) + "\n")
    templates = "\n".join(prompt.replace("{}", "{c}") for prompt in benchmark.prompts)
    (folder / "zeroshot_classification_templates.txt").write_text(templates + "\n")
    starts = range(0, len(images), PER_TAR)
    for number, start in enumerate(starts):
        with tarfile.open(folder / "test" / f"{number}.tar", "w") as tar:
            for row, (image, label) in enumerate(images[start : start + PER_TAR], start):
                content = io.BytesIO()
                Image.fromarray(image).save(content, "WEBP", lossless=True)
                for extension, data in (("webp", content.getvalue()), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"s{row:07d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (folder / "test" / "nshards.txt").write_text(f"{len(starts)}\n")


class WebDataset(IterableDataset[tuple[torch.Tensor, int]]):
    """The tars as CLIP_benchmark reads them."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        webdataset: Any = import_module("webdataset")
        tars = [str(path) for path in sorted(folder.glob("*.tar"), key=lambda path: int(path.stem))]
        decoded = webdataset.WebDataset(tars, shardshuffle=False).decode("pil")
        self.rows = decoded.to_tuple("webp", "cls").map_tuple(transform, None)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        return iter(self.rows)


def agree(settings: Namespace) -> None:
    """Both sides on the same weights, images and prompts, in float32."""
    open_clip = import_open_clip()
    console = Console(stderr=True)
    bundle = load(settings.bundle, "cpu")
    training = bundle.recipe.train.model_copy(update={"precision": "float32"})
    bundle.recipe = bundle.recipe.model_copy(update={"train": training})
    bundle.device = type(bundle.device)(bundle.device.device, bfloat16=False)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        convert(settings.bundle, work / "open_clip", "open_clip")
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{work / 'open_clip'}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{work / 'open_clip'}")
        model.eval()
        place = Place(FASHION, settings.idx, known=True)
        source = open_labelled(place.path)
        benchmark = describe(place, source)
        images = [(item.image, int(item.label)) for item in source.items([])]
        write_clip_benchmark(work / "wds", benchmark, images)
        for one, rows in (
            (place, DataLoader(Images(images, transform), settings.batch_size)),
            (Place("wds", work / "wds"), DataLoader(WebDataset(work / "wds" / "test", transform), settings.batch_size)),
        ):
            result = evaluate_classes(bundle, one, work / "out", console, "ours")
            number = {name: place for place, name in enumerate(benchmark.classes)}
            lines = read_lines(work / "out" / f"{one.name}-predictions.jsonl")
            ours = [number[line["best"][0][0]] for line in lines]
            first, top_1, top_5 = theirs(model, tokenizer, benchmark, rows, "fp32")
            same = sum(a == b for a, b in zip(ours, first, strict=True))
            print(
                f"{one.name}: {same:,} of {len(ours):,} images have the same class first; top-1 {result.top_1:.2f} "
                f"beside {top_1:.2f} %, top-5 {result.top_5:.2f} beside {top_5:.2f} %",
                flush=True,
            )


def write_photographs(folder: Path, classes: int, count: int) -> list[tuple[Path, int]]:
    """JPEGs of smooth noise, which take as long to decode as photographs do."""
    random = np.random.default_rng(0)
    found = []
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        path = folder / f"{number % classes:04d}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
        found.append((path, number % classes))
    return sorted(found)


def b32(work: Path) -> tuple[Any, Bundle]:
    """OpenCLIP's ViT-B-32 with random weights, and the same as a bundle."""
    round_trips = import_module("round_trips")
    folder = round_trips.open_clips_folder("ViT-B-32", work / "b32")
    convert(folder, work / "b32-bundle")
    open_clip = import_open_clip()
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    return (model, open_clip.get_tokenizer("ViT-B-32"), transform), load(work / "b32-bundle")


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(ours: Callable[[], object], others: dict[str, Callable[[], object]], rounds: int) -> None:
    """Print each peer's time beside ours, the median of the rounds' ratios."""
    ratios: dict[str, list[float]] = {name: [] for name in others}
    own: list[float] = []
    ours()
    for _ in range(rounds):
        for name, work in others.items():
            mine = seconds(ours)
            own.append(mine)
            ratios[name].append(seconds(work) / mine)
    for name, found in ratios.items():
        print(f"  beside {name}: {statistics.median(found):.2f} times ({min(found):.2f} to {max(found):.2f})")
    print(f"  ours: {statistics.median(own):.2f} s", flush=True)


def speed(settings: Namespace) -> None:
    """Both sides' whole evaluation, and the classes' embeddings alone."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (model, tokenizer, transform), bundle = b32(work)
        images = write_photographs(work / "photographs", 10, settings.images)
        place = Place("photographs", work / "photographs")
        few = describe(place, open_labelled(place.path))
        imagenet = describe(Place("imagenet", work, known=True), Sourceless())

        def loop(precision: str) -> Callable[[], object]:
            def evaluate() -> object:
                rows = DataLoader(Images(list(images), transform), settings.batch_size, num_workers=settings.workers)
                return theirs(model, tokenizer, few, rows, precision)

            return evaluate

        def classifier(precision: str) -> Callable[[], object]:
            module: Any = import_module("open_clip_train.zero_shot")
            autocast = import_module("open_clip_train.precision").get_autocast(precision, device_type="cpu")

            def embed() -> object:
                with autocast():
                    return module.build_zero_shot_classifier(
                        model, tokenizer, imagenet.classes[: settings.classes], imagenet.prompts, 10, "cpu"
                    )

            return embed

        prompts = imagenet.prompts_by_class()[: settings.classes]
        print(f"{settings.images} images of {SIZE[0]} x {SIZE[1]}, ViT-B/32 at 224, batches of {settings.batch_size}")
        in_turns(lambda: measure_classes(bundle, place), {p: loop(p) for p in settings.precisions}, settings.rounds)
        print(f"{len(prompts):,} classes of {len(imagenet.prompts)} prompts")
        in_turns(
            lambda: class_embeddings(bundle, prompts), {p: classifier(p) for p in settings.precisions}, settings.rounds
        )


class Sourceless:
    """Names no classes of its own."""

    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    total = 0

    def items(self, _: list[Any]) -> Iterable[Any]:
        """None."""
        return iter(())


def main() -> None:
    """Compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="to compare predictions of; image_tower.stem_channels=[]")
    parser.add_argument("--idx", type=Path, default=FOLDER, help="Fashion-MNIST as IDX files")
    parser.add_argument("--speed", action="store_true", help="time both sides")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="of OpenCLIP's data loader")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "amp_bf16"], help="of OpenCLIP")
    settings = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # its bar is no line of this report
    if not settings.bundle and not settings.speed:
        sys.exit("give --bundle, or --speed")
    if settings.bundle:
        agree(settings)
    if settings.speed:
        speed(settings)


if __name__ == "__main__":
    main()
