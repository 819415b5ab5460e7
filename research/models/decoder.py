"""One stack: the causal decoder, the prefix decoder and, under `Full`, the bidirectional encoder."""

import dataclasses
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from research.attention.masks import Causal, Full, Mask
from research.attention.memory import Rolling, Whole
from research.attention.recurrence import Recurrence
from research.batch import Batch, Tokens
from research.models.cache import Cache, Output, extended, places, prefilled, remember
from research.models.config import EmbeddingConfig, StackConfig
from research.models.layers import child, row_keys
from research.models.stack import Stack, copied
from research.models.vocabulary import Dense, Head, embedding, finish, outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder is its stack and its mask: `Causal()` (GPT, LLaMA) or `Prefix()` (ChatGLM) and nothing else.

    Attributes:
      stack, mask: the blocks, and what they may see.
      tied_embeddings: logits by the token table.
      embedding: how tokens become vectors and states logits.
    """

    stack: StackConfig = StackConfig()
    mask: Mask = Causal()
    tied_embeddings: bool = True
    embedding: EmbeddingConfig = EmbeddingConfig()

    def __post_init__(self):
        if self.embedding.cutoffs and not self.tied_embeddings:
            raise ValueError(
                "DecoderConfig.tied_embeddings = False: an adaptive softmax shares the tables of the input; set it to "
                "True, or EmbeddingConfig.cutoffs to ()"
            )

    def build(self, *, vocab: int, key: Array) -> "Decoder":
        """The model with `vocab` tokens and initial parameters drawn from `key`."""
        return Decoder(self, vocab=vocab, key=key)

    def head(self, vocab: int, key: Array) -> Head | None:
        """What makes logits of hidden states; None: the token table does."""
        if self.tied_embeddings:
            return None
        return Head(self.embedding.table_rows(vocab), self.stack, key=child(key, "head"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(DecoderConfig):
    """A bidirectional encoder (BERT): the decoder's stack under `Full()`, labels in place.

    Attributes:
      classes: how many classes a window may have, told by a linear head on its first token; None: the logits are of
        tokens.
      pooler: a dense layer and a tanh of hidden states, before the classes where there are any.
    """

    mask: Mask = Full()
    classes: int | None = None
    pooler: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"EncoderConfig.classes = {self.classes}: expected at least 2, or None")

    def build(self, *, vocab: int, key: Array) -> "Encoder":
        """The model with `vocab` tokens and initial parameters drawn from `key`."""
        return Encoder(self, vocab=vocab, key=key)

    def head(self, vocab: int, key: Array) -> Head | None:
        """What makes logits, of tokens or of classes; None: the token table does."""
        if self.classes is None:
            return super().head(vocab, key)
        return Head(self.classes, self.stack, key=child(key, "classes"))


class Decoder(nnx.Module):
    """Token vectors, one stack, logits."""

    reads_source = False

    def __init__(self, config: DecoderConfig, *, vocab: int, key: Array):
        self.config = config
        self.embedding = embedding(vocab, config.embedding, config.stack, key=child(key, "embedding"))
        self.stack = Stack(config.stack, masks=(config.mask,), key=child(key, "stack"))
        self.head = config.head(vocab, key)
        self.finish = finish(vocab, config.embedding, config.stack, key=child(key, "finish"))

    def apply(self, batch: Batch, *, carry: Recurrence | None = None, key: Array | None = None) -> Output:
        """Hidden states of `batch.target`.

        Args:
          batch: what to read.
          carry: the memory that the segment before left; None: no memory yet.
          key: switches dropout on: one key, or one for each row of the batch.

        Raises:
          ValueError: the batch has a source, which one stack cannot read, or a carry has no memory to go to.
        """
        if batch.source is not None:
            raise ValueError(
                f"{type(self).__name__} reads one line of tokens, but the batch has a source; "
                "set Data.layout = @layouts.Concatenate() (decoders) or @layouts.InPlace() (encoders)"
            )
        key = row_keys(key, len(batch.labels))
        return remember(
            self.stack, self.embedding, batch.target, carry, mask=self.config.mask, source=None, key=key
        )

    @property
    def decoding(self) -> StackConfig:
        """The stack that is extended."""
        return self.config.stack

    @property
    def outputs(self) -> Any:
        """What makes logits of hidden states."""
        return outputs(self.head or self.embedding, self.finish)

    def unstacked(self) -> "Decoder":
        """The same model with an unstacked stack, for a loop of `extend`."""
        model = copied(self)
        model.stack = self.stack.unstacked()
        return model

    def prefilled(
        self, tokens: Tokens, *, cache: Whole | Rolling | None = None
    ) -> tuple[Float[Array, "b n m"], Cache]:
        """Hidden states of a prompt [b n], and the cache that `extended` goes on from.

        Args:
          tokens: the prompt; shorter rows end in padding (segment 0).
          cache: which keys to keep; None where the stack has a memory, which is then what is kept.

        Raises:
          ValueError: a mask, a position scheme or a memory that cannot be read token by token.
        """
        return prefilled(self.stack, self.embedding, tokens, cache, mask=self.config.mask, source=None)

    def prefill(
        self,
        tokens: Tokens,
        *,
        cache: Whole | Rolling | None = None,
        at: Int[Array | np.ndarray, " b"] | None = None,
    ) -> tuple[Float[Array, "b t v"], Cache]:
        """Logits instead of hidden states; see `prefilled`. `at`: the one place of each row whose logits are wanted
        (t = 1); None: all of them (t = n).
        """
        hidden, cached = self.prefilled(tokens, cache=cache)
        return self.logits(places(hidden, at)), cached

    def extended(self, cache: Cache, tokens: Tokens) -> tuple[Float[Array, "b t m"], Cache]:
        """Hidden states of the tokens [b t] after those in the cache, the same as a full pass over all of them gives.

        Raises:
          ValueError: the mask sees what the cache has dropped.
        """
        return extended(self.stack, self.embedding, cache, tokens, mask=self.config.mask)

    def extend(self, cache: Cache, tokens: Tokens) -> tuple[Float[Array, "b t v"], Cache]:
        """Logits instead of hidden states; see `extended`."""
        hidden, cached = self.extended(cache, tokens)
        return self.logits(hidden), cached

    def logits(self, hidden: Float[Array, "*b m"]) -> Float[Array, "*b v"]:
        """Scores of every token of the vocabulary, in float32."""
        return self.outputs.logits(hidden)

    def __call__(self, batch: Batch) -> Float[Array, "*b t v"]:
        """Logits of every position: the short form of `apply`."""
        return self.logits(self.apply(batch).hidden)


class Encoder(Decoder):
    """A bidirectional encoder: a decoder whose mask hides nothing, and maybe a head of classes."""

    def __init__(self, config: EncoderConfig, *, vocab: int, key: Array):
        super().__init__(config, vocab=vocab, key=key)
        self.classes = config.classes
        if config.classes is not None:
            self.finish = None  # it is of scores of tokens
        self.pooler = Dense(config.stack, pooler=True, key=child(key, "pooler")) if config.pooler else None

    @property
    def outputs(self) -> Any:
        """What makes logits of hidden states; classes are told from pooled ones where there is a pooler."""
        told = super().outputs
        return Pooled(self.pooler, told) if self.pooler is not None and self.classes else told

    def pooled(self, hidden: Float[Array, "b n m"]) -> Float[Array, "b m"]:
        """A vector for each row: the pooler's of its first token.

        Raises:
          ValueError: there is none.
        """
        if self.pooler is None:
            raise ValueError("the encoder has no pooler; set EncoderConfig.pooler = True")
        return self.pooler(hidden[:, 0])


class Pooled(nnx.Module):
    """What makes logits of pooled states."""

    def __init__(self, pooler: Dense, table: Any):
        self.pooler, self.table = pooler, table

    def logits(self, hidden: Float[Array, "*b m"]) -> Float[Array, "*b v"]:
        """Scores of every class, in float32."""
        return self.table.logits(self.pooler(hidden))
