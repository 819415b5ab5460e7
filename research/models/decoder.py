"""One stack: the causal decoder, the prefix decoder and, under `Full`, the bidirectional encoder."""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from research.attention.masks import Causal, Full, Mask
from research.batch import Batch
from research.models.config import StackConfig
from research.models.layers import Embedding, Head, child
from research.models.stack import Stack


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Output:
    """What a model computes from a batch: `hidden` [*b t m], one vector for each label."""

    hidden: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder is its stack and its mask: `Causal()` (GPT, LLaMA) or `Prefix()` (ChatGLM) and nothing else."""

    stack: StackConfig = StackConfig()
    mask: Mask = Causal()
    tied_embeddings: bool = True

    def build(self, *, vocab: int, key: Array) -> "Decoder":
        """The model with `vocab` tokens and initial parameters drawn from `key`."""
        return Decoder(self, vocab=vocab, key=key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(DecoderConfig):
    """A bidirectional encoder (BERT): the decoder's stack under `Full()`, labels in place."""

    mask: Mask = Full()

    def build(self, *, vocab: int, key: Array) -> "Encoder":
        """The model with `vocab` tokens and initial parameters drawn from `key`."""
        return Encoder(self, vocab=vocab, key=key)


class Decoder(nnx.Module):
    """Token vectors, one stack, logits."""

    def __init__(self, config: DecoderConfig, *, vocab: int, key: Array):
        self.config = config
        self.embedding = Embedding(vocab, config.stack, key=child(key, "embedding"))
        self.stack = Stack(config.stack, mask=config.mask, key=child(key, "stack"))
        self.head = None if config.tied_embeddings else Head(vocab, config.stack, key=child(key, "head"))

    def apply(self, batch: Batch, *, key: Array | None = None) -> Output:
        """Hidden states of `batch.target`; `key` switches dropout on.

        Raises:
          ValueError: the batch has a source, which one stack cannot read.
        """
        if batch.source is not None:
            raise ValueError(
                f"{type(self).__name__} reads one line of tokens, but the batch has a source; "
                "set Data.layout = @layouts.Concatenate() (decoders) or @layouts.InPlace() (encoders)"
            )
        slots = batch.target.slots
        x = self.embedding(batch.target.ids)
        return Output(self.stack(x, slots=slots, mask=self.config.mask, key=key))

    def logits(self, hidden: Float[Array, "*b m"]) -> Float[Array, "*b v"]:
        """Scores of every token of the vocabulary, in float32."""
        return (self.head or self.embedding).logits(hidden)

    def __call__(self, batch: Batch) -> Float[Array, "*b t v"]:
        """Logits of every position: the short form of `apply`."""
        return self.logits(self.apply(batch).hidden)


class Encoder(Decoder):
    """A bidirectional encoder: nothing but a decoder whose mask hides nothing."""
