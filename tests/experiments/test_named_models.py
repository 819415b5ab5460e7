"""The named models: every file builds, has the published size, and trains at a small one; their page is current."""

import dataclasses
import math
import subprocess
import sys
import types

import jax
import pytest

from experiments import configs, experiment, models
from experiments.published import PUBLISHED, Published
from research.analysis.tables import TableError
from research.attention.masks import Causal, Full, Not, Prefix, Window
from research.attention.positions import Learned, Llama3, NoPosition, Rotary
from research.attention.recurrence import Recurrent
from research.data.corpora import StandardLibrary
from research.models.config import BlockSpec, EmbeddingConfig, StackConfig
from research.models.families import DecoderConfig, EncoderConfig, EncoderDecoderConfig

TINY = "configs/scale/tiny.gin"
# One of each row of the table of kinds; the others differ from one of these in sizes.
KINDS = (
    *(
        "gpt2",
        "gpt3_small",
        "llama_7b",
        "llama2_7b",
        "llama2_70b",
        "llama3_8b",
        "llama3_1_8b",
        "smollm2_135m",
    ),
    *("mistral_7b", "gemma2_2b", "bert_base", "minilm_l6", "t5_small", "t5_v1_1_small", "ul2_20b"),
    *("glm_10b", "chatglm_6b", "chatglm2_6b", "transformer_xl_wt103_base", "transformer_xl_wt103_large"),
    *("transformer_xl_enwik8_12l", "transformer_xl_enwik8_24l", "compressive_wt103", "compressive_enwik8"),
    *("compressive_pg19", "annalog"),
)


def replaced(name, **values):
    """A named model with other sizes."""
    model = models.named(name).model
    return dataclasses.replace(model, stack=dataclasses.replace(model.stack, **values))


