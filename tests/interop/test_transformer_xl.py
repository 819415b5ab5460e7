"""Transformer-XL against a reference in NumPy, its memory carried over three segments."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from references import Weights, batch, log_softmax, random, saved, softmax

from research.attention.masks import Slots
from research.interop import hub
from research.interop.architecture import ConfigError, Settings
from research.interop.transformer_xl import TRANSFORMER_XL

WIDTH, HEADS, HEAD, LAYERS, HIDDEN, VOCAB, MEMORY = 16, 3, 4, 2, 20, 30, 7
ROWS, SEGMENT = 2, 5
CONFIG = {
    "model_type": "transfo-xl",
    "adaptive": True,
    "attn_type": 0,
    "clamp_len": -1,
    "cutoffs": [6, 14],
    "d_embed": WIDTH,
    "d_head": HEAD,
    "d_inner": HIDDEN,
    "d_model": WIDTH,
    "div_val": 1,
    "layer_norm_epsilon": 1e-5,
    "mem_len": MEMORY,
    "n_head": HEADS,
    "n_layer": LAYERS,
    "pre_lnorm": False,
    "same_length": False,
    "tie_projs": [False, True, True],
    "tie_weight": True,
    "untie_r": True,
    "vocab_size": VOCAB,
}


def edges(config):
    return [0, *config["cutoffs"], VOCAB]


def arrays(config):
    """What PyTorch saves: tied arrays under both names."""
    untied, shrink, sizes = config["untie_r"], config["div_val"], np.diff(edges(config))
    size = HEADS * HEAD
    shapes = {"transformer.pos_emb.inv_freq": (WIDTH // 2,)}
    if not untied:
        shapes |= {f"transformer.{name}": (HEADS, HEAD) for name in ("r_w_bias", "r_r_bias")}
    for i in range(LAYERS):
        layer = f"transformer.layers.{i}"
        shapes |= {
            f"{layer}.dec_attn.qkv_net.weight": (3 * size, WIDTH),
            f"{layer}.dec_attn.o_net.weight": (WIDTH, size),
            f"{layer}.dec_attn.r_net.weight": (size, WIDTH),
            f"{layer}.pos_ff.CoreNet.0.weight": (HIDDEN, WIDTH),
            f"{layer}.pos_ff.CoreNet.0.bias": (HIDDEN,),
            f"{layer}.pos_ff.CoreNet.3.weight": (WIDTH, HIDDEN),
            f"{layer}.pos_ff.CoreNet.3.bias": (WIDTH,),
        }
        for part in ("dec_attn", "pos_ff"):
            shapes |= {f"{layer}.{part}.layer_norm.{name}": (WIDTH,) for name in ("weight", "bias")}
        if untied:
            shapes |= {f"{layer}.dec_attn.{name}": (HEADS, HEAD) for name in ("r_w_bias", "r_r_bias")}
    if config["cutoffs"]:
        shapes |= {"crit.cluster_weight": (len(sizes) - 1, WIDTH), "crit.cluster_bias": (len(sizes) - 1,)}
    for i, n in enumerate(sizes if shrink > 1 else [VOCAB]):
        narrow = WIDTH // shrink**i
        shapes |= {
            f"transformer.word_emb.emb_layers.{i}.weight": (n, narrow),
            f"crit.out_layers.{i}.bias": (n,),
        }
        if shrink > 1:
            shapes[f"transformer.word_emb.emb_projs.{i}"] = (WIDTH, narrow)
    if shrink > 1:
        shapes["crit.out_projs.0"] = (WIDTH, WIDTH)
    found = random(shapes)
    for name in list(found):
        vectors, projection = "transformer.word_emb.emb_layers.", "transformer.word_emb.emb_projs."
        if name.startswith(vectors):
            found[name.replace(vectors, "crit.out_layers.")] = found[name].copy()
        if name.startswith(projection):
            found.setdefault(name.replace(projection, "crit.out_projs."), found[name].copy())
    if not untied:
        for i in range(LAYERS):
            for name in ("r_w_bias", "r_r_bias"):
                found[f"transformer.layers.{i}.dec_attn.{name}"] = found[f"transformer.{name}"].copy()
    return found


def relative_shift(scores):
    """[h q k] whose column j is distance k - 1 - j, as one whose column j is key j (Dai et al. 2019, appendix B)."""
    heads, q, k = scores.shape
    padded = np.concatenate([np.zeros((heads, q, 1)), scores], -1).reshape(heads, k + 1, q)
    return padded[:, 1:].reshape(heads, q, k)


def read(w, layer, x, memory, same_length):
    """What a layer's attention adds, section 3.3, over memory and segment joined."""
    joined = np.concatenate([memory, x])
    n, k = len(x), len(joined)
    mixed = w.linear(f"{layer}.dec_attn.qkv_net", joined).reshape(k, 3, HEADS, HEAD)
    queries, keys, values = mixed[-n:, 0], mixed[:, 1], mixed[:, 2]
    angle = np.arange(k - 1, -1, -1)[:, None] * 10_000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH)
    relative = w.linear(f"{layer}.dec_attn.r_net", np.concatenate([np.sin(angle), np.cos(angle)], -1))
    relative = relative.reshape(k, HEADS, HEAD)
    u, v = w[f"{layer}.dec_attn.r_w_bias"], w[f"{layer}.dec_attn.r_r_bias"]
    content = np.einsum("ihd,jhd->hij", queries + u, keys)
    place = relative_shift(np.einsum("ihd,jhd->hij", queries + v, relative))
    behind = np.arange(k - n, k)[:, None] - np.arange(k)
    visible = (behind >= 0) & ((behind < MEMORY) | (not same_length))
    scores = np.where(visible, (content + place) / np.sqrt(HEAD), -np.inf)
    out = np.einsum("hij,jhd->ihd", softmax(scores), values).reshape(n, -1)
    return w.linear(f"{layer}.dec_attn.o_net", out)


