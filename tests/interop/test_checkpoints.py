"""Real checkpoints beside the implementations they were published with: the same numbers, the same text."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from experiments import origins, writing
from research.attention.masks import Slots
from research.batch import Batch, Tokens
from research.data.catalog import CatalogError
from research.generation.engine import Generation, Greedy, generate, prompt
from research.interop.annalog import vocabulary
from research.interop.pretrained import opened

torch = pytest.importorskip("torch", reason="torch is not here; see `make test-parity`")
transformers = pytest.importorskip("transformers", reason="transformers is not here; see `make test-parity`")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's and transformers' own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TEXT = """Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
compliance with the License. Unless required by applicable law or agreed to in writing, software distributed under
the License is distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or
implied. The study of 1,024 sequences began on 17 March 1999 in Zürich, where 日本語 was read aloud for 3.5 hours:
for (i = 0; i < 64; i++) { total += rows[i] * 2; }"""
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "In 1969, the first",
)


def fetched(name):
    """A checkpoint of the catalog, and the folder of its files."""
    try:
        checkpoint = opened(name)
    except CatalogError as error:
        pytest.skip(f"no network: {error}")
    return checkpoint, Path(checkpoint.weights.place).parent


def line(ids):
    """A plain batch of one line."""
    ids = np.asarray(ids, np.int32)[None]
    target = Tokens(ids, Slots.arange(ids.shape[1], (1,)))
    return Batch(target, labels=ids, weights=jnp.ones(ids.shape))


# SmolLM2, of the LLaMA class.


@pytest.fixture(scope="module")
def smollm2():
    """Ours and transformers', model and tokenizer, of one GGUF file."""
    checkpoint, folder = fetched("smollm2")
    file = {"gguf_file": Path(checkpoint.weights.place).name}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **file)
    return checkpoint.model(), checkpoint.tokenizer.ready(()), theirs.eval(), tokenizer


def test_smollm2_has_the_published_size(smollm2):
    model, *_ = smollm2
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == 134_515_008
    assert (model.config.stack.layers, model.config.stack.width, model.config.embedding.rows) == (
        30,
        576,
        49_152,
    )


def test_smollm2_logits_and_perplexity(smollm2):
    model, tokenizer, theirs, _ = smollm2
    ids = tokenizer.encode(TEXT)
    with torch.inference_mode():
        given = torch.from_numpy(ids)[None].long()
        expected = theirs(given, labels=given)
    logits = jax.jit(lambda model, batch: model(batch))(model, line(ids))[0]
    np.testing.assert_allclose(logits, expected.logits[0].numpy(), atol=5e-3, rtol=0)
    scores = jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), jnp.asarray(ids)[1:, None], axis=-1)
    perplexity = float(jnp.exp(-scores.mean()))
    assert f"{perplexity:.4g}" == f"{float(expected.loss.exp()):.4g}"
    assert 3 < perplexity < 30  # of a model that can read


def test_smollm2_text(smollm2):
    """Ours of all prompts in one batch, theirs of one after another."""
    model, tokenizer, theirs, _ = smollm2
    lines, config = [tokenizer.encode(text) for text in PROMPTS], Generation(tokens=64, choice=Greedy())
    keys = jax.random.split(jax.random.key(0), len(lines))
    found = jax.jit(generate, static_argnums=3)(model, prompt(lines, pad=0), keys, config).history.ids
    theirs.generation_config.eos_token_id = None  # as many tokens as asked for
    for row, ids in zip(found, lines, strict=True):
        given = torch.from_numpy(ids)[None].long()
        with torch.inference_mode():
            expected = theirs.generate(
                given,
                attention_mask=torch.ones_like(given),
                do_sample=False,
                max_new_tokens=64,
                pad_token_id=0,
            )[0]
        assert len(expected) == len(ids) + 64
        assert row[: len(expected)].tolist() == expected.tolist()


def test_smollm2_text_by_the_command_line_s_writer(smollm2):
    """The file says that no BOS is put before a text."""
    model, tokenizer, theirs, _ = smollm2
    assert (tokenizer.bos, tokenizer.begins) == (1, False)
    writer = writing.load(origins.opened("smollm2", None))
    how, keys = Generation(tokens=64, choice=Greedy()), jax.random.split(jax.random.key(0), len(PROMPTS))
    theirs.generation_config.eos_token_id = None
    for text, (found,) in zip(PROMPTS, writer.texts(PROMPTS, keys, how, 1), strict=True):
        given = torch.from_numpy(tokenizer.encode(text))[None].long()
        with torch.inference_mode():
            mask = torch.ones_like(given)
            ids = theirs.generate(
                given, attention_mask=mask, do_sample=False, max_new_tokens=64, pad_token_id=0
            )
        assert found.text == tokenizer.decode(ids[0, given.shape[1] :].numpy())


