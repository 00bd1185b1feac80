"""`python -m app.report` has moved: see tools.report."""

from __future__ import annotations

from src.utils.errors import moved

if __name__ == "__main__":
    moved("app.report", "tools.report")
