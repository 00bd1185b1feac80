"""`python -m app.keys` has moved: see tools.keys."""

from __future__ import annotations

from src.utils.errors import moved

if __name__ == "__main__":
    moved("app.keys", "tools.keys")
