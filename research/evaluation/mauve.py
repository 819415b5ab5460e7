"""MAUVE (Pillutla et al. 2021): how near a set of written texts is to one of human texts, in some space of features.

Theirs are the last states of GPT-2 large. Numbers in another space compare among themselves only, so whoever calls this
says which features it was given.
"""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.cluster import vq

SCALE = 5.0  # c: divergences are exp(-c KL)
WEIGHTS = np.linspace(1 - 1e-6, 1e-6, 25)  # of the first in mixtures of both, along the curve
STARTS = 5  # of k-means, of which the tightest counts
EXPLAINED = 0.9  # share of the variance of the features that is kept before they are grouped


def mauve(
    human: Float[np.ndarray, "n m"],
    written: Float[np.ndarray, "k m"],
    *,
    groups: int | None = None,
    seed: int = 0,
) -> float:
    """The area under the divergence curve of the two sets, 0 to 1; 1 where they are alike.

    Features are scaled to length 1, reduced to the principal components that explain 90 % of their variance, and
    grouped by k-means; what is compared is how often each group comes.

    Args:
      human, written: the features of a text in each row.
      groups: None: a tenth of the smaller set, at least 2. They should hold some ten texts each, and the value depends
        on how many there are: compare sets of one size.
      seed: of k-means.

    Raises:
      ValueError: a set has fewer than 2 texts.
    """
    if min(len(human), len(written)) < 2:
        raise ValueError(f"mauve of {len(human)} and {len(written)} texts: expected at least 2 of each")
    groups = max(2, round(min(len(human), len(written)) / 10)) if groups is None else groups
    which = _grouped(np.concatenate([human, written]), groups, seed)
    counts = [np.bincount(part, minlength=groups) for part in (which[: len(human)], which[len(human) :])]
    return area(*(np.asarray(each / each.sum(), np.float64) for each in counts))


def area(p: Float64[np.ndarray, " g"], q: Float64[np.ndarray, " g"]) -> float:
    """Under the divergence curve of two distributions over groups (equation 3): between its ends at (0, 1) and (1, 0)
    it has (exp(-c KL(q || r)), exp(-c KL(p || r))) for each mixture r of both.
    """
    mixtures = WEIGHTS[:, None] * p + (1 - WEIGHTS)[:, None] * q
    x, y = (np.exp(-SCALE * np.array([_divergence(each, r) for r in mixtures])) for each in (q, p))
    return float(np.trapezoid([1.0, *y, 0.0], [0.0, *x, 1.0]))


def _divergence(p: np.ndarray, r: np.ndarray) -> float:
    some = p > 0
    return float(np.sum(p[some] * np.log(p[some] / r[some])))


def _grouped(features: np.ndarray, groups: int, seed: int) -> Int[np.ndarray, " n"]:
    """The group of each text."""
    wide: Any = np.asarray(features, np.float64)
    wide = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    wide = wide - wide.mean(0)
    _, sizes, axes = np.linalg.svd(wide, full_matrices=False)
    share = np.cumsum(sizes**2) / max(float(np.sum(sizes**2)), 1e-12)
    kept = wide @ axes[: 1 + int(np.searchsorted(share, EXPLAINED))].T
    rng, best, which = np.random.default_rng(seed), np.inf, np.zeros(len(kept), int)
    for _ in range(STARTS):
        with warnings.catch_warnings(action="ignore"):  # an empty group is one that no text is in
            centres, found = vq.kmeans2(kept, groups, iter=100, minit="++", rng=rng)
        spread = float(np.sum((kept - centres[found]) ** 2))
        if spread < best:
            best, which = spread, found
    return which
