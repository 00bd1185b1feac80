"""How large gradients are at initialisation, over the layers of encoder and predictor, for each way to initialise them.

    python -m benchmarks.gradient_scale [--seeds 0 1 2] [--fresh | --replot]

The models of configs/pretrain/vm_tiny.yaml and vit_tiny.yaml (8 frames of 64 px, 64 tokens), with V-JEPA's
layer-normalised targets, on a batch of the embedded data: the first training step's gradient, before any update. Adam
divides a gradient by its own size plus eps, so what is far below eps hardly moves a weight. Writes a row for each layer
to docs/results/gradient_scale.csv, goes on where an earlier run stopped, and draws them beside it.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app import scaffold
from app.vjepa.config import PretrainConfig
from app.vjepa.train import make_loader, train_step
from app.vjepa.utils import Run, Schedule, init_opt, init_video_model
from src.datasets.embedded.generate import write_motion
from src.jepa.build import make_target_encoder
from src.jepa.objective import VideoJEPA
from src.utils.csv_log import write_csv
from src.utils.distributed import init_distributed, shutdown

EPS = 1e-8  # AdamW's default, and V-JEPA's
ENCODERS = {"videomamba_tiny": "VideoMamba, 24 blocks", "vit_tiny": "ViT, 12 blocks"}
PREDICTORS = {"vit_tiny": "attention", "videomamba_tiny": "Mamba", "hybrid_tiny": "hybrid"}
ORDERS = ("raster", "concat")
INITS: dict[str, dict[str, Any]] = {
    "default": {"model.init": "default"},
    "fan_in": {"model.init": "fan_in"},
    "linear_std 0.02": {"model.init": "default", "study.linear_std": 0.02},
    "linear_std 0.02, zero dt": {"model.init": "default", "study.linear_std": 0.02, "study.zero_dt_bias": "true"},
}
FIELDS = ("encoder", "init", "predictor", "order", "seed", "part", "layer", "elements", "norm", "below_eps")
NOW = Schedule(lr=0.0, weight_decay=0.0, momentum=1.0)


def settings() -> Iterator[tuple[str, str, str, str]]:
    """(encoder, init, predictor, order), without those that are another one: attention sees no order, and has no dt."""
    for encoder in ENCODERS:
        for init, keys in INITS.items():
            for predictor in PREDICTORS:
                for order in ORDERS if predictor != "vit_tiny" else ORDERS[:1]:
                    if (
                        "study.zero_dt_bias" not in keys
                        or "videomamba_tiny" in (encoder, predictor)
                        or "hybrid" in predictor
                    ):
                        yield encoder, init, predictor, order


def configure(videos: Path, batch: int, setting: tuple[str, str, str, str], seed: int) -> PretrainConfig:
    """The recipe of the encoder, with a setting."""
    encoder, init, predictor, order = setting
    recipe = "vm_tiny" if encoder == "videomamba_tiny" else "vit_tiny"
    overrides = [
        "data.dataset_type=VideoDataset",
        f"data.datasets=[{videos}]",
        f"data.batch_size={batch}",
        "data.num_workers=0",
    ]
    overrides += [f"model.pred_model_name={predictor}", f"model.pred_token_order={order}", f"meta.seed={seed}"]
    overrides += ["loss.target_norm=layer", "loss.clip_mean_weight=0", "optimization.clip_grad=null"]
    overrides += ["model.scan_order=spatial"] if encoder == "videomamba_tiny" else []  # as published
    overrides += [*(f"{key}={value}" for key, value in INITS[init].items())]
    return scaffold.load(f"configs/pretrain/{recipe}.yaml", overrides)[1]


def layers(run: Run) -> Iterator[tuple[str, str, nn.Module]]:
    """(part, layer, module): the whole, what makes tokens as layer 0, and the blocks from 1."""
    for part, whole, embed, blocks in (
        ("encoder", run.encoder, run.encoder.patch_embed, run.encoder.trunk[0]),
        ("predictor", run.predictor, run.predictor.predictor_embed, run.predictor.predictor_blocks),
    ):
        yield part, "all", whole
        for i, module in enumerate([embed, *blocks]):
            yield part, str(i), module


def measure(cfg: PretrainConfig) -> list[list[object]]:
    """(part, layer, elements, gradient norm, share below eps) of the first step."""
    encoder, predictor = init_video_model(cfg)
    model, optimizer = VideoJEPA(encoder, predictor), init_opt(encoder, predictor, cfg)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    run = Run(encoder, predictor, make_target_encoder(encoder), model, optimizer, scaler, 1, cfg.data.batch_size)
    train_step(cfg, run, [next(iter(make_loader(cfg, 0, 1)))], NOW)
    rows = []
    for part, layer, module in layers(run):
        flat = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        rows.append([part, layer, len(flat), f"{flat.norm():.4e}", f"{(flat.abs() < EPS).float().mean():.4f}"])
    return rows


def measure_all(seeds: list[int], batch: int, out: Path, fresh: bool) -> None:
    """Write the csv, setting by setting; what it has already is not measured again."""
    rows = [] if fresh else [[row[name] for name in FIELDS] for row in load(out)]
    have = {tuple(row[:5]) for row in rows}
    init_distributed(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "motion"
        write_motion(data, train=2 * batch, val=1, workers=1)
        for setting in settings():
            for seed in seeds:
                if (*setting, str(seed)) in have:
                    continue
                found = measure(configure(data / "train.csv", batch, setting, seed))
                rows += [[*setting, str(seed), *row] for row in found]
                print(f"{', '.join(setting)}, seed {seed}: encoder {found[0][3]}, {found[0][4]} below eps", flush=True)
            write_csv(out, FIELDS, rows)
    shutdown()


def load(path: Path) -> list[dict[str, str]]:
    """A csv; empty if it is not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def curve(rows: list[dict[str, str]], part: str) -> tuple[list[int], list[float]]:
    """Layers of a part, and the root mean square of an element of each layer's gradient, mean over the seeds."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["part"] == part and row["layer"] != "all":
            found.setdefault(int(row["layer"]), []).append(float(row["norm"]) / float(row["elements"]) ** 0.5)
    return sorted(found), [statistics.mean(found[layer]) for layer in sorted(found)]


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """Gradient over layers, and below it the share of the encoder's that Adam does not see."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from src.utils.plotting import GREY, STYLE

    colors = dict(zip(PREDICTORS, ("tab:blue", "tab:orange", "tab:green")))
    with rc_context(STYLE):
        fig = Figure(figsize=(13.5, 9.5), layout="constrained")
        axes = fig.subplots(3, len(INITS), gridspec_kw={"height_ratios": (1, 1, 0.75)})
        for line, (encoder, title) in zip(axes, ENCODERS.items()):
            for axis, init in zip(line, INITS):
                own = [row for row in rows if (row["encoder"], row["init"]) == (encoder, init)]
                start = 2 + max(curve(own, "encoder")[0])
                for predictor, order in dict.fromkeys((row["predictor"], row["order"]) for row in own):
                    mine = [row for row in own if (row["predictor"], row["order"]) == (predictor, order)]
                    style = {"color": colors[predictor], "linestyle": "-" if order == "raster" else "--"}
                    for part, offset in (("encoder", 0), ("predictor", start)):
                        x, y = curve(mine, part)
                        axis.semilogy([offset + i for i in x], y, marker="o", markersize=2.5, **style)
                axis.axhline(EPS, color=GREY, linewidth=1, linestyle=":")
                axis.axvline(start - 1, color=GREY, linewidth=0.8)
                axis.set(title=f"{title}\n{init}", ylim=(3e-10, 1e-2))
                axis.set_xticks([0, *range(4, start, 4)], ["patches", *map(str, range(4, start, 4))])
                axis.text(start - 1.6, 4e-3, "encoder", color=GREY, fontsize=8, ha="right")
                axis.text(start - 0.6, 4e-3, "predictor", color=GREY, fontsize=8)
                axis.set_xlim(-0.8, start + 5.5)
            line[0].set_ylabel("gradient, root mean square")
        axes[0, 0].text(0.3, 1.4 * EPS, "Adam's eps, 1e-8", color=GREY, fontsize=8)
        shares(axes[2], rows, colors)
        names = [(kind, order) for kind in PREDICTORS for order in ORDERS if (kind, order) != ("vit_tiny", "concat")]
        handles = [
            Line2D([], [], color=colors[kind], linestyle="-" if order == "raster" else "--") for kind, order in names
        ]
        labels = [PREDICTORS[kind] if kind == "vit_tiny" else f"{PREDICTORS[kind]}, {order}" for kind, order in names]
        fig.legend(
            handles, labels, title="predictor, order of its tokens", loc="outside upper center", ncols=len(names)
        )
        fig.savefig(path, dpi=130)


