"""What every family must satisfy, whatever its parameters are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.attention import positions
from research.attention.masks import Causal, Full, Prefix, Same, Slots, SymmetricWindow, Window
from research.attention.memory import Line
from research.batch import Batch, Tokens
from research.data import denoising, layouts, objectives, packing
from research.data.tokenizers import Bytes
from research.data.windows import TokenWindow
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from research.models.layers import Source

SCHEMES = [
    positions.Rotary(),
    positions.T5Bias(buckets=8, distance=16),
    *(
        pytest.param(scheme, marks=pytest.mark.slow)
        for scheme in (
            positions.NoPosition(),
            positions.Sinusoidal(),
            positions.ALiBi(),
            positions.Relative(),
        )
    ),
]
TOKENIZER = Bytes()
VOCAB = TOKENIZER.vocab_size
WINDOW = 12
STACK = StackConfig(layers=3, width=16, heads=2, pattern=(BlockSpec(), BlockSpec(window=Window(8))))
KEY = jax.random.key(0)


def stack(**changes):
    return dataclasses.replace(STACK, **changes)


def row(objective, layout, seed=0, window=WINDOW, pad=0):
    """A row of one window, as long as it needs and `pad` more, and its lengths."""
    rng = np.random.default_rng(seed)
    text = rng.integers(4, 260, window).astype(np.int32)
    lengths = layout.lengths(objective.limits(window))
    features = layout(objective(TokenWindow.text(text), rng, TOKENIZER), TOKENIZER)
    return [features], {name: length + pad for name, length in lengths.items()}


def packed(*rows):
    """One row of all examples of the rows."""
    return [one for examples, _ in rows for one in examples], {
        name: sum(lengths[name] for _, lengths in rows) for name in rows[0][1]
    }


def batch_of(*rows):
    return layouts.assemble(packing.fill([examples for examples, _ in rows], rows[0][1]))


CASES = [
    (DecoderConfig, Causal(), objectives.CausalLM(), layouts.Concatenate()),
    (DecoderConfig, Causal(), objectives.PrefixLM(), layouts.Concatenate()),
    (DecoderConfig, Prefix(), objectives.PrefixLM(), layouts.Concatenate()),
    (DecoderConfig, Prefix(), denoising.SpanCorruption(), layouts.Concatenate()),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("family", "mask", "objective", "layout"), CASES)
def test_a_decoder_reads_what_its_mask_shows_and_nothing_else(family, mask, objective, layout, scheme):
    config = family(stack=stack(positions=scheme, pattern=(BlockSpec(),)), mask=mask)
    model = config.build(vocab=VOCAB, key=KEY)
    batch = batch_of(row(objective, layout))
    slots = batch.target.slots
    read = jax.jacobian(lambda x: model.stack(x, slots=slots, mask=mask)[0][0].sum(-1))
    reach = np.abs(np.asarray(jax.jit(read)(model.embedding(batch.target))))[:, 0].max(-1)
    visible = np.asarray((mask & Same())(slots, slots))[0]
    closure = np.linalg.matrix_power(visible.astype(int), STACK.layers) > 0  # through all layers
    assert (reach[~closure] == 0).all()
    assert (reach[visible] > 0).all()
    position, given = slots.position[0], slots.prefix[0]
    future = (position[None, :] > position[:, None]) & ~given[None, :]
    assert (reach[future] == 0).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("tied", [False, True])
def test_an_encoder_decoder_sees_its_whole_source_and_no_later_target(scheme, tied):
    config = EncoderDecoderConfig(encoder=stack(positions=scheme), decoder=stack(positions=scheme), tied=tied)
    model = config.build(vocab=VOCAB, key=KEY)
    batch = batch_of(row(objectives.PrefixLM(), layouts.Split()))
    source, target = batch.source.slots, batch.target.slots

    def read(x, y):
        hidden, _ = (model.encoder or model.decoder)(x, slots=source, mask=Full())
        read = Source(hidden, source, Full())
        return model.decoder(y, slots=target, mask=Causal(), source=read)[0][0].sum(-1)

    x, y = model.embedding(batch.source), model.embedding(batch.target)
    to_source, to_target = (
        np.abs(np.asarray(j))[:, 0].max(-1) for j in jax.jit(jax.jacobian(read, (0, 1)))(x, y)
    )
    assert (to_source > 0).all()
    assert (np.triu(to_target, 1) == 0).all()
    assert (np.diag(to_target) > 0).all()


def test_prefix_with_an_empty_prefix_is_causal_bit_for_bit():
    batch = batch_of(row(objectives.CausalLM(), layouts.Concatenate()))
    causal = DecoderConfig(stack=STACK, mask=Causal()).build(vocab=VOCAB, key=KEY)
    prefix = DecoderConfig(stack=STACK, mask=Prefix()).build(vocab=VOCAB, key=KEY)
    assert (np.asarray(causal(batch)) == np.asarray(prefix(batch))).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: type(s).__name__)
def test_packed_examples_are_computed_as_if_alone(scheme):
    config = DecoderConfig(stack=stack(positions=scheme), mask=Prefix())
    model = config.build(vocab=VOCAB, key=KEY)
    alone = [
        row(objectives.PrefixLM(), layouts.Concatenate(), seed, window) for seed, window in ((1, 12), (2, 9))
    ]
    logits = np.asarray(model(batch_of(packed(*alone))))[0]
    for one, place in zip(alone, (slice(0, 12), slice(12, 21)), strict=True):
        np.testing.assert_allclose(logits[place], np.asarray(model(batch_of(one)))[0], atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: type(s).__name__)
def test_packed_pairs_are_computed_as_if_alone(scheme):
    config = EncoderDecoderConfig(encoder=stack(positions=scheme), decoder=stack(positions=scheme))
    model = config.build(vocab=VOCAB, key=KEY)
    alone = [row(objectives.PrefixLM(), layouts.Split(), seed, window) for seed, window in ((1, 12), (2, 8))]
    logits = np.asarray(model(batch_of(packed(*alone))))[0]
    for one, place in zip(alone, (slice(0, 6), slice(6, 10)), strict=True):
        np.testing.assert_allclose(logits[place], np.asarray(model(batch_of(one)))[0], atol=1e-5)


@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_padding_changes_nothing(family):
    config, objective, layout = {
        "decoder": (DecoderConfig(stack=STACK, mask=Prefix()), objectives.PrefixLM(), layouts.Concatenate()),
        "encoder": (EncoderConfig(stack=STACK), objectives.MaskedLM(), layouts.InPlace()),
        "encoder_decoder": (
            EncoderDecoderConfig(encoder=STACK, decoder=STACK),
            objectives.PrefixLM(),
            layouts.Split(),
        ),
    }[family]
    model = config.build(vocab=VOCAB, key=KEY)
    plain = batch_of(row(objective, layout))
    padded = batch_of(row(objective, layout, pad=5))
    length = plain.labels.shape[1]
    got = np.asarray(model(padded))
    np.testing.assert_allclose(got[:, :length], np.asarray(model(plain)), atol=1e-5)
    assert np.isfinite(got).all()
    assert padded.weights[:, length:].sum() == 0


def test_a_prefix_decoder_is_its_two_passes():
    """Encode the prefix with the same stack under Full; targets attend, layer by layer, to both lines."""
    config = stack(layers=2, pattern=(BlockSpec(),))
    model = DecoderConfig(stack=config, mask=Prefix()).build(vocab=VOCAB, key=KEY)
    batch = batch_of(row(objectives.PrefixLM(), layouts.Concatenate()))
    given = int(batch.target.slots.prefix[0].sum())
    one_pass = model.apply(batch).hidden

    def part(leaf, rows):
        return leaf[:, rows]

    def cut(rows):
        slots = batch.target.slots
        return Slots(*(part(leaf, rows) for leaf in (slots.position, slots.segment, slots.prefix)))

    before, after = cut(slice(given)), cut(slice(given, None))
    x = model.embedding(batch.target)
    prefix, target = x[:, :given], x[:, given:]
    both = batch.target.slots
    rotary = positions.Rotary()
    for layer in range(config.layers):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], model.stack.blocks[0])
        inner, norm = block.attention.inner, block.attention.norm
        memory = jnp.concatenate([norm(prefix), norm(target)], 1)
        k, v = inner.keys(memory)
        q, k = rotary.query(inner.queries(norm(target)), after), rotary.key(k, both)
        target = target + inner(q, k, v, mask=Causal(), q_slots=after, k_slots=both)
        target = block.mlp.add(target, block.mlp.inner(block.mlp.input(target)), None)
        prefix, _ = block(prefix, reader=Line(before), mask=Full(), positions=rotary)
    two_passes = model.stack.norm(jnp.concatenate([prefix, target], 1))
    np.testing.assert_allclose(np.asarray(one_pass), np.asarray(two_passes), atol=1e-5)


def test_a_tied_encoder_decoder_shares_all_but_cross_attention_and_its_norm():
    def parameters(config):
        model = jax.eval_shape(lambda: config.build(vocab=VOCAB, key=KEY))
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size
            for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
        }

    decoder = parameters(DecoderConfig(stack=STACK))
    tied = parameters(EncoderDecoderConfig(encoder=STACK, decoder=STACK, tied=True))
    extra = {path for path in tied if path.replace("decoder/", "stack/") not in decoder}
    assert extra
    assert all("/cross/" in path for path in extra)
    assert sum(tied.values()) - sum(tied[path] for path in extra) == sum(decoder.values())


def test_adding_a_layer_leaves_the_initial_values_of_the_others():
    def build(layers):
        return DecoderConfig(stack=stack(layers=layers, pattern=(BlockSpec(),))).build(vocab=VOCAB, key=KEY)

    short, long = build(2), build(3)
    for a, b in zip(jax.tree.leaves(short.stack.blocks), jax.tree.leaves(long.stack.blocks), strict=True):
        assert (np.asarray(a) == np.asarray(b[:2])).all()
    assert (np.asarray(short.embedding.table[...]) == np.asarray(long.embedding.table[...])).all()


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scanned_layers_are_unrolled_layers(remat):
    config = stack(layers=5, remat=remat)
    batch = batch_of(row(objectives.PrefixLM(), layouts.Concatenate()))
    model = DecoderConfig(stack=config, mask=Prefix()).build(vocab=VOCAB, key=KEY)

    def unrolled(model):
        x, slots = model.embedding(batch.target), batch.target.slots
        for layer in range(5):
            place = layer % 2
            block = jax.tree.map(lambda leaf: leaf[layer // 2], model.stack.blocks[place])  # noqa: B023
            mask = config.pattern[place].visible(Prefix())
            x, _ = block(x, reader=Line(slots), mask=mask, positions=positions.Rotary())
        return jnp.square(model.logits(model.stack.norm(x))).mean()

    scanned = jax.jit(jax.value_and_grad(lambda model: jnp.square(model(batch)).mean()))(model)
    plain = jax.jit(jax.value_and_grad(unrolled))(model)
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


def test_a_batch_of_another_layout_is_refused_in_one_line():
    decoder = DecoderConfig(stack=STACK).build(vocab=VOCAB, key=KEY)
    pair = EncoderDecoderConfig(encoder=STACK, decoder=STACK).build(vocab=VOCAB, key=KEY)
    line = batch_of(row(objectives.PrefixLM(), layouts.Concatenate()))
    with pytest.raises(ValueError, match="layouts.Split"):
        pair(line)
    with pytest.raises(ValueError, match="layouts.Concatenate"):
        decoder(Batch(target=line.target, labels=line.labels, weights=line.weights, source=line.target))


def test_cross_attention_of_packed_pairs_does_not_compare_places_of_two_lines():
    """A window on positions across lines of unequal examples: blocks may not be skipped by place."""
    backends = [
        EncoderDecoderConfig(encoder=line, decoder=line, cross_mask=SymmetricWindow(8)).build(
            vocab=VOCAB, key=KEY
        )
        for line in (stack(pattern=(BlockSpec(),), backend=name) for name in ("dense", "blockwise"))
    ]

    def packed(length):
        position = np.tile(np.arange(length, dtype=np.int32), 4)[None]
        segment = np.repeat(np.arange(1, 5, dtype=np.int32), length)[None]
        return Tokens(position % VOCAB, Slots(position, segment, position < 0, start=0))

    target = packed(10)
    batch = Batch(target, target.ids, np.ones(target.ids.shape, np.float32), packed(100))
    dense, blockwise = (jax.jit(lambda m, b: m(b))(model, batch) for model in backends)
    np.testing.assert_allclose(dense, blockwise, atol=1e-4)


def test_t5_buckets_look_ahead_where_any_mask_of_the_stack_does():
    ahead = stack(positions=positions.T5Bias(), pattern=(BlockSpec(), BlockSpec(mask=Full())))
    tied = EncoderDecoderConfig(encoder=ahead, decoder=ahead, tied=True)
    plain = dataclasses.replace(ahead, pattern=(BlockSpec(),))
    for config, bidirectional in (
        (DecoderConfig(stack=ahead), True),
        (DecoderConfig(stack=plain), False),
        (dataclasses.replace(tied, encoder=plain, decoder=plain), True),
    ):
        model = config.build(vocab=VOCAB, key=KEY)
        built = getattr(model, "stack", None) or model.decoder
        assert built.positions[0].bias.bidirectional == bidirectional
