"""Estimates of memory against programs whose memory is known, and against what XLA:CPU allocates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research.analysis import liveness, memory, program
from research.analysis.memory import Setting
from research.attention.masks import Prefix, Slots
from research.batch import Batch, Tokens
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from research.training.optimizers import AdamW
from research.training.step import Recipe, Trainer

SLOW = pytest.mark.slow
STACK = StackConfig(layers=4, width=256, heads=4)
VOCAB, ROWS, LENGTH = 2048, 8, 512
SMALL = {"rows": 4, "length": 64}


def family(name, stack=STACK):
    return {
        "causal": DecoderConfig(stack=stack),
        "prefix": DecoderConfig(stack=stack, mask=Prefix()),
        "encoder": EncoderConfig(stack=stack),
        "encoder_decoder": EncoderDecoderConfig(encoder=stack, decoder=stack),
    }[name]


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)


def step_of(config, rows=ROWS, length=LENGTH, vocab=VOCAB, **recipe):
    """(step, state, batch): a training step and the shapes that it takes."""
    functions = Trainer(config, vocab=vocab, optimizer=AdamW(), steps=10, recipe=Recipe(**recipe))
    length //= 2 if isinstance(config, EncoderDecoderConfig) else 1
    line = Tokens(np.ones((rows, length), np.int32), Slots.arange(length, (rows,)))
    source = line if isinstance(config, EncoderDecoderConfig) else None
    batch = Batch(line, np.ones((rows, length), np.int32), np.ones((rows, length), np.float32), source)
    return functions.update, jax.eval_shape(functions.initial, jax.random.key(0)), shapes(batch)


def measured(config, **options):
    return memory.measure(*step_of(config, **options), platform="cpu")


def peak(function, *arguments, platform="cpu", **options):
    jaxpr, _ = program.needed(jax.make_jaxpr(function)(*arguments))
    return liveness.peak(jaxpr, platform, **options)


# Programs whose memory is known. All take f32[256 256], 256 KiB.

X = jax.ShapeDtypeStruct((256, 256), jnp.float32)
ONE = 256 * 256 * 4


def test_a_chain_of_elementwise_operations_takes_nothing():
    assert peak(lambda x: jnp.sum(jnp.exp(x * 2 + 1) - x), X).total < ONE // 4


def test_a_product_is_stored_until_it_is_last_read():
    def function(x):
        first = x @ x
        second = first @ x
        return second @ x + first  # while the third product is made, the other two wait

    assert peak(function, X).total == pytest.approx(3 * ONE, rel=0.01)
    assert peak(lambda x: (x @ x) @ x, X).total == pytest.approx(ONE, rel=0.01)


def test_what_reads_a_value_last_may_write_over_it():
    assert peak(lambda x: jnp.sin(x @ x) @ x, X).total == pytest.approx(ONE, rel=0.01)


def loop(length, unroll=1):
    def function(x):
        out, _ = jax.lax.scan(lambda h, _: (jnp.sin(h @ x), None), x, length=length, unroll=unroll)
        return jnp.sum(out)

    return function


def test_a_loop_takes_the_memory_of_one_turn():
    assert peak(loop(3), X) == peak(loop(30), X)
    assert peak(loop(3), X).total <= 3 * ONE


def test_its_gradient_holds_what_every_turn_saved():
    few, many = (peak(jax.grad(loop(turns)), X) for turns in (4, 10))
    assert many.held - few.held == pytest.approx(6 * 2 * ONE, rel=0.01)  # h and h @ x
    assert many.working == few.working


def test_rematerialisation_is_undone_where_the_loop_is_unrolled_and_equal_operations_are_one():
    def function(x):
        layer = jax.checkpoint(lambda h: jnp.sin(jnp.sin(h @ x) @ x) @ x, prevent_cse=prevent)
        return jnp.sum(layer(layer(layer(x))))

    prevent = True
    kept_apart = peak(jax.grad(function), X, platform="tpu").total
    cpu = peak(jax.grad(function), X)
    prevent = False
    assert peak(jax.grad(function), X, platform="tpu").total > 1.3 * kept_apart
    assert peak(jax.grad(function), X) == cpu  # which heeds no barrier


def test_the_larger_branch_counts_and_of_platforms_the_own():
    def branches(x):
        return jnp.sum(jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x @ x, lambda x: x, x))

    def platforms(x):
        return jnp.sum(jax.lax.platform_dependent(x, cpu=lambda x: (x @ x) @ x, default=lambda x: x + 1) * x)

    assert peak(branches, X).total >= 2 * ONE
    assert peak(platforms, X).total >= ONE > peak(platforms, X, platform="tpu").total


def test_while_loops_carry_in_place():
    def function(x):
        return jnp.sum(jax.lax.fori_loop(0, x[0, 0].astype(int), lambda _, h: h @ x, x + 1))

    assert peak(function, X).total <= 2 * ONE + 100


def test_arrays_of_the_shapes_asked_for_are_told_apart_and_shared():
    whole, shared = (peak(lambda x: (x @ x) @ x, X, like={X.shape: share}) for share in (1.0, 0.25))
    assert (whole.like + whole.working, shared.like + shared.working) == (ONE, ONE // 4)


def test_rows_that_are_only_converted_are_converted_before_the_loop():
    def function(rows, dtype):
        out, _ = jax.lax.scan(lambda h, row: (h @ row.astype(dtype), None), jnp.ones((256, 256), dtype), rows)
        return jnp.sum(out)

    rows = jax.ShapeDtypeStruct((10, 256, 256), jnp.float32)
    wide, narrow = (
        peak(lambda rows, t=t: function(rows, t), rows, platform="tpu") for t in (jnp.float32, jnp.bfloat16)
    )
    assert (wide.held, narrow.held) == (0, 10 * ONE // 2)


def test_a_tpu_fills_its_lanes():
    narrow = jax.ShapeDtypeStruct((1024, 64), jnp.float32)
    tpu, gpu = (
        peak(lambda x: jnp.sum(jnp.sin(x @ x.T) @ x), narrow, platform=name) for name in ("tpu", "gpu")
    )
    assert tpu.total - gpu.total == narrow.size * 4  # the second product


# Training steps.


def test_arguments_are_exact_and_weights_gradients_and_moments_take_16_bytes_a_parameter():
    step, state, batch = step_of(family("causal"), **SMALL)
    held = memory.measure(step, state, batch, platform="cpu")
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert held.parameters == 4 * count
    assert held.optimizer == pytest.approx(8 * count, abs=64)  # and counters
    assert 4 * count <= held.gradients <= 6 * count
    unread = batch.target.slots.prefix.size  # a causal mask has no prefix
    assert held.batch == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(batch)) - unread


def test_activations_grow_with_rows_and_layers_and_shrink_by_rematerialisation_and_accumulation():
    plain = measured(family("causal"), rows=8, length=64)
    assert measured(family("causal"), rows=16, length=64).activations == pytest.approx(
        2 * plain.activations, rel=0.05
    )
    deep = dataclasses.replace(STACK, layers=8)
    assert measured(family("causal", deep), rows=8, length=64).activations > 1.8 * plain.activations
    full = measured(family("causal", dataclasses.replace(STACK, remat="full")), rows=8, length=64)
    assert full.activations < 0.1 * plain.activations
    split = measured(family("causal"), rows=8, length=64, accumulate=4)
    assert split.activations < 0.4 * plain.activations
    assert split.gradients > plain.gradients  # their sum as well


def test_between_all_and_nothing_products_are_kept():
    none, dots, full = (
        measured(family("causal", dataclasses.replace(STACK, remat=remat)), rows=8, length=64).activations
        for remat in memory.REMATS
    )
    assert 4 * full < 2 * dots < none


def test_what_no_loop_runs_is_rematerialised_too():
    """Periods of as many blocks as there are layers, and the tail of a pattern. (On a CPU it is not.)"""
    for places, layers in ((4, 4), (3, 5)):
        stack = dataclasses.replace(STACK, layers=layers, pattern=(BlockSpec(),) * places)
        none, full = (
            memory.measure(
                *step_of(family("causal", dataclasses.replace(stack, remat=remat)), rows=8, length=128),
                platform="tpu",
            ).activations
            for remat in ("none", "full")
        )
        assert full < 0.6 * none


def test_a_leaf_counts_by_what_a_device_holds_of_it():
    step, state, batch = step_of(family("causal"), **SMALL)
    whole = memory.measure(step, state, batch, platform="tpu")
    mesh = Mesh(np.asarray(jax.devices()[:1] * 4), ("fsdp",), axis_types=(AxisType.Auto,))

    def shared(leaf):
        axes = (None,) * (leaf.ndim - 1) + ("fsdp",) if leaf.ndim > 1 else ()
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes))
        )

    parts = dataclasses.replace(
        state, params=jax.tree.map(shared, state.params), optimizer=jax.tree.map(shared, state.optimizer)
    )
    split = memory.measure(step, parts, batch, platform="tpu")
    for name in ("parameters", "optimizer", "gradients"):
        assert getattr(split, name) == pytest.approx(getattr(whole, name) / 4, rel=0.02)
    assert (split.batch, split.activations) == (whole.batch, whole.activations)


CASES = [
    (name, remat)
    for remat in ("none", "dots", "full")
    for name in ("causal", "prefix", "encoder", "encoder_decoder")
]


def against_xla(config, **options):
    """(what is estimated, XLA's analysis of the compiled step), on this CPU."""
    step, state, batch = step_of(config, **options)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    return memory.measure(step, state, batch, platform="cpu"), compiled.memory_analysis()


def test_a_small_step_takes_what_xla_says():
    config = family("causal", dataclasses.replace(STACK, layers=2, width=128, remat="dots", backend="dense"))
    held, analysis = against_xla(config, rows=4, length=128)
    assert held.arguments == analysis.argument_size_in_bytes
    assert held.temporaries == pytest.approx(analysis.temp_size_in_bytes, rel=0.25)


def test_rematerialisation_saves_memory_where_layers_would_be_unrolled():
    stack = dataclasses.replace(STACK, width=128, unroll=4)
    found = {}
    for remat in memory.REMATS:
        config = family("causal", dataclasses.replace(stack, remat=remat))
        held, analysis = against_xla(config, rows=8, length=128, vocab=256)
        assert held.temporaries == pytest.approx(analysis.temp_size_in_bytes, rel=0.25)
        found[remat] = analysis.temp_size_in_bytes
    assert found["full"] < 0.8 * found["dots"] < 0.6 * found["none"]


@SLOW
@pytest.mark.parametrize(("name", "remat"), CASES, ids=["-".join(case) for case in CASES])
def test_the_grid_takes_what_xla_says(name, remat):
    held, analysis = against_xla(family(name, dataclasses.replace(STACK, remat=remat)))
    assert held.arguments == analysis.argument_size_in_bytes
    assert held.temporaries == pytest.approx(analysis.temp_size_in_bytes, rel=0.25)


@SLOW
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"width": 128}, {"rows": 4, "vocab": 512}),
        (
            {"activation": "gelu", "norm": "layer", "use_bias": True, "remat": "full"},
            {"rows": 4, "vocab": 4096},
        ),
        ({"dropout": 0.1, "attention_dropout": 0.1}, {"rows": 4}),
        ({"unroll": 4}, {"rows": 4}),
        ({"unroll": 4, "remat": "full"}, {}),
        ({"kv_heads": 1}, {"rows": 4}),
        ({}, {"rows": 16, "accumulate": 4}),
        ({}, {"rows": 2, "length": 2048}),
    ],
    ids=["narrow", "gpt", "dropout", "unrolled", "unrolled-remat", "grouped", "accumulated", "long"],
)
def test_configs_that_the_rules_were_not_made_for_do_too(changes, options):
    held, analysis = against_xla(family("causal", dataclasses.replace(STACK, **changes)), **options)
    assert held.arguments == analysis.argument_size_in_bytes
    assert held.temporaries == pytest.approx(analysis.temp_size_in_bytes, rel=0.25)


