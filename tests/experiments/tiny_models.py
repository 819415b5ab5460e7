"""A tiny model of ours as it would be published, and experiments that start from it."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
from rich.console import Console

from experiments import bindings, configs
from experiments.experiment import Experiment
from research.attention.masks import Causal
from research.attention.positions import Learned
from research.data.layouts import Concatenate
from research.data.local import TextFiles
from research.data.objectives import CausalLM
from research.data.pipeline import Data
from research.data.subwords import tokenizer_json
from research.data.tokenizers import Bytes
from research.interop import hub
from research.models.config import EmbeddingConfig, StackConfig
from research.models.families import DecoderConfig, EncoderConfig
from research.training.optimizers import AdamW

VOCAB = Bytes().vocab_size
LLAMA = DecoderConfig(
    stack=StackConfig(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, hidden=48),
    mask=Causal(),
    embedding=EmbeddingConfig(rows=VOCAB, scale=1.0),
)
STATES = EncoderConfig(  # BERT without a head of tokens
    stack=StackConfig(
        layers=2,
        width=32,
        heads=4,
        hidden=48,
        activation="gelu_exact",
        norm="layer",
        placement="post",
        input_norm=True,
        epsilon=1e-12,
        use_bias=True,
        positions=Learned(length=64, scale=1.0),
    ),
    embedding=EmbeddingConfig(rows=VOCAB, scale=1.0, types=2),
    pooler=True,
)
MASKED = dataclasses.replace(  # and with one
    STATES,
    embedding=dataclasses.replace(STATES.embedding, transform=True, bias=True),
    pooler=False,
)
QUIET = Console(quiet=True)


def command(*words, said=None):
    """Exit code, output and errors of a command line."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=configs.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        input=said,
    )
    return done.returncode, done.stdout, done.stderr


def published(folder, config=LLAMA, *, seed=0, architecture="llama"):
    """A Hugging Face folder with a tokenizer of bytes."""
    rows = config.embedding.rows or VOCAB
    hub.export(config.build(vocab=rows, key=jax.random.key(seed)), folder, architecture)
    (folder / "tokenizer.json").write_text(tokenizer_json(Bytes()))
    return folder


def texts(folder, seed=0):
    """Files of random words, and the corpus that they are."""
    rng, words = np.random.default_rng(seed), ["one", "two", "three", "four", "five", "six", "seven"]
    folder.mkdir()
    for i in range(24):
        (folder / f"{i}.txt").write_text(" ".join(rng.choice(words, 60)))
    return TextFiles(pattern=f"{folder}/*.txt")


def planned(corpus, config=LLAMA, **changes):
    """An experiment of a few steps on such texts."""
    data = Data(
        corpus=corpus, objective=CausalLM(), layout=Concatenate(), window=32, batch=4, held_out=8, test=0.2
    )
    one = Experiment(model=config, data=data, optimizer=AdamW(learning_rate=3e-3), steps=4)
    return dataclasses.replace(one, **changes)


def gin_of(one):
    """The gin text of an experiment."""
    return bindings.text("experiments.experiment.train", one)
