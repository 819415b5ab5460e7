"""Reading a line in pieces gives what reading it at once gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import core, masks, positions
from research.attention.masks import Causal, Full, Prefix, Sinks, Slots, Window
from research.attention.memory import Rolling, Whole
from research.attention.recurrence import Convolution, MaxPooling, MeanPooling, MostUsed, Recurrent
from research.batch import Batch, Tokens
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig

VOCAB, ROWS, N = 23, 2, 14
CUTS = (5, 6, 9)  # prefill, one token, three tokens


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


SCHEMES = [
    positions.Rotary(),
    positions.T5Bias(buckets=8, distance=16),
    positions.Relative(),
    *(
        slow(scheme)
        for scheme in (
            positions.Learned(length=40),
            positions.Rotary(fraction=0.5),
            positions.Sinusoidal(),
            positions.ALiBi(),
            positions.NoPosition(),
        )
    ),
]


def stack(**changes):
    return StackConfig(**{"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "hidden": 24, **changes})


CAUSAL = Causal()


def decoder(mask=CAUSAL, **changes):
    return DecoderConfig(stack=stack(**changes), mask=mask).build(vocab=VOCAB, key=jax.random.key(0))


def line(n=N, rows=ROWS, start=0, prefix=0, seed=0):
    slots = Slots.arange(n, (rows,), start)
    return Tokens(
        np.random.default_rng(seed).integers(0, VOCAB, (rows, n)),
        dataclasses.replace(slots, prefix=slots.position < prefix, start=0),
    )


def part(tokens, start, stop):
    """Columns of a line; a piece of a line is a line of its own."""
    cut = lambda leaf: leaf[:, start:stop]  # noqa: E731
    slots = tokens.slots
    coords = None if slots.coords is None else cut(slots.coords)
    return Tokens(
        cut(tokens.ids), Slots(cut(slots.position), cut(slots.segment), cut(slots.prefix), coords, 0)
    )


def batch(tokens, source=None):
    return Batch(tokens, tokens.ids, np.ones(tokens.ids.shape, np.float32), source)


@functools.cache
def in_pieces(cache, cuts):
    """Compiled: logits of a prefill up to the first cut and an extension up to each of the others."""

    @jax.jit
    def run(model, tokens, source):
        given = (part(tokens, 0, cuts[0]), *(() if source is None else (source,)))
        logits, held = model.prefill(*given, cache=cache)
        out = [logits]
        for start, stop in zip(cuts, cuts[1:], strict=False):
            logits, held = model.extend(held, part(tokens, start, stop))
            out.append(logits)
        return jnp.concatenate(out, axis=1)

    return run


def assert_extends(model, tokens, cache, source=None, cuts=CUTS, atol=5e-5):
    full = jax.jit(lambda model, b: model(b))(model, batch(tokens, source))
    pieces = in_pieces(cache, cuts)(model, tokens, source)
    np.testing.assert_allclose(pieces, full[:, : cuts[-1]], atol=atol)


ROLLING = Causal() & (Sinks(2) | Window(4))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    "mask",
    [Prefix(), ROLLING, *(slow(mask) for mask in (Causal(), Window(4), masks.Dilated(3, 2)))],
    ids=str,
)
def test_a_decoder_extends_under_every_extendable_mask_and_scheme(mask, scheme):
    assert_extends(decoder(mask, positions=scheme), line(prefix=4), Whole(capacity=20))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("tied", [False, True])
def test_an_encoder_decoder_extends(scheme, tied):
    own = stack(positions=scheme)
    config = EncoderDecoderConfig(encoder=own, decoder=own, tied=tied)
    model = config.build(vocab=VOCAB, key=jax.random.key(0))
    assert_extends(model, line(), Whole(capacity=N), source=line(9, seed=1))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("mask", "cache"), [
    (Window(4), Rolling(window=8)), (ROLLING, Rolling(window=8, sinks=2)),
])  # fmt: skip
def test_a_rolling_cache_is_enough_for_a_window_and_its_sinks(mask, cache, scheme):
    assert_extends(decoder(mask, positions=scheme), line(), cache)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: type(s).__name__)
def test_a_recurrent_memory_extends(scheme):
    model = decoder(Window(5), positions=scheme, memory=Recurrent(length=4))
    tokens = line()
    pieces = in_pieces(None, CUTS)(model, tokens, None)
    plain = decoder(Window(5), positions=scheme)
    full = jax.jit(lambda model, b: model(b))(plain, batch(tokens))
    np.testing.assert_allclose(pieces, full[:, : CUTS[-1]], atol=5e-5)


def test_a_rolling_cache_finds_its_sinks_from_the_first_token_on():
    assert_extends(decoder(ROLLING), line(), Rolling(window=4, sinks=2), cuts=(1, *range(2, N + 1)))


def test_a_rolling_cache_keeps_the_sinks_and_the_window_of_the_last_document():
    tokens = line()
    documents = np.where(np.arange(N) < 5, 1, 2) * np.ones((ROWS, 1), int)
    place = np.broadcast_to(np.where(np.arange(N) < 5, np.arange(N), np.arange(N) - 5), (ROWS, N))
    packed = Tokens(tokens.ids, Slots(place, documents, tokens.slots.prefix, start=0))
    assert_extends(decoder(ROLLING), packed, Rolling(window=4, sinks=2), cuts=(10, *range(11, N + 1)))


@pytest.mark.parametrize(
    ("mask", "cache", "memory"),
    [(ROLLING, Rolling(window=8, sinks=2), None), (Window(5), None, Recurrent(length=4))],
)
def test_an_encoder_decoder_extends_with_every_memory(mask, cache, memory):
    own = stack()
    config = EncoderDecoderConfig(encoder=own, decoder=own, mask=mask)
    plain = config.build(vocab=VOCAB, key=jax.random.key(0))
    remembering = dataclasses.replace(config, decoder=dataclasses.replace(own, memory=memory))
    model = remembering.build(vocab=VOCAB, key=jax.random.key(0))
    tokens, source = line(), line(9, seed=1)
    pieces = in_pieces(cache, CUTS)(model, tokens, source)
    full = jax.jit(lambda model, b: model(b))(plain, batch(tokens, source))
    np.testing.assert_allclose(pieces, full[:, : CUTS[-1]], atol=5e-5)


def test_layers_of_a_pattern_extend_each_under_its_own_mask():
    pattern = (BlockSpec(window=Window(3)), BlockSpec(positions=positions.ALiBi()))
    assert_extends(decoder(pattern=pattern), line(), Whole(capacity=N))
    assert_extends(decoder(pattern=pattern, layers=1), line(), Whole(capacity=N))


@pytest.mark.parametrize(
    ("cache", "changes"),
    [
        (Whole(capacity=300), {}),
        (Rolling(window=13, sinks=2), {}),
        (None, {"memory": Recurrent(length=11)}),
        (None, {"memory": Recurrent(length=11), "positions": positions.NoPosition()}),
    ],
)
def test_rows_of_unequal_prompts_extend_like_each_alone(cache, changes):
    """Holes of padding behind the shorter prompt are never keys, and cost no place in a window."""
    model = decoder(Window(12), **changes)
    plain = decoder(Window(12), **{**changes, "memory": None})
    tokens, lengths = line(200), (200, 5)
    real = np.arange(200) < np.array(lengths)[:, None]
    slots = Slots(
        np.where(real, tokens.slots.position, 0), real.astype(np.int32), tokens.slots.prefix, start=0
    )
    _, held = model.prefill(Tokens(tokens.ids, slots), cache=cache)
    follow = held.next(np.array([[3, 4], [5, 6]]))
    assert follow.slots.position.tolist() == [[200, 201], [5, 6]]
    logits, _ = model.extend(held, follow)
    for row, length in enumerate(lengths):
        ids = np.concatenate([tokens.ids[row, :length], follow.ids[row]])[None]
        alone = plain(batch(Tokens(ids, Slots.arange(length + 2, (1,)))))
        np.testing.assert_allclose(logits[row], alone[0, -2:], atol=5e-5)


def test_extension_in_a_loop_compiles_once_and_equals_the_full_pass():
    model, tokens = decoder(), line()

    @jax.jit
    def run(model, tokens):
        _, cache = model.prefill(part(tokens, 0, 4), cache=Whole(capacity=N))

        def step(cache, i):
            ids = jax.lax.dynamic_slice_in_dim(jnp.asarray(tokens.ids), i, 1, 1)
            logits, cache = model.extend(cache, cache.next(ids))
            return cache, logits[:, 0]

        return jax.lax.scan(step, cache, jnp.arange(4, N))[1].swapaxes(0, 1)

    np.testing.assert_allclose(run(model, tokens), model(batch(tokens))[:, 4:], atol=5e-5)


@pytest.mark.parametrize("scheme", [positions.Rotary(), positions.ALiBi(), positions.Relative()])
def test_streaming_counts_places_in_the_cache(scheme):
    """Each new token reads what a line of the kept tokens alone, numbered from 0, gives its last one."""
    model = decoder(ROLLING, positions=scheme, layers=1)
    full = decoder(Causal(), positions=scheme, layers=1)
    tokens = line()
    pieces = in_pieces(Rolling(window=4, sinks=2, reindex=True), tuple(range(5, N + 1)))(model, tokens, None)
    for i in range(6, N):
        ids = tokens.ids[:, [0, 1, *range(i - 3, i + 1)]]
        kept = full(batch(Tokens(ids, Slots.arange(6, (ROWS,)))))
        np.testing.assert_allclose(pieces[:, i], kept[:, -1], atol=5e-5)


def test_what_only_running_values_tell_gives_nan_under_jit():
    model, tokens = decoder(), line()
    _, held = model.prefill(part(tokens, 0, 4), cache=Whole(capacity=5))
    extend = jax.jit(lambda model, held, tokens: model.extend(held, tokens))
    good, held = extend(model, held, part(tokens, 4, 5))
    bad, _ = extend(model, held, part(tokens, 5, 6))
    assert np.isfinite(np.asarray(good)).all()
    assert np.isnan(np.asarray(bad)).all()
    model, late = decoder(Prefix()), line(prefix=6)
    _, held = model.prefill(part(late, 0, 4), cache=Whole(capacity=9))
    assert np.isnan(np.asarray(extend(model, held, part(late, 4, 5))[0])).all()


# Recurrence.


def segments(model, tokens, size):
    """Logits of the segments one after another, their carry handed on."""
    out, carry, losses = [], None, []
    for start in range(0, tokens.ids.shape[1], size):
        result = model.apply(batch(part(tokens, start, start + size)), carry=carry)
        carry = result.carry
        out.append(model.logits(result.hidden))
        losses.append(result.aux_loss)
    return jnp.concatenate(out, 1), carry, losses


def one_long_pass(model, tokens, mask, size):
    """Layer by layer over the whole line, keys of earlier segments without gradient: nothing of memory.py."""
    stack_, slots = model.stack, tokens.slots
    x = model.embedding(tokens)
    for p in stack_.positions:
        x = p.embed(x, slots)
    scheme, attention = stack_.positions[0], None
    for i in range(stack_.config.layers):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], stack_.blocks[0])
        attention = block.attention.inner
        out = []
        for start in range(0, x.shape[1], size):
            seen = jnp.concatenate([jax.lax.stop_gradient(x[:, :start]), x[:, start : start + size]], 1)
            k_slots = part(tokens, 0, start + size).slots
            q_slots = dataclasses.replace(part(tokens, start, start + size).slots, start=start)
            k, v = attention.keys(block.attention.input(seen))
            q = attention.queries(block.attention.input(x[:, start : start + size]))
            q, k = scheme.query(q, q_slots), scheme.key(k, k_slots)
            out.append(attention(q, k, v, mask=mask, q_slots=q_slots, k_slots=k_slots, bias=scheme.bias))
        x = x + jnp.concatenate(out, 1)
        x = block.mlp.add(x, block.mlp.inner(block.mlp.input(x)), None)
    return model.logits(stack_.norm(x))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: type(s).__name__)
def test_segment_wise_recurrence_equals_one_long_pass_with_gradients_stopped_at_segment_edges(scheme):
    mask = Window(4)
    model = decoder(mask, positions=scheme, memory=Recurrent(length=6))
    documents = np.cumsum(np.arange(N) % 9 == 7) + np.ones((ROWS, 1), int)
    tokens = line()
    tokens = Tokens(tokens.ids, dataclasses.replace(tokens.slots, segment=documents.astype(np.int32)))
    weights = jnp.cos(jnp.arange(ROWS * N * VOCAB)).reshape(ROWS, N, VOCAB)

    def value(run):
        return jax.jit(jax.value_and_grad(lambda model: (run(model) * weights).sum()))(model)

    pieces, gradient = value(lambda model: segments(model, tokens, 7)[0])
    whole, expected = value(lambda model: one_long_pass(model, tokens, mask, 7))
    np.testing.assert_allclose(pieces, whole, rtol=1e-4, atol=1e-3)
    for got, want in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4 * max(float(jnp.abs(want).max()), 1e-2))


def test_an_empty_memory_takes_no_attention_and_a_new_document_does_not_see_the_old_one():
    model = decoder(memory=Recurrent(length=8))
    plain = decoder()
    first, second = part(line(), 0, 7), part(line(), 7, N)
    start = model.apply(batch(first))
    np.testing.assert_allclose(start.hidden, plain.apply(batch(first)).hidden, atol=1e-5)
    fresh = dataclasses.replace(second.slots, segment=second.slots.segment + 1)
    after = model.apply(batch(Tokens(second.ids, fresh)), carry=start.carry)
    np.testing.assert_allclose(after.hidden, plain.apply(batch(second)).hidden, atol=1e-5)


def compressive(kind, rate, length=4, recent=4, **changes):
    return decoder(memory=Recurrent(length=recent, compression=kind(length=length, rate=rate)), **changes)


@pytest.mark.parametrize("kind", [MeanPooling, MaxPooling, MostUsed])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: type(s).__name__)
def test_compression_by_one_is_a_longer_memory(kind, scheme):
    tokens = line(24)
    logits, _, _ = segments(compressive(kind, 1, positions=scheme), tokens, 4)
    longer, _, _ = segments(decoder(positions=scheme, memory=Recurrent(length=8)), tokens, 4)
    np.testing.assert_allclose(logits, longer, atol=5e-5)


@pytest.mark.parametrize("kind", [MeanPooling, MaxPooling, MostUsed, Convolution])
def test_compressed_memory_reaches_further_and_leaks_nothing(kind):
    model = compressive(kind, 2)
    tokens = line(16)

    moved = Tokens(np.where(np.arange(16) == 2, (tokens.ids + 1) % VOCAB, tokens.ids), tokens.slots)
    logits, carry, _ = segments(model, tokens, 4)
    changed, _, _ = segments(model, moved, 4)
    assert (np.asarray(changed)[:, :2] == np.asarray(logits)[:, :2]).all()
    assert np.abs(np.asarray(changed - logits)[:, 8:12]).max() > 1e-6  # seen through the compressed memory
    slots = carry.layers[0][1][1]
    assert slots.position.shape == (2, ROWS, 4)
    if kind is not MostUsed:
        assert slots.position[0, 0].tolist() == [5, 7, 9, 11]  # the last position each covers
        assert slots.coords[0, 0, :, 0].tolist() == [-0.5] * 4  # their mean lies half a place before it
    other = dataclasses.replace(part(tokens, 12, 16).slots, segment=part(tokens, 12, 16).slots.segment + 5)
    _, full, _ = segments(model, part(tokens, 0, 12), 4)
    fresh = model.apply(batch(Tokens(part(tokens, 12, 16).ids, other)), carry=full)
    alone = model.apply(batch(Tokens(part(tokens, 12, 16).ids, other)))
    np.testing.assert_allclose(fresh.hidden, alone.hidden, atol=1e-5)


@pytest.mark.parametrize("compression", [None, MeanPooling(length=4, rate=2)])
def test_no_gradient_flows_into_an_earlier_segment(compression):
    """Each segment has token ids of its own, so their embeddings tell the segments apart."""
    config = DecoderConfig(stack=stack(memory=Recurrent(length=4, compression=compression)))
    model, tokens = config.build(vocab=3 * VOCAB, key=jax.random.key(0)), line(12)
    own = Tokens(tokens.ids + VOCAB * (np.arange(12) // 4), tokens.slots)

    def loss(model):
        carry = None
        for start in (0, 4, 8):
            result = model.apply(batch(part(own, start, start + 4)), carry=carry)
            carry = result.carry
        return jnp.sum(jnp.cos(result.hidden))

    table = np.asarray(jax.grad(loss)(model).embedding.table[...])
    touched = np.abs(table).reshape(3, VOCAB, 16).sum((1, 2)) > 0
    assert touched.tolist() == [False, False, True]


def test_reconstruction_trains_the_compression_and_nothing_else():
    model = compressive(Convolution, 2)

    def loss(model):
        return sum(segments(model, line(12), 4)[2])

    value, gradient = jax.value_and_grad(loss)(model)
    assert value > 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        learns = float(jnp.abs(leaf).max()) > 0
        assert learns == ("compress" in jax.tree_util.keystr(path)), jax.tree_util.keystr(path)


def test_most_used_keeps_what_the_queries_attend_to():
    keys = jnp.zeros((1, 4, 1, 2)).at[0, 1].set(5.0).at[0, 3].set(3.0)
    query = jnp.ones((1, 2, 1, 2))
    slots = Slots.arange(4, (1,))
    seen = {"mask": Full(), "q_slots": Slots.arange(2, (1,)), "k_slots": slots}
    usage = core.received(query, keys, **seen)
    shares = np.exp([0, 10 / 2**0.5, 0, 6 / 2**0.5])
    np.testing.assert_allclose(usage[0], shares / shares.sum(), rtol=1e-5)
    states = jnp.arange(4.0)[None, :, None]
    coords = dataclasses.replace(slots, coords=slots.position[..., None].astype(np.float32))
    kept, where = MostUsed(length=2, rate=2)(states, coords, lambda: usage)
    assert kept[0, :, 0].tolist() == [1, 3]
    assert where.position[0].tolist() == [1, 3]


def test_a_pooled_state_never_mixes_documents():
    slots = Slots.arange(4, (1,))
    two = dataclasses.replace(
        slots, segment=np.array([[1, 2, 2, 2]]), coords=slots.position[..., None].astype(np.float32)
    )
    states = jnp.asarray([[[8.0], [1.0], [2.0], [4.0]]])
    made, made_slots = MeanPooling(length=2, rate=2)(states, two, lambda: None)
    assert made[0, :, 0].tolist() == [1, 3]
    assert made_slots.segment[0].tolist() == [2, 2]
    assert made_slots.coords[0, :, 0].tolist() == [1, 2.5]


# Refusals.


def refused(said, call):
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_in_pieces_says_so_in_one_line():
    tokens = line(4)
    whole, again = Whole(capacity=8), Rolling(window=6, sinks=2, reindex=True)
    encoder = EncoderConfig(stack=stack()).build(vocab=VOCAB, key=jax.random.key(0))
    refused("lets a query see later keys", lambda: encoder.prefill(tokens, cache=whole))
    chunk = decoder(masks.Chunk(4))
    refused("lets a query see later keys", lambda: chunk.prefill(tokens, cache=whole))
    scaled = positions.Rotary(scaling=positions.DynamicNTK(factor=2.0, trained=8))
    refused("moves earlier keys", lambda: decoder(positions=scaled).prefill(tokens, cache=whole))
    for scheme in (positions.Learned(length=8), positions.Sinusoidal()):
        baked = decoder(ROLLING, positions=scheme)
        refused("part of their states", lambda baked=baked: baked.prefill(tokens, cache=again))
    refused("longer than the cache", lambda: decoder(ROLLING).prefill(line(9), cache=again))
    refused("has dropped", lambda: decoder().prefill(tokens, cache=Rolling(window=4)))
    refused("raise Whole.capacity", lambda: decoder().prefill(tokens, cache=Whole(capacity=3)))
    model = decoder()
    _, held = model.prefill(tokens, cache=Whole(capacity=5))
    refused("cannot take 2 more", lambda: model.extend(held, held.next(np.zeros((ROWS, 2), int))))
    model = decoder(Window(4))
    _, held = model.prefill(tokens, cache=Rolling(window=4))
    refused("2 tokens are read at once", lambda: model.extend(held, held.next(np.zeros((ROWS, 2), int))))
    recurrent = decoder(memory=Recurrent(length=4))
    refused("sees further than Recurrent.length", lambda: recurrent.prefill(tokens))
    refused("keeps Recurrent", lambda: recurrent.prefill(tokens, cache=whole))
    pooled = compressive(MeanPooling, 2)
    refused("depends on where segments end", lambda: pooled.prefill(tokens))
    coords = dataclasses.replace(tokens.slots, coords=np.zeros((ROWS, 4, 2)))
    refused("without coords", lambda: recurrent.apply(batch(Tokens(tokens.ids, coords))))
    prefix, late = decoder(Prefix()), line(prefix=6)
    _, early = prefix.prefill(part(late, 0, 4), cache=whole)
    refused("a prefix cannot be extended", lambda: prefix.extend(early, part(late, 4, 5)))
    for wrong in (
        lambda: Whole(capacity=0),
        lambda: Rolling(window=0),
        lambda: MeanPooling(length=0, rate=2),
    ):
        refused("expected at least 1", wrong)
    refused("cache=Whole", lambda: decoder().prefill(tokens))
    pooled = compressive(MeanPooling, 3)
    refused("multiple of the rate", lambda: pooled.apply(batch(tokens)))
    refused("StackConfig.memory is None", lambda: model.apply(batch(tokens), carry=start(recurrent, tokens)))
    refused("expected at least 1", lambda: Recurrent(length=0))


def start(model, tokens):
    return model.apply(batch(tokens)).carry