def shares(axes: Any, rows: list[dict[str, str]], colors: dict[str, str]) -> None:
    """A dot for each seed: the share of the encoder's gradient below eps."""
    places = [(encoder, predictor) for encoder in ENCODERS for predictor in PREDICTORS]
    for axis, init in zip(axes, INITS):
        for y, (encoder, predictor) in enumerate(places):
            for order in ORDERS:
                key = (encoder, init, predictor, order, "encoder", "all")
                names = ("encoder", "init", "predictor", "order", "part", "layer")
                x = [float(row["below_eps"]) for row in rows if tuple(row[name] for name in names) == key]
                face = colors[predictor] if order == "raster" else "none"
                axis.plot(x, [y] * len(x), "o", color=colors[predictor], markerfacecolor=face, markersize=6)
        axis.set(
            title=init, xlim=(-0.03, 1.03), ylim=(len(places) - 0.5, -0.5), xlabel="encoder's gradient below eps, share"
        )
        labels = [f"{ENCODERS[encoder].split(',')[0]}, {PREDICTORS[predictor]}" for encoder, predictor in places]
        axis.set_yticks(range(len(places)), labels if axis is axes[0] else [""] * len(places))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=6, help="clips")
    parser.add_argument("--out", type=Path, default=Path("docs/results/gradient_scale.csv"))
    parser.add_argument("--fresh", action="store_true", help="measure again what the csv already has")
    parser.add_argument("--replot", action="store_true", help="only draw what the csv has")
    args = parser.parse_args()
    if not args.replot:
        measure_all(args.seeds, args.batch, args.out, args.fresh)
    plot(load(args.out), args.out.with_suffix(".png"))
    print(f"{args.out}, {args.out.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
