"""A step whose gradient is not finite changes nothing, is counted, and is never what a checkpoint is made of."""

import copy
import math
import re

import pytest
import torch

from app.vjepa import diagnostics, train
from app.vjepa.checkpoints import save_checkpoint
from app.vjepa.metrics import MetricLogger
from app.vjepa.utils import Schedule
from src.utils.checkpoint import first_not_finite, load
from src.utils.errors import UserError
from src.utils.experiment_loggers import ExperimentLogger
from src.utils.progress import Progress
from tests.app.vjepa.small_runs import assert_same, build, config, rows

pytestmark = pytest.mark.usefixtures("small_backbones", "process_group")

NOW = Schedule(lr=1e-3, weight_decay=0.04, momentum=0.9)


def hook(parameter, change):
    return lambda run: parameter(run).register_hook(change)


def a_norm(run):
    return run.encoder.layers[0].norm.weight


# What a broken step is like: a change of its loss, or a hook on one parameter's gradient.
BROKEN = {
    "a loss of nan": math.nan,
    "an infinite loss with a finite gradient": math.inf,
    "a gradient of nan in the encoder": hook(a_norm, lambda g: g * math.nan),
    "one infinite number in the predictor": hook(
        lambda run: run.predictor.predictor_embed.bias, lambda g: g.index_fill(0, torch.tensor([0]), -math.inf)
    ),
    "a gradient whose square overflows": hook(a_norm, lambda g: torch.full_like(g, 1e25)),
}


@pytest.fixture
def breaking(monkeypatch):
    """Breaks the given steps of the runs that follow; `batch`: only that batch of a step."""

    def arrange(steps, how="a loss of nan", batch=None):
        way, at = BROKEN[how], {}

        def faulty_step(args, run, group, now):
            at.update(broken=run.step in steps, batch=0)
            handle = way(run) if at["broken"] and callable(way) else None
            numbers = train_step(args, run, group, now)
            if handle:
                handle.remove()
            return numbers

        def faulty_losses(*args, **kwargs):
            found = jepa_losses(*args, **kwargs)
            hit = at["broken"] and batch in (None, at["batch"]) and not callable(way)
            at["batch"] += 1
            return found._replace(loss=found.loss + way) if hit else found

        monkeypatch.setattr(train, "train_step", faulty_step)
        monkeypatch.setattr(train, "jepa_losses", faulty_losses)

    train_step, jepa_losses = train.train_step, train.jepa_losses
    return arrange


def snapshot(run):
    modules = (run.encoder, run.predictor, run.target_encoder)
    return copy.deepcopy([*(module.state_dict() for module in modules), run.optimizer.state_dict()["state"]])


def assert_same_snapshots(one, other):
    for ours, theirs in zip(one[:3], other[:3], strict=True):
        assert_same(ours, theirs)
    assert one[3].keys() == other[3].keys()
    for key, state in one[3].items():
        assert_same(state, other[3][key])


@pytest.mark.parametrize("fused", [False, True], ids=["read by the host", "left to the device"])
@pytest.mark.parametrize(
    ("how", "keys"),
    [(how, {}) for how in BROKEN]
    + [("a loss of nan", {"clip_grad": 1.0}), ("one infinite number in the predictor", {"clip_grad": 1.0})],
)
def test_a_broken_step_changes_nothing(lists, tmp_path, breaking, fused, how, keys):
    """Nor what comes after: the next step is as if it had not been."""
    cfg = config(lists, tmp_path, optimization=keys)
    batches = [batch for batch, _ in zip(train.make_loader(cfg, 0, 1), range(2))]
    runs = [build(cfg), build(cfg)]
    breaking([1], how)
    for run in runs:
        keep = ("params", "lr_scale", "WD_exclude")
        groups = [{key: group[key] for key in keep} for group in run.optimizer.param_groups]
        run.optimizer = torch.optim.AdamW(groups, fused=fused)
        assert train.train_step(cfg, run, batches[:1], NOW)[5] == 1
    before, runs[0].step = snapshot(runs[0]), 1
    numbers = train.train_step(cfg, runs[0], batches[:1], NOW)
    assert numbers[5] == 0 and not numbers[3:5].isfinite().all()
    assert_same_snapshots(snapshot(runs[0]), before)
    for run in runs:
        run.step = 2
        assert train.train_step(cfg, run, batches[1:], NOW)[5] == 1
    assert_same_snapshots(*map(snapshot, runs))


@pytest.mark.parametrize("batch", [0, 1])
def test_one_broken_batch_of_several_breaks_the_step(lists, tmp_path, breaking, batch):
    cfg = config(lists, tmp_path)
    run, batches = build(cfg), [batch for batch, _ in zip(train.make_loader(cfg, 0, 1), range(2))]
    breaking([0], "an infinite loss with a finite gradient", batch)
    before = snapshot(run)
    numbers = train.train_step(cfg, run, batches, NOW)
    assert math.isinf(numbers[0]) and numbers[5] == 0
    assert_same_snapshots(snapshot(run), before)


