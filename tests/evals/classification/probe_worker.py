"""One process of a probe's training on made-up features: `probe_worker.py OUT RANK WORLD PORT BATCH`."""

import pickle
import sys
from pathlib import Path

import numpy as np
import torch

from evals.classification.feature_cache import CachedSource, FeatureTable
from evals.classification.probe_checkpoint import ProbeSettings
from evals.classification.probe_trainer import train_probe
from src.utils.distributed import current, init_distributed, shutdown

SETTINGS = ProbeSettings(
    embed_dim=16, num_heads=2, num_classes=4, num_epochs=3, lrs=(3e-3, 1e-3), weight_decays=(0.01,), start_lr=3e-3
)


def make_table(count: int, seed: int, noise: float = 1.0, views: int = 2) -> FeatureTable:
    """Tokens around a direction of their class, in half of the tokens; every 13th sample is missing."""
    rng = np.random.default_rng(seed)
    centres = 2 * np.random.default_rng(99).standard_normal((4, 16))
    labels = rng.integers(0, 4, count)
    x = noise * rng.standard_normal((count, views, 6, 16))
    x[:, :, :3] += centres[labels][:, None, None]
    present = np.arange(count) % 13 != 12
    return FeatureTable(x.astype(np.float16), labels, present, f"table {count} {seed}")


def run(folder: Path, batch_size: int, resume: bool = False, settings: ProbeSettings = SETTINGS, log=lambda text: None):
    """Train on 75 samples, choose on 18, measure on 53: nothing divides by anything."""
    rank, world_size, _ = current()
    train, val = make_table(101, 0), make_table(57, 1)
    ranks = {"rank": rank, "world_size": world_size}
    return train_probe(
        CachedSource(train, train.ids[:75], batch_size, shuffle=True, **ranks),
        CachedSource(train, train.ids[75:], batch_size, shuffle=False, **ranks),
        CachedSource(val, val.ids, batch_size, shuffle=False, **ranks),
        settings,
        device=torch.device("cpu"),
        checkpoint_path=folder / "p-latest.pth.tar",
        csv_path=folder / "p_r0.csv",
        features_key=train.key,
        resume=resume,
        is_main=rank == 0,
        log=log,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, (rank, world_size, port, batch_size) = Path(sys.argv[1]), map(int, sys.argv[2:])
    init_distributed(rank, world_size, port, device="cpu")
    outcome = run(out, batch_size)
    (out / f"outcome-{rank}.pkl").write_bytes(pickle.dumps(outcome))
    shutdown()
