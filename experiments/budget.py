"""What an experiment costs, before anything runs:

    python -m experiments.budget --gin_file=configs/architecture/prefix_lm.gin --gin_file=configs/scale/base.gin \
        --device_memory=80GiB

Parameters, FLOPs and memory are counted from the traced model; nothing is compiled. With --device_memory it says which
batch fits, and what to switch on where the configured one does not. --published counts three named models.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from experiments import experiment, models, start
from experiments.experiment import Experiment
from research.analysis import memory
from research.analysis.memory import Memory, Setting
from research.attention import platforms
from research.attention.masks import Slots
from research.batch import Batch, Tokens
from research.models.config import StackConfig
from research.models.families import EncoderDecoderConfig, FamilyConfig
from research.training.optimizers import Adafactor, AdamW, Optimizer
from research.training.sharding import AXES, Placement
from research.training.step import Trainer

FLAGS = flags.FLAGS


def estimated(planned: Experiment, batch: Batch, vocab: int, platform: str | None = None) -> Memory:
    """What a step of an experiment holds in the memory of one device.

    Args:
      planned: the experiment; where `Parallelism.data` is None, for one device.
      batch: arrays or shapes of a batch, of any number of rows.
      vocab: tokens of the vocabulary.
      platform: see `memory.measure`.

    Raises:
      ValueError: the rows do not divide over the devices and microbatches.
    """
    parts = dataclasses.replace(planned.parallelism, data=planned.parallelism.data or 1)
    sizes = {axis: getattr(parts, axis) for axis in AXES}
    rows, left = divmod(planned.data.batch, sizes["data"] * sizes["fsdp"])
    if left or rows % planned.recipe.accumulate:
        raise ValueError(
            f"Data.batch = {planned.data.batch} rows do not divide over Parallelism data x fsdp = "
            f"{sizes['data'] * sizes['fsdp']} devices and Recipe.accumulate = {planned.recipe.accumulate}; change one"
        )

    def local(leaf: Any) -> jax.ShapeDtypeStruct:
        tokens = leaf.shape[1] // sizes["sequence"]
        return jax.ShapeDtypeStruct((rows, tokens, *leaf.shape[2:]), leaf.dtype)

    functions = experiment.trainer(_traceable(planned, platform), vocab)
    state = jax.eval_shape(lambda key: functions.initial(key, planned.numbers, rows=rows), jax.random.key(0))
    # Of the mesh only the shape counts, so this machine's device may stand for all.
    placement = Placement(parts, parts.mesh(jax.devices()[:1] * int(np.prod(list(sizes.values())))))
    shared = dataclasses.replace(state, carry=None)
    shared = Placement.shapes(shared, placement.state(shared))
    state = dataclasses.replace(shared, carry=state.carry)
    return memory.measure(functions.update, state, jax.tree.map(local, batch), platform=platform)


def setting(planned: Experiment) -> Setting:
    """What of an experiment decides how much memory its model takes."""
    return Setting(
        batch=planned.data.batch,
        remat=experiment.stacks(planned.model)[-1].remat,
        accumulate=planned.recipe.accumulate,
        data=planned.parallelism.data or 1,
        fsdp=planned.parallelism.fsdp,
    )


def changed(planned: Experiment, new: Setting) -> Experiment:
    """The experiment with another setting."""
    model = planned.model if new.remat == setting(planned).remat else _with(planned.model, remat=new.remat)
    return dataclasses.replace(
        planned,
        model=model,
        data=dataclasses.replace(planned.data, batch=new.batch),
        recipe=dataclasses.replace(planned.recipe, accumulate=new.accumulate),
        parallelism=dataclasses.replace(planned.parallelism, data=new.data, fsdp=new.fsdp),
    )


def _with(model: FamilyConfig, **values: Any) -> FamilyConfig:
    """The model with fields of all its stacks changed."""
    parts = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    stacks = {
        name: dataclasses.replace(part, **values)
        for name, part in parts.items()
        if isinstance(part, StackConfig)
    }
    return dataclasses.replace(model, **stacks)


def _traceable(planned: Experiment, platform: str | None) -> Experiment:
    """cuDNN's attention can only be traced where there is cuDNN; blockwise attention takes as little memory."""
    absent = platform == "gpu" and jax.default_backend() != "gpu"
    if absent and any(stack.backend in ("auto", "cudnn") for stack in experiment.stacks(planned.model)):
        return dataclasses.replace(planned, model=_with(planned.model, backend="blockwise"))
    return planned


