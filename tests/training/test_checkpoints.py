"""Checkpoints come back as they were, or their damage is named; a failed save leaves the earlier ones."""

import contextlib
import dataclasses
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.models.paths import named
from research.training.checkpoints import CheckpointError, Checkpoints, Keep
from research.training.checksums import checksums

ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow
DTYPES = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint16", "bool")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: Any
    params: Any
    optimizer: Any
    key: Any
    carry: Any = None
    average: Any = None


def bits(shape, seed):
    """Random bits as float32: what a compressor stores as it is, so that a leaf is found in the file."""
    words = np.random.default_rng(seed).integers(0, 2**32, shape, np.uint32)
    return jnp.asarray(words & 0xBF7FFFFF | 0x20000000).view(jnp.float32)  # no NaN


def state(step, optimizer=optax.adamw(1e-3)):  # noqa: B008
    """Different numbers at every step."""
    params = {"blocks": {0: {"kernel": bits((16, 32), step)}}, "head": {"kernel": bits((64, 48), step + 100)}}
    moments = optimizer.init(params)
    leaves, structure = jax.tree.flatten(moments)
    leaves = [bits(leaf.shape, step + 200 + n) if leaf.ndim else leaf + step for n, leaf in enumerate(leaves)]
    moments = jax.tree.unflatten(structure, leaves)
    return State(jnp.int32(step), params, moments, jax.random.key(step))


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (name, a), b in zip(named(one).items(), jax.tree.leaves(other), strict=True):
        assert (a.shape, str(a.dtype)) == (b.shape, str(b.dtype)), name
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)


def saved(folder, steps=(1, 2)):
    with Checkpoints(folder) as checkpoints:
        for step in steps:
            checkpoints.save(state(step), {"next": step})
    return folder


def restored(folder, like=None):
    """(state, data, what was said)"""
    said = []
    with Checkpoints(folder, say=said.append) as checkpoints:
        return *checkpoints.restore(state(0) if like is None else like), said


def place(folder, leaf):
    """The file below a checkpoint that holds an array's bytes, and where they begin."""
    for path in folder.rglob("*"):
        if path.is_file() and (start := path.read_bytes().find(np.asarray(leaf).tobytes()[:32])) >= 0:
            return path, start
    raise AssertionError("the leaf is in no file")


