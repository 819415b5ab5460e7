"""An evaluation that does not go with an arm is said before the arm is trained."""

import dataclasses

from experiments import cells, study
from research.evaluation.long_context import LengthCurve

SMALL = study.load("long_context", "small")


def changed(planned, lengths):
    curve = LengthCurve(lengths=lengths, tokens=lengths[-1])
    table = dataclasses.replace(planned.table, evaluations={**planned.table.evaluations, "lengths": curve})
    return dataclasses.replace(planned, table=table)


def test_lengths_past_a_learned_table_name_both_before_training(tmp_path):
    arms = ["learned", "rotary"]
    far = cells.of(changed(SMALL, (64, 2048)), arms, tmp_path / "results", tmp_path / "runs", None)
    found, broken = cells.sound(far)
    assert {cell.arm for cell in found} == {"rotary"}
    assert {cell.arm for cell in broken} == {"learned"}
    for error in broken.values():
        assert "LengthCurve.lengths = (64, 2048): windows of up to 2048 tokens" in str(error)
        assert "Learned positions of the model end at 1024" in str(error)
        assert len(str(error).splitlines()) == 1
    near = cells.of(changed(SMALL, (64, 1024)), arms, tmp_path / "results", tmp_path / "runs", None)
    assert not cells.sound(near)[1]
    assert not (tmp_path / "runs").exists()
