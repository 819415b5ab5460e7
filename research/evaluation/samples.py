"""How much the text that a model writes repeats, by temperature, beside the text that people wrote."""

import dataclasses

import numpy as np
from jaxtyping import Int32

from research.data.windows import spread
from research.evaluation import repetition
from research.evaluation.continuing import How, Line, beyond, continued
from research.evaluation.loops import T50, loops_holtzman_code, loops_holtzman_paper, t50
from research.evaluation.trained import Scores, Trained
from research.generation.engine import Choice, Generation, Greedy, Sample
from research.generation.processors import Chain, Temperature
from research.models.families import Encoder, Model

Lines = list[Int32[np.ndarray, " _"]]

LOOPS = {"holtzman-code": loops_holtzman_code, "holtzman-paper": loops_holtzman_paper}
METRICS = {  # by name what is counted, of n-grams of which there must be some
    "loop@holtzman-code": lambda lines, n: loops_holtzman_code(lines).rate,
    "loop@holtzman-paper": lambda lines, n: loops_holtzman_paper(lines).rate,
    "seq_rep@welleck": repetition.seq_rep_welleck,
    "seq_rep@simctg": repetition.seq_rep_simctg,
    "diversity@welleck": lambda lines, n: repetition.diversity_welleck(lines),
    "diversity@simctg": lambda lines, n: repetition.diversity_simctg(lines),
    "distinct": repetition.distinct,
    "distinct@holtzman": repetition.distinct_holtzman,
    "rep_w": lambda lines, n: repetition.rep_w(lines),
    "rep_r": lambda lines, n: repetition.rep_r(lines),
    "zipf": lambda lines, n: repetition.zipf(lines),
    "uniq": lambda lines, n: repetition.unique(lines),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repetition:
    """Repetition of samples that go on from held-out windows, `{metric: {temperature: value}}`, under `METRICS` and
    `tokens`, their mean length; `human`: the same of what follows in the windows, as far as they go; and `t50`, with
    its interval and whether it is `censored`: -1 (left), 0 or 1 (right; then `high` is None). A metric that a set of
    samples is too short for is left out.

    A sample ends at EOS, which is not counted, or at `length`. It depends on the seed, the prompt and the temperature.

    Attributes:
      prompts: windows of the test split, spread evenly (of a mixture: of its first part), at most `Data.held_out`; one
        sample of each at each temperature.
      prompt: tokens of a window of free text that are given; None: 32, or half of a shorter window. A record gives what
        it gives.
      length: the most tokens of a sample. Prompt and sample should fit into a window of training.
      temperatures: rising; 0: the likeliest token.
      n: of n-grams where the metric has no own; at least 8 where tokens are bytes.
      rows: at a time.
      fits: definitions of a loop whose T50 is fitted: of the first as `t50`, of others as `t50@...`.
    """

    prompts: int = 16
    prompt: int | None = None
    length: int = 64
    temperatures: tuple[float, ...] = (0.0, 0.5, 1.0)
    n: int = 4
    rows: int = 16
    fits: tuple[str, ...] = ("holtzman-code", "holtzman-paper")

    def __post_init__(self):
        if not self.fits or not set(self.fits) <= LOOPS.keys():
            raise ValueError(f"Repetition.fits = {self.fits}: expected some of {list(LOOPS)}")
        for name in ("prompts", "length", "n", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"Repetition.{name} = {getattr(self, name)}: expected at least 1")
        if self.prompt is not None and self.prompt < 1:
            raise ValueError(f"Repetition.prompt = {self.prompt}: expected at least 1, or None")
        steps = np.diff(self.temperatures)
        if not self.temperatures or self.temperatures[0] < 0 or np.any(steps <= 0):
            raise ValueError(
                f"Repetition.temperatures = {self.temperatures}: expected at least one, rising, none below 0"
            )

    def __call__(self, trained: Trained) -> Scores:
        """The metrics.

        Raises:
          ValueError: a model that writes nothing, a prompt that leaves nothing of a window, or too few positions.
        """
        prompts, human = self.pairs(trained)
        written = {f"{each:g}": self.samples(trained, prompts, each) for each in self.temperatures}
        scores: dict[str, dict[str, float | None]] = {}
        for label, lines in written.items():
            for name, value in self.measured(lines).items():
                scores.setdefault(name, {})[label] = value
        scores["human"] = {**self.measured(human)}
        for place, name in enumerate(self.fits if len(written) > 1 else ()):
            counts = [int((LOOPS[name](lines).period > 0).sum()) for lines in written.values()]
            found = t50(self.temperatures, counts, [len(prompts)] * len(counts))
            scores[f"t50@{name}" if place else "t50"] = _fitted(found)
        return scores

    def measured(self, lines: Lines) -> dict[str, float]:
        """The metrics of a set of sequences, as far as it has them."""
        found = {"tokens": float(np.mean([len(line) for line in lines]))}
        for name, metric in METRICS.items():
            try:
                found[name] = float(metric(lines, self.n))
            except repetition.TooShort:
                continue
        return found

    def pairs(self, trained: Trained) -> tuple[Lines, Lines]:
        """What is given of each window, and what follows in it.

        Raises:
          ValueError: nothing is given, or nothing follows.
        """
        windows = trained.text.windows[0]["test"]
        prompts, human = [], []
        most = min(self.prompts, trained.text.data.held_out)
        for window in (windows[i] for i in spread(len(windows), most)):
            cut = window.given or self.prompt or min(32, len(window.ids) // 2)
            if not 0 < cut < len(window.ids):
                raise ValueError(
                    f"Repetition.prompt = {self.prompt}: a window of {len(window.ids)} tokens gives {cut}; expected at "
                    "least one, and one more that follows: change it or Data.window"
                )
            prompts.append(window.ids[:cut])
            human.append(window.ids[cut : cut + self.length])
        return prompts, human

    def samples(self, trained: Trained, prompts: Lines, temperature: float) -> Lines:
        """What the model writes after each prompt, without the end; see `written`."""
        choice: Choice = Sample() if temperature else Greedy()
        chain = Chain(processors=(Temperature(value=temperature),)) if temperature else Chain()
        found = self.written(trained, prompts, Generation(choice=choice, processors=chain))
        return [line.ids for line in found]

    def written(self, trained: Trained, prompts: Lines, how: How, draw: int = 0) -> list[Line]:
        """What the model writes after each prompt, without the end, of at most `length` tokens; see `continued`.

        Raises:
          ValueError: a model that writes nothing, or learned positions that end before.
        """
        end = trained.text.tokenizer.eos
        longest = max(map(len, prompts))
        self._fits(trained.trainer.model(trained.params), longest)
        how = dataclasses.replace(how, tokens=self.length, end=(end,))
        found = continued(trained, prompts, how, longest=longest, rows=self.rows, draw=draw)
        return [line._replace(ids=_without_end(line.ids, end)) for line in found]

    def _fits(self, model: Model | Encoder, longest: int) -> None:
        if isinstance(model, Encoder):
            raise ValueError(
                "Repetition of an Encoder: it writes no text; take the evaluation out, or train a model with a decoder"
            )
        if (short := beyond(model, longest, self.length)) is not None:
            read, scheme, limit = short
            raise ValueError(
                f"Repetition.length = {self.length} after {longest} tokens: {read} are read, but positions of the "
                f"model ({scheme}) end at {limit}; lower Repetition.length or .prompt"
            )


def _fitted(found: T50) -> dict[str, float | None]:
    high = None if found.censored == "right" else found.high
    side = {"left": -1, None: 0, "right": 1}[found.censored]
    return {"value": found.value, "low": found.low, "high": high, "censored": side}


def _without_end(ids: np.ndarray, end: int) -> np.ndarray:
    return ids[:-1] if ids[-1] == end else ids
