"""Every shipped gin file builds what it says, and what is wrong with one is said in one line."""

import dataclasses

import jax
import pytest

from experiments import configs, experiment, study
from research.attention.masks import Causal, Prefix, Window
from research.attention.positions import ALiBi
from research.data.corpora import StandardLibrary
from research.training.adapters import LoRA

STUDIES = {
    name: study.declared(name) for name in ("architecture", "forgetting", "long_context", "repetition")
}
# The file of each arm, and that of the data of its comparison, which is read after the scale.
ARMS = {
    f"configs/{name}/{arm}.gin": [table.data[together]] if together in table.data else []
    for name, table in STUDIES.items()
    for together, arms in table.compared.items()
    for arm in arms
}
PREFIX = "configs/architecture/prefix_lm.gin"
COMBINED = [
    ["configs/base.gin", f"configs/family/{family}.gin", f"configs/objective/{objective}.gin"]
    for family, objective in [
        ("encoder", "masked_lm"),
        ("encoder_decoder_tied", "span_corruption"),
        ("causal", "prefix_lm"),
    ]
]


def one_step(planned):
    """The loss of one step on text that needs no download."""
    data = dataclasses.replace(planned.data, corpus=StandardLibrary(), batch=2)
    functions = experiment.trainer(dataclasses.replace(planned, data=data), data.tokenizer.vocab_size)
    batch = next(experiment.dataset(data, None).training(0))
    state, metrics = functions.step(functions.initial(jax.random.key(0), planned.numbers), batch)
    return int(state.step), float(metrics["loss"])


@pytest.mark.parametrize(
    "files", [[arm] for arm, data in ARMS.items() if not data] + COMBINED, ids=lambda files: files[-1]
)
def test_a_shipped_config_builds_and_takes_one_step(files):
    """Those on free text; test_architecture has others, on their own data."""
    planned, _ = experiment.load([*files, "configs/scale/smoke.gin"])
    step, loss = one_step(planned)
    assert step == 1
    assert 3 < loss < 12  # near log(288) = 5.7 before anything is learned


@pytest.mark.parametrize("scale", ["smoke", "small", "base"])
@pytest.mark.parametrize("arm", ARMS)
def test_the_operative_config_gives_the_same_experiment(arm, scale, tmp_path):
    planned, text = experiment.load([arm, f"configs/scale/{scale}.gin", *ARMS[arm]])
    (tmp_path / "config.gin").write_text(text)
    assert experiment.load([str(tmp_path / "config.gin")])[0] == planned


def test_one_line_turns_a_causal_decoder_into_a_prefix_decoder():
    causal, _ = experiment.load(
        ["configs/base.gin", "configs/family/causal.gin", "configs/objective/prefix_lm.gin"]
    )
    prefix, _ = experiment.load([PREFIX])
    assert causal.model.mask == Causal()
    assert prefix == dataclasses.replace(causal, model=dataclasses.replace(causal.model, mask=Prefix()))


def test_the_plan_does_not_change_the_key_and_a_seed_does():
    plain = experiment.load([PREFIX])[0].key()
    assert experiment.load([PREFIX], ["Plan.log_every=3"])[0].key() == plain
    assert experiment.load([PREFIX], ["train.seed=1"])[0].key() != plain


def test_a_scale_may_bind_what_an_experiment_has_not():
    """Such as the rate of an optimizer that is not its own; what stands over it has to be used."""
    other = ["train.optimizer=@LoRA()"]
    planned, _ = experiment.load([PREFIX, "configs/scale/small.gin"], other)
    assert isinstance(planned.optimizer, LoRA)
    with pytest.raises(configs.ConfigError, match="AdamW.learning_rate is used by nothing"):
        experiment.load([PREFIX, "configs/scale/small.gin"], [*other, "AdamW.learning_rate=0.1"])
    with pytest.raises(configs.ConfigError, match="AdamW.learning_rate is used by nothing"):
        experiment.load([PREFIX, "configs/forgetting/data/general.gin"], other)


@pytest.mark.parametrize(
    ("files", "bindings", "said"),
    [
        (["configs/architecture/prefx_lm.gin"], [], "did you mean 'configs/architecture/prefix_lm.gin'"),
        ([PREFIX], ["train.stps=3"], "did you mean 'steps'"),
        ([PREFIX], ["trin.steps=3"], "did you mean 'train'"),
        ([PREFIX], ["StackConfig.positions=@Rotry()"], "did you mean 'Rotary'"),
        ([PREFIX], ["train.steps='abc'"], "train.steps = 'abc': expected int"),
        ([PREFIX], ["train.steps=abc"], "quote strings"),
        ([PREFIX], ["train.steps=%STEPS"], "macro %STEPS has no value"),
        ([PREFIX], ["train.steps=0"], "train.steps = 0: expected at least 1"),
        ([PREFIX], ["StackConfig.norm='rmss'"], "expected Literal['rms', 'layer']"),
        ([PREFIX], ["train.plan=@Factbook()"], "Experiment.plan = Factbook("),
        ([PREFIX], ["enc/StackConfig.width=8"], "enc/config.StackConfig.width is used by nothing"),
        ([PREFIX], ["StackConfig.width=7"], "not a multiple of StackConfig.heads"),
        (["configs/base.gin"], [], "no value for"),
        (
            [PREFIX],
            ["StackConfig.positions=@Learned()", "Learned.length=64"],
            "Learned.length = 64 positions, but Data.window = 128",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(files, bindings, said):
    with pytest.raises(configs.ConfigError) as caught:
        experiment.load(files, bindings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("families.Decodr.mask = None", "did you mean 'Decoder'"),
        ("masks.Window.w = 3", "'masks' is not imported in this gin file"),
        ("include 'configs/nowhere.gin'", "configs/nowhere.gin"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_in_one_line(tmp_path, line, said):
    file = tmp_path / "own.gin"
    file.write_text(
        f"from __gin__ import dynamic_registration\nfrom research.models import families\n{line}\n"
    )
    with pytest.raises(configs.ConfigError) as caught:
        experiment.load([PREFIX, str(file)])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_binding_may_name_what_no_file_has_imported(tmp_path):
    bindings = [
        "StackConfig.positions=@ALiBi()",
        "DecoderConfig.mask=@And()",
        "And.parts=(@Causal(), @Window())",
    ]
    planned, text = experiment.load(["configs/architecture/causal_lm.gin"], [*bindings, "Window.w=9"])
    assert planned.model.stack.positions == ALiBi()
    assert planned.model.mask == Causal() & Window(9)
    (tmp_path / "config.gin").write_text(text)
    assert experiment.load([str(tmp_path / "config.gin")])[0] == planned
