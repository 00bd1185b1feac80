import numpy as np
import pytest

from src.probes.linear_knn import knn_probe, linear_probe, standardize


def data(shuffle):
    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((5, 24))
    labels = rng.integers(0, 5, 600)
    x = centres[labels] + rng.standard_normal((600, 24))
    x = np.concatenate([x * 100 + 7, np.full((600, 1), 4.0)], axis=1).astype(
        np.float32
    )  # badly scaled, one dead feature
    if shuffle:
        labels = rng.permutation(labels)
    return x[:400], labels[:400], x[400:], labels[400:]


@pytest.mark.parametrize("probe", [linear_probe, lambda *a: knn_probe(*a, num_classes=5, chunk=64)])
def test_separable_classes_are_found_and_shuffled_labels_are_not(probe):
    x, y, x_val, y_val = data(shuffle=False)
    assert (probe(x, y, x_val).predictions == y_val).mean() > 0.97
    x, y, x_val, y_val = data(shuffle=True)
    assert (probe(x, y, x_val).predictions == y_val).mean() < 0.2 + 3 * np.sqrt(0.16 / 200)


def test_knn_by_hand():
    x = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    y = np.array([0, 1, 2, 3])
    assert knn_probe(x, y, 2 * x, 4).predictions.tolist() == [0, 1, 2, 3]


def test_standardise_uses_the_training_samples_only():
    train, val = standardize(np.array([[0.0, 5], [2, 5]]), np.array([[4.0, 9]]))
    assert train.tolist() == [[-1, 0], [1, 0]] and val.tolist() == [[3, 0]]
