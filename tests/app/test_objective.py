"""Targets: as V-JEPA's, or standardised over the batch so that they say how a clip differs from others."""

import pytest
import torch
import torch.nn.functional as F

from app.vjepa.objective import make_targets, normalised_targets
from src.masks.utils import apply_masks

B, N, D = 16, 12, 6


@pytest.fixture
def features():
    """(B, N, D): where a token is, loudly; what its clip is, faintly; and noise of its own."""
    generator = torch.Generator().manual_seed(0)
    place = 5 * torch.randn(1, N, D, generator=generator)
    clip = 0.2 * torch.randn(B, 1, D, generator=generator)
    return place + clip + torch.randn(B, N, D, generator=generator), clip


@pytest.fixture
def masks():
    return [torch.arange(4, 12).expand(B, -1), torch.tensor([[0, 3, 7]]).expand(B, -1)]


def test_layer_norm_is_v_jepas(features, masks):
    h, _ = features
    expected = apply_masks(F.layer_norm(h, (D,)), masks, concat=False)
    for target, want in zip(normalised_targets(h, masks), expected):
        torch.testing.assert_close(target, want)
    encoder = torch.nn.Linear(D, D)
    for target, want in zip(make_targets(encoder, h, masks), normalised_targets(encoder(h), masks)):
        torch.testing.assert_close(target, want)
        assert not target.requires_grad


def test_batch_norm_leaves_nothing_of_the_place(features, masks):
    h, _ = features
    for target in normalised_targets(h, masks, "batch"):
        assert target.mean(dim=0).abs().max() < 1e-5
    whole = normalised_targets(h, [torch.arange(N).expand(B, -1)], "batch")[0]
    torch.testing.assert_close(whole.square().mean(dim=(0, 1)), torch.ones(D), atol=1e-4, rtol=0)
    # Places, sizes and offsets of features do not matter, only how clips differ.
    again = normalised_targets(3 * h + torch.randn(1, N, D), masks, "batch")
    for target, want in zip(again, normalised_targets(h, masks, "batch")):
        torch.testing.assert_close(target, want, atol=1e-4, rtol=0)


def test_pooling_brings_out_what_tokens_have_in_common(features, masks):
    h, clip = features

    def share(pooled):  # of the clip's own part, in the targets of the first mask
        target = normalised_targets(h, masks, "batch", pooled)[0].mean(dim=1)
        return torch.corrcoef(torch.stack([target.flatten(), (clip[:, 0] - clip.mean(dim=0)).flatten()]))[0, 1].item()

    tokens = normalised_targets(h, masks, "batch")[0]
    alike = [normalised_targets(h, masks, "batch", pooled)[0] for pooled in (0.0, 0.5, 1.0)]
    within = [target.var(dim=1).mean().item() for target in alike]
    torch.testing.assert_close(alike[0], tokens)
    assert within[0] > 3 * within[1] > 0 and within[2] < 1e-9  # the tokens of one clip: their own, less so, the same
    assert alike[2].std() == pytest.approx(1, abs=0.05)
    assert share(1.0) > 0.4


def test_a_target_carries_its_place_unless_standardised(features, masks):
    """What lets features collapse onto the position: most of a layer-normalised target is known without any clip."""
    h, _ = features

    def known(targets):  # share of the variance that the mean over clips explains
        return (targets.mean(dim=0).var() / targets.var()).item()

    assert known(normalised_targets(h, masks)[0]) > 0.8
    assert known(normalised_targets(h, masks, "batch")[0]) < 1e-6