@pytest.mark.parametrize("broken", [2, 4], ids=["just before it is saved", "after it was resumed"])
def test_a_run_with_a_skipped_step_resumes_exactly(lists, tmp_path, breaking, caplog, broken):
    breaking([broken])
    train.main(config(lists, tmp_path / "whole"))
    part = config(lists, tmp_path / "part")
    stopped = config(lists, tmp_path / "part", optimization={"epochs": 1, "ipe_scale": 2})
    train.main(stopped)
    assert first_not_finite(load(tmp_path / "part/jepa-latest.pth.tar")) is None
    train.main(part, resume_preempt=True)
    a, b = (load(tmp_path / name / "jepa-latest.pth.tar") for name in ("whole", "part"))
    for key in ("encoder", "predictor", "target_encoder"):
        assert_same(a[key], b[key])
    for key, state in a["opt"]["state"].items():
        assert_same(state, b["opt"]["state"][key])
    assert a["opt"]["state"][0]["step"] == 5
    assert [(s["step"], s["skipped"], s["skipped_in_a_row"]) for s in (a, b)] == [(6, 1, 0)] * 2
    assert math.isfinite(a["loss"])
    losses = [row["loss"] for row in rows(tmp_path / "part")]
    assert [itr for itr, loss in enumerate(losses) if loss == "nan"] == [broken]
    assert [row["lr"] for row in rows(tmp_path / "whole")] == [row["lr"] for row in rows(tmp_path / "part")]
    assert caplog.text.count(f"epoch {broken // 3}, step {broken % 3} is skipped: its gradient is not finite") == 2
    assert caplog.text.count("jepa-latest.pth.tar, 1 of 6 steps were skipped") == 2


@pytest.mark.parametrize("read_every", [1, 4])
@pytest.mark.parametrize(
    ("first", "ipe", "said", "kept"),
    [
        (0, 9, "epoch 0, step 2 (loss nan)", "nothing was saved yet"),
        (3, 3, "epoch 1, step 2 (loss nan)", "LATEST is from before (step 3)"),
        (4, 3, "epoch 2, step 0 (loss nan)", "LATEST was saved since, with the weights from before; without that file "
                                             "the run goes on from PREVIOUS, which is older"),
        (2, 3, "epoch 1, step 1 (loss nan)", "LATEST was saved since, with the weights from before"),
    ],
)  # fmt: skip
def test_too_many_in_a_row_end_the_run(lists, tmp_path, breaking, read_every, first, ipe, said, kept):
    """However late they are read, and whatever comes after them: step `first` + 5 would do again."""
    breaking(range(first, first + 5))
    logging = {"folder": str(tmp_path), "read_every": read_every}
    cfg = config(lists, tmp_path, logging=logging, optimization={"ipe": ipe, "epochs": 3, "max_skipped_steps": 2})
    with pytest.raises(UserError) as error:
        train.main(cfg)
    names = {"LATEST": tmp_path / "jepa-latest.pth.tar", "PREVIOUS": tmp_path / "jepa-previous.pth.tar"}
    for word, path in names.items():
        kept = kept.replace(word, str(path))
    assert str(error.value) == (
        f"the gradient is not finite at {said}, in process 0 of 1, whose files are in {tmp_path / 'bad_batch.csv'}; "
        "3 in a row were skipped, more than optimization.max_skipped_steps=2: lower optimization.lr, or compute in "
        f"meta.dtype=float32; {kept}"
    )
    assert len(rows(tmp_path)) == first + 3
    assert len((tmp_path / "bad_batch.csv").read_text().splitlines()) == 3


def test_files_of_a_finite_loss_are_named_too(lists, tmp_path, breaking, caplog):
    breaking([1], "a gradient of nan in the encoder")
    train.main(config(lists, tmp_path, optimization={"epochs": 1}))
    assert re.search(r"step 1 is skipped: .* \(loss 0\.\d+\), whose files are in .*bad_batch.csv; 1 in a", caplog.text)
    assert len((tmp_path / "bad_batch.csv").read_text().splitlines()) == 3


def test_diagnostics_say_nothing_of_a_skipped_step(lists, tmp_path, breaking, caplog, monkeypatch):
    """A warning that holds before and after it is not given again."""
    monkeypatch.setattr(diagnostics, "MIN_GRADIENT_RATIO", math.inf)
    breaking([3], "one infinite number in the predictor")
    cfg = config(lists, tmp_path, logging={"folder": str(tmp_path), "diagnose_every": 1})
    train.main(cfg)
    assert caplog.text.count("the encoder does not learn") == 1


def test_skipped_steps_push_no_older_weights_off_the_disk(lists, tmp_path, breaking):
    """A checkpoint after each step, and the last three the same weights."""
    breaking([3, 4, 5])
    train.main(config(lists, tmp_path, optimization={"ipe": 1, "epochs": 6}))
    latest, previous = (load(tmp_path / f"jepa-{which}.pth.tar") for which in ("latest", "previous"))
    assert (latest["step"], latest["skipped_in_a_row"], previous["step"]) == (6, 3, 2)
    assert not torch.equal(latest["encoder"]["norm_f.weight"], previous["encoder"]["norm_f.weight"])


