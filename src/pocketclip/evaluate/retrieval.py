"""Image-text retrieval: recall@k in both directions over one set of images and their captions."""

from collections.abc import Sequence

from pocketclip.evaluate.zero_shot import Embeddings, ranks, top_k

CUTS = (1, 5, 10)


def recall(images: Embeddings, texts: Embeddings, true: Sequence[Sequence[int]]) -> dict[str, float]:
    """Recall@1/5/10, percent: an image finds one of its captions, a caption finds one of its images.

    images: [images, width]; texts: [captions, width], the captions of these images alone, each once.
    true: for each image the indices of its captions.
    """
    owners: list[list[int]] = [[] for _ in texts]
    for image, captions in enumerate(true):
        for caption in captions:
            owners[caption].append(image)
    to_text, to_image = ranks(images, texts, true), ranks(texts, images, owners)
    found = {f"image_to_text_recall@{k}": top_k(to_text, k) for k in CUTS}
    return found | {f"text_to_image_recall@{k}": top_k(to_image, k) for k in CUTS}