# Accounting and advice.


def test_the_classic_accounting_is_16_bytes_shared_by_the_stages_of_zero():
    """Rajbhandari et al. 2020, figure 1: 7.5 billion parameters on 64 devices."""
    assert memory.classic(1)["every device holds all"] == 16
    gigabytes = [held / 1e9 for held in memory.classic(7_500_000_000, devices=64).values()]
    assert gigabytes == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.05)


def test_the_classic_activations_of_gpt3():
    """Korthikanti et al. 2022, equation 2: s b h L (34 + 5 a s / h), here 34 + 80 bytes a number."""
    numbers = 2048 * 12288 * 96
    line = {"rows": 1, "tokens": 2048, "layers": 96, "width": 12288, "heads": 96}
    assert memory.classic_activations(**line, remat="none") == pytest.approx(114 * numbers)
    assert memory.classic_activations(**line, remat="full") == pytest.approx(2 * numbers)


def affine(fixed=100, row=10, shared=60):
    """An estimate: `shared` of `fixed` is split by fsdp, rows by devices and microbatches, remat halves rows twice."""

    def estimate(setting):
        rows = setting.batch / setting.multiple
        saved = rows * row * {"none": 1.0, "dots": 0.5, "full": 0.25}[setting.remat]
        return int(fixed - shared + shared / setting.fsdp + saved)

    return estimate


