import numpy as np
import pytest
import torch

from src.masks.utils import apply_masks, generator, pick, tubes_to_tokens
from src.utils.token_grid import Grid


def test_apply_masks_gathers_and_stacks_along_the_batch():
    x = torch.randn(2, 5, 3, requires_grad=True)
    masks = [torch.tensor([[0, 2], [1, 4]]), torch.tensor([[3, 4], [0, 1]])]
    kept = apply_masks(x, masks)
    assert kept.shape == (4, 2, 3)
    assert torch.equal(kept[1], x[1, [1, 4]])
    assert torch.equal(kept[2], x[0, [3, 4]])
    kept.sum().backward()
    assert x.grad[:, :, 0].tolist() == [[1, 0, 1, 1, 1], [1, 2, 0, 0, 1]]


def test_apply_masks_as_a_list_and_with_one_mask():
    x = torch.randn(2, 5, 3)
    short, long = torch.tensor([[0], [1]]), torch.tensor([[0, 2], [1, 4]])
    assert [tuple(part.shape) for part in apply_masks(x, [short, long], concat=False)] == [(2, 1, 3), (2, 2, 3)]
    assert torch.equal(apply_masks(x, long), apply_masks(x, [long]))
    with pytest.raises(ValueError, match="concat=False"):
        apply_masks(x, [short, long])


def test_grid():
    grid = Grid.from_clip((32, 48), 6, (8, 16), 3)
    assert (grid.t, grid.h, grid.w, grid.area, grid.size) == (2, 4, 3, 12, 24)


def test_pick_is_uniform_over_what_is_allowed():
    allowed = np.array([[1, 1, 0, 1, 0, 1]] * 6000, dtype=bool)
    chosen = pick(allowed, 2, generator(0, 1))
    assert chosen.shape == (6000, 2)
    assert (np.diff(chosen, axis=1) > 0).all()
    share = np.bincount(chosen.ravel(), minlength=6) / 6000
    assert share == pytest.approx([0.5, 0.5, 0, 0.5, 0, 0.5], abs=0.03)
    assert pick(allowed, 2, None)[0].tolist() == [0, 1]
    assert pick(allowed, 4, generator(0))[0].tolist() == [0, 1, 3, 5]


def test_tubes_to_tokens():
    assert tubes_to_tokens(np.array([[0, 3]]), Grid(3, 2, 2)).tolist() == [[0, 3, 4, 7, 8, 11]]
