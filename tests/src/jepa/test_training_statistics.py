import math

import pytest
import torch
from torch import nn

from src.jepa.training_statistics import (
    feature_stats,
    grad_norms,
    loss_by_frame,
    state_space_stats,
    update_ratios,
    weight_copies,
)
from src.models.utils.mamba import MambaMixer


def test_isotropic_features_have_full_rank():
    torch.manual_seed(0)
    stats = feature_stats(torch.randn(16, 250, 32))
    assert stats["effective_rank"] == pytest.approx(32, rel=0.01)
    assert stats["effective_rank_centered"] == pytest.approx(32, rel=0.01)
    assert stats["feature_std"] == pytest.approx(1.0, rel=0.02)
    assert abs(stats["between_clip_cosine"]) < 0.1


def test_rank_one_features():
    torch.manual_seed(0)
    stats = feature_stats(torch.randn(4, 50, 1) * torch.randn(24))
    assert stats["effective_rank"] == pytest.approx(1.0, abs=1e-4)
    assert stats["effective_rank_centered"] == pytest.approx(1.0, abs=1e-4)


def test_collapse_to_a_constant():
    stats = feature_stats(torch.randn(24).expand(4, 50, 24))
    assert stats["feature_std"] == pytest.approx(0.0, abs=1e-6)
    assert stats["effective_rank"] == pytest.approx(1.0, abs=1e-4)
    assert stats["between_clip_cosine"] == pytest.approx(1.0)


def test_a_dominant_mean_hides_the_spread_only_from_the_uncentred_rank():
    torch.manual_seed(0)
    stats = feature_stats(torch.randn(8, 200, 16) + 1000.0)
    assert stats["effective_rank"] < 2
    assert stats["effective_rank_centered"] == pytest.approx(16, rel=0.02)


def test_rank_equals_rankme_from_the_singular_values():
    torch.manual_seed(0)
    x = torch.randn(3, 20, 8) * torch.logspace(0, -3, 8)
    share = torch.linalg.svdvals(x.flatten(0, 1).double())
    share = share / share.sum()
    expected = math.exp(-(share * share.log()).sum())
    assert feature_stats(x)["effective_rank"] == pytest.approx(expected, rel=1e-6)


def test_cosine_equals_the_mean_over_pairs():
    torch.manual_seed(0)
    x = torch.randn(5, 7, 6) + 0.5
    mean = nn.functional.normalize(x.double().mean(1), dim=1)
    pairs = (mean @ mean.T)[~torch.eye(5, dtype=torch.bool)]
    assert feature_stats(x)["between_clip_cosine"] == pytest.approx(pairs.mean().item())
    assert math.isnan(feature_stats(x[:1])["between_clip_cosine"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite(bad):
    x = torch.randn(2, 3, 4)
    x[0, 1, 2] = bad
    assert all(math.isnan(value) for value in feature_stats(x).values())


def test_half_precision_and_gradients_are_fine():
    x = torch.randn(2, 30, 4, dtype=torch.bfloat16, requires_grad=True)
    assert 3 < feature_stats(x)["effective_rank"] <= 4


def test_wrong_shape():
    with pytest.raises(ValueError, match=r"features \(B, N, D\), got shape \(3, 4\)"):
        feature_stats(torch.zeros(3, 4))


def test_grad_norms():
    model = nn.ModuleDict({"first": nn.Linear(2, 2, bias=False), "second": nn.Linear(2, 1), "unused": nn.Linear(2, 2)})
    model["second"](model["first"](torch.ones(1, 2))).sum().backward()
    model["second"].weight.grad = torch.tensor([[3.0, 0.0]])
    model["second"].bias.grad = torch.tensor([4.0])
    model["first"].weight.grad.zero_()
    norms = grad_norms([*model.items(), ("activation", nn.ReLU())])
    assert norms == {"first": 0.0, "second": 5.0}
    model["first"].weight.grad[0, 0] = math.nan
    assert math.isnan(grad_norms(model.items())["first"])
    assert grad_norms([]) == {}


def test_features_that_only_say_where_a_token_is():
    torch.manual_seed(0)
    stats = feature_stats(torch.randn(1, 50, 24).expand(8, 50, 24))
    assert stats["feature_std"] == pytest.approx(1.0, rel=0.05)
    assert stats["between_clip_std"] == 0.0
    assert feature_stats(torch.randn(200, 3, 4))["between_clip_std"] == pytest.approx(1.0, rel=0.05)
    assert math.isnan(feature_stats(torch.randn(1, 3, 4))["between_clip_std"])


def test_update_ratios():
    modules = {"moved": nn.Linear(3, 1, bias=False), "still": nn.Linear(2, 2), "frozen": nn.Linear(2, 2)}
    modules["frozen"].requires_grad_(False)
    modules["moved"].weight.data = torch.tensor([[3.0, 0.0, 4.0]])
    before = weight_copies(modules.items())
    modules["moved"].weight.data += torch.tensor([[0.0, 0.5, 0.0]])
    assert update_ratios(before, modules.items()) == {"moved": pytest.approx(0.1), "still": 0.0}


def test_state_space_stats():
    mixer = MambaMixer(16, d_state=3)
    with torch.no_grad():
        for suffix in ("", "_b"):
            getattr(mixer, f"dt_proj{suffix}").bias.fill_(math.log(math.expm1(0.25)))  # softplus of it is 0.25
    assert state_space_stats([("first", mixer)]) == {
        "dt/first": pytest.approx(0.25),
        "A/first": pytest.approx(2.0),  # of 1, 2, 3
    }
    assert state_space_stats([]) == {}


def test_loss_by_frame():
    """Two masks over three time indices of two tokens each; nothing is predicted at the last one."""
    targets = [torch.zeros(1, 2, 4), torch.zeros(1, 1, 4)]
    predictions = [torch.tensor([1.0, -3.0]).view(1, 2, 1).expand(1, 2, 4), torch.full((1, 1, 4), 5.0)]
    masks = [torch.tensor([[0, 2]]), torch.tensor([[1]])]
    first, second, third = loss_by_frame(predictions, targets, masks, tokens_per_frame=2, frames=3)
    assert (first, second) == (3.0, 3.0) and math.isnan(third)