def flip(path, byte, bit=0):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Steps 1 and 2; leave them as they are."""
    return saved(tmp_path_factory.mktemp("two") / "checkpoints")


def test_leaves_of_every_kind_come_back(tmp_path):
    one = State(
        step=jnp.int32(7),
        params={name: jnp.asarray((np.arange(7) * 1.5).astype(jnp.dtype(name))) for name in DTYPES},
        optimizer=optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init({"w": jnp.ones((2, 3))}),
        key=jax.random.key(1),
        carry={
            "keys": jax.random.split(jax.random.key(2), 3),
            "empty": {},
            "none": None,
            "tuple": (jnp.ones(2),),
        },
        average={"nan": jnp.array([jnp.nan, jnp.inf, -0.0])},
    )
    data = {"next": 3, "words": ["ü", None, 1.5e-7], "inner": {"a": [True]}}
    with Checkpoints(tmp_path / "made") as checkpoints:
        assert (checkpoints.latest, checkpoints.best, checkpoints.steps) == (None, None, [])
        checkpoints.save(one, data, {"validation_loss": 1.0})
        checkpoints.save(one, data)  # the same step: nothing is done
        for like in (one, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), one)):
            assert_same(checkpoints.restore(like)[0], one)
    _, found, said = restored(tmp_path / "made", one)
    assert (found, said) == (data, [])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checksum_sees_a_flipped_bit_and_swapped_elements(dtype):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 2 if dtype == "bool" else 256, (4, 5, jnp.dtype(dtype).itemsize), np.uint8)

    def checksum(raw):
        return int(checksums({"leaf": jnp.asarray(raw.view(jnp.dtype(dtype))[..., 0])})["leaf"])

    before = checksum(raw)
    for index in np.ndindex(raw.shape):
        changed = raw.copy()
        changed[index] ^= 1 if dtype == "bool" else 1 << rng.integers(8)
        assert checksum(changed) != before, index
    one, other = (1, 2), (3, 4)
    raw[one], raw[other] = 1, 0  # an element of low weight, or True
    swapped = raw.copy()
    swapped[one], swapped[other] = raw[other], raw[one]
    assert checksum(swapped) != checksum(raw)


@pytest.mark.parametrize(("name", "value"), [("latest", 0), ("every", -1), ("best", -1)])
def test_a_rule_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"Keep.{name} = {value}: expected at least"):
        Keep(**{name: value})


def test_the_latest_the_periodic_and_the_best_are_kept(tmp_path):
    """The best of before are still known to a run that goes on; a save without the metric is none of them."""
    losses = {1: 5.0, 2: 1.0, 3: float("nan"), 4: 3.0, 5: None, 6: 2.0, 7: 4.0, 8: float("-inf"), 9: 6.0}
    keep = Keep(latest=1, every=4, best=2)
    for part in (range(1, 6), range(6, 10)):
        with Checkpoints(tmp_path, keep) as checkpoints:
            for step in part:
                one = State(jnp.int32(step), {"w": jnp.ones(3)}, (), jax.random.key(0))
                metrics = None if losses[step] is None else {"validation_loss": losses[step], "other": 0.0}
                checkpoints.save(one, None, metrics)
    with Checkpoints(tmp_path, dataclasses.replace(keep, lowest=False)) as checkpoints:
        assert checkpoints.steps == [2, 4, 6, 8, 9]
        assert checkpoints.best == 9
    assert keep.ranked({1: 2.0, 3: 1.0, 2: 1.0}) == [3, 2, 1]
    assert Keep(latest=3).chosen(range(10), {0: 1.0}) == {7, 8, 9}


def test_any_flipped_bit_is_found_or_does_no_harm(two):
    """In every file of a checkpoint; what is restored is one of the two states, and a line tells which."""
    rng, found = random.Random(0), 0
    for path in sorted((two / "2").rglob("*")):
        if path.is_file() and (size := path.stat().st_size):
            byte, bit = rng.randrange(size), rng.randrange(8)
            flip(path, byte, bit)
            got, data, said = restored(two)
            flip(path, byte, bit)
            assert len(said) == (int(got.step) == 1)
            assert data == {"next": int(got.step)}
            assert_same(got, state(int(got.step)))
            found += len(said)
    assert found >= 4  # the rest lies in files that are not read
    assert restored(two)[2] == []


@pytest.mark.parametrize(
    "name",
    [
        "params/head/kernel",
        pytest.param("params/blocks/0/kernel", marks=SLOW),
        pytest.param("optimizer/0/mu/head/kernel", marks=SLOW),
        pytest.param("optimizer/0/nu/blocks/0/kernel", marks=SLOW),
    ],
)
def test_a_flipped_bit_of_an_array_is_named(two, name):
    leaf = named(state(2))[name]
    path, start = place(two / "2", leaf)
    for byte in (0, leaf.nbytes // 2, leaf.nbytes - 1):
        flip(path, start + byte)
        got, _, said = restored(two)
        flip(path, start + byte)
        assert_same(got, state(1))
        assert said == [f"{two}: step 2: corrupt {name}; step 1 is used instead"]


def flip_an_array(step):
    flip(*place(step, state(2).params["head"]["kernel"]))


def cut_the_arrays(step):
    path, start = place(step, state(2).params["head"]["kernel"])
    os.truncate(path, start + 100)


def remove_the_arrays(step):
    place(step, state(2).params["head"]["kernel"])[0].unlink()


def remove_the_metadata(step):
    (step / "state" / "_METADATA").unlink()


def remove_the_metadata_of_arrays(step):
    """Without it Orbax reads a key as the numbers that it is made of."""
    shutil.rmtree(step / "state" / "array_metadatas")


def cut_the_record(step):
    os.truncate(step / "record" / "metadata", 50)


def change_the_place_in_the_data(step):
    path = step / "record" / "metadata"
    path.write_text(path.read_text().replace('"next": 2', '"next": 3'))


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


DAMAGE = {
    flip_an_array: "corrupt params/head/kernel",
    cut_the_arrays: "cannot be read (damaged at ",
    remove_the_arrays: "cannot be read (damaged at ",
    remove_the_metadata: "cannot be read (",
    remove_the_metadata_of_arrays: "corrupt key",
    cut_the_record: "cannot be read (JSONDecodeError",
    change_the_place_in_the_data: "corrupt record",
    empty: "cannot be read (",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_named_passed_over_and_saved_anew(two, tmp_path, damage):
    folder = tmp_path / "checkpoints"
    shutil.copytree(two, folder)
    damage(folder / "2")
    said = []
    with Checkpoints(folder, say=said.append) as checkpoints:
        assert checkpoints.latest == 2
        with pytest.raises(CheckpointError, match=r"step 2: .*; there are steps \[1, 2\]") as error:
            checkpoints.restore(state(0), step=2)
        got, data = checkpoints.restore(state(0))
        assert_same(got, state(1))
        assert (data, checkpoints.latest) == ({"next": 1}, 1)
        (line,) = said
        assert line.startswith(f"{folder}: step 2: {DAMAGE[damage]}")
        assert line.endswith("; step 1 is used instead")
        assert "\n" not in str(error.value) + line
        assert (folder / "2").exists(), "a reader changes nothing"
        checkpoints.save(state(2), {"next": 2})
        checkpoints.save(state(3), {"next": 3})
    assert (folder / "2.corrupt").is_dir()
    got, _, said = restored(folder)
    assert (int(got.step), said) == (3, [])
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps == [2, 3]
        assert_same(checkpoints.restore(state(0), step=2)[0], state(2))


def test_when_no_checkpoint_is_whole_all_are_named(two, tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match="no checkpoint below .*train first"),
    ):
        checkpoints.restore(state(0))
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    empty(tmp_path / "1")
    cut_the_record(tmp_path / "2")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint is whole: step 2: .*; step 1: .*; remove"
    ) as error:
        restored(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    with (
        Checkpoints(two) as checkpoints,
        pytest.raises(CheckpointError, match=r"step 7: .*; there are steps \[1, 2\]"),
    ):
        checkpoints.restore(state(0), step=7)


def test_a_save_that_was_cut_short_is_ignored_and_removed_by_the_next_save(two, tmp_path):
    """A reader leaves it alone: it may be the save of a run that is going on."""
    half = tmp_path / "5.orbax-checkpoint-tmp"
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    shutil.copytree(two / "2", half)
    got, _, said = restored(tmp_path)
    assert (int(got.step), said) == (2, [])
    assert half.exists()
    saved(tmp_path, [3])
    assert not half.exists()
    assert int(restored(tmp_path)[0].step) == 3


def test_another_state_is_refused_by_the_names_that_differ(two):
    with pytest.raises(ValueError, match="step 2 holds another state") as error:
        restored(two, state(0, optax.sgd(1e-3, momentum=0.9)))
    assert "optimizer/0/count: unexpected, only in the checkpoint" in str(error.value)
    assert "\n" not in str(error.value)
    other = dataclasses.replace(state(0), params={"head": {"kernel": jnp.ones((64, 48), jnp.bfloat16)}})
    with pytest.raises(ValueError, match=r"float32\[64, 48\] in the checkpoint, bfloat16\[64, 48\] expected"):
        restored(two, other)


def test_a_step_before_the_newest_is_not_saved(two):
    with (
        Checkpoints(two) as checkpoints,
        pytest.raises(CheckpointError, match="holds step 2, newer than step 1"),
    ):
        checkpoints.save(state(1), None)


def test_parameters_alone_are_restored_without_reading_the_rest(two, tmp_path):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    flip(*place(tmp_path / "2", named(state(2))["optimizer/0/mu/head/kernel"]))
    said = []
    with Checkpoints(tmp_path, say=said.append) as checkpoints:
        params, left = checkpoints.restore_params(state(0).params)
        assert_same(params, state(2).params)
        half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
        cast, _ = checkpoints.restore_params(half)
        assert_same(cast, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))
        assert (left, said) == ([], [])
        with pytest.raises(
            ValueError, match="step 2 has no 'average': expected one of key, optimizer, params, step"
        ):
            checkpoints.restore_params(params, field="average")
        checkpoints.restore(state(0))
        assert "corrupt optimizer/0/mu/head/kernel; step 1 is used instead" in said[0]


def test_parameters_that_do_not_fit_are_listed_and_may_be_left_out(two):
    like = state(0).params | {"head": {"kernel": jnp.ones((64, 49)), "bias": jnp.ones(3)}}
    del like["blocks"]
    lines = [
        "blocks/0/kernel: unexpected, only in the checkpoint",
        "head/bias: missing in the checkpoint",
        "head/kernel: float32[64, 48] in the checkpoint, float32[64, 49] expected",
    ]
    with Checkpoints(two) as checkpoints:
        with pytest.raises(ValueError, match="step 2 has other params") as error:
            checkpoints.restore_params(like)
        assert str(error.value).splitlines()[1:] == lines
        params, left = checkpoints.restore_params(like, strict=False)
        assert left == lines
        assert_same(params, like)
        like["blocks"] = state(0).params["blocks"]
        params, left = checkpoints.restore_params(like, step=1, strict=False)
    assert left == lines[1:]
    assert_same(params, like | {"blocks": state(1).params["blocks"]})


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/checkpoints: Not a directory; choose a folder"):
        Checkpoints(tmp_path / "file" / "checkpoints")


@contextlib.contextmanager
def mounted(folder, options):
    """A file system of its own below the folder, where this user may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def largest_file(size):
    """Files grow no larger, as under a quota."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def large(step):
    return dataclasses.replace(state(step), carry=bits((64, 64, 64), 0))  # 1 MB


def write(checkpoints, one):
    checkpoints.save(one, None)
    checkpoints.wait()


@pytest.mark.parametrize("room", [pytest.param(0, marks=SLOW), 400_000])
def test_a_full_disk_is_named_and_leaves_the_checkpoints_before(tmp_path, room):
    with mounted(tmp_path / "disk", "size=1m") as disk, Checkpoints(disk / "checkpoints") as checkpoints:
        write(checkpoints, state(1))
        (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - room))
        with pytest.raises(CheckpointError, match="cannot save step 2 below .*: No space left on") as error:
            write(checkpoints, large(2))
        assert "\n" not in str(error.value)
        assert "steps [1] are whole: make room there" in str(error.value)
        if not room:
            (disk / "other").unlink()
        assert_same(checkpoints.restore(state(0))[0], state(1))
        write(checkpoints, state(3))  # there is room: the half checkpoint is gone
        assert checkpoints.steps == [1, 3]
        assert_same(checkpoints.restore(state(0))[0], state(3))
        assert_same(checkpoints.restore(state(0), step=1)[0], state(1))


def test_a_quota_is_named_at_the_next_save_or_on_leaving_but_hides_no_other_error(tmp_path, caplog, capfd):
    checksums(large(0))  # compiled while files may grow
    said = []
    with Checkpoints(tmp_path) as checkpoints:
        write(checkpoints, state(1))
        with largest_file(200_000):
            checkpoints.save(large(2), None)
            with pytest.raises(
                CheckpointError, match=r"cannot save step 2 .*: File too large; steps \[1\] are whole"
            ):
                checkpoints.save(state(3), None)
    with largest_file(200_000):
        with pytest.raises(CheckpointError, match="cannot save step 4"), Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(large(4), None)
        with pytest.raises(KeyError):  # noqa: PT012, SIM117
            with Checkpoints(tmp_path, say=said.append) as checkpoints:
                checkpoints.save(large(5), None)
                raise KeyError
    assert len(said) == 1
    assert "cannot save step 5" in said[0]
    assert_same(restored(tmp_path)[0], state(1))
    assert caplog.text + capfd.readouterr().err == ""  # no traceback of a thread


def test_a_folder_that_cannot_be_written_is_named_and_still_read(tmp_path):
    with mounted(tmp_path / "disk", "size=2m") as disk:
        saved(disk / "checkpoints", [1])
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        said = []
        with Checkpoints(disk / "checkpoints", say=said.append) as checkpoints:
            assert_same(checkpoints.restore(state(0))[0], state(1))
            with pytest.raises(CheckpointError, match="cannot save step 2 .*: Read-only file system; steps"):
                checkpoints.save(state(2), None)
            assert_same(checkpoints.restore(state(0))[0], state(1))
        with pytest.raises(CheckpointError, match="other: Read-only file system; choose a folder"):
            Checkpoints(disk / "other")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_another_user_is_named_and_still_read(tmp_path):
    saved(tmp_path, [1])
    tmp_path.chmod(0o555)
    try:
        with Checkpoints(tmp_path) as checkpoints:
            assert_same(checkpoints.restore(state(0))[0], state(1))
            with pytest.raises(CheckpointError, match="cannot save step 2 .*: Permission denied; steps"):
                checkpoints.save(state(2), None)
    finally:
        tmp_path.chmod(0o755)


def child(*words):
    """This module in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.test_checkpoints", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("milliseconds", [0, *(pytest.param(n, marks=SLOW) for n in range(3, 25, 3))])
