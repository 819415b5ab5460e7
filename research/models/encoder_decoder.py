"""Two stacks, or one called twice: an encoder under `Full`, a causal decoder that cross-attends to its last layer."""

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
from research.models.layers import Source, child, row_keys
from research.models.stack import Stack, copied
from research.models.vocabulary import Head, embedding, finish, outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    """An encoder-decoder (Vaswani et al. 2017; T5).

    Attributes:
      encoder, decoder: the stacks; `encoder` is not read where `tied`.
      encoder_mask, mask, cross_mask: within the source, within the target, and from target to source.
      split_layers: the encoder takes half of its configured layers and the decoder the rest of its own, so that
        both together are as deep as one decoder (T5's "P, M/2").
      tied: one stack reads the source and the target, so all but cross-attention and its norm is shared.
      tied_embeddings: logits by the token table.
      embedding: how tokens become vectors, on both sides, and states logits.
      shared_embeddings: both sides have one token table; else the source has its own.
    """

    encoder: StackConfig = StackConfig()
    decoder: StackConfig = StackConfig()
    encoder_mask: Mask = Full()
    mask: Mask = Causal()
    cross_mask: Mask = Full()
    split_layers: bool = False
    tied: bool = False
    tied_embeddings: bool = True
    embedding: EmbeddingConfig = EmbeddingConfig()
    shared_embeddings: bool = True

    def __post_init__(self):
        if self.embedding.cutoffs:
            raise ValueError(
                f"EncoderDecoderConfig.embedding has cutoffs {self.embedding.cutoffs}: an adaptive softmax is for "
                "decoders; set EmbeddingConfig.cutoffs to ()"
            )
        if self.encoder.width != self.decoder.width:
            raise ValueError(
                f"EncoderDecoderConfig: encoder width {self.encoder.width} and decoder width "
                f"{self.decoder.width} must agree; set StackConfig.width once, without a scope"
            )

        if self.split_layers and (self.tied or min(self.encoder.layers, self.decoder.layers) < 2):
            raise ValueError(
                "EncoderDecoderConfig.split_layers needs two stacks of at least 2 layers to split; "
                "set tied = False and StackConfig.layers to 2 or more"
            )

    def build(self, *, vocab: int, key: Array) -> "EncoderDecoder":
        """The model with `vocab` tokens and initial parameters drawn from `key`."""
        return EncoderDecoder(self, vocab=vocab, key=key)

    def stacks(self) -> tuple[StackConfig, StackConfig]:
        """The encoder's and the decoder's stack as they are built."""
        if not self.split_layers:
            return self.encoder, self.decoder
        encoder, decoder = self.encoder.layers // 2, self.decoder.layers - self.decoder.layers // 2
        return (
            dataclasses.replace(self.encoder, layers=encoder),
            dataclasses.replace(self.decoder, layers=decoder),
        )


class EncoderDecoder(nnx.Module):
    """Token vectors, an encoder, a decoder, logits."""

    reads_source = True

    def __init__(self, config: EncoderDecoderConfig, *, vocab: int, key: Array):
        self.config = config
        encoder, decoder = config.stacks()
        self.embedding = embedding(vocab, config.embedding, decoder, key=child(key, "embedding"))
        own = None if config.shared_embeddings else child(key, "source_embedding")
        self.source_embedding = None if own is None else embedding(vocab, config.embedding, encoder, key=own)
        inside, outside = (config.encoder_mask,), (config.mask,)
        masks = inside + outside if config.tied else outside
        self.decoder = Stack(decoder, masks=masks, cross=True, key=child(key, "decoder"))
        self.encoder = None if config.tied else Stack(encoder, masks=inside, key=child(key, "encoder"))
        rows = config.embedding.table_rows(vocab)
        self.head = None if config.tied_embeddings else Head(rows, decoder, key=child(key, "head"))
        self.finish = finish(vocab, config.embedding, decoder, key=child(key, "finish"))

    def apply(self, batch: Batch, *, carry: Recurrence | None = None, key: Array | None = None) -> Output:
        """Hidden states of `batch.target`, having read `batch.source`.

        Args:
          batch: what to read.
          carry: the memory that the decoder's segment before left; None: no memory yet.
          key: switches dropout on: one key, or one for each row of the batch.

        Raises:
          ValueError: the batch has no source to encode, or a carry has no memory to go to.
        """
        if batch.source is None:
            raise ValueError(
                "EncoderDecoder reads a source and a target, but the batch has no source; "
                "set Data.layout = @layouts.Split()"
            )
        key = row_keys(key, len(batch.labels))
        source = self.encode(batch.source, key=None if key is None else child(key, "source"))
        return remember(
            self.decoder, self.embedding, batch.target, carry, mask=self.config.mask, source=source, key=key
        )

    def encode(self, tokens: Tokens, *, key: Array | None = None) -> Source:
        """The source as the decoder cross-attends to it; a tied stack reads it without cross-attention. `key`, one for
        each row, switches dropout on.
        """
        stack = self.encoder or self.decoder
        x = (self.source_embedding or self.embedding)(tokens)
        hidden, _ = stack(x, slots=tokens.slots, mask=self.config.encoder_mask, key=key)
        return Source(hidden, tokens.slots, self.config.cross_mask)

    @property
    def decoding(self) -> StackConfig:
        """The stack that is extended."""
        return self.decoder.config

    @property
    def outputs(self) -> Any:
        """What makes logits of hidden states."""
        return outputs(self.head or self.embedding, self.finish)

    def unstacked(self) -> "EncoderDecoder":
        """The same model with an unstacked decoder, for a loop of `extend`."""
        model = copied(self)
        model.decoder = self.decoder.unstacked()
        return model

    def prefilled(
        self, tokens: Tokens, source: Tokens, *, cache: Whole | Rolling | None = None
    ) -> tuple[Float[Array, "b n m"], Cache]:
        """Hidden states of the first tokens [b n] of the target, and the cache that `extended` goes on from; the source
        is encoded here, once. See `Decoder.prefilled`.
        """
        mask = self.config.mask
        return prefilled(self.decoder, self.embedding, tokens, cache, mask=mask, source=self.encode(source))

    def prefill(
        self,
        tokens: Tokens,
        source: Tokens,
        *,
        cache: Whole | Rolling | None = None,
        at: Int[Array | np.ndarray, " b"] | None = None,
    ) -> tuple[Float[Array, "b t v"], Cache]:
        """Logits instead of hidden states; see `prefilled` and `Decoder.prefill`."""
        hidden, cached = self.prefilled(tokens, source, cache=cache)
        return self.logits(places(hidden, at)), cached

    def extended(self, cache: Cache, tokens: Tokens) -> tuple[Float[Array, "b t m"], Cache]:
        """Hidden states of the tokens [b t] after those in the cache; see `Decoder.extended`."""
        config = self.config
        return extended(
            self.decoder, self.embedding, cache, tokens, mask=config.mask, cross_mask=config.cross_mask
        )

    def extend(self, cache: Cache, tokens: Tokens) -> tuple[Float[Array, "b t v"], Cache]:
        """Logits of the tokens [b t] after those in the cache; see `Decoder.extend`."""
        hidden, cached = self.extended(cache, tokens)
        return self.logits(hidden), cached

    def logits(self, hidden: Float[Array, "*b m"]) -> Float[Array, "*b v"]:
        """Scores of every token of the vocabulary, in float32."""
        return self.outputs.logits(hidden)

    def __call__(self, batch: Batch) -> Float[Array, "*b t v"]:
        """Logits of every position: the short form of `apply`."""
        return self.logits(self.apply(batch).hidden)
