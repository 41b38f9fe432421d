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

from pocketclip.evaluate.zero_shot import BLOCK, Embeddings

NEIGHBOURS, TEMPERATURE = 20, 0.07
PENALTIES = tuple(10.0**power for power in range(-2, 7))  # scikit-learn's C, the inverse of the penalty's weight
HELD_OUT = 5  # every fifth image of a shuffle chooses the penalty
ITERATIONS = 1000
Labels = NDArray[np.int64]


def nearest_neighbours(known: Embeddings, labels: Labels, images: Embeddings, classes: int) -> Labels:
    """The class of each image by its 20 nearest known ones, which vote by e to the cosine over 0.07.

    known: [known, width], labels: [known], images: [images, width]; rows of length one. Returns [images].
    """
    found = [np.zeros(0, np.int64)]
    bank, own = torch.from_numpy(known), torch.from_numpy(labels)
    for start in range(0, len(images), BLOCK):
        cosines = torch.from_numpy(images[start : start + BLOCK]) @ bank.T
        best = cosines.topk(min(NEIGHBOURS, len(known)), dim=1)
        votes = torch.zeros(len(cosines), classes)
        votes.scatter_add_(1, own[best.indices], (best.values / TEMPERATURE).exp())
        found.append(votes.argmax(dim=1).numpy())
    return np.concatenate(found)


def linear_probe(known: Embeddings, labels: Labels, images: Embeddings, classes: int) -> tuple[Labels, float]:
    """The class of each image by logistic regression on the known ones, and the inverse penalty that was chosen.

    Shapes as in `nearest_neighbours`. The penalty is that which does best on a fifth of the known images; then all
    are fitted.
    """
    order = np.random.default_rng(0).permutation(len(known))
    held, rest = order[::HELD_OUT], np.setdiff1d(order, order[::HELD_OUT])
    best, right = PENALTIES[0], -1.0
    weights: tuple[Tensor, Tensor] | None = None
    for inverse in PENALTIES:  # from the simplest on, each beginning where the one before ended
        weights = fit(known[rest], labels[rest], classes, inverse, weights)
        share = float(np.mean(predicted(known[held], *weights) == labels[held]))
        if share > right:
            best, right = inverse, share
    return predicted(images, *fit(known, labels, classes, best)), best


def fit(
    known: Embeddings, labels: Labels, classes: int, inverse: float, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Weights [classes, width] and biases [classes] of multinomial logistic regression.

    inverse: C of scikit-learn's LogisticRegression: the sum of losses, times C, plus half the sum of squared weights is
        least. start: where to begin.
    """
    x, y = torch.from_numpy(known), torch.from_numpy(labels)
    weight, bias = start or (torch.zeros(classes, x.shape[1]), torch.zeros(classes))
    weight, bias = (one.detach().clone().requires_grad_() for one in (weight, bias))
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        found = nn.functional.cross_entropy(x @ weight.T + bias, y) + weight.square().sum() / (2 * inverse * len(x))
        found.backward()  # type: ignore[no-untyped-call]
        return found

    search.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def predicted(images: Embeddings, weight: Tensor, bias: Tensor) -> Labels:
    """The class of each image."""
    found: Labels = (torch.from_numpy(images) @ weight.T + bias).argmax(dim=1).numpy()
    return found
