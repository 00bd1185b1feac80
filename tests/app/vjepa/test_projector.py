"""A projection between the encoder and what is predicted: trained, averaged, saved, and absent where it is off."""

import copy

import pytest
import torch

from app.vjepa import train
from app.vjepa.config import PretrainConfig
from app.vjepa.train import main, make_loader, train_step
from app.vjepa.utils import Run, Schedule, init_opt, init_video_model
from src.jepa.build import make_target_encoder
from src.jepa.objective import VideoJEPA, make_targets
from src.models import load_encoder
from src.models.loading import load_predictor
from src.utils.checkpoint import load
from src.utils.errors import UserError

KEYS = ("encoder", "predictor", "target_encoder", "target_projector")


pytestmark = pytest.mark.usefixtures("small_backbones", "process_group")


def config(small, name="run", **sections):
    return PretrainConfig.model_validate(small(name, **sections)[0])


def build(cfg):
    encoder, predictor = init_video_model(cfg)
    target, projector = make_target_encoder(encoder), make_target_encoder(predictor.projector)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = init_opt(encoder, predictor, cfg)
    return Run(
        encoder, predictor, target, VideoJEPA(encoder, predictor), optimizer, scaler, 4, 2, target_projector=projector
    )


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_step_trains_it_and_moves_its_average(small, kind):
    cfg = config(small, model={"projector": kind, "drop_path_rate": 0.0})
    run = build(cfg)
    before = copy.deepcopy(run.target_projector.state_dict())
    online = {name: value.clone() for name, value in run.predictor.projector.named_parameters()}
    train_step(cfg, run, [next(iter(make_loader(cfg, 0, 1)))], Schedule(lr=1e-2, weight_decay=0.0, momentum=0.9))
    for name, parameter in run.predictor.projector.named_parameters():
        assert parameter.grad.norm() > 0 and not torch.equal(parameter, online[name]), name
        wanted = 0.9 * before[name] + 0.1 * parameter
        torch.testing.assert_close(run.target_projector.get_parameter(name), wanted, rtol=1e-6, atol=1e-7)
    assert not any(p.requires_grad for p in run.target_projector.parameters())


def test_targets_are_projected_before_they_are_normalised(small):
    run = build(config(small, model={"projector": "linear"}))
    clips, masks = torch.randn(2, 3, 4, 32, 32), [torch.tensor([[0, 5], [3, 7]])]
    (targets,) = make_targets(run.target, clips, masks)
    with torch.no_grad():
        hidden = run.target_projector(run.target_encoder(clips))
    wanted = torch.nn.functional.layer_norm(hidden, (192,))
    torch.testing.assert_close(targets, torch.stack([wanted[0, [0, 5]], wanted[1, [3, 7]]]))


def test_a_resumed_run_has_every_bit_of_one_that_never_stopped(small):
    whole = config(small, "whole", model={"projector": "mlp"})
    main(whole)
    parts = config(small, "parts", model={"projector": "mlp"}, optimization={"epochs": 2, "ipe_scale": 1.5})
    main(parts)
    main(config(small, "parts", model={"projector": "mlp"}))
    one, other = (load(cfg.output_folder() / "jepa-latest.pth.tar") for cfg in (whole, parts))
    assert len(one["target_projector"]) == 4
    for key in KEYS:
        for name, value in one[key].items():
            assert torch.equal(value, other[key][name]), f"{key} {name}"


def test_a_projector_is_not_lost_or_made_up_when_resuming(small):
    main(config(small, model={"projector": "linear"}, optimization={"epochs": 1}))
    with pytest.raises(UserError, match=r"predictor: .*projector"):
        main(config(small))
    state = load(config(small).output_folder() / "jepa-latest.pth.tar")
    del state["target_projector"]
    torch.save(state, config(small).output_folder() / "jepa-latest.pth.tar")
    with pytest.raises(UserError, match=r"target_projector: .*weight"):
        main(config(small, model={"projector": "linear"}))


def test_probes_get_the_encoder_without_it(small):
    cfg = config(small, model={"projector": "linear"}, optimization={"epochs": 1})
    main(cfg)
    path = cfg.output_folder() / "jepa-latest.pth.tar"
    state, encoder = load(path), load_encoder(path)
    assert encoder.state_dict().keys() == state["target_encoder"].keys()
    assert not [name for name in state["target_encoder"] if "projector" in name]
    predictor = load_predictor(path)
    assert torch.equal(predictor.projector.weight, state["predictor"]["projector.weight"])
    del state["config"]  # as V-JEPA's files are: read off the names
    state = {key: {n: v.clone() for n, v in value.items()} if key in KEYS else value for key, value in state.items()}
    torch.save(state, path)
    assert load_predictor(path).state_dict().keys() == predictor.state_dict().keys()


def test_without_one_a_run_is_what_it_was(small, monkeypatch):
    """Against a run whose targets are those of the encoder alone, and in whose checkpoint nothing is new."""
    main(config(small, "now", optimization={"epochs": 1}))
    then = config(small, "then", optimization={"epochs": 1})
    make = train.make_targets
    monkeypatch.setattr(train, "make_targets", lambda target, *rest: make(target[0], *rest))
    main(then)
    now, then = (load(then.output_folder().with_name(name) / "jepa-latest.pth.tar") for name in ("now", "then"))
    assert now["target_projector"] == {} and not [name for name in now["predictor"] if name.startswith("projector")]
    for key in KEYS:
        for name, value in now[key].items():
            assert torch.equal(value, then[key][name]), f"{key} {name}"


def test_mistakes(small):
    with pytest.raises(ValueError, match=r"model\.projector"):
        config(small, model={"projector": "conv"})
    with pytest.raises(ValueError, match=r"'hybrid_tiny' is a predictor only; encoders: videomamba_tiny"):
        config(small, model={"model_name": "hybrid_tiny"})
    with pytest.raises(ValueError, match=r"no model 'hybrid'; predictors: .*hybrid_tiny"):
        config(small, model={"pred_model_name": "hybrid"})
