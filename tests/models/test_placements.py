"""Where norms, biases and scales of a block are: every option of `StackConfig` against its formula."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.attention import positions
from research.attention.masks import Causal, Prefix, Slots, Window
from research.attention.memory import Line, Whole
from research.attention.recurrence import Recurrent
from research.batch import Batch, Tokens
from research.models.config import BIASED, BlockSpec, EmbeddingConfig, StackConfig
from research.models.families import DecoderConfig, EncoderDecoderConfig
from research.models.paths import path_of

VOCAB, WIDTH, ROWS, LENGTH = 23, 16, 2, 14
STACK = StackConfig(layers=2, width=WIDTH, heads=4, kv_heads=2, hidden=24)
KEY = jax.random.key(0)


def stack(**changes):
    return dataclasses.replace(STACK, **changes)


def varied(model):
    """The model with biases and norms that are no zeros and ones, and layers that differ."""
    return jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape)), model)


def build(mask=None, **changes):
    return varied(DecoderConfig(stack=stack(**changes), mask=mask or Causal()).build(vocab=VOCAB, key=KEY))


def line(prefix=0, coords=None):
    ids = np.random.default_rng(0).integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)
    slots = Slots.arange(LENGTH, (ROWS,))
    return Tokens(ids, dataclasses.replace(slots, prefix=slots.position < prefix, coords=coords))


def batch(tokens=None):
    tokens = tokens or line()
    return Batch(tokens, tokens.ids, np.ones(tokens.ids.shape, np.float32))


def layers(model):
    """Each layer's block, whatever the pattern."""
    period = len(model.stack.blocks)
    for i in range(model.config.stack.layers):
        yield jax.tree.map(lambda leaf, i=i: leaf[i // period], model.stack.blocks[i % period])


def attended(model, block, x, slots):
    """What a block's attention makes of what it reads."""
    inner = block.attention.inner
    scheme = model.stack.positions[0].with_layer(block.positions)
    k, v = inner.keys(x)
    q, k = scheme.query(inner.queries(x), slots), scheme.key(k, slots)
    return inner(q, k, v, mask=model.config.mask, q_slots=slots, k_slots=slots, bias=scheme.bias)


FORMULAS = {
    "pre": lambda x, f, part, r: x + f(part.norm(x)),
    "post": lambda x, f, part, r: part.norm(r * x + f(x)),
    "sandwich": lambda x, f, part, r: x + part.after(f(part.norm(x))),
    "inner": lambda x, f, part, r: r * part.norm(x) + f(part.norm(x)),
}


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("input_norm", [False, True])
@pytest.mark.parametrize(
    ("placement", "residual"), [("pre", 1.0), ("post", 1.0), ("post", 1.7), ("sandwich", 1.0), ("inner", 2.0)]
)
def test_a_placement_is_its_formula(placement, residual, input_norm, norm):
    model = build(placement=placement, residual=residual, input_norm=input_norm, norm=norm)
    slots, formula = line().slots, FORMULAS[placement]
    x = model.embedding(line())
    x = model.stack.input_norm(x) if input_norm else x
    for block in layers(model):
        x = formula(x, lambda h, block=block: attended(model, block, h, slots), block.attention, residual)
        x = formula(x, block.mlp.inner, block.mlp, residual)
    expected = x if placement == "post" else model.stack.norm(x)
    np.testing.assert_allclose(jax.jit(lambda m: m.apply(batch()).hidden)(model), expected, atol=2e-5)


def test_the_input_is_normalised_with_its_positions():
    model = build(input_norm=True, positions=positions.Learned(length=LENGTH), layers=1, placement="post")
    x = model.stack.positions[0].embed(model.embedding(line()), line().slots)
    plain = build(positions=positions.NoPosition(), layers=1, placement="post")
    plain.stack.blocks = model.stack.blocks
    expected, _ = plain.stack(model.stack.input_norm(x), slots=line().slots, mask=Causal())
    np.testing.assert_allclose(model.apply(batch()).hidden, expected, atol=1e-5)


def test_cross_attention_has_the_placement_too():
    own = stack(placement="inner", residual=2.0)
    config = EncoderDecoderConfig(encoder=own, decoder=own)
    model = varied(config.build(vocab=VOCAB, key=KEY))
    block = jax.tree.map(lambda leaf: leaf[0], model.decoder.blocks[0])
    x, out = model.embedding(line()), jnp.ones((ROWS, LENGTH, WIDTH))
    np.testing.assert_allclose(block.cross.add(x, out, None), 2 * block.cross.norm(x) + out, rtol=1e-5)


def paths(model):
    return {
        path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model)))
    }


OF_PARTS = {
    "qkv": ("attention/inner/query", "attention/inner/key", "attention/inner/value"),
    "output": ("attention/inner/output",),
    "mlp": ("mlp/inner/up", "mlp/inner/gate", "mlp/inner/down"),
}


