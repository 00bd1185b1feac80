"""Backbones, predictor and probe head."""

from src.models.loading import load_encoder

__all__ = ["load_encoder"]
