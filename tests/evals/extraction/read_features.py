"""Files of features, read by the formats' own libraries."""

import json

import numpy as np
from safetensors import safe_open


def read(path):
    """Arrays and description."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = dict(file)
        return arrays, json.loads(str(arrays.pop("about")))
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["about"])  # noqa: SIM118
