"""Pretraining YAMLs: all shipped ones load, V-JEPA's own loads, and what cannot work is refused in one line."""

from pathlib import Path

import pytest
import yaml

from app.vjepa.config import PretrainConfig
from src.config.loading import check_ready, from_dict, load_config, save_config
from src.utils.errors import UserError

SHIPPED = sorted(Path("configs/pretrain").glob("*.yaml"))
VM_TINY = "configs/pretrain/vm_tiny.yaml"

# Every key of the pretraining files of V-JEPA (github.com/facebookresearch/jepa, configs/pretrain), own values.
VJEPA = """
app: vjepa
nodes: 16
tasks_per_node: 8
data: {dataset_type: videodataset, datasets: [a.csv, b.csv], decode_one_clip: true, batch_size: 24, num_clips: 1,
  num_frames: 16, tubelet_size: 2, sampling_rate: 4, crop_size: 224, patch_size: 16, pin_mem: true, num_workers: 12,
  filter_short_videos: false, clip_duration: null}
data_aug: {auto_augment: false, motion_shift: false, random_resize_aspect_ratio: [0.75, 1.35],
  random_resize_scale: [0.3, 1.0], reprob: 0.0}
logging: {folder: logs, write_tag: jepa}
loss: {loss_exp: 1.0, reg_coeff: 0.0}
mask:
- {aspect_ratio: [0.75, 1.5], num_blocks: 8, spatial_scale: [0.15, 0.15], temporal_scale: [1.0, 1.0],
  max_temporal_keep: 1.0, max_keep: null}
meta: {load_checkpoint: false, read_checkpoint: null, seed: 234, eval_freq: 100, use_sdpa: true, dtype: bfloat16}
model: {model_name: vit_huge, pred_depth: 12, pred_embed_dim: 384, uniform_power: true, use_mask_tokens: true,
  zero_init_mask_tokens: true}
optimization: {ipe: 300, ipe_scale: 1.25, clip_grad: 10.0, weight_decay: 0.04, final_weight_decay: 0.4, epochs: 300,
  warmup: 40, start_lr: 0.0002, lr: 0.000625, final_lr: 1.0e-06, ema: [0.998, 1.0]}
"""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_load_and_save(path, tmp_path):
    cfg = load_config(path, PretrainConfig)
    assert cfg.logging.folder == f"runs/{path.stem}"
    save_config(cfg, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml", PretrainConfig) == cfg


def test_the_recipes_are_there_and_alike():
    configs = {path.stem: load_config(path, PretrainConfig) for path in SHIPPED}
    models = {
        "vm_tiny_ssv2": "videomamba_tiny",
        "vm_small_ssv2": "videomamba_small",
        "vm_middle_ssv2": "videomamba_middle",
        "vm_base_ssv2": "videomamba_base",
        "vit_tiny_ssv2": "vit_tiny",
        "vit_small_ssv2": "vit_small",
    }
    for name, model in models.items():
        cfg = configs[name]
        assert cfg.model.model_name == model
        d = cfg.data
        assert (d.num_frames, d.sampling_rate, d.crop_size, d.patch_size, d.tubelet_size) == (16, 4, 224, 16, 2)
    for name in ("nano", "tiny", "tiny_ssv2", "small_ssv2"):
        mamba, vit = (configs[f"{kind}_{name}"].model_dump() for kind in ("vm", "vit"))
        own = {"model": ("model_name", "scan_order"), "logging": ("folder",)}
        own |= {"optimization": ("lr", "start_lr")} if name in ("nano", "tiny") else {}  # each at its best
        for section, keys in own.items():
            for key in keys:
                mamba[section][key] = vit[section][key]
        assert mamba == vit, f"vm_{name}.yaml and vit_{name}.yaml differ in more than the encoder"


def test_vjepas_own_keys_load(tmp_path, caplog):
    (tmp_path / "vith16.yaml").write_text(VJEPA)
    cfg = load_config(tmp_path / "vith16.yaml", PretrainConfig)
    assert cfg.data.dataset_type == "VideoDataset"
    assert cfg.meta.eval_freq == 100
    assert not caplog.records
    check_ready(cfg, "vith16.yaml")
    (tmp_path / "vith16.yaml").write_text(VJEPA.replace("decode_one_clip: true", "decode_one_clip: false"))
    load_config(tmp_path / "vith16.yaml", PretrainConfig)
    assert caplog.messages == [
        "data.decode_one_clip=false has no effect, as in V-JEPA: only frames of clips in use are ever decoded"
    ]


def test_masks_as_the_collator_wants_them():
    masks = load_config(VM_TINY, PretrainConfig).mask_dicts()
    assert [m["num_blocks"] for m in masks] == [8, 2]
    assert set(masks[0]) == {
        "aspect_ratio",
        "num_blocks",
        "spatial_scale",
        "temporal_scale",
        "max_temporal_keep",
        "max_keep",
    }
    raw = yaml.safe_load(VJEPA)
    raw["data"]["mask_type"], raw["mask"] = "random_tube", [{"ratio": 0.9}]
    assert from_dict(raw, PretrainConfig, "x").mask_dicts() == [{"ratio": 0.9}]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.crop_size=65", "data.crop_size=65 is not divisible by data.patch_size=16: use 64 or 80"),
        ("data.crop_size=8", "data.crop_size=8 is not divisible by data.patch_size=16: use 16"),
        ("data.num_frames=15", "data.num_frames=15 is not divisible by data.tubelet_size=2: use 14 or 16"),
        ("data.datasets_weights=[1, 2]", "data.datasets_weights has 2 entries for 1 data.datasets"),
        (
            "model.model_name=videomamba_tny",
            "there is no model 'videomamba_tny'; models: videomamba_tiny, ",
        ),
        (
            "model.pred_model_name=resnet",
            "model.pred_model_name: there is no model 'resnet'; predictors: videomamba_tiny",
        ),
        (
            "model={model_name: vit_tiny, pos_embed: learned}",
            "model.pos_embed=learned means nothing for vit_tiny: only",
        ),
        ("model={model_name: vit_tiny, bidirectional: false}", "model.bidirectional=False means nothing for vit_tiny"),
        (
            "model={model_name: vit_tiny, pred_model_name: videomamba_tiny, pred_num_heads: 3}",
            "model.pred_num_heads means nothing for videomamba_tiny: it has no attention",
        ),
        ("model.pred_num_heads=7", "model.pred_embed_dim=96 is not divisible by model.pred_num_heads=7: use 91 or 98"),
        ("optimization.ema=[0.9, 1.1]", "optimization.ema=[0.9, 1.1] must lie in [0, 1]"),
        ("optimization.ema=0.9", "optimization.ema: expected a list, as in [a, b], got 0.9"),
        (
            "optimization.max_skipped_steps=-1",
            "optimization.max_skipped_steps: expected a number of at least 0, got -1",
        ),
        ("optimization.warmup=900", "optimization.warmup=900 is longer than optimization.epochs="),
        ("optimization.betas=[0.9, 1]", "optimization.betas=[0.9, 1.0] must lie in [0, 1)"),
        ("data_aug.random_resize_scale=[0.5, 0.3]", "random_resize_scale=[0.5, 0.3] must be [low, high] with 0 < low"),
        (
            "mask.0.spatial_scale=[0.5, 1.5]",
            "mask.0.spatial_scale=[0.5, 1.5] must be [low, high] with 0 < low",
        ),
        ("mask.1.num_blocks=null", "mask.1.num_blocks is not set: data.mask_type=multiblock3d needs it"),
        ("mask.0.ratio=0.5", "mask.0.ratio means nothing for data.mask_type=multiblock3d, which takes aspect_ratio"),
        ("data.mask_type=random_tube", "mask.0.aspect_ratio means nothing for data.mask_type=random_tube, which takes"),
        ("mask=[]", "mask: expected at least 1 entries, got []"),
        (
            "meta.dtype=bf16",
            "meta.dtype: expected one of 'float32', 'bfloat16' or 'float16', got 'bf16' (text); ",
        ),
        (
            "data.dataset_type=VideoDataSets",
            "'SlowDriftDataset' or 'MetaWorldDataset', got",
        ),
        ("data.pach_size=8", "unknown key data.pach_size; did you mean data.patch_size?"),
        ("optimization.crop_size=64", "unknown key optimization.crop_size; did you mean data.crop_size?"),
    ],
)
def test_what_cannot_work_is_refused(override, expected):
    with pytest.raises(UserError) as error:
        load_config(VM_TINY, PretrainConfig, [override])
    message = str(error.value)
    assert expected in message
    assert message.startswith(("command line: ", f"{VM_TINY}: "))
    assert "\n" not in message


@pytest.mark.parametrize("value", ["", "[]", "[null]", "['']"])
def test_missing_data_says_which_key_of_which_file(value):
    path = "configs/pretrain/vm_tiny_ssv2.yaml"
    with pytest.raises(UserError) as error:
        check_ready(load_config(path, PretrainConfig, [f"data.datasets={value}"]), path)
    assert str(error.value) == (
        f"{path}: data.datasets is not set: point it at your list of training videos "
        "(or pass data.datasets=[/path/to/train.csv])"
    )


def test_every_key_is_described():
    def walk(schema, prefix):
        for name, field in schema.model_fields.items():
            inner = getattr(field.annotation, "model_fields", None)
            if inner is not None:
                walk(field.annotation, f"{prefix}{name}.")
            elif name != "mask":
                assert field.description, f"{prefix}{name}"

    walk(PretrainConfig, "")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_precision_that_says_nothing_on_a_cpu_is_refused(dtype):
    with pytest.raises(UserError, match=f"study.autocast_on_cpu=true needs meta.dtype=bfloat16, not {dtype}"):
        load_config(VM_TINY, PretrainConfig, ["study.autocast_on_cpu=true", f"meta.dtype={dtype}"])
