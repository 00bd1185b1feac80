"""The order of draws: a function of the seed, exhaustive, resumable, and shared out between ranks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from src.datasets.samplers import EpochSampler, EvalSampler, TrainingSampler, hash_seed


def _draws(sampler):
    return [draw for batch in sampler for draw in batch]


def test_every_pass_has_each_sample_once_and_passes_differ():
    order = EpochSampler([7, 4], None, seed=3)
    passes = [[order.index(p) for p in range(11 * k, 11 * (k + 1))] for k in range(3)]
    assert all(sorted(one) == list(range(11)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert [EpochSampler([7, 4], None, seed=3).index(p) for p in range(11)] == passes[0]
    assert [EpochSampler([7, 4], None, seed=4).index(p) for p in range(11)] != passes[0]


@pytest.mark.parametrize("total", [1, 5, 40])
def test_a_run_may_be_shorter_or_longer_than_a_pass(total):
    draws = _draws(TrainingSampler(EpochSampler([24], None, 0), 4, total))
    assert len(draws) == 4 * total
    counts = Counter(d.index for d in draws)
    assert max(counts.values()) - min([counts.get(i, 0) for i in range(24)]) <= 1


@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
def test_ranks_share_the_draws_of_a_step_and_resuming_continues(weights):
    order = EpochSampler([30, 20], weights, 1)
    single = TrainingSampler(order, 6, 20)
    pair = [list(TrainingSampler(order, 3, 20, rank=r, world_size=2)) for r in range(2)]
    for step, batch in enumerate(single):
        assert batch == pair[0][step] + pair[1][step]
        assert {d.step for d in batch} == {step}
    assert list(TrainingSampler(order, 6, 20, start_step=13)) == list(single)[13:]
    assert len(TrainingSampler(order, 6, 20, start_step=13)) == 7


def test_another_number_of_processes_goes_on_at_the_same_sample():
    order = EpochSampler([50], None, 1)
    seen = [d.index for batch in TrainingSampler(order, 4, 5) for d in batch]
    later = TrainingSampler(order, 3, 20, start_step=8, start_position=20)
    seen += [d.index for batch in list(later)[:10] for d in batch]
    assert sorted(seen) == list(range(50))
    assert next(iter(later))[0].step == 8


def test_weights_set_the_shares_and_nothing_repeats_within_a_data_sets_pass():
    order = EpochSampler([1000, 10], [3.0, 1.0], seed=0)
    indices = [order.index(p) for p in range(1800)]
    small = [i for i in indices if i >= 1000]
    large = [i for i in indices if i < 1000]
    assert len(small) / 1800 == pytest.approx(0.25, abs=0.02)
    for start in range(0, len(small) - 10, 10):
        assert sorted(small[start : start + 10]) == list(range(1000, 1010))
    assert len(set(large[:1000])) == 1000


def test_replacements_come_from_the_same_data_set():
    order = EpochSampler([5, 5], [1, 1], 0)
    for attempt in range(1, 30):
        assert order.replacement(2, 99, attempt) < 5
        assert order.replacement(7, 99, attempt) >= 5
    assert order.replacement(2, 99, 1) == order.replacement(2, 99, 1)


def test_seeds_differ_between_draws():
    draws = _draws(TrainingSampler(EpochSampler([50], None, 0), 5, 40))
    assert len({d.seed for d in draws}) == len(draws)
    assert all(0 <= d.seed < 2**63 for d in draws)


def test_hash_seed_spreads_bits():
    values = np.array([hash_seed(0, i) for i in range(2000)])
    assert len(set(values)) == 2000
    for bit in (0, 20, 62):
        assert (values >> bit & 1).mean() == pytest.approx(0.5, abs=0.05)
    assert hash_seed(1, 2) != hash_seed(2, 1) and hash_seed(-1) == hash_seed(-1)


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_evaluation_counts_every_sample_once(world_size):
    draws = [d for r in range(world_size) for d in _draws(EvalSampler(13, 4, r, world_size))]
    assert sorted(d.index for d in draws) == list(range(13))
    assert [d.index for d in _draws(EvalSampler(13, 4))] == list(range(13))


def test_bad_weights():
    with pytest.raises(ValueError, match="weights"):
        EpochSampler([5, 5], [0, 0], 0)
    with pytest.raises(ValueError, match="weights"):
        EpochSampler([5, 5], [1, float("nan")], 0)
    with pytest.raises(ValueError, match="empty"):
        EpochSampler([5, 0], None, 0)
