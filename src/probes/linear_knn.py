"""Linear probe and k nearest neighbours (kNN) on mean-pooled features.

Everything that is chosen (penalty, k) is chosen on the training samples alone, by leave-one-out over at most
MAX_LOO_SAMPLES of them. So the work grows with the number of samples, not with its square, and memory holds chunks
beside the features. ImageNet's 1.28 million training and 50,000 validation images are 9e10 cosines.
Legend: M samples, Q of them that are asked about, D width, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from src.probes.sample_list import draw_subset
from src.utils.distributed import current, gather_objects

ALPHAS = tuple(10.0**e for e in range(-2, 6))
NEIGHBOURS = (1, 5, 10, 20, 50)
TEMPERATURE = 0.07  # weight of a neighbour is exp(cosine / TEMPERATURE), as in Wu et al. 2018
MAX_LOO_SAMPLES = 20_000  # training samples that are left out, one by one, to choose by; drawn by the seed from more
CHUNK_ROWS = 32_768  # samples that are standardised at once, in double precision
CHUNK_COSINES = 2**26  # at once, 256 MiB


@dataclass(frozen=True)
class ProbeResult:
    """Predictions (M,) for the validation samples and, in words, what was chosen on the training samples."""

    predictions: np.ndarray
    note: str


class Standardizer:
    """Subtracts the training mean and divides by the training deviation; constant features become zero."""

    def __init__(self, train_MD: np.ndarray) -> None:
        self.mean = train_MD.mean(0, dtype=np.float64)
        squares = sum((np.square(chunk - self.mean)).sum(0) for chunk in chunks(train_MD, CHUNK_ROWS))
        std = np.sqrt(squares / len(train_MD))
        self.scale = np.where(std > 1e-6 * (np.abs(self.mean) + 1e-12), std, np.inf)

    def __call__(self, x_MD: np.ndarray) -> np.ndarray:
        """Standardised features, float64 (M, D)."""
        return (x_MD - self.mean) / self.scale

    def unit(self, x_MD: np.ndarray) -> np.ndarray:
        """Standardised features of length 1, float32 (M, D)."""
        out = np.empty(x_MD.shape, np.float32)
        for rows, chunk in zip(chunks(out, CHUNK_ROWS), chunks(x_MD, CHUNK_ROWS)):
            standardized = self(chunk)
            rows[:] = standardized / np.maximum(np.linalg.norm(standardized, axis=1, keepdims=True), 1e-12)
        return out


def chunks(x_MD: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Views of consecutive rows."""
    return (x_MD[start : start + rows] for start in range(0, len(x_MD), rows))


def _by(count: int, total: int) -> str:
    return "by leave-one-out on train" + (f" ({count} of {total} samples)" if count < total else "")


