"""Sample weights by hand and in general, and hard examples: exact shares, turns, and resumption from a few ids."""

import io
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data.mixing import Draw
from research.data.weighting import HardExamples, by_difficulty, by_importance, by_source, read

LOSSES = st.lists(st.floats(0.01, 100), min_size=1, max_size=50).map(np.array)


def test_by_source_by_hand():
    weights = by_source(["a", "b", "a", "b"], {"a": 3.0, "b": 1.0, "c": 100.0})
    np.testing.assert_allclose(weights, [1.5, 0.5, 1.5, 0.5])


def test_by_difficulty_by_hand():
    losses = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(by_difficulty(losses), [0.5, 1, 1.5])
    np.testing.assert_allclose(by_difficulty(losses, power=0.0), 1)
    np.testing.assert_allclose(by_difficulty(losses, power=2.0), losses**2 * 3 / 14)
    np.testing.assert_allclose(by_difficulty(losses, power=-1.0), np.array([6, 3, 2]) * 3 / 11)


def test_by_importance_by_hand():
    log_ratio = np.log([1.0, 3.0, 8.0])
    np.testing.assert_allclose(by_importance(log_ratio), [0.25, 0.75, 2])
    np.testing.assert_allclose(by_importance(log_ratio, clip=3.0), np.array([1, 3, 3]) * 3 / 7)
    np.testing.assert_allclose(by_importance(np.log([1.0, 9.0]), temperature=2.0), [0.5, 1.5])


@settings(max_examples=50)
@given(LOSSES, st.floats(-4, 4))
def test_weights_have_a_mean_of_1_and_follow_the_losses(losses, power):
    weights = by_difficulty(losses, power)
    np.testing.assert_allclose(weights.mean(), 1)
    assert (weights >= 0).all()
    order = np.argsort(losses)
    steps = np.diff(weights[order])
    assert (steps * np.sign(power) >= -1e-9 * weights.max()).all()


@settings(max_examples=50)
@given(LOSSES, st.floats(0.5, 10), st.floats(0.1, 10))
def test_importance_has_a_mean_of_1_and_never_exceeds_the_clip(losses, temperature, clip):
    weights = by_importance(losses - 50, temperature)
    np.testing.assert_allclose(weights.mean(), 1)
    clipped = by_importance(losses - 5, temperature, clip)
    np.testing.assert_allclose(clipped.mean(), 1)
    ratio = np.exp((losses - 5) / temperature)
    # Neither ratio nor clip is known from the weights, but their quotients are.
    np.testing.assert_allclose(clipped / clipped.max(), np.minimum(ratio, clip) / min(ratio.max(), clip))


def test_importance_of_huge_ratios_is_finite():
    np.testing.assert_allclose(by_importance(np.array([2000.0, 2000.0, -2000.0])), [1.5, 1.5, 0])
    assert np.isfinite(by_difficulty(np.array([1e-300, 1e300]), 5.0)).all()
    assert np.isfinite(by_difficulty(np.array([1e-300, 1e300]), -5.0)).all()


def test_weights_are_read_in_order_with_a_mean_of_1(tmp_path):
    path = str(tmp_path / "weights.npy")
    for weights in (np.array([1, 2, 3]), np.array([1, 2, 3], np.float32)):
        np.save(path, weights)
        np.testing.assert_allclose(read(path, 3), [0.5, 1, 1.5])


def zipped():
    buffer = io.BytesIO()
    np.savez(buffer, np.ones(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.write_bytes(b""), "expected 3 weights written by numpy.save"),
        (lambda path: path.write_text("1 2 3"), "expected 3 weights written by numpy.save"),
        (lambda path: np.save(path, np.array([{}, {}, {}])), "expected 3 weights written by numpy.save"),
        (lambda path: path.write_bytes(zipped()), "expected 3 weights written by numpy.save"),
        (lambda path: np.save(path, np.ones(2)), r"float64\[2\], expected a weight for each of 3"),
        (lambda path: np.save(path, np.ones((3, 1))), r"float64\[3, 1\], expected"),
        (lambda path: np.save(path, np.array(["a", "b", "c"])), r"<U1\[3\], expected"),
        (lambda path: np.save(path, np.ones(3, complex)), r"complex128\[3\], expected"),
        (lambda path: np.save(path, np.array([1.0, -1.0, 1.0])), "none negative"),
        (lambda path: np.save(path, np.zeros(3)), "not all 0"),
    ],
)
def test_unusable_files_of_weights_are_refused_in_one_line(make, said, tmp_path):
    path = tmp_path / "weights.npy"
    make(path)
    with pytest.raises(ValueError, match=said) as error:
        read(str(path), 3)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def draws(batch, start=0):
    return [Draw(0, 0, 1000 + start + i) for i in range(batch)]


