"""Generation: a prompt is read once, then a loop adds a token to every row until all rows have ended.

`generate` is a pure function of parameters, prompt and keys: it compiles once for each shape, and `vmap` over the
parameters makes an ensemble of it. What a model keeps of the tokens it has read is its own business (`models.cache`):

    family           keeps                                          its mask
    decoder          all keys: `Whole`                              any that is extendable: Causal, Prefix, Window
    decoder          sinks and a window: `Rolling`                  sees no further: Causal & (Sinks | Window)
    decoder          a Transformer-XL memory: StackConfig.memory    one that the memory does not refuse
    encoder-decoder  the same of its target; the source once        as above
    encoder          nothing: a bidirectional model has no next token
    any              a compressed memory: refused, since it depends on where segments end

`contrast.Contrast` is two models in the place of one, `noise.noisy` a model whose reading is disturbed.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from research.attention.masks import Slots
from research.attention.memory import Rolling, Whole
from research.batch import Tokens
from research.generation.contrast import Contrast
from research.generation.noise import noisy
from research.generation.processors import Chain, History
from research.models.families import Model

MULTIPLE = 32  # of lengths, where few programs should be compiled


@runtime_checkable  # so that an argument can be checked against it
class Choice(Protocol):
    """How the next token is chosen from processed logits."""

    def __call__(self, logits: Float[Array, "b v"], keys: Any) -> Int32[Array, " b"]:
        """The tokens; `keys`: one for each row and step."""
        ...


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The likeliest token; of equal ones the first."""

    def __call__(self, logits: Float[Array, "b v"], keys: Any) -> Int32[Array, " b"]:
        # Two plain reductions: XLA:CPU does not vectorise that of values and places together, which argmax is.
        last = logits.shape[-1] - 1
        likeliest = logits == logits.max(-1, keepdims=True)
        return jnp.where(likeliest, jnp.arange(last + 1, dtype=jnp.int32), last).min(-1)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A draw from the softmax of the logits. A row's draws depend on its key alone, not on the rows beside it."""

    def __call__(self, logits: Float[Array, "b v"], keys: Any) -> Int32[Array, " b"]:
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """How rows are continued.

    Attributes:
      tokens: most new tokens of a row.
      end: ids of which any ends its row; it is kept as the row's last token.
      choice: `Sample()` or `Greedy()`.
      processors: what becomes of the logits before a token is chosen, in this order.
      cache: which keys are kept; None: all of them, or the memory of a stack that has one.
      noise: on the vectors of all tokens that are read, in units of their own size; see `noise.noisy`.
    """

    tokens: int = 256
    end: tuple[int, ...] = ()
    choice: Choice = Sample()
    processors: Chain = Chain()
    cache: Rolling | None = None
    noise: float = 0.0

    def __post_init__(self):
        if self.tokens < 1:
            raise ValueError(f"Generation.tokens = {self.tokens}: expected at least 1")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"Generation.noise = {self.noise}: expected at least 0")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generated:
    """Rows on their way, and when all have ended.

    Attributes:
      history: ids i32[b n], how many of them are there, and how many of these are the prompt (of an encoder-decoder:
        the tokens that its target began with).
      log_probability: f32[b tokens], the model's own (of a `Contrast`: of its logits), before the processors, of each
        new token; 0 behind the last.
      ended: bool[b], whether the row came to an end of its own.
      step: i32[], new tokens of the longest row.
      logits: f32[b v], of the next token.
      cache: what the model keeps of what it has read.
      keys: one for each row.
    """

    history: Any
    log_probability: Any
    ended: Any
    step: Any
    logits: Any
    cache: Any
    keys: Any


def prompt(
    lines: Sequence[Any], *, pad: int, vocab: int | None = None, length: int | None = None, given: bool = True
) -> Tokens:
    """Lines of ids, from the left, as a batch.

    Args:
      lines: ids of each row, at least one.
      pad: the id behind the shorter ones.
      vocab: tokens of the vocabulary, where it is known.
      length: of the batch; None: of the longest line.
      given: whether the tokens are a prefix, as what a decoder is to go on from is.

    Raises:
      ValueError: there is no line, one is empty, longer than `length`, or has an id that is no token.
    """
    sizes = np.asarray([len(line) for line in lines])
    if not len(sizes):
        raise ValueError("no prompt; expected at least one")
    if not sizes.all():
        raise ValueError(f"prompt {int(np.argmin(sizes))} is empty; expected at least one token, such as BOS")
    length = int(sizes.max()) if length is None else length
    if sizes.max() > length:
        raise ValueError(f"prompt {int(np.argmax(sizes))} has {sizes.max()} tokens, more than {length}")
    ids = np.full((len(lines), length), pad, np.int32)
    for row, line in zip(ids, lines, strict=True):
        row[: len(line)] = line
    wrong = np.argwhere((ids < 0) | (ids >= (np.inf if vocab is None else vocab)))
    if len(wrong):
        row, place = wrong[0]
        expected = "at least 0" if vocab is None else f"0 to {vocab - 1}"
        raise ValueError(f"prompt {row} has the id {ids[row, place]} at place {place}; expected {expected}")
    real = np.arange(length) < sizes[:, None]
    slots = Slots.arange(length, (len(lines),))
    return Tokens(ids, dataclasses.replace(slots, segment=real.astype(np.int32), prefix=real & given))


