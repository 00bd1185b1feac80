"""A rendered set that is not there is an error with the command that makes it, in pretraining and evaluation."""

from __future__ import annotations

import io
import tarfile

import pytest

from src.datasets.data_manager import init_data
from src.probes.sample_list import read_sample_list
from src.utils.errors import UserError


def test_a_set_that_is_not_there_names_its_command(tmp_path):
    shards = f"{tmp_path}/metaworld/train-*.tar"
    command = rf"metaworld does not exist: make it with python -m src\.datasets\.embedded\.metaworld --out {tmp_path}"
    with pytest.raises(UserError, match=command):
        init_data(dataset_type="MetaWorldDataset", datasets=[shards], batch_size=1)
    with pytest.raises(UserError, match=command):
        read_sample_list(shards, "MetaWorldDataset", "data.dataset_train")


def test_a_set_that_is_there_is_read_as_shards(tmp_path, mp4_list):
    with tarfile.open(tmp_path / "train-000000.tar", "w") as archive:
        for i in range(3):
            video = (mp4_list.parent / f"video {i}.mp4").read_bytes()
            for suffix, data in (("mp4", video), ("cls", str(2 * i + 1).encode()), ("json", b"{}"), ("npz", b"x")):
                info = tarfile.TarInfo(f"{i:06d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    how = {"batch_size": 3, "num_frames": 4, "sampling_rate": 1, "training": False}
    (batch,) = list(init_data(dataset_type="MetaWorldDataset", datasets=[tmp_path / "train-*.tar"], **how))
    assert sorted(batch.labels.tolist()) == [1, 3, 5] and batch.clips[0].shape == (3, 3, 4, 64, 64)
    samples = read_sample_list(f"{tmp_path}/train-*.tar", "MetaWorldDataset", "data.dataset_train")
    assert sorted(samples.labels.tolist()) == [1, 3, 5]
