"""A benchmark's prompts -> one embedding a class, kept on disk for the next time.

Source: Radford et al. 2021, section 3.1.4: the mean of the embeddings of a class's prompts.
"""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pocketclip.bundle import Bundle
from pocketclip.evaluate.zero_shot import Embeddings
from pocketclip.files import whole_file


def class_embeddings(bundle: Bundle, prompts: Sequence[Sequence[str]], folder: Path | None = None) -> Embeddings:
    """Embed each class's prompts, each to length one, and take their mean, again of length one: [classes, width].

    folder: where embeddings of this very bundle and these very prompts are kept; None keeps nothing.
    """
    subject = {"bundle": bundle.seal, "bfloat16": bundle.device.bfloat16, "prompts": prompts}
    kept = folder and folder / f"{hashlib.sha256(json.dumps(subject).encode()).hexdigest()[:16]}.npy"
    if kept and bundle.seal:
        try:
            found: Embeddings = np.load(kept, allow_pickle=False)
            if found.shape == (len(prompts), bundle.recipe.model.embedding_width):
                return found
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # not there, or damaged: computed again
            pass
    found = _embedded(bundle, prompts)
    if kept and bundle.seal:
        with whole_file(kept) as temporary, temporary.open("wb") as file:
            np.save(file, found)
    return found


def _embedded(bundle: Bundle, prompts: Sequence[Sequence[str]]) -> Embeddings:
    texts = list(dict.fromkeys(prompt for some in prompts for prompt in some))
    texts.sort(key=len)  # those of a batch are then of one length, and none is filled up
    place = {text: number for number, text in enumerate(texts)}
    embedded = bundle.encode_texts(texts).numpy()
    means = np.stack([embedded[[place[prompt] for prompt in some]].mean(axis=0) for some in prompts])
    result: Embeddings = means / np.linalg.norm(means, axis=1, keepdims=True)
    return result
