"""How hard rendered clips are: what simple features, one frame and a small supervised network get out of them.

    python -m benchmarks.scene_difficulty data/metaworld --name "Meta-World, mild" --pairs

Everything is trained on the set's `train` and reported once on its `test`. Ridge's penalty is chosen within the
training clips; the network's length is fixed beforehand. Rows: ridge on the mean frame, the first, the last and one
random frame, on frame differences and on their size; a small 3-D CNN; the same CNN where every clip is one of its
frames, repeated. With --pairs classes 2k and 2k + 1 are one scene in two directions: the share of right scenes, and of
right directions among these (chance 50), are given too. Replaces the set's rows in docs/results/scene_difficulty.csv.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from torch import nn
from torch.nn import functional as F

from evals.classification.results import wilson_interval
from src.datasets.data_manager import init_data
from src.utils.environment import describe_environment
from src.utils.progress import Progress

CELLS, EPOCHS, BATCH = 16, 30, 32
FIELDS = (
    "set",
    "row",
    "accuracy",
    "ci95_low",
    "ci95_high",
    "scene",
    "direction",
    "train",
    "test",
    "classes",
    "processor",
)


def load(folder: Path, split: str, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips (N, T, H, W, 3) uint8 and labels (N,) of a split's shards, from each clip's beginning."""
    loader = init_data(
        dataset_type="WebVideoDataset",
        datasets=[f"{folder}/{split}-*.tar"],
        batch_size=32,
        num_frames=frames,
        sampling_rate=1,
        random_clip_sampling=False,
        training=False,
    )
    clips, labels = [], []
    for batch in loader:
        clips.append(batch.clips[0].permute(0, 2, 3, 4, 1).numpy())
        labels.append(batch.labels.numpy())
    return np.concatenate(clips), np.concatenate(labels)


def small(clips: np.ndarray) -> np.ndarray:
    """Grey clips in 0..1, averaged over CELLS x CELLS cells: (N, T, CELLS, CELLS)."""
    count, frames, height, width, _ = clips.shape
    grey = clips.mean(axis=-1, dtype=np.float32) / 255
    return grey.reshape(count, frames, CELLS, height // CELLS, CELLS, width // CELLS).mean(axis=(3, 5))


def one_frame(clips: np.ndarray, seed: int) -> np.ndarray:
    """One random frame of each clip: (N, H, W, 3)."""
    which = np.random.default_rng(seed).integers(0, clips.shape[1], len(clips))
    return clips[np.arange(len(clips)), which]


FEATURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ridge, mean frame": lambda clips: small(clips).mean(axis=1),
    "ridge, first frame": lambda clips: small(clips[:, :1]),
    "ridge, last frame": lambda clips: small(clips[:, -1:]),
    "ridge, frame differences": lambda clips: np.diff(small(clips)[:, ::2], axis=1),
    "ridge, size of frame differences": lambda clips: np.abs(np.diff(small(clips)[:, ::2], axis=1)),
}


def ridge(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predictions (M,) of a ridge classifier on features (N, ...) -> (M, ...)."""
    train, test = (x.reshape(len(x), -1) for x in (train, test))
    mean, scale = train.mean(axis=0), train.std() + 1e-8
    model = RidgeClassifierCV(np.logspace(-1, 5, 13)).fit((train - mean) / scale, labels)
    return model.predict((test - mean) / scale)


class SmallCNN(nn.Sequential):
    """Four 3-D convolutions and a linear layer."""

    def __init__(self, classes: int) -> None:
        widths, strides = (3, 24, 48, 96, 128), ((1, 2, 2), 2, 2, 2)
        layers: list[nn.Module] = []
        for before, after, stride in zip(widths, widths[1:], strides):
            layers += [nn.Conv3d(before, after, 3, stride, 1), nn.BatchNorm3d(after), nn.ReLU()]
        super().__init__(
            *layers, nn.AdaptiveAvgPool3d((2, 2, 2)), nn.Flatten(), nn.Dropout(0.3), nn.Linear(8 * widths[-1], classes)
        )


def supervised(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, seed: int, what: str
) -> np.ndarray:
    """Predictions (M,) of a SmallCNN trained on clips (N, T, H, W, 3), shifted and with colours exchanged."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = SmallCNN(classes)
    steps = EPOCHS * (len(train) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    target = torch.from_numpy(labels)
    with Progress(steps, what=what) as progress:
        for _ in range(EPOCHS):
            order = torch.randperm(len(train))[: len(train) // BATCH * BATCH]
            for batch in order.view(-1, BATCH):
                clips = normalized(train[batch.numpy()])[:, torch.randperm(3)]
                clips = torch.roll(clips, rng.integers(-4, 5, 2).tolist(), (3, 4))
                loss = F.cross_entropy(model(clips), target[batch], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.advance(1)
    model.eval()
    with torch.no_grad():
        return torch.cat(
            [model(normalized(part)).argmax(1) for part in np.array_split(test, -(-len(test) // 64))]
        ).numpy()


def normalized(clips: np.ndarray) -> torch.Tensor:
    """Clips as (B, 3, T, H, W), each colour of each clip with mean 0."""
    tensor = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 255
    return (tensor - tensor.mean(dim=(2, 3, 4), keepdim=True)) / 0.2


def row(name: str, truth: np.ndarray, found: np.ndarray, pairs: bool) -> dict[str, object]:
    """What is written of one row, in %."""
    right = int((truth == found).sum())
    low, high = wilson_interval(right, len(truth))
    made: dict[str, object] = {"row": name, "accuracy": f"{100 * right / len(truth):.1f}"}
    made |= {"ci95_low": f"{100 * low:.1f}", "ci95_high": f"{100 * high:.1f}"}
    if pairs:
        scene = truth // 2 == found // 2
        made |= {"scene": f"{100 * scene.mean():.1f}", "direction": f"{100 * (truth == found)[scene].mean():.1f}"}
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scene_difficulty", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a rendered set")
    parser.add_argument("--name", required=True, help="what the set is called in the csv")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--pairs", action="store_true", help="labels are 2 x scene + direction")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results/scene_difficulty.csv"))
    args = parser.parse_args()
    (train, labels), (test, truth) = (load(args.folder, split, args.frames) for split in ("train", "test"))
    classes = int(labels.max()) + 1
    rows = []
    for name, features in FEATURES.items():
        rows.append(row(name, truth, ridge(features(train), labels, features(test)), args.pairs))
    stills = [one_frame(clips, args.seed) for clips in (train, test)]
    found = ridge(*(small(stills[0][:, None]), labels), small(stills[1][:, None]))
    rows.append(row("ridge, a random frame", truth, found, args.pairs))
    repeated = [np.repeat(still[:, None], args.frames, axis=1) for still in stills]
    for name, clips in (("supervised 3-D CNN", (train, test)), ("supervised 3-D CNN, one frame repeated", repeated)):
        found = supervised(clips[0], labels, clips[1], classes, args.seed, name)
        rows.append(row(name, truth, found, args.pairs))
        print(rows[-1], flush=True)
    about = {"set": args.name, "train": len(train), "test": len(test), "classes": classes}
    about["processor"] = describe_environment()["processor"]
    kept: list[dict] = []
    if args.out.exists():
        with args.out.open(newline="") as file:
            kept = [old for old in csv.DictReader(file) if old["set"] != args.name]
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + [about | made for made in rows])
    for made in rows:
        print(", ".join(f"{key} {value}" for key, value in made.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
