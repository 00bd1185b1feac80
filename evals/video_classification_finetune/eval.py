"""Fine-tuning on videos: the frozen evaluation's data, views and probe, with an encoder that trains along."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evals.classification.evaluation import evaluate
from evals.classification.finetuning import Tuning
from evals.classification.task import Task
from evals.config import VideoFinetuneConfig
from evals.video_classification_frozen.eval import build_task


def main(args_eval: VideoFinetuneConfig, resume_preempt: bool = False) -> dict[str, Any] | None:
    """Run the fine-tuning in this process; the main one returns what it wrote to the json.

    Raises:
        UserError: anything wrong with config, checkpoint or data.
    """
    return evaluate(args_eval, build_tuned_task, resume_preempt)


def build_tuned_task(cfg: VideoFinetuneConfig) -> Task:
    """Loaders and shapes of the frozen evaluation, and how the encoder trains along."""
    tuning = Tuning(cfg.optimization.layer_decay, cfg.optimization.drop_path_rate)
    return replace(build_task(cfg), tuning=tuning)
