"""Contrastive decoding: what a model says more strongly than a worse one does."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.batch import Tokens
from research.models.config import StackConfig
from research.models.families import Cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
    """What an expert and an amateur keep of the tokens they have read."""

    expert: Cache
    amateur: Cache

    def next(self, ids: Any) -> Tokens:
        """Plain tokens that go on where each row ends."""
        return self.expert.next(ids)

    def rows(self, index: Any) -> "Pair":
        """Row i of it is row `index[i]` of this one."""
        return Pair(self.expert.rows(index), self.amateur.rows(index))

    def reordered(self, index: Any) -> "Pair":
        """See `Cache.reordered`."""
        return Pair(self.expert.reordered(index), self.amateur.reordered(index))

    def loose(self) -> "Pair":
        """See `Cache.loose`."""
        return Pair(self.expert.loose(), self.amateur.loose())

    def bound(self) -> "Pair":
        """See `Cache.bound`."""
        return Pair(self.expert.bound(), self.amateur.bound())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Contrast:
    """An expert model beside an amateur, of any families that read the same input: together they are a model to
    generate from, by sampling, greedily or with beams. Its logits are log p(expert) - strength * log p(amateur), of the
    tokens that the expert finds at least `plausible` times as likely as its likeliest one (Li et al. 2023, section 3).

    Attributes:
      expert, amateur: the models; their vocabularies are the same.
      strength: 1 is the paper's; 0 leaves the expert alone with the plausible tokens.
      plausible: the paper's alpha, 0.1 there; 0 allows every token.

    Raises:
      ValueError: a value out of range.
    """

    expert: Any  # a model; Any, since a pytree is also built of tracers and shapes
    amateur: Any
    strength: float = dataclasses.field(default=1.0, metadata={"static": True})
    plausible: float = dataclasses.field(default=0.1, metadata={"static": True})

    def __post_init__(self):
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"Contrast.strength = {self.strength}: expected at least 0")
        if not 0 <= self.plausible <= 1:
            raise ValueError(f"Contrast.plausible = {self.plausible}: expected at least 0 and at most 1")

    @property
    def reads_source(self) -> bool:
        """Whether both read a source.

        Raises:
          ValueError: only one does.
        """
        if self.expert.reads_source != self.amateur.reads_source:
            raise ValueError(
                f"Contrast of {type(self.expert).__name__} and {type(self.amateur).__name__}: expected both or none "
                "to read a source"
            )
        return self.expert.reads_source

    @property
    def decoding(self) -> StackConfig:
        """The expert's stack.

        Raises:
          ValueError: only one of the models has a memory.
        """
        kept = [model.decoding.memory for model in (self.expert, self.amateur)]
        if (kept[0] is None) != (kept[1] is None):
            raise ValueError(
                f"Contrast of models with StackConfig.memory = {kept[0]} and {kept[1]}: expected a memory in both or "
                "none"
            )
        return self.expert.decoding

    def unstacked(self) -> "Contrast":
        """The same with both stacks unstacked; see `Decoder.unstacked`."""
        return dataclasses.replace(self, expert=self.expert.unstacked(), amateur=self.amateur.unstacked())

    def prefill(self, tokens: Tokens, **options: Any) -> tuple[Float[Array, "b t v"], Pair]:
        """Both read what rows begin with; see `Decoder.prefill`."""
        expert, kept = self.expert.prefill(tokens, **options)
        amateur, beside = self.amateur.prefill(tokens, **options)
        return self._held_against(expert, amateur), Pair(kept, beside)

    def extend(self, cache: Pair, tokens: Tokens) -> tuple[Float[Array, "b t v"], Pair]:
        """Both read the tokens after those in the cache; see `Decoder.extend`."""
        expert, kept = self.expert.extend(cache.expert, tokens)
        amateur, beside = self.amateur.extend(cache.amateur, cache.amateur.next(tokens.ids))
        return self._held_against(expert, amateur), Pair(kept, beside)

    def _held_against(self, expert: Array, amateur: Array) -> Array:
        if expert.shape != amateur.shape:
            raise ValueError(
                f"the expert has a vocabulary of {expert.shape[-1]} tokens and the amateur one of {amateur.shape[-1]}; "
                "expected models of one tokenizer"
            )
        likely = jax.nn.log_softmax(expert)
        least = likely.max(-1, keepdims=True) + (jnp.log(self.plausible) if self.plausible else -jnp.inf)
        return jnp.where(likely >= least, likely - self.strength * jax.nn.log_softmax(amateur), -jnp.inf)