def test_every_file_is_listed_and_every_listed_model_has_a_file():
    assert {path.stem for path in models.FOLDER.glob("*.gin")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_named_model_says_where_its_count_is_not_the_published_one(name):
    one = models.named(name)
    assert one.parameters > 0
    published = PUBLISHED[name]
    assert (one.agreement == "no") == bool(published.differs)
    assert (published.count is None) == (one.agreement == "none published")


@pytest.mark.parametrize("name", KINDS)
def test_its_operative_config_gives_the_same_experiment(name, tmp_path):
    planned, text = experiment.load([f"configs/models/{name}.gin"])
    (tmp_path / "config.gin").write_text(text)
    assert experiment.load([str(tmp_path / "config.gin")])[0] == planned


@pytest.mark.parametrize("name", KINDS)
def test_a_named_model_has_a_small_version_of_the_same_kind(name):
    small, _ = experiment.load([f"configs/models/{name}.gin", TINY])
    there = models.Named(name, small)
    # The small one has another width, so the scale of logits is left out.
    for kind in (
        "family",
        "mask",
        "positions",
        "norm",
        "activation",
        "heads",
        "objective",
        "memory",
        "biases",
    ):
        assert models.KINDS[kind](there) == models.KINDS[kind](models.named(name))
    assert there.parameters < models.named(name).parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_its_small_version_takes_a_step(name):
    planned, _ = experiment.load([f"configs/models/{name}.gin", TINY])
    data = dataclasses.replace(planned.data, corpus=StandardLibrary(), batch=2)
    text = experiment.dataset(data, None)
    functions = experiment.trainer(dataclasses.replace(planned, data=data), text.tokenizer.vocab_size)
    state = functions.initial(jax.random.key(0), planned.numbers, rows=2)
    state, metrics = functions.step(state, next(text.training(0)))
    assert int(state.step) == 1
    assert (
        3 < float(metrics["loss"]) < 60
    )  # near log(288) = 5.7, or above it where logits begin far from even


def test_gpt2_has_its_parts_and_no_other():
    width, layers = 768, 12
    block = 4 * width**2 + 4 * width + 8 * width**2 + 5 * width + 4 * width
    expected = (50257 + 1024) * width + layers * block + 2 * width
    assert models.named("gpt2").parameters == expected == 124_439_808


@pytest.mark.parametrize(("name", "sizes"), [("gpt3_xl", {"heads": 16}), ("gpt3_13b", {"width": 5120})])
def test_a_published_count_that_differs_is_that_of_other_sizes(name, sizes):
    assert not PUBLISHED[name].agrees(models.named(name).parameters)
    assert PUBLISHED[name].agrees(models.count(replaced(name, **sizes), models.named(name).vocab))


def test_the_large_transformer_xl_has_as_many_as_its_note_says():
    large = models.named("transformer_xl_wt103_large")
    fewer = models.count(replaced(large.name, layers=16), large.vocab)
    assert (large.parameters, fewer) == (285_205_322, 257_919_818)


def test_banded_and_dense_layers_alternate_in_gpt3_and_local_ones_come_first_in_gemma():
    def masks(name):
        model = models.named(name).model
        return [spec.visible(model.mask) for spec in model.stack.pattern]

    assert masks("gpt3_175b") == [Causal(), Causal() & Window(256)]
    assert masks("gemma2_2b") == [Causal() & Window(4096), Causal()]


def test_tied_and_untied_versions_of_t5_scale_their_logits_as_published():
    for name in PUBLISHED:
        if name.startswith("t5_"):
            model = models.named(name).model
            scale = 1.0 if "v1_1" in name else model.decoder.width**-0.5
            assert model.embedding.logit_scale == pytest.approx(scale, rel=1e-12)
            assert model.tied_embeddings == ("v1_1" not in name)


def test_the_residual_of_chatglm_grows_with_its_depth():
    stack = models.named("chatglm_6b").model.stack
    assert stack.residual == pytest.approx(math.sqrt(2 * stack.layers), rel=1e-12)


@pytest.mark.parametrize(
    ("written", "counted", "agrees"),
    [
        ("1,234", 1234, True),
        ("1,234", 1235, False),
        ("6.7B", 6_749_999_999, True),
        ("6.7B", 6_750_000_001, False),
        ("13.0B", 12_940_000_000, False),
        ("12,850M", 12_853_386_240, True),
        ("12,850M", 12_856_000_000, False),
        ("175B", 174_604_000_000, True),
        ("41M", 41_600_000, False),
    ],
)
def test_a_count_agrees_to_the_digits_that_are_published(written, counted, agrees):
    assert Published(count=written, source="").agrees(counted) == agrees


def test_what_is_left_out_is_counted_with_the_published_model():
    published = Published(count="1,234", source="", apart=(34, "a head"))
    assert published.agrees(1200)
    assert not published.agrees(1234)


def test_a_count_is_digits():
    with pytest.raises(ValueError, match=r"Published\.count = '7 billion'.*rounded"):
        Published(count="7 billion", source="")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Causal() & (Prefix() | Window(4)), "Causal() & (Prefix() | Window(4))"),
        (Not(Full()), "~(Full())"),
        (Learned(length=8, axes=(0, 1)), "Learned(length=8, axes=(0, 1))"),
        (Rotary(), "Rotary()"),
        (
            Rotary(base=5e5, scaling=Llama3(factor=8.0, trained=8192)),
            "Rotary(base=500000, scaling=Llama3(factor=8, trained=8192))",
        ),
    ],
)
def test_a_value_is_written_without_defaults(value, said):
    assert models.short(value) == said


def test_our_causal_and_prefix_decoders_differ_in_the_mask_alone():
    lines = [line.split(" | ") for line in models.kinds(models.arms()).splitlines()]
    head, _, causal, prefix, both = lines
    differing = [name for name, a, b in zip(head, causal, prefix, strict=True) if a != b]
    assert differing == ["| model", "mask"]
    assert both[head.index("family")] == "EncoderDecoder"


