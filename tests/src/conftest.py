import re
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def published_shapes():
    """`published_shapes(name)`: {tensor's name: shape} of a published file, from tests/golden/<name>.txt."""

    def read(name):
        shapes = {}
        for line in (Path(__file__).parents[1] / "golden" / f"{name}.txt").read_text().splitlines():
            key, shape = line.split()
            found = re.search(r"\[(\d+)-(\d+)\]", key)
            numbers = range(int(found[1]), int(found[2]) + 1) if found else [None]
            for i in numbers:
                full = key if i is None else key.replace(found[0], str(i))
                shapes[full] = tuple(map(int, shape.split(",")))
        return shapes

    return read
