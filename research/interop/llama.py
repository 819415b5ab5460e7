"""LLaMA (Touvron et al. 2023) and what has its names: Mistral, and GLM-4, which transformers calls `Glm`."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from research.attention.masks import Causal, Window
from research.attention.positions import DynamicNTK, Interpolation, Llama3, Rotary, YaRN
from research.attention.rotary import Scaling
from research.interop.architecture import GATED, THEIRS, Architecture, ConfigError, Settings
from research.interop.tables import SAME, TRANSPOSED, Form, Row, chain, fused, half_rotated, reordered, row
from research.models.config import BlockSpec, EmbeddingConfig, StackConfig
from research.models.families import DecoderConfig

# transformers' names for our scalings and for their values.
SCALINGS: dict[str, type[Scaling] | None] = {
    "default": None,
    "linear": Interpolation,
    "dynamic": DynamicNTK,
    "yarn": YaRN,
    "llama3": Llama3,
}
TRAINED = "original_max_position_embeddings"
# Settings of models that are like LLaMA and compute something more with them, and the values that change nothing.
KIN = {
    r"_multipliers?$|^logits_scaling$|^logit_scale$|^scale_emb$": (1,),
    r"qk_norm$|softcapping$|^clip_qkv$|^num_(local_)?experts$": (None, False),
}
APART = ("rope_type", "type", "rope_theta", "partial_rotary_factor")  # what no scaling has
READERS = {TRAINED: Settings.count, "truncate": Settings.flag}  # of values that are no plain number
NAMES = {"trained": TRAINED, "low": "low_freq_factor", "high": "high_freq_factor"}


def rotary(settings: Settings, fraction: float | None = None) -> Rotary:
    """Rotary positions of a config.json, whose `rope_parameters` were once `rope_theta` and `rope_scaling`.

    Args:
      settings: of the model.
      fraction: of the features that turn where the settings don't say it; None: all of them do, whatever they say.

    Raises:
      ConfigError: a scaling that we do not have, that lacks a value, or that has one we do not know.
    """
    # Where both are there, transformers reads the older one.
    name = "rope_scaling" if settings.get("rope_scaling", {}) else "rope_parameters"
    given = settings.get(name, {})
    if not isinstance(given, Mapping):
        raise ConfigError(f"{settings.place}: {name} is {given!r}, expected an object of settings")
    within = Settings(given, f"{settings.place}: {name}")
    kind = within.get("rope_type", within.get("type", "default"))
    scaling = within.chosen("rope_type", SCALINGS, kind)
    base = within.number("rope_theta", settings.number("rope_theta", 10_000.0))
    part = settings.number("partial_rotary_factor", fraction or 1.0)
    turning = within.number("partial_rotary_factor", part)
    said = {name: value for name, value in given.items() if value is not None and name not in APART}
    if fraction is None and turning != 1:
        raise ConfigError(
            f"{settings.place}: partial_rotary_factor is {turning}, expected 1 for {settings.get('model_type', '')!r}"
        )
    if scaling is None:
        _refuse(settings, kind, (), said)
        return Rotary(base=float(base), fraction=turning)
    fields = {field.name: NAMES.get(field.name, field.name) for field in dataclasses.fields(scaling)}
    for name in fields.values():
        READERS.get(name, Settings.number)(within, name, None)
    at_first = said.pop(TRAINED, None)
    if scaling is DynamicNTK:
        said[TRAINED] = settings.count("max_position_embeddings")
    elif "trained" in fields:
        said[TRAINED] = settings.count(TRAINED, at_first) or settings.count("max_position_embeddings")
    values = {ours: said.pop(theirs) for ours, theirs in fields.items() if theirs in said}
    needed = (field.name for field in dataclasses.fields(scaling) if field.default is dataclasses.MISSING)
    _refuse(settings, kind, [fields[name] for name in needed if name not in values], said)
    return Rotary(base=float(base), fraction=turning, scaling=scaling(**values))


def _refuse(settings: Settings, kind: str, missing: Sequence[str], unknown: Mapping[str, Any]) -> None:
    for what, names in (("lacks", list(missing)), ("does not read", list(unknown))):
        if names:
            raise ConfigError(
                f"{settings.place}: rope_parameters of type {kind!r} {what} {names[0]}; correct it as the model was "
                "published"
            )


def rope_parameters(positions: Rotary) -> dict[str, Any]:
    """`rope_parameters` of rotary positions."""
    said: dict[str, Any] = {
        "rope_theta": positions.base,
        "rope_type": "default",
        "partial_rotary_factor": positions.fraction,
    }
    if positions.scaling is not None:
        kinds = (name for name, kind in SCALINGS.items() if kind is type(positions.scaling))
        said["rope_type"] = next(kinds, type(positions.scaling).__name__)
        for field in dataclasses.fields(positions.scaling):
            if (value := getattr(positions.scaling, field.name)) is not None:
                said[NAMES.get(field.name, field.name)] = value
        if isinstance(positions.scaling, DynamicNTK):
            del said[TRAINED]  # it is max_position_embeddings
    return said


def _model(
    settings: Settings,
    *,
    use_bias: Any,
    epsilon: float = 1e-6,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    fraction: float | None = None,
    **changes: Any,
) -> DecoderConfig:
    """A model whose settings are LLaMA's, with its own defaults of some."""
    settings.only("is_causal", True)
    for name in settings.values:
        for pattern, values in KIN.items():
            if re.search(pattern, name):
                settings.only(name, *values)
    stack = StackConfig(
        layers=settings.count("num_hidden_layers"),
        width=settings.count("hidden_size"),
        heads=settings.count("num_attention_heads"),
        kv_heads=_told(settings, "num_key_value_heads", kv_heads),
        head_dim=_told(settings, "head_dim", head_dim),
        hidden=settings.count("intermediate_size"),
        activation=settings.chosen("hidden_act", GATED, "silu"),
        norm="rms",
        epsilon=settings.number("rms_norm_eps", epsilon),
        use_bias=use_bias,
        positions=rotary(settings, fraction),
        attention_dropout=settings.rate("attention_dropout", 0.0),
        **changes,
    )
    return DecoderConfig(
        stack=stack,
        mask=Causal(),
        tied_embeddings=settings.flag("tie_word_embeddings", False),
        embedding=EmbeddingConfig(rows=settings.count("vocab_size"), scale=1.0),
    )


