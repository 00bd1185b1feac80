"""Choosing the true future among others: candidates, distances and choices by hand."""

import numpy as np
import pytest
import torch

from evals.future_prediction.scoring import CANDIDATES, DISTRACTORS, choices, distances, hits, make_candidates
from src.jepa.target_norm import normalize_targets
from src.masks.utils import generator


def features():
    """Target features (B=6, M=4, D=3) of every candidate."""
    torch.manual_seed(0)
    return {name: torch.randn(6, 4, 3) for name in CANDIDATES}


def test_candidates_share_the_beginning():
    clips = torch.arange(5 * 8).reshape(5, 1, 8, 1, 1).expand(-1, 3, -1, 2, 2)
    made = make_candidates(clips, 3, generator(0))
    assert tuple(made) == CANDIDATES
    for other in made.values():
        assert torch.equal(other[:, :, :3], clips[:, :, :3])
    frames = {name: (x[:, 0, :, 0, 0] - 8 * torch.arange(5)[:, None]).tolist() for name, x in made.items()}
    assert frames["reversed"][2] == [0, 1, 2, 2, 1, 0, 0, 1]
    assert frames["static"][2] == [0, 1, 2, 2, 2, 2, 2, 2]
    partner = made["other clip"][:, 0, 3:, 0, 0] // 8
    assert (partner == partner[:, :1]).all()
    assert sorted(partner[:, 0].tolist()) == [0, 1, 2, 3, 4]
    assert (partner[:, 0] != torch.arange(5)).all()
    assert torch.equal(made["other clip"], make_candidates(clips, 3, generator(0))["other clip"])
    with pytest.raises(ValueError, match="alone"):
        make_candidates(clips[:1], 3, generator(0))


def test_an_oracle_is_always_right():
    targets = features()
    found = choices("oracle", distances(targets["true"], targets, 2).numpy())
    assert {(c.against, c.tubelet) for c in found} == {(a, t) for a in (*DISTRACTORS, "all") for t in (None, 1, 2)}
    assert all(c.accuracy == 1 and c.total == 6 for c in found)
    assert {c.against: c.chance for c in found} == dict.fromkeys(DISTRACTORS, 0.5) | {"all": 0.25}


def test_the_opposite_is_never_right():
    targets = features()
    for distractor in DISTRACTORS:
        found = choices("fooled", distances(targets[distractor], targets, 2).numpy())
        assert all(c.correct == 0 for c in found if c.against in (distractor, "all"))


def test_a_constant_answer_is_at_chance():
    torch.manual_seed(0)
    targets = {name: torch.randn(4000, 4, 3) for name in CANDIDATES}
    for c in choices("constant", distances(torch.zeros(4000, 4, 3), targets, 2).numpy()):
        assert abs(c.accuracy - c.chance) < 0.05


def test_ties_are_no_hits():
    assert hits(np.array([[1.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [np.nan, 1.0, 1.0]])).tolist() == [
        False, True, False, False]  # fmt: skip
    same = dict.fromkeys(CANDIDATES, torch.randn(6, 4, 3))
    assert all(c.correct == 0 for c in choices("tied", distances(torch.randn(6, 4, 3), same, 2).numpy()))


def test_distances_by_hand():
    targets = features()
    prediction = torch.randn(6, 4, 3)
    found = distances(prediction, targets, 2)
    assert found.shape == (6, 4, 2)
    by_hand = (prediction[3, 2:] - targets["reversed"][3, 2:]).abs().sum() / 6  # two tokens of three dimensions
    torch.testing.assert_close(found[3, CANDIDATES.index("reversed"), 1], by_hand)


@pytest.mark.parametrize(
    "how", [("layer", 0.0), ("batch_standardize", 0.0), ("batch_standardize", 0.5), ("layer", 0.5)]
)
def test_distractors_are_normalised_by_the_true_clips(how):
    torch.manual_seed(0)
    true, other, masks = torch.randn(6, 8, 4), 3 + 2 * torch.randn(6, 8, 4), [torch.arange(4, 8).expand(6, -1)]
    (own,) = normalize_targets(true, masks, *how)
    assert torch.equal(normalize_targets(true, masks, *how, like_BND=true)[0], own)
    (found,) = normalize_targets(other, masks, *how, like_BND=true)
    mixed = torch.cat([other[:1], true[1:]])  # one clip's answer does not depend on the other distractors
    torch.testing.assert_close(normalize_targets(mixed, masks, *how, like_BND=true)[0][0], found[0])
    if how == ("batch_standardize", 0.0):
        mean = true.mean(0)
        by_hand = (other - mean) / ((true - mean).square().mean((0, 1)) + 1e-6).sqrt()
        torch.testing.assert_close(found, by_hand[:, 4:])
