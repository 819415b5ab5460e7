"""Sweeps combine as sets of points do, have names that stay, and are gin bindings that gin reads."""

import dataclasses

import gin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import configs, experiment, sweeps
from experiments.sweeps import Chain, Point, Product, Subsample, Sweep, SweepError, Values, Zip

RATE = Values(binding="AdamW.learning_rate", values=(0.001, 0.003))
STEPS = Values(binding="train.steps", values=(100, 200, 400))
BATCH = Values(binding="Data.batch", values=(8,))
ARM = ["configs/architecture/causal_lm.gin", "configs/scale/smoke.gin"]

LITERALS = st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none()
TEXTS = st.text(max_size=6).filter(lambda text: not text.startswith(("@", "%")))
VALUES = st.recursive(LITERALS | TEXTS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)


@st.composite
def parts(draw, name="a"):
    return Values(binding=f"X.{name}", values=tuple(draw(st.lists(VALUES, min_size=1, max_size=4))))


def bound(part):
    return [point.bindings for point in part.points()]


def test_a_product_has_every_combination_the_last_part_fastest():
    assert bound(Product(parts=(RATE, STEPS)))[:4] == [
        ("AdamW.learning_rate=0.001", "train.steps=100"),
        ("AdamW.learning_rate=0.001", "train.steps=200"),
        ("AdamW.learning_rate=0.001", "train.steps=400"),
        ("AdamW.learning_rate=0.003", "train.steps=100"),
    ]


@given(parts("a"), parts("b"), parts("c"))
@settings(max_examples=30)
def test_products_and_chains_are_associative_and_sizes_multiply(a, b, c):
    flat = Product(parts=(a, b, c))
    assert len(flat.points()) == len(a.points()) * len(b.points()) * len(c.points())
    for combine in (Product, Chain):
        left = combine(parts=(combine(parts=(a, b)), c))
        right = combine(parts=(a, combine(parts=(b, c))))
        assert bound(left) == bound(right) == bound(combine(parts=(a, b, c)))
    assert bound(Product(parts=(Product(parts=()), a))) == bound(a)
    chained = Chain(parts=(a, b, a))
    assert bound(chained) == bound(Chain(parts=(a, b)))
    assert set(bound(chained)) == set(bound(a)) | set(bound(b))


def test_a_chain_tries_nothing_twice_in_whatever_order_it_is_bound():
    both = Product(parts=(RATE, BATCH)), Product(parts=(BATCH, RATE))
    assert bound(Chain(parts=both)) == bound(both[0])
    assert len(Chain(parts=(Values(binding="X.a", values=(1, 1.0, True)),)).points()) == 3


def test_a_zip_goes_through_its_parts_together():
    width = Values(binding="StackConfig.width", values=(64, 128))
    assert bound(Zip(parts=(RATE, width))) == [
        ("AdamW.learning_rate=0.001", "StackConfig.width=64"),
        ("AdamW.learning_rate=0.003", "StackConfig.width=128"),
    ]
    with pytest.raises(SweepError, match="Zip.parts have 2 and 3 points, expected equally many"):
        Zip(parts=(RATE, STEPS)).points()


@given(st.integers(0, 100), st.data())
@settings(max_examples=30)
def test_a_subsample_is_a_subset_in_order_that_stays_and_grows(seed, data):
    whole = Product(parts=(RATE, STEPS))
    count = data.draw(st.integers(1, 5))
    some, more = (bound(Subsample(part=whole, count=n, seed=seed)) for n in (count, count + 1))
    order = bound(whole)
    assert len(some) == count
    assert some == [one for one in order if one in some]
    assert set(some) < set(more)
    turned = Product(parts=(dataclasses.replace(RATE, values=RATE.values[::-1]), STEPS))
    assert set(bound(Subsample(part=turned, count=count, seed=seed))) == set(some)
    assert bound(Subsample(part=whole, count=6, seed=seed)) == order


def test_a_subsample_is_the_same_on_every_machine_and_every_seed_has_its_own():
    whole = Values(binding="X.a", values=tuple(range(20)))
    drawn = {
        seed: [p.items[0][1] for p in Subsample(part=whole, count=4, seed=seed).points()] for seed in (0, 1)
    }
    assert drawn[0] == [2, 3, 14, 19]
    assert drawn[1] != drawn[0]
    with pytest.raises(SweepError, match="Subsample.count = 21: expected 1 to 20"):
        Subsample(part=whole, count=21).points()


