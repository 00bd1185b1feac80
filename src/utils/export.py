"""`python -m src.utils.export` has moved: see src.models.export."""

from __future__ import annotations

from src.utils.errors import moved

if __name__ == "__main__":
    moved("src.utils.export", "src.models.export")
