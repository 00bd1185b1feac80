"""Targets, losses and the EMA update, by hand."""

import pytest
import torch

from src.jepa.objective import ema_update, jepa_losses, make_targets
from src.jepa.target_norm import normalize_targets

B, N, D = 16, 12, 6


@pytest.mark.parametrize("how", [("layer", 0.0), ("batch_standardize", 0.5)])
def test_targets_are_the_normalised_features_of_all_tokens_without_gradients(how):
    torch.manual_seed(0)
    clips, encoder = torch.randn(B, N, D), torch.nn.Linear(D, D)
    masks = [torch.arange(4, 12).expand(B, -1), torch.tensor([[0, 3, 7]]).expand(B, -1)]
    found = make_targets(encoder, clips, masks, *how)
    assert [tuple(target.shape) for target in found] == [(B, 8, D), (B, 3, D)]
    for target, want in zip(found, normalize_targets(encoder(clips), masks, *how)):
        torch.testing.assert_close(target, want)
        assert not target.requires_grad


@pytest.mark.parametrize("loss_exp", [1.0, 2.0])
def test_the_loss_is_the_mean_over_masks_of_the_mean_over_tokens(loss_exp):
    torch.manual_seed(0)
    predictions, targets = ([torch.randn(2, count, 3) for count in (4, 7)] for _ in range(2))
    by_hand = [
        sum(abs(z - h) ** loss_exp for z, h in zip(zs.flatten().tolist(), hs.flatten().tolist())) / zs.numel()
        for zs, hs in zip(predictions, targets)
    ]
    found = jepa_losses(predictions, targets, loss_exp)
    assert found.loss is found.jepa
    assert found.jepa.item() == pytest.approx(sum(by_hand) / 2 / loss_exp, rel=1e-5)


@pytest.mark.parametrize("shrink", [False, True])
def test_the_hinge_pushes_the_variance_of_a_clip_s_predictions_up(shrink):
    torch.manual_seed(0)
    z = (0.3 * torch.randn(2, 5, 3)).requires_grad_()
    losses = jepa_losses([z], [torch.zeros(2, 5, 3)], reg_coeff=0.5, shrink=shrink)
    std = (z.var(dim=1) + 1e-4).sqrt()
    torch.testing.assert_close(losses.reg, std.mean() if shrink else (1 - std).clamp(min=0).mean())
    torch.testing.assert_close(losses.loss, losses.jepa + 0.5 * losses.reg)
    (gradient,) = torch.autograd.grad(losses.reg, z)
    spread = (z - gradient).var(dim=1)  # after a step down the loss
    assert (spread < z.var(dim=1)).all() if shrink else (spread > z.var(dim=1)).all()


def test_ema_equals_its_closed_form():
    torch.manual_seed(0)
    online = [[torch.randn(5, 3), torch.randn(7)] for _ in range(4)]
    target = [torch.randn(5, 3), torch.randn(7)]
    start, momenta = [t.clone() for t in target], [0.9, 0.99, 0.5, 0.999]
    for parameters, m in zip(online, momenta):
        ema_update(target, parameters, m)
    for i, t in enumerate(target):
        weight = torch.tensor(momenta).prod()
        closed = weight * start[i]
        for k, m in enumerate(momenta):
            closed = closed + (1 - m) * torch.tensor(momenta[k + 1 :]).prod() * online[k][i]
        torch.testing.assert_close(t, closed)


def test_the_ema_of_a_step_that_was_not_applied_is_left_as_it_is():
    torch.manual_seed(0)
    online, target = ([torch.randn(5, 3), torch.randn(7)] for _ in range(2))
    start, usual = ([t.clone() for t in target] for _ in range(2))
    ema_update(target, online, 0.9, torch.tensor(False))
    assert all(map(torch.equal, target, start))
    ema_update(target, online, 0.9999, torch.tensor(True))
    ema_update(usual, online, 0.9999)
    torch.testing.assert_close(target, usual, rtol=1e-6, atol=1e-7)
    assert not any(map(torch.equal, target, start))
