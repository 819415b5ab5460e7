"""The statistics beside those of statsmodels and rliable. They are not installed by default: `make test-parity`."""

import numpy as np
import pytest

from research.analysis import resampling, statistics

NEEDS = "compares with published implementations: pip install -r requirements-parity.txt"
multitest = pytest.importorskip("statsmodels.stats.multitest", reason=NEEDS)
power = pytest.importorskip("statsmodels.stats.power", reason=NEEDS)
regression = pytest.importorskip("statsmodels.regression.linear_model", reason=NEEDS)
weightstats = pytest.importorskip("statsmodels.stats.weightstats", reason=NEEDS)
library = pytest.importorskip("rliable.library", reason=NEEDS)
metrics = pytest.importorskip("rliable.metrics", reason=NEEDS)


def by_seed(values):
    return dict(enumerate(values))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(
    ("correct", "method"), [(statistics.holm, "holm"), (statistics.benjamini_hochberg, "fdr_bh")]
)
@pytest.mark.parametrize("size", [1, 6, 40])
def test_corrections(correct, method, size):
    p = np.random.default_rng(size).beta(0.3, 1.0, size)
    p[-1] = p[0]  # a tie
    expected = multitest.multipletests(p, method=method)[1]
    assert list(correct(by_seed(p)).values()) == pytest.approx(list(expected), rel=1e-12)


@pytest.mark.parametrize("n", [2, 5, 10])
def test_equivalence(n):
    a, b = normal(n, 2, n)
    expected = weightstats.ttost_paired(a, b, -0.8, 0.8)[0]
    assert statistics.equivalence(by_seed(a), by_seed(b), 0.8).p == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 10, 20])
@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_power(n, alpha):
    effect = statistics.minimum_detectable_effect(n, alpha)
    # one-sided at half the alpha: its two-sided power is nan where the other tail is too small to be computed
    found = power.TTestPower().power(effect, n, alpha / 2, alternative="larger")
    assert found == pytest.approx(0.8, rel=1e-9)


@pytest.mark.parametrize("n", [3, 5, 8, 10, 20])
def test_the_other_tail_hardly_counts(n):
    found = power.TTestPower().power(
        statistics.minimum_detectable_effect(n), n, 0.05, alternative="two-sided"
    )
    assert 0.8 <= found < 0.8 + 1e-6


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_prediction_interval(level):
    values = normal(1, 7)
    fitted = regression.OLS(values, np.ones((7, 1))).fit()
    expected = fitted.get_prediction([[1.0]]).conf_int(obs=True, alpha=1 - level)[0]
    assert statistics.prediction_interval(values, level) == pytest.approx(tuple(expected), rel=1e-10)


@pytest.mark.parametrize("shape", [(5, 3), (10, 4), (3, 1)])
def test_interquartile_mean(shape):
    scores = normal(2, *shape)
    found = resampling.interquartile_mean(scores, draws=20_000)
    assert found.value == pytest.approx(metrics.aggregate_iqm(scores), rel=1e-12)
    np.random.seed(0)  # noqa: NPY002 (rliable draws from the global generator)
    _, intervals = library.get_interval_estimates(
        {"arm": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=4000
    )
    assert [found.low, found.high] == pytest.approx(intervals["arm"][:, 0].tolist(), abs=0.05)


def test_probability_of_improvement():
    x, y = normal(3, 6, 4).round(1) + 0.3, normal(4, 9, 4).round(1)  # some scores are equal
    found = resampling.probability_of_improvement(x, y, draws=20_000)
    assert found.value == pytest.approx(metrics.probability_of_improvement(x, y), rel=1e-12)
    np.random.seed(0)  # noqa: NPY002 (rliable draws from the global generator)
    _, intervals = library.get_interval_estimates(
        {"pair": [x, y]}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=2000
    )
    assert [found.low, found.high] == pytest.approx(intervals["pair"][:, 0].tolist(), abs=0.02)
