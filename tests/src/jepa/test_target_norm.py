"""Targets: as V-JEPA's, or standardised over the batch so that they say how a clip differs from others."""

import pytest
import torch
import torch.nn.functional as F

from src.jepa.target_norm import SHRINKAGE, inverse_root_by_eigh, newton_schulz_inverse_root, normalize_targets
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
    for target, want in zip(normalize_targets(h, masks), expected):
        torch.testing.assert_close(target, want)


def test_batch_norm_leaves_nothing_of_the_place(features, masks):
    h, _ = features
    for target in normalize_targets(h, masks, "batch_standardize"):
        assert target.mean(dim=0).abs().max() < 1e-5
    whole = normalize_targets(h, [torch.arange(N).expand(B, -1)], "batch_standardize")[0]
    torch.testing.assert_close(whole.square().mean(dim=(0, 1)), torch.ones(D), atol=1e-4, rtol=0)
    # Places, sizes and offsets of features do not matter, only how clips differ.
    again = normalize_targets(3 * h + torch.randn(1, N, D), masks, "batch_standardize")
    for target, want in zip(again, normalize_targets(h, masks, "batch_standardize")):
        torch.testing.assert_close(target, want, atol=1e-4, rtol=0)


def test_pooling_brings_out_what_tokens_have_in_common(features, masks):
    h, clip = features

    def share(pooled):  # of the clip's own part, in the targets of the first mask
        target = normalize_targets(h, masks, "batch_standardize", pooled)[0].mean(dim=1)
        return torch.corrcoef(torch.stack([target.flatten(), (clip[:, 0] - clip.mean(dim=0)).flatten()]))[0, 1].item()

    tokens = normalize_targets(h, masks, "batch_standardize")[0]
    alike = [normalize_targets(h, masks, "batch_standardize", pooled)[0] for pooled in (0.0, 0.5, 1.0)]
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

    assert known(normalize_targets(h, masks)[0]) > 0.8
    assert known(normalize_targets(h, masks, "batch_standardize")[0]) < 1e-6


def test_whitening_leaves_room_for_what_is_said_more_quietly(masks):
    """One thing said loudly in every dimension, another faintly: whitened they weigh about the same."""
    generator = torch.Generator().manual_seed(0)
    clips, width = 64, 16
    loud, quiet = torch.randn(2, clips, generator=generator)
    loud = loud - loud.mean()
    quiet = quiet - quiet.mean()
    quiet = quiet - loud * (quiet @ loud) / (loud @ loud)
    across, aside = torch.linalg.qr(torch.randn(width, 2, generator=generator))[0].T
    h = 3 * loud[:, None, None] * across + 0.3 * quiet[:, None, None] * aside
    h = h.expand(clips, N, width) + 0.05 * torch.randn(clips, N, width, generator=generator)
    whole = [torch.arange(N).expand(clips, -1)]

    def of_both(norm):  # how much of the targets' variance each of the two explains
        target = normalize_targets(h, whole, norm)[0].mean(dim=1)
        parts = [(said @ target).square().sum() / (said @ said) for said in (loud, quiet)]
        return [(part / target.square().sum()).item() for part in parts]

    batch, whiten = of_both("batch_standardize"), of_both("zca_whiten")
    assert batch[0] > 0.9 and batch[1] < 0.1
    assert whiten[1] > 0.3 * whiten[0] > 0


def test_whitened_targets_are_standardised_and_decorrelated(features, masks):
    h, _ = features
    whole = normalize_targets(h, [torch.arange(N).expand(B, -1)], "zca_whiten")[0].flatten(0, 1)
    covariance = whole.T @ whole / len(whole)
    torch.testing.assert_close(covariance, torch.eye(D), atol=0.1, rtol=0)  # not exactly: a tenth is shrunk away
    torch.testing.assert_close(covariance.diagonal(), torch.ones(D), atol=1e-4, rtol=0)
    # Measured by another batch, here itself, as the futures that a model chooses from are.
    for target, want in zip(
        normalize_targets(h, masks, "zca_whiten", like_BND=h), normalize_targets(h, masks, "zca_whiten")
    ):
        torch.testing.assert_close(target, want, atol=1e-4, rtol=0)


def test_whitening_works_in_float32_under_autocast(features, masks):
    h, _ = features
    want = normalize_targets(h, masks, "zca_whiten")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for target, expected in zip(normalize_targets(h, masks, "zca_whiten"), want):
            torch.testing.assert_close(target, expected)


def test_whitened_targets_of_broken_features_are_broken_too(features, masks):
    """So that the loss is not finite, and the run ends with the message that says so."""
    h, _ = features
    h[3, 2, 1] = torch.nan
    assert not any(torch.isfinite(target).all() for target in normalize_targets(h, masks, "zca_whiten"))


@pytest.mark.parametrize("width", [6, 192, 384])
@pytest.mark.parametrize("rank", [1, 3, None])
def test_newton_schulz_is_the_inverse_root(width, rank):
    """Of covariances as whitening has them: ones on the diagonal, shrunk towards the identity; rank 1 is the worst."""
    torch.manual_seed(0)
    samples = torch.randn(4 * width, rank or width) @ torch.randn(rank or width, width)
    covariance = torch.corrcoef(samples.T) if rank != 1 else torch.ones(width, width)
    shrunk = torch.lerp(covariance, torch.eye(width), SHRINKAGE)
    exact = inverse_root_by_eigh(shrunk.double())
    found = newton_schulz_inverse_root(shrunk).double()
    assert (found - exact).norm() / exact.norm() < 1e-4
    identity = torch.eye(width, dtype=torch.float64)
    torch.testing.assert_close(exact @ shrunk.double() @ exact, identity, atol=1e-5, rtol=0)
