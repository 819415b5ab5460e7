"""Logit processors: what becomes of a model's logits before a token is chosen.

A processor is any callable of logits and `History`. Those below are pure and have no state, so they work under `jit`,
`vmap` and in a loop; they are hashable values that gin can bind. Order matters, and `Chain` applies in the order given.
The usual one, that of transformers:

    1. penalties     RepetitionPenalty, FrequencyPenalty, PresencePenalty: they change logits of tokens already there
    2. prohibitions  NoRepeatNGram, BadWords, MinimumLength: they forbid tokens
    3. Temperature
    4. truncations   TopK, TopP, MinP, Typical, Eta: they forbid what is unlikely, given the temperature

    Chain(processors=(RepetitionPenalty(penalty=1.2), Temperature(value=0.8), TopP(p=0.95)))

A forbidden token's logit is -inf. No row is ever left with nothing to choose: where a processor would forbid all that
is left of a row, the likeliest token of what is left stays. So a truncation placed before a prohibition may defeat it.
Tokens of equal logits are kept or forbidden together.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """The tokens of each row so far (fields `Any`: a pytree is also built of tracers and shapes).

    Attributes:
      ids: i32[b n], prompt and generated tokens from the left; whatever lies behind `length` is never read.
      length: i32[b], how many of them are there.
      prompt: i32[b], how many of those are the prompt.
    """

    ids: Any
    length: Any
    prompt: Any

    @property
    def place(self) -> Int32[Array, " n"]:
        """0, 1, ... n - 1."""
        return jnp.arange(self.ids.shape[-1], dtype=jnp.int32)

    @property
    def present(self) -> Bool[Array, "b n"]:
        """The tokens that are there."""
        return self.place < jnp.asarray(self.length)[:, None]

    @property
    def generated(self) -> Bool[Array, "b n"]:
        """The tokens that are there and no prompt."""
        return self.present & (self.place >= jnp.asarray(self.prompt)[:, None])

    @property
    def new(self) -> Int32[Array, " b"]:
        """How many tokens have been generated."""
        return jnp.asarray(self.length) - jnp.asarray(self.prompt)

    def last(self, count: int) -> Int32[Array, "b count"]:
        """The last `count` tokens of each row; meaningless where a row has fewer."""
        places = jnp.asarray(self.length)[:, None] + np.arange(-count, 0)
        return jnp.take_along_axis(jnp.asarray(self.ids), places, axis=1, mode="clip")


Processor = Callable[[Array, History], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepetitionPenalty:
    """Makes every token of prompt and text less likely (CTRL, Keskar et al. 2019, section 4.1).

    A positive logit is divided by the penalty, a negative one multiplied with it, once for each token however often it
    came. That depends on where the model's logits have their zero, so it comes first, on logits that are as the model
    gave them.

    Attributes:
      penalty: 1 does nothing, above 1 discourages, below 1 encourages.
    """

    penalty: float

    def __post_init__(self):
        _check(self, "penalty", self.penalty > 0, "above 0")

    def __call__(self, logits: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        seen = _count(logits, history.ids, history.present) > 0
        penalised = jnp.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return jnp.where(seen, penalised, logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrequencyPenalty:
    """Takes `penalty` times the number of its occurrences off a token's logit (OpenAI API reference,
    `frequency_penalty`). Only generated tokens count, not the prompt. Usually before the temperature, so that the
    temperature scales the penalty too; after it the penalty is in nats of what is sampled from.

    Attributes:
      penalty: 0 does nothing, above 0 discourages, below 0 encourages; OpenAI allows -2 to 2.
    """

    penalty: float

    def __post_init__(self):
        _check(self, "penalty", True, "a finite number")

    def __call__(self, logits: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        counts = _count(logits, history.ids, history.generated)
        return logits - (self.penalty * counts).astype(logits.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PresencePenalty:
    """Takes `penalty` once off the logit of each token generated so far (OpenAI API reference, `presence_penalty`).
    The prompt does not count. It stands where `FrequencyPenalty` stands; the order of the two makes no difference.

    Attributes:
      penalty: 0 does nothing, above 0 discourages, below 0 encourages; OpenAI allows -2 to 2.
    """

    penalty: float

    def __post_init__(self):
        _check(self, "penalty", True, "a finite number")

    def __call__(self, logits: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        generated = _count(logits, history.ids, history.generated) > 0
        return jnp.where(generated, logits - self.penalty, logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoRepeatNGram:
    """Forbids the token that would repeat an n-gram of prompt and text (Paulus et al. 2018, section 2.5). Before
    temperature and truncations, or what they keep may be what is forbidden. O(b n size) time, and no array is larger
    than the ids or the logits.

    Attributes:
      size: tokens of an n-gram; 1 forbids every token that came before.
    """

    size: int

    def __post_init__(self):
        _check(self, "size", self.size >= 1, "at least 1")

    def __call__(self, logits: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        before, ids = self.size - 1, jnp.asarray(history.ids)
        starts = ids.shape[1] - before
        if starts < 1:
            return logits
        # An n-gram counts once its last token is there: the suffix itself, whose last token is to come, does not.
        repeated = history.present[:, before:]
        suffix = history.last(before)
        for i in range(before):
            repeated &= ids[:, i : i + starts] == suffix[:, i, None]
        return _forbid(logits, _count(logits, ids[:, before:], repeated) > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadWords:
    """Forbids the last token of a word where the text ends in the tokens before it (the word filter of Gehman et al.
    2020, section 5; `bad_words_ids` of transformers). Before temperature and truncations, or what they keep may be what
    is forbidden.

    Attributes:
      words: the ids of each word. A tokenizer may spell a word in several ways (with and without a space or a
        capital): list all of them.
    """

    words: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        for word in self.words:
            if not word or min(word) < 0:
                raise ValueError(f"BadWords.words has {word}: expected at least one id, and none below 0")

    def __call__(self, logits: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        if not self.words:
            return logits
        _within("BadWords.words", [token for word in self.words for token in word], logits)
        before = np.array([len(word) - 1 for word in self.words])
        longest = int(before.max())
        needed = np.arange(longest) >= (longest - before)[:, None]
        wanted = np.zeros((len(self.words), longest), np.int32)
        wanted[needed] = [token for word in self.words for token in word[:-1]]
        last = np.array([word[-1] for word in self.words])
        fits = (history.last(longest)[:, None] == wanted) | ~needed
        complete = fits.all(-1) & (jnp.asarray(history.length)[:, None] >= before)
        return _forbid(logits, _count(logits, jnp.broadcast_to(last, complete.shape), complete) > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinimumLength:
    """Forbids the end of a text that is too short (the min-len of BART, Lewis et al. 2020; `min_new_tokens` of
    transformers). Before temperature and truncations, or what they keep may be only the end.

    Attributes:
      tokens: how many tokens are generated before one of `end` may come.
      end: the ids that end a text.
    """

    tokens: int
    end: tuple[int, ...]

    def __post_init__(self):
        _check(self, "tokens", self.tokens >= 0, "at least 0")
        if not self.end or min(self.end) < 0:
            raise ValueError(f"MinimumLength.end = {self.end}: expected at least one id, and none below 0")

    def __call__(self, logits: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        _within("MinimumLength.end", self.end, logits)
        ends = np.isin(np.arange(logits.shape[-1]), self.end)
        return _forbid(logits, ends & (history.new < self.tokens)[:, None])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Temperature:
    """Divides the logits (Ackley, Hinton & Sejnowski 1985). After penalties and prohibitions, before truncations: these
    then see the distribution that is sampled from. After them it only changes the odds between what they kept.

    Attributes:
      value: 1 does nothing, below 1 sharpens, above 1 flattens. The likeliest token alone, temperature 0, is a way to
        search and no processor.
    """

    value: float

    def __post_init__(self):
        _check(self, "value", self.value > 0, "above 0; greedy search takes the likeliest token")

    def __call__(self, logits: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        return logits / self.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK:
    """Keeps the `k` likeliest tokens, and those as likely as the last of them (Fan et al. 2018). Usually
    the first truncation; the temperature makes no difference to it. `TopP` after it takes its share of what is left.

    Attributes:
      k: how many are kept; all, if the vocabulary is not larger.
    """

    k: int

    def __post_init__(self):
        _check(self, "k", self.k >= 1, "at least 1")

    def __call__(self, logits: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        least = jax.lax.top_k(logits, min(self.k, logits.shape[-1]))[0][:, -1:]
        return _forbid(logits, logits < least)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopP:
    """Keeps the smallest set of likeliest tokens that holds the probability `p`: nucleus sampling (Holtzman et al.
    2020, section 3.1). The token that crosses the threshold stays. After temperature and `TopK`: both change what holds
    `p`.

    Attributes:
      p: the probability to be held; 1 keeps all.
    """

    p: float

    def __post_init__(self):
        _check(self, "p", 0 < self.p <= 1, "above 0 and at most 1")

    def __call__(self, logits: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        log_p = _log_probabilities(logits)
        return _forbid(logits, _outside(-log_p, log_p, self.p))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinP:
    """Keeps the tokens that are at least `p` times as likely as the likeliest (Nguyen et al. 2024). After the
    temperature, which changes that ratio; it is meant to replace `TopP`, not to follow it.

    Attributes:
      p: the least share of the likeliest token's probability; 0 keeps all.
    """

    p: float

    def __post_init__(self):
        _check(self, "p", 0 <= self.p <= 1, "at least 0 and at most 1")

    def __call__(self, logits: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        probabilities = jnp.exp(_log_probabilities(logits))
        return _forbid(logits, probabilities < self.p * probabilities.max(-1, keepdims=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Typical:
    """Keeps the smallest set of tokens that holds the probability `mass`, those first whose surprisal is nearest to the
    entropy: locally typical sampling (Meister et al. 2023). The likeliest token may go. After the
    temperature; other truncations before it change the entropy.

    Attributes:
      mass: the probability to be held (the paper's tau); 1 keeps all.
    """

    mass: float

    def __post_init__(self):
        _check(self, "mass", 0 < self.mass <= 1, "above 0 and at most 1")

    def __call__(self, logits: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        log_p = _log_probabilities(logits)
        return _forbid(logits, _outside(jnp.abs(-log_p - _entropy(log_p)), log_p, self.mass))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eta:
    """Keeps the tokens of at least probability min(epsilon, sqrt(epsilon) exp(-entropy)): eta sampling (Hewitt et al.
    2022). After the temperature; other truncations before it change the entropy.

    Attributes:
      epsilon: the paper uses 3e-4 to 4e-3.
    """

    epsilon: float

    def __post_init__(self):
        _check(self, "epsilon", 0 < self.epsilon < 1, "above 0 and below 1")

    def __call__(self, logits: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        log_p = _log_probabilities(logits)
        eta = jnp.minimum(self.epsilon, math.sqrt(self.epsilon) * jnp.exp(-_entropy(log_p)))
        return _forbid(logits, jnp.exp(log_p) < eta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """Several processors as one, applied in the order given; the usual order is at the top of this file.

    Attributes:
      processors: any callables of logits and history, chains included; none at all changes nothing.
    """

    processors: tuple[Processor, ...] = ()

    def __post_init__(self):
        for i, processor in enumerate(self.processors):
            # A class is a callable too: `@TopK` where `@TopK()` is meant.
            if isinstance(processor, type) or not callable(processor):
                raise ValueError(
                    f"Chain.processors[{i}] = {processor!r}: expected a processor, such as TopK(k=40); in gin, @TopK()"
                )

    def __call__(self, logits: Float[Array, "b v"], history: History) -> Float[Array, "b v"]:
        return apply(self.processors, logits, history)


def apply(
    processors: tuple[Processor, ...], logits: Float[Array, "b v"], history: History
) -> Float[Array, "b v"]:
    """The logits after all of the processors, in the order given."""
    for processor in processors:
        logits = processor(logits, history)
    return logits


def _check(processor: Any, name: str, good: bool, expected: str) -> None:
    value = getattr(processor, name)
    if not (good and math.isfinite(value)):
        raise ValueError(f"{type(processor).__name__}.{name} = {value}: expected {expected}")


def _within(name: str, ids: Any, logits: Array) -> None:
    """Ids beyond the vocabulary would be dropped in silence, and the prohibition with them."""
    if max(ids) >= logits.shape[-1]:
        raise ValueError(f"{name} has the id {max(ids)}: expected ids below the {logits.shape[-1]} logits")


def _count(logits: Float[Array, "b v"], ids: Any, mask: Bool[Array, "b k"]) -> Int32[Array, "b v"]:
    """How often each token of the vocabulary is among its row's ids where the mask is set."""
    rows, vocabulary = np.arange(logits.shape[0])[:, None], logits.shape[-1]
    # One behind the vocabulary is dropped. (A negative id would count from the end.)
    ids = jnp.where(mask, jnp.asarray(ids), vocabulary)
    return jnp.zeros(logits.shape, jnp.int32).at[rows, ids].add(1, mode="drop")


def _forbid(logits: Float[Array, "b v"], forbidden: Bool[Array | np.ndarray, "b v"]) -> Float[Array, "b v"]:
    """-inf where forbidden; a row that would have nothing left keeps its likeliest."""
    left = jnp.where(forbidden, -jnp.inf, logits)
    likeliest = jnp.where(logits == logits.max(-1, keepdims=True), logits, -jnp.inf)
    return jnp.where((left > -jnp.inf).any(-1, keepdims=True), left, likeliest)


def _log_probabilities(logits: Float[Array, "b v"]) -> Float[Array, "b v"]:
    """In f32 or wider."""
    return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)


def _entropy(log_p: Float[Array, "b v"]) -> Float[Array, "b 1"]:
    return -jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0).sum(-1, keepdims=True)


def _outside(cost: Float[Array, "b v"], log_p: Float[Array, "b v"], mass: float) -> Bool[Array, "b v"]:
    """The tokens that are not in the smallest set of least cost that holds the mass."""
    if mass == 1:
        return jnp.zeros(cost.shape, bool)
    cheapest, probabilities = jax.lax.sort((cost, jnp.exp(log_p)), num_keys=1)
    # Summed from the far end, where the terms are small: a mass close to 1 is decided there.
    behind = jax.lax.cumsum(probabilities, axis=1, reverse=True)
    within = (behind > 1 - mass).at[:, 0].set(True)
    return cost > jnp.where(within, cheapest, -jnp.inf).max(-1, keepdims=True)
