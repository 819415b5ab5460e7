"""The repetition of a published model's samples, from the command line."""

import json

import numpy as np
from tiny_models import command, published, texts

from research.evaluation.samples import METRICS


def test_the_command_measures_how_much_published_weights_repeat(tmp_path):
    texts(tmp_path / "texts")
    place, out = published(tmp_path / "hub"), tmp_path / "scores.json"
    bindings = (
        *("Data.corpus=@TextFiles()", f"TextFiles.pattern='{tmp_path}/texts/*.txt'"),
        *("Data.window=32", "Data.batch=4", "Data.test=0.2"),
        *(
            "Repetition.prompts=4",
            "Repetition.length=16",
            "Repetition.n=8",
            "Repetition.temperatures=(0.0,1.0)",
        ),
    )
    words = (f"--init_from={place}", "--evals=repetition", *(f"--gin_param={each}" for each in bindings))
    code, said, wrong = command("experiments.evaluate", *words, f"--out={out}")
    assert code == 0, wrong
    scores = json.loads(out.read_text())["metrics"]["repetition"]
    assert set(scores) - {"t50"} == {"tokens", "human", *METRICS}
    for name in METRICS:
        assert set(scores[name]) == {"0", "1"}
        assert np.isfinite([*scores[name].values(), scores["human"][name]]).all()
    assert f"{scores['zipf']['1']:.6g}" in said
