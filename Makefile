# make demo    pretrain VideoMamba-Tiny on the embedded data, probe it, show the table, write a report
# make test    the whole test suite
# make test-extras   what the test suite skips for want of a large package: Triton's kernels in its interpreter, on the
#                    CPU, timm's models, and rendered scenes; installs them
# make test-wheel   build the wheel, install it into a new environment beside a project with its own src/, and use it
# make lint    ruff, mypy, and the import contract of pyproject.toml
# Each makes .venv by itself; PYTHON=python3.12 picks the interpreter, PIP_FLAGS goes to pip install.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-extras test-wheel lint format clean

demo: $(INSTALLED)
	$(BIN)/python -m src.datasets.embedded.generate --scene drift
	$(BIN)/python -m app.main --fname configs/pretrain/vm_tiny.yaml
	$(BIN)/python -m evals.main --fname configs/evals/vm_tiny_motion.yaml
	$(BIN)/python -m tools.report runs/vm_tiny

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-extras: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt triton timm metaworld mujoco packaging
	$(BIN)/python -m pytest tests/src/ops/test_triton.py tests/src/ops/test_triton_compile.py tests/src/models/test_timm_models.py tests/src/datasets/embedded/metaworld

test-wheel: $(INSTALLED)
	$(BIN)/python -m pytest -m slow tests/packaging/test_wheel.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info src/ops/*.so

$(INSTALLED): setup.py constraints.txt $(wildcard src/ops/*/csrc/*)
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit(f"error: Python {v[0]}.{v[1]} is too old: call make PYTHON=python3.11, or newer than 3.9")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt --editable '.[test]'
	@touch $@
