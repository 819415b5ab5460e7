"""Draw the attention masks of an experiment: python -m experiments.masks --gin_file=configs/architecture/prefix_lm.gin

Prefix-prefix pairs are blue, prefix-target green, target-target yellow, hidden pairs grey. Blocks that attention
never computes are hatched, blocks that are visible throughout have a thick frame. Encoder-decoders have three
panels: source to source, target to source, target to target; a pattern of blocks has one for each of its masks; a
memory stands left of the segment that reads it, behind a line.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files, not windows

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from matplotlib import axes, colors, figure, patches

from experiments import configs, experiment, start
from research.attention import masks
from research.attention.masks import Mask, Same, Slots
from research.attention.memory import Layer
from research.attention.recurrence import Recurrent
from research.batch import Batch
from research.data import layouts, packing
from research.data.objectives import Classification, Seq2Seq
from research.data.pipeline import Data
from research.data.tokenizers import Bytes
from research.data.windows import TokenWindow
from research.models.config import StackConfig
from research.models.families import EncoderDecoderConfig, FamilyConfig

FLAGS = flags.FLAGS

KINDS = ("hidden", "prefix - prefix", "prefix - target", "target - target")
COLOURS = ("#d9d9d9", "#4477aa", "#228833", "#ccbb44")  # told apart by colour-blind readers and in print


@dataclasses.dataclass(frozen=True)
class Panel:
    """One attention: who reads whom under which mask. `given`: which side belongs to the prefix; the last
    `k.length - memory` keys are the line itself.
    """

    title: str
    mask: Mask
    q: Slots
    k: Slots
    q_given: np.ndarray
    k_given: np.ndarray
    memory: int = 0


def panels(model: FamilyConfig, batch: Batch, segments: int = 3) -> list[Panel]:
    """The attentions of the model's family on a batch of one row; a memory has read `segments` such rows before."""
    target = batch.target.slots
    given = np.asarray(target.prefix)
    if not isinstance(model, EncoderDecoderConfig):
        return list(_own("self-attention", model.stack, model.mask, target, given, segments))
    assert batch.source is not None
    source = batch.source.slots
    all_given, none_given = np.ones(source.segment.shape, bool), np.zeros(target.segment.shape, bool)
    encoder, decoder = model.stacks()
    encoder = dataclasses.replace(decoder if model.tied else encoder, memory=None)  # it reads whole sources
    return [
        *_own("encoder", encoder, model.encoder_mask, source, all_given, segments),
        Panel("cross-attention", model.cross_mask, target, source, none_given, all_given),
        *_own("decoder", decoder, model.mask, target, none_given, segments),
    ]


def _own(
    title: str, stack: StackConfig, mask: Mask, slots: Slots, given: np.ndarray, segments: int
) -> Iterable[Panel]:
    """A panel for each mask of the stack's pattern."""
    keys = slots if stack.memory is None else remembered(stack.memory, slots, segments)
    memory = keys.length - slots.length
    slots = jax.tree.map(lambda leaf: leaf[:, memory:], keys)
    k_given = np.concatenate([np.zeros((1, memory), bool), given], axis=1)
    for visible in dict.fromkeys(spec.visible(mask) for spec in stack.pattern):
        yield Panel(title, visible, slots, keys, given, k_given, memory)


def remembered(memory: Recurrent, slots: Slots, segments: int) -> Slots:
    """The key slots of a stream's segment after `segments` others like it: the memory's, then its own."""
    length = slots.length
    state = memory.empty(1, 1, [1], jnp.float32)
    compress = memory.compression and memory.compression.build(width=1, key=jax.random.key(0))
    # A layer of no content: the slots are all that is asked for.
    layer = Layer(
        keys=lambda x: (x[..., None, :], x[..., None, :]),
        turn=lambda k, _: k,
        content=lambda x, _: x[:, :1],
        usage=lambda k, _: jnp.zeros(k.shape[:2]),
        compress=compress,
    )
    documents = int(np.max(slots.segment))
    for step in range(segments + 1):
        here = dataclasses.replace(
            slots,
            position=slots.position + step * length,
            segment=slots.segment + step * (documents if documents > 1 else 0),  # a lone document goes on
            coords=None,
        )
        reader = state.reader(here)
        held = jax.tree.map(lambda leaf: leaf[0], state.layers[0])
        reading = reader.read(held, jnp.zeros((1, length, 1)), layer)
        state = state.extended(reader, [jax.tree.map(lambda leaf: leaf[None], reading.state)])
    return reading.slots


def kinds(panel: Panel) -> np.ndarray:
    """Index into KINDS for each pair of the first row, [q k]."""
    visible = np.asarray((panel.mask & Same())(panel.q, panel.k))[0]
    given = panel.q_given[0][:, None].astype(int) + panel.k_given[0][None, :]
    return np.where(visible, 3 - given, 0)