@settings(max_examples=50)
@given(st.sampled_from([0.1, 0.25, 0.3, 1 / 3, 0.5, 1.0]), st.integers(1, 40), st.integers(1, 20))
def test_the_share_is_exact_over_the_steps_and_hard_windows_take_turns(share, batch, count):
    hard = HardExamples(share=share)
    ids = tuple(range(count))
    counts, windows = [], Counter()
    for step in range(60):
        new = hard.draw(step, batch, ids)
        counts.append(len(new))
        windows.update(new)
        assert abs(sum(counts) - share * batch * (step + 1)) < 1 + 1e-9
    assert max(counts) - min(counts) <= 1
    assert max(windows.values(), default=0) - min((windows[i] for i in ids), default=0) <= 1


def test_a_batch_by_hand():
    hard = HardExamples(share=0.25)
    out = hard.replaced(draws(8), (7, 5, 3), step=4, rows=np.arange(8), batch=8)
    # Two of eight in each batch: 7 5, 3 7, 5 3, 7 5, and then 3 7.
    assert [draw.window for draw in out] == [3, 7, 1002, 1003, 1004, 1005, 1006, 1007]


def test_hosts_together_see_the_one_batch():
    hard = HardExamples(share=0.5)
    whole = hard.replaced(draws(12), (4, 2), step=3, rows=np.arange(12), batch=12)
    for hosts in (2, 3, 4):
        for host in range(hosts):
            rows = np.arange(host, 12, hosts)
            own = [draws(12)[row] for row in rows]
            assert hard.replaced(own, (4, 2), step=3, rows=rows, batch=12) == [whole[row] for row in rows]


def test_nothing_is_replaced_before_the_first_scores():
    assert HardExamples().replaced(draws(4), (), step=9, rows=np.arange(4), batch=4) == draws(4)


def test_each_time_a_hard_window_is_drawn_its_example_is_another():
    hard = HardExamples(share=0.5)
    out = {hard.replaced(draws(2), (9,), step=step, rows=np.arange(2), batch=2)[0] for step in range(5)}
    assert {draw.window for draw in out} == {9}
    assert len(out) == 5


def test_the_hardest_by_hand():
    hard = HardExamples(kept=3, pool=5)
    ids, losses = np.array([2, 3, 5, 7, 11]), np.array([1.0, 4.0, 4.0, 0.5, 9.0], np.float32)
    assert hard.hardest(ids, losses) == (11, 3, 5)
    assert hard.hardest(ids[::-1], losses[::-1]) == (11, 3, 5)
    assert json.loads(json.dumps(hard.hardest(ids, losses))) == [11, 3, 5]


@settings(max_examples=25)
@given(st.integers(1, 500), st.integers(1, 300), st.integers(0, 9))
def test_what_is_scored_is_a_sample_of_the_training_windows(windows, pool, step):
    hard = HardExamples(pool=pool, kept=1)
    ids = hard.scored(step, windows)
    assert len(ids) == len(set(ids.tolist())) == min(pool, windows)
    assert ids.tolist() == sorted(ids.tolist())
    assert ids[0] >= 0
    assert ids[-1] < windows
    assert ids.tolist() == hard.scored(step, windows).tolist()


def test_every_refresh_and_seed_scores_another_sample():
    samples = [
        HardExamples(pool=50, kept=9, seed=seed).scored(step, 1000) for seed in (0, 1) for step in (100, 200)
    ]
    assert len({tuple(sample.tolist()) for sample in samples}) == 4


def test_refreshes():
    hard = HardExamples(every=3)
    assert [step for step in range(10) if hard.refreshes(step)] == [3, 6, 9]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: by_source(["a"], {"b": 1.0}), "no weight for 'a'"),
        (lambda: by_source(["a"], {"a": 0.0}), "sum to 0"),
        (lambda: by_source(["a"], {"a": -1.0}), "sum to -1"),
        (lambda: by_source(["a", "b"], {"a": 1.0, "b": float("inf")}), "sum to inf"),
        (lambda: by_source([], {}), "by_source: 0 weights"),
        (lambda: by_difficulty(np.array([1.0, -1.0])), "none infinite or below 0"),
        (lambda: by_difficulty(np.array([1.0, np.nan])), "none infinite or below 0"),
        (lambda: by_difficulty(np.array([1.0, 0.0]), power=-1.0), "power = -1.0"),
        (lambda: by_difficulty(np.array([])), "0 losses"),
        (lambda: by_difficulty(np.array([0.0])), "not all 0"),
        (lambda: by_importance(np.array([0.0]), temperature=0.0), "temperature = 0"),
        (lambda: by_importance(np.array([0.0]), clip=0.0), "clip = 0"),
        (lambda: by_importance(np.array([np.inf])), "none infinite"),
        (lambda: by_importance(np.array([])), "0 log_ratios"),
        (lambda: HardExamples(share=0.0), "HardExamples.share = 0"),
        (lambda: HardExamples(share=1.5), "HardExamples.share = 1.5"),
        (lambda: HardExamples(every=0), "every = 0"),
        (lambda: HardExamples(pool=10, kept=11), "kept = 11"),
        (lambda: HardExamples().hardest(np.array([3, 4]), np.array([1, np.nan])), "window 4 is not a number"),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_line(make, said):
    with pytest.raises(ValueError, match=said) as error:
        make()
    assert "\n" not in str(error.value)