@pytest.mark.parametrize(
    ("device", "changes"),
    [
        (300, []),  # 100 + 16 * 10 = 260 fit
        (220, [{"remat": "dots"}]),  # 180
        (160, [{"remat": "dots"}, {"remat": "full"}]),  # 140
        (130, [{"remat": "dots"}, {"remat": "full"}, {"accumulate": 2}]),  # 100 + 20
        (106, [{"remat": "dots"}, {"remat": "full"}, {"accumulate": 8}]),  # 100 + 5
        (
            80,
            [{"remat": "dots"}, {"remat": "full"}, {"accumulate": 16}, {"accumulate": 8, "fsdp": 2}],
        ),  # 40 + 30 + 2
        (50, [{"remat": "dots"}, {"remat": "full"}, {"accumulate": 16}, {"accumulate": 2, "fsdp": 8}]),
    ],
)
def test_advice_switches_on_the_least_that_fits(device, changes):
    setting = Setting(batch=16)
    advice = memory.advise(affine(), setting, device / memory.USABLE + 1)
    expected, before = [], {}
    for change in changes:
        before = before | change
        expected.append(dataclasses.replace(setting, **before))
    assert [after for after, _ in advice.remedies] == expected
    assert [needed for _, needed in advice.remedies] == [affine()(after) for after in expected]
    assert advice.fits == (not changes)


