#!/usr/bin/env bash
# The study on a CUDA GPU: the sweeps of configs/sweeps at 16 frames of 112 px, VideoMamba-Tiny beside ViT-Tiny at 112 and 224 px,
# and the time and memory of a step of both (gpu-out/rows.jsonl). Leaves docs/results/gpu_*.csv; goes on where it was stopped.
#   PYTHON=.venv/bin/python benchmarks/gpu_study.sh [--dry-run]
# Needs: a CUDA build of torch, this repository installed (pip install -e .). EPOCHS makes it shorter or longer.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
EPOCHS=${EPOCHS:-20} # of 60 steps

DRY=()
if [[ "${1:-}" == "--dry-run" ]]; then
    DRY=(--dry-run)
else
    "$PYTHON" - <<'CHECK' || { echo "error: torch sees no CUDA device; run this on a machine with a GPU" >&2; exit 2; }
import sys, torch
sys.exit(0 if torch.cuda.is_available() else 1)
CHECK
    for what in eager no_whiten; do "$PYTHON" -m benchmarks.gpu.measure steps --only "$what"; done
fi

# All 16 frames of a video; which data, the sweeps say.
KEYS=(data.num_frames=16 data.sampling_rate=1 data.num_workers=8 data.pin_mem=true
    model.pred_depth=6 model.pred_embed_dim=192 "optimization.epochs=$EPOCHS" optimization.warmup=2)
PROBE=configs/evals/vm_nano_drift.yaml # takes model and sizes from each run
failed=0
study() {
    local code=0
    "$PYTHON" -m tools.study "$@" --probe "$PROBE" ${DRY[@]+"${DRY[@]}"} || code=$?
    case $code in
        0) ;;
        1) failed=1 ;; # a run that diverges is part of the answer: on to the next sweep
        *) exit "$code" ;;
    esac
}
study configs/sweeps/gpu.yaml "${KEYS[@]}" --out docs/results/gpu.csv
for name in why_it_failed ablations; do
    study "configs/sweeps/$name.yaml" "${KEYS[@]}" model.model_name=videomamba_tiny data.crop_size=112 \
        --folder "runs/gpu_$name" --out "docs/results/gpu_$name.csv"
done
exit "$failed"
