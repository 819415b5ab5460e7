"""Train one experiment: python -m experiments.train --gin_file=configs/architecture/prefix_lm.gin --run_dir=runs/x"""

import dataclasses
from pathlib import Path

import jax
from absl import app, flags
from rich.console import Console

from experiments import configs, experiment, pretrained, running, start
from research.training import loop

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("gin_file", [], "gin file; repeat it, later files override earlier ones")
flags.DEFINE_multi_string("gin_param", [], 'gin binding, e.g. "train.steps=200"; repeat it')
flags.DEFINE_string("run_dir", None, "folder of the run; a second call resumes it")
flags.DEFINE_string(
    "init_from",
    None,
    "what the parameters start from: a run folder, a Hugging Face folder, a .gguf file or a name of the catalog",
)
flags.DEFINE_string("data_dir", None, "folder of downloaded archives (default: the user's cache)")
flags.DEFINE_string(
    "profile", None, "first:last, steps of which a trace is written to the run folder's profile/"
)
flags.DEFINE_bool(
    "distributed", False, "one of several processes, which the cluster knows of (Slurm, a TPU pod)"
)
flags.DEFINE_string("coordinator", None, "host:port of process 0, where no cluster knows")
flags.DEFINE_integer("processes", None, "how many processes there are", lower_bound=1)
flags.DEFINE_integer("process", None, "which of them this one is, from 0", lower_bound=0)
flags.DEFINE_bool("dry_run", False, "print config, shapes, parameters and one decoded batch; train nothing")


def describe(planned: experiment.Experiment, config: str, data_dir: str | None, console: Console) -> None:
    """Print what a run would do, and one batch decoded back to text."""
    text = experiment.dataset(planned.data, data_dir)
    batch, vocab = experiment.example(planned, data_dir)
    price = experiment.cost(planned.model, planned.data, data_dir)
    functions = experiment.trainer(planned, vocab)
    state = jax.eval_shape(functions.initial, jax.random.key(0), planned.numbers)
    start = planned.init_from
    drawn = None if start is None else start.check(planned.model, text.tokenizer, data_dir)

    console.print(config, markup=False, highlight=False)
    if start is not None:
        console.print(f"starts from {start.place}: parameters {start.fingerprint(data_dir)[:12]}")
    if drawn is not None:
        console.print(drawn, markup=False, highlight=False)
    console.rule("parameters")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        console.print(
            f"{jax.tree_util.keystr(path, simple=True, separator='/')}  {leaf.dtype}{list(leaf.shape)}"
        )
    console.print(f"{price.parameters:,} parameters, {price.flops_per_token:,.0f} training FLOPs a token")
    console.print(
        f"{planned.steps:,} steps of {price.tokens:,.0f} tokens ({price.loss_tokens:,.0f} of them targets): "
        f"{price.train_flops * planned.steps / 1e12:.3g} TFLOP"
    )
    console.rule("one batch")
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        console.print(f"batch{jax.tree_util.keystr(path)}  {leaf.dtype}{list(leaf.shape)}", highlight=False)
    console.rule("its first row")
    if batch.source is not None:
        console.print("source: " + text.tokenizer.decode(batch.source.ids[0]), markup=False)
    console.print("target: " + text.tokenizer.decode(batch.target.ids[0]), markup=False)
    scored = batch.labels[0][batch.weights[0] > 0]
    console.print("labels with weight: " + text.tokenizer.decode(scored), markup=False)


def _steps(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise configs.ConfigError(f"--profile={text}: expected first:last, two steps, e.g. --profile=10:12")
    return int(first), int(last)


def main(argv: list[str]) -> int:
    """Train, or describe with --dry_run. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --gin_file=...")
    console = start.console()
    start.process()
    try:
        if FLAGS.init_from is None:
            planned, config = experiment.load(FLAGS.gin_file, FLAGS.gin_param)
        else:
            planned, config = pretrained.tuning(
                FLAGS.init_from, FLAGS.gin_file, FLAGS.gin_param, FLAGS.data_dir
            )
        if FLAGS.profile:
            planned = dataclasses.replace(
                planned, plan=dataclasses.replace(planned.plan, profile=_steps(FLAGS.profile))
            )
        if planned.deterministic:
            start.deterministic()
        if FLAGS.distributed or any(
            value is not None for value in (FLAGS.coordinator, FLAGS.processes, FLAGS.process)
        ):
            start.distributed(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
        if FLAGS.dry_run:
            describe(planned, config, FLAGS.data_dir, console)
            return 0
        if not FLAGS.run_dir:
            raise configs.ConfigError("no --run_dir; for example --run_dir=runs/prefix")
        job = running.Job(planned, config, Path(FLAGS.run_dir))
        result = running.run(job, data_dir=FLAGS.data_dir, console=console)
    except (loop.Interrupted, KeyboardInterrupt) as stopped:
        console.print(str(stopped) or start.STOPPED)
        return 130
    except (ValueError, OSError, RuntimeError, loop.Diverged) as error:
        return start.fail(error)
    for name, value in result["metrics"].items():
        console.print(f"{name} {value:.4f}")
    return 0


if __name__ == "__main__":
    app.run(main)