@pytest.mark.parametrize("parts", [(), ("qkv",), ("output",), ("mlp",), ("qkv", "mlp"), BIASED], ids=str)
def test_biases_are_in_the_named_parts_and_nowhere_else(parts):
    model = DecoderConfig(stack=stack(use_bias=parts)).build(vocab=VOCAB, key=KEY)
    found = {path for path in paths(model) if path.endswith("/bias")}
    assert found == {f"stack/blocks/0/{name}/bias" for part in parts for name in OF_PARTS[part]}
    every = DecoderConfig(stack=stack(use_bias=True)).build(vocab=VOCAB, key=KEY)
    assert (paths(every) == paths(model)) == (parts == BIASED)


def test_each_of_the_biases_counts():
    model = build(use_bias=True)
    gradient = jax.jit(jax.grad(lambda m: jnp.sin(m(batch())).sum()))(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(gradient))):
        assert np.abs(leaf).max() > 1e-4, path_of(path)


@pytest.mark.parametrize("scale", [1.0, 0.1, None])
def test_scores_are_multiplied_by_the_scale(scale):
    """As if queries were so much longer."""
    model = build(scale=scale, positions=positions.NoPosition())
    plain = build(scale=1.0, positions=positions.NoPosition())
    factor = (WIDTH // 4) ** -0.5 if scale is None else scale
    kernel = plain.stack.blocks[0].attention.inner.query.kernel
    kernel[...] = kernel[...] * factor
    np.testing.assert_allclose(model(batch()), plain(batch()), atol=2e-5)


EXACT = {"gelu": 0.841192, "gelu_exact": 0.841345, "relu": 1.0, "silu": 0.731059}


@pytest.mark.parametrize("activation", EXACT)
def test_activations_are_those_of_their_names(activation):
    """Values at 1: x Phi(x), its approximation by tanh (Hendrycks and Gimpel 2016), max(x, 0), x sigmoid(x)."""
    gated = {"gelu": "geglu", "relu": "reglu", "silu": "swiglu"}.get(activation)
    for name in (activation, gated):
        if name is None:
            continue
        model = DecoderConfig(stack=stack(activation=name, layers=1)).build(vocab=VOCAB, key=KEY)
        mlp = jax.tree.map(lambda leaf: leaf[0], model.stack.blocks[0]).mlp.inner
        x = jnp.zeros(WIDTH).at[0].set(1.0)
        for part in (mlp.up, mlp.gate, mlp.down):
            if part is not None:
                part.kernel[...] = jnp.eye(*part.kernel.shape)
        np.testing.assert_allclose(mlp(x)[0], EXACT[activation], atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"residual": 2.0}, r"StackConfig\.residual = 2\.0: placement 'pre' does not read it"),
        ({"residual": 2.0, "placement": "sandwich"}, "placement 'sandwich' does not read it"),
        ({"use_bias": ("query",)}, r"StackConfig\.use_bias = \('query',\)"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_in_one_line(wrong, said):
    with pytest.raises(ValueError, match=said) as caught:
        stack(**wrong)
    assert "\n" not in str(caught.value)


# Positions.

CORRUPTED = np.stack([np.minimum(np.arange(LENGTH), 8), np.maximum(np.arange(LENGTH) - 8, 0)], -1)
CORRUPTED = np.broadcast_to(CORRUPTED, (ROWS, LENGTH, 2)).astype(np.int32)


def test_learned_axes_add_a_row_for_each_component():
    scheme = positions.Learned(length=9, scale=0.5, axes=(0, 1))
    model = build(positions=scheme)
    table = model.stack.positions[0].table[...]
    assert table.shape == (2, 9, WIDTH)
    x = jnp.zeros((ROWS, LENGTH, WIDTH))
    slots = line(coords=CORRUPTED).slots
    expected = 0.5 * (table[0][CORRUPTED[..., 0]] + table[1][CORRUPTED[..., 1]])
    np.testing.assert_allclose(model.stack.positions[0].embed(x, slots), expected, rtol=1e-6)
    swapped = dataclasses.replace(slots, coords=CORRUPTED[..., ::-1])
    assert np.abs(model.stack.positions[0].embed(x, swapped) - expected).max() > 0.01
    with pytest.raises(ValueError, match=r"Learned\.axes = \(0, 1\): the slots' coords have 1 component"):
        model(batch())


def test_learned_positions_past_their_table_are_nan_on_every_axis():
    scheme = positions.Learned(length=6, axes=(0, 1)).build(
        width=WIDTH, heads=4, head_dim=4, causal=True, key=KEY
    )
    for coords in ([6, 0], [0, 6], [-1, 0], [0, -1]):
        slots = dataclasses.replace(Slots.arange(1, (1,)), coords=np.array([[coords]], np.int32))
        assert np.isnan(scheme.embed(jnp.zeros((1, 1, WIDTH)), slots)).all()


RELATIVE = ("nothing", "projection", "everything")
OWN = {"nothing": set(), "projection": {"projection"}, "everything": {"content", "position", "projection"}}


@pytest.mark.parametrize("own", RELATIVE)
def test_layers_have_of_relative_positions_what_is_theirs(own):
    model = DecoderConfig(stack=stack(positions=positions.Relative(layers=own))).build(vocab=VOCAB, key=KEY)
    prefixes = ("stack/blocks/0/positions/", "stack/positions/0/")
    found = [{p.removeprefix(prefix) for p in paths(model) if p.startswith(prefix)} for prefix in prefixes]
    assert found == [OWN[own], OWN["everything"] - OWN[own]]
    if own != "nothing":
        first, second = model.stack.blocks[0].positions.projection[...]
        assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize(
    ("own", "period"),
    [
        ("everything", 2),
        *(
            pytest.param(own, period, marks=pytest.mark.slow)
            for own, period in (("everything", 1), ("everything", 3), ("projection", 1), ("projection", 2))
        ),
    ],
)
def test_scanned_layers_with_positions_of_their_own_are_unrolled_layers(own, period):
    config = stack(positions=positions.Relative(layers=own), layers=3, pattern=(BlockSpec(),) * period)
    model = varied(DecoderConfig(stack=config).build(vocab=VOCAB, key=KEY))

    def unrolled(model):
        x, slots = model.embedding(line()), line().slots
        for block in layers(model):
            x, _ = block(x, reader=Line(slots), mask=Causal(), positions=model.stack.positions[0])
        return jnp.square(model.logits(model.stack.norm(x))).mean()

    scanned = jax.jit(jax.value_and_grad(lambda model: jnp.square(model(batch())).mean()))(model)
    plain = jax.jit(jax.value_and_grad(unrolled))(model)
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(scanned[1]))


