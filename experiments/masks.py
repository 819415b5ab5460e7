"""Draw the attention masks of an experiment: python -m experiments.masks --gin_file=configs/architecture/prefix_lm.gin

Prefix-prefix pairs are blue, prefix-target green, target-target yellow, hidden pairs grey. Encoder-decoders have
three panels: source to source, target to source, target to target.
"""

import dataclasses
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files, not windows

import numpy as np
from absl import app, flags
from matplotlib import colors, figure, patches

from experiments import configs, experiment, start
from research.attention.masks import Mask, Same, Slots
from research.batch import Batch
from research.data import layouts
from research.data.pipeline import Data
from research.models.families import EncoderDecoderConfig, FamilyConfig

FLAGS = flags.FLAGS

KINDS = ("hidden", "prefix - prefix", "prefix - target", "target - target")
COLOURS = ("#d9d9d9", "#4477aa", "#228833", "#ccbb44")  # told apart by colour-blind readers and in print


@dataclasses.dataclass(frozen=True)
class Panel:
    """One attention: who reads whom under which mask."""

    title: str
    mask: Mask
    q: Slots
    k: Slots
    q_given: np.ndarray
    k_given: np.ndarray


def panels(model: FamilyConfig, batch: Batch) -> list[Panel]:
    """The attentions of the model's family on a batch of one row."""
    target = batch.target.slots
    given = np.asarray(target.prefix)
    if not isinstance(model, EncoderDecoderConfig):
        return [Panel("self-attention", model.mask, target, target, given, given)]
    assert batch.source is not None
    source = batch.source.slots
    all_given, none_given = np.ones(source.segment.shape, bool), np.zeros(target.segment.shape, bool)
    return [
        Panel("encoder", model.encoder_mask, source, source, all_given, all_given),
        Panel("cross-attention", model.cross_mask, target, source, none_given, all_given),
        Panel("decoder", model.mask, target, target, none_given, none_given),
    ]


def kinds(panel: Panel) -> np.ndarray:
    """Index into KINDS for each pair of the first row, [q k]."""
    visible = np.asarray((panel.mask & Same())(panel.q, panel.k))[0]
    given = panel.q_given[0][:, None].astype(int) + panel.k_given[0][None, :]
    return np.where(visible, 3 - given, 0)


def draw(drawn: list[Panel]) -> figure.Figure:
    """The picture of some panels side by side, queries down, keys across."""
    picture = figure.Figure(figsize=(4 * len(drawn), 4.8), layout="constrained")
    axes = picture.subplots(1, len(drawn), squeeze=False)[0]
    palette = colors.ListedColormap(COLOURS)
    for axis, panel in zip(axes, drawn, strict=True):
        axis.imshow(kinds(panel), cmap=palette, vmin=0, vmax=len(KINDS) - 1, interpolation="nearest")
        axis.set_title(f"{panel.title}: {panel.mask}", fontsize=9)
        axis.set_xlabel("key")
        axis.set_ylabel("query")
        axis.set_xticks(np.arange(-0.5, panel.k.length), minor=True)
        axis.set_yticks(np.arange(-0.5, panel.q.length), minor=True)
        axis.grid(which="minor", color="white", linewidth=0.5)
        axis.tick_params(which="both", length=0)
    handles = [patches.Patch(color=colour, label=kind) for kind, colour in zip(KINDS, COLOURS, strict=True)]
    picture.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return picture


def example(data: Data, tokens: int) -> Batch:
    """One row of `tokens` bytes of text as the experiment's objective and layout place it."""
    text = data.tokenizer.encode(("the mask is the architecture. " * tokens)[:tokens])
    laid_out = data.layout(data.objective(text, np.random.default_rng(0), data.tokenizer), data.tokenizer)
    row = layouts.pad(laid_out, data.layout.lengths(data.objective.limits(tokens)))
    return layouts.assemble({name: line[None] for name, line in row.items()})


def main(argv: list[str]) -> int:
    """Draw the masks of the experiment and explain them. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --gin_file=...")
    try:
        if not FLAGS.gin_file:
            raise configs.ConfigError(
                "no --gin_file; for example --gin_file=configs/architecture/prefix_lm.gin"
            )
        out = Path(FLAGS.out)
        if out.suffix not in (".png", ".svg"):
            raise configs.ConfigError(f"--out={out}: expected a name that ends in .png or .svg")
        planned, _ = experiment.load(FLAGS.gin_file, FLAGS.gin_param)
        drawn = panels(planned.model, example(planned.data, FLAGS.tokens))
        out.parent.mkdir(parents=True, exist_ok=True)
        # No date and fixed ids: the same config gives the same file.
        with matplotlib.rc_context({"svg.hashsalt": "masks"}):
            draw(drawn).savefig(out, dpi=150, metadata={"Date": None} if out.suffix == ".svg" else None)
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
    app.run(main)