def linear_probe(train_MD: np.ndarray, labels_M: np.ndarray, val_MD: np.ndarray, seed: int = 0) -> ProbeResult:
    """Ridge classifier on standardised features, its penalty by leave-one-out on the training samples (closed form).

    Where not all of them are left out, the penalty is chosen on the drawn ones alone, and the classifier is fitted
    to all.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import RidgeClassifierCV

    standardize, chosen = Standardizer(train_MD), draw_subset(train_MD, MAX_LOO_SAMPLES, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = RidgeClassifierCV(alphas=ALPHAS).fit(standardize(train_MD[chosen]), labels_M[chosen])
    predict: Callable[[np.ndarray], np.ndarray] = model.predict
    if len(chosen) < len(train_MD):
        predict = _fit_ridge(train_MD, labels_M, standardize, model.alpha_)
    predictions = np.concatenate([predict(standardize(chunk)) for chunk in chunks(val_MD, CHUNK_ROWS)])
    return ProbeResult(predictions, f"ridge, alpha {model.alpha_:g} {_by(len(chosen), len(train_MD))}")


def _fit_ridge(
    train_MD: np.ndarray, labels_M: np.ndarray, standardize: Standardizer, alpha: float
) -> Callable[[np.ndarray], np.ndarray]:
    """What sklearn's RidgeClassifier fits, by the normal equations summed over chunks; returns its `predict`.

    Targets are 1 for a sample's class and -1 for others. Standardised features have mean zero, so that the intercept
    is the targets' mean and their sum with the features needs those of a class alone.
    """
    classes, which_M = np.unique(labels_M, return_inverse=True)
    D = train_MD.shape[1]
    gram_DD, sums_CD = alpha * np.eye(D), np.zeros((len(classes), D))
    for chunk, which in zip(chunks(train_MD, CHUNK_ROWS), chunks(which_M, CHUNK_ROWS)):
        x = standardize(chunk)
        gram_DD += x.T @ x
        order = which.argsort(kind="stable")
        present, starts = np.unique(which[order], return_index=True)
        sums_CD[present] += np.add.reduceat(x[order], starts)
    weights_DC = 2 * np.linalg.solve(gram_DD, sums_CD.T)
    intercept_C = 2 * np.bincount(which_M) / len(which_M) - 1
    return lambda x_MD: classes[(x_MD @ weights_DC + intercept_C).argmax(1)]


def knn_probe(
    train_MD: np.ndarray,
    labels_M: np.ndarray,
    val_MD: np.ndarray,
    num_classes: int,
    chunk: int = 1024,
    seed: int = 0,
    shared: bool = False,
) -> ProbeResult:
    """Weighted vote of the k nearest training samples (cosine, standardised features), k by leave-one-out on train.

    Args:
        chunk: most queries at once.
        seed: draws the queries that k is chosen by, where there are more than MAX_LOO_SAMPLES training samples.
        shared: every process of the run calls this with the same features, and the queries are shared out. Otherwise
            this process works alone.
    """
    rank, world_size = current()[:2] if shared else (0, 1)
    standardize = Standardizer(train_MD)
    bank_MD, chosen = standardize.unit(train_MD), draw_subset(train_MD, MAX_LOO_SAMPLES, seed)
    choices = [k for k in NEIGHBOURS if k < len(train_MD)] or [1]
    rows = min(chunk, max(1, CHUNK_COSINES // len(train_MD)))

    def ask(queries_QD: np.ndarray, ks: list[int], own_Q: np.ndarray | None = None) -> Iterator[list[np.ndarray]]:
        """Votes for each k, a chunk of queries after the other; `own_Q`: where in the bank a query itself is."""
        for start in range(0, len(queries_QD), rows):
            similarity = queries_QD[start : start + rows] @ bank_MD.T
            if own_Q is not None:  # a sample is no neighbour of its own
                similarity[np.arange(len(similarity)), own_Q[start : start + rows]] = -np.inf
            yield _vote(similarity, labels_M, ks, num_classes)

    mine = np.array_split(chosen, world_size)[rank]
    votes = [np.concatenate(v) for v in zip(*ask(bank_MD[mine], choices, mine))] or [np.empty(0)] * len(choices)
    right = [int((v == labels_M[mine]).sum()) for v in votes]
    everyone = gather_objects(right) if shared else [right]
    k = choices[int(np.sum(everyone, axis=0).argmax())]

    queries = np.array_split(val_MD, world_size)[rank]
    own = np.concatenate([np.empty(0, np.int64), *(votes for (votes,) in ask(standardize.unit(queries), [k]))])
    predictions = np.concatenate(gather_objects(own) if shared else [own])
    return ProbeResult(predictions, f"cosine, k {k} {_by(len(chosen), len(train_MD))}")


def _vote(similarity_QM: np.ndarray, labels_M: np.ndarray, choices: list[int], num_classes: int) -> list[np.ndarray]:
    """Predictions (Q,) for each k in `choices`, from similarities of Q queries to M training samples."""
    k_max = min(max(choices), similarity_QM.shape[1])
    closeness, nearest = (x.numpy() for x in torch.from_numpy(similarity_QM).topk(k_max))  # in order, the nearest first
    weights = np.exp(closeness / TEMPERATURE)
    out = []
    for k in choices:
        votes = np.zeros((len(similarity_QM), num_classes))
        rows = np.repeat(np.arange(len(votes)), min(k, k_max))
        np.add.at(votes, (rows, labels_M[nearest[:, :k]].ravel()), weights[:, :k].ravel())
        out.append(votes.argmax(1))
    return out
