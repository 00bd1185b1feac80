"""Encoders, predictors and probes from files: our checkpoints and exports, V-JEPA's and VideoMamba's published ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from src.models.attentive_pooler import AttentiveClassifier
from src.models.backbone import VideoEncoder
from src.models.lookalikes import refuse_vim
from src.models.predictor import Predictor
from src.models.registry import BACKBONES, default_num_heads
from src.models.spec import (
    EncoderSpec,
    describe_encoder,
    describe_predictor,
    encoder_spec,
    predictor_spec,
    refuse_rotary,
)
from src.models.weight_adaptation import Report, adapt, bare_names
from src.utils.checkpoint import load, load_state_dict_strict, strip_prefixes
from src.utils.errors import UserError, one_line
from src.utils.logging import get_logger
from src.utils.paths import expand_user

logger = get_logger(__name__)
T = TypeVar("T")

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"  # of an exported folder
TARGET = "target_encoder"
# Of the encoder to use in a file: V-JEPA's place and ours, then VideoMamba's; '' is the whole file.
_PLACES = (TARGET, "model", "module", "")


class CheckpointEntry(NamedTuple):
    """One model of a file, its tensors still on the disk.

    `key` is where in the file it is, '' if the model is all there is; `spec` is set where the file says what it is, as
    ours do; `state` is the whole file.
    """

    path: Path
    key: str
    tensors: Mapping[str, Tensor]
    spec: EncoderSpec | None
    state: dict[str, Any]

    @property
    def what(self) -> str:
        """How messages call it."""
        return f"{self.path}, {self.key}" if self.key else str(self.path)


class Weights(NamedTuple):
    """An encoder: what it is, tensors made to fit it, and what was done to them."""

    spec: EncoderSpec
    tensors: dict[str, Tensor]
    report: Report

    def build(self) -> VideoEncoder:
        """The encoder with these weights, in eval mode. Raises UserError, naming the first tensor that does not fit."""
        encoder = self.spec.build("meta")  # no weights are drawn: the caller's random state stays what it was
        load_state_dict_strict(encoder, self.tensors, self.report.source, assign=True)
        return encoder.eval()


def load_encoder(path: str | Path, key: str | None = None, **changes: Any) -> VideoEncoder:
    """Encoder of a file, in eval mode, on the CPU; the log says what became of the file's tensors.

    Its forward takes normalised clips (B, C, T, H, W), ImageNet's mean and deviation, and gives tokens (B, N, D).

    Args:
        path: checkpoint of ours, folder written by src.models.export (or the .safetensors in it), V-JEPA's .pth.tar, or
            VideoMamba's .pth (image and video models).
        key: which of the file's models, such as 'encoder'. Unset or target_encoder: that, or VideoMamba's place.
        changes: see `adapt_state_dict`.

    Raises:
        UserError: no such file or key, damaged, holding code, another model, or a tensor that does not fit; one line.
    """
    weights = adapt_state_dict(open_weights(path, key), **changes)
    encoder = weights.build()
    logger.info(str(weights.report))
    return encoder


def open_weights(path: str | Path, key: str | None = None) -> CheckpointEntry:
    """Find a model in a file without reading its tensors yet. Arguments and errors are those of `load_encoder`."""
    path = Path(expand_user(str(path)))
    if path.is_dir() or path.suffix == ".safetensors":
        return _open_export(path, key)
    return _pick(load(path, mmap=True), key, path)


def _pick(state: dict[str, Any], key: str | None, path: Path) -> CheckpointEntry:
    if key in (None, TARGET):
        if state and _are_weights(state):
            return CheckpointEntry(path, "", state, None, {})
        key = next((place for place in _PLACES if place in state), TARGET)
    if not _are_weights(state.get(key)):
        found = [name for name, value in state.items() if value and _are_weights(value)]
        for name in found:
            refuse_rotary(strip_prefixes(state[name]), f"{path}, {name}")
        raise UserError(f"{path}: no weights under '{key}'; it holds {', '.join(found) or 'none'}")
    spec = None
    if isinstance(state.get("spec"), Mapping) and set(state["spec"]) == {*EncoderSpec._fields}:
        spec = EncoderSpec(**state["spec"])  # an encoder that was tuned, perhaps at sizes of its own
    elif "config" in state:
        spec = _by_config(encoder_spec, state, path)
    return CheckpointEntry(path, key, state[key], spec, state)


def adapt_state_dict(
    source: CheckpointEntry,
    *,
    model_name: str | None = None,
    img_size: int | None = None,
    num_frames: int | None = None,
    tubelet_size: int | None = None,
    keep_cls_token: bool = True,
    keep_head: bool = False,
    allow_unused: Iterable[str] = (),
    backend: str | None = None,
) -> Weights:
    """Tensors of one of our encoders from those of a file.

    Args:
        model_name: what it must be; it is read off the file, which only for a bare image model may need this word.
        img_size, num_frames, tubelet_size: sizes to build it for, where they are not to be those of the file: positions
            are resampled and the patch embedding is inflated. An image model is made one of 16 frames unless told.
        keep_cls_token: False drops the class token of a file that has one.
        keep_head: True keeps the classifier of a file that has one, for `encoder.logits`.
        allow_unused: names, or shell patterns of names, that may be left out. Anything else left over is an error.
        backend: who computes (docs/backends.md); 'reference' for second derivatives, forward mode and torch.func.
    """
    report = Report(source.what)
    tensors = bare_names(source.tensors, report, allow_unused)
    if source.spec is None:
        refuse_vim(tensors, source.path, source.what, source.state.get("args"), model_name)
    file = source.spec or describe_encoder(tensors, source.what)
    if model_name not in (None, file.name):
        raise UserError(f"{source.what}: the weights are those of {file.name}, not of {model_name}")
    sizes = {"img_size": img_size, "num_frames": num_frames, "tubelet_size": tubelet_size}
    options = file.options | {name: size for name, size in sizes.items() if size is not None}
    if keep_head and not options.get("num_classes"):
        raise UserError(f"{source.what}: it has no head to keep")
    if not keep_head and "num_classes" in options:
        options["num_classes"] = 0
    if backend is not None:
        options["backend"] = backend
    if not keep_cls_token and "cls_token" in options:
        options["cls_token"] = False
    wanted = EncoderSpec(file.name, options)
    return Weights(wanted, _read(adapt(tensors, file, wanted, report)), report)


def load_predictor(path: str | Path, num_heads: int | None = None) -> Predictor:
    """Predictor of our or V-JEPA's checkpoint, in eval mode, on the CPU.

    Heads leave no trace in a file: `num_heads` are those of one without a config; unset: the encoder's, as in V-JEPA.
    Raises UserError as `load_encoder` does.
    """
    source = open_weights(path, "predictor")
    tensors = strip_prefixes(source.tensors)
    if "config" in source.state:
        spec = _by_config(predictor_spec, source.state, Path(path))
    else:
        of = _pick(source.state, None, Path(path))
        encoder = describe_encoder(strip_prefixes(of.tensors), of.what)
        spec = describe_predictor(tensors, encoder, source.what, num_heads)
    predictor = spec.build("meta")
    load_state_dict_strict(predictor, _read(tensors), source.what, assign=True)
    return predictor.eval()


def load_probe(path: str | Path, key: str = "classifier", num_heads: int | None = None) -> AttentiveClassifier:
    """Attentive probe of our or V-JEPA's evaluations (k400-probe.pth.tar, ...), in eval mode, on the CPU.

    `num_heads`: unset, those of the ViT of its width, which is what V-JEPA's probes have. Raises UserError as
    `load_encoder` does.
    """
    source = open_weights(path, key)
    what, tensors = source.what, _read(strip_prefixes(source.tensors))
    if "linear.weight" not in tensors or "pooler.query_tokens" not in tensors:
        raise UserError(f"{what}: not an attentive probe: it has no pooler.query_tokens and linear.weight")
    num_classes, width = tensors["linear.weight"].shape
    of_table = next((row.num_heads for row in BACKBONES.values() if row.num_heads and row.embed_dim == width), None)
    heads = num_heads or of_table or default_num_heads(width)
    if width % heads:
        raise UserError(f"{what}: {heads} heads do not divide its width of {width}: choose another num_heads")
    depth = 1 + len({name.split(".")[2] for name in tensors if name.startswith("pooler.blocks.")})
    with torch.device("meta"):
        probe = AttentiveClassifier(width, heads, depth, num_classes)
    load_state_dict_strict(probe, tensors, what, assign=True)
    return probe.eval()


def _are_weights(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _read(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in memory, in float32, of tensors that may be on the disk."""
    return {name: tensor.float().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _by_config(read: Callable[[Mapping[str, Any]], T], state: Mapping[str, Any], path: Path) -> T:
    """What `read` finds in a checkpoint's config. Raises UserError if a key is missing."""
    try:
        return read(state["config"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: its config is not a pretraining config of this version: {one_line(error)}") from None


def _open_export(path: Path, key: str | None) -> CheckpointEntry:
    """The encoder of a folder that src.models.export wrote."""
    weights = path / WEIGHTS_FILE if path.is_dir() else path
    about = weights.with_name(CONFIG_FILE)
    try:
        config = json.loads(about.read_text(encoding="utf-8"))
        if isinstance(config, dict) and "model_type" in config:
            raise ValueError(f"it is a {config['model_type']} model of Hugging Face's transformers")
        spec = EncoderSpec(config["model_name"], config["options"])
        own, training = config["checkpoint_key"], config["training"]
        tensors = load_file(weights)
    except OSError as error:
        file = error.filename or weights
        raise UserError(f"{file}: {error.strerror or 'no such file'}: not what src.models.export wrote") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{about}: not what src.models.export wrote: {one_line(error)}") from None
    except SafetensorError as error:
        raise UserError(f"{weights}: damaged weights: {one_line(error)}") from None
    if key not in (None, own) and not (key == TARGET and own in _PLACES):
        raise UserError(f"{path}: it was exported from '{own}' and has no '{key}'")
    return CheckpointEntry(weights, own, tensors, spec, {"training": training})
