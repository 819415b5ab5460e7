"""ANNalog without its weights: the table is complete, the vocabulary is read and the tokenizer cuts SMILES."""

import pickle

import jax
import numpy as np
import pytest
from torch_files import array, dictionary, saved

from research.data.tokenizers import Tokenizer
from research.interop.annalog import VOCABULARY, WEIGHTS, FromSMILES, open_folder
from research.interop.weights import WeightsError

TOKENS = [
    "<unk>",
    "<pad>",
    "<sos>",
    "<eos>",
    "c",
    "C",
    "O",
    "N",
    "=",
    "(",
    ")",
    "1",
    "Cl",
    "Br",
    "[nH]",
    "%12",
]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Arrays of the published names and shapes, all of one block of numbers."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / VOCABULARY).write_bytes(pickle.dumps({"itos": TOKENS, "stoi": {}}))
    saved(folder / WEIGHTS, dictionary(), {})
    with pytest.raises(WeightsError) as raised:
        open_folder(folder).model()
    missing = [line.split(": missing ")[1].split(" ", 1) for line in raised.value.lines]
    return {name: tuple(int(size) for size in shape.strip("[]").split(", ")) for name, shape in missing}


def write(folder, shapes, tokens=TOKENS):
    (folder / VOCABULARY).write_bytes(pickle.dumps({"itos": tokens, "stoi": {}}))
    block = np.random.default_rng(0).normal(size=2**18).astype(np.float32) / 16
    rows = {
        name: array("0", block.size, shape, tuple(np.cumprod((1, *shape[:0:-1]))[::-1].tolist()))
        for name, shape in shapes.items()
    }
    saved(folder / WEIGHTS, dictionary(**rows), {"0": block.tobytes()})
    return folder


def test_the_table_is_complete(tmp_path, arrays):
    """With a vocabulary of 59 it has the published 4,051,259 numbers."""
    assert len(arrays) == 132
    sizes = [np.prod(shape) * (59 / 16 if len(TOKENS) in shape else 1) for shape in arrays.values()]
    assert sum(sizes) == 4_051_259
    checkpoint = open_folder(write(tmp_path, arrays))
    model = checkpoint.model()
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == sum(
        np.prod(shape) for shape in arrays.values()
    )
    block = checkpoint.weights.read("encoder.layers.1.positionwise_feedforward.fc_1.weight")
    np.testing.assert_array_equal(model.encoder.blocks[0].mlp.inner.up.kernel[1], block.T)
    np.testing.assert_array_equal(
        model.decoder.blocks[0].cross.inner.key.kernel[2],
        checkpoint.weights.read("decoder.layers.2.encoder_attention.fc_k.weight").T,
    )


def test_the_report_has_a_line_for_each_name(tmp_path, arrays):
    shapes = {**arrays, "decoder.fc_out.bias": (4,), "scale": (1,)}
    del shapes["encoder.tok_embedding.weight"]
    with pytest.raises(WeightsError) as raised:
        open_folder(write(tmp_path, shapes)).model()
    path = tmp_path / WEIGHTS
    assert sorted(raised.value.lines) == [
        f"{path}: decoder.fc_out.bias is [4], expected [16]",
        f"{path}: missing encoder.tok_embedding.weight [16, 256]",
        f"{path}: unexpected scale [1]",
    ]


def test_tokenizer(tmp_path, arrays):
    source = open_folder(write(tmp_path, arrays)).tokenizer
    assert source == FromSMILES(path=str(tmp_path / VOCABULARY))
    ready = source.ready(())
    assert isinstance(ready, Tokenizer)
    assert (ready.pad, ready.bos, ready.eos, ready.mask, ready.vocab_size) == (1, 2, 3, 16, 17)
    text = "C%12C(Cl)=O[nH]cBrN"
    ids = ready.encode(text)
    assert [TOKENS[i] for i in ids] == ["C", "%12", "C", "(", "Cl", ")", "=", "O", "[nH]", "c", "Br", "N"]
    assert ready.decode([2, *ids, 3]) == f"<bos>{text}<eos>"
    assert ready.byte_count(ids) == len(text)
    assert ready.encode("CX<eos>").tolist() == [5, 0, 0, 0, 0, 0, 0]  # the names of specials are text


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (["C"], "no list of tokens"),
        ({"itos": {"C": 1}}, "no list of tokens"),
        ({"itos": ["<unk>", "<pad>", "<sos>"]}, "repeat or lack one of <eos>, <pad>, <sos>, <unk>"),
        ({"itos": [*TOKENS, "C"]}, "its 17 tokens repeat"),
        (np.arange(3), "which could run code"),
    ],
)
def test_what_is_no_vocabulary(tmp_path, held, said):
    (tmp_path / VOCABULARY).write_bytes(pickle.dumps(held))
    with pytest.raises(WeightsError) as raised:
        FromSMILES(path=str(tmp_path / VOCABULARY)).ready(())
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