def rounded(lines: Sequence[Any]) -> int:
    """The longest line's length, up to a multiple, so that few programs are compiled."""
    return -(-max(map(len, lines)) // MULTIPLE) * MULTIPLE


def generate(
    model: Model | Contrast, given: Tokens, keys: Any, config: Generation, *, source: Tokens | None = None
) -> Generated:
    """The rows of `given` continued until they end; see `begin`."""
    return advance(model, begin(model, given, keys, config, source=source), config)


def begin(
    model: Model | Contrast, given: Tokens, keys: Any, config: Generation, *, source: Tokens | None = None
) -> Generated:
    """Read what the rows begin with; no token is added yet.

    Args:
      model: the model; a bidirectional encoder has no next token.
      given: what each row begins with, [b n], from the left, padding (segment 0) behind it.
      keys: one for each row.
      config: how (static under `jit`).
      source: what an encoder-decoder reads.

    Raises:
      ValueError: a mask, a position scheme or a memory that cannot be read token by token, or a source too many or
        too few.
    """
    rows = len(given.ids)
    options = reading(model, given, config.tokens, source=source, cache=config.cache)
    sizes = lengths(given)
    logits, kept = _prepared(model, keys, config).prefill(given, at=sizes - 1, **options)
    return Generated(
        history=History(jnp.pad(jnp.asarray(given.ids), [(0, 0), (0, config.tokens)]), sizes, sizes),
        log_probability=jnp.zeros((rows, config.tokens), jnp.float32),
        ended=jnp.zeros(rows, bool),
        step=jnp.int32(0),
        logits=logits[:, 0],
        cache=kept,
        keys=keys,
    )


def reading(
    model: Model | Contrast,
    given: Tokens,
    tokens: int,
    *,
    source: Tokens | None,
    cache: Rolling | None = None,
) -> dict[str, Any]:
    """With what a model reads the beginning of rows that get so many more tokens: `cache`, and `source` if it has one.

    Raises:
      ValueError: a source too many or too few.
    """
    if model.reads_source != (source is not None):
        raise ValueError(
            f"{type(model).__name__} with {'no' if source is None else 'a'} source: expected one for an EncoderDecoder "
            "and none for a Decoder"
        )
    kind: Any = cache
    if cache is None and model.decoding.memory is None:
        kind = Whole(capacity=given.ids.shape[1] + tokens)
    return {"cache": kind} if source is None else {"cache": kind, "source": source}


def lengths(given: Tokens) -> Int32[Array, " b"]:
    """How many tokens each row begins with."""
    return jnp.sum(jnp.asarray(given.slots.segment) != 0, axis=-1).astype(jnp.int32)


def _prepared(model: Model | Contrast, keys: Any, config: Generation) -> Any:
    """The model as it is read from, token by token."""
    return (noisy(model, keys, config.noise) if config.noise else model).unstacked()


def advance(
    model: Model | Contrast, begun: Generated, config: Generation, most: int | None = None
) -> Generated:
    """The same rows with at most so many more tokens (None: until all have ended), to show text as it comes."""
    model = _prepared(model, begun.keys, config)
    last = config.tokens if most is None else jnp.minimum(begun.step + most, config.tokens)
    rows = np.arange(begun.ended.shape[0])

    def goes_on(now: Generated) -> Array:
        return (now.step < last) & ~jnp.all(now.ended)

    def add(now: Generated) -> Generated:
        history, ended = now.history, now.ended
        keys = jax.vmap(jax.random.fold_in, (0, None))(now.keys, now.step)
        chosen = config.choice(config.processors(now.logits, history), keys)
        score = jnp.take_along_axis(jax.nn.log_softmax(now.logits), chosen[:, None], axis=-1)[:, 0]
        place = jnp.where(ended, history.ids.shape[1], history.length)  # past the end nothing is written
        cache = now.cache.bound()
        logits, cache = model.extend(cache, cache.next(chosen[:, None]))
        return Generated(
            history=History(
                history.ids.at[rows, place].set(chosen, mode="drop"), history.length + ~ended, history.prompt
            ),
            log_probability=now.log_probability.at[:, now.step].set(jnp.where(ended, 0.0, score)),
            ended=ended | jnp.isin(chosen, jnp.asarray(config.end, jnp.int32)) if config.end else ended,
            step=now.step + 1,
            logits=logits[:, 0],
            cache=cache.loose(),
            keys=now.keys,
        )

    done = jax.lax.while_loop(goes_on, add, dataclasses.replace(begun, cache=begun.cache.loose()))
    return dataclasses.replace(done, cache=done.cache.bound())
