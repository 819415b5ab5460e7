"""The step: accumulation, hyperparameters as data, auxiliary losses, averaging, precision, memory."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.attention.masks import Causal, Prefix, Slots, Window
from research.attention.recurrence import Convolution, Recurrent
from research.batch import Batch, Tokens
from research.models.config import StackConfig
from research.models.families import DecoderConfig, EncoderDecoderConfig
from research.models.paths import named
from research.training import hyperparameters, losses, optimizers
from research.training.precision import LossScale
from research.training.step import Recipe, Trainer

VOCAB, ROWS, LENGTH = 40, 4, 6
STACK = StackConfig(layers=2, width=16, heads=2)
CAUSAL = DecoderConfig(stack=STACK)
SLOW = pytest.mark.slow
RATE = 2.0**12  # so large that the parameters do not round what a step takes from them


def stack(**changes):
    return dataclasses.replace(STACK, **changes)


def line(rows, length, seed, start=0):
    ids = np.random.default_rng(seed).integers(0, VOCAB, (rows, length)).astype(np.int32)
    return Tokens(ids, Slots.arange(length, (rows,), start=start))


def batch(seed=0, *, rows=ROWS, source=None, start=0):
    """Rows of very unequal weight."""
    weights = np.random.default_rng(seed + 1).uniform(size=(rows, LENGTH)).astype(np.float32)
    weights[rows // 2 :, 2:] = 0
    labels = line(rows, LENGTH, seed + 2).ids
    return Batch(line(rows, LENGTH, seed, start), labels, weights, source and line(rows, source, seed + 3))


def trainer(config=CAUSAL, optimizer=None, **recipe):
    optimizer = optimizer or optimizers.SGD(
        learning_rate=RATE, clip=None, momentum=None, schedule=optimizers.Constant()
    )
    return Trainer(config, vocab=VOCAB, optimizer=optimizer, steps=10, recipe=Recipe(**recipe))


def close(a, b, rtol=1e-6):
    """Equal to `rtol` of each leaf's largest entry."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * max(np.abs(np.asarray(y)).max(), 1e-12))


def test_parameters_that_are_not_given_are_drawn_as_if_none_were():
    functions = trainer()
    drawn, other = (functions.initial(jax.random.key(seed)).params for seed in (0, 1))
    given = {"stack": other["stack"]}
    found = functions.initial(jax.random.key(0), params=given).params
    assert jax.tree.structure(found) == jax.tree.structure(drawn)
    for path, leaf in named(found).items():
        np.testing.assert_array_equal(leaf, named(other if path.startswith("stack/") else drawn)[path])
    with pytest.raises(ValueError, match="params has head/kernel: expected only what the model has"):
        functions.initial(jax.random.key(0), params={"head": {"kernel": jnp.zeros((16, 2))}})


def gradient(functions, one):
    """What a step of plain gradient descent takes from the parameters."""
    state = functions.initial(jax.random.key(0), rows=len(one.labels))
    before = jax.tree.map(np.array, state.params)
    after, metrics = functions.step(state, one)
    return jax.tree.map(lambda a, b: (a - np.asarray(b)) / RATE, before, after.params), metrics, after


DROPPING = stack(dropout=0.3, attention_dropout=0.3)


@pytest.mark.parametrize(
    ("config", "source"),
    [
        (DecoderConfig(stack=DROPPING), None),
        pytest.param(DecoderConfig(stack=DROPPING, mask=Prefix()), None, marks=SLOW),
        pytest.param(EncoderDecoderConfig(encoder=DROPPING, decoder=DROPPING), 5, marks=SLOW),
    ],
    ids=["causal", "prefix", "encoder-decoder"],
)
@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=SLOW)])
def test_accumulation_has_the_gradient_of_the_large_batch_with_dropout_and_unequal_weights(
    config, source, parts
):
    one = batch(source=source)
    whole, said, _ = gradient(trainer(config), one)
    cut, also_said, _ = gradient(trainer(config, accumulate=parts), one)
    close(cut, whole, 2e-6)
    np.testing.assert_allclose(also_said["loss"], said["loss"], rtol=1e-6)
    assert also_said["weight"] == said["weight"]


@pytest.mark.slow
def test_a_mean_of_means_is_another_gradient():
    """What the test above would miss if rows had equal weight."""
    one = batch()
    whole, _, _ = gradient(trainer(), one)
    halves = [jax.tree.map(lambda leaf, i=i: leaf[i::2], one) for i in range(2)]
    parts = [gradient(trainer(), half)[0] for half in halves]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
    with pytest.raises(AssertionError):
        close(mean, whole, 1e-2)


def test_accumulation_that_does_not_divide_the_rows_is_one_line():
    with pytest.raises(ValueError, match=r"Recipe.accumulate = 3: expected a divisor of a batch's 4 rows"):
        gradient(trainer(accumulate=3), batch())


