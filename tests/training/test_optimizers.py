"""Optimizers: layers apart however they are stored, numbers that are traced, patterns on paths, memory."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from research.attention.masks import Slots
from research.batch import Batch, Tokens
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig
from research.models.paths import path_of
from research.training import hyperparameters
from research.training.adapters import LoRA
from research.training.optimizers import (
    SGD,
    Adafactor,
    AdamW,
    Constant,
    Cosine,
    Linear,
    Lion,
    Muon,
    Optimizer,
)

SLOW = pytest.mark.slow
OPTIMIZERS = [
    AdamW(learning_rate=0.1, eps=0.1),
    Lion(learning_rate=0.1),
    SGD(weight_decay=0.1, clip=2.0),
    # It factors what is small, so that layers could be mistaken for rows.
    Adafactor(clipping_threshold=0.5, min_dim_size_to_factor=2, momentum=0.9, weight_decay=0.1),
    Muon(learning_rate=0.003, eps=0.1, adam_learning_rate_ratio=0.5),
]


def names(value):
    return type(value).__name__ if isinstance(value, Optimizer) else None


def each_optimizer(*quick, more=()):
    """For all optimizers; those that are not `quick` are more of the same."""
    optimizers = [
        one if type(one) in quick else pytest.param(one, marks=SLOW) for one in (*OPTIMIZERS, *more)
    ]
    return pytest.mark.parametrize("optimizer", optimizers, ids=names)


SHAPES = {
    "embedding": {"table": (12, 8)},
    "stack": {
        "blocks": {
            0: {"up": {"kernel": (3, 8, 6)}, "norm": {"scale": (3, 8)}, "compress": {"kernel": (3, 2, 8, 8)}},
            1: {"up": {"kernel": (2, 8, 6)}, "norm": {"scale": (2, 8)}},
        },
        "norm": {"scale": (8,)},
    },
}


def arrays(seed, *lead):
    """Random arrays in the places of the parameters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=(*lead, *shape)).astype(np.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


PARAMS, GRADIENTS = arrays(0), arrays(1, 5)
for gradient in jax.tree.leaves(GRADIENTS):
    gradient[::2] *= 0.01  # so that some are clipped and some are not


def after(optimizer, params, gradients):
    """The parameters after each step."""
    rule = optimizer.build(10)

    def step(carry, gradient):
        params, state = carry
        updates, state = rule.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, rule.init(params)), gradients)[1]


trained = jax.jit(after, static_argnums=0)


def leaves(tree):
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def close(one, other):
    alike = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-6, atol=1e-6), one, other)
    return all(jax.tree.leaves(alike))


def shapes(**config):
    """The parameters of a decoder, as shapes."""
    config = DecoderConfig(stack=StackConfig(**config))
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: config.build(vocab=512, key=jax.random.key(0)))))


@each_optimizer(Adafactor, Muon)
def test_steps_of_stacked_layers_are_steps_of_layers_apart(optimizer):
    """As where the pattern is as long as the stack: blocks/<i> then holds one layer."""

    def apart(tree, axis):
        layers = [
            jax.tree.map(lambda leaf, i=i: np.take(leaf, [i], axis), place)
            for place in tree["stack"]["blocks"].values()
            for i in range(place["norm"]["scale"].shape[axis])
        ]
        return tree | {"stack": tree["stack"] | {"blocks": dict(enumerate(layers))}}

    together = trained(optimizer, PARAMS, GRADIENTS)
    assert close(apart(together, 1), trained(optimizer, apart(PARAMS, 0), apart(GRADIENTS, 1)))


@pytest.mark.parametrize(
    ("optimizer", "oracle"),
    [
        (
            Adafactor(schedule=Constant(), min_dim_size_to_factor=2, momentum=0.9),
            optax.adafactor(0.01, min_dim_size_to_factor=2, momentum=0.9),
        ),
        (
            Muon(schedule=Constant(), clip=None),
            optax.contrib.muon(1e-3, weight_decay=0.1, consistent_rms=0.2),
        ),
    ],
    ids=names,
)
def test_the_matrix_of_a_layer_is_trained_as_if_it_were_alone(optimizer, oracle):
    kernel, gradients = (tree["stack"]["blocks"][1]["up"]["kernel"] for tree in (PARAMS, GRADIENTS))
    seen = trained(optimizer, PARAMS, GRADIENTS)["stack"]["blocks"][1]["up"]["kernel"]
    alone = kernel[1]
    state, update = oracle.init(alone), jax.jit(oracle.update)
    for step, gradient in enumerate(gradients[:, 1]):
        updates, state = update(gradient, state, alone)
        alone = optax.apply_updates(alone, updates)
        assert close(seen[step, 1], alone)


