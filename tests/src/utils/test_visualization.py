"""Pictures show what they say: context, targets, and alike features in alike colours."""

import numpy as np
import torch

from src.utils.visualization import feature_picture, mask_picture, principal_colors

GRID = (2, 2, 3)


def test_context_is_as_it_is_targets_are_tinted_the_rest_is_grey():
    clip = torch.full((3, 4, 8, 12), 100, dtype=torch.uint8)
    clip[:, 2:] = 200  # the second tubelet
    picture = mask_picture(clip, [torch.tensor([0, 7])], [torch.tensor([1, 8])], GRID)
    assert picture.shape == (2 * (8 + 2), 2 * (12 + 2), 3)
    top, row = picture[:8], picture[10:18]
    assert (top[:, :12] == 100).all() and (top[:, 14:26] == 200).all()
    token = {n: row[(n % 6 // 3) * 4 :, (n // 6) * 14 + (n % 3) * 4 :][:4, :4] for n in range(12)}
    assert (token[0] == 100).all() and (token[7] == 200).all()
    for n, value in ((1, 100), (8, 200)):
        assert (token[n] == (0.45 * value + 0.55 * np.array([209, 102, 27])).astype(np.uint8)).all()
    for n in (2, 3, 4, 5, 6, 9, 10, 11):
        assert (token[n] == [226, 229, 233]).all(), n


def test_large_frames_are_thinned_out():
    clip = torch.zeros(3, 4, 256, 256, dtype=torch.uint8)
    tokens = torch.randn(2, 2 * 16 * 16, 8)
    assert mask_picture(clip, [], [], (2, 16, 16)).shape == (66, 132, 3)
    assert feature_picture(torch.stack([clip, clip]), tokens, (2, 16, 16)).shape == (4 * 66, 132, 3)


def test_alike_features_have_alike_colours_and_the_same_ones_each_time():
    torch.manual_seed(0)
    kinds = torch.randn(3, 16)
    which = torch.arange(2 * 12).reshape(2, 12) % 3
    colors, share = principal_colors(kinds[which])
    assert share > 0.999
    for kind in range(3):
        assert len(np.unique(colors[which == kind], axis=0)) == 1
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 3
    assert np.array_equal(colors, principal_colors(kinds[which])[0])
    assert principal_colors(torch.ones(1, 4, 8))[0].shape == (1, 4, 3)  # nothing varies: no error


def test_a_features_colour_is_at_its_place():
    features = torch.zeros(1, 12, 4)
    features[0, 7] = 1.0  # second tubelet, upper row, middle
    picture = feature_picture(torch.zeros(1, 3, 4, 8, 12, dtype=torch.uint8), features, GRID)
    colors = picture[10:18]
    other = colors[0, 0]
    differs = (colors != other).any(-1)[:, : 2 * 14]
    differs[:, [12, 13, 26, 27]] = False
    assert differs[0:4, 18:22].all() and differs.sum() == 16