@pytest.mark.parametrize("other", ["train.steps", "experiment.train.steps"])
@pytest.mark.parametrize("combine", [Product, Zip])
def test_one_point_binds_a_thing_once(combine, other):
    with pytest.raises(SweepError, match="in one point of a sweep: expected one value") as caught:
        combine(parts=(STEPS, Values(binding=other, values=(1, 2, 3)))).points()
    assert "\n" not in str(caught.value)


def test_the_same_value_twice_and_another_scope_are_no_conflict():
    assert bound(Product(parts=(BATCH, BATCH))) == [("Data.batch=8",)]
    scoped = (
        Values(binding="enc/StackConfig.width", values=(8,)),
        Values(binding="StackConfig.width", values=(16,)),
    )
    assert bound(Product(parts=scoped)) == [("enc/StackConfig.width=8", "StackConfig.width=16")]


def test_names_are_short_where_that_is_clear():
    assert Product(parts=(RATE, STEPS)).points()[0].name == "learning_rate=0.001+steps=100"
    widths = Product(
        parts=tuple(Values(binding=f"{s}StackConfig.width", values=(8,)) for s in ("enc/", "dec/")) + (STEPS,)
    )
    assert widths.points()[0].name == "enc.StackConfig.width=8+dec.StackConfig.width=8+steps=100"
    rates = Chain(parts=(RATE, Values(binding="SGD.learning_rate", values=(0.001,))))
    assert list(sweeps.named(rates.points())) == [
        "AdamW.learning_rate=0.001",
        "AdamW.learning_rate=0.003",
        "SGD.learning_rate=0.001",
    ]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1e-5, "1e-05"),
        (-1, "-1"),
        (True, "True"),
        (None, "None"),
        ("rms", "rms"),
        ("a b/c,d=e@f+g:h", "a-b-c-d-e-f-g-h"),
        ((0.9, 0.95), "0.9_0.95"),
        (1e16, "1e16"),
        ("@Rotary()", "Rotary"),
        ("@masks.Window()", "masks.Window"),
        ("%WIDTH", "WIDTH"),
    ],
)
def test_values_in_names_are_fit_for_files(value, name):
    assert Point((("A.x", value),)).name == f"x={name}"


@given(st.lists(VALUES, min_size=1, max_size=8))
@settings(max_examples=100)
def test_different_points_have_different_names_of_bounded_length(values):
    points = Chain(parts=(Values(binding="A.x", values=tuple(values)),)).points()
    found = sweeps.named(points)
    assert sorted(p.bindings for p in found.values()) == sorted(p.bindings for p in points)
    assert all(len(name) < 120 and not set(name) & set("/\\ @%'\"\n\0,+:") for name in found)


def test_long_names_are_cut_and_differ():
    part = Product(parts=tuple(Values(binding=f"Config.setting_{i}", values=(1, 2)) for i in range(10)))
    found = sweeps.named(part.points())
    assert len(found) == 1024
    assert max(map(len, found)) <= 110


def test_a_sweep_makes_arms_of_arms():
    sweep = Sweep(arms=("causal_lm", "prefix_lm"), points=Chain(parts=(Product(parts=()), RATE)))
    assert sweep.expanded() == {
        "causal_lm": ("causal_lm", Point(())),
        "causal_lm@learning_rate=0.001": ("causal_lm", RATE.points()[0]),
        "causal_lm@learning_rate=0.003": ("causal_lm", RATE.points()[1]),
        "prefix_lm": ("prefix_lm", Point(())),
        "prefix_lm@learning_rate=0.001": ("prefix_lm", RATE.points()[0]),
        "prefix_lm@learning_rate=0.003": ("prefix_lm", RATE.points()[1]),
    }
    with pytest.raises(SweepError, match="no arms or no points"):
        Sweep(arms=(), points=RATE).expanded()


def test_gin_reads_the_bindings():
    part = Product(
        parts=(
            RATE,
            Values(binding="StackConfig.norm", values=("layer",)),
            Values(binding="StackConfig.positions", values=("@ALiBi()",)),
            Values(binding="EarlyStopping.every", values=(3,)),
            Values(binding="train.early_stopping", values=("@EarlyStopping()",)),
            Values(binding="Parallelism.rules", values=((("kernel$", ("fsdp",)),), ())),
            Values(binding="StackConfig.sinks", values=(True,)),
            Values(binding="WIDTH", values=(32,)),
            Values(binding="StackConfig.width", values=("%WIDTH",)),
        )
    )
    first, second, third, _ = [experiment.load(ARM, point.bindings)[0] for point in part.points()]
    stack = first.model.stack
    assert (first.optimizer.learning_rate, third.optimizer.learning_rate) == (0.001, 0.003)
    assert (stack.norm, type(stack.positions).__name__, stack.sinks, stack.width) == (
        "layer",
        "ALiBi",
        True,
        32,
    )
    assert first.early_stopping.every == 3
    assert (first.parallelism.rules, second.parallelism.rules) == ((("kernel$", ("fsdp",)),), ())


