"""What runs and items say about a change, held against scipy's own tests."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tradebench.regression.evidence import (
    at_least,
    decide,
    exact,
    holm,
    items,
    joined,
    pairs,
    quantile,
    runs,
    spread,
)

QUIET = [1.00, 1.01, 0.99, 1.005, 0.995]


def test_from_five_runs_on_a_change_is_tested_as_students_t() -> None:
    found = runs(QUIET, [1.08], 0.05, 0.02, more=False)
    mean, deviation = 1.0, stats.tstd(QUIET)
    t = 0.08 / (deviation * math.sqrt(1 + 1 / 5))

    assert found.worse == pytest.approx(stats.t.sf(t, 4), rel=1e-9)
    assert found.low == pytest.approx(
        mean + 0.08 - 1 - stats.t.ppf(0.995, 4) * deviation * math.sqrt(1.2) + (1 - mean)
    )
    assert decide(found, 0.05) == "regressed"


@pytest.mark.parametrize(
    ("new", "call"),
    [(1.08, "regressed"), (0.92, "improved"), (1.0, "ok"), (1.045, "inconclusive")],
)
def test_a_change_is_called_by_its_size_and_its_error(new: float, call: str) -> None:
    assert decide(runs(QUIET, [new], 0.05, 0.02, more=False), 0.05) == call


def test_more_is_better_turns_the_sign() -> None:
    assert decide(runs(QUIET, [0.92], 0.05, 0.02, more=True), 0.05) == "regressed"


def test_every_run_has_to_show_a_change() -> None:
    assert decide(runs(QUIET, [1.2, 1.2], 0.05, 0.02, more=False), 0.05) == "regressed"
    assert decide(runs(QUIET, [1.2, 1.04], 0.05, 0.02, more=False), 0.05) == "inconclusive"


def test_few_runs_lean_on_the_declared_noise() -> None:
    deviation, freedom = spread([1.0, 1.0], 0.02)

    assert freedom == 5
    assert deviation == pytest.approx(math.sqrt(4 * 0.02**2 / 5))
    assert spread([1.0], 0.02) == (0.02, 4)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_the_rule_says_how_many_runs_and_what_their_noise_is(count: int) -> None:
    rule = runs([1.0 + 0.01 * n for n in range(count)], [1.0], 0.05, 0.02, more=False).rule

    assert rule.startswith(f"{count} baseline run")
    assert ("declared noise of" in rule) == (count < 5)
    assert ("their spread and" in rule) == (1 < count < 5)


@pytest.mark.parametrize("counts", [(1, 2, 4), (6, 12, 24)])
def test_more_runs_find_smaller_changes(counts: tuple[int, ...]) -> None:
    found = [
        runs([1 + 0.01 * (-1) ** n for n in range(count)], [1.0], 0.0, 0.01, more=False).detectable
        for count in counts
    ]

    assert found == sorted(found, reverse=True)


@settings(max_examples=20)
@given(st.floats(0.005, 0.03), st.sampled_from([1, 2, 3, 4]))
def test_a_change_of_the_detectable_size_is_found_in_nine_of_ten(noise: float, count: int) -> None:
    """With the declared noise for the true one, where the rule's own width is known."""
    drawn = random.Random(count)
    base = [1.0] * count
    deviation, _ = spread(base, noise)
    least = runs(base, [1.0], 0.01, noise, more=False).detectable
    error = deviation * math.sqrt(1 + 1 / count)
    hits = sum(
        decide(runs(base, [1 + least + error * drawn.gauss()], 0.01, noise, more=False), 0.01)
        == "regressed"
        for _ in range(300)
    )

    assert hits / 300 == pytest.approx(0.9, abs=0.06)


# Values without noise.


def test_exact_values_regress_beyond_every_baseline_run() -> None:
    assert decide(exact([100, 104], [105], 0, more=False), 0) == "regressed"
    assert decide(exact([100, 104], [104], 0, more=False), 0) == "ok"
    assert decide(exact([100, 104], [102], 0, more=False), 0) == "ok"
    assert decide(exact([100, 104], [99], 0, more=False), 0) == "improved"
    assert decide(exact([100], [101], 1, more=False), 1) == "ok"
    assert decide(exact([100], [102], 1, more=False), 1) == "regressed"
    assert decide(exact([100], [98], 1, more=True), 1) == "regressed"


def test_a_byte_is_found_where_the_margin_is_none() -> None:
    assert decide(exact([2**40] * 5, [2**40 + 1], 0, more=False), 0) == "regressed"


# Items.


