"""Remedies against forgetting: Fisher information, penalties and what they hold a run to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_words import Words
from test_step import CAUSAL, STACK, VOCAB, batch

from research.attention.recurrence import Recurrent
from research.data.layouts import Concatenate, Split
from research.data.objectives import CausalLM, PrefixLM
from research.data.pipeline import Data, Dataset
from research.models.families import EncoderDecoderConfig
from research.models.paths import named
from research.training import hyperparameters
from research.training.adapters import LoRA
from research.training.ensemble import Ensemble
from research.training.optimizers import SGD, AdamW
from research.training.remedies import EWC, L2SP, SI, Base, Decay, LwF, Remedy, Step, fisher
from research.training.schedules import Constant
from research.training.step import Recipe, Trainer

EARLIER = EWC(strength=1.0, corpus=Words(seed=1), examples=20)


def near(one, other, **options):
    assert named(one).keys() == named(other).keys()
    for path, leaf in named(one).items():
        np.testing.assert_allclose(leaf, named(other)[path], err_msg=path, **options)


def same(one, other):
    near(one, other, rtol=0, atol=0)


# The Fisher information


def linear(seed=0, n=400, d=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * [1.0, 2.0, 0.5]
    return x, jnp.asarray(rng.normal(size=d), jnp.float32), rng


def pieces(x, y, shares=None, size=64):
    """Batches of examples, the last smaller than the others."""
    shares = np.ones(len(x)) if shares is None else shares
    for first in range(0, len(x), size):
        part = slice(first, first + size)
        yield (
            (jnp.asarray(x[part], jnp.float32), jnp.asarray(y[part], jnp.float32)),
            jnp.asarray(shares[part], jnp.float32),
        )


def test_the_fisher_information_of_a_linear_gaussian_model_is_the_closed_form():
    x, w, rng = linear()
    sigma = 0.7

    def log_likelihood(params, example):
        given, y = example
        return -((y - given @ params["w"]) ** 2) / (2 * sigma**2)

    y = rng.normal(size=len(x)) * 3.0
    residual = y - x @ np.asarray(w)
    found = fisher(log_likelihood, {"w": w}, pieces(x, y))["w"]
    np.testing.assert_allclose(found, np.mean((residual[:, None] * x) ** 2, 0) / sigma**4, rtol=1e-4)
    averaged = np.mean(residual[:, None] * x, 0) ** 2 / sigma**4  # squared last, as is often seen
    assert np.all(found > 5 * averaged)

    # Labels of the model itself: X^T X / (n sigma^2), up to the noise of the draws.
    draws = 400
    y = x @ np.asarray(w) + sigma * rng.normal(size=(draws, len(x)))
    drawn = fisher(log_likelihood, {"w": w}, (each for row in y for each in pieces(x, row, size=400)))["w"]
    np.testing.assert_allclose(drawn, np.mean(x**2, 0) / sigma**2, rtol=0.03)


def test_the_fisher_information_of_a_logistic_model_is_the_closed_form():
    x, w, _ = linear()
    p = 1 / (1 + np.exp(-x @ np.asarray(w)))

    def log_likelihood(params, example):
        given, y = example
        return jax.nn.log_sigmoid(jnp.where(y > 0, 1, -1) * (given @ params["w"]))

    both = [
        each for label, shares in ((1, p), (0, 1 - p)) for each in pieces(x, np.full(len(x), label), shares)
    ]
    found = fisher(log_likelihood, {"w": w}, both)["w"]
    np.testing.assert_allclose(found, np.mean((p * (1 - p))[:, None] * x**2, 0), rtol=1e-4)


def test_no_example_has_no_fisher_information():
    with pytest.raises(ValueError, match="no example has a weight"):
        fisher(lambda params, _: params, jnp.float32(1), [])


def trainer(config=CAUSAL, *, vocab=VOCAB, steps=30, remedies=(), rate=1e-2, **recipe):
    optimizer = AdamW(learning_rate=rate, weight_decay=0.0)
    return Trainer(
        config, vocab=vocab, optimizer=optimizer, steps=steps, recipe=Recipe(remedies=remedies, **recipe)
    )


def text(objective=None, layout=None, **changes):
    objective = objective or CausalLM()
    data = Data(corpus=Words(), objective=objective, layout=layout or Concatenate(), window=8, batch=8)
    return dataclasses.replace(data, **changes).load()


def prepared(remedy, config=CAUSAL, words=None, seed=3):
    """The trainer, the state that a run with the remedy begins with, and its text."""
    words = words or text()
    functions = trainer(config, vocab=words.tokenizer.vocab_size, remedies=(remedy,))
    state = functions.initial(jax.random.key(seed))
    return functions, functions.prepared(state, words, seed), words


def first(words, count, seed=3):
    """The first so many training rows of a corpus."""
    batches = words.training(seed)
    rows = [next(batches) for _ in range(-(-count // words.data.batch))]
    batches.close()
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *rows)


@pytest.mark.parametrize(
    ("config", "layout"),
    [(CAUSAL, Concatenate()), (EncoderDecoderConfig(encoder=STACK, decoder=STACK), Split())],
)
def test_the_importance_is_the_mean_of_squares_over_the_first_rows_of_the_earlier_text(config, layout):
    words = text(PrefixLM(), layout)
    functions, state, _ = prepared(dataclasses.replace(EARLIER, normalise="none"), config, words)
    rows = first(words.of(Words(seed=1)), EARLIER.examples)
    gradient = jax.jit(jax.grad(lambda params, row: functions.loss(params, row)[0]))
    each = [
        gradient(state.params, jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], rows))
        for row in range(EARLIER.examples)
    ]
    expected = jax.tree.map(lambda *leaves: np.mean(np.square(np.stack(leaves)), 0), *each)
    near(state.kept[0]["importance"], expected, rtol=2e-3, atol=1e-4)
    same(state.kept[0]["params"], state.params)

    _, scaled, _ = prepared(EARLIER, config, words)
    leaves = jax.tree.leaves(scaled.kept[0]["importance"])
    assert sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves) == pytest.approx(
        1, rel=1e-4
    )


def test_drawn_labels_come_to_the_expectation_over_all_labels():
    """Of one target in each row, where that can be taken label by label."""

    def last(words, config):
        remedy = dataclasses.replace(EARLIER, normalise="none", examples=8, **config)
        functions, state, _ = prepared(remedy, words=words)
        return state.kept[0]["importance"]

    words = text(CausalLM(), window=4)
    one_target = rows_of(words)
    exact, drawn = (
        last(one_target, config) for config in ({"labels": "exact"}, {"labels": "sampled", "draws": 400})
    )
    near(drawn, exact, rtol=0.6, atol=2e-2 * max(float(leaf.max()) for leaf in jax.tree.leaves(exact)))
    for path, leaf in named(exact).items():
        assert float(jnp.sum(named(drawn)[path])) == pytest.approx(float(jnp.sum(leaf)), rel=0.15), path
    again = last(one_target, {"labels": "sampled", "draws": 400})
    same(drawn, again)


class Rows(Dataset):
    """A text whose rows have their first target only."""

    def of(self, corpus, objective):
        return rows_of(super().of(corpus, objective))

    def training(self, seed):
        for each in super().training(seed):
            weights = np.array(each.weights)
            weights[:, 1:] = 0
            yield dataclasses.replace(each, weights=weights)


def rows_of(words):
    return Rows(*(getattr(words, field.name) for field in dataclasses.fields(words)))


def test_the_expectation_over_all_labels_is_refused_where_rows_have_several_targets():
    with pytest.raises(ValueError, match="EWC.labels = 'exact' of examples with 8 targets"):
        prepared(dataclasses.replace(EARLIER, labels="exact"))


# Penalties


def drawn_kept(remedy, params, seed=5):
    """Other values than training begins with in what a remedy keeps."""
    blank = remedy.blank(params)
    leaves, structure = jax.tree.flatten(blank)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten(
        [jnp.abs(leaf + jax.random.normal(key, leaf.shape)) for leaf, key in zip(leaves, keys, strict=True)]
    )


@pytest.mark.parametrize(
    "remedy",
    [
        L2SP(strength=0.0),
        Decay(strength=0.0),
        dataclasses.replace(EARLIER, strength=0.0),
        SI(strength=0.0),
        LwF(strength=0.0),
    ],
)
def test_at_strength_0_training_is_what_it_is_without(remedy):
    plain, held = trainer(), trainer(remedies=(remedy,))
    states = [functions.initial(jax.random.key(0)) for functions in (plain, held)]
    states[1] = dataclasses.replace(states[1], kept=(drawn_kept(remedy, states[1].params),))
    for seed in range(3):
        states = [
            functions.step(state, batch(seed))[0]
            for functions, state in zip((plain, held), states, strict=True)
        ]
    same(states[0].params, states[1].params)


def bare_step(params):
    """A step without a model."""
    nothing = lambda *_: None  # noqa: E731
    return Step(
        params, nothing, jnp.zeros((1, 1, 1)), batch(), jnp.float32(1), 1.0, nothing, jax.random.key(0)
    )


def pull(remedy, kept, params):
    step = bare_step(params)
    return jax.grad(lambda params: remedy.penalty(kept, dataclasses.replace(step, params=params)))(params)


def test_the_pull_of_a_quadratic_penalty_is_its_derivative():
    params = trainer().initial(jax.random.key(0)).params
    remedy = L2SP(strength=0.3)
    kept = drawn_kept(remedy, params)
    near(
        pull(remedy, kept, params),
        jax.tree.map(lambda now, then: 0.3 * (now - then), params, kept),
        rtol=1e-5,
    )
    remedy = dataclasses.replace(EARLIER, strength=0.3)
    kept = drawn_kept(remedy, params)
    expected = jax.tree.map(
        lambda now, then, weight: 0.3 * weight * (now - then), params, kept["params"], kept["importance"]
    )
    near(pull(remedy, kept, params), expected, rtol=1e-5)


@pytest.mark.parametrize("remedy", [L2SP(strength=1.0), EARLIER, LwF(strength=1.0)])
def test_the_stronger_the_less_a_model_moves_and_in_the_end_not_at_all(remedy):
    distances = []
    for strength in (0.0, 3.0, 1e6):
        functions, state, words = prepared(dataclasses.replace(remedy, strength=strength))
        begun, batches = jax.tree.map(jnp.copy, state.params), words.training(0)
        for _ in range(30):
            state, metrics = functions.step(state, next(batches))
        batches.close()
        if isinstance(remedy, EWC):  # a parameter that the earlier text does not need is free
            weight = state.kept[0]["importance"]
        elif isinstance(remedy, L2SP):
            weight = jax.tree.map(jnp.ones_like, begun)
        if isinstance(remedy, LwF):
            distances.append(divergence(functions, begun, state.params, next(iter(words.held_out("test")))))
        else:
            moved = jax.tree.map(lambda a, b, w: w * (a - b) ** 2, state.params, begun, weight)
            distances.append(float(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(moved))))
        assert (metrics["penalty"] > 0) == (strength > 0)
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.02 * distances[0]


def divergence(functions, base, params, rows):
    """KL(base || model) summed over the targets of a batch, by whole arrays."""

    def scores(params):
        model = functions.model(params)
        return jax.nn.log_softmax(model.outputs.logits(model.apply(rows).hidden))

    then, now = scores(base), scores(params)
    return float(jnp.sum(jnp.sum(jnp.exp(then) * (then - now), -1) * rows.weights))


def test_decay_toward_the_base_goes_back_by_a_share_of_the_way():
    """Of what it was before the step, whatever the optimizer does."""
    plain, held = trainer(), trainer(remedies=(Decay(strength=30.0),))
    states = [functions.initial(jax.random.key(0)) for functions in (plain, held)]
    before = jax.tree.map(jnp.copy, states[0].params)
    base = drawn_kept(L2SP(strength=1.0), before)
    states[1] = dataclasses.replace(states[1], kept=(jax.tree.map(jnp.copy, base),))
    (one, metrics), (other, _) = (
        functions.step(state, batch()) for functions, state in zip((plain, held), states, strict=True)
    )
    share = 30 * float(metrics["learning_rate"])
    expected = jax.tree.map(lambda moved, was, to: moved - share * (was - to), one.params, before, base)
    near(other.params, expected, rtol=1e-4, atol=1e-6)


def test_a_decay_of_more_than_all_of_the_way_goes_to_the_base_and_not_beyond():
    functions, state, words = prepared(Decay(strength=1e9))
    begun, batches = jax.tree.map(jnp.copy, state.params), words.training(0)
    for _ in range(3):
        state, _ = functions.step(state, next(batches))
    batches.close()
    # What the last step moved is left.
    assert (
        max(
            float(jnp.abs(leaf).max())
            for leaf in jax.tree.leaves(jax.tree.map(jnp.subtract, state.params, begun))
        )
        < 0.05
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_learning_without_forgetting_is_a_divergence_by_whole_arrays(temperature):
    functions = trainer()
    begun, params = (functions.initial(jax.random.key(seed)).params for seed in (0, 1))
    rows = batch()
    remedy = LwF(strength=0.5, temperature=temperature)
    hidden = functions.model(params).apply(rows).hidden
    step = dataclasses.replace(
        bare_step(params),
        model=functions.model,
        hidden=hidden,
        batch=rows,
        weight=jnp.float32(rows.weights.sum()),
    )

    def scores(params):
        model = functions.model(params)
        return jax.nn.log_softmax(model.outputs.logits(model.apply(rows).hidden) / temperature)

    then, now = scores(begun), scores(params)
    each = jnp.sum(jnp.exp(then) * (then - now), -1)
    expected = 0.5 * temperature**2 * jnp.sum(each * rows.weights) / rows.weights.sum()
    assert remedy.penalty(begun, step) == pytest.approx(float(expected), rel=1e-5)
    assert remedy.penalty(params, step) == pytest.approx(0, abs=1e-6)


def after(remedies, accumulate=1):
    """Parameters and metrics after a step down the gradient itself, from other parameters than the base's."""
    functions = Trainer(
        CAUSAL,
        vocab=VOCAB,
        optimizer=SGD(learning_rate=1.0, momentum=None, clip=None, schedule=Constant()),
        steps=10,
        recipe=Recipe(remedies=remedies, accumulate=accumulate),
    )
    state = functions.initial(jax.random.key(0))
    kept = tuple(drawn_kept(remedy, state.params) for remedy in remedies)
    state, metrics = functions.step(dataclasses.replace(state, kept=kept), batch())
    return state.params, {name: float(value) for name, value in metrics.items()}


