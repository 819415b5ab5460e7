"""Low-rank adapters: the factors, the merged matrices, and what stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_step import CAUSAL, VOCAB, batch

from research.models.paths import named
from research.training import hyperparameters
from research.training.adapters import LoRA
from research.training.schedules import Constant
from research.training.step import Trainer

RATE = 1e-2


def adapter(**changes):
    return LoRA(
        **{"rank": 2, "alpha": 6.0, "learning_rate": RATE, "schedule": Constant(), "clip": None} | changes
    )


def tuned(optimizer, steps=4, seed=0):
    """The parameters before and after, and the factors, by path."""
    functions = Trainer(CAUSAL, vocab=VOCAB, optimizer=optimizer, steps=steps)
    state = functions.initial(jax.random.key(seed))
    begun = jax.tree.map(jnp.copy, state.params)
    for step in range(steps):
        state, _ = functions.step(state, batch(step))
    return named(begun), named(state.params), state.optimizer.factors


@pytest.fixture(scope="module")
def run():
    return tuned(adapter())


def test_a_merged_matrix_is_what_it_was_and_the_product_of_its_factors(run):
    begun, params, factors = run
    assert set(factors) == {
        path for path in params if path.startswith("stack/blocks/") and path.endswith("kernel")
    }
    for path, (a, b) in factors.items():
        assert a.shape[-1] == b.shape[-2] == 2
        change = params[path] - begun[path]
        np.testing.assert_allclose(change, 3.0 * a @ b, atol=1e-6)
        assert all(np.linalg.matrix_rank(layer, tol=1e-5) == 2 for layer in np.asarray(change))
        assert np.abs(change).max() > 1e-4


def test_what_has_no_factors_stays_as_it_is(run):
    begun, params, factors = run
    assert len(params) > len(factors)
    for path in params.keys() - factors.keys():
        np.testing.assert_array_equal(params[path], begun[path])


def test_it_is_adam_on_the_factors_of_a_model_that_has_them_unmerged():
    """Against factors that are differentiated through, in a model of one matrix."""
    optimizer = adapter(adapted="^w$", rank=3, alpha=1.5, clip=0.5)
    rng = np.random.default_rng(0)
    w, x, y = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 4), (7, 5), (7, 4)))
    rule = optimizer.build(10)
    params = {"w": w, "other": jnp.ones(3)}
    state = rule.init(params)
    factors = state.factors["w"]
    assert not np.any(factors[1])

    def loss(factors):
        a, b = factors
        return jnp.mean((x @ w + 0.5 * (x @ a) @ b - y) ** 2)

    inner = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(RATE, 0.9, 0.95, 1e-8, weight_decay=0.0))
    moments = inner.init(factors)
    for _ in range(6):
        gradients = {"w": jax.grad(lambda w: jnp.mean((x @ w - y) ** 2))(params["w"]), "other": jnp.ones(3)}
        updates, state = rule.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        moves, moments = inner.update(jax.grad(loss)(factors), moments, factors)
        factors = optax.apply_updates(factors, moves)
        for ours, theirs in zip(state.factors["w"], factors, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(params["w"], w + 0.5 * factors[0] @ factors[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(params["other"], np.ones(3))


def test_other_seeds_draw_other_factors_and_the_same_the_same():
    _, _, other = tuned(adapter(), steps=1, seed=1)
    (path, (a, _)), *_ = tuned(adapter(), steps=1, seed=0)[2].items()
    assert not np.allclose(a, other[path][0], atol=1e-2)
    np.testing.assert_array_equal(a, tuned(adapter(), steps=1, seed=0)[2][path][0])
    variance = np.var(
        [np.asarray(leaf).ravel() * leaf.shape[-2] ** 0.5 for leaf, _ in list(other.values())[:2]]
    )
    assert 0.5 < variance < 1.6


def test_its_numbers_are_data_and_its_rank_is_not():
    assert hyperparameters.form(adapter()) == hyperparameters.form(adapter(alpha=1.0, learning_rate=0.1))
    assert hyperparameters.form(adapter()) != hyperparameters.form(adapter(rank=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "LoRA.rank = 0: expected at least 1"),
        ({"alpha": 0.0}, "LoRA.alpha = 0.0: expected a number above 0"),
        ({"adapted": "("}, "LoRA.adapted = '\\(': expected a regular expression"),
        ({"adapted": "kernal$"}, "LoRA.adapted = 'kernal\\$': matches no parameter; the nearest is"),
        ({"adapted": "norm/scale$"}, "expected matrices, but 'stack/.*norm/scale' is a vector"),
    ],
)
def test_what_cannot_be_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        Trainer(CAUSAL, vocab=VOCAB, optimizer=adapter(**changes), steps=2).initial(jax.random.key(0))
