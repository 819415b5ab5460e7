"""Runs of one experiment under several names, as arms at points of several sweeps come to be: it is trained once.

What decides the numbers of a run is its key. A run folder that has nothing yet takes what a finished run of the same
key has left, its log and its parameters; what its own arm is measured on beyond that is then measured on those.
"""

import contextlib
from collections.abc import Mapping, Set

from experiments import folders
from experiments.folders import Record, RunFolder


def pattern(seed: int, key: str) -> str:
    """Of the names of run folders of an experiment, whatever their arms are called; see `experiments.cells`."""
    return f"*-s{seed}-{key[:12]}"


def take(
    own: RunFolder, names: str, *, config: str, code: str, hashes: Mapping[str, str], steps: Set[int]
) -> None:
    """Take the run of a finished twin, where there is one that still has its parameters.

    Args:
      own: a run folder; one that has begun is left as it is.
      names: a pattern of its and its twins' names.
      config: the gin text of its experiment.
      code: the fingerprint of the code that makes and measures it.
      hashes: of the evaluations that it is measured by, by name; a twin's others are left behind.
      steps: after which it is evaluated, as then a twin has to have been; none: whenever that was.
    """
    if own.known:
        return
    for other in sorted(own.path.parent.glob(names)):
        result = folders.finished(other)
        if other == own.path or result is None or not folders.trained(other):
            continue
        if not steps or steps == folders.history(other, result).keys():
            with contextlib.suppress(folders.InUse, OSError):  # then it is trained, as if there were none
                own.adopt(other, _as_own(result, config, code, hashes))
                return


def _as_own(result: Record, config: str, code: str, hashes: Mapping[str, str]) -> Record:
    """A twin's result with the evaluations that count here."""
    made = result["evaluations"]
    shared = {name: value for name, value in made.items() if hashes.get(name) == value}
    others = made.keys() - shared
    replay, now = result["replay"], folders.commit()
    scores = {name: score for name, score in replay["scores"].items() if name not in others}
    unchanged = {name: result[name] for name in now} == now and not now["dirty"]
    return {
        **result,
        "config": config,
        "evaluations": shared,
        "metrics": {name: value for name, value in result["metrics"].items() if name not in others},
        "replay": {**replay, "scores": scores},
        # By the fingerprint alone it could not be told, since other evaluations are made by other code.
        "code": {"fingerprint": code, "checked": code, "stale": ""} if unchanged else result["code"],
    }