def test_a_memory_goes_on_from_step_to_step_and_is_split_by_rows():
    """Two segments of a stream, under a window that sees into the one before, equal one line of both."""
    memory = stack(memory=Recurrent(length=LENGTH))
    config = DecoderConfig(stack=memory, mask=Window(4))
    rows = line(ROWS, 2 * LENGTH, 0)
    labels = line(ROWS, 2 * LENGTH, 5).ids
    weights = np.ones((ROWS, 2 * LENGTH), np.float32)
    halves = []
    for part in (slice(LENGTH), slice(LENGTH, None)):
        slots = jax.tree.map(lambda leaf, part=part: leaf[:, part], rows.slots)
        halves.append(Batch(Tokens(rows.ids[:, part], slots), labels[:, part], weights[:, part]))
    still = optimizers.SGD(learning_rate=1e-30, clip=None, momentum=None)
    for parts in (1, 2):
        functions = trainer(config, still, accumulate=parts)
        state, found = functions.initial(jax.random.key(0), rows=ROWS), []
        for half in halves:
            state, metrics = functions.step(state, half)
            found.append(float(metrics["loss"]))
        plain = trainer(DecoderConfig(stack=STACK, mask=Window(4)), still)
        params = plain.initial(jax.random.key(0)).params
        total, weight = plain.loss(params, Batch(rows, labels, weights))
        np.testing.assert_allclose(np.mean(found), total / weight, rtol=1e-5)
    np.testing.assert_allclose(functions.evaluate(params, halves), total / weight, rtol=1e-5)
    # Without the memory, the second segment would start from nothing.
    alone, weight = functions.loss(params, halves[1])
    assert abs(float(alone / weight) - found[1]) > 1e-4


@SLOW
def test_a_compression_learns_by_reconstruction():
    memory = Recurrent(length=LENGTH, compression=Convolution(length=4, rate=3))
    config = DecoderConfig(stack=stack(memory=memory), mask=Causal())
    functions = trainer(config, optimizers.AdamW(learning_rate=1e-2))
    state, seen = functions.initial(jax.random.key(0), rows=ROWS), []
    for step in range(12):
        state, metrics = functions.step(state, batch(start=step * LENGTH))
        seen.append(float(metrics["compression_loss"]))
    assert seen[0] == 0  # nothing has left the memory yet
    assert 0 < seen[-1] < 0.7 * max(seen)


def test_an_encoder_with_a_memory_is_refused():
    config = EncoderDecoderConfig(encoder=stack(memory=Recurrent(length=4)), decoder=STACK)
    with pytest.raises(ValueError, match="in an encoder, which reads its source at once"):
        trainer(config)


def test_runs_that_differ_in_numbers_share_one_program_and_differ_as_they_should():
    one = batch()
    forms = {hyperparameters.form(optimizers.AdamW(learning_rate=rate)) for rate in (1e-3, 1e-2)}
    assert len(forms) == 1
    assert pickle.loads(pickle.dumps(forms)) == forms
    shared = Trainer(CAUSAL, vocab=VOCAB, optimizer=forms.pop(), steps=10)
    for rate, decay in ((1e-3, 0.0), (1e-2, 0.5)):
        own = optimizers.AdamW(learning_rate=rate, weight_decay=decay)
        state = shared.initial(
            jax.random.key(0), hyperparameters.numbers(own) | hyperparameters.numbers(Recipe())
        )
        alone = Trainer(CAUSAL, vocab=VOCAB, optimizer=own, steps=10)
        other = alone.initial(jax.random.key(0))
        for _ in range(3):
            state, metrics = shared.step(state, one)
            other, _ = alone.step(other, one)
        close(state.params, other.params)
        assert 0 < float(metrics["learning_rate"]) <= rate * (1 + 1e-6)
    blank, metrics = shared.step(shared.initial(jax.random.key(0)), one)
    assert np.isnan(
        jax.tree.leaves(blank.params)[0]
    ).any()  # numbers that were forgotten are not taken for zero


@SLOW
def test_a_program_is_compiled_once_for_a_grid_of_rates_and_seeds():
    shared = Trainer(CAUSAL, vocab=VOCAB, optimizer=optimizers.Lion(), steps=10)
    before = Trainer.step._cache_size()
    for seed, rate in ((0, 1e-3), (1, 1e-4), (2, 1e-5)):
        shared.step(
            shared.initial(jax.random.key(seed), shared.numbers | {"learning_rate": rate}), batch(seed)
        )
    assert Trainer.step._cache_size() == before + 1


def test_a_number_of_none_stays_a_choice_of_program():
    clipped, free = optimizers.SGD(clip=1.0), optimizers.SGD(clip=None)
    assert "clip" in hyperparameters.numbers(clipped)
    assert "clip" not in hyperparameters.numbers(free)
    assert hyperparameters.form(clipped) != hyperparameters.form(free)
    assert hyperparameters.filled(hyperparameters.form(clipped), hyperparameters.numbers(clipped)) == clipped


