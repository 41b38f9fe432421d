"""What can be told from image embeddings alone, given labelled ones: nearest neighbours and a linear classifier.

Sources: Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination", section 3.4
(weighted neighbours; k and temperature as in Caron et al. 2021, "Emerging properties in self-supervised vision
transformers"); Radford et al. 2021, section 3.2 and appendix A.3 (logistic regression by L-BFGS, its penalty chosen on
held-out images).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketclip.evaluate.zero_shot import Embeddings

NEIGHBOURS, TEMPERATURE = 20, 0.07
PENALTIES = tuple(10.0**power for power in range(-2, 7))  # scikit-learn's C, the inverse of the penalty's weight
HELD_OUT = 5  # every fifth image of a shuffle chooses the penalty
ITERATIONS = 1000
SCORES = 1 << 26  # cosines or logits that are held at a time
CPU = torch.device("cpu")
Labels = NDArray[np.int64]


def nearest_neighbours(
    known: Embeddings, labels: Labels, images: Embeddings, classes: int, device: torch.device = CPU
) -> Labels:
    """The class of each image by its 20 nearest known ones, which vote by e to the cosine over 0.07.

    known: [known, width], labels: [known], images: [images, width]; rows of length one. Returns [images].
    """
    found = [np.zeros(0, np.int64)]
    bank, own = torch.from_numpy(known).to(device), torch.from_numpy(labels).to(device)
    for block in torch.split(torch.from_numpy(images), max(1, SCORES // len(known))):
        best = (block.to(device) @ bank.T).topk(min(NEIGHBOURS, len(known)), dim=1)
        votes = torch.zeros(len(block), classes, device=device)
        votes.scatter_add_(1, own[best.indices], (best.values / TEMPERATURE).exp())
        found.append(votes.argmax(dim=1).cpu().numpy())
    return np.concatenate(found)


def linear_probe(
    known: Embeddings, labels: Labels, images: Embeddings, classes: int, device: torch.device = CPU
) -> tuple[Labels, float]:
    """The class of each image by logistic regression on the known ones, and the inverse penalty that was chosen.

    Shapes as in `nearest_neighbours`. The penalty is that which does best on a fifth of the known images; then all
    are fitted.
    """
    order = np.random.default_rng(0).permutation(len(known))
    held, rest = order[::HELD_OUT], np.setdiff1d(order, order[::HELD_OUT])
    best, right = PENALTIES[0], -1.0
    weights: tuple[Tensor, Tensor] | None = None
    for inverse in PENALTIES:  # from the simplest on, each beginning where the one before ended
        weights = fit(known[rest], labels[rest], classes, inverse, weights, device)
        share = float(np.mean(predicted(known[held], *weights) == labels[held]))
        if share > right:
            best, right = inverse, share
    return predicted(images, *fit(known, labels, classes, best, device=device)), best


def fit(
    known: Embeddings,
    labels: Labels,
    classes: int,
    inverse: float,
    start: tuple[Tensor, Tensor] | None = None,
    device: torch.device = CPU,
) -> tuple[Tensor, Tensor]:
    """Weights [classes, width] and biases [classes] of multinomial logistic regression, on the CPU.

    inverse: C of scikit-learn's LogisticRegression: the sum of losses, times C, plus half the sum of squared weights is
        least. start: where to begin.
    """
    x, y = torch.from_numpy(known).to(device), torch.from_numpy(labels).to(device)
    weight, bias = start or (torch.zeros(classes, x.shape[1]), torch.zeros(classes))
    weight, bias = (one.detach().to(device, copy=True).requires_grad_() for one in (weight, bias))
    rows = max(1, SCORES // classes)
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        found = weight.square().sum() / (2 * inverse * len(x))
        found.backward()  # type: ignore[no-untyped-call]
        for some, true in zip(torch.split(x, rows), torch.split(y, rows), strict=True):
            part = nn.functional.cross_entropy(some @ weight.T + bias, true, reduction="sum") / len(x)
            part.backward()  # type: ignore[no-untyped-call]
            found = found.detach() + part.detach()
        return found

    search.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach().cpu(), bias.detach().cpu()


def predicted(images: Embeddings, weight: Tensor, bias: Tensor) -> Labels:
    """The class of each image."""
    found: Labels = (torch.from_numpy(images) @ weight.T + bias).argmax(dim=1).numpy()
    return found
