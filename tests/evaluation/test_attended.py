"""Where attention goes: all of it is counted, by hand where it is uniform, and sinks are found."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_words import Words

from research.attention.positions import ALiBi, Learned, NoPosition
from research.data.layouts import Concatenate
from research.data.objectives import CausalLM
from research.data.pipeline import Data
from research.evaluation.attended import Attended
from research.evaluation.checked import Checked
from research.evaluation.trained import Trained
from research.models.config import StackConfig
from research.models.families import DecoderConfig, EncoderConfig
from research.training.optimizers import AdamW
from research.training.step import Trainer

STACK = StackConfig(layers=2, width=16, heads=2, hidden=16)
SHORT = Attended(tokens=8, lines=3)


@pytest.fixture(scope="module")
def text():
    return Data(
        corpus=Words(), objective=CausalLM(), layout=Concatenate(), window=24, batch=4, near_duplicates=None
    ).load()


def trained(text, positions, change=lambda params: params):
    config = DecoderConfig(stack=dataclasses.replace(STACK, positions=positions))
    trainer = Trainer(config, vocab=text.tokenizer.vocab_size, optimizer=AdamW(), steps=1)
    params = change(trainer.initial(jax.random.key(0)).params)
    return Trained(trainer=trainer, params=params, text=text, seed=0)


def indifferent(params):
    """All keys are alike to all queries."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros_like(leaf) if "query" in jax.tree_util.keystr(path) else leaf, params
    )


def test_indifferent_attention_by_hand(text):
    found = SHORT(trained(text, NoPosition(), indifferent))
    queries = np.arange(4, 8)
    share = 1 / (queries + 1)  # of each of the keys that the query sees
    assert found["first"].keys() == {"0", "1"}
    for heads in found["first"].values():
        assert heads == {"0": pytest.approx(share.mean()), "1": pytest.approx(share.mean())}
    # Behind BOS query 4 sees tokens 0 to 3 back, query 7 those 0 to 6 back.
    expected = {
        "0": share.mean(),
        "1": share.mean(),
        "2": (2 * share).mean(),
        "4": (share * [0, 1, 2, 3]).mean(),
    }
    assert found["by_distance"] == {label: pytest.approx(value) for label, value in expected.items()}


def test_all_attention_is_counted(text):
    found = SHORT(trained(text, ALiBi()))
    first = np.mean([list(heads.values()) for heads in found["first"].values()])
    assert first + sum(found["by_distance"].values()) == pytest.approx(1.0, abs=1e-5)
    # Where nothing else tells keys apart, less goes to each the further back it is.
    near = SHORT(trained(text, ALiBi(), indifferent))["by_distance"]
    assert near["0"] > near["1"] > near["2"] / 2 > near["4"] / 4


def test_what_cannot_be_watched_is_said_before(text):
    assert isinstance(SHORT, Checked)
    with pytest.raises(ValueError, match="expected a decoder"):
        SHORT.check(EncoderConfig(stack=STACK))
    short = DecoderConfig(stack=dataclasses.replace(STACK, positions=Learned(length=4)))
    with pytest.raises(ValueError, match=r"Attended.tokens = 8.*end at 4"):
        SHORT.check(short)
    with pytest.raises(ValueError, match=r"Attended.tokens = 3"):
        Attended(tokens=3)