@pytest.mark.parametrize("chunk", [VOCAB, 9 * VOCAB, 2**22])
def test_the_gradient_of_the_loss_is_the_plain_one_whatever_the_chunk(monkeypatch, chunk):
    monkeypatch.setitem(losses.LOGITS, "cpu", chunk)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
    table = jnp.asarray(rng.normal(size=(VOCAB, 8)), jnp.float32)
    labels, weights = (
        rng.integers(0, VOCAB, (2, 5)).astype(np.int32),
        jnp.asarray(rng.uniform(size=(2, 5)), jnp.float32),
    )

    def chunked(table, hidden, weights, z):
        logits = lambda table, states: states @ table.T  # noqa: E731
        total, _ = losses.token_loss(logits, table, hidden, labels, weights, vocab=VOCAB, z_loss=z)
        return 3.0 * total  # a cotangent that is not one

    def plain(table, hidden, weights, z):
        scores = hidden @ table.T
        each = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        return 3.0 * jnp.sum((each + z * jax.nn.logsumexp(scores, axis=-1) ** 2) * weights)

    args = (table, hidden, weights, jnp.float32(0.1))
    found, expected = (jax.value_and_grad(f, (0, 1, 2, 3))(*args) for f in (chunked, plain))
    close(found, expected, 1e-5)


def test_no_array_of_all_logits_exists_in_the_step():
    vocab, rows, length = 5000, 8, 250
    functions = Trainer(CAUSAL, vocab=vocab, optimizer=optimizers.SGD(), steps=10)
    tokens = Tokens(np.zeros((rows, length), np.int32), Slots.arange(length, (rows,)))
    one = Batch(tokens, np.zeros((rows, length), np.int32), np.ones((rows, length), np.float32))
    state = jax.eval_shape(functions.initial, jax.random.key(0))
    text = str(jax.make_jaxpr(functions.update)(state, one))
    sizes = {
        int(np.prod([int(n) for n in shape.split(",")]))
        for shape in __import__("re").findall(r"f32\[([\d,]+)\]", text)
    }
    assert max(sizes) < rows * length * vocab


@SLOW
def test_z_loss_pulls_the_normaliser_to_one():
    one = batch()
    for weight, expected in ((None, False), (1.0, True)):
        functions = trainer(optimizer=optimizers.AdamW(learning_rate=1e-2, weight_decay=0.0), z_loss=weight)
        state = functions.initial(jax.random.key(1))

        def spread(state, functions=functions):
            logits = functions.model(state.params)(one)
            return float((jax.nn.logsumexp(logits, axis=-1) ** 2).mean())

        before = spread(state)
        for _ in range(10):
            state, _ = functions.step(state, one)
        assert (spread(state) < 0.6 * before) == expected


def test_the_average_trails_the_parameters_and_is_what_is_evaluated():
    functions = trainer(optimizer=optimizers.AdamW(learning_rate=1e-2), average=0.9)
    state, path = functions.initial(jax.random.key(0)), []
    expected = jax.tree.map(np.array, state.params)
    for step in range(5):
        state, _ = functions.step(state, batch(step))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p), expected, state.params)
        path.append(float(optax.tree.norm(optax.tree.sub(state.average, state.params))))
    close(state.average, expected)
    assert state.evaluated is state.average
    assert path[-1] > 0


def test_float16_is_scaled_and_a_step_that_overflows_is_left_out():
    half = DecoderConfig(stack=stack(dtype="float16"))
    with pytest.raises(ValueError, match="loses small gradients; set Recipe.loss_scale"):
        trainer(half)
    functions = trainer(half, loss_scale=LossScale(initial=2.0**40, growth=3))
    state = functions.initial(jax.random.key(0))
    before = jax.tree.map(np.array, state.params)
    state, metrics = functions.step(state, batch())
    assert np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["grad_norm"])
    close(state.params, before, 0)
    assert (int(state.step), float(state.scale.value)) == (1, 2.0**39)

    still = optimizers.SGD(learning_rate=1e-6)
    functions = trainer(half, still, loss_scale=LossScale(initial=256.0, growth=3))
    state, scales = functions.initial(jax.random.key(0)), []
    for _ in range(6):
        state, metrics = functions.step(state, batch())
        scales.append(float(metrics["loss_scale"]))
        assert np.isfinite(metrics["grad_norm"])
    assert scales == [256.0, 256.0, 256.0, 512.0, 512.0, 512.0]
    wide, _, _ = gradient(trainer(), batch())
    narrow, _, _ = gradient(trainer(half, loss_scale=LossScale(initial=256.0)), batch())
    close(narrow, wide, 0.05)


@pytest.mark.parametrize("remat", ["dots", pytest.param("full", marks=SLOW)])
def test_bfloat16_keeps_float32_masters_moments_and_loss_and_remat_changes_nothing(remat):
    config = DecoderConfig(stack=stack(dtype="bfloat16"))
    functions = trainer(config, optimizers.AdamW())
    state, metrics = functions.step(functions.initial(jax.random.key(0)), batch())
    floats = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in [*floats, metrics["loss"]]} == {jnp.dtype("float32")}
    narrow, _, _ = gradient(trainer(config), batch())
    again, _, _ = gradient(trainer(DecoderConfig(stack=stack(dtype="bfloat16", remat=remat))), batch())
    wide, _, _ = gradient(trainer(), batch())
    close(again, narrow, 1e-2)
    close(narrow, wide, 0.1)