def test_a_process_killed_in_the_middle_of_a_save_leaves_the_one_before(tmp_path, milliseconds):
    process, deadline = child(save_without_end.__name__, tmp_path), time.monotonic() + 120
    while not (tmp_path / "2").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(milliseconds / 1000)
    while process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        if list(tmp_path.glob("*tmp*")):
            process.kill()
            break
        process.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, out
    got, data, said = restored(tmp_path)
    assert said == []
    assert data == {"next": int(got.step)}
    assert_same(got, state(int(got.step)))
    saved(tmp_path, [int(got.step) + 1])
    assert not list(tmp_path.glob("*tmp*"))


def save_without_end(folder):
    with Checkpoints(folder) as checkpoints:
        for step in range(1, 10_000):
            checkpoints.save(state(step), {"next": step})


def test_checkpoints_move_between_meshes(tmp_path):
    process = child(move_between_meshes.__name__, tmp_path)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert_same(restored(tmp_path, whole(0))[0], whole(3))  # and to this process, which has one device


def whole(step):
    return State(jnp.int32(step), {"kernel": bits((64, 48), step)}, (), jax.random.key(step))


def move_between_meshes(folder):
    jax.config.update("jax_num_cpu_devices", 8)

    def layout(shape, spec):
        mesh = Mesh(np.array(jax.devices()).reshape(shape), ("data", "tensor"))
        shardings = (NamedSharding(mesh, spec), NamedSharding(mesh, PartitionSpec()))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[leaf.ndim != 2]),
            whole(0),
        )

    layouts = {
        2: layout((4, 2), PartitionSpec("data", "tensor")),
        3: layout((2, 4), PartitionSpec("tensor")),
    }
    said = []
    with Checkpoints(folder, say=said.append) as checkpoints:
        checkpoints.save(whole(1), None)
        for step, wanted in layouts.items():
            got, _ = checkpoints.restore(wanted)  # from one device, and from the mesh before
            assert_same(got, whole(step - 1))
            for one, other in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
                assert one.sharding == other.sharding
            placed = jax.tree.map(
                lambda leaf, abstract: jax.device_put(leaf, abstract.sharding), whole(step), wanted
            )
            assert jax.device_get(checksums(placed)) == jax.device_get(checksums(whole(step)))
            checkpoints.save(placed, None)
        params, _ = checkpoints.restore_params(layouts[2].params)
        assert_same(params, whole(3).params)
        path, start = place(folder / "3", whole(3).params["kernel"][-16:])
        flip(path, start)
        assert_same(checkpoints.restore(layouts[3])[0], whole(2))
        flip(path, start)
    assert said == [f"{folder}: step 3: corrupt params/kernel; step 2 is used instead"]


if __name__ == "__main__":
    name, folder = sys.argv[1:]
    globals()[name](Path(folder))
