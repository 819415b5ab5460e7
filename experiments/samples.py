"""What runs write, with loops in colours: python -m experiments.samples --run_dir=runs/prefix --out=samples.html

Each run goes on from held-out windows of its data, once at each temperature, as the evaluation `repetition` lets it:
runs of the same data from the same ones. gin binds its settings (--gin_param="Repetition.temperatures=(0.0, 1.0)"), or
--study takes those of a study as they are.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags

from experiments import evaluating, folders, machine, origins, start
from experiments.configs import ConfigError
from experiments.origins import Run
from research.analysis.samples_page import Sample, page
from research.data.tokenizers import Tokenizer
from research.data.windows import spread
from research.evaluation.loops import loops_holtzman_code
from research.evaluation.samples import Lines, Repetition

FLAGS = flags.FLAGS


def written(origin: Run) -> dict[str, list[Sample]]:
    """What the run writes, by temperature.

    Raises:
      ConfigError: there is no such evaluation, or it is of another kind.
      ValueError: see `Repetition`.
    """
    measuring, _ = evaluating.load(origin, FLAGS.gin_file, FLAGS.gin_param)
    known, where = measuring.evaluations, "configs/evaluations.gin"
    if FLAGS.study:
        (known, _), where = evaluating.of_study(FLAGS.study), f"configs/{FLAGS.study}/study.gin"
    how = known.get(FLAGS.evaluation)
    if not isinstance(how, Repetition):
        kinds = [name for name, one in known.items() if isinstance(one, Repetition)]
        raise ConfigError(f"--evaluation={FLAGS.evaluation}: in {where}, expected one of {kinds}")
    trained = evaluating.known(origin, measuring.experiment, FLAGS.data_dir)
    with machine.surroundings(measuring.experiment, machine.placement(measuring.experiment)):
        prompts, human = how.pairs(trained)
        some = spread(len(prompts), FLAGS.prompts)
        prompts, human = [prompts[i] for i in some], [human[i] for i in some]
        lines = {f"{each:g}": how.samples(trained, prompts, each) for each in how.temperatures}
    tokenizer = trained.text.tokenizer
    return {
        label: list(marked(prompts, each, tokenizer)) for label, each in (lines | {"human": human}).items()
    }


def marked(prompts: Lines, lines: Lines, tokenizer: Tokenizer) -> Iterator[Sample]:
    """The texts, with the phrase that each ends in, if it does."""
    loops = loops_holtzman_code(lines)
    for prompt, line, period, onset in zip(prompts, lines, loops.period, loops.onset, strict=True):
        begins = range(onset, len(line), period) if period else ()
        whole = tokenizer.decode(line, continues=True)
        # A character may be cut between two tokens, so the text is cut and not the tokens.
        cuts = [len(tokenizer.decode(line[:at], continues=True)) for at in begins] + [len(whole)]
        phrases = tuple(whole[begin:end] for begin, end in itertools.pairwise(cuts))
        yield Sample(prompt=tokenizer.decode(prompt), text=whole[: cuts[0]], phrases=phrases)


def main(argv: list[str]) -> int:
    """Write the page. Returns the exit code."""
    if len(argv) > 1:
        return start.fail(f"unexpected argument {argv[1]!r}; flags are given as --run_dir=...")
    start.process()
    try:
        out = Path(FLAGS.out)
        if out.is_dir() or not out.parent.is_dir():
            raise ConfigError(f"--out={FLAGS.out}: expected a file in a folder that there is")
        runs = {place: origins.run(place, FLAGS.data_dir) for place in FLAGS.run_dir}
        found = {place: written(origin) for place, origin in runs.items()}
        note = (
            "What is written after held-out prompts (grey) at each temperature, and what people wrote there. The "
            "phrase that a text ends in, by the code of Holtzman et al. 2020, has a colour each time that it comes."
        )
        folders.replace(out, page(found, title="Samples", note=note))
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        return start.fail(error)
    start.console().print(FLAGS.out, highlight=False)
    return 0


if __name__ == "__main__":
    flags.DEFINE_multi_string("run_dir", None, "folder of a training run; repeat it", required=True)
    flags.DEFINE_string("out", None, "HTML file", required=True)
    flags.DEFINE_string("evaluation", "repetition", "name of the evaluation that says how it is written")
    flags.DEFINE_string("study", "", "take it from this study's study.gin")
    flags.DEFINE_integer("prompts", 4, "texts at each temperature", lower_bound=1)
    flags.DEFINE_multi_string("gin_file", [], "gin file over the model's config; repeat it")
    flags.DEFINE_multi_string("gin_param", [], 'gin binding, e.g. "Repetition.length=64"; repeat it')
    flags.DEFINE_string("data_dir", None, "folder of downloaded archives (default: the user's cache)")
    app.run(main)
