import math
from itertools import pairwise

import pytest

from src.utils.schedulers import cosine, linear, schedule_steps, warmup_cosine

LR = {"warmup_steps": 40, "start_lr": 2e-4, "ref_lr": 6e-4, "final_lr": 1e-6}


def test_schedule_is_longer_than_training_and_warmup_is_not_scaled():
    assert schedule_steps(ipe=300, epochs=300, ipe_scale=1.25) == 112_500
    assert schedule_steps(ipe=7, epochs=3) == 21
    total = schedule_steps(ipe=100, epochs=4, ipe_scale=1.25)
    assert warmup_cosine(40, **LR, total_steps=total) == LR["ref_lr"]
    at_the_end_of_training = warmup_cosine(400, **LR, total_steps=total)
    assert at_the_end_of_training > 10 * LR["final_lr"]


def test_warmup_is_linear_then_half_a_cosine():
    total = 500
    assert warmup_cosine(0, **LR, total_steps=total) == LR["start_lr"]
    assert warmup_cosine(10, **LR, total_steps=total) == pytest.approx(3e-4)
    for step in range(40, total + 1):
        expected = 1e-6 + (6e-4 - 1e-6) * 0.5 * (1 + math.cos(math.pi * (step - 40) / 460))
        assert warmup_cosine(step, **LR, total_steps=total) == pytest.approx(expected)


def test_learning_rate_never_rises_after_warmup_however_long_it_runs():
    rates = [warmup_cosine(step, **LR, total_steps=300) for step in range(1200)]
    assert all(b > a for a, b in pairwise(rates[:41]))
    assert all(b <= a for a, b in pairwise(rates[40:]))
    assert rates[300:] == [pytest.approx(LR["final_lr"])] * 900


def test_warmup_longer_than_the_schedule_ends_unfinished():
    rates = [warmup_cosine(step, **LR, total_steps=20) for step in range(60)]
    assert max(rates) == rates[20] == rates[-1] == pytest.approx(4e-4)


def test_no_warmup():
    assert warmup_cosine(0, **{**LR, "warmup_steps": 0}, total_steps=10) == LR["ref_lr"]


@pytest.mark.parametrize(("start", "final"), [(0.04, 0.4), (0.4, 0.04)])
def test_weight_decay_goes_either_way_and_stays(start, final):
    values = [cosine(step, start=start, final=final, total_steps=100) for step in range(300)]
    assert values[0] == pytest.approx(start)
    assert values[50] == pytest.approx((start + final) / 2)
    assert values[100:] == [pytest.approx(final)] * 200
    rising = [(b - a) * (final - start) >= 0 for a, b in pairwise(values)]
    assert all(rising)


def test_momentum_is_linear_and_stays():
    values = [linear(step, start=0.998, final=1.0, total_steps=10) for step in range(20)]
    assert values[:3] == pytest.approx([0.998, 0.9982, 0.9984])
    assert values[10:] == [1.0] * 10


@pytest.mark.parametrize(("step", "total"), [(-1, 10), (0, 0)])
def test_impossible_steps(step, total):
    with pytest.raises(ValueError, match="step >= 0 and total_steps >= 1"):
        linear(step, start=0.0, final=1.0, total_steps=total)
