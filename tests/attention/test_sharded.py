"""Attention and the families over a mesh of 8 devices give what one device gives.

A process has its devices once and for all, so the cases run in a process of their own, `main`, which prints errors.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filelock import FileLock
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from research.attention import blockwise, positions
from research.attention.core import attend
from research.attention.masks import Causal, Full, Prefix, Slots, Window
from research.attention.recurrence import Recurrent
from research.batch import Batch, Tokens
from research.models.config import BlockSpec, StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig

TESTS = pathlib.Path(__file__).parents[1]
AXES = ("data", "fsdp", "tensor", "sequence")
H, G, D, N, ROWS, VOCAB = 4, 2, 8, 24, 8, 30
DYNAMIC = functools.partial(blockwise.attend, schedule=functools.partial(blockwise.dynamic, size=8))

DATA, FSDP_TENSOR, SEQUENCE = {"data": 8}, {"fsdp": 4, "tensor": 2}, {"sequence": 8}
ALL = {"data": 2, "tensor": 2, "sequence": 2}


def mesh_of(data=1, fsdp=1, tensor=1, sequence=1):
    devices = np.asarray(jax.devices()[: data * fsdp * tensor * sequence])
    return Mesh(devices.reshape(data, fsdp, tensor, sequence), AXES, axis_types=(AxisType.Auto,) * 4)


def errors(got, expected):
    """The largest difference of each array, in parts of the largest number there is."""
    return {
        name: float(np.abs(np.asarray(got[name]) - wanted).max() / max(np.abs(wanted).max(), 1e-3))
        for name, wanted in ((name, np.asarray(leaf)) for name, leaf in expected.items())
    }


# Attention.


def line(n, rows=ROWS, packed=False, start=0):
    """Rows with a prefix and padding at their end, of one example or of several."""
    place = np.tile(np.arange(n, dtype=np.int32), (rows, 1))
    edge = np.arange(rows)[:, None] % 5 + n // 2
    second = packed & (place >= edge)
    real = place < n - np.arange(rows)[:, None] % 3
    position = np.where(second, place - edge, place)
    return Slots(position, np.where(real, 1 + second, 0), real & (position < 4), start=start)


def attention(
    mesh,
    mask,
    *,
    scheme=None,
    sinks=False,
    softcap=None,
    rate=0.0,
    groups=G,
    rows=ROWS,
    queries=N,
    keys=N,
    packed=False,
    start=0,
    backend=DYNAMIC,
):
    """Errors of output, log-sum-exp and gradients, of the dense backend on one device."""
    rng = np.random.default_rng(0)
    shapes = (rows, queries, H, D), (rows, keys, groups, D), (rows, keys, groups, D)
    build = {"width": 8, "heads": H, "head_dim": D, "causal": True, "key": jax.random.key(0)}
    args = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in zip("qkv", shapes, strict=True)
    }
    args["bias"] = scheme and scheme.build(**build).bias
    args["sinks"] = np.array([-1, 0, 1, 2], np.float32) if sinks else None
    slots = [line(n, rows, packed, start) for n in (queries, keys)]
    word = jax.random.bits(jax.random.key(1), (rows, H))
    weights = np.cos(np.arange(rows * queries * H * D)).reshape(rows, queries, H, D)

    def run(backend):
        @jax.jit
        def both_ways(args, slots, word):
            def scalar(args):
                out, lse = attend(
                    **args,
                    mask=mask,
                    q_slots=slots[0],
                    k_slots=slots[1],
                    softcap=softcap,
                    dropout=(rate, word) if rate else None,
                    backend=backend,
                    return_lse=True,
                )
                lse = jnp.where(lse > -1e29, lse, 0)
                return jnp.sum(out * weights) + jnp.sum(jnp.sin(lse)), (out, lse)

            gradients, (out, lse) = jax.grad(scalar, has_aux=True)(args)
            bias = jnp.hstack(jax.tree.leaves(gradients["bias"]) or [0.0])
            return {"out": out, "lse": lse, **gradients, "bias": bias}

        found = both_ways(args, slots, word)
        return {name: leaf for name, leaf in found.items() if leaf is not None}

    expected = run("dense")
    with jax.set_mesh(mesh):
        return errors(run(backend), expected)


PARTS = {  # of rows, queries, heads and keys; and whether the slots still promise where they start
    "data": (DATA, [1, N, H, G, N, 0]),
    "fsdp-tensor": (FSDP_TENSOR, [2, N, H // 2, G // 2, N, 0]),
    "sequence": (SEQUENCE, [ROWS, N // 8, H, G, N, None]),
    "all": (ALL, [4, N // 2, H // 2, G // 2, N, None]),
    "few groups": ({"fsdp": 2, "tensor": 4}, [4, N, H, G, N, 0]),
    "one device": ({}, [ROWS, N, H, G, N, 0]),
    "replicas": (None, [ROWS, N, H, G, N, 0]),
}


def part(mesh):
    """What the backend is given on one device of a mesh, or of one that an outer `shard_map` has shared out (None)."""
    seen = []

    def backend(q, k, v, *, q_slots, k_slots, bias, dropout, **_):
        rows, queries, heads, _ = q.shape
        assert q_slots.position.shape == (rows, queries)
        assert bias.slopes.shape == (heads,)
        assert dropout[1].shape == (rows, heads)
        seen.extend([rows, queries, heads, k.shape[2], k_slots.length, q_slots.start])
        return jnp.zeros(q.shape), jnp.zeros((rows, heads, queries))

    def call(q, k, slots, word):
        line = {"mask": Full(), "q_slots": slots, "k_slots": slots, "bias": positions.LinearBias(jnp.ones(H))}
        return attend(q, k, k, dropout=(0.1, word), backend=backend, **line)

    args = jnp.zeros((ROWS, N, H, D)), jnp.zeros((ROWS, N, G, D)), line(N), jnp.zeros((ROWS, H), jnp.uint32)
    if mesh is not None:
        with jax.set_mesh(mesh_of(**mesh)):
            jax.eval_shape(call, *args)
        return seen
    each = PartitionSpec("replica")
    with jax.set_mesh(Mesh(np.asarray(jax.devices()), ("replica",), axis_types=(AxisType.Auto,))):
        together = jax.shard_map(jax.vmap(call), in_specs=each, out_specs=each, check_vma=False)
        jax.eval_shape(together, *jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), args))
    return seen


def states():
    """How a sublayer's hidden states are split, which come whole."""
    model = DecoderConfig(stack=stack(layers=1)).build(vocab=VOCAB, key=jax.random.key(0))
    block = jax.tree.map(lambda leaf: leaf[0], model.stack.blocks[0])
    with jax.set_mesh(mesh_of(fsdp=2, tensor=2, sequence=2)):
        add = jax.jit(lambda x: block.mlp.add(x, x, None)).lower(jnp.zeros((ROWS, N, 16))).compile()
    return str(add.output_shardings.spec)