def texts():
    """Some hundreds of texts: words, digits, blanks, code, other scripts, emoji."""
    draw = np.random.default_rng(0)
    words = TEXT.split()
    parts = [
        *words,
        "12",
        "3.14",
        "0x7f",
        "\n\n",
        "\t",
        "  ",
        "naïve",
        "Ελληνικά",
        "русский",
        "العربية",
        "😀👍🏽",
        "½²",
    ]
    parts += [
        "don't",
        "I'LL",
        "we've",
        "__init__",
        "</div>",
        "\u00a0",
        "e\u0301",
        "<|im_end|>",
        "a\r\nb",
        "…",
    ]
    for _ in range(400):
        yield "".join(
            draw.choice(parts) + draw.choice(["", " ", " ", ", ", "\n"]) for _ in range(draw.integers(1, 30))
        )


def test_smollm2_tokenizer(smollm2):
    """transformers does not read how the file cuts text, and takes GPT-2's cut; the file's is "smollm", which takes
    digits apart first. This shows where blanks come before digits, so it is set right in theirs.
    """
    _, ours, _, theirs = smollm2
    backend = theirs.backend_tokenizer
    untouched = backend.pre_tokenizer
    cut = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), untouched])
    differ = 0
    backend.encode_special_tokens = True  # ours takes all text as text
    for text in texts():
        backend.pre_tokenizer = cut
        ids = ours.encode(text).tolist()
        assert ids == backend.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids) == text
        backend.pre_tokenizer = untouched
        differ += ids != backend.encode(text, add_special_tokens=False).ids
    assert 0 < differ < 100


# MiniLM-L6, of the BERT class.


@pytest.fixture(scope="module")
def minilm():
    checkpoint, folder = fetched("minilm")
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    return checkpoint.model(), checkpoint.tokenizer.ready(()), theirs, folder


def sentences(tokenizer, texts):
    """A batch of lines as BERT reads them, and which of their tokens are there."""
    given = prompt(
        [[tokenizer.bos, *tokenizer.encode(text), tokenizer.eos] for text in texts], pad=tokenizer.pad
    )
    return Batch(given, labels=given.ids, weights=jnp.ones(given.ids.shape)), given.slots.segment != 0


PAIR = "A man is eating food.", "Someone eats a meal."


def test_minilm_hidden_states(minilm):
    model, tokenizer, theirs, folder = minilm
    texts = (*PAIR, TEXT)
    batch, real = sentences(tokenizer, texts)
    given = transformers.AutoTokenizer.from_pretrained(folder)(list(texts), return_tensors="pt", padding=True)
    np.testing.assert_array_equal(batch.target.ids, given["input_ids"])
    with torch.inference_mode():
        expected = theirs(**given)
    hidden = model.apply(batch).hidden
    np.testing.assert_allclose(hidden[real], expected.last_hidden_state.numpy()[real], atol=1e-4, rtol=0)
    np.testing.assert_allclose(model.pooled(hidden), expected.pooler_output.numpy(), atol=1e-4, rtol=0)
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == 22_713_216


def test_minilm_knows_what_means_the_same(minilm):
    """The mean of a sentence's hidden states is its vector."""
    model, tokenizer, *_ = minilm
    batch, real = sentences(tokenizer, PAIR)
    vectors = jnp.where(real[..., None], model.apply(batch).hidden, 0).sum(1)
    one, other = vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    assert round(float(one @ other), 3) == 0.761


# ANNalog, an encoder-decoder of SMILES.


class Attention(torch.nn.Module):
    """Attention of eight heads, with the names of the released weights."""

    def __init__(self):
        super().__init__()
        for name in ("q", "k", "v", "o"):
            setattr(self, f"fc_{name}", torch.nn.Linear(256, 256))

    def forward(self, x, read, visible):
        q, k, v = (
            layer(line).unflatten(-1, (8, 32)).transpose(1, 2)
            for layer, line in ((self.fc_q, x), (self.fc_k, read), (self.fc_v, read))
        )
        scores = (q @ k.mT / 32**0.5).masked_fill(~visible, -1e10)
        return self.fc_o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Layer(torch.nn.Module):
    """A block, each of its branches followed by a norm."""

    def __init__(self, *, cross):
        super().__init__()
        self.self_attention, self.self_attn_layer_norm = Attention(), torch.nn.LayerNorm(256)
        if cross:
            self.encoder_attention, self.enc_attn_layer_norm = Attention(), torch.nn.LayerNorm(256)
        self.ff_layer_norm = torch.nn.LayerNorm(256)
        self.positionwise_feedforward = torch.nn.ModuleDict(
            {"fc_1": torch.nn.Linear(256, 512), "fc_2": torch.nn.Linear(512, 256)}
        )

    def forward(self, x, visible, source=None, readable=None):
        x = self.self_attn_layer_norm(x + self.self_attention(x, x, visible))
        if source is not None:
            x = self.enc_attn_layer_norm(x + self.encoder_attention(x, source, readable))
        inner = self.positionwise_feedforward
        return self.ff_layer_norm(x + inner["fc_2"](inner["fc_1"](x).relu()))


