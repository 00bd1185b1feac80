"""An encoder that trains along with its probe: which parameters move, how fast, and that stopping changes nothing."""

import copy

import pytest
import torch

from evals import scaffold
from evals.classification.evaluation import Evaluation
from evals.classification.finetuning import Tuning, encoder_groups, layer_scales
from evals.config import VideoFinetuneConfig
from evals.video_classification_finetune import eval as finetune
from src.datasets.embedded.digit_scene import SceneConfig
from src.datasets.embedded.generate import write_motion
from src.models import load_encoder
from src.models.registry import create_encoder
from src.utils import checkpoint
from src.utils.errors import UserError

SMALL = {"img_size": 32, "num_frames": 4, "depth": 3}


@pytest.mark.parametrize("name", ["videomamba_tiny", "vit_tiny"])
def test_each_layer_has_its_own_rate(name):
    encoder = create_encoder(name, **SMALL)
    scales = layer_scales(encoder, 0.5)
    assert set(scales) == {n for n, p in encoder.named_parameters() if p.requires_grad} != set(encoder.state_dict())
    blocks, norm = encoder.blocks_name, encoder.norm_name
    assert scales["patch_embed.proj.weight"] == scales["patch_embed.proj.bias"] == 1 / 16
    for i, scale in enumerate((1 / 8, 1 / 4, 1 / 2)):
        assert {s for n, s in scales.items() if n.startswith(f"{blocks}.{i}.")} == {scale}
    assert scales[f"{norm}.weight"] == 1


def test_groups_hold_every_parameter_once_and_decay_what_should():
    encoder = create_encoder("videomamba_tiny", **SMALL, pos_embed="learned", cls_token=True)
    groups = encoder_groups(encoder, lr=2.0, weight_decay=0.1, decay=0.5)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in encoder.parameters() if p.requires_grad)
    found = {id(p): (group["peak_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    mixer = encoder.layers[2].mixer
    assert found[id(mixer.in_proj.weight)] == (1.0, 0.1) and found[id(mixer.A_log)] == (1.0, 0.0)
    assert found[id(encoder.cls_token)] == found[id(encoder.temporal_pos_embedding)] == (0.125, 0.0)


def test_stochastic_depth_rises_to_the_last_block():
    encoder = Tuning(drop_path_rate=0.3).prepare(create_encoder("vit_tiny", **SMALL))
    assert [block.drop_path.rate for block in encoder.blocks] == pytest.approx([0, 0.15, 0.3])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion")
    write_motion(folder / "motion", SceneConfig(frames=4, size=32, glyph=(10.0, 12.0)), train=32, val=17, workers=1)
    return folder / "motion"


@pytest.fixture
def config(data, tmp_path, save_checkpoint):
    save_checkpoint(tmp_path)
    return {
        "eval_name": "video_classification_finetune",
        "tag": "t",
        "data": {
            "dataset_train": str(data / "train.csv"),
            "dataset_val": str(data / "val.csv"),
            "dataset_type": "MotionDataset",
            "num_classes": 16,
            "frames_per_clip": 4,
            "frame_step": 1,
            "num_workers": 0,
        },
        "optimization": {
            "num_epochs": 2, "batch_size": 8, "resolution": 32, "lr": 1e-3, "layer_decay": 0.5, "drop_path_rate": 0.2
        },
        "pretrain": {"model_name": "vit_tiny", "frames_per_clip": 4, "folder": str(tmp_path)},
    }  # fmt: skip


def run(config, resume=False):
    return finetune.main(VideoFinetuneConfig.model_validate(copy.deepcopy(config)), resume_preempt=resume)


def test_the_encoder_moves_most_near_the_probe_and_can_be_loaded(config, tmp_path):
    results = run(config)
    assert [(s["row"], s["probe"], s["total"]) for s in results["scores"]] == [("pretrained", "attentive", 17)]
    before = load_encoder(tmp_path / "jepa-latest.pth.tar")
    after = load_encoder(tmp_path / "video_classification_finetune" / "t" / "jepa-latest.pth.tar", "encoder")
    assert torch.equal(before.pos_embed, after.pos_embed)

    def moved(i):
        a, b = before.blocks[i].mlp.fc1.weight, after.blocks[i].mlp.fc1.weight
        return (a - b).abs().mean().item()

    # AdamW's steps are as long as the rate, whatever the gradient: layers differ by about a factor of two each.
    assert 0 < moved(5) < moved(8) / 4 < moved(11) / 16


def test_stopping_after_an_epoch_changes_nothing(config, tmp_path, monkeypatch):
    whole = run({**config, "folder": str(tmp_path / "whole")})

    class Stop(Exception):
        pass

    def stop(self, text):
        if "epoch 1/2" in text:
            raise Stop

    parts = {**config, "folder": str(tmp_path / "parts")}
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Evaluation, "log", stop)
        run(parts)
    resumed = run(parts, resume=True)
    assert resumed["scores"] == whole["scores"] and resumed["heads"] == whole["heads"]
    a, b = (checkpoint.load(tmp_path / name / "jepa-latest.pth.tar") for name in ("whole", "parts"))
    for name, value in a["encoder"].items():
        assert torch.equal(value, b["encoder"][name]), name


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimization.lrs=[1e-3,1e-4]", "optimization.lrs has several values, but the encoder trains with one"),
        ("data.cache_features=true", "data.cache_features=true keeps the features of a frozen encoder"),
        ("probes=[knn]", "probes.0: expected one of 'attentive'"),
        ("optimization.layer_decay=0", "optimization.layer_decay: expected a number above 0"),
        ("eval_name=video_classification_frozen", "unknown key optimization.layer_decay"),
    ],
)
def test_what_cannot_be_tuned_is_refused(override, expected):
    with pytest.raises(UserError) as error:
        scaffold.load("configs/evals/vm_tiny_digits_finetune.yaml", [override])
    assert expected in str(error.value)