# For each setting, a value that a model may have instead; `SIZES` and `HOW` make no other kind of model.
SIZES = {"layers", "width", "heads", "head_dim", "hidden", "rows"}
HOW = {"dtype", "remat", "unroll", "backend", "dropout", "attention_dropout", "input_noise"}
STACKS = {
    "kv_heads": {"kv_heads": 1},
    "activation": {"activation": "relu"},
    "norm": {"norm": "layer"},
    "placement": {"placement": "post"},
    "residual": {"placement": "inner", "residual": 2.0},
    "input_norm": {"input_norm": True},
    "epsilon": {"epsilon": 1e-3},
    "use_bias": {"use_bias": ("mlp",)},
    "scale": {"scale": 1.0},
    "positions": {"positions": NoPosition()},
    "memory": {"memory": Recurrent(length=4)},
    "pattern": {"pattern": (BlockSpec(window=Window(3)), BlockSpec())},
    "softcap": {"softcap": 5.0},
    "sinks": {"sinks": True},
}
EMBEDDINGS = {
    "scale": {"scale": 2.0},
    "types": {"types": 2},
    "cutoffs": {"cutoffs": (8,)},
    "shrink": {"cutoffs": (8,), "shrink": 2},
    "head_projection": {"cutoffs": (8,), "shrink": 2, "head_projection": True},
    "transform": {"transform": True},
    "bias": {"bias": True},
    "logit_scale": {"logit_scale": 0.5},
    "softcap": {"softcap": 5.0},
}
FAMILIES = {
    DecoderConfig: {"mask": {"mask": Prefix()}, "tied_embeddings": {"tied_embeddings": False}},
    EncoderConfig: {"pooler": {"pooler": True}, "classes": {"classes": 2}},
    EncoderDecoderConfig: {
        "encoder_mask": {"encoder_mask": Causal()},
        "mask": {"mask": Window(3)},
        "cross_mask": {"cross_mask": Causal()},
        "tied": {"tied": True},
        "tied_embeddings": {"tied_embeddings": False},
        "shared_embeddings": {"shared_embeddings": False},
    },
}


def cells(model):
    planned = types.SimpleNamespace(model=model, data=models.named("gpt2").planned.data)
    one = models.Named("any", planned)
    return tuple(cell(one) for cell in models.KINDS.values())


def fields(kind):
    return {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("part", "kind", "variants"),
    [("stack", StackConfig, STACKS), ("embedding", EmbeddingConfig, EMBEDDINGS)],
)
def test_the_table_shows_every_setting_of_a_part(part, kind, variants):
    assert fields(kind) == set(variants) | ((SIZES | HOW) & fields(kind))
    shown = [cells(DecoderConfig(**{part: kind(**values)})) for values in ({}, *variants.values())]
    assert len(set(shown)) == len(shown)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_shows_every_setting_of_a_family(family):
    known = {name for kind in family.__mro__ for name in FAMILIES.get(kind, ())}
    assert fields(family) - {"stack", "encoder", "decoder", "embedding", "split_layers"} == known
    shown = [cells(family(**values)) for values in ({}, *FAMILIES[family].values())]
    assert len(set(shown)) == len(shown)


def test_models_that_differ_in_sizes_alone_share_a_row():
    table = models.kinds([models.named(name) for name in ("gpt2", "gpt3_small", "gpt2_xl")])
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        "| `gpt2`, `gpt2_xl`",
        "| `gpt3_small`",
    ]


def test_every_row_of_the_table_has_a_model_that_is_trained_here():
    for line in models.kinds(models.every()).splitlines()[2:]:
        assert any(f"`{name}`" in line for name in KINDS), line


def test_a_file_says_what_is_not_as_published(tmp_path):
    file = tmp_path / "own.gin"
    file.write_text("# A model.\n# Differs: one line\n#   and its end.\n# Differs: another.\nimport x\n")
    assert list(models.remarks(file)) == ["one line and its end.", "another."]


def test_a_file_that_is_not_listed_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "unheard_of.gin").write_text("")
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    with pytest.raises(configs.ConfigError, match=r"configs/models/unheard_of\.gin: expected in PUBLISHED"):
        models.every()


def test_the_page_of_models_is_what_the_configs_say():
    written = models.DOCS.read_text(encoding="utf-8")
    assert models.page(written) == written, "run python -m experiments.models --write"
    assert models.page(written.replace("| `gpt2` | 12 |", "| `gpt2` | 13 |")) == written


def test_a_page_without_a_block_is_an_error():
    with pytest.raises(TableError, match=r"models\.md: no block <!-- table:models/kinds"):
        models.page("# Named models\n")


@pytest.mark.slow
def test_the_command_prints_every_model_and_finds_the_page_current():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.models", "--check"],
        cwd=configs.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    first = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert first == ["model", *PUBLISHED]