class Side(torch.nn.Module):
    """The encoder, or the decoder with its logits."""

    def __init__(self, *, cross):
        super().__init__()
        self.tok_embedding, self.pos_embedding = torch.nn.Embedding(59, 256), torch.nn.Embedding(102, 256)
        self.layers = torch.nn.ModuleList([Layer(cross=cross) for _ in range(3)])
        if cross:
            self.fc_out = torch.nn.Linear(256, 59)

    def forward(self, ids, *masks_and_source):
        x = self.tok_embedding(ids) * 16 + self.pos_embedding.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, *masks_and_source)
        return x


class Translator(torch.nn.Module):
    """The whole model; 1 is padding."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Side(cross=False), Side(cross=True)

    def forward(self, source, target):
        readable = (source != 1)[:, None, None]
        visible = (target != 1)[:, None, None] & torch.ones([target.shape[1]] * 2, dtype=torch.bool).tril()
        read = self.encoder(source, readable)
        return self.decoder.fc_out(self.decoder(target, visible, read, readable))


@pytest.fixture(scope="module")
def annalog():
    checkpoint, _ = fetched("annalog")
    theirs = Translator()
    theirs.load_state_dict(torch.load(checkpoint.weights.place, map_location="cpu", weights_only=True))
    return checkpoint.model(), checkpoint.tokenizer.ready(()), theirs.eval()


MOLECULES = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "caffeine": "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "ibuprofen": "CC(C)Cc1ccc(cc1)[C@@H](C)C(=O)O",
    "chloramphenicol": "O=C(N[C@H](CO)[C@H](O)c1ccc([N+](=O)[O-])cc1)C(Cl)Cl",
}


def test_annalog_has_the_published_size(annalog):
    model, tokenizer, theirs = annalog
    count = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert count == sum(leaf.numel() for leaf in theirs.parameters()) == 4_051_259
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos, model.config.embedding.rows) == (1, 2, 3, 59)


def test_annalog_logits(annalog):
    model, tokenizer, theirs = annalog
    lines = [[tokenizer.bos, *tokenizer.encode(text), tokenizer.eos] for text in MOLECULES.values()]
    source, target = (prompt(ids, pad=tokenizer.pad, given=False) for ids in (lines, lines[::-1]))
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(source.ids).long(), torch.from_numpy(target.ids).long()).numpy()
    found = model(Batch(target, labels=target.ids, weights=jnp.ones(target.ids.shape), source=source))
    real = target.slots.segment != 0
    np.testing.assert_allclose(found[real], expected[real], atol=1e-4, rtol=0)


def test_annalog_text(annalog):
    model, tokenizer, theirs = annalog
    config = Generation(tokens=100, end=(tokenizer.eos,), choice=Greedy())
    lines = [[tokenizer.bos, *tokenizer.encode(text), tokenizer.eos] for text in MOLECULES.values()]
    assert tokenizer.decode(lines[0]) == f"<bos>{MOLECULES['aspirin']}<eos>"
    begin, source = (
        prompt(ids, pad=tokenizer.pad, given=False) for ids in ([[tokenizer.bos]] * len(lines), lines)
    )
    keys = jax.random.split(jax.random.key(0), len(lines))
    history = jax.jit(generate, static_argnums=3)(model, begin, keys, config, source=source).history
    found = [row[:length].tolist() for row, length in zip(history.ids, history.length, strict=True)]
    for ids, own in zip(lines, found, strict=True):
        expected = torch.tensor([[tokenizer.bos]])
        with torch.inference_mode():
            while expected[0, -1] != tokenizer.eos and expected.shape[1] < 101:
                logits = theirs(torch.tensor([ids]), expected)[:, -1]
                expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], -1)
        assert own == expected[0].tolist()
    assert found[0] == lines[0]  # aspirin


@pytest.mark.parametrize("text", [*MOLECULES.values(), "C%12CC%12", "[13CH4].BrCl", "", "CX[", "C[N"])
def test_annalog_tokenizer(annalog, text):
    """As the package cuts SMILES: atoms in brackets, rings of two digits, Br and Cl, then characters."""
    _, tokenizer, _ = annalog
    ids = {token: i for i, token in enumerate(vocabulary(Path(tokenizer.source.path)))}
    parts = [part for part in re.split(r"(\[[^\]]*\]|%\d{2}|Br|Cl|.)", text) if part]
    assert tokenizer.encode(text).tolist() == [ids.get(part, ids["<unk>"]) for part in parts]
