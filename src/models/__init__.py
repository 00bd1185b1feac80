"""Backbones, predictor and probe head."""
