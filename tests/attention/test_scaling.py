"""Rotary scalings and T5's buckets against the numbers that transformers gives.

The numbers lie in rope_scaling.json, so that they are checked where torch and transformers are not installed. With
requirements-parity.txt installed they are checked against transformers itself, and written anew by

    python -m tests.attention.test_scaling > tests/attention/rope_scaling.json
"""

import dataclasses
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import experiment
from research.attention.masks import Slots
from research.attention.positions import DynamicNTK, Interpolation, Llama3, Rotary, YaRN, t5_bucket
from research.attention.rotary import frequencies

STORED = pathlib.Path(__file__).with_name("rope_scaling.json")
NEEDS = "compares with transformers; install requirements-parity.txt"

# Name: the scheme, the width of a head and the length of the line.
CASES = {
    "plain": (Rotary(), 64, 1),
    "partial": (Rotary(fraction=0.25), 96, 1),  # GPT-NeoX
    "linear": (Rotary(scaling=Interpolation(factor=4.0)), 64, 1),
    "dynamic within": (Rotary(scaling=DynamicNTK(factor=2.0, trained=2048)), 64, 1000),
    "dynamic at": (Rotary(scaling=DynamicNTK(factor=1.1, trained=2048)), 64, 2048),
    "dynamic beyond": (Rotary(scaling=DynamicNTK(factor=2.0, trained=2048)), 128, 5000),
    "dynamic partial": (Rotary(fraction=0.5, scaling=DynamicNTK(factor=4.0, trained=512)), 64, 700),
    "yarn": (Rotary(scaling=YaRN(factor=4.0, trained=2048)), 128, 1),
    "yarn gpt-oss": (Rotary(base=150_000.0, scaling=YaRN(factor=32.0, trained=4096, truncate=False)), 64, 1),
    "yarn deepseek": (
        Rotary(scaling=YaRN(factor=40.0, trained=4096, mscale=0.707, mscale_all_dim=1.0)),
        64,
        1,
    ),
    "yarn by hand": (
        Rotary(
            fraction=0.5,
            scaling=YaRN(factor=8.0, trained=64, beta_fast=8.0, beta_slow=2.0, attention_factor=0.9),
        ),
        64,
        1,
    ),
    "llama 3.1": (
        Rotary(base=500_000.0, scaling=Llama3(factor=8.0, low=1.0, high=4.0, trained=8192)),
        128,
        1,
    ),
    "llama 3.2": (
        Rotary(base=500_000.0, scaling=Llama3(factor=32.0, low=1.0, high=4.0, trained=8192)),
        64,
        1,
    ),
}
AHEAD = np.arange(-600, 601)  # key minus query
BUCKETS = list(
    itertools.product([(32, 128), (8, 20), (16, 64), (64, 256), (12, 50), (6, 600)], [False, True])
)


def parameters(scheme):
    """What transformers calls the scheme's values, for `LlamaConfig.rope_parameters`."""
    kinds = {
        Interpolation: "linear",
        DynamicNTK: "dynamic",
        YaRN: "yarn",
        Llama3: "llama3",
        type(None): "default",
    }
    names = {
        "trained": "original_max_position_embeddings",
        "low": "low_freq_factor",
        "high": "high_freq_factor",
    }
    scaling = {} if scheme.scaling is None else dataclasses.asdict(scheme.scaling)
    if isinstance(scheme.scaling, DynamicNTK):
        del scaling["trained"]  # there it is the config's max_position_embeddings
    return {
        "rope_type": kinds[type(scheme.scaling)],
        "rope_theta": scheme.base,
        "partial_rotary_factor": scheme.fraction,
        **{names.get(name, name): value for name, value in scaling.items() if value is not None},
    }


def their_config(scheme, head_dim):
    """A config of transformers' GPT-NeoX, which knows every scaling and partial rotary."""
    from transformers import GPTNeoXConfig

    trained = getattr(scheme.scaling, "trained", 4096)
    if isinstance(scheme.scaling, YaRN | Llama3):
        trained = int(trained * scheme.scaling.factor)
    return GPTNeoXConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        max_position_embeddings=trained,
        rope_parameters=parameters(scheme),
    )