def test_advice_says_when_nothing_helps():
    advice = memory.advise(affine(), Setting(batch=16), 30, devices=64)
    assert advice.largest == 0
    last, needed = advice.remedies[-1]
    assert last.fsdp == 64
    assert needed > advice.usable


@given(
    curve=st.lists(st.integers(0, 1000), min_size=1, max_size=80),
    usable=st.integers(1, 3000),
    multiple=st.sampled_from([1, 2, 3]),
)
@settings(max_examples=100)
def test_the_largest_batch_is_that_of_trying_all(curve, usable, multiple):
    needed = np.cumsum(curve)

    def estimate(setting):
        assert setting.batch % multiple == 0
        return int(needed[min(setting.batch // multiple, len(curve)) - 1])

    limit = multiple * len(curve)
    found = memory.advise(
        estimate, Setting(batch=multiple, data=multiple), usable / memory.USABLE, limit=limit
    ).largest
    usable = int(usable / memory.USABLE * memory.USABLE)
    assert found == multiple * sum(needed <= usable)


def test_amounts_of_memory_are_read_and_nonsense_is_one_line():
    assert memory.parse("80GiB") == memory.parse(" 80 GiB") == 80 * 2**30
    assert memory.parse("16GB") == 16e9
    for text in ("", "GiB", "80 apples", "-1GB", "0", "80Gb"):
        with pytest.raises(ValueError, match="expected an amount of memory such as 80GiB"):
            memory.parse(text)