def test_muon_orthogonalises_the_matrices_of_blocks_and_leaves_the_rest_to_adam():
    common = {"schedule": Constant(), "clip": None, "weight_decay": 0.0}
    muon, adam = (
        leaves(trained(optimizer, PARAMS, GRADIENTS))
        for optimizer in (
            Muon(learning_rate=1.0, adam_learning_rate_ratio=0.5, **common),
            AdamW(learning_rate=0.5, **common),
        )
    )
    for path, start in leaves(PARAMS).items():
        if path.endswith("kernel"):
            values = np.linalg.svd(np.asarray(muon[path][0]) - start, compute_uv=False)
            values /= 0.2 * max(start.shape[-2:]) ** 0.5
            assert values.max() < 1.3
            assert np.median(values) > 0.6
        else:
            np.testing.assert_allclose(muon[path], adam[path], rtol=1e-5, atol=1e-6)


@each_optimizer(AdamW, Muon, Adafactor, more=[SGD(momentum=None, clip=None, weight_decay=0.1)])
def test_tunable_numbers_may_be_traced_and_each_makes_a_difference(optimizer):
    own = hyperparameters.numbers(optimizer)
    assert set(own) == {name for name in optimizer.tunable if getattr(optimizer, name) is not None}
    changed = {name: 0.7 * value for name, value in own.items()}
    variants = [own, changed, *(own | {name: changed[name]} for name in own)]

    @jax.jit
    def traced(numbers, params, gradients):
        return jax.vmap(lambda one: after(hyperparameters.filled(optimizer, one), params, gradients))(numbers)

    numbers = {name: jnp.asarray([variant[name] for variant in variants]) for name in own}
    seen = traced(numbers, PARAMS, GRADIENTS)
    assert close(jax.tree.map(lambda leaf: leaf[0], seen), trained(optimizer, PARAMS, GRADIENTS))
    plain = trained(dataclasses.replace(optimizer, **changed), PARAMS, GRADIENTS)
    assert close(jax.tree.map(lambda leaf: leaf[1], seen), plain)
    for index, name in enumerate(own, start=2):
        differences = jax.tree.map(lambda leaf, index=index: np.abs(leaf[index] - leaf[0]).max(), seen)
        assert max(jax.tree.leaves(differences)) > 1e-5, name


@each_optimizer(AdamW, Lion, SGD, Adafactor, Muon)
def test_every_array_of_the_state_names_the_parameter_it_belongs_to(optimizer):
    """So that it can be split over devices as its parameter is."""
    params = shapes(layers=5, width=16, heads=2, pattern=(BlockSpec(),) * 2, use_bias=True)
    for one in (optimizer, dataclasses.replace(optimizer, frozen="attention")):
        state = leaves(jax.eval_shape(one.build(10).init, params))
        owned = set()
        for path, leaf in state.items():
            if leaf.shape and not path.endswith("ns_coeffs"):
                (owner,) = [own for own in leaves(params) if f"/{own}/" in f"/{path}/"]
                owned.add(owner)
                assert isinstance(optimizer, Adafactor) or leaf.shape == leaves(params)[owner].shape
        assert owned == {path for path in leaves(params) if one.trains(path)}


def test_the_state_is_as_large_as_it_should_be():
    params = shapes(layers=8, width=256, heads=4, use_bias=True)
    sizes = {path: leaf.size for path, leaf in leaves(params).items()}

    def size(optimizer):
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(optimizer.build(10).init, params)))

    whole, few = sum(sizes.values()), 16
    vectors = sum(size for path, size in sizes.items() if not re.search("kernel|table", path))
    matrices = sum(size for path, size in sizes.items() if re.search(r"blocks/\d/.*kernel", path))
    heads = {path for path in sizes if not path.startswith("stack")}
    frozen = r"^(?!stack)"
    assert whole <= size(Lion()) <= whole + few
    assert whole <= size(SGD()) <= whole + few
    assert size(SGD(momentum=None)) <= few
    assert 2 * whole <= size(AdamW()) <= 2 * whole + few
    assert 2 * whole - matrices <= size(Muon()) <= 2 * whole - matrices + few
    assert vectors < size(Adafactor()) <= 0.02 * whole + vectors
    for optimizer, copies in ((AdamW, 2), (Lion, 1), (SGD, 1)):
        assert size(optimizer(frozen=frozen)) <= copies * (whole - sum(sizes[path] for path in heads)) + few
    assert size(Adafactor(frozen=frozen)) < size(Adafactor())
    assert size(Muon(frozen="stack/")) <= 2 * sum(sizes[path] for path in heads) + few


