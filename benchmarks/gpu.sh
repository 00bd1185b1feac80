#!/usr/bin/env bash
# Everything about the scan that needs a CUDA GPU, in one go: build mamba-ssm and causal-conv1d for this GPU, run the
# correctness matrix on it in float32 and bfloat16, measure, and leave docs/results/gpu_scan.csv.
#   PYTHON=.venv/bin/python benchmarks/gpu.sh [--skip-build]
# Needs: a CUDA build of torch, nvcc of the same CUDA version, this repository installed (pip install -e .[test]).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}

"$PYTHON" - <<'CHECK' || { echo "error: torch sees no CUDA device; run this on a machine with a GPU" >&2; exit 2; }
import sys, torch
sys.exit(0 if torch.cuda.is_available() else 1)
CHECK

if [[ "${1:-}" != "--skip-build" ]]; then
    command -v nvcc >/dev/null || { echo "error: nvcc is not on PATH; install the CUDA toolkit torch was built for" >&2; exit 2; }
    constraint=$(mktemp)
    trap 'rm -f "$constraint"' EXIT
    "$PYTHON" -c "import torch; print('torch==' + torch.__version__.split('+')[0])" >"$constraint"
    TORCH_CUDA_ARCH_LIST=$("$PYTHON" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
    export TORCH_CUDA_ARCH_LIST MAX_JOBS=${MAX_JOBS:-8}
    export MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE
    "$PYTHON" -m pip install -q -c "$constraint" setuptools wheel packaging ninja
    "$PYTHON" -m pip install -c "$constraint" --no-build-isolation --no-binary mamba-ssm,causal-conv1d \
        causal-conv1d mamba-ssm
fi

SCAN_TEST_DEVICE=cuda "$PYTHON" -m pytest -q tests/src/ops/test_selective_scan.py
for dtype in float32 bfloat16; do
    "$PYTHON" -m src.ops.selective_scan.check --device cuda --dtype "$dtype"
done
"$PYTHON" -m benchmarks.gpu_scan
