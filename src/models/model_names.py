"""Names of models as values of a YAML: `model.model_name` and `model.pred_model_name`.

The table of models imports torch, which takes seconds. It is read when a name is checked, not for `--help`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def _check_model_name(name: str) -> str:
    from src.models.registry import BACKBONES, PREDICTOR_ONLY

    if name in PREDICTOR_ONLY:
        raise ValueError(f"'{name}' is a predictor only; encoders: {', '.join(BACKBONES)}")
    if name not in BACKBONES:
        raise ValueError(f"there is no model '{name}'; models: {', '.join(BACKBONES)}")
    return name


def _check_predictor_name(name: str) -> str:
    from src.models.registry import BACKBONES, PREDICTOR_ONLY

    if name not in BACKBONES | PREDICTOR_ONLY:
        raise ValueError(f"there is no model '{name}'; predictors: {', '.join(BACKBONES | PREDICTOR_ONLY)}")
    return name


ModelName = Annotated[str, AfterValidator(_check_model_name)]
PredictorName = Annotated[str, AfterValidator(_check_predictor_name)]