@each_optimizer(AdamW, Muon)
def test_decay_and_freezing_go_by_path(optimizer):
    """Without a gradient exactly the parameters that match shrink; frozen ones stay, whatever their gradient."""
    rate, decay, ratio = 0.1, 0.5, getattr(optimizer, "adam_learning_rate_ratio", 1.0)
    optimizer = dataclasses.replace(
        optimizer,
        learning_rate=rate,
        schedule=Constant(),
        weight_decay=decay,
        decayed="kernel|table|blocks/1/norm",
        frozen="compress",
    )
    gradients = jax.tree.map(np.zeros_like, GRADIENTS)
    gradients["stack"]["blocks"][0]["compress"] = GRADIENTS["stack"]["blocks"][0]["compress"]
    seen = leaves(trained(optimizer, PARAMS, gradients))
    for path, start in leaves(PARAMS).items():
        if not optimizer.trains(path):
            np.testing.assert_array_equal(seen[path][-1], start)
        elif re.search("kernel|table|blocks/1/norm", path):
            share = rate * decay * (1.0 if path.endswith("kernel") else ratio)
            np.testing.assert_allclose(seen[path][0], (1 - share) * start, rtol=1e-6)
        else:
            np.testing.assert_array_equal(seen[path][0], start)
    assert [path for path in leaves(PARAMS) if not optimizer.trains(path)] == [
        "stack/blocks/0/compress/kernel"
    ]


@pytest.mark.parametrize("pattern", [1, 2])
@pytest.mark.parametrize("optimizer", [AdamW(weight_decay=0.5), LoRA(rank=2, weight_decay=0.5)])
def test_lower_layers_stay_as_they_are(optimizer, pattern):
    """Layer i of a pattern of p blocks is the (i // p)-th of those at its place."""
    params = shapes(layers=4, width=8, heads=2, pattern=(BlockSpec(),) * pattern)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), params)
    rule = dataclasses.replace(optimizer, frozen_layers=3, learning_rate=0.1, schedule=Constant()).build(10)
    state, now, slopes = rule.init(params), params, jax.tree.map(jnp.ones_like, params)
    for _ in range(3):
        updates, state = rule.update(slopes, state, now)
        now = optax.apply_updates(now, updates)
    moved = False
    for path, leaf in leaves(now).items():
        if found := re.search(r"blocks/(\d)/", path):
            for depth, each in enumerate(leaf):
                lower = depth * pattern + int(found[1]) < 3
                assert not lower or np.all(each == 0.5), (path, depth)
                moved |= not lower and bool(np.any(each != 0.5))
    assert moved


def test_lower_layers_are_counted_among_all_where_some_are_frozen_by_path():
    params = shapes(layers=4, width=8, heads=2, pattern=(BlockSpec(),) * 2)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), params)
    rule = SGD(
        momentum=None, learning_rate=0.1, schedule=Constant(), frozen="blocks/1/", frozen_layers=1
    ).build(9)
    updates, _ = rule.update(jax.tree.map(jnp.ones_like, params), rule.init(params), params)
    for path, leaf in leaves(updates).items():
        if found := re.search(r"blocks/(\d)/", path):  # layers 0 and 2, 1 and 3
            assert [bool(np.any(each)) for each in leaf] == (
                [False, True] if found[1] == "0" else [False] * 2
            )


def test_the_gradient_of_lower_layers_does_not_count_for_clipping():
    plain = SGD(momentum=None, clip=1.0, learning_rate=0.1, schedule=Constant(), frozen_layers=1)
    loud = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.at[:, 0].multiply(1e3) if "blocks/0" in path_of(path) else leaf,
        jax.tree.map(jnp.asarray, GRADIENTS),
    )
    kept = [trained(plain, PARAMS, gradients) for gradients in (GRADIENTS, loud)]
    for one, other in zip(*map(jax.tree.leaves, kept), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="frozen_layers = 9: expected at most"):
        trained(dataclasses.replace(plain, frozen_layers=9), PARAMS, GRADIENTS)


def test_the_gradient_of_frozen_parameters_does_not_count_for_clipping():
    loud = GRADIENTS | {"embedding": {"table": 1e3 * GRADIENTS["embedding"]["table"]}}
    kept = [trained(SGD(frozen="embedding"), PARAMS, gradients) for gradients in (GRADIENTS, loud)]
    jax.tree.map(np.testing.assert_array_equal, *kept)
    freed = [trained(SGD(), PARAMS, gradients)["stack"]["norm"]["scale"] for gradients in (GRADIENTS, loud)]
    assert not np.allclose(*freed)