def _told(settings: Settings, name: str, default: int | None) -> int | None:
    """A count that null takes away, where its absence is the default."""
    return settings.count(name, None if name in settings.values else default)


def _llama(settings: Settings) -> DecoderConfig:
    biased = []
    if settings.flag("attention_bias", False):
        biased += ["qkv", "output"]
    if settings.flag("mlp_bias", False):
        biased.append("mlp")
    return _model(settings, use_bias=tuple(biased) or False)


def _mistral(settings: Settings) -> DecoderConfig:
    window = _told(settings, "sliding_window", 4096)
    pattern = (BlockSpec(window=None if window is None else Window(window)),)
    return _model(settings, use_bias=False, kv_heads=8, pattern=pattern)


def _glm4(settings: Settings) -> DecoderConfig:
    biased = ("qkv",) if settings.flag("attention_bias", True) else False
    return _model(settings, use_bias=biased, epsilon=1.5625e-07, kv_heads=2, head_dim=128, fraction=0.5)


def _settings(config: DecoderConfig) -> dict[str, Any]:
    stack: Any = config.stack
    positions = stack.positions
    scaling = getattr(positions, "scaling", None)
    length = getattr(scaling, "trained", None)
    if isinstance(scaling, YaRN | Llama3):
        length = int(scaling.trained * scaling.factor)
    return {
        "vocab_size": config.embedding.rows,
        "hidden_size": stack.width,
        "intermediate_size": stack.mlp_width,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": stack.groups,
        "head_dim": stack.features,
        "hidden_act": THEIRS.get(stack.activation),
        "rms_norm_eps": stack.epsilon,
        "rope_parameters": rope_parameters(positions) if isinstance(positions, Rotary) else None,
        "attention_dropout": stack.attention_dropout,
        "tie_word_embeddings": config.tied_embeddings,
        **({} if length is None else {"max_position_embeddings": length}),
    }


def _llama_settings(config: DecoderConfig) -> dict[str, Any]:
    stack: Any = config.stack
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_settings(config),
        "attention_bias": stack.biased("qkv"),
        "mlp_bias": stack.biased("mlp"),
    }