def describe(planned: Experiment, data_dir: str | None, platform: str, console: Console) -> None:
    """Print what a step costs on devices of that platform."""
    batch, vocab = experiment.example(planned, data_dir)
    price = experiment.cost(planned.model, planned.data, data_dir)
    held = estimated(planned, batch, vocab, platform)

    table = Table(title="model FLOPs", show_header=False)
    for name, value in {
        "parameters": f"{price.parameters:,}",
        "forward, a token": f"{price.forward_flops / price.tokens:,.0f}",
        "backward, a token": f"{price.backward_flops / price.tokens:,.0f}",
        "of which attention, by visible pairs": f"{price.attention_share:.1%}",
        "tokens of a step": f"{price.tokens:,.0f}",
        "targets of a step": f"{price.loss_tokens:,.0f}",
        f"the run of {planned.steps:,} steps": f"{price.train_flops * planned.steps:.4g} FLOPs",
    }.items():
        table.add_row(name, value)
    console.print(table)

    table = Table(title=f"memory of a {platform.upper()}", show_header=False)
    for field in dataclasses.fields(Memory):
        table.add_row(field.name, amount(getattr(held, field.name)))
    table.add_section()
    for name in ("arguments", "temporaries", "total"):
        table.add_row(name, amount(getattr(held, name)))
    console.print(table)

    rows = planned.data.batch // planned.recipe.accumulate
    saved = sum(
        memory.classic_activations(
            rows=rows,
            tokens=line.ids.shape[1],
            layers=stack.layers,
            width=stack.width,
            heads=stack.heads,
            remat=stack.remat,
        )
        for stack, line in _read(planned.model, batch)
    )
    table = Table(title="the usual accounting, for comparison")
    for name in ("", "bytes a parameter", "together"):
        table.add_column(name, justify="left" if not name else "right")
    state, count = held.parameters + held.optimizer, price.parameters
    # Each line names what it counts; the first two are for one device.
    table.add_row("weights, gradients and Adam in mixed precision (ZeRO)", "16.0", amount(16 * count))
    if planned.parallelism.fsdp == planned.parallelism.tensor == 1:
        ours = state + 4 * count
        table.add_row(
            f"ours: float32 with {type(planned.optimizer).__name__}", f"{ours / count:.1f}", amount(ours)
        )
    table.add_row("activations of dense 16-bit attention, s b h (34 + 5 a s / h)", "", amount(saved))
    console.print(table)


def advise(
    planned: Experiment,
    device_memory: float,
    data_dir: str | None,
    console: Console,
    platform: str | None = None,
) -> None:
    """Print which batch fits into so many bytes of a device, and what to switch on if the configured one does not.
    `platform`: None stands for the accelerator that JAX finds, or a GPU.
    """
    batch, vocab = experiment.example(planned, data_dir)
    if platform is None:
        platform = "gpu" if jax.default_backend() == "cpu" else jax.default_backend()

    def estimate(new: Setting) -> int:
        return estimated(changed(planned, new), batch, vocab, platform).total

    advice = memory.advise(estimate, setting(planned), device_memory)
    console.print(
        f"a {platform.upper()} of {amount(device_memory)}, of which {amount(advice.usable)} are used:"
    )
    table = Table()
    for name in ("change", "needed", "fits"):
        table.add_column(name, justify="left" if name == "change" else "right")
    before = advice.setting
    table.add_row("as configured", amount(advice.needed), "yes" if advice.fits else "no")
    for after, needed in advice.remedies:
        table.add_row(_difference(before, after), amount(needed), "yes" if needed <= advice.usable else "no")
        before = after
    console.print(table)
    largest = f"{advice.largest:,} rows" if advice.largest else "none"
    console.print(f"largest batch that fits, all else as configured: {largest}")
    if advice.remedies and advice.remedies[-1][1] > advice.usable:
        console.print("not enough: make the model or Data.window smaller, or set Parallelism.tensor as well")


def _difference(before: Setting, after: Setting) -> str:
    names = {
        "remat": "StackConfig.remat",
        "accumulate": "Recipe.accumulate",
        "fsdp": "Parallelism.fsdp",
        "batch": "Data.batch",
    }
    new = {
        text: getattr(after, name)
        for name, text in names.items()
        if getattr(after, name) != getattr(before, name)
    }
    return "and " + ", ".join(f"{text} = {value!r}" for text, value in new.items())


