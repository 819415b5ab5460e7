"""Pickles: arrays are read as they were saved, and nothing that is not an array or a container is ever called."""

import collections
import pickle
import zipfile

import numpy as np
import pytest
from torch_files import array, dictionary, saved, text

from research.interop.pickled import Pickled, plain
from research.interop.weights import WeightsError


def test_arrays(tmp_path):
    numbers = np.arange(24, dtype=np.float32)
    program = dictionary(
        whole=array("0", 24, (4, 6), (6, 1)),
        part=array("0", 24, (2, 3), (6, 1), offset=7),
        turned=array("0", 24, (6, 4), (1, 6)),
        half=array("1", 2, (2,), (1,), kind=b"HalfStorage"),
        one=array("2", 1, (), (), kind=b"LongStorage"),
        none=array("0", 24, (0, 6), (6, 1)),
    )
    blocks = {"0": numbers, "1": np.array([1.5, -2], np.float16), "2": np.array([7])}
    held = Pickled(
        saved(tmp_path / "a.pt", program, {name: block.tobytes() for name, block in blocks.items()})
    )
    whole = numbers.reshape(4, 6)
    expected = {"whole": whole, "part": whole[1:3, 1:4], "turned": whole.T, "none": whole[:0]}
    expected |= {"half": blocks["1"], "one": blocks["2"][0]}
    assert set(held.specs()) == set(expected)
    for name, value in expected.items():
        found = held.read(name)
        np.testing.assert_array_equal(found, value)
        assert (found.shape, found.dtype) == held.specs()[name] == (value.shape, value.dtype)
    with pytest.raises(ValueError, match="read-only"):
        held.read("whole")[0, 0] = 1


# Programs that make the folder they are given when they are run.
ATTACKS = {
    "reduce": lambda at: b"cposix\nmkdir\n(" + at + b"tR.",
    "inst": lambda at: b"(" + at + b"iposix\nmkdir\n.",
    "obj": lambda at: b"(cposix\nmkdir\n" + at + b"o.",
    "from the stack": lambda at: b"\x80\x04\x8c\x05posix\x8c\x05mkdir\x93(" + at + b"tR.",
    "code": lambda at: (
        b"cbuiltins\neval\n(" + text("__import__('os').mkdir(at)") + b"}" + text("at") + at + b"stR."
    ),
    "inside": lambda at: b"\x80\x02}" + text("a") + b"cposix\nmkdir\n(" + at + b"tRs.",
    "as a state": lambda at: (
        b"\x80\x02ccollections\nOrderedDict\n)R}" + text("a") + b"cposix\nmkdir\n(" + at + b"tRsb."
    ),
    "as a key": lambda at: b"\x80\x02}(cposix\nmkdir\n(" + at + b"tRK\x01u.",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_nothing_is_called(tmp_path, attack):
    burst = tmp_path / "burst"
    program = attack(text(str(burst)))
    pickle.loads(program)
    assert burst.is_dir()
    burst.rmdir()
    (tmp_path / "a.pkl").write_bytes(program)
    for read in (lambda: plain(tmp_path / "a.pkl"), lambda: Pickled(saved(tmp_path / "a.pt", program, {}))):
        with pytest.raises(WeightsError) as raised:
            read()
        (line,) = raised.value.lines
        assert "which could run code" in line
        assert "\n" not in line
    assert not burst.exists()


class Odd:
    """A class of somebody's own."""

    def __setstate__(self, state):
        raise AssertionError("called")


@pytest.mark.parametrize(
    "value", [Odd(), {"a": Odd}, np.arange(3), collections.Counter("ab"), complex(1, 2), range(3)]
)
def test_only_plain_containers_are_plain(tmp_path, value):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(
        WeightsError, match=r"^[^\n]*names [^\n]*, expected a pickle of plain containers alone[^\n]*$"
    ):
        plain(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers(tmp_path, protocol):
    value = {"itos": ["<pad>", "C", "é"], "n": (1, 2.5, None, True), 3: {"b": b"x"}}
    if protocol < 3:
        del value[3]  # bytes are rebuilt by a function there
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    assert plain(tmp_path / "a.pkl") == value


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02",
        b"no pickle",
        b"\x80\x04\x95" + b"\xff" * 8,
        b"\x80\x02\x82\x01.",  # an extension
        b"\x80\x02]Q.",  # a reference to what is outside
        dictionary(a=array("0", 4, (5,), (1,))),
        dictionary(a=array("0", 4, (2, 2), (4, 1))),
        dictionary(a=array("0", 4, (2,), (-1,), offset=3)),
        dictionary(a=array("0", 4, (2,), (1,), offset=-1)),
        dictionary(a=array("0", 4, (4,), (1, 1))),
        dictionary(a=array("0", 4, (4,), (1,), kind=b"UntypedStorage")),
        dictionary(a=array("0", 4, (4,), (1,), rebuild=b"ctorch._utils\n_rebuild_parameter\n")),
        dictionary(a=array("0", 4, (4,), (1,), rebuild=b"ctorch\nload\n")),
        dictionary(a=b"K\x01"),
        b"\x80\x02K\x01.",
    ],
)
def test_what_holds_no_arrays(tmp_path, program):
    path = saved(tmp_path / "a.pt", program, {"0": bytes(16)})
    with pytest.raises(WeightsError) as raised:
        Pickled(path)
    (line,) = raised.value.lines
    assert line.startswith(f"{path}: ")
    assert "\n" not in line


def test_damaged_files(tmp_path):
    program, block = dictionary(a=array("0", 4, (4,), (1,))), bytes(16)
    path = saved(tmp_path / "a.pt", program, {"0": block})
    content = path.read_bytes()
    for cut in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(WeightsError, match="cannot be read"):
            Pickled(path)
    with pytest.raises(WeightsError, match="No such file"):
        Pickled(tmp_path / "none.pt")
    for blocks, said in (({"0": block[:-1]}, "has 15 bytes, expected 16"), ({}, "cannot be read")):
        with pytest.raises(WeightsError, match=said):
            Pickled(saved(path, program, blocks)).read("a")
    with pytest.raises(WeightsError, match="little-endian"):
        Pickled(saved(path, program, {"0": block}, order=b"big"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(WeightsError, match=r"no data\.pkl"):
        Pickled(path)
