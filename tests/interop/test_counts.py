"""Named models are what transformers' classes of the same sizes are: as many parameters, counted on the meta device
without memory, and the configuration that we read from their config.json.
"""

import pytest

from experiments import models
from experiments.published import PUBLISHED
from research.interop.architecture import Settings, normal
from research.interop.hub import ARCHITECTURES

torch = pytest.importorskip("torch", reason="counts are compared with transformers'; see make test-parity")
transformers = pytest.importorskip("transformers", reason="its classes are counted; see make test-parity")


def counted(kind, config):
    """Parameters of a class of transformers, shared ones once."""
    with torch.device("meta"):
        built = getattr(transformers, kind)(config)
    built.tie_weights()
    return sum(leaf.numel() for leaf in built.parameters())


def described(kind, config):
    """The model that a config.json describes, next to an output table of its own where it has one."""
    values = {**config.to_dict(), "architectures": [kind]}
    return ARCHITECTURES[config.model_type].model(Settings(values, "config.json", {"lm_head.weight"}))


def check(name, kind, config, more=0):
    """Theirs and `more` are the published count, and ours what is left of it without what we leave out."""
    theirs, published = counted(kind, config) + more, PUBLISHED[name]
    assert published.exact
    assert kind in published.source
    assert published.agrees(theirs - published.apart[0])
    assert models.named(name).parameters == theirs - published.apart[0]
    assert normal(described(kind, config)) == normal(models.named(name).model)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gpt2", {}),
        ("gpt2_medium", {"n_layer": 24, "n_embd": 1024, "n_head": 16}),
        ("gpt2_large", {"n_layer": 36, "n_embd": 1280, "n_head": 20}),
        ("gpt2_xl", {"n_layer": 48, "n_embd": 1600, "n_head": 25}),
    ],
)
def test_gpt2(name, sizes):
    check(name, "GPT2LMHeadModel", transformers.GPT2Config(**sizes))


BASES = {"llama3": 500_000.0, "smollm2": 100_000.0}


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads", "groups", "hidden", "rows"),
    [
        ("llama_7b", 32, 4096, 32, 32, 11008, 32000),
        ("llama_13b", 40, 5120, 40, 40, 13824, 32000),
        ("llama_33b", 60, 6656, 52, 52, 17920, 32000),
        ("llama_65b", 80, 8192, 64, 64, 22016, 32000),
        ("llama2_7b", 32, 4096, 32, 32, 11008, 32000),
        ("llama2_13b", 40, 5120, 40, 40, 13824, 32000),
        ("llama2_70b", 80, 8192, 64, 8, 28672, 32000),
        ("llama3_8b", 32, 4096, 32, 8, 14336, 128256),
        ("llama3_70b", 80, 8192, 64, 8, 28672, 128256),
        ("llama3_1_8b", 32, 4096, 32, 8, 14336, 128256),
        ("llama3_1_70b", 80, 8192, 64, 8, 28672, 128256),
        ("llama3_1_405b", 126, 16384, 128, 8, 53248, 128256),
        ("smollm2_135m", 30, 576, 9, 3, 1536, 49152),
    ],
)
def test_llama(name, layers, width, heads, groups, hidden, rows):
    rope = {"rope_type": "default", "rope_theta": BASES.get(name.partition("_")[0], 10_000.0)}
    if name.startswith("llama3_1"):
        rope |= {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = transformers.LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=hidden,
        vocab_size=rows,
        tie_word_embeddings=name == "smollm2_135m",
        rms_norm_eps=1e-6 if name in ("llama_7b", "llama_13b", "llama_33b") else 1e-5,
        rope_parameters=rope,
        max_position_embeddings=131_072,
    )
    check(name, "LlamaForCausalLM", config)


def test_mistral():
    check("mistral_7b", "MistralForCausalLM", transformers.MistralConfig(rms_norm_eps=1e-5))


def test_gemma():
    """The report counts 256,128 tokens; the released weights have 128 rows fewer."""
    theirs = counted("Gemma2ForCausalLM", transformers.Gemma2Config(vocab_size=256128))
    assert PUBLISHED["gemma2_2b"].agrees(theirs)
    assert models.named("gemma2_2b").parameters == theirs


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("bert_base", {}),
        (
            "bert_large",
            {
                "num_hidden_layers": 24,
                "hidden_size": 1024,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
            },
        ),
    ],
)
def test_bert(name, sizes):
    """Ours lacks the classifier of next sentences; the bare `BertModel` lacks the head of masked tokens as well."""
    config = transformers.BertConfig(**sizes)
    check(name, "BertForPreTraining", config)
    width, rows = config.hidden_size, config.vocab_size
    head = width**2 + width + 2 * width + rows  # transform, its norm, and the bias of logits
    assert counted("BertModel", config) == models.named(name).parameters - head


def test_minilm():
    config = transformers.BertConfig(
        num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536
    )
    check("minilm_l6", "BertModel", config)


@pytest.mark.parametrize(
    ("name", "width", "features", "hidden", "heads", "layers"),
    [
        ("t5_small", 512, 64, 2048, 8, 6),
        ("t5_base", 768, 64, 3072, 12, 12),
        ("t5_large", 1024, 64, 4096, 16, 24),
        ("t5_3b", 1024, 128, 16384, 32, 24),
        ("t5_11b", 1024, 128, 65536, 128, 24),
        ("t5_v1_1_small", 512, 64, 1024, 6, 8),
        ("t5_v1_1_base", 768, 64, 2048, 12, 12),
        ("t5_v1_1_large", 1024, 64, 2816, 16, 24),
        ("t5_v1_1_xl", 2048, 64, 5120, 32, 24),
        ("t5_v1_1_xxl", 4096, 64, 10240, 64, 24),
    ],
)
def test_t5(name, width, features, hidden, heads, layers):
    """Since transformers 5 the head of v1.1 is tied, but it has an array of its own in the released weights."""
    config = transformers.T5Config(
        d_model=width,
        d_kv=features,
        d_ff=hidden,
        num_heads=heads,
        num_layers=layers,
        vocab_size=32128,
        feed_forward_proj="gated-gelu" if "v1_1" in name else "relu",
        tie_word_embeddings="v1_1" not in name,
    )
    check(name, "T5ForConditionalGeneration", config, more=32128 * width if "v1_1" in name else 0)


def test_ul2():
    """Its paper rounds to 20 billion; ours has what its class has, and a head."""
    config = transformers.T5Config(
        d_model=4096,
        d_kv=256,
        d_ff=16384,
        num_heads=16,
        num_layers=32,
        vocab_size=32128,
        feed_forward_proj="gated-silu",
        tie_word_embeddings=False,
    )
    theirs = counted("T5ForConditionalGeneration", config) + 32128 * 4096
    assert models.named("ul2_20b").parameters == theirs
    assert normal(described("T5ForConditionalGeneration", config)) == normal(models.named("ul2_20b").model)