@pytest.fixture(scope="module")
def model():
    """Initial parameters of a tiny model and its (loss, gradient)."""
    config = DecoderConfig(stack=StackConfig(layers=2, width=16, heads=2))
    graph, state = nnx.split(config.build(vocab=20, key=jax.random.key(0)))
    ids = np.random.default_rng(0).integers(0, 20, (4, 9)).astype(np.int32)
    batch = Batch(Tokens(ids[:, :-1], Slots.arange(8, (4,))), ids[:, 1:], np.ones((4, 8), np.float32))

    def loss(params):
        logits = nnx.merge(graph, params)(batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    return nnx.to_pure_dict(state), jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(AdamW(learning_rate=0.01), marks=SLOW),
        Adafactor(learning_rate=0.1, min_dim_size_to_factor=16),
        Muon(learning_rate=0.01),
        pytest.param(Lion(learning_rate=3e-3), marks=SLOW),
        pytest.param(SGD(), marks=SLOW),
        pytest.param(Adafactor(learning_rate=0.1), marks=SLOW),
        pytest.param(Muon(learning_rate=0.01, nesterov=False, adam_learning_rate_ratio=0.3), marks=SLOW),
        pytest.param(SGD(nesterov=True, frozen="embedding"), marks=SLOW),
    ],
    ids=names,
)
def test_the_loss_of_a_model_falls(model, optimizer):
    params, gradient = model
    rule = optimizer.build(20)
    update, state, losses = jax.jit(rule.update), rule.init(params), []
    for _ in range(20):
        loss, slope = gradient(params)
        losses.append(float(loss))
        updates, state = update(slope, state, params)
        params = optax.apply_updates(params, updates)
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize(
    ("config", "wrong", "said"),
    [
        (AdamW, {"learning_rate": 0.0}, "AdamW.learning_rate = 0.0: expected a number above 0"),
        (AdamW, {"learning_rate": float("nan")}, "AdamW.learning_rate = nan"),
        (Lion, {"clip": 0.0}, "Lion.clip = 0.0: expected a number above 0, or None"),
        (AdamW, {"b2": 1.0}, "AdamW.b2 = 1.0: expected at least 0 and below 1"),
        (SGD, {"momentum": -0.1}, "SGD.momentum = -0.1: expected at least 0 and below 1, or None"),
        (SGD, {"momentum": None, "nesterov": True}, "SGD.nesterov = True: expected a momentum"),
        (Muon, {"weight_decay": -1.0}, "Muon.weight_decay = -1.0: expected at least 0"),
        (Muon, {"ns_steps": 0}, "Muon.ns_steps = 0: expected at least 1"),
        (Muon, {"matrices": "["}, "Muon.matrices = '\\[': expected a regular expression"),
        (Adafactor, {"frozen": "("}, "Adafactor.frozen = '\\(': expected a regular expression"),
        (Adafactor, {"decay_rate": 0.0}, "Adafactor.decay_rate = 0.0"),
        (Cosine, {"warmup": 1.0}, "Cosine.warmup = 1.0: expected a share of the steps"),
        (Linear, {"final": 1.5}, "Linear.final = 1.5: expected a share of the peak"),
    ],
)
def test_a_value_out_of_range_is_named(config, wrong, said):
    with pytest.raises(ValueError, match=said) as raised:
        config(**wrong)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (AdamW(frozen="embeding/table"), "AdamW.frozen = 'embeding/table': matches no .* 'embedding/table'"),
        (
            Lion(decayed="stack/nrm"),
            "Lion.decayed = 'stack/nrm': matches no parameter; .* 'stack/norm/scale'",
        ),
        (Muon(matrices="blocks/7"), "Muon.matrices = 'blocks/7': matches no parameter"),
        (
            Muon(matrices="blocks/0"),
            "Muon.matrices = 'blocks/0': .* 'stack/blocks/0/norm/scale' is a vector",
        ),
    ],
    ids=lambda value: names(value) or value.split(" = ")[0],
)
def test_a_pattern_that_matches_nothing_is_named_with_the_nearest_path(optimizer, said):
    with pytest.raises(ValueError, match=said) as raised:
        jax.eval_shape(optimizer.build(10).init, PARAMS)
    assert "\n" not in str(raised.value)


def test_the_default_patterns_may_match_nothing():
    for optimizer in OPTIMIZERS:
        assert jax.tree.leaves(jax.eval_shape(optimizer.build(10).init, {"bias": jnp.ones(3)}))