def amount(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count >= memory.UNITS[unit]:
            return f"{count / memory.UNITS[unit]:,.2f} {unit}"
    return f"{count:,.0f} B"


def _read(model: FamilyConfig, batch: Batch) -> list[tuple[StackConfig, Tokens]]:
    """Each stack of a model as it is built, and a line that it reads."""
    if not isinstance(model, EncoderDecoderConfig):
        return [(model.stack, batch.target)]
    assert batch.source is not None
    encoder, decoder = model.stacks()
    return [(decoder if model.tied else encoder, batch.source), (decoder, batch.target)]


# Published models, as they are built here.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A named model: `source` and `target` are the tokens that its two sides read in pretraining."""

    title: str
    name: str
    target: int
    source: int | None = None

    @property
    def model(self) -> FamilyConfig:
        """Its configuration, products in bfloat16, without dropout."""
        how = {"dtype": "bfloat16", "backend": "blockwise", "dropout": 0.0, "attention_dropout": 0.0}
        return _with(models.named(self.name).model, **how)

    @property
    def vocab(self) -> int:
        """Rows of its token table."""
        return models.named(self.name).vocab

    def batch(self, rows: int = 1) -> Batch:
        """The shapes of a batch."""

        def line(length: int) -> Tokens:
            return Tokens(np.ones((rows, length), np.int32), Slots.arange(length, (rows,)))

        ids, weights = np.ones((rows, self.target), np.int32), np.ones((rows, self.target), np.float32)
        return Batch(line(self.target), ids, weights, None if self.source is None else line(self.source))

    def parameters(self) -> int:
        """How many it has."""
        return models.named(self.name).parameters

    def memory(self, optimizer: Optimizer, remat: memory.Remat, rows: int = 1) -> Memory:
        """What a step of that many rows holds, products in bfloat16."""
        functions = Trainer(_with(self.model, remat=remat), vocab=self.vocab, optimizer=optimizer, steps=1000)
        state = jax.eval_shape(functions.initial, jax.random.key(0))
        return memory.measure(functions.update, state, self.batch(rows), platform="gpu")


PUBLISHED = (
    Published(title="GPT-3 175B", name="gpt3_175b", target=2048),
    Published(title="LLaMA-7B", name="llama_7b", target=2048),
    Published(title="T5-11B", name="t5_11b", source=512, target=114),
)


def published(console: Console, device: float = 80 * memory.GIB) -> None:
    """Print what it takes to use and to train three published models."""
    lines: dict[str, list[str]] = {}

    def note(name: str, value: str) -> None:
        lines.setdefault(name, []).append(value)

    for one in PUBLISHED:
        adam = {remat: one.memory(AdamW(), remat) for remat in ("none", "full")}
        adafactor = one.memory(Adafactor(), "full")
        count = one.parameters()
        weights, tuning = 2 * count, memory.classic(count)["every device holds all"]
        tokens = f"{one.target:,}" if one.source is None else f"{one.source:,} + {one.target:,}"
        note("parameters", f"{count / 1e9:,.2f} B")
        note("weights in bfloat16 (to use it frozen)", amount(weights))
        note("full tuning, 16 bytes a parameter", amount(tuning))
        for name, held in (("AdamW", adam["full"]), ("Adafactor", adafactor)):
            note(f"here, {name}: float32 weights and state", amount(held.parameters + held.optimizer))
        note("a row of tokens", tokens)
        for remat, held in adam.items():
            note(f"activations of that row, remat {remat}", amount(held.activations))
        note("a step of that row here, AdamW, remat full", amount(adam["full"].total))
        note("a step of that row here, Adafactor, remat full", amount(adafactor.total))
        for name, needed in (
            ("frozen", weights),
            ("full tuning, AdamW,", min(tuning, adam["full"].total)),
            ("full tuning, Adafactor,", adafactor.total),
        ):
            note(f"{name} fits one device of {amount(device)}", "yes" if needed < device else "no")
    table = Table(title="published models, as built here")
    table.add_column("")
    for one in PUBLISHED:
        table.add_column(one.title, justify="right")
    for name, values in lines.items():
        table.add_row(name, *values)
    console.print(table)
    console.print(
        f"16 bytes a parameter fill {amount(device)} at {device / 16 / 1e9:.1f} B parameters, activations aside"
    )


def main(argv: list[str]) -> int:
    """Print what the experiment costs. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --gin_file=...")
    console = start.console()
    start.process()
    try:
        device = None if FLAGS.device_memory is None else memory.parse(FLAGS.device_memory)
        if FLAGS.published:
            published(console, *([] if device is None else [device]))
            return 0
        planned, _ = experiment.load(FLAGS.gin_file, FLAGS.gin_param)
        describe(planned, FLAGS.data_dir, FLAGS.platform or platforms.platform(), console)
        if device is not None:
            advise(planned, device, FLAGS.data_dir, console, FLAGS.platform)
    except (ValueError, OSError, RuntimeError) as error:
        return start.fail(error)
    return 0


if __name__ == "__main__":
    flags.DEFINE_multi_string("gin_file", [], "gin file; repeat it, later files override earlier ones")
    flags.DEFINE_multi_string("gin_param", [], 'gin binding, e.g. "Data.batch=64"; repeat it')
    flags.DEFINE_string(
        "device_memory", None, "memory of a device, e.g. 80GiB: what fits, and what would make it fit"
    )
    flags.DEFINE_enum(
        "platform", None, ["cpu", "gpu", "tpu"], "what kind of device (default: what JAX finds here)"
    )
    flags.DEFINE_bool("published", False, "count published models instead of an experiment")
    flags.DEFINE_string("data_dir", None, "folder of downloaded archives (default: the user's cache)")
    app.run(main)
