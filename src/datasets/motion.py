"""`python -m src.datasets.motion` has moved: see src.datasets.embedded.generate."""

from __future__ import annotations

from src.utils.errors import moved

if __name__ == "__main__":
    moved("src.datasets.motion", "src.datasets.embedded.generate")
