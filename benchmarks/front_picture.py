"""The README's picture: what pretraining made of the drifting textures, beside the same encoder before its first step.

    python -m benchmarks.front_picture [RUN] [--out docs/results/features.png]

One clip of each direction and its tokens, coloured by the first three principal components of the features; and the
mean feature of each of 512 validation clips on the first two, coloured by its class. No label was used for either.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from src.datasets.data_manager import init_data
from src.datasets.embedded.drift_scene import DIRECTIONS
from src.datasets.transforms import EvalTransform, normalize
from src.utils.errors import run_cli
from src.utils.visualization import principal_colors
from tools.report.run_folder import read_runs
from tools.report.sample_predictions import load_models

ARROWS = "→↘↓↙←↖↑↗"
CLIPS = 512


def read_clips(folder: Path, data: object) -> tuple[torch.Tensor, np.ndarray]:
    """Validation clips (B, C, T, H, W), uint8, and their labels (B,)."""
    loader = init_data(
        dataset_type="DriftDataset",
        datasets=[str(folder / "val.csv")],
        batch_size=64,
        transform=EvalTransform(data.crop_size),
        num_frames=data.num_frames,
        sampling_rate=data.sampling_rate,
        random_clip_sampling=False,
        training=False,
    )
    clips, labels = [], []
    for batch in loader:
        clips.append(batch.clips[0])
        labels.append(batch.labels)
        if len(clips) * 64 >= CLIPS:
            break
    return torch.cat(clips), torch.cat(labels).numpy()


@torch.no_grad()
def encode(encoder: torch.nn.Module, clips: torch.Tensor) -> torch.Tensor:
    """Layer-normalised features (B, N, D)."""
    features = torch.cat([encoder(normalize(part)) for part in clips.split(64)])
    return F.layer_norm(features, features.shape[-1:])


def draw(clips: torch.Tensor, labels: np.ndarray, rows: dict[str, torch.Tensor], grid: object, out: Path) -> None:
    """Clips, token colours and scatter plots on one sheet."""
    wheel = plt.get_cmap("hsv")(np.arange(8) / 8) * (0.85, 0.85, 0.85, 1)
    chosen = [int(np.flatnonzero(labels == label)[0]) for label in range(8)]
    fig = plt.figure(figsize=(12, 4.1), dpi=150)
    left = fig.add_gridspec(3, 8, left=0.075, right=0.62, top=0.86, bottom=0.05, wspace=0.06, hspace=0.06)
    middle = grid.t // 2
    tiles = {"frame": clips[chosen, :, clips.shape[2] // 2].permute(0, 2, 3, 1).numpy()}
    for name, features in rows.items():
        colors, _ = principal_colors(features - features.mean(0))
        tiles[name] = colors[chosen].reshape(8, grid.t, grid.h, grid.w, 3)[:, middle]
    for r, (name, pictures) in enumerate(tiles.items()):
        for c, picture in enumerate(pictures):
            axes = fig.add_subplot(left[r, c])
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if r == 0:
                axes.set_title(ARROWS[c], fontsize=15, color=wheel[c], pad=3)
            if c == 0:
                axes.set_ylabel(name.replace(" ", "\n"), rotation=0, ha="right", va="center", fontsize=9, labelpad=6)
    right = fig.add_gridspec(1, 2, left=0.65, right=0.99, top=0.86, bottom=0.05, wspace=0.08)
    for c, (name, features) in enumerate(rows.items()):
        mean = features.mean(1)
        mean = mean - mean.mean(0)
        places = (mean @ torch.linalg.svd(mean, full_matrices=False).Vh[:2].T).numpy()
        axes = fig.add_subplot(right[0, c])
        axes.scatter(*places.T, c=wheel[labels], s=7, linewidths=0)
        axes.set_title(name, fontsize=10)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#c8ccd2")
    fig.text(0.075, 0.955, "one clip of each direction, its tokens in colour (PCA)", fontsize=10)
    fig.text(0.65, 0.955, f"{len(labels)} clips by their mean feature, coloured by direction", fontsize=10)
    fig.savefig(out)


def main() -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/vm_tiny"))
    parser.add_argument("--data", type=Path, default=Path("data/drift"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/features.png"))
    args = parser.parse_args()
    (run,) = read_runs([args.run])
    models = load_models(run)
    clips, labels = read_clips(args.data, run.config.data)
    encoders = {"pretrained": models.target_encoder, "before training": models.initial}
    rows = {name: encode(encoder.eval(), clips) for name, encoder in encoders.items()}
    draw(clips, labels, rows, models.initial.grid, args.out)
    print(f"{args.out}: {len(DIRECTIONS)} directions, {models.source}")
    return 0


if __name__ == "__main__":
    run_cli(main)