def test_blocks_of_a_pattern_with_a_scheme_of_their_own_have_its_parts():
    pattern = (BlockSpec(), BlockSpec(positions=positions.Relative(layers="everything")))
    model = DecoderConfig(stack=stack(pattern=pattern)).build(vocab=VOCAB, key=KEY)
    found = {path for path in paths(model) if "positions" in path}
    assert found == {f"stack/blocks/1/positions/{name}" for name in OWN["everything"]}


# Reading token by token: everything above, and what the memory must know of.

OPTIONS = {
    "inner": {"placement": "inner", "residual": 2.0, "norm": "layer", "use_bias": True},
    "sandwich": {"placement": "sandwich", "scale": 0.3},
    "post": {"placement": "post", "residual": 1.5, "input_norm": True, "use_bias": ("qkv", "mlp")},
    "learned": {"positions": positions.Learned(length=LENGTH, scale=1.0, axes=(0, 1))},
    "rotary": {"positions": positions.Rotary(axes=(0, 1))},
    "projection": {"positions": positions.Relative(layers="projection"), "activation": "gelu_exact"},
    "everything": {"positions": positions.Relative(layers="everything"), "activation": "reglu"},
}


def pieces(model, tokens, cuts, cache):
    """Logits of a prefill up to the first cut and an extension up to each of the others."""

    def part(start, stop):
        cut = lambda leaf: None if leaf is None else leaf[:, start:stop]  # noqa: E731
        slots = tokens.slots
        own = Slots(*map(cut, (slots.position, slots.segment, slots.prefix, slots.coords)), start=0)
        return Tokens(cut(tokens.ids), own)

    out, held = model.prefill(part(0, cuts[0]), cache=cache)
    found = [out]
    for start, stop in zip(cuts, cuts[1:], strict=False):
        out, held = model.extend(held, part(start, stop))
        found.append(out)
    return jnp.concatenate(found, 1)


CUTS = (9, 10, LENGTH)


@pytest.mark.parametrize("name", OPTIONS)
def test_reading_in_pieces_is_reading_at_once(name):
    coords = CORRUPTED if name in ("learned", "rotary") else None
    model, tokens = build(Prefix(), **OPTIONS[name]), line(prefix=9, coords=coords)
    for one in (model, model.unstacked()):
        got = jax.jit(lambda m: pieces(m, tokens, CUTS, Whole(capacity=LENGTH)))(one)
        np.testing.assert_allclose(got, model(batch(tokens)), atol=5e-5)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("learned", "rotary")])
def test_a_memory_holds_what_every_option_reads(name):
    model = build(Window(5), memory=Recurrent(length=4), **OPTIONS[name])
    plain = build(Window(5), **OPTIONS[name])
    got = jax.jit(lambda m: pieces(m, line(), CUTS, None))(model)
    np.testing.assert_allclose(got, plain(batch()), atol=5e-5)


def test_an_adaptive_softmax_over_a_memory():
    """All of Transformer-XL at once."""
    relative = {"positions": positions.Relative(layers="everything"), "placement": "post", "norm": "layer"}
    embedding = EmbeddingConfig(cutoffs=(5, 12), shrink=2, head_projection=True)
    both = [
        varied(
            DecoderConfig(stack=stack(memory=memory, **relative), mask=Window(5), embedding=embedding).build(
                vocab=VOCAB, key=KEY
            )
        )
        for memory in (Recurrent(length=4), None)
    ]
    got = jax.jit(lambda m: pieces(m, line(), CUTS, None))(both[0])
    np.testing.assert_allclose(got, both[1](batch()), atol=5e-5)
