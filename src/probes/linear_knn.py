"""Linear probe and k nearest neighbours (kNN) on mean-pooled features.

Everything that is chosen (regularisation, k) is chosen on the training samples alone.
Legend: M samples, D width, C classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

ALPHAS = tuple(10.0**e for e in range(-2, 6))
NEIGHBOURS = (1, 5, 10, 20, 50)
TEMPERATURE = 0.07  # weight of a neighbour is exp(cosine / TEMPERATURE), as in Wu et al. 2018


@dataclass(frozen=True)
class ProbeResult:
    """Predictions (M,) for the validation samples and, in words, what was chosen on the training samples."""

    predictions: np.ndarray
    note: str


def standardize(train_MD: np.ndarray, val_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subtract the training mean and divide by the training deviation; constant features become zero."""
    mean = train_MD.mean(0, dtype=np.float64)
    std = train_MD.std(0, dtype=np.float64)
    scale = np.where(std > 1e-6 * (np.abs(mean) + 1e-12), std, np.inf)
    return ((train_MD - mean) / scale), ((val_MD - mean) / scale)


def linear_probe(train_MD: np.ndarray, labels_M: np.ndarray, val_MD: np.ndarray) -> ProbeResult:
    """Ridge classifier on standardised features, its penalty by leave-one-out on the training samples (closed form)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import RidgeClassifierCV

    train_MD, val_MD = standardize(train_MD, val_MD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = RidgeClassifierCV(alphas=ALPHAS).fit(train_MD, labels_M)
    return ProbeResult(np.asarray(model.predict(val_MD)), f"ridge, alpha {model.alpha_:g} by leave-one-out on train")


def knn_probe(
    train_MD: np.ndarray, labels_M: np.ndarray, val_MD: np.ndarray, num_classes: int, chunk: int = 1024
) -> ProbeResult:
    """Weighted vote of the k nearest training samples (cosine, standardised features), k by leave-one-out on train."""
    train_MD, val_MD = (_unit(x) for x in standardize(train_MD, val_MD))
    choices = [k for k in NEIGHBOURS if k < len(train_MD)] or [1]
    right = np.zeros(len(choices))
    for start in range(0, len(train_MD), chunk):
        similarity = train_MD[start : start + chunk] @ train_MD.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf  # a sample is no neighbour of its own
        votes = _vote(similarity, labels_M, choices, num_classes)
        right += [(v == labels_M[start : start + chunk]).sum() for v in votes]
    k = choices[int(right.argmax())]
    predictions = [
        _vote(val_MD[start : start + chunk] @ train_MD.T, labels_M, [k], num_classes)[0]
        for start in range(0, len(val_MD), chunk)
    ]
    return ProbeResult(np.concatenate(predictions), f"cosine, k {k} by leave-one-out on train")


def _unit(x_MD: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x_MD, axis=1, keepdims=True)
    return (x_MD / np.maximum(norm, 1e-12)).astype(np.float32)


def _vote(similarity_QM: np.ndarray, labels_M: np.ndarray, choices: list[int], num_classes: int) -> list[np.ndarray]:
    """Predictions (Q,) for each k in `choices`, from similarities of Q queries to M training samples."""
    k_max = min(max(choices), similarity_QM.shape[1])
    nearest = np.argpartition(-similarity_QM, k_max - 1, axis=1)[:, :k_max]
    closeness = np.take_along_axis(similarity_QM, nearest, axis=1)
    order = np.argsort(-closeness, axis=1, kind="stable")
    nearest, closeness = np.take_along_axis(nearest, order, axis=1), np.take_along_axis(closeness, order, axis=1)
    weights = np.exp(closeness / TEMPERATURE)
    out = []
    for k in choices:
        votes = np.zeros((len(similarity_QM), num_classes))
        rows = np.repeat(np.arange(len(votes)), min(k, k_max))
        np.add.at(votes, (rows, labels_M[nearest[:, :k]].ravel()), weights[:, :k].ravel())
        out.append(votes.argmax(1))
    return out