@given(st.integers(0, 60), st.integers(0, 60))
def test_right_and_wrong_are_tested_as_mcnemar(lost: int, won: int) -> None:
    before = [1.0] * lost + [0.0] * won + [1.0] * 100
    after = [0.0] * lost + [1.0] * won + [1.0] * 100
    found = items(before, after, 0.01, more=True)
    expected = stats.binomtest(lost, lost + won, alternative="greater").pvalue if lost else 1.0

    assert found.worse == pytest.approx(expected, rel=1e-9)
    assert found.change == pytest.approx((lost - won) / len(before))
    assert found.low <= found.high


def test_no_discordant_pair_is_ok_and_says_what_it_could_have_shown() -> None:
    found = items([1.0, 0.0] * 16, [1.0, 0.0] * 16, 0.01, more=True)

    assert (found.worse, found.better, found.change) == (1.0, 1.0, 0.0)
    assert decide(found, 0.01) == "ok"
    assert found.detectable > 0.05
    assert "none of which changed" in found.rule


def test_a_loss_of_many_items_regresses_and_of_few_is_inconclusive() -> None:
    before = [1.0] * 200

    assert decide(items(before, [0.0] * 20 + [1.0] * 180, 0.01, more=True), 0.01) == "regressed"
    assert decide(items(before, [0.0] * 4 + [1.0] * 196, 0.01, more=True), 0.01) == "inconclusive"


def test_likelihoods_are_tested_as_paired_t() -> None:
    drawn = random.Random(0)
    before = [drawn.expovariate(1) for _ in range(100)]
    after = [value + drawn.gauss(0.1, 0.3) for value in before]
    found = items(before, after, 0.01, more=False)

    assert found.worse == pytest.approx(
        stats.ttest_rel(after, before, alternative="greater").pvalue, rel=1e-9
    )


def test_pairing_is_sharper_than_two_samples() -> None:
    """The notes' example: 1,000 items at 78 %, of which 4 % change their mind."""
    before = [1.0] * 780 + [0.0] * 220
    after = [0.0] * 20 + [1.0] * 760 + [1.0] * 20 + [0.0] * 200
    found = items(before, after, 0.01, more=True)
    unpaired = math.sqrt(2 * 0.78 * 0.22 / 1000)
    paired = (found.high - found.low) / 2 / quantile(math.inf, 0.995)

    assert unpaired == pytest.approx(0.0185, abs=0.0005)
    assert paired == pytest.approx(0.0063, abs=0.0002)


def test_a_single_item_is_no_sample() -> None:
    with pytest.raises(ValueError, match="single item"):
        items([0.3], [0.4], 0.01, more=False)


def test_training_that_differs_from_run_to_run_widens_what_items_say() -> None:
    before, after = [1.0] * 200, [0.0] * 20 + [1.0] * 180
    of_items = items(before, after, 0.01, more=True)
    noisy = runs([1.0, 0.9, 0.95, 0.85, 1.0], [0.9], 0.01, 0.005, more=True)
    found = joined(of_items, noisy)

    assert decide(of_items, 0.01) == "regressed"
    assert decide(found, 0.01) == "inconclusive"
    assert found.high - found.low > of_items.high - of_items.low


# Runs in turn, and many tests.


def test_pairs_in_turn_forget_a_drift_that_both_share() -> None:
    drift = [1.0, 1.2, 1.5, 1.1, 0.9]
    slower = [1.07 * value for value in drift]

    assert decide(pairs(drift, slower, 0.05, 0.02, more=False), 0.05) == "regressed"
    assert decide(pairs(drift, drift, 0.05, 0.02, more=False), 0.05) == "ok"
    assert decide(runs(drift, slower, 0.05, 0.02, more=False), 0.05) == "inconclusive"


def test_pairs_are_tested_as_paired_t_of_logarithms() -> None:
    before, after = [1.0, 1.1, 0.9, 1.05, 0.95], [1.04, 1.2, 0.99, 1.1, 1.01]
    found = pairs(before, after, 0.05, 0.02, more=False)
    logs = [math.log(b / a) for a, b in zip(before, after, strict=True)]

    assert found.worse == pytest.approx(
        stats.ttest_1samp(logs, 0, alternative="greater").pvalue, rel=1e-9
    )


def test_holm_is_what_the_paper_says() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_never_makes_a_value_smaller(values: list[float]) -> None:
    assert all(after >= before for before, after in zip(values, holm(values), strict=True))


@given(st.integers(0, 400), st.integers(0, 400))
def test_coins_are_scipys(heads: int, tails: int) -> None:
    expected = stats.binom.sf(heads - 1, heads + tails, 0.5)

    assert at_least(heads, heads + tails) == pytest.approx(float(expected), rel=1e-9)