def table():
    """Whether reading the token table, or its gradient, makes all of it on some device."""
    mesh = mesh_of(**FSDP_TENSOR)
    model = DecoderConfig(stack=stack(layers=1, width=64)).build(vocab=512, key=jax.random.key(0))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    ids = jax.device_put(np.zeros((ROWS, N), np.int32), rows)
    whole = NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
    embedding = jax.tree.map(lambda leaf: jax.device_put(leaf, whole), model.embedding)
    with jax.set_mesh(mesh):
        read = lambda embedding, ids: jnp.sin(embedding(Tokens(ids, line(N)))).sum()  # noqa: E731
        learn = jax.jit(jax.value_and_grad(read))
        return "f32[512,64]" in learn.lower(embedding, ids).compile().as_text()


def replicas():
    """A `shard_map` over replicas around, rows split inside: as each replica alone."""
    devices = np.asarray(jax.devices()).reshape(2, 4)
    mesh = Mesh(devices, ("replica", "data"), axis_types=(AxisType.Auto,) * 2)
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.normal(size=(4, ROWS, N, H, D)), jnp.float32) for _ in range(3))
    slots = line(N)

    def call(q, k, v):
        return attend(q, k, v, mask=Causal(), q_slots=slots, k_slots=slots, backend=DYNAMIC)

    expected = jax.jit(jax.vmap(call))(q, k, v)
    spec = PartitionSpec("replica")
    with jax.set_mesh(mesh):
        spread = jax.shard_map(
            jax.vmap(call), in_specs=spec, out_specs=spec, axis_names={"replica"}, check_vma=False
        )
        return errors({"out": jax.jit(spread)(q, k, v)}, {"out": expected})