def vectors(w, config, ids):
    if config["div_val"] == 1:
        return w["transformer.word_emb.emb_layers.0.weight"][ids] * np.sqrt(WIDTH)
    ends = edges(config)
    out = []
    for token in ids:
        c = next(c for c in range(len(ends) - 1) if token < ends[c + 1])
        row = w[f"transformer.word_emb.emb_layers.{c}.weight"][token - ends[c]]
        out.append(w[f"transformer.word_emb.emb_projs.{c}"] @ row * np.sqrt(WIDTH))
    return np.array(out)


def log_probabilities(w, config, hidden):
    """Grave et al. 2017, section 4: a head of the first cluster's tokens and the other clusters, and their tails."""
    if not config["cutoffs"]:
        return log_softmax(hidden @ w["crit.out_layers.0.weight"].T + w["crit.out_layers.0.bias"])
    ends, scores = edges(config), []
    for c, (first, last) in enumerate(zip(ends, ends[1:], strict=False)):
        if config["div_val"] == 1:
            narrow = hidden
            table, bias = (w[f"crit.out_layers.0.{name}"][first:last] for name in ("weight", "bias"))
        else:
            narrow = hidden @ w[f"crit.out_projs.{c}"]
            table, bias = (w[f"crit.out_layers.{c}.{name}"] for name in ("weight", "bias"))
        if c == 0:
            table = np.concatenate([table, w["crit.cluster_weight"]])
            bias = np.concatenate([bias, w["crit.cluster_bias"]])
        scores.append(log_softmax(narrow @ table.T + bias))
    head, first = scores[0], ends[1]
    return np.concatenate(
        [head[:, :first], *(head[:, first + c, None] + tail for c, tail in enumerate(scores[1:]))], -1
    )


def reference(arrays, config, ids):
    """Log-probabilities of one row, segment by segment."""
    w, out = Weights(arrays), []
    memories = [np.zeros((0, WIDTH)) for _ in range(LAYERS)]
    for start in range(0, len(ids), SEGMENT):
        x = vectors(w, config, ids[start : start + SEGMENT])
        for i in range(LAYERS):
            layer, memory = f"transformer.layers.{i}", memories[i]
            memories[i] = np.concatenate([memory, x])[-config["mem_len"] :]
            x = w.layer_norm(
                f"{layer}.dec_attn.layer_norm", x + read(w, layer, x, memory, config["same_length"])
            )
            inner = np.maximum(w.linear(f"{layer}.pos_ff.CoreNet.0", x), 0)
            x = w.layer_norm(f"{layer}.pos_ff.layer_norm", x + w.linear(f"{layer}.pos_ff.CoreNet.3", inner))
        out.append(log_probabilities(w, config, x))
    return np.concatenate(out)


