"""Small models of every format, each parameter of them at random: where one is misplaced, embeddings change."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from conftest import small_recipe
from pocketclip.bundle import Bundle, load, save_bundle
from pocketclip.convert.source import EXACT
from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import Recipe, TokenizerSettings
from pocketclip.tokenizer import END, START, CaptionTokenizer, learn_tokenizer

CAPTIONS = ("a red circle", "two dogs on a table", "a woman firefighter", "don't 17 years", "ein Stadtplan")


RESNET = {"stages": [1, 2, 1, 1], "width": 16, "heads": 8, "patch_size": 32}  # at 64 pixels, 512 wide where it pools


def plain_recipe(**sections: dict[str, Any]) -> Recipe:
    """Patches and a class token, as others' image towers have them; two blocks a tower, of different shapes."""
    image = {"stem_channels": [], "pool": "class", "layers": 2, "heads": 4, "mlp_ratio": 3.0}
    text = {"layers": 3, "width": 48, "heads": 3}
    changes = {"image_tower": image, "text_tower": text, "model": {"embedding_width": 24}}
    for name, values in sections.items():
        changes[name] = {**changes.get(name, {}), **values}
    return small_recipe(Path("data"), **changes)


def shaken(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Norms and biases too: as they are initialised, a wrong one could not be told from a right one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if "running" in name:  # small variances: what comes out depends on the image, not on biases alone
                buffer.copy_(0.02 + 0.02 * torch.rand(buffer.shape, generator=generator))
    return model.eval()


def random_bundle(folder: Path, recipe: Recipe | None = None) -> Path:
    recipe = recipe or plain_recipe()
    torch.manual_seed(0)
    model = CLIP(recipe)
    shaken(model)
    learned = learn_tokenizer(CAPTIONS, TokenizerSettings(vocabulary_size=recipe.tokenizer.vocabulary_size))
    save_bundle(folder, model, recipe, CaptionTokenizer(learned, recipe.text_tower.context_length), {"steps": 7})
    return folder


def exact(folder: Path) -> Bundle:
    """A bundle in float32, whatever the chip has units for."""
    return replace(load(folder, "cpu"), device=EXACT)


def clip_vocabulary(captions: tuple[str, ...] = CAPTIONS, size: int = 700) -> tuple[dict[str, int], list[str]]:
    """A small vocabulary in the form of OpenAI's: letters, letters that end words, merges, the two special tokens.

    Returns the vocabulary and its merges, two pieces a line.
    """
    from tokenizers.trainers import BpeTrainer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), bytes_of_words])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(captions, BpeTrainer(vocab_size=size, end_of_word_suffix="</w>", show_progress=False))
    merges = [" ".join(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][: size - 514]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    return {word: i for i, word in enumerate([*words, START, END])}, merges


def write_vocabulary(folder: Path) -> dict[str, int]:
    """vocab.json and merges.txt of it, as Hugging Face keeps them."""
    vocabulary, merges = clip_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return vocabulary


def huggingface_folder(folder: Path, activation: str = "quick_gelu") -> Path:
    """A `CLIPModel` as transformers saves it, with a vocabulary of its form."""
    import transformers

    folder.mkdir()
    vocabulary = write_vocabulary(folder)
    shape = {"num_hidden_layers": 2, "hidden_act": activation, "projection_dim": 24}
    ids = {"bos_token_id": vocabulary[START], "eos_token_id": vocabulary[END], "pad_token_id": vocabulary[END]}
    text = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "max_position_embeddings": 20}
    image = {"hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    settings = transformers.CLIPConfig(
        text_config={**shape, **ids, **text, "vocab_size": len(vocabulary)},
        vision_config={**shape, **image},
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(settings)
    shaken(model)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return folder


def import_open_clip() -> Any:
    """OpenCLIP, for tests marked `peer`; benchmarks/openclip.py says how to install it."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import openclip

    return openclip.import_open_clip()


def edit(path: Path, **changes: Any) -> None:
    """Change values of a JSON file: two underscores reach inside, None removes."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *parts, last = key.split("__")
        part = content
        for name in parts:
            part = part[name]
        part[last] = value
        if value is None:
            del part[last]
    path.write_text(json.dumps(content))
