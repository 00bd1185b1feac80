#!/usr/bin/env bash
# Everything that needs a CUDA GPU, in one go: is it right, how fast is it; adds its rows to docs/results/gpu_*.csv.
#   PYTHON=.venv/bin/python benchmarks/gpu.sh [--mamba]
# --mamba first builds mamba-ssm and causal-conv1d for this GPU alone (nvcc needed; minutes) and measures ours beside them.
# Needs a CUDA build of torch and this repository installed (pip install -e '.[test]'). Where there is no network, see
# benchmarks/gpu/prepare.sh. DEADLINE (seconds) ends it sooner; what was measured until then is kept.
cd "$(dirname "$0")/.."
DEADLINE=${DEADLINE:-1800}
OUT=${OUT:-gpu-out}
rm -rf "$OUT"
source benchmarks/gpu/parts.sh
[[ -d .gpu/whl ]] && { part wheels 60 install_wheels "$WORK/site" .gpu/whl/*.whl; export PYTHONPATH=$WORK/site:$WORK/mamba; }
part machine 60 machine || { echo "error: torch sees no CUDA device; run this on a machine with a GPU" >&2; exit 2; }
if [[ "${1:-}" == --mamba ]]; then part build 900 bash benchmarks/gpu/build_mamba.sh; fi

part warm 120 warm_all
part smoke 90 measure smoke
part bidi 90 measure bidi
part conv_right 60 measure conv_right
for dtype in float32 bfloat16 float16; do part "matrix_$dtype" 200 matrix triton "$dtype"; done

part data 90 "$PYTHON" -m src.datasets.embedded.generate --scene drift
part times 200 measure scan,tune,kernels,issue,conv
part steps 300 measure steps
part profile 60 measure profile
part extras 60 measure extras
if [[ "${1:-}" == --mamba ]]; then
    part smoke_cuda 90 measure smoke --backend cuda   # mamba-ssm refuses batch 0
    part versus 150 measure versus
fi
cat "$WORK"/{smoke,bidi,conv_right,matrix_*}.log >"$OUT/check.txt" 2>/dev/null
finish
"$PYTHON" -m benchmarks.gpu.table "$OUT/rows.jsonl"
