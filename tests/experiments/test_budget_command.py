"""What an experiment costs, through the configs and the command line of users."""

import dataclasses
import io
import re
import subprocess
import sys

import jax
import pytest
from rich.console import Console

from experiments import budget, configs, experiment
from research.analysis import memory
from research.data.documents import Document
from research.training.optimizers import Adafactor, AdamW

FILES = ("configs/scale/smoke.gin",)


@dataclasses.dataclass(frozen=True)
class Prose:
    """Text that is there at once."""

    def documents(self, data_dir=None):
        return tuple(Document(f"{i:02}", f"{i} is a number of its own. " * 20) for i in range(60))


def planned(arm="causal_lm", **changes):
    read, _ = experiment.load([f"configs/architecture/{arm}.gin", *FILES])
    parallelism = dataclasses.replace(read.parallelism, **changes)
    return dataclasses.replace(
        read, data=dataclasses.replace(read.data, corpus=Prose()), parallelism=parallelism
    )


def estimated(plan, platform="cpu"):
    return budget.estimated(plan, *experiment.example(plan, None), platform)


def printed(function):
    console = Console(file=io.StringIO(), width=200)
    function(console)
    return console.file.getvalue()


def cells(text, name):
    """The other cells of the first table line that begins with that name."""
    lines = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in text.splitlines()]
    return next(line[1:] for line in lines if line[0] == name)


@pytest.mark.parametrize(
    "arm", ["causal_lm", pytest.param("encoder_decoder_denoising", marks=pytest.mark.slow)]
)
def test_the_arguments_of_an_experiment_are_those_of_its_compiled_step(arm):
    plan = planned(arm)
    batch, vocab = experiment.example(plan, None)
    functions = experiment.trainer(plan, vocab)
    state = functions.initial(jax.random.key(0), plan.numbers)
    analysis = functions.step.lower(functions, state, batch).compile().memory_analysis()
    held = budget.estimated(plan, batch, vocab)
    assert held.arguments == analysis.argument_size_in_bytes
    assert held.temporaries == pytest.approx(analysis.temp_size_in_bytes, rel=0.25)


def test_devices_share_rows_and_with_fsdp_the_parameters():
    alone, data, fsdp = (estimated(planned(**parts)) for parts in ({}, {"data": 4}, {"fsdp": 4}))
    assert data.batch == fsdp.batch == alone.batch / 4
    assert data.activations < 0.3 * alone.activations
    assert data.parameters == alone.parameters
    assert fsdp.parameters < 0.3 * alone.parameters
    assert fsdp.optimizer < 0.3 * alone.optimizer
    assert fsdp.gradients < 0.5 * data.gradients


def test_rows_that_do_not_divide_are_one_line():
    with pytest.raises(
        ValueError, match="Data.batch = 16 rows do not divide over Parallelism data x fsdp = 3"
    ):
        estimated(planned(data=3))


def test_a_setting_is_what_it_changes():
    plan = planned()
    assert budget.changed(plan, budget.setting(plan)) == dataclasses.replace(
        plan, parallelism=dataclasses.replace(plan.parallelism, data=1)
    )
    new = memory.Setting(batch=32, remat="full", accumulate=4, data=2, fsdp=2)
    assert budget.setting(budget.changed(plan, new)) == new


def test_advice_names_the_gin_lines_that_make_it_fit(monkeypatch):
    def fake(plan, *_):
        rows = plan.data.batch // (plan.recipe.accumulate * plan.parallelism.fsdp)
        saved = rows * {"none": 8, "dots": 4, "full": 1}[plan.model.stack.remat]
        return memory.Memory(
            parameters=1000 // plan.parallelism.fsdp,
            activations=saved,
            **dict.fromkeys(("optimizer", "rest", "batch", "gradients", "working", "outputs"), 0),
        )

    monkeypatch.setattr(budget, "estimated", fake)

    def advice(device):
        return printed(
            lambda console: budget.advise(planned(), device / memory.USABLE + 1, None, console, "gpu")
        )

    text = advice(1020)  # 1000 + 16 rows
    assert cells(text, "as configured") == ["1.10 KiB", "no"]
    assert cells(text, "and StackConfig.remat = 'dots'") == ["1.04 KiB", "no"]
    assert cells(text, "and StackConfig.remat = 'full'") == ["1,016 B", "yes"]
    assert "largest batch that fits, all else as configured: 2 rows" in text
    text = advice(300)
    assert cells(text, "and Recipe.accumulate = 16") == ["1,001 B", "no"]
    assert cells(text, "and Recipe.accumulate = 4, Parallelism.fsdp = 4") == ["251 B", "yes"]
    assert "as configured: none" in text
    assert cells(advice(2000), "as configured") == ["1.10 KiB", "yes"]


