"""Measure a model: python -m experiments.evaluate --run_dir=runs/prefix --evals=likelihood,positions

A run is measured on its own data; published weights on the factbook, in the default windows of their family. gin binds
others: --gin_file=configs/data/code.gin.
"""

from pathlib import Path

from absl import app, flags
from rich.table import Table

from experiments import evaluating, folders, origins, replays, start

FLAGS = flags.FLAGS

ANYWHERE = "likelihood,positions"  # what can be measured of any model on any data


def main(argv: list[str]) -> int:
    """Measure, print a table and write --out. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --evals=...")
    start.process()
    try:
        origin = origins.chosen(FLAGS.run_dir, FLAGS.init_from, FLAGS.data_dir)
        measuring, config = evaluating.load(origin, FLAGS.gin_file, FLAGS.gin_param)
        known, where, names = measuring.evaluations, "configs/evaluations.gin", ANYWHERE
        if FLAGS.study:
            known, first = evaluating.of_study(FLAGS.study)
            where, names = f"configs/{FLAGS.study}/study.gin", ",".join(first)
        evaluations = evaluating.chosen(known, FLAGS.evals or names, where)
        found = evaluating.measure(origin, measuring.experiment, evaluations, FLAGS.data_dir)
        if FLAGS.out:
            record = {**found.record, "config": config, "metrics": found.scores}
            folders.replace(Path(FLAGS.out), folders.text_of(record))
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        return start.fail(error)
    table = Table("measure", box=None, pad_edge=False)
    table.add_column("value", justify="right")
    for path, value in replays.numbers(found.scores):
        table.add_row(path, f"{value:.6g}")
    start.console().print(table)
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("run_dir", None, "folder of a training run")
    flags.DEFINE_string("init_from", None, "or a Hugging Face folder, a .gguf file or a name of the catalog")
    flags.DEFINE_string(
        "evals", "", f"names of evaluations with commas between (default: {ANYWHERE}, or all of --study)"
    )
    flags.DEFINE_string("study", "", "take the evaluations of this study, as its study.gin has them")
    flags.DEFINE_multi_string("gin_file", [], "gin file over the model's config; repeat it")
    flags.DEFINE_multi_string("gin_param", [], 'gin binding, e.g. "Data.held_out=64"; repeat it')
    flags.DEFINE_string("out", "", "JSON file for the scores and what they are of")
    flags.DEFINE_string("data_dir", None, "folder of downloaded archives (default: the user's cache)")
    app.run(main)