def segments(model, ids):
    """Log-probabilities of rows, segment by segment."""

    @jax.jit
    def one(model, tokens, carry):
        out = model.apply(tokens, carry=carry)
        return jax.nn.log_softmax(model.logits(out.hidden)), out.carry

    found, carry = [], None
    for start in range(0, ids.shape[1], SEGMENT):
        slots = dataclasses.replace(Slots.arange(SEGMENT, (ROWS,), start), start=None)
        scores, carry = one(model, batch(ids[:, start : start + SEGMENT], slots), carry)
        found.append(scores)
    return np.concatenate(found, 1)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"untie_r": False},
        {"same_length": True},
        {"div_val": 2},
        {"div_val": 4, "untie_r": False, "same_length": True, "clamp_len": MEMORY - 1, "cutoffs": [9]},
        {"cutoffs": [], "tie_projs": [False]},
    ],
    ids=str,
)
def test_three_segments_are_those_of_the_reference(tmp_path, change):
    config = CONFIG | change
    weights = arrays(config)
    opened = hub.open_folder(saved(tmp_path, config, weights))
    assert opened.architecture is TRANSFORMER_XL
    ids = np.random.default_rng(1).integers(0, VOCAB, (ROWS, 3 * SEGMENT))
    got = segments(opened.model(), ids)
    for row in range(ROWS):
        np.testing.assert_allclose(got[row], reference(weights, config, ids[row]), atol=2e-4)


def test_the_memory_matters(tmp_path):
    """Without it the third segment reads otherwise: what the test above compares is not a memory of nothing."""
    model = hub.open_folder(saved(tmp_path, CONFIG, arrays(CONFIG))).model()
    ids = np.random.default_rng(1).integers(0, VOCAB, (ROWS, 3 * SEGMENT))
    alone = segments(model, ids[:, -SEGMENT:])
    assert np.abs(segments(model, ids)[:, -SEGMENT:] - alone).max() > 0.1


def test_clusters_share_their_projections_unless_the_first_has_its_own(tmp_path):
    config = CONFIG | {"div_val": 2, "tie_projs": [True, True, True]}
    weights = arrays(config)
    weights["crit.out_projs.0"] = weights["transformer.word_emb.emb_projs.0"].copy()
    model = hub.open_folder(saved(tmp_path, config, weights)).model()
    assert model.embedding.head_projection is None
    ids = np.random.default_rng(1).integers(0, VOCAB, (ROWS, SEGMENT))
    expected = reference(weights, config, ids[0])
    np.testing.assert_allclose(segments(model, ids)[0], expected, atol=2e-4)


def test_the_release_for_wikitext_103_is_what_a_config_leaves_out():
    """Of its config.json only clamp_len and mem_len have to change; 285 million parameters, of which the paper's 257
    (table 1) leave some of the vectors out.
    """
    settings = Settings({"clamp_len": -1}, "wt103")
    config = TRANSFORMER_XL.model(settings)
    model = jax.eval_shape(lambda: config.build(vocab=267735, key=jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model))))
    m, sizes = 1024, (20_000, 20_000, 160_000, 67_735)
    vectors = sum((n + m) * m // 4**i for i, n in enumerate(sizes)) + m * m
    clusters = 3 * (m + 1) + sum(sizes)
    layer = 5 * m * m + 2 * m + 2 * m * 4096 + 4096 + m + 4 * m
    assert count == vectors + clusters + 18 * layer


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pre_lnorm": True}, "pre_lnorm is True, expected one of False"),
        ({"attn_type": 1}, "attn_type is 1"),
        ({"tie_weight": False}, "tie_weight is False"),
        ({"d_embed": 8}, "d_embed is 8, expected one of 16"),
        ({"clamp_len": 100}, "clamp_len is 100"),
        ({"clamp_len": MEMORY - 2, "same_length": True}, "set mem_len to at most 6"),
        ({"div_val": 2, "tie_projs": [False, True, False]}, "tie_projs is "),
        ({"div_val": 2, "cutoffs": []}, "div_val is 2, expected one of 1"),
        ({"mem_len": 0, "same_length": True}, "same_length is True"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_in_one_line(tmp_path, change, said):
    with pytest.raises(ConfigError, match=said) as caught:
        hub.open_folder(saved(tmp_path, CONFIG | change, {}))
    assert "\n" not in str(caught.value)


def test_without_memory_it_is_a_causal_decoder():
    config = TRANSFORMER_XL.model(Settings(CONFIG | {"mem_len": 0}, "here"))
    assert config.stack.memory is None
