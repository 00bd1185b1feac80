import numpy as np
import pytest

from evals.extraction.feature_file import FeatureFile
from src.utils.errors import UserError
from tests.evals.extraction.read_features import read


def rows(start, stop):
    numbers = np.arange(start, stop)
    return {
        "features": np.repeat(numbers[:, None], 3, 1).astype(np.float32),
        "frames": np.stack([numbers, numbers + 1], 1),
        "start_seconds": numbers / 7,
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_rows_come_back_and_those_cut_do_not(tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    with FeatureFile(path, {"videos": ["ä b.mp4"]}) as file:
        file.append(rows(0, 5))
        file.append(rows(90, 97))
        file.cut(5)
        file.append(rows(5, 6))
        file.finish()
    arrays, about = read(path)
    assert about == {"videos": ["ä b.mp4"]}
    expected = rows(0, 6)
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array), name
    assert list(tmp_path.iterdir()) == [path]


def test_unfinished_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), FeatureFile(tmp_path / "f.npz", {}) as file:
        file.append(rows(0, 5))
        raise KeyError("a bug")
    assert list(tmp_path.iterdir()) == []


def test_rows_of_another_shape_are_a_bug(tmp_path):
    with FeatureFile(tmp_path / "f.npz", {}) as file:
        file.append(rows(0, 5))
        with pytest.raises(ValueError, match="features: rows of"):
            file.append({**rows(0, 5), "features": np.zeros((5, 4), np.float32)})


def test_a_full_disk_is_one_line(tmp_path):
    """A folder in the place of the output is a write that fails at the last moment, as a full disk is."""
    (tmp_path / "f.npz").mkdir()
    with (
        pytest.raises(UserError, match=r"--out .*f\.npz: cannot be written: Is a directory"),
        FeatureFile(tmp_path / "f.npz", {}) as file,
    ):
        file.append(rows(0, 5))
        file.finish()
