"""An encoder to pass on: a folder with safetensors weights, config and model card; or a checkpoint in V-JEPA's format.

    python -m src.models.export --checkpoint runs/vm_tiny/jepa-latest.pth.tar --out exported
    python -m src.models.export --checkpoint runs/vit_tiny/jepa-latest.pth.tar --out exported --format vjepa

`src.models.load_encoder` reads both back, in one call.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from src.datasets.transforms import IMAGENET_MEAN, IMAGENET_STD
from src.models.loading import CONFIG_FILE, WEIGHTS_FILE, CheckpointEntry, adapt_state_dict, open_weights
from src.utils.checkpoint import save_atomic, strip_prefixes
from src.utils.errors import UserError, one_line, run_cli
from src.utils.paths import path_argument

VJEPA_PREFIX = "module.backbone."  # DistributedDataParallel over MultiMaskWrapper
_FACTS = ("epoch", "step", "samples", "loss", "lr", "batch_size", "world_size")
_CARD = """# {name}

A video encoder: {name}, {millions:.1f} M parameters, width {width}.

## Use

```python
from src.models import load_encoder

encoder = load_encoder("{folder}")
tokens = encoder(clips)  # (B, {channels}, {num_frames}, {img_size}, {img_size}) -> (B, {tokens}, {width})
```

Clips are RGB between 0 and 1, then normalised with mean {mean} and standard deviation {std}.
Tokens are in raster order, time slowest. Clips of other sizes will do if they are whole patches and tubelets: positions
are then resampled.

| built with | |
|---|---|
{options}

## Training

| found in the checkpoint | |
|---|---|
{facts}

What is not listed was not in the checkpoint. No accuracy is claimed here.
"""


def to_vjepa(state: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Our checkpoint with V-JEPA's keys: its evaluations read it, and so do we.

    The optimizer's state is left out: V-JEPA sorts parameters into other groups, so its training cannot resume from it.
    `config` stays beside V-JEPA's keys, without the folders of the data. Raises UserError if it is no such checkpoint.
    """
    models = ("encoder", "predictor", "target_encoder")
    missing = [key for key in (*models, "epoch") if key not in state]
    if missing:
        raise UserError(f"{what}: not a pretraining checkpoint: it has no {', '.join(missing)}")
    out: dict[str, Any] = {
        key: {VJEPA_PREFIX + name: tensor for name, tensor in strip_prefixes(state[key]).items()} for key in models
    }
    out |= {key: state[key] for key in ("epoch", "loss", "batch_size", "world_size", "lr") if key in state}
    if "config" in state:
        config = state["config"]
        out["config"] = config | {"data": config["data"] | {"datasets": _data_names(config)}}
    return out


def write_vjepa(checkpoint: Path, folder: Path) -> str:
    """Write `checkpoint` in V-JEPA's format into `folder`; returns what was done, in words."""
    source = open_weights(checkpoint)
    save_atomic(to_vjepa(source.state, str(checkpoint)), folder / "jepa-latest.pth.tar")
    return f"{checkpoint} in V-JEPA's format, without its optimizer"


def write_safetensors(checkpoint: Path, folder: Path, name: str, key: str | None) -> str:
    """Write weights, config and model card of an encoder into `folder`; returns what was done, in words."""
    source = open_weights(checkpoint, key)
    weights = adapt_state_dict(source)
    encoder = weights.build()
    config: dict[str, Any] = {
        "model_name": weights.spec.name,
        "options": weights.spec.options,
        "checkpoint_key": source.key,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "training": _facts(source),
    }
    save_file(weights.tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    kernel = weights.tensors["patch_embed.proj.weight"]
    card = _CARD.format(
        name=weights.spec.name,
        millions=sum(p.numel() for p in encoder.parameters() if p.requires_grad) / 1e6,
        width=encoder.embed_dim,
        folder=name,
        channels=kernel.shape[1],
        tokens=encoder.grid.size,
        options=_rows(weights.spec.options),
        facts=_rows(config["training"]),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        **{key: weights.spec.options[key] for key in ("num_frames", "img_size")},
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return str(weights.report)


def _facts(source: CheckpointEntry) -> dict[str, Any]:
    """What a checkpoint says of its training, in plain values."""
    state = source.state
    if "training" in state:  # an export again
        return state["training"]
    kind = "V-JEPA feature prediction" if "config" in state else "weights converted from another code base"
    facts = {"origin": kind, "file": source.path.name, "model": source.key or "the whole file"}
    facts |= {key: state[key] for key in _FACTS if isinstance(state.get(key), int | float | str)}
    if "config" in state:
        facts["data"] = ", ".join(_data_names(state["config"]))
    return facts


def _data_names(config: Mapping[str, Any]) -> list[str]:
    """Names of the lists of videos; their folders are nobody else's business."""
    return [Path(path).name for path in config["data"]["datasets"]]


def _rows(values: Mapping[str, Any]) -> str:
    return "\n".join(f"| {key} | {value} |" for key, value in values.items())


def into_new_folder(out: Path, write: Callable[[Path], str]) -> str:
    """Let `write` fill a folder that becomes `out` when it is complete.

    Raises:
        UserError: `out` holds something already, or cannot be written.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is there already and not empty: choose another --out, or delete it")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            folder = Path(temporary) / "export"
            folder.mkdir()
            try:
                done = write(folder)
            except UserError as error:  # it may name a file that is gone before anybody reads this
                raise UserError(str(error).replace(str(folder), str(out))) from None
            folder.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{out}: cannot be written: {one_line(error)}") from None
    return done


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m src.models.export", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--checkpoint", type=path_argument, required=True, help="checkpoint of ours, or published weights"
    )
    parser.add_argument("--out", type=path_argument, required=True, help="folder to make; it must be new or empty")
    parser.add_argument("--format", choices=("safetensors", "vjepa"), default="safetensors")
    parser.add_argument("--checkpoint-key", help="which encoder of the checkpoint (default: target_encoder)")
    args = parser.parse_args(argv)
    if args.format == "vjepa" and args.checkpoint_key is not None:
        raise UserError("--checkpoint-key means nothing for --format vjepa, which holds all of them")
    if args.format == "vjepa":
        done = into_new_folder(args.out, lambda folder: write_vjepa(args.checkpoint, folder))
    else:
        key = args.checkpoint_key
        done = into_new_folder(args.out, lambda folder: write_safetensors(args.checkpoint, folder, args.out.name, key))
    print(done)
    print(f"{args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")


if __name__ == "__main__":
    run_cli(main)
