import time

import numpy as np
import pytest
import torch

from src.datasets.augmentation import PretrainTransform
from src.masks.multiblock3d import MaskCollator
from src.utils.errors import UserError

SHORT_RANGE = {
    "aspect_ratio": [0.75, 1.5],
    "num_blocks": 8,
    "spatial_scale": [0.15, 0.15],
    "temporal_scale": [1.0, 1.0],
    "max_temporal_keep": 1.0,
    "max_keep": None,
}
LONG_RANGE = {**SHORT_RANGE, "num_blocks": 2, "spatial_scale": [0.7, 0.7]}
SHIPPED = [SHORT_RANGE, LONG_RANGE]
BATCH = 24


def collator(cfgs=SHIPPED, crop=224, frames=16, patch=16, tubelet=2, **kwargs):
    return MaskCollator(cfgs, crop, frames, patch, tubelet, **kwargs)


def drop_share(masks, steps, index):
    """(kept context, kept target) tokens as a share of all tokens, averaged over steps."""
    sizes = [(enc[index].shape[1], pred[index].shape[1]) for enc, pred in (masks.masks(BATCH, s) for s in range(steps))]
    return np.mean(sizes, axis=0) / masks.grid.size


def frame_spread(masks, steps, index):
    """Largest relative distance of a temporal index's count from the mean: (context, targets), and the two counts."""
    counts = np.zeros((2, masks.grid.t), dtype=np.int64)
    for step in range(steps):
        for row, per_config in enumerate(masks.masks(BATCH, step)):
            frame = (per_config[index] // masks.grid.area).numpy().ravel()
            counts[row] += np.bincount(frame, minlength=masks.grid.t)
    return np.abs(counts / counts.mean(axis=1, keepdims=True) - 1).max(axis=1), counts


@pytest.mark.parametrize("length_matching", ["size_sorted", "random"])
@pytest.mark.parametrize(("crop", "patch"), [(224, 16), (64, 8)])
def test_every_frame_is_kept_and_predicted_equally_often(crop, patch, length_matching):
    masks = collator(crop=crop, patch=patch, length_matching=length_matching)
    for index, name in enumerate(("short range", "long range")):
        spread, counts = frame_spread(masks, 1000, index)
        print(
            f"{crop}px {length_matching} {name}: "
            f"context {counts[0]} {spread[0]:.2%}, targets {counts[1]} {spread[1]:.2%}"
        )
        assert spread.max() <= 0.03


def test_truncation_as_in_vjepa_starves_the_last_frames():
    spread, counts = frame_spread(collator(length_matching="truncate"), 50, 1)
    assert counts[0, -1] < 0.2 * counts[0, 0]
    assert spread.min() > 0.03


def test_frames_stay_equal_when_single_tokens_are_dropped():
    # max_keep below one tube: the context is a few random tokens of the clip
    spread, counts = frame_spread(collator([{**SHORT_RANGE, "max_keep": 5}], crop=64, patch=8), 1000, 0)
    assert counts[0].sum() == 5 * BATCH * 1000
    assert spread.max() <= 0.03


@pytest.mark.parametrize("length_matching", ["size_sorted", "random", "truncate"])
@pytest.mark.parametrize(
    "cfg",
    [
        SHORT_RANGE,
        LONG_RANGE,
        {**SHORT_RANGE, "temporal_scale": [0.3, 0.7]},
        {**SHORT_RANGE, "max_temporal_keep": 0.5},
        {**LONG_RANGE, "max_keep": 20},
        {**SHORT_RANGE, "spatial_scale": [0.05, 0.3], "aspect_ratio": [0.2, 5.0], "num_blocks": 3},
    ],
)
def test_masks_are_ascending_disjoint_in_range_and_of_one_length(cfg, length_matching):
    for seed in range(12):
        masks = collator([cfg], crop=(96, 64), patch=8, frames=8, seed=seed, length_matching=length_matching)
        for step in range(4):
            (context,), (target,) = masks.masks(6, step)
            assert context.dtype == target.dtype == torch.int64
            assert context.shape[0] == target.shape[0] == 6
            assert context.shape[1] >= 1
            assert target.shape[1] >= 1
            for rows in (context, target):
                assert (rows.diff(dim=1) > 0).all()
                assert rows.min() >= 0
                assert rows.max() < masks.grid.size
            both = torch.cat([context, target], dim=1)
            assert all(len(row.unique()) == len(row) for row in both)
            if cfg.get("max_keep"):
                assert context.shape[1] <= cfg["max_keep"]
            limit = masks.generators[0].context_duration * masks.grid.area
            assert context.max() < limit


def test_a_single_sample_loses_nothing():
    masks = collator()
    for step in range(20):
        for context, target in zip(*masks.masks(1, step)):
            assert context.shape[1] + target.shape[1] == masks.grid.size


def test_blocks_are_vjepas():
    """One sample, one block: the target is a box of the drawn size, the rest is context."""
    cfg = {**SHORT_RANGE, "num_blocks": 1, "spatial_scale": [0.2, 0.4], "temporal_scale": [0.5, 1.0]}
    masks = collator([cfg])
    shapes = set()
    for step in range(200):
        _, (target,) = masks.masks(1, step)
        place = np.stack(np.unravel_index(target[0].numpy(), (8, 14, 14)))
        extent = place.max(axis=1) - place.min(axis=1) + 1
        assert extent.prod() == target.shape[1]  # a full box
        shapes.add(tuple(int(side) for side in extent))
    assert {shape[0] for shape in shapes} <= {4, 5, 6, 7, 8}
    assert len({shape[0] for shape in shapes}) > 2
    for _, height, width in shapes:
        assert 0.2 * 196 * 0.85 <= height * width <= 0.4 * 196 * 1.15  # the scale, up to rounding of the sides
        assert 0.75 * 0.8 <= height / width <= 1.5 * 1.25


def test_size_is_drawn_per_batch_and_places_per_sample():
    _, (target,) = collator([{**SHORT_RANGE, "num_blocks": 1}]).masks(BATCH, 3)
    assert target.shape[1] % 8 == 0
    corners = {(int(row[0]), int(row[-1])) for row in target}
    assert len(corners) > BATCH // 2
    assert len({last - first for first, last in corners}) == 1  # one size


def test_max_temporal_keep_confines_the_context_and_hands_the_rest_to_the_targets():
    masks = collator([{**SHORT_RANGE, "max_temporal_keep": 0.5}])
    (context,), (target,) = masks.masks(1, 0)
    assert context.max() < 4 * 196
    assert set(range(4 * 196, 8 * 196)) <= set(target[0].tolist())


@pytest.mark.parametrize("index", [0, 1])
def test_matching_keeps_the_distribution_and_drops_little(index):
    """On average a sample sees as much, and the same places, as a lone sample whose mask nobody equalises."""
    steps = 1500
    matched, alone = (
        collator(crop=64, patch=8, frames=8),
        collator(crop=64, patch=8, frames=8, length_matching="random"),
    )
    area = matched.grid.area
    seen = np.zeros((2, area))
    for step in range(steps):
        for row, (masks, batch) in enumerate(((matched, 8), (alone, 1))):
            tokens = masks.masks(batch, step)[0][index].numpy().ravel() % area
            seen[row] += np.bincount(tokens, minlength=area) / (steps * batch * masks.grid.t)
    print(f"context share: matched {seen[0].mean():.3f}, alone {seen[1].mean():.3f}")
    assert abs(seen[0].mean() / seen[1].mean() - 1) < 0.1
    assert np.corrcoef(seen)[0, 1] > 0.97


def test_share_of_tokens_that_each_way_drops():
    for index in range(2):
        share = {
            name: drop_share(collator(length_matching=name), 150, index)
            for name in ("size_sorted", "random", "truncate")
        }
        for name, (context, target) in share.items():
            print(
                f"mask[{index}] {name}: context {context:.1%}, targets {target:.1%}, neither {1 - context - target:.1%}"
            )
        assert 1 - share["size_sorted"].sum() < 0.05
        assert 1 - share["truncate"].sum() > 0.2
        assert share["random"] == pytest.approx(share["truncate"], rel=0.1)


def test_masks_depend_on_seed_and_step_only():
    first = [collator(seed=5).masks(4, step) for step in range(6)]
    again = collator(seed=5)
    for step in (4, 0, 5, 2, 2, 1):
        for one, other in zip(first[step], again.masks(4, step)):
            assert all(torch.equal(a, b) for a, b in zip(one, other))
    assert not torch.equal(first[0][0][0][:, :1], collator(seed=6).masks(4, 0)[0][0][:, :1])


def test_ranks_draw_different_masks_of_nearly_the_same_size():
    ranks = [collator(rank=rank, world_size=2) for rank in range(2)]
    for step in range(20):
        (one, _), (other, _) = (masks.masks(BATCH, step)[0] for masks in ranks)
        assert one.shape != other.shape or not torch.equal(one, other)
        assert abs(one.shape[1] - other.shape[1]) <= 0.15 * 1568


def test_batches_of_a_step_are_the_same_side_by_side_and_one_after_another():
    alone = collator(accumulate=4)
    for ranks, accumulate in ((2, 2), (4, 1)):
        for rank in range(ranks):
            beside = collator(rank=rank, world_size=ranks, accumulate=accumulate)
            for batch in range(3 * accumulate):
                ours, theirs = beside.masks(4, batch), alone.masks(4, batch * ranks + rank)
                assert all(torch.equal(a, b) for a, b in zip(ours[0] + ours[1], theirs[0] + theirs[1]))
    with pytest.raises(ValueError, match="rank 2 is not in a run of 2 processes"):
        collator(rank=2, world_size=2)


def test_collates_and_counts_steps_by_itself():
    samples = [([torch.full((3, 2, 4, 4), i, dtype=torch.uint8)], i, [np.arange(2)]) for i in range(3)]
    masks = collator()
    explicit = [collator()(samples, step=step) for step in range(2)]
    for _, expected_enc, expected_pred in explicit:
        (clips, labels, indices), enc, pred = masks(samples)
        assert clips[0].shape == (3, 3, 2, 4, 4)
        assert labels.tolist() == [0, 1, 2]
        assert indices[0].shape == (3, 2)
        assert all(torch.equal(a, b) for a, b in zip(enc + pred, expected_enc + expected_pred))


def test_fast_enough_for_a_loader():
    """A small part of the work that a worker has with the frames of the batch: 2 of 115 ms of an idle core."""

    def work(function, count):  # computing time: what other processes do meanwhile is not in it
        times = []
        for i in range(count):
            start = time.thread_time()
            function(i)
            times.append(time.thread_time() - start)
        return np.median(times)

    masks, transform = collator(), PretrainTransform(224)
    masks.masks(BATCH, 0)
    frames = np.random.default_rng(0).integers(0, 255, (16, 256, 340, 3), np.uint8)
    of_masks = work(lambda step: masks.masks(BATCH, step), 30)
    of_frames = BATCH * work(lambda seed: transform(frames, np.random.default_rng(seed)), 9)
    print(f"batch of {BATCH}: both shipped masks {1e3 * of_masks:.2f} ms, frames {1e3 * of_frames:.0f} ms")
    assert of_masks < 0.1 * of_frames


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_scale": [1.0, 1.0], "aspect_ratio": [1.0, 1.0]}, r"mask\.0.*leave no context; lower"),
        ({"spatial_scale": [0.9, 0.9], "num_blocks": 60}, r"mask\.0.*leave no context; lower"),
        ({"spatial_scale": [0.001, 0.004]}, r"mask\.0\.spatial_scale.*leaves nothing to predict; raise"),
        ({"spatial_scale": [0.5, 0.1]}, r"mask\.0\.spatial_scale must be a pair"),
        ({"spatial_scale": 0.5}, r"mask\.0\.spatial_scale must be a pair"),
        ({"temporal_scale": [0.0, 1.0]}, r"mask\.0\.temporal_scale must be a pair"),
        ({"num_blocks": 0}, r"mask\.0\.num_blocks must be a whole number"),
        ({"num_blocks": None}, r"mask\.0\.num_blocks is missing"),
        ({"max_keep": 0}, r"mask\.0\.max_keep must be a whole number"),
        ({"max_temporal_keep": 0.0}, r"mask\.0\.max_temporal_keep"),
        ({"ratio": 0.5}, r"mask\.0\.ratio: .*no such key; it has num_blocks"),
    ],
)
def test_bad_masks_are_refused_in_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        collator([{**SHORT_RANGE, **change}], crop=128)
    assert "\n" not in str(caught.value)


def test_the_second_mask_is_named():
    with pytest.raises(UserError, match=r"mask\.1"):
        collator([SHORT_RANGE, {**SHORT_RANGE, "num_blocks": -1}])


def test_unknown_length_matching_and_negative_seed():
    with pytest.raises(UserError, match="size_sorted, random, truncate"):
        collator(length_matching="head")
    with pytest.raises(UserError, match="seed must be 0 or more"):
        collator(seed=-1)