def test_steps_in_a_row_are_counted_across_a_resumption(lists, tmp_path, breaking):
    breaking([2, 3])
    train.main(config(lists, tmp_path, optimization={"epochs": 1, "max_skipped_steps": 1}))
    with pytest.raises(UserError, match=r"at epoch 1, step 0 .* 2 in a row were skipped"):
        train.main(config(lists, tmp_path, optimization={"max_skipped_steps": 1}), resume_preempt=True)


def scaled(cfg, scale):
    """A run with the loss scale of float16, as on a GPU; and its metrics."""
    run = build(cfg)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return run, MetricLogger(cfg, run, ExperimentLogger(cfg.output_folder(), enabled=False), False, enabled=False)


def steps(cfg, run, metrics, count):
    for batch, _ in zip(train.make_loader(cfg, 0, 1), range(count)):
        metrics.append(train.train_step(cfg, run, [batch], NOW), NOW, [batch])
        run.step += 1
    metrics.flush(Progress(count, enabled=False))


def test_the_search_for_a_loss_scale_is_not_counted(lists, tmp_path, caplog):
    cfg = config(lists, tmp_path, optimization={"max_skipped_steps": 0, "ipe": 8})
    run, metrics = scaled(cfg, 2.0**30)
    run.predictor.predictor_proj.bias.register_hook(lambda g: g.half().float())  # above 65504: inf
    caplog.set_level("INFO")
    steps(cfg, run, metrics, 8)
    searched = caplog.text.count("is skipped: a loss scale of")
    assert 0 < searched < 8
    assert "epoch 0, step 0 is skipped: a loss scale of 1.07374e+09 is too high for it" in caplog.text
    assert (run.skipped, run.skipped_in_a_row) == (0, 0) and math.isfinite(run.loss)
    assert run.scaler.get_scale() == 2.0 ** (30 - searched)
    assert run.optimizer.state_dict()["state"][0]["step"] == 8 - searched


@pytest.mark.parametrize(
    ("scale", "how"), [(1.0, "a gradient of nan in the encoder"), (2.0**16, "a loss of nan")], ids=["at 1", "by a loss"]
)
def test_what_no_loss_scale_helps_is_counted(lists, tmp_path, breaking, scale, how):
    cfg = config(lists, tmp_path, optimization={"max_skipped_steps": 0})
    run, metrics = scaled(cfg, scale)
    breaking([1], how)
    with pytest.raises(UserError, match=r"the gradient is not finite at epoch 0, step 1 "):
        steps(cfg, run, metrics, 2)


@pytest.mark.parametrize(
    ("name", "poison"),
    [
        ("encoder.norm_f.weight", lambda run: run.encoder.norm_f.weight.data),
        ("predictor.predictor_embed.bias", lambda run: run.predictor.predictor_embed.bias.data),
        ("target_encoder.norm_f.weight", lambda run: run.target_encoder.norm_f.weight.data),
        ("opt.state.0.exp_avg_sq", lambda run: run.optimizer.state_dict()["state"][0]["exp_avg_sq"]),
    ],
)
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_checkpoint_is_never_made_of_what_is_not_finite(lists, tmp_path, name, poison, value):
    cfg = config(lists, tmp_path)
    run, batch = build(cfg), next(iter(train.make_loader(cfg, 0, 1)))
    train.train_step(cfg, run, [batch], NOW)
    run.step = 1
    save_checkpoint(run, cfg, 1)
    latest = tmp_path / "jepa-latest.pth.tar"
    before = latest.read_bytes()
    poison(run).view(-1)[-1] = value
    run.step = 3
    with pytest.raises(UserError) as error:
        save_checkpoint(run, cfg, 1)
    assert str(error.value) == (
        f"no checkpoint is written at step 3, as {name} is not finite: lower optimization.lr, or compute in "
        f"meta.dtype=float32; {latest} is from before (step 1)"
    )
    assert latest.read_bytes() == before
    assert not (tmp_path / "jepa-previous.pth.tar").exists() and not (tmp_path / "jepa-e1.pth.tar").exists()


def test_a_loss_scale_of_zero_is_not_saved(lists, tmp_path):
    cfg = config(lists, tmp_path)
    run, metrics = scaled(cfg, 2.0)
    steps(cfg, run, metrics, 1)
    run.scaler.update(0.0)
    with pytest.raises(UserError, match="the loss scale of float16 has fallen to 0"):
        save_checkpoint(run, cfg, 1)


def test_a_poisoned_checkpoint_of_an_earlier_version_gives_way_to_the_one_before(lists, tmp_path, caplog):
    cfg = config(lists, tmp_path)
    train.main(cfg)
    latest = tmp_path / "jepa-latest.pth.tar"
    state = load(latest)
    state["encoder"]["norm_f.weight"].fill_(math.nan)
    torch.save(state, latest)
    train.main(cfg, resume_preempt=True)
    said = f"{latest}: encoder.norm_f.weight is not finite; going back to {tmp_path / 'jepa-previous.pth.tar'}"
    assert said in caplog.messages
    assert first_not_finite(load(latest)) is None