# Families.

STACK = StackConfig(layers=2, width=16, heads=H, kv_heads=G, hidden=32, dropout=0.2, attention_dropout=0.2)
T5 = positions.T5Bias(buckets=8, distance=16)


def stack(**changes):
    return StackConfig(**{**vars(STACK), **changes})


FAMILIES = {
    "decoder": DecoderConfig(
        stack=stack(layers=3, pattern=(BlockSpec(), BlockSpec(window=Window(5)))), mask=Prefix()
    ),
    "encoder": EncoderConfig(stack=stack(positions=T5)),
    "encoder-decoder": EncoderDecoderConfig(
        encoder=stack(positions=positions.ALiBi()), decoder=stack(sinks=True, softcap=5.0)
    ),
    "memory": DecoderConfig(
        stack=stack(memory=Recurrent(length=6), positions=positions.Relative(), remat="full", layers=1)
    ),
}


def split_as_in_training(mesh, path, leaf):
    """Kernels over fsdp and tensor, the token table over tensor and fsdp."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    last = ("tensor", "fsdp") if "table" in name and leaf.shape[0] == VOCAB else ("fsdp", "tensor")
    if not ("kernel" in name or "embedding" in name):
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec()))
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*(None,) * (leaf.ndim - 2), *last)))


def family(mesh, name):
    """Errors of the loss and of every gradient, of parameters and batch on one device."""
    config = FAMILIES[name]
    model = config.build(vocab=VOCAB, key=jax.random.key(0))
    rng = np.random.default_rng(2)

    def tokens(n, start=0):
        slots = line(n, packed=True)
        return Tokens(
            rng.integers(0, VOCAB, (ROWS, n)).astype(np.int32),
            Slots(slots.position + start, slots.segment, slots.prefix, start=0),
        )

    batches = []
    for start in (0, N) if name == "memory" else (0,):
        target = tokens(N, start)
        source = tokens(18) if name == "encoder-decoder" else None
        batches.append(
            Batch(target, np.roll(target.ids, -1, 1), (target.slots.segment != 0).astype(np.float32), source)
        )
    keys = jax.random.split(jax.random.key(3), ROWS)

    @jax.jit
    @jax.value_and_grad
    def loss(model, batches, keys):
        total, carry = 0.0, None
        for batch in batches:
            out = model.apply(batch, key=keys, carry=carry)
            carry = out.carry
            scores = jax.nn.log_softmax(model.logits(out.hidden))
            picked = jnp.take_along_axis(scores, batch.labels[..., None], axis=-1)[..., 0]
            total -= jnp.sum(picked * batch.weights)
        return total / sum(jnp.sum(batch.weights) for batch in batches)

    def flat(found):
        value, gradient = found
        leaves = jax.tree_util.tree_leaves_with_path(gradient)
        return {"loss": value, **{jax.tree_util.keystr(path): leaf for path, leaf in leaves}}

    expected = flat(loss(model, batches, keys))
    with jax.set_mesh(mesh):
        model = jax.tree_util.tree_map_with_path(functools.partial(split_as_in_training, mesh), model)
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        return errors(flat(loss(model, *jax.device_put((batches, keys), rows))), expected)


EVERYTHING = {"scheme": T5, "sinks": True, "softcap": 2.0, "rate": 0.3, "packed": True}
MASKS = {
    "causal": (Causal(), {}),
    "prefix": (Prefix(), {}),
    "window": (Window(7), {}),
    "packed": (Causal(), {"packed": True}),
}
MESHES = {"data": DATA, "fsdp-tensor": FSDP_TENSOR, "sequence": SEQUENCE, "all": ALL}

FAST = {
    "causal/all": (attention, ALL, Causal()),
    "prefix/sequence": (attention, SEQUENCE, Prefix()),
    "window/data": (attention, DATA, Window(7)),
    "everything/all": (attention, ALL, Prefix(), EVERYTHING),
    "alibi/fsdp-tensor": (attention, FSDP_TENSOR, Causal(), {"scheme": positions.ALiBi(), "packed": True}),
    "longer keys/all": (attention, ALL, Window(9), {"keys": N + 7, "start": None, "rate": 0.3}),
    "nothing divides/all": (
        attention,
        ALL,
        Causal(),
        {"rows": 3, "queries": 15, "keys": 15, "groups": 1, "rate": 0.3},
    ),
    "replicas": (replicas,),
    "encoder-decoder": (family, {"fsdp": 2, "tensor": 2, "sequence": 2}, "encoder-decoder"),
    "memory": (family, ALL, "memory"),
}
SLOW = {
    **{f"{mask}/{mesh}": (attention, MESHES[mesh], *MASKS[mask]) for mask in MASKS for mesh in MESHES},
    **{f"everything/{mesh}": (attention, MESHES[mesh], Prefix(), EVERYTHING) for mesh in MESHES},
    "cross/all": (attention, ALL, Full(), {"keys": 16, "start": None, "sinks": True}),
    "dense/all": (attention, ALL, Prefix(), {**EVERYTHING, "backend": "dense"}),
    "splash/data-tensor": (
        attention,
        {"data": 2, "tensor": 2},
        Causal(),
        {"packed": True, "backend": "splash", "rows": 2},
    ),
    **{
        f"{name}/{mesh}": (family, MESHES[mesh], name)
        for name in FAMILIES
        for mesh in ("fsdp-tensor", "sequence")
    },
    "decoder/all": (family, ALL, "decoder"),
    "encoder/all": (family, ALL, "encoder"),
}
SLOW = {name: case for name, case in SLOW.items() if name not in FAST}
CASES = {**FAST, **SLOW}


def main():
    """Run the cases named on the command line on 8 devices of a CPU and print {case: {array: error}}."""
    jax.config.update("jax_num_cpu_devices", 8)
    found = {
        "states": states(),
        "whole table": table(),
        "parts": {name: part(mesh) for name, (mesh, _) in PARTS.items()},
    }
    for name in sys.argv[1:]:
        function, *args = CASES[name]
        options = args.pop() if args and isinstance(args[-1], dict) and len(args) > 1 else {}
        mesh = [mesh_of(**args.pop(0))] if args else []
        found[name] = function(*mesh, *args, **options)
    print(json.dumps(found))


@pytest.fixture(scope="module")
def found(request, tmp_path_factory):
    """What `main` prints of the cases that are asked for, run once for all workers."""
    ours = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    asked = {call.params["case"] for call in ours if call is not None and "case" in call.params}
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with FileLock(folder / "sharded.lock"):
        kept = folder / "sharded.json"
        if not kept.exists():
            own = (TESTS.parent, TESTS, TESTS / "attention")
            paths = (*own, *filter(None, [os.environ.get("PYTHONPATH")]))
            environment = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",  # which can be any number of devices
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # they cost more than they save
            }
            code = "import conftest, test_sharded; test_sharded.main()"
            command = [sys.executable, "-c", code, *sorted(asked)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            kept.write_text(done.stdout)
        return json.loads(kept.read_text())


@pytest.mark.parametrize("case", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_mesh_changes_no_number(case, found):
    """Outputs, log-sum-exps, losses and every gradient."""
    worst = max(found[case], key=found[case].get)
    assert found[case][worst] < 1e-5, worst


def test_a_mesh_of_one_device_leaves_no_trace():
    q, slots = jnp.zeros((ROWS, N, H, D)), line(N)
    with jax.set_mesh(mesh_of()):
        trace = jax.make_jaxpr(lambda q: attend(q, q, q, mask=Causal(), q_slots=slots, k_slots=slots))(q)
    assert "shard_map" not in str(trace)


@pytest.mark.parametrize("mesh", PARTS)
def test_each_device_attends_for_its_own_part(mesh, found):
    assert found["parts"][mesh] == PARTS[mesh][1]


def test_hidden_states_are_split_by_rows_and_tokens(found):
    assert found["states"] == str(PartitionSpec("fsdp", "sequence"))


def test_no_device_holds_the_whole_token_table(found):
    assert not found["whole table"]
