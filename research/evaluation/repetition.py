"""How much token sequences repeat: exact metrics of lists of ids, each variant by name.

A unit is whatever an id stands for. Single bytes repeat in human text too: take words, BPE tokens, or n-grams of at
least 8 bytes. Renaming the ids changes no metric. A sequence that is too short to have an n-gram is left out of means.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

Ids = Int[np.ndarray, " _"]


class TooShort(ValueError):
    """Sequences that do not have what is to be counted."""


def seq_rep_welleck(sequences: Sequence[Ids], n: int) -> float:
    """1 - unique n-grams / n-grams of each sequence, then the mean (Welleck et al. 2020, eq. 11; their code).

    Raises:
      TooShort: no sequence has an n-gram.
    """
    unique, total = _unique_and_total(ngrams(sequences, n))
    return float(np.mean(1 - unique / total))


def seq_rep_simctg(sequences: Sequence[Ids], n: int) -> float:
    """1 - unique / total, both summed over all sequences, in which the last n-gram of each is not counted, rounded to
    1e-4 (the code of Su et al. 2022).

    Raises:
      TooShort: no sequence is longer than n.
    """
    unique, total = _unique_and_total(ngrams([line[:-1] for line in sequences], n))
    return round(100 * (1 - unique.sum() / total.sum()), 2) / 100


def diversity_welleck(sequences: Sequence[Ids]) -> float:
    """The product of 1 - `seq_rep_welleck` over n = 2, 3, 4 (Su et al. 2022, section 4.1).

    Raises:
      TooShort: no sequence has 4 tokens.
    """
    return float(np.prod([1 - seq_rep_welleck(sequences, n) for n in (2, 3, 4)]))


def diversity_simctg(sequences: Sequence[Ids]) -> float:
    """The product of 1 - `seq_rep_simctg`, each rounded before, over n = 2, 3, 4 (the code of Su et al. 2022).

    Raises:
      TooShort: no sequence has 5 tokens.
    """
    return float(np.prod([1 - seq_rep_simctg(sequences, n) for n in (2, 3, 4)]))


def distinct(sequences: Sequence[Ids], n: int) -> float:
    """Different n-grams of all sequences together / their n-grams (Li et al. 2016). Falls with the amount of text.

    Raises:
      TooShort: no sequence has an n-gram.
    """
    counts = np.bincount(ngrams(sequences, n).codes)
    return len(counts) / int(counts.sum())


def distinct_holtzman(sequences: Sequence[Ids], n: int) -> float:
    """n-grams that occur exactly once in all sequences together / their n-grams (the code of Holtzman et al. 2020).

    Raises:
      TooShort: no sequence has an n-gram.
    """
    counts = np.bincount(ngrams(sequences, n).codes)
    return int((counts == 1).sum()) / int(counts.sum())


def unique(sequences: Sequence[Ids]) -> int:
    """Different tokens of all sequences together: uniq of predictions, uniq-seq of samples (Welleck et al. 2020)."""
    return len(np.unique(np.concatenate([np.zeros(0, int), *sequences])))


def zipf(sequences: Sequence[Ids], most: int = 5000) -> float:
    """Minus the least-squares slope of log frequency on log rank, of the `most` most frequent tokens (Holtzman et al.
    2020, section 5.3).

    Raises:
      TooShort: there are fewer than two different tokens.
    """
    counts = np.sort(np.bincount(ngrams(sequences, 1).codes))[::-1][:most]
    if len(counts) < 2:
        raise TooShort(f"zipf of {len(counts)} different token: expected at least 2 ranks")
    return -float(np.polyfit(np.log(np.arange(1, len(counts) + 1)), np.log(counts), 1)[0])


def rep_l(predicted: Sequence[Ids], gold: Sequence[Ids], last: int) -> float:
    """The share of predictions that are among the `last` gold tokens before them (Welleck et al. 2020, eq. 10).

    Args:
      predicted: of each sequence, what was likeliest at each gold token.

    Raises:
      TooShort: there is no prediction.
      ValueError: there is not one for each gold token.
    """
    return float(np.mean(_recent(predicted, gold, last)))


def wrep_l(predicted: Sequence[Ids], gold: Sequence[Ids], last: int) -> float:
    """The share of predictions that are so and wrong; as `rep_l`."""
    return float(
        np.mean(_recent(predicted, gold, last) & (np.concatenate(predicted) != np.concatenate(gold)))
    )


def rep_w(sequences: Sequence[Ids], w: int = 16) -> float:
    """The share of tokens that are among the w before them, of each sequence, then the mean (Fu et al. 2021).

    Raises:
      TooShort: there is no token.
    """
    return _mean_share(_recent(sequences, sequences, w), ngrams(sequences, 1).rows)


def rep_r(sequences: Sequence[Ids]) -> float:
    """The share of tokens that are part of a bigram which the sequence has more than once, of each sequence, then the
    mean (Fu et al. 2021). A sequence of one token has none.

    Raises:
      TooShort: there is no token.
    """
    tokens, inside = ngrams(sequences, 1), [np.zeros(len(line), bool) for line in sequences]
    if any(len(line) > 1 for line in sequences):
        pairs = ngrams(sequences, 2)
        _, which, counts = np.unique(pairs.of_row, return_inverse=True, return_counts=True)
        often, first = counts[which] > 1, 0
        for line in inside:
            part = often[first : first + max(len(line) - 1, 0)]
            line[: len(part)] |= part
            line[len(line) - len(part) :] |= part
            first += len(part)
    return _mean_share(np.concatenate(inside), tokens.rows)


def self_bleu(sequences: Sequence[Ids], most: int = 1000, order: int = 4, epsilon: float = 0.1) -> float:
    """The mean BLEU-4 of each of the first `most` sequences against all others as references (Zhu et al. 2018), each
    with the smoothing method 1 of Chen and Cherry (2014): `epsilon` in place of no match.

    Raises:
      ValueError: there are fewer than two sequences.
    """
    chosen = list(sequences)[:most]
    sizes = np.array([len(line) for line in chosen])
    if len(chosen) < 2:
        raise ValueError(f"self_bleu of {len(chosen)} sequence: expected at least 2")
    logs = np.zeros(len(chosen))
    for n in range(1, order + 1):
        matched = _matched(chosen, n)
        if n == 1:
            none = matched == 0
        logs += np.log(np.where(matched > 0, matched, epsilon) / np.maximum(sizes - n + 1, 1)) / order
    scores = np.exp(logs + np.minimum(1 - _closest(sizes) / np.maximum(sizes, 1), 0))
    return float(np.mean(np.where(none, 0.0, scores)))


@dataclasses.dataclass(frozen=True)
class Reinforcement:
    """By how often a sentence came before, f64[repeats] each (Xu et al. 2022, section 2.2); entry 0 is the first time.

    Attributes:
      probability: TP, the mean probability of its tokens.
      increased: IP, the share of tokens likelier than the first time (entry 0: 0).
      winners: WR, the share of tokens that are the likeliest of all.
    """

    probability: np.ndarray
    increased: np.ndarray
    winners: np.ndarray


def reinforcement(
    probabilities: Sequence[Float[np.ndarray, "repeats _"]], wins: Sequence[Bool[np.ndarray, "repeats _"]]
) -> Reinforcement:
    """TP, IP and WR of sentences written again and again, means over all tokens of all sentences (the code of DITTO).

    Args:
      probabilities: of each sentence, that of each of its tokens each time.
      wins: whether that token was the likeliest.
    """
    each = np.concatenate(list(probabilities), axis=1)
    won = np.concatenate(list(wins), axis=1)
    return Reinforcement(each.mean(1), (each > each[0]).mean(1), won.mean(1))


@dataclasses.dataclass(frozen=True)
class Grams:
    """The n-grams of sequences, in order.

    Attributes:
      codes: i64[k], 0 to how many are different - 1; equal where the n-grams are.
      rows: i64[k], the sequence of each.
    """

    codes: np.ndarray
    rows: np.ndarray

    @property
    def of_row(self) -> Int64[np.ndarray, " k"]:
        """Codes that are equal where n-gram and sequence are."""
        return self.rows * (int(self.codes.max()) + 1) + self.codes


def ngrams(sequences: Sequence[Ids], n: int) -> Grams:
    """All n-grams of all sequences.

    Raises:
      TooShort: there is none.
    """
    if n < 1:
        raise ValueError(f"n = {n} of n-grams: expected at least 1")
    tokens, rows = _line(sequences)
    _, tokens = np.unique(tokens, return_inverse=True)
    codes, inside, base = tokens, np.ones(len(tokens), bool), len(tokens) + 1
    most = base  # above all codes
    for size in range(2, n + 1):
        if most > 2**62 // base:
            _, codes = np.unique(codes, return_inverse=True)
            most = len(codes)
        follow = tokens[size - 1 :]
        codes, most = codes[: len(follow)] * base + follow, most * base
        inside = rows[size - 1 :] == rows[: len(follow)]
    _, codes = np.unique(codes[inside], return_inverse=True)
    rows = rows[: len(inside)][inside]
    if not len(codes):
        raise TooShort(f"n = {n}: no sequence of {n} tokens among {len(sequences)}")
    return Grams(codes, rows)


def _line(sequences: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray]:
    """All tokens one after another, and the sequence of each."""
    sizes = [len(line) for line in sequences]
    return np.concatenate([np.zeros(0, np.int64), *sequences]), np.repeat(np.arange(len(sizes)), sizes)


def _unique_and_total(grams: Grams) -> tuple[np.ndarray, np.ndarray]:
    """Of each sequence that has n-grams, how many are different and how many there are."""
    total = np.bincount(grams.rows)
    found = np.bincount(np.unique(grams.of_row) // (int(grams.codes.max()) + 1), minlength=len(total))
    return found[total > 0], total[total > 0]


def _mean_share(flags: np.ndarray, rows: np.ndarray) -> float:
    """The share of true tokens of each sequence that has any, then the mean."""
    total = np.bincount(rows)
    true = np.bincount(rows, flags, minlength=len(total))
    return float(np.mean(true[total > 0] / total[total > 0]))


def _recent(predicted: Sequence[Ids], gold: Sequence[Ids], most: int) -> np.ndarray:
    """Whether each prediction is among the `most` gold tokens before it, bool[k]."""
    if [len(line) for line in predicted] != [len(line) for line in gold]:
        raise ValueError("rep_l: predictions and gold tokens of different lengths; expected one for each")
    (asked, rows), (known, _) = _line(predicted), _line(gold)
    if not len(known):
        raise TooShort(f"no token in {len(gold)} sequences; expected at least one")
    _, both = np.unique(np.concatenate([asked, known]), return_inverse=True)
    size = len(known)
    place, group = np.arange(size), rows * (int(both.max()) + 1)
    keys = np.sort((group + both[size:]) * size + place)
    wanted = (group + both[:size]) * size + place
    # The latest of the gold tokens that come before and are the same, if there is one.
    last = keys[np.maximum(np.searchsorted(keys, wanted) - 1, 0)]
    return (last < wanted) & (last // size == wanted // size) & (wanted - last <= most)


def _matched(sequences: Sequence[Ids], n: int) -> np.ndarray:
    """How many n-grams of each sequence the others have, each at most as often as the one that has it most often."""
    matched = np.zeros(len(sequences))
    if all(len(line) < n for line in sequences):
        return matched
    grams = ngrams(sequences, n)
    kinds = int(grams.codes.max()) + 1
    pairs, counts = np.unique(grams.of_row, return_counts=True)
    rows, codes = pairs // kinds, pairs % kinds
    order = np.lexsort((counts, codes))  # of an n-gram the sequence that has it most often comes last
    rows, codes, counts = rows[order], codes[order], counts[order]
    last = np.flatnonzero(np.append(codes[1:] != codes[:-1], True))
    most, holder, second = counts[last], rows[last], np.zeros(kinds, int)
    several = np.diff(last, prepend=-1) > 1
    second[several] = counts[last[several] - 1]
    others = np.where(holder[codes] == rows, second[codes], most[codes])
    return matched + np.bincount(rows, np.minimum(counts, others), minlength=len(sequences))


def _closest(sizes: np.ndarray) -> np.ndarray:
    """Of each size the closest other one, of two the smaller."""
    kinds, counts = np.unique(sizes, return_counts=True)
    found = []
    for size in sizes:
        others = kinds[(kinds != size) | (counts > 1)]
        found.append(others[np.argmin(np.abs(others - size))])
    return np.array(found)
