import pytest

from src.datasets.embedded.generate import write_motion


@pytest.fixture(scope="session")
def lists(tmp_path_factory):
    root = tmp_path_factory.mktemp("motion")
    root.rmdir()
    write_motion(root, train=16, val=16, workers=1)
    return root
