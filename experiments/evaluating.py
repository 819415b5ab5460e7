"""What is measured of any model, and on what; gin files bind it under the name `evaluate`.

configs/evaluations.gin names the evaluations that there are. What is bound over it and over the config of the model:

    --gin_file=configs/data/code.gin          # other data
    --gin_param="ByPosition.first=(8,)"       # another setting of an evaluation
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from experiments import configs, experiment, machine, pretrained, scoring, study
from experiments.experiment import Experiment
from experiments.origins import Origin
from experiments.pretrained import Parameters
from research.data.subwords import Trained as TrainedTokenizer
from research.evaluation.trained import Evaluation, Trained
from research.training.ensemble import Solo

NAMES = configs.ROOT / "configs" / "evaluations.gin"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measuring:
    """What is measured.

    Attributes:
      experiment: its data, and how its model is computed.
      evaluations: by name.
    """

    experiment: Experiment
    evaluations: dict[str, Evaluation]


evaluate = Measuring  # the name that gin files and --gin_param bind


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
      scores: of each evaluation, by its name.
      record: what they are scores of: parameters, data, evaluations, environment.
    """

    scores: dict[str, Any]
    record: dict[str, Any]


def load(origin: Origin, files: Iterable[str], bindings: Sequence[str]) -> tuple[Measuring, str]:
    """What gin files and bindings make of the evaluations that there are and of the config at a place, and the gin text
    of that.

    Raises:
      ConfigError: see `configs.load`.
    """
    base = (origin.config(), NAMES.read_text())
    return configs.load(evaluate, files, bindings, base=base), configs.operative()


def chosen(evaluations: Mapping[str, Evaluation], names: str, where: str) -> dict[str, Evaluation]:
    """The evaluations that --evals names, commas between.

    Raises:
      ConfigError: there is none of that name.
    """
    for name in names.split(","):
        if name not in evaluations:
            near = difflib.get_close_matches(name, evaluations, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise configs.ConfigError(
                f"--evals={names}: no {name!r} in {where}, expected some of {', '.join(evaluations)}{hint}"
            )
    return {name: evaluations[name] for name in names.split(",")}


def of_study(name: str) -> tuple[dict[str, Evaluation], tuple[str, ...]]:
    """The evaluations of a study, as its study.gin has them, and the names of those of its first comparison; without
    those that ask another arm.

    Raises:
      ConfigError: there is no such study, or it has none.
    """
    table = study.declared(name)
    first = next(iter(table.compared), "")
    found = {label: one for label, one in table.evaluations.items() if not experiment.asked(one)}
    if not found:
        raise configs.ConfigError(
            f"--study={name}: Table.evaluations in configs/{name}/study.gin is empty, or asks other arms in all, which "
            "only a launch can; leave the flag out"
        )
    return found, tuple(label for label in table.measured.get(first, tuple(found)) if label in found)


def known(origin: Origin, planned: Experiment, data_dir: str | None) -> Trained:
    """The model at a place beside its data.

    Raises:
      ConfigError: the experiment is of another model or another tokenizer, or of data that the model was not made for.
    """
    pretrained.fits(origin, planned.data)
    if isinstance(planned.data.tokenizer, TrainedTokenizer):  # on other text it would become another
        data = dataclasses.replace(planned.data, tokenizer=origin.tokenizer())
        planned = dataclasses.replace(planned, data=data)
    text, source = experiment.dataset(planned.data, data_dir), Parameters(place=origin.place)
    if source.check(planned.model, text.tokenizer, data_dir) is not None:
        raise configs.ConfigError(
            f"{origin.place}: its parameters have no head of classes; expected a run that was tuned to them, such as "
            f"by train --init_from={origin.place}"
        )
    params = jax.device_put(source.params(planned.model, text.tokenizer, data_dir))
    functions = experiment.trainer(planned, text.tokenizer.vocab_size)
    solo = Solo(functions, rows=planned.data.batch, placement=machine.placement(planned))
    return Trained(
        trainer=functions,
        params=params,
        text=text,
        seed=planned.seed,
        place=solo.whole,
        history=origin.history,
        base=origin.begun,
    )


def measure(
    origin: Origin, planned: Experiment, evaluations: Mapping[str, Evaluation], data_dir: str | None
) -> Measured:
    """The scores of the model at a place.

    Raises:
      ConfigError: the experiment is of another model or another tokenizer, or of data that the model was not made for.
      ValueError: a score is not finite.
    """
    trained = known(origin, planned, data_dir)
    with machine.surroundings(planned, machine.placement(planned)):
        scores = scoring.evaluated(evaluations, trained, origin.place)
        environment = machine.environment(planned)
    record = {
        "parameters": {
            "place": origin.place,
            "fingerprint": Parameters(place=origin.place).fingerprint(data_dir),
        },
        "data": trained.text.fingerprint,
        "evaluations": scoring.hashes(evaluations),
        "environment": environment,
    }
    return Measured(scores, record)
