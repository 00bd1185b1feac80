"""Fine-tuning on videos: the frozen evaluation's data, views and probe, with an encoder that trains along."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evals.classification.evaluation import Evaluation
from evals.classification.finetuning import Tuning
from evals.config import VideoFinetuneConfig
from evals.video_classification_frozen.eval import build_task
from src.config.loading import check_ready


def main(args_eval: VideoFinetuneConfig, resume_preempt: bool = False) -> dict[str, Any] | None:
    """Run the fine-tuning in this process; the main one returns what it wrote to the json.

    Raises:
        UserError: anything wrong with config, checkpoint or data.
    """
    check_ready(args_eval, "config")
    tuning = Tuning(args_eval.optimization.layer_decay, args_eval.optimization.drop_path_rate)
    task = replace(build_task(args_eval), tuning=tuning)
    return Evaluation(args_eval, task, args_eval.resume_checkpoint or resume_preempt).run()
