import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from lmx.optim.schedules import Constant, LinearFrom, Part, WarmupCosine, WarmupLinear, WarmupStableDecay

STEPS, WARMUP = 100, 10
SCHEDULES = [
    WarmupCosine(peak=2.0, warmup_steps=WARMUP, end_ratio=0.005),
    WarmupLinear(peak=2.0, warmup_steps=WARMUP, end_ratio=0.005),
    WarmupStableDecay(peak=2.0, warmup_steps=WARMUP, decay_steps=20, end_ratio=0.005),
]


@pytest.mark.parametrize("config", SCHEDULES)
def test_warmup_rises_to_the_peak_and_decay_ends_at_the_ratio(config):
    schedule = config.build(STEPS)
    np.testing.assert_allclose(schedule(np.arange(WARMUP + 1)), 2.0 * np.arange(1, WARMUP + 2) / (WARMUP + 1), rtol=1e-6)
    np.testing.assert_allclose(schedule(STEPS), 0.005 * 2.0, rtol=1e-5)
    np.testing.assert_allclose(schedule(10 * STEPS), 0.005 * 2.0, rtol=1e-5)


@pytest.mark.parametrize("config", SCHEDULES)
def test_rates_fall_after_the_peak_and_are_never_zero(config):
    rates = config.build(STEPS)(np.arange(STEPS))
    assert np.all(np.diff(rates[WARMUP:]) <= 1e-6)
    assert np.all(rates > 0)


def test_the_cosine_is_half_way_at_half_time():
    assert WarmupCosine(peak=1.0, warmup_steps=0, end_ratio=0.2).build(10)(5) == pytest.approx(0.6)


def test_the_stable_phase_stays_at_the_peak_until_the_decay():
    rates = SCHEDULES[2].build(STEPS)(np.arange(STEPS + 1))
    np.testing.assert_allclose(rates[WARMUP : STEPS - 20 + 1], 2.0, rtol=1e-6)
    assert rates[STEPS - 10] == pytest.approx(2.0 * (1 + 0.005) / 2)


@given(st.integers(0, 10**6))
def test_a_constant_schedule_is_constant(count):
    assert Constant(value=0.3).build(10)(count) == 0.3


def test_a_warmup_longer_than_the_run_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"warmup_steps=10 must lie in 0..9: the run has 10 steps"):
        WarmupCosine(peak=1.0, warmup_steps=10).build(10)


def test_a_decay_longer_than_what_is_left_is_refused():
    with pytest.raises(ValueError, match=r"decay_steps=95 must lie in 1..90"):
        WarmupStableDecay(peak=1.0, warmup_steps=10, decay_steps=95).build(100)


def test_an_end_ratio_above_one_is_refused():
    with pytest.raises(ValueError, match="end_ratio=1.5"):
        WarmupLinear(peak=1.0, warmup_steps=1, end_ratio=1.5)


def test_a_part_of_a_schedule_is_that_stretch_of_the_whole():
    whole = WarmupCosine(peak=8e-5, warmup_steps=7, end_ratio=0.01)
    rates = np.concatenate([Part(schedule=whole, start=start, total=100).build(20)(np.arange(20)) for start in (0, 20, 40)])
    np.testing.assert_array_equal(rates, whole.build(100)(np.arange(60)))
    assert whole.build(100)(100) == pytest.approx(8e-7)


def test_annealing_begins_at_the_rate_the_run_stopped_at_and_ends_at_exactly_zero():
    before = Part(schedule=WarmupCosine(peak=1.0, warmup_steps=2), start=10, total=100)
    schedule = LinearFrom(before=before, before_steps=30)
    rates = schedule.build(8)(np.arange(9))
    assert rates[0] == before.build(30)(30) and rates[8] == 0.0
    np.testing.assert_allclose(np.diff(rates), -rates[0] / 8, rtol=1e-4)
    assert schedule.peak == 1.0


def test_a_stage_beyond_the_end_of_the_whole_schedule_is_refused():
    part = Part(schedule=Constant(value=1.0), start=90, total=100)
    with pytest.raises(ValueError, match="a stage of 11 steps from start=90 goes beyond the 100 steps"):
        part.build(11)
    with pytest.raises(ValueError, match=r"start=100 must lie in 0\.\.99"):
        Part(schedule=Constant(value=1.0), start=100, total=100)
