"""random_tube, clip_row, default, and the table of mask types."""

import pickle

import numpy as np
import pytest
import torch

from src.masks import MASK_COLLATORS, create_mask_collator
from src.masks import default as no_mask
from src.utils.errors import UserError

SHAPE = ((64, 96), 8, 8, 2)  # crop (h, w), frames, patch, tubelet: 4 x 8 x 12 tokens


@pytest.mark.parametrize("mask_type", ["random_tube", "clip_row"])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.87])
def test_all_tokens_are_context_or_target_and_every_frame_is_alike(mask_type, ratio):
    for seed in range(10):
        masks = create_mask_collator(mask_type, [{"ratio": ratio}], *SHAPE, seed=seed)
        (context,), (target,) = masks.masks(5, seed)
        assert context.dtype == torch.int64
        assert (context.diff(dim=1) > 0).all()
        assert (target.diff(dim=1) > 0).all()
        both = torch.cat([context, target], dim=1).sort(dim=1).values
        assert torch.equal(both, torch.arange(4 * 8 * 12).expand(5, -1))
        frames = context.reshape(5, 4, -1) - 96 * torch.arange(4)[None, :, None]
        assert (frames == frames[:, :1]).all()


def test_ratio_is_the_masked_share():
    (tube,), _ = create_mask_collator("random_tube", [{"ratio": 0.9}], 224, 16, 16, 2).masks(2, 0)
    (rows,), _ = create_mask_collator("clip_row", [{"ratio": 0.9}], 160, 16, 16, 2).masks(2, 0)
    assert tube.shape[1] == 8 * 19  # of 196, rounded down
    assert rows.shape[1] == 8 * 10  # exactly one row of ten


def test_clip_row_masks_whole_rows():
    (context,), _ = create_mask_collator("clip_row", [{"ratio": 0.5}], *SHAPE).masks(6, 0)
    per_row = torch.stack([torch.bincount(sample // 12, minlength=32) for sample in context])
    assert set(per_row.unique().tolist()) == {0, 12}


def test_every_place_is_kept_equally_often():
    for mask_type in ("random_tube", "clip_row"):
        masks = create_mask_collator(mask_type, [{"ratio": 0.5}], *SHAPE)
        seen = sum(np.bincount(masks.masks(50, s)[0][0].numpy().ravel(), minlength=384) for s in range(60)) / 3000
        assert np.abs(seen - 0.5).max() < 0.05


def test_samples_steps_seeds_and_ranks_differ():
    def tubes(seed=0, rank=0, step=0):
        collator = create_mask_collator("random_tube", [{"ratio": 0.5}], *SHAPE, seed=seed, rank=rank, world_size=2)
        return collator.masks(3, step)[0][0]

    assert torch.equal(tubes(), tubes())
    assert not torch.equal(tubes()[0], tubes()[1])
    for other in (tubes(seed=1), tubes(rank=1), tubes(step=1)):
        assert not torch.equal(tubes(), other)


def test_two_configs_give_two_masks():
    enc, pred = create_mask_collator("random_tube", [{"ratio": 0.5}, {"ratio": 0.75}], *SHAPE).masks(3, 0)
    assert [mask.shape[1] for mask in enc] == [4 * 48, 4 * 24]
    assert [mask.shape[1] for mask in pred] == [4 * 48, 4 * 72]


def test_collators_travel_to_worker_processes():
    cfgs = {name: [{"ratio": 0.5}] for name in MASK_COLLATORS}
    cfgs["multiblock3d"] = [{"num_blocks": 2, "spatial_scale": [0.2, 0.2], "aspect_ratio": [1.0, 1.0]}]
    for name, cfg in cfgs.items():
        masks = create_mask_collator(name, cfg, *SHAPE, seed=3)
        copy = pickle.loads(pickle.dumps(masks))
        assert torch.equal(masks.masks(2, 7)[0][0], copy.masks(2, 7)[0][0])


def test_default_masks_nothing():
    batch, enc, pred = no_mask.MaskCollator()([(torch.ones(3, 2), 1), (torch.zeros(3, 2), 0)])
    assert batch[0].shape == (2, 3, 2)
    assert enc is None
    assert pred is None


@pytest.mark.parametrize("mask_type", ["random_tube", "clip_row"])
@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({}, r"mask\.0\.ratio is missing"),
        ({"ratio": 1.0}, r"mask\.0\.ratio is the share that is masked"),
        ({"ratio": "half"}, r"mask\.0\.ratio is the share that is masked"),
        ({"ratio": 0.999}, r"mask\.0\.ratio .*leaves no context; lower it"),
        ({"ratio": 1e-9}, r"mask\.0\.ratio .*leaves nothing to predict; raise it"),
        ({"ratio": 0.5, "num_blocks": 8}, r"mask\.0\.num_blocks: this mask type has no such key; it has ratio"),
    ],
)
def test_bad_ratios(mask_type, cfg, message):
    with pytest.raises(UserError, match=message):
        create_mask_collator(mask_type, [cfg], *SHAPE)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((100, 16, 16, 2), "data.crop_size 100 is not divisible by data.patch_size 16.*96 or 112"),
        (((64, 100), 16, 16, 2), "data.crop_size 100"),
        ((8, 16, 16, 2), "the nearest crops that are: 16"),
        ((64, 15, 16, 2), "data.num_frames 15 is not divisible by data.tubelet_size 2.*14 or 16"),
        ((64, 0, 16, 2), "at least 1"),
        (((64, 64, 64), 16, 16, 2), "data.crop_size must be one number or a pair"),
    ],
)
def test_clips_that_do_not_divide_into_tokens(shape, message):
    with pytest.raises(UserError, match=message):
        create_mask_collator("random_tube", [{"ratio": 0.5}], *shape)


def test_unknown_mask_type_and_empty_list():
    with pytest.raises(UserError, match="'blocks' does not exist; choose one of multiblock3d, random_tube, clip_row"):
        create_mask_collator("blocks", [{}], *SHAPE)
    with pytest.raises(UserError, match="at least one mask"):
        create_mask_collator("random_tube", [], *SHAPE)
