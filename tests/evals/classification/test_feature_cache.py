import numpy as np
import pytest
import torch
from torch import nn

from evals.classification import feature_cache as features
from evals.classification.feature_cache import CachedSource, CacheWriter, FeatureBatch, FeatureTable
from src.utils.errors import UserError


def write(folder, key, count=10, leave_out=(), close=True):
    writer = CacheWriter(folder, key, count, is_main=True, barrier=lambda: None)
    writer.open((2, 3, 4))
    for i in range(count):
        if i not in leave_out:
            views = [torch.full((1, 3, 4), i + v / 2) for v in range(2)]
            writer.write(FeatureBatch(views, torch.tensor([i % 3]), torch.tensor([i])))
    if close:
        writer.close()


def test_cache_gives_back_what_was_written(tmp_path):
    write(tmp_path / "c", "k", leave_out=(4,))
    table = features.load_cache(tmp_path / "c", "k")
    assert table.ids.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert table.features_MVLD.shape == (10, 2, 3, 4) and isinstance(table.features_MVLD, np.memmap)
    assert table.features_MVLD[7, 1, 0, 0] == 7.5 and table.labels_M[7] == 1
    np.testing.assert_allclose(table.pooled(chunk=4)[:, 0], table.ids + 0.25)


def test_stale_half_written_or_absent_cache_is_no_cache(tmp_path):
    assert features.load_cache(tmp_path / "c", "k") is None
    write(tmp_path / "c", "k", close=False)
    assert features.load_cache(tmp_path / "c", "k") is None
    write(tmp_path / "c", "k")
    assert features.load_cache(tmp_path / "c", "other") is None
    write(tmp_path / "c", "other", count=5)  # replaces it
    assert features.load_cache(tmp_path / "c", "k") is None
    assert len(features.load_cache(tmp_path / "c", "other").labels_M) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_features_that_do_not_fit_half_precision_are_refused(tmp_path):
    writer = CacheWriter(tmp_path / "c", "k", 1, is_main=True, barrier=lambda: None)
    writer.open((1, 1, 1))
    with pytest.raises(UserError, match=r"data\.cache_features: false"):
        writer.write(FeatureBatch([torch.full((1, 1, 1), 1e6)], torch.tensor([0]), torch.tensor([0])))


def test_a_cache_larger_than_the_disk_is_refused(tmp_path):
    with pytest.raises(UserError, match="GB free"):
        features.check_space(tmp_path, 10**18)


def test_digests_follow_content_not_names(tmp_path):
    torch.manual_seed(0)
    a = nn.Linear(3, 3)
    b = nn.Linear(3, 3)
    b.load_state_dict(a.state_dict())
    assert features.module_digest(a) == features.module_digest(b)
    with torch.no_grad():
        b.weight[0, 0] += 1e-6
    assert features.module_digest(a) != features.module_digest(b)
    assert features.digest({"a": 1, "b": 2}) == features.digest({"b": 2, "a": 1}) != features.digest({"a": 1, "b": 3})

    file = tmp_path / "v.mp4"
    file.write_bytes(b"12")
    files, labels = [str(file)], np.array([1])
    before = features.list_digest(files, labels)
    assert before == features.list_digest(files, labels)
    assert before != features.list_digest(files, np.array([2]))
    file.write_bytes(b"123")
    assert before != features.list_digest(files, labels)


def test_batches_are_shared_out_without_padding():
    table = FeatureTable(np.arange(23.0).reshape(23, 1, 1, 1), np.arange(23), np.ones(23, bool), "")

    def ids(rank, world_size, batch_size, epoch, shuffle=True):
        source = CachedSource(table, table.ids, batch_size, shuffle=shuffle, rank=rank, world_size=world_size)
        batches = list(source.epoch(epoch))
        assert len(batches) == len(source)
        for b in batches:
            assert (b.views_BLD[0][:, 0, 0] == b.ids_B).all() and (b.labels_B == b.ids_B).all()
        return [set(b.ids_B.tolist()) for b in batches]

    one, two = ids(0, 1, 8, 3), [ids(rank, 2, 4, 3) for rank in range(2)]
    assert [a | b for a, b in zip(*two)] == one and not any(a & b for a, b in zip(*two))
    assert set().union(*one) == set(range(23)) and one != ids(0, 1, 8, 4)
    assert ids(0, 1, 8, 0, shuffle=False)[2] == set(range(16, 23))
