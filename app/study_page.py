"""`python -m app.study_page` has moved: see tools.study.page."""

from __future__ import annotations

from src.utils.errors import moved

if __name__ == "__main__":
    moved("app.study_page", "tools.study.page")
