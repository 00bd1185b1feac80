"""`python -m app.sweep_status` has moved: see tools.sweep_status."""

from __future__ import annotations

from src.utils.errors import moved

if __name__ == "__main__":
    moved("app.sweep_status", "tools.sweep_status")
