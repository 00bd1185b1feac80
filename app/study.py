"""`python -m app.study` has moved: see tools.study."""

from __future__ import annotations

from src.utils.errors import moved

if __name__ == "__main__":
    moved("app.study", "tools.study")