def published():
    """What transformers gives for all of CASES and BUCKETS; buckets as runs of equal ones."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
    from transformers.models.t5.modeling_t5 import T5Attention

    rotary, t5 = {}, {}
    for name, (scheme, head_dim, length) in CASES.items():
        config = their_config(scheme, head_dim)
        if scheme.scaling is None:
            inverse, factor = GPTNeoXRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            inverse, factor = ROPE_INIT_FUNCTIONS[parameters(scheme)["rope_type"]](config, seq_len=length)
        rotary[name] = {"frequencies": [float(f"{f:.9g}") for f in inverse.tolist()], "factor": factor}
    for (buckets, distance), bidirectional in BUCKETS:
        theirs = T5Attention._relative_position_bucket(
            torch.tensor(AHEAD), bidirectional=bidirectional, num_buckets=buckets, max_distance=distance
        )
        runs = [[bucket, len(list(run))] for bucket, run in itertools.groupby(theirs.tolist())]
        t5[f"{buckets}, {distance}, {bidirectional}"] = runs
    return {"rotary": rotary, "t5": t5}


def ours(scheme, head_dim, length):
    """Our frequencies and factor for a line of that length."""
    plain = frequencies(int(head_dim * scheme.fraction), scheme.base)
    if scheme.scaling is None:
        return plain, 1.0
    inverse, factor = scheme.scaling(plain, base=scheme.base, length=np.array([length]))
    return np.asarray(inverse).reshape(-1), factor


def built(scheme, head_dim):
    return scheme.build(width=head_dim, heads=1, head_dim=head_dim, causal=True, key=jax.random.key(0))


@pytest.mark.parametrize("name", CASES)
def test_frequencies_and_factor_are_transformers(name):
    stored = json.loads(STORED.read_text())["rotary"][name]
    inverse, factor = ours(*CASES[name])
    assert inverse.dtype == np.float32
    np.testing.assert_allclose(inverse, np.array(stored["frequencies"]), rtol=1e-6)
    assert factor == pytest.approx(stored["factor"], rel=1e-6)


@pytest.mark.parametrize(("shape", "bidirectional"), BUCKETS)
@pytest.mark.parametrize("compiled", [False, True])
def test_t5_buckets_are_transformers(shape, bidirectional, compiled):
    runs = json.loads(STORED.read_text())["t5"][f"{shape[0]}, {shape[1]}, {bidirectional}"]
    stored = [bucket for bucket, count in runs for _ in range(count)]

    def bucket(ahead):
        return t5_bucket(ahead, buckets=shape[0], distance=shape[1], bidirectional=bidirectional)

    assert (jax.jit(bucket) if compiled else bucket)(jnp.asarray(AHEAD)).tolist() == stored


def test_the_stored_numbers_are_what_transformers_gives():
    pytest.importorskip("transformers", reason=NEEDS)
    stored, theirs = json.loads(STORED.read_text()), published()
    assert stored["t5"] == theirs["t5"]
    assert stored["rotary"].keys() == theirs["rotary"].keys()
    for name, values in theirs["rotary"].items():
        np.testing.assert_allclose(stored["rotary"][name]["frequencies"], values["frequencies"], rtol=1e-6)
        assert stored["rotary"][name]["factor"] == pytest.approx(values["factor"], rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_rotated_query_is_transformers(name):
    pytest.importorskip("transformers", reason=NEEDS)
    import torch
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding, apply_rotary_pos_emb

    scheme, head_dim, _ = CASES[name]
    n = 50
    if isinstance(scheme.scaling, DynamicNTK):  # short enough that float32 angles agree, yet beyond
        scheme = dataclasses.replace(scheme, scaling=dataclasses.replace(scheme.scaling, trained=20))
    q = np.random.default_rng(0).normal(size=(1, n, 2, head_dim)).astype(np.float32)
    cos, sin = GPTNeoXRotaryEmbedding(their_config(scheme, head_dim))(torch.tensor(q), torch.arange(n)[None])
    heads_first = torch.tensor(q).transpose(1, 2)
    theirs, _ = apply_rotary_pos_emb(heads_first, heads_first, cos, sin)
    np.testing.assert_allclose(
        built(scheme, head_dim).query(jnp.asarray(q), Slots.arange(n, (1,))),
        theirs.transpose(1, 2).numpy(),
        atol=1e-4,
    )


STATIC = [scheme for scheme, *_ in CASES.values() if not scheme.reindexes]


@pytest.mark.parametrize("scheme", STATIC, ids=lambda scheme: type(scheme.scaling).__name__)
def test_scores_under_a_scaling_depend_on_distance_alone(scheme):
    x = jax.random.normal(jax.random.key(0), (1, 6, 1, 64))
    scores = []
    for start in (0, 300):
        turned = built(scheme, 64).query(x, Slots.arange(6, (1,), start))
        scores.append(np.einsum("bqhd,bkhd->bqk", turned, turned))
    np.testing.assert_allclose(*scores, atol=5e-3)
    assert not built(scheme, 64).reindexes


def test_dynamic_ntk_is_plain_up_to_the_trained_length_and_changes_every_key_after_it():
    plain, dynamic = built(Rotary(), 8), built(Rotary(scaling=DynamicNTK(factor=3.0, trained=8)), 8)
    x = jax.random.normal(jax.random.key(0), (2, 12, 1, 8))
    short, long = Slots.arange(8, (2,)), Slots.arange(12, (2,))
    np.testing.assert_array_equal(dynamic.key(x[:, :8], short), plain.key(x[:, :8], short))
    moved = np.abs(np.asarray(dynamic.key(x, long) - plain.key(x, long))).max((0, 2, 3))
    assert (moved[1:] > 1e-4).all()
    assert dynamic.reindexes
    assert not plain.reindexes


def test_dynamic_ntk_reads_the_length_of_each_row_from_its_real_coordinates():
    dynamic = built(Rotary(scaling=DynamicNTK(factor=3.0, trained=8)), 8)
    x = jax.random.normal(jax.random.key(0), (2, 12, 1, 8))
    line = Slots.arange(12, (2,))
    ragged = dataclasses.replace(line, segment=np.where(np.arange(12) < np.array([[12], [7]]), 1, 0))
    both = dynamic.key(x, ragged)
    np.testing.assert_array_equal(both[0], dynamic.key(x[:1], Slots.arange(12, (1,)))[0])
    np.testing.assert_array_equal(both[1, :7], dynamic.key(x[1:, :7], Slots.arange(7, (1,)))[0])
    # The newest query alone, whose coordinate is the row's greatest, is turned by what turned its keys.
    newest = Slots.arange(1, (2,), 11)
    np.testing.assert_array_equal(dynamic.query(x[:, 11:], newest), dynamic.query(x, line)[:, 11:])
    # Coordinates that end early are a short line, wherever the clock is.
    packed = dataclasses.replace(line, coords=(np.arange(12) % 6)[None, :, None].repeat(2, 0))
    np.testing.assert_array_equal(dynamic.key(x, packed), built(Rotary(), 8).key(x, packed))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Interpolation(factor=0.5), "Interpolation.factor = 0.5: expected at least 1"),
        (lambda: DynamicNTK(factor=2.0, trained=0), "DynamicNTK.trained = 0: expected at least 1"),
        (lambda: YaRN(factor=2.0, trained=8, beta_slow=40.0), "less than YaRN.beta_fast = 32.0"),
        (lambda: Llama3(factor=2.0, trained=8, low=4.0), "less than Llama3.high = 4.0"),
        (
            lambda: built(Rotary(fraction=0.25, scaling=DynamicNTK(factor=2.0, trained=8)), 8),
            "DynamicNTK needs at least 4 turning features",
        ),
    ],
)
def test_what_is_wrong_with_a_scaling_is_said_in_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


FILE = """
from __gin__ import dynamic_registration
from research.attention import positions
from research.models import config

config.StackConfig.positions = @positions.Rotary()
positions.Rotary.scaling = @positions.YaRN()
positions.YaRN.factor = 4.0
positions.YaRN.trained = 64
"""
BINDINGS = [
    "StackConfig.positions = @Rotary()",
    "Rotary.scaling = @YaRN()",
    "YaRN.factor = 4.0",
    "YaRN.trained = 64",
]


@pytest.mark.parametrize(
    ("text", "bindings"), [(FILE, []), ("", BINDINGS)], ids=["in a file", "as parameters"]
)
def test_gin_binds_a_scaling(text, bindings, tmp_path):
    file, again = tmp_path / "own.gin", tmp_path / "config.gin"
    file.write_text(text)
    planned, operative = experiment.load(["configs/architecture/causal_lm.gin", str(file)], bindings)
    assert planned.model.stack.positions == Rotary(scaling=YaRN(factor=4.0, trained=64))
    again.write_text(operative)
    assert experiment.load([str(again)])[0] == planned


if __name__ == "__main__":
    sections = {
        name: "{\n"
        + ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in part.items())
        + "\n}"
        for name, part in published().items()
    }
    print("{" + ",\n".join(f"{json.dumps(name)}: {text}" for name, text in sections.items()) + "}")