def _mistral_settings(config: DecoderConfig) -> dict[str, Any]:
    stack: Any = config.stack
    window = stack.pattern[0].window
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **_settings(config),
        "sliding_window": window.w if isinstance(window, Window) else None,
    }


def _glm4_settings(config: DecoderConfig) -> dict[str, Any]:
    stack: Any = config.stack
    return {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        **_settings(config),
        "attention_bias": stack.biased("qkv"),
        "pad_token_id": None,  # the published one, which its absence means, is no token of a smaller vocabulary
    }


def rows(config: DecoderConfig, *, pairs: bool = False) -> list[Row]:
    """Which arrays hold which parameters; `pairs`: the two features of a rotary pair are neighbours in theirs, not half
    a head apart.
    """
    return [*_shared(config, pairs=pairs), *_split_mlp(config)]


def _glm4_rows(config: DecoderConfig) -> list[Row]:
    """As `rows`, but rotary pairs are neighbours, and gate and up are one array."""
    stack: Any = config.stack
    both = fused(stack.mlp_width, stack.mlp_width, axis=0).then(TRANSPOSED, TRANSPOSED)
    theirs, ours = "model.layers.{layer}.mlp", "stack/blocks/{layer}/mlp/inner"
    return [
        *_shared(config, pairs=True),
        row(f"{theirs}.gate_up_proj.weight", f"{ours}/gate/kernel", f"{ours}/up/kernel", form=both),
        row(f"{theirs}.down_proj.weight", f"{ours}/down/kernel", form=TRANSPOSED),
    ]


def _shared(config: DecoderConfig, *, pairs: bool) -> list[Row]:
    stack: Any = config.stack
    theirs, ours = "model.layers.{layer}", "stack/blocks/{layer}"
    table = [
        row("model.embed_tokens.weight", "embedding/table"),
        row("model.norm.weight", "stack/norm/scale"),
        row(f"{theirs}.input_layernorm.weight", f"{ours}/attention/norm/scale"),
        row(f"{theirs}.post_attention_layernorm.weight", f"{ours}/mlp/norm/scale"),
    ]
    for name, field, heads in (
        ("q", "query", stack.heads),
        ("k", "key", stack.groups),
        ("v", "value", None),
        ("o", "output", None),
    ):
        forms: list[Form] = []
        if pairs and heads is not None:
            turning = int(stack.features * stack.positions.fraction)
            forms = [reordered(half_rotated(heads, stack.features, turning), axis=0)]
        own, other = f"{ours}/attention/inner/{field}", f"{theirs}.self_attn.{name}_proj"
        table.append(row(f"{other}.weight", f"{own}/kernel", form=chain(*forms, TRANSPOSED)))
        if stack.biased("output" if field == "output" else "qkv"):
            table.append(row(f"{other}.bias", f"{own}/bias", form=chain(*forms) if forms else SAME))
    if not config.tied_embeddings:
        table.append(row("lm_head.weight", "head/kernel", form=TRANSPOSED))
    return table


def _split_mlp(config: DecoderConfig) -> list[Row]:
    stack: Any = config.stack
    table = []
    for name in ("gate", "up", "down"):
        own, other = f"stack/blocks/{{layer}}/mlp/inner/{name}", f"model.layers.{{layer}}.mlp.{name}_proj"
        table.append(row(f"{other}.weight", f"{own}/kernel", form=TRANSPOSED))
        if stack.biased("mlp"):
            table.append(row(f"{other}.bias", f"{own}/bias"))
    return table


_BUFFERS = r"rotary_emb\.inv_freq$"
LLAMA, MISTRAL, GLM4 = (
    Architecture(
        name=name,
        model=model,
        rows=table,
        settings=settings,
        prefix="model.",
        ignored=_BUFFERS,
        copies=(row("lm_head.weight", "embedding/table"),),
        told_by=told_by,
    )
    for name, model, table, settings, told_by in (
        ("llama", _llama, rows, _llama_settings, None),
        ("mistral", _mistral, rows, _mistral_settings, None),
        ("glm", _glm4, _glm4_rows, _glm4_settings, "num_hidden_layers"),  # GLM of 2022 has another
    )
)
