"""The predictor of a checkpoint: it sees the context only, and its weights are the checkpoint's."""

import pytest
import torch

from evals.config_sections import CheckpointConfig
from evals.future_prediction.future_predictor import FuturePredictor, load_future_predictors
from src.jepa.build import build_encoder_and_predictor
from src.utils.checkpoint import load
from tests.evals.future_prediction.small_runs import pretraining, save_run

pytestmark = pytest.mark.usefixtures("small_backbones")


@torch.no_grad()
def test_predictions_know_the_context_only(tmp_path):
    model = FuturePredictor(pretraining(tmp_path).model_dump(), 2, tmp_path)
    torch.manual_seed(0)
    for p in model.parameters():
        p.add_(0.05 * torch.randn_like(p))
    clips = torch.randn(3, 3, 8, 32, 32)
    altered = clips.clone()
    altered[:, :, 4:] = torch.randn(3, 3, 4, 32, 32)
    for answer in (model.predict, model.copy_last):
        assert answer(clips).shape == (3, 8, model.jepa.encoder.backbone.embed_dim)  # 2 tubelets of 4 patches
        assert torch.equal(answer(clips), answer(altered))
        assert not torch.equal(answer(clips), answer(clips.flip(2)))
    tubelets = model.copy_last(clips).unflatten(1, (2, 4))
    assert torch.equal(tubelets[:, 0], tubelets[:, 1])
    targets = model.targets({"true": clips, "static": altered})
    assert not torch.allclose(targets["true"], targets["static"])


def test_the_checkpoint_is_what_is_evaluated(tmp_path):
    path = save_run(pretraining(tmp_path))
    before = torch.get_rng_state()
    checkpoint = CheckpointConfig(folder=str(path.parent), checkpoint=path.name)
    models, trained_as, source = load_future_predictors(checkpoint, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert (trained_as["loss"]["target_norm"], source) == ("batch_standardize", f"{path}, step 5")
    state = load(path)
    for name, stored in state["predictor"].items():
        assert torch.equal(models["pretrained"].jepa.predictor.backbone.state_dict()[name], stored)
    for name, fresh in build_encoder_and_predictor(trained_as)[0].state_dict().items():
        assert torch.equal(models["random"].target_encoder.state_dict()[name], fresh)
    assert models["pretrained"].future_tubelets == 3