def visibility(panel: Panel, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether any and whether all pairs of each block of `size` are visible, [q/size k/size], as attention
    derives it from the mask's rule.
    """
    q, k = (masks.blocks(jax.tree.map(np.asarray, side), size) for side in (panel.q, panel.k))
    truth = masks.visibility(panel.mask, q, k)
    shape = (1, -(-panel.q.length // size), -(-panel.k.length // size))
    may, must = (np.broadcast_to(part, shape)[0] for part in (truth.may, truth.must))
    return may, must


def draw(drawn: list[Panel], block: int = 0) -> figure.Figure:
    """The picture of some panels side by side, queries down, keys across; `block`: size of the blocks shown."""
    widths = [panel.k.length / panel.q.length for panel in drawn]
    picture = figure.Figure(figsize=(4 * sum(widths), 4.8), layout="constrained")
    cells = picture.subplots(1, len(drawn), squeeze=False, width_ratios=widths)[0]
    palette = colors.ListedColormap(COLOURS)
    for axis, panel in zip(cells, drawn, strict=True):
        axis.imshow(kinds(panel), cmap=palette, vmin=0, vmax=len(KINDS) - 1, interpolation="nearest")
        axis.set_title(f"{panel.title}: {panel.mask}", fontsize=9, wrap=True)
        axis.set_xlabel("memory | key" if panel.memory else "key")
        axis.set_ylabel("query")
        axis.set_xticks(np.arange(-0.5, panel.k.length), minor=True)
        axis.set_yticks(np.arange(-0.5, panel.q.length), minor=True)
        axis.grid(which="minor", color="white", linewidth=0.5)
        axis.tick_params(which="both", length=0)
        if panel.memory:
            axis.axvline(panel.memory - 0.5, color="black", linewidth=1.5)
        if block:
            _frame(axis, panel, block)
    handles = [patches.Patch(color=colour, label=kind) for kind, colour in zip(KINDS, COLOURS, strict=True)]
    if block:
        handles += [
            patches.Patch(
                fill=False, hatch="////", edgecolor="#888888", linewidth=0, label="block not computed"
            ),
            patches.Patch(fill=False, edgecolor="black", linewidth=1.5, label="block all visible"),
        ]
    columns = min(len(handles), max(2, int(2 * sum(widths))))
    picture.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return picture


def _frame(axis: axes.Axes, panel: Panel, size: int) -> None:
    """Hatch what is never computed, frame what is visible throughout."""
    may, must = visibility(panel, size)
    for i, j in np.ndindex(may.shape):
        corner = (j * size - 0.5, i * size - 0.5)
        width = min(size, panel.k.length - j * size)
        height = min(size, panel.q.length - i * size)
        if not may[i, j]:
            hatched = patches.Rectangle(corner, width, height, fill=False, hatch="////", ec="#888888", lw=0)
            axis.add_patch(hatched)
        elif must[i, j]:
            axis.add_patch(
                patches.Rectangle(corner, width, height, fill=False, edgecolor="black", linewidth=1.5)
            )


def example(data: Data, tokens: int, documents: int = 1) -> Batch:
    """One row of `tokens` bytes of text as the experiment's objective and layout place it, `documents` times one
    after another with segments of their own.
    """
    tokenizer = Bytes()
    text = tokenizer.encode(("the mask is the architecture. " * tokens)[:tokens])
    # The second half is what a record would teach.
    window = TokenWindow.pair(text[: tokens // 2], text[tokens // 2 :])
    objective = data.trained(data.parts[0])
    if isinstance(objective, Classification):
        objective = Seq2Seq()
    row = [
        data.layout(objective(window, np.random.default_rng(index), tokenizer), tokenizer)
        for index in range(documents)
    ]
    streams = [name for name in ("target", "source") if name in row[0]]
    lengths = {name: sum(len(features[name]) for features in row) for name in streams}
    return layouts.assemble(packing.fill([row], lengths))


def real(data: Data, row: int, data_dir: str | None = None) -> Batch:
    """Row `row` of the experiment's first training batch.

    Raises:
      ValueError: the batch has no such row.
    """
    if row >= data.batch:
        raise ValueError(
            f"--row={row}: the batch has {data.batch} rows; raise Data.batch or draw an earlier row"
        )
    batch = next(data.load(data_dir).training(0))
    return jax.tree.map(lambda leaf: np.asarray(leaf)[row : row + 1], batch)


def main(argv: list[str]) -> int:
    """Draw the masks of the experiment and explain them. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --gin_file=...")
    start.process()
    try:
        out = Path(FLAGS.out)
        if out.suffix not in (".png", ".svg"):
            raise configs.ConfigError(f"--out={out}: expected a name that ends in .png or .svg")
        planned, _ = experiment.load(FLAGS.gin_file, FLAGS.gin_param)
        batch = example(planned.data, FLAGS.tokens, FLAGS.documents)
        if FLAGS.row is not None:
            batch = real(planned.data, FLAGS.row, FLAGS.data_dir)
        drawn = panels(planned.model, batch, FLAGS.segments)
        out.parent.mkdir(parents=True, exist_ok=True)
        # No date and fixed ids: the same config gives the same file.
        with matplotlib.rc_context({"svg.hashsalt": "masks"}):
            draw(drawn, FLAGS.block).savefig(
                out, dpi=150, metadata={"Date": None} if out.suffix == ".svg" else None
            )
    except (ValueError, OSError) as error:
        return start.fail(error)
    for panel in drawn:
        print(f"{panel.title}: {panel.mask}: {panel.mask.explain()}")
    print(out)
    return 0


if __name__ == "__main__":
    flags.DEFINE_multi_string("gin_file", [], "gin file; repeat it, later files override earlier ones")
    flags.DEFINE_multi_string("gin_param", [], "gin binding; repeat it")
    flags.DEFINE_string("out", "runs/masks.png", "the picture, .png or .svg")
    flags.DEFINE_integer("tokens", 16, "tokens of the example", lower_bound=2)
    flags.DEFINE_integer("documents", 1, "examples packed into the row", lower_bound=1)
    flags.DEFINE_integer(
        "row", None, "draw this row of the first training batch instead of the example", lower_bound=0
    )
    flags.DEFINE_string("data_dir", None, "where corpora are kept, for --row")
    flags.DEFINE_integer("segments", 3, "segments that a memory has read before", lower_bound=0)
    flags.DEFINE_integer("block", 4, "size of the blocks whose visibility is shown; 0: none", lower_bound=0)
    app.run(main)
