"""The verbs that show what a model sees in images of one's own; each imports its stage only when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from pocketclip.cli.app import app, console

Model = Annotated[Path, typer.Option("--bundle", help="A trained model.")]
QUICKSTART = Path("runs/quickstart/bundle")


@app.command()
def matrix(
    images: Annotated[list[Path], typer.Argument(help="Images, up to twenty.")],
    captions: Annotated[Path, typer.Option(help="A text file with a caption a line, up to twenty.")],
    bundle: Model = QUICKSTART,
    output: Annotated[Path, typer.Option(help="The figure; its numbers go beside it, as .csv.")] = Path("matrix.png"),
) -> None:
    """Draw how near each image is to each caption."""
    from pocketclip.show.pictures import read_captions, require_readable, write_matrix

    texts = read_captions(captions)
    require_readable(images, texts)
    from pocketclip.bundle import load

    model = load(bundle)
    found = model.encode_texts(texts) @ model.encode_images(images).T
    write_matrix(images, texts, found.numpy(), output)
    console.print(f"{output}: {len(images)} images against {len(texts)} captions", highlight=False, markup=False)


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(help="An image.")],
    captions: Annotated[list[str], typer.Argument(help="What is in it, or is not.")],
    bundle: Model = QUICKSTART,
    output: Annotated[Path, typer.Option(help="The figure; its numbers go beside it, as .json.")] = Path("explain.png"),
) -> None:
    """Draw which parts of an image its similarity to a caption comes from."""
    from pocketclip.show.pictures import require_readable, write_explanations

    require_readable([image], captions)
    from pocketclip.bundle import load
    from pocketclip.evaluate.embed import square_of_file
    from pocketclip.evaluate.explain import explain as run

    model = load(bundle)
    pixels = square_of_file(image, model.recipe.image)
    found = run(model, pixels, model.encode_texts(captions).numpy())
    write_explanations(
        pixels,
        captions,
        [one.cosine for one in found],
        [one.blank for one in found],
        [one.patches for one in found],
        output,
    )
    for one, caption in zip(found, captions, strict=True):
        console.print(
            f"{caption}: cosine {one.cosine:.3f} ({one.blank:.3f} without any picture)", highlight=False, markup=False
        )
    console.print(f"{output}: which patches count", highlight=False, markup=False)
