"""Evaluation YAMLs and their command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from evals import scaffold
from evals.config import FutureConfig, ImageProbeConfig, VideoProbeConfig
from src.config.loading import load_config, save_config
from src.utils.errors import UserError

SHIPPED = sorted(Path("configs/evals").glob("*.yaml"))
MOTION = "configs/evals/vm_tiny_motion.yaml"

# Every key of V-JEPA's evaluation files (github.com/facebookresearch/jepa, configs/evals), own values.
VJEPA_PRETRAIN = """
pretrain: {model_name: vit_large, checkpoint_key: target_encoder, clip_duration: null, frames_per_clip: 16,
  tubelet_size: 2, uniform_power: true, use_silu: false, tight_silu: false, use_sdpa: true, patch_size: 16,
  folder: runs, checkpoint: jepa-latest.pth.tar, write_tag: jepa}
nodes: 8
tasks_per_node: 8
resume_checkpoint: false
"""
VJEPA_VIDEO = """
tag: k400-16x8x3
eval_name: video_classification_frozen
data: {dataset_train: a.csv, dataset_val: b.csv, dataset_type: VideoDataset, num_classes: 400, frames_per_clip: 16,
  num_segments: 8, num_views_per_segment: 3, frame_step: 4}
optimization: {attend_across_segments: true, num_epochs: 20, resolution: 224, batch_size: 4, weight_decay: 0.01,
  lr: 0.001, start_lr: 0.001, final_lr: 0.0, warmup: 0., use_bfloat16: true}
"""
VJEPA_IMAGE = """
tag: in1k-16f
eval_name: image_classification_frozen
data: {root_path: /data, image_folder: imagenet, num_classes: 1000, resolution: 224, dataset_name: ImageNet}
optimization: {num_epochs: 20, batch_size: 16, weight_decay: 0.001, lr: 0.001, start_lr: 0.001, final_lr: 0.0,
  warmup: 0., use_bfloat16: true}
"""


def run(*words, module="evals.main", options=()):
    line = [sys.executable, *options, "-m", module, *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_load_and_save(path, tmp_path):
    _, cfg = scaffold.load(path)
    save_config(cfg, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml", type(cfg)) == cfg
    assert any(name in path.stem for name in ("motion", "digits", "drift", "metaworld")) == (cfg.not_ready() is None)
    pretrain = load_config_of_pretraining(cfg)
    if isinstance(cfg, FutureConfig):  # all else is in the checkpoint
        assert cfg.context_tubelets < pretrain.data.num_frames // pretrain.data.tubelet_size
        return
    assert pretrain.model.model_name == cfg.pretrain.model_name
    assert pretrain.model.uniform_power == cfg.pretrain.uniform_power
    assert pretrain.data.num_frames == cfg.pretrain.frames_per_clip


def load_config_of_pretraining(cfg):
    """The shipped recipe whose folder an evaluation reads from."""
    from app.scaffold import load

    return load(f"configs/pretrain/{Path(cfg.pretrain.folder).name}.yaml")[1]


@pytest.mark.parametrize(("text", "schema"), [(VJEPA_VIDEO, VideoProbeConfig), (VJEPA_IMAGE, ImageProbeConfig)])
def test_vjepas_own_keys_load(text, schema, tmp_path, caplog):
    (tmp_path / "run.yaml").write_text(text + VJEPA_PRETRAIN)
    name, cfg = scaffold.load(tmp_path / "run.yaml")
    assert isinstance(cfg, schema)
    assert cfg.output_folder() == Path("runs") / name / cfg.tag
    assert cfg.checkpoint_path() == Path("runs/jepa-latest.pth.tar")
    assert cfg.not_ready() is None
    assert caplog.text.count("pretrain.use_silu") == caplog.text.count("pretrain.tight_silu") == 1


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "eval_name=video_frozen",
            "eval_name: there is no eval 'video_frozen'; evals: video_classification",
        ),
        ("eval_name=null", "eval_name is not set: one of video_classification_frozen, image_classification_frozen"),
        (
            "optimization.resolution=65",
            "optimization.resolution=65 is not divisible by pretrain.patch_size=16: use 64",
        ),
        ("data.frames_per_clip=5", "data.frames_per_clip=5 is not divisible by pretrain.tubelet_size=2: use 4 or 6"),
        ("optimization.warmup=21", "optimization.warmup=21 is longer than optimization.num_epochs="),
        ("probes=[linear, svm]", "probes.1: expected one of 'attentive', 'linear' or 'knn', got 'svm' (text)"),
        ("pretrain.model_name=vit", "pretrain.model_name: there is no model 'vit'; models: videomamba_tiny"),
        ("data.frame_steps=2", "unknown key data.frame_steps; did you mean data.frame_step?"),
    ],
)
def test_what_cannot_work_is_refused(override, expected):
    with pytest.raises(UserError) as error:
        scaffold.load(MOTION, [override])
    assert expected in str(error.value)


def test_help_is_quick():
    """It is answered without importing anything that takes long."""
    slow = {"av", "matplotlib", "numpy", "PIL", "scipy", "sklearn", "submitit", "timm", "torch"}
    for module in ("evals.main", "evals.main_distributed"):
        code, out, err = run("--help", module=module)
        assert (code, err) == (0, "")
        assert "--fname" in out
        _, _, imports = run("--help", module=module, options=["-X", "importtime"])
        names = {line.split("|")[-1].strip() for line in imports.splitlines()}
        assert "evals" in names
        assert not names & slow


def test_missing_data_says_which_key_of_which_file():
    path = "configs/evals/vm_tiny_ssv2_16x2x3.yaml"
    assert run("--fname", path, "data.dataset_train=a.csv") == (
        2,
        "",
        f"error: {path}: data.dataset_val is not set: point it at your validation list "
        "(or pass data.dataset_val=/path/to/val.csv)\n",
    )