@given(VALUES)
@settings(max_examples=100)
def test_gin_and_the_command_line_read_a_value_as_it_is(value):
    (point,) = Values(binding="X.a", values=(value,)).points()
    (text,) = point.bindings
    assert repr(gin.config.parse_value(text.removeprefix("X.a="))) == repr(value)
    assert sweeps.parse(text).points()[0].bindings == point.bindings


def test_gin_binds_a_sweep(tmp_path):
    file = tmp_path / "study.gin"
    file.write_text(
        """from __gin__ import dynamic_registration
from experiments import sweeps

sweeps.Sweep.arms = ('causal_lm',)
sweeps.Sweep.points = @sweeps.Subsample()
sweeps.Subsample.part = @sweeps.Product()
sweeps.Subsample.count = 6
sweeps.Product.parts = (@rate/sweeps.Values(), @steps/sweeps.Values())
rate/sweeps.Values.binding = 'AdamW.learning_rate'
rate/sweeps.Values.values = (0.001, 0.003)
steps/sweeps.Values.binding = 'train.steps'
steps/sweeps.Values.values = (100, 200, 400)
"""
    )
    points = Subsample(part=Product(parts=(RATE, STEPS)), count=6)
    assert configs.load(Sweep, [str(file)]) == Sweep(arms=("causal_lm",), points=points)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("AdamW.learning_rate=1e-3,3e-3 * train.steps=100,200,400", Product(parts=(RATE, STEPS))),
        ("AdamW.learning_rate = 0.001, 3e-3*Data.batch=8", Product(parts=(RATE, BATCH))),
        ("Data.batch=8", BATCH),
        ("Data.batch=8 + AdamW.learning_rate=1e-3,3e-3", Chain(parts=(BATCH, RATE))),
        (
            "Data.batch=8 * train.steps=1 & X.y=2 + z/X.y=3",
            Chain(
                parts=(
                    Product(
                        parts=(
                            BATCH,
                            Zip(
                                parts=(
                                    Values(binding="train.steps", values=(1,)),
                                    Values(binding="X.y", values=(2,)),
                                )
                            ),
                        )
                    ),
                    Values(binding="z/X.y", values=(3,)),
                )
            ),
        ),
        ("X.y=1e+3,-2", Values(binding="X.y", values=(1000.0, -2))),
        ("X.y=(1, 2),(3,),((4, 5), 'a'),()", Values(binding="X.y", values=((1, 2), (3,), ((4, 5), "a"), ()))),
        ("X.y=(@A(), 1),@b.C()", Values(binding="X.y", values=(("@A()", 1), "@b.C()"))),
        (
            r"""X.y='a,b * c=1', "d + e='2", 'f\'g,(',True,None""",
            Values(binding="X.y", values=("a,b * c=1", "d + e='2", "f'g,(", True, None)),
        ),
    ],
)
def test_a_text_is_a_sweep(text, part):
    assert sweeps.parse(text) == part


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected binding=value,value"),
        ("train.steps", "expected binding=value,value"),
        ("train.steps=", "'' is no value"),
        ("train.steps=1,,2", "'' is no value"),
        ("StackConfig.norm=rms", "'rms' is no value; quote strings"),
        ("X.y=1 * 2", "'1 * 2' is no value"),
        ("(X.y=1 + X.z=2) * X.w=3", "expected binding=value,value"),
        ("X.y=[1, 2]", "expected a finite number, a string"),
        ("X.y=1e999", "expected a finite number, a string"),
        ("X.y=@Rotary(3)", "expected a reference such as '@Rotary()'"),
    ],
)
def test_a_text_that_is_none_is_said_in_one_line(text, said):
    with pytest.raises(SweepError) as caught:
        sweeps.parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_binding_that_is_no_name_is_refused():
    with pytest.raises(SweepError, match="Values.binding = 'a b': expected the name of a gin binding"):
        Values(binding="a b", values=(1,))
    with pytest.raises(SweepError, match="Values.values of train.steps are none"):
        Values(binding="train.steps", values=())
