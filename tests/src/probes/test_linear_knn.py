import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV

from src.probes import linear_knn
from src.probes.linear_knn import ALPHAS, NEIGHBOURS, TEMPERATURE, Standardizer, knn_probe, linear_probe


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
    standardize = Standardizer(np.array([[0.0, 5], [2, 5]]))
    assert standardize(np.array([[0.0, 5], [2, 5], [4, 9]])).tolist() == [[-1, 0], [1, 0], [3, 0]]


def votes(similarity, labels, k):
    """The rule in words: the k nearest, each with its weight."""
    nearest = np.argsort(-similarity)[:k]
    return np.bincount(labels[nearest], np.exp(similarity[nearest] / TEMPERATURE), minlength=5).argmax()


def test_few_samples_are_all_left_out_once():
    """Against the definitions: every sample asked of all others, and sklearn's own closed form."""
    x, y, x_val, _ = data(shuffle=False)
    x, x_val = x + 300 * x.std(0) * np.random.default_rng(1).random(x.shape), x_val  # not separable
    standardize = Standardizer(x)
    unit = [standardize(z) / np.linalg.norm(standardize(z), axis=1, keepdims=True) for z in (x, x_val)]
    own = unit[0] @ unit[0].T
    np.fill_diagonal(own, -np.inf)
    right = {k: sum(votes(own[i], y, k) == y[i] for i in range(len(y))) for k in NEIGHBOURS}
    k = max(NEIGHBOURS, key=right.__getitem__)
    assert len(set(right.values())) == len(NEIGHBOURS)
    result = knn_probe(x, y, x_val, 5, chunk=64)
    assert result.note == f"cosine, k {k} by leave-one-out on train"
    assert result.predictions.tolist() == [votes(row, y, k) for row in unit[1] @ unit[0].T]

    ridge = RidgeClassifierCV(alphas=ALPHAS).fit(standardize(x), y)
    result = linear_probe(x, y, x_val)
    assert result.note == f"ridge, alpha {ridge.alpha_:g} by leave-one-out on train"
    assert result.predictions.tolist() == ridge.predict(standardize(x_val)).tolist()


def test_of_many_samples_some_are_left_out_and_memory_holds_chunks(monkeypatch):
    """What is counted are cosines and rows: their number is what time and memory follow from."""
    x, y, x_val, y_val = data(shuffle=False)
    whole = knn_probe(x, y, x_val, 5)
    asked, rows = [], []
    vote, call = linear_knn._vote, Standardizer.__call__
    monkeypatch.setattr(linear_knn, "_vote", lambda s, *rest: asked.append(s.shape) or vote(s, *rest))
    monkeypatch.setattr(Standardizer, "__call__", lambda self, z: rows.append(len(z)) or call(self, z))
    for name, value in (("MAX_LOO_SAMPLES", 50), ("CHUNK_COSINES", 3000), ("CHUNK_ROWS", 64)):
        monkeypatch.setattr(linear_knn, name, value)
    result = knn_probe(x, y, x_val, 5, seed=1)
    assert (result.predictions == whole.predictions).all()
    assert result.note.endswith("by leave-one-out on train (50 of 400 samples)")
    assert sum(q for q, _ in asked) == 50 + 200 and {m for _, m in asked} == {400} and max(q for q, _ in asked) == 7
    assert max(rows) == 64

    rows.clear()
    result = linear_probe(x, y, x_val, seed=1)
    assert max(rows) == 64
    alpha = float(result.note.split()[2])
    assert alpha in ALPHAS and result.note.endswith("on train (50 of 400 samples)")
    standardize = Standardizer(x)
    ridge = RidgeClassifier(alpha=alpha).fit(standardize(x), y)
    assert result.predictions.tolist() == ridge.predict(standardize(x_val)).tolist()
    assert (result.predictions == y_val).mean() > 0.97


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_asks_for_its_share_only(rank, monkeypatch):
    x, y, x_val, _ = data(shuffle=False)
    asked, vote = [], linear_knn._vote
    monkeypatch.setattr(linear_knn, "_vote", lambda s, *rest: asked.append(len(s)) or vote(s, *rest))
    monkeypatch.setattr(linear_knn, "MAX_LOO_SAMPLES", 50)
    monkeypatch.setattr(linear_knn, "current", lambda: (rank, 2, None))
    monkeypatch.setattr(linear_knn, "gather_objects", lambda own: [own, own])
    knn_probe(x, y, x_val, 5, shared=True)
    assert sum(asked) == 25 + len(x_val) // 2


def test_the_fit_to_all_is_sklearns(monkeypatch):
    """On classes that overlap, with unequal shares and labels that are no range."""
    rng = np.random.default_rng(3)
    labels = rng.choice([2, 3, 9], 500, p=[0.6, 0.3, 0.1])
    x = (0.5 * rng.standard_normal((10, 12))[labels] + rng.standard_normal((500, 12))).astype(np.float32)
    monkeypatch.setattr(linear_knn, "CHUNK_ROWS", 64)
    standardize = Standardizer(x)
    for alpha in (ALPHAS[0], ALPHAS[-3]):
        want = RidgeClassifier(alpha=alpha).fit(standardize(x), labels).predict(standardize(x))
        assert linear_knn._fit_ridge(x, labels, standardize, alpha)(standardize(x)).tolist() == want.tolist()
    assert len(set(want)) > 1 and (want == labels).mean() < 0.95