EACH = (L2SP(strength=0.3), dataclasses.replace(EARLIER, strength=0.2), LwF(strength=0.5))


def test_penalties_add_up():
    plain, _ = after(())
    together, metrics = after(EACH)
    alone = [after((remedy,)) for remedy in EACH]
    assert metrics["penalty"] == pytest.approx(sum(each["penalty"] for _, each in alone), rel=1e-5)
    pulls = [jax.tree.map(jnp.subtract, params, plain) for params, _ in alone]
    near(together, jax.tree.map(lambda *leaves: sum(leaves), plain, *pulls), rtol=1e-4, atol=1e-5)


def test_microbatches_change_no_penalty():
    """Of rows with very unequal weights."""
    whole, parted = after(EACH), after(EACH, accumulate=2)
    near(whole[0], parted[0], rtol=1e-4, atol=1e-5)
    assert whole[1] == pytest.approx(parted[1], rel=1e-4)


def test_a_member_of_an_ensemble_is_held_to_its_own_base():
    words = text()
    strengths = (0.0, 30.0)
    functions = trainer(vocab=words.tokenizer.vocab_size, remedies=(L2SP(strength=1.0),))
    ensemble, states = Ensemble(functions, 2), []
    for seed, strength in enumerate(strengths):
        numbers = functions.numbers | {"remedies.0.strength": strength}
        states.append(functions.prepared(functions.initial(jax.random.key(seed), numbers), words, seed))
    begun = [jax.tree.map(jnp.copy, state.params) for state in states]
    group, batches = ensemble.join(states), words.training(0)
    for _ in range(12):
        one = next(batches)
        group, metrics = ensemble.step(group, ensemble.place([one, one]), np.ones(2, bool))
    batches.close()
    moved = [
        sum(float(jnp.sum((a - b) ** 2)) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in ((ensemble.member(group, index).params, begun[index]) for index in range(2))
    ]
    assert moved[1] < 0.5 * moved[0]
    assert metrics["penalty"][0] == 0 < metrics["penalty"][1]


def test_frozen_parameters_are_not_pulled():
    remedy = L2SP(strength=1.0)
    optimizer = AdamW(frozen="embedding/", weight_decay=0.0)
    functions = Trainer(CAUSAL, vocab=VOCAB, optimizer=optimizer, steps=10, recipe=Recipe(remedies=(remedy,)))
    state = functions.initial(jax.random.key(0))
    before = jax.tree.map(jnp.copy, state.params)
    state = dataclasses.replace(state, kept=(drawn_kept(remedy, state.params),))
    state, _ = functions.step(state, batch())
    for path, leaf in named(before).items():
        assert np.array_equal(leaf, named(state.params)[path]) == path.startswith("embedding/")


# Settings


def test_strengths_are_numbers_of_one_program():
    one, other = (Recipe(remedies=(L2SP(strength=s), LwF(strength=2 * s))) for s in (0.1, 0.5))
    numbers = hyperparameters.numbers(one)
    assert {"remedies.0.strength": 0.1, "remedies.1.strength": 0.2}.items() <= numbers.items()
    assert hyperparameters.form(one) == hyperparameters.form(other)
    assert hyperparameters.filled(one, hyperparameters.numbers(other)) == other


def adapted(remedy):
    return Trainer(CAUSAL, vocab=VOCAB, optimizer=LoRA(), steps=10, recipe=Recipe(remedies=(remedy,)))


def remembering(remedy):
    stack = dataclasses.replace(STACK, memory=Recurrent(length=4))
    return trainer(dataclasses.replace(CAUSAL, stack=stack), remedies=(remedy,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L2SP(strength=-1.0), "L2SP.strength = -1.0: expected at least 0"),
        (lambda: LwF(strength=1.0, temperature=0.0), "LwF.temperature = 0.0"),
        (lambda: dataclasses.replace(EARLIER, examples=0), "EWC.examples = 0"),
        (lambda: dataclasses.replace(EARLIER, draws=0), "EWC.draws = 0"),
        (
            lambda: adapted(Decay(strength=1.0)),
            "Decay, which would move LoRA's matrices without their factors",
        ),
        (lambda: remembering(LwF(strength=1.0)), "LwF.*, which asks what the base predicts without a memory"),
        (lambda: remembering(dataclasses.replace(EARLIER, labels="sampled")), "EWC.*without a memory"),
    ],
)
def test_what_cannot_be_is_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_remedy_says_what_it_has_to_define():
    step = bare_step({})
    bare, base = Remedy(strength=1.0), Base({}, *[lambda *_: None] * 3, text(), 0)
    assert bare.penalty((), step) == 0
    for call in (lambda: bare.prepare(base), lambda: bare.blank({})):
        with pytest.raises(TypeError, match="every Remedy must"):
            call()


# What is evaluated


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_base_has_its_share_in_what_is_evaluated_and_none_in_training(share):
    plain, blended = trainer(), trainer(base_share=share)
    states = [functions.initial(jax.random.key(0)) for functions in (plain, blended)]
    base = jax.tree.map(jnp.copy, states[0].params)
    for seed in range(3):
        states = [
            functions.step(state, batch(seed))[0]
            for functions, state in zip((plain, blended), states, strict=True)
        ]
    same(states[0].params, states[1].params)
    expected = jax.tree.map(lambda then, now: share * then + (1 - share) * now, base, states[0].params)
    near(states[1].evaluated, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_share": 1.5}, "Recipe.base_share = 1.5: expected a share"),
        ({"base_share": 0.5, "average": 0.9}, "only one can be what is evaluated"),
    ],
)
def test_a_share_that_cannot_be_is_one_line(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)