def test_published_models_have_their_published_size():
    """LLaMA-7B and T5-11B as in their checkpoints; GPT-3 as its tables make it, which the paper calls 175 billion."""
    sizes = [one.parameters() for one in budget.PUBLISHED]
    width, layers = 12288, 96
    gpt3 = layers * (12 * width**2 + 13 * width) + (50257 + 2048 + 2) * width
    assert sizes == [gpt3, 6_738_415_616, 11_307_321_344]
    assert sizes[0] == pytest.approx(175e9, rel=0.005)


def test_full_tuning_takes_16_bytes_a_parameter_a_narrow_copy_of_the_layers_and_its_activations():
    llama = budget.PUBLISHED[1]
    adam, adafactor = (llama.memory(optimizer, "full") for optimizer in (AdamW(), Adafactor()))
    count = llama.parameters()
    assert adam.parameters == 4 * count
    assert adam.optimizer == pytest.approx(8 * count, rel=1e-6)
    assert adafactor.optimizer < 0.01 * adam.optimizer
    assert 17.5 * count < adam.total < 18.5 * count
    assert llama.memory(AdamW(), "none").activations > 20 * adam.activations


def command(*words):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.budget", *words],
        cwd=configs.ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout, done.stderr


ARM = ("--gin_file=configs/architecture/causal_lm.gin", "--gin_file=tests/experiments/library.gin")


def test_it_prints_what_was_counted():
    plan = planned()
    text = printed(lambda console: budget.describe(plan, None, "cpu", console))
    price, held = experiment.cost(plan.model, plan.data, None), estimated(plan)
    assert cells(text, "parameters") == [f"{price.parameters:,}"]
    assert cells(text, "forward, a token") == [f"{price.forward_flops / price.tokens:,.0f}"]
    assert cells(text, "activations") == [budget.amount(held.activations)]
    assert cells(text, "total") == [budget.amount(held.total)]
    assert cells(text, "ours: float32 with AdamW")[0] == "16.0"


@pytest.mark.slow
def test_the_command_counts_and_advises_without_running():
    code, text, _ = command(*ARM, "--gin_file=configs/scale/smoke.gin", "--device_memory=1GiB")
    assert code == 0
    assert int(cells(text, "parameters")[0].replace(",", "")) > 100_000
    assert cells(text, "as configured")[1] == "yes"
    assert int(re.search(r"all else as configured: (\d+) rows", text)[1]) > 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ((), "no --gin_file"),
        ((*ARM, "--device_memory=80 apples"), "expected an amount of memory such as 80GiB"),
        ((*ARM, "--gin_param=Data.batch=0"), "Data.batch = 0"),
        ((*ARM, "--gin_param=Parallelism.fsdp=3"), "do not divide over Parallelism"),
    ],
)
def test_errors_are_one_line(words, wrong):
    code, _, said = command(*words)
    assert code == 1
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert wrong in line
    assert "Traceback" not in said


@pytest.mark.slow
def test_the_command_prints_the_published_models():
    code, text, _ = command("--published")
    assert code == 0
    assert cells(text, "parameters") == ["174.60 B", "6.74 B", "11.31 B"]
    assert cells(text, "full tuning, AdamW, fits one device of 80.00 GiB") == ["no", "no", "no"]
    assert cells(text, "frozen fits one device of 80.00 GiB") == ["no", "yes", "yes"]
