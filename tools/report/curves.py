"""Curves of a run's logs. Several runs share panels: a colour for each run, a line style for each metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from app.vjepa.diagnostics import MIN_BETWEEN_CLIP_STD, MIN_EFFECTIVE_RANK
from src.models.registry import backbone_config
from src.utils.plotting import GREY, INCH, LINES, Margins, draw_curve, figure, finish, thin, to_svg
from tools.report.page_parts import Note, Part, Picture
from tools.report.run_folder import Log, RunFolder

NAMES_A_ROW = 3  # of the legend
Panel = Callable[[Axes, Sequence[RunFolder]], None]


def training_curves(runs: Sequence[RunFolder]) -> list[Part]:
    """Loss, gradients, schedules and pace of the runs that have taken a step."""
    logged = [run for run in runs if run.log]
    parts = _without(runs, logged, "no step is logged yet (its csv is missing or empty)")
    if not logged:
        return parts
    caption = (
        "Left: the loss that is minimised, means of neighbouring steps, shaded from the lowest to the highest of them. "
        "A falling loss alone is no sign of learning: features that collapse are easy to predict. Right: norms of the "
        "gradients, before clipping."
    )
    parts.append(_row([_loss, _gradient_norms], logged, "Loss and gradient norms over the steps", caption))
    complete = [run for run in logged if {"lr", "weight-decay", "ema", "data-time(ms)"} <= set(run.log)]
    parts += _without(logged, complete, "its csv has neither schedules nor the time spent waiting for data")
    if complete:
        caption = "The schedules, as they were in each step."
        parts.append(_row([_lr, _decay, _ema], complete, "Learning rate, weight decay and EMA over the steps", caption))
    caption = "Clips per second of one process, waiting for data included" + (
        ", and the share of the time that it waits for data: where that is not near zero, more of data.num_workers "
        "would make the run faster."
        if complete
        else "."
    )
    panels = [_pace, _wait] if complete else [_pace]
    parts.append(_row(panels, logged, "Throughput and waiting for data over the steps", caption))
    return parts


def diagnostics_curves(runs: Sequence[RunFolder]) -> list[Part]:
    """The metrics of `<tag>-diagnostics.csv`."""
    diagnosed = [run for run in runs if run.diagnostics]
    reason = "no diagnostics: logging.diagnose_every is null, or none has been made yet"
    parts = _without(runs, diagnosed, reason)
    if not diagnosed:
        return parts
    caption = (
        "Left: the target features' standard deviation over all tokens (solid) and between clips at the same place "
        f"(dashed); below {MIN_BETWEEN_CLIP_STD:g}, the dotted line, features tell little but where a token is. "
        "Middle: dimensions that the targets use, after subtracting their mean (solid) and before (dashed), out of the "
        "encoder's width; the dotted line, an eighth of it, is where the run warns. Right: how far one step moves the "
        "weights, relative to their size; around 1e-3 is usual."
    )
    panels = [_spread, _ranks, _updates]
    parts.append(_row(panels, diagnosed, "Spread and rank of the target features, and update ratios", caption))
    caption = (
        "Left: the predictions' mean absolute error at the first (solid) and the last (dashed) time index of the clip. "
        "Middle: cosine between the mean features of different clips, of targets (solid) and predictions (dashed); 1 "
        "means that all clips look alike. Right: gradient norms of the steps that were measured, after clipping."
    )
    panels = [_errors, _cosines, _gradients]
    parts.append(_row(panels, diagnosed, "Error over time, similarity of clips, gradients", caption))
    return parts


def _without(runs: Sequence[RunFolder], having: Sequence[RunFolder], reason: str) -> list[Part]:
    names = [run.name for run in runs if run not in having]
    return [Note(f"{', '.join(names)}: {reason}.")] if names else []


def _row(panels: Sequence[Panel], runs: Sequence[RunFolder], alt: str, caption: str) -> Picture:
    """Panels side by side; above them the runs' colours if there are several."""
    legend = 0.35 * -(-len(runs) // NAMES_A_ROW) if len(runs) > 1 else 0
    width = 11.0 if len(panels) > 1 else 5.5
    with figure(1, len(panels), 3.0 + legend, width, Margins(top=0.4 + legend)) as (fig, grid):
        for draw, axes in zip(panels, grid.flat):
            draw(axes, runs)
        if len(runs) > 1:
            lines = [Line2D([], [], color=run.color, linewidth=3, label=run.name) for run in runs]
            fig.legend(handles=lines, loc="upper left", ncols=NAMES_A_ROW)
        return Picture(to_svg(fig), alt, caption, width=round(INCH * width))


def _lines(axes: Axes, logs: Sequence[tuple[Log, str]], columns: Sequence[str], band: bool = False) -> None:
    """Columns of every run's table in its colour, a line style for each column."""
    for log, color in logs:
        for style, column in zip(LINES, columns):
            if column in log:
                draw_curve(axes, log["step"], log[column], color, style, band)


def _logs(runs: Sequence[RunFolder]) -> list[tuple[Log, str]]:
    return [(run.log, run.color) for run in runs]


def _diagnostics(runs: Sequence[RunFolder]) -> list[tuple[Log, str]]:
    return [(run.diagnostics, run.color) for run in runs]


def _loss(axes: Axes, runs: Sequence[RunFolder]) -> None:
    _lines(axes, _logs(runs), ["loss"], band=True)
    finish(axes, "Loss", "loss")


def _gradient_norms(axes: Axes, runs: Sequence[RunFolder]) -> None:
    _lines(axes, _logs(runs), ["enc-grad-norm", "pred-grad-norm"])
    finish(axes, "Gradient norms", "L2 norm", ["encoder", "predictor"], log=True)


def _pace(axes: Axes, runs: Sequence[RunFolder]) -> None:
    for run in runs:
        step, milliseconds, *_ = thin(run.log["step"], run.log["wall-time(ms)"])
        clips = run.config.data.batch_size * run.config.data.num_clips * run.config.optimization.accumulate_steps
        draw_curve(axes, step, 1000 * clips / np.maximum(milliseconds, 1e-3), run.color)
    finish(axes, "Throughput", "clips / s and process", zero=True)


def _wait(axes: Axes, runs: Sequence[RunFolder]) -> None:
    for run in runs:
        if "data-time(ms)" in run.log:
            step, waited, *_ = thin(run.log["step"], run.log["data-time(ms)"])
            total = thin(run.log["step"], run.log["wall-time(ms)"])[1]
            draw_curve(axes, step, 100 * waited / np.maximum(total, 1e-3), run.color)
    axes.set_ylim(0, 100)
    finish(axes, "Waiting for data", "% of the time")


def _lr(axes: Axes, runs: Sequence[RunFolder]) -> None:
    _lines(axes, _logs(runs), ["lr"])
    finish(axes, "Learning rate", "rate", zero=True)
    axes.yaxis.set_major_formatter("{x:g}")


def _decay(axes: Axes, runs: Sequence[RunFolder]) -> None:
    _lines(axes, _logs(runs), ["weight-decay"])
    finish(axes, "Weight decay", "decay", zero=True)


def _ema(axes: Axes, runs: Sequence[RunFolder]) -> None:
    _lines(axes, _logs(runs), ["ema"])
    finish(axes, "EMA of the target encoder", "momentum")


def _spread(axes: Axes, runs: Sequence[RunFolder]) -> None:
    _lines(axes, _diagnostics(runs), ["target/feature_std", "target/between_clip_std"])
    axes.axhline(MIN_BETWEEN_CLIP_STD, color=GREY, linestyle=":", linewidth=1)
    finish(axes, "Spread of the targets", "standard deviation", ["all tokens", "between clips"], zero=True)


def _ranks(axes: Axes, runs: Sequence[RunFolder]) -> None:
    _lines(axes, _diagnostics(runs), ["target/effective_rank_centered", "target/effective_rank"])
    for width in {backbone_config(run.config.model.model_name).embed_dim for run in runs}:
        axes.axhline(MIN_EFFECTIVE_RANK * width, color=GREY, linestyle=":", linewidth=1)
    finish(axes, "Effective rank of the targets", "dimensions", ["less their mean", "as they are"], zero=True)


def _updates(axes: Axes, runs: Sequence[RunFolder]) -> None:
    _lines(axes, _diagnostics(runs), ["update/encoder", "update/predictor"])
    finish(axes, "Update ratio", "|change| / |weights|", ["encoder", "predictor"], log=True)


def _errors(axes: Axes, runs: Sequence[RunFolder]) -> None:
    for run in runs:
        times = [name for name in run.diagnostics if name.startswith("error/time_")]
        _lines(axes, [(run.diagnostics, run.color)], list(dict.fromkeys((times[0], times[-1]))))
    finish(axes, "Prediction error", "mean |difference|", ["first time index", "last time index"])


def _cosines(axes: Axes, runs: Sequence[RunFolder]) -> None:
    _lines(axes, _diagnostics(runs), ["target/between_clip_cosine", "prediction/between_clip_cosine"])
    finish(axes, "Similarity of different clips", "cosine", ["targets", "predictions"])


def _gradients(axes: Axes, runs: Sequence[RunFolder]) -> None:
    _lines(axes, _diagnostics(runs), ["gradient/encoder", "gradient/predictor"])
    finish(axes, "Gradients, as applied", "L2 norm", ["encoder", "predictor"], log=True)
