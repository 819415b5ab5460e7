"""MAUVE: the area of curves known by hand, and sets of features that are alike or apart."""

import numpy as np
import pytest

from research.evaluation.mauve import SCALE, area, mauve


def features(seed, centre, n=400, m=8):
    return np.random.default_rng(seed).normal(size=(n, m)) + np.asarray(centre)


def test_equal_distributions_have_all_of_the_area_and_disjoint_ones_almost_none():
    p = np.array([0.2, 0.5, 0.3, 0.0])
    assert area(p, p) == pytest.approx(1, abs=1e-6)
    # KL(p || w p + ...) = -log w: the curve is ((1 - w)^5, w^5), whose area is 5 Beta(5, 6).
    assert area(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(0.004, abs=0.001)


def test_the_area_of_two_groups_is_that_of_the_curve_drawn_finely():
    p, q = np.array([0.7, 0.3]), np.array([0.4, 0.6])
    x, y = [0.0], [1.0]
    for w in np.linspace(1 - 1e-6, 1e-6, 20_001):
        r = w * p + (1 - w) * q
        x.append(np.exp(-SCALE * np.sum(q * np.log(q / r))))
        y.append(np.exp(-SCALE * np.sum(p * np.log(p / r))))
    fine = np.trapezoid([*y, 0.0], [*x, 1.0])
    assert area(p, q) == pytest.approx(fine, abs=0.005)
    assert area(p, q) == pytest.approx(area(q, p), abs=1e-12)


def test_sets_of_one_source_are_near_and_a_set_far_off_is_not():
    human = features(0, np.eye(8)[0] * 6)
    same = mauve(human, features(1, np.eye(8)[0] * 6))
    near = mauve(
        human, np.concatenate([features(2, np.eye(8)[0] * 6, 200), features(3, np.eye(8)[1] * 6, 200)])
    )
    far = mauve(human, features(4, np.eye(8)[1] * 6))
    assert same > 0.9 > 0.7 > near > 0.1 > 0.02 > far
    assert mauve(human, human, seed=1) == pytest.approx(1, abs=1e-6)


def test_length_of_features_does_not_count_and_the_seed_decides():
    human, written = features(0, [3.0] * 8), features(1, [-1.0] * 8)
    assert mauve(human, written) == mauve(human, written)
    sizes = np.random.default_rng(2).uniform(0.5, 4, (400, 1))
    assert mauve(human, written) == pytest.approx(mauve(human * sizes, written), abs=1e-9)


def test_texts_that_are_all_alike_are_one_group():
    assert mauve(np.ones((20, 3)), np.ones((20, 3))) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="mauve of 1 and 5 texts: expected at least 2 of each"):
        mauve(np.ones((1, 3)), np.ones((5, 3)))
