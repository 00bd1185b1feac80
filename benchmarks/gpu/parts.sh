# Sourced by the run scripts: a deadline for the whole, a limit for each part, and a log of what each did.
# No `set -e`: one part's failure must not stop the next.
set -u
BEGUN=$SECONDS
OUT=${OUT:?OUT is the folder for the results}
WORK=${WORK:-/tmp/gpu-work}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT" "$WORK"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TRITON_CACHE_DIR=$WORK/triton TORCHINDUCTOR_CACHE_DIR=$WORK/inductor
left() { echo $((DEADLINE - (SECONDS - BEGUN))); }
# part NAME LIMIT_S COMMAND...: the shorter of its own limit and what is left; output to $WORK/NAME.log
part() {
    local name=$1 limit=$2 begun=$SECONDS code=0
    shift 2
    (($(left) < limit)) && limit=$(left)
    if ((limit < 5)); then echo "part $name: no time left" | tee -a "$OUT/parts.txt"; return 1; fi
    # through bash, so that COMMAND may be an exported function of these scripts
    timeout --kill-after=5 "$limit" bash -c '"$@"' _ "$@" >"$WORK/$name.log" 2>&1 || code=$?
    echo "part $name: exit $code after $((SECONDS - begun)) s (limit $limit)" | tee -a "$OUT/parts.txt"
    ((code)) && tail -4 "$WORK/$name.log" | cut -c1-300
    return $code
}
install_wheels() {
    local target=$1
    shift
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$target" "$@"
}
measure() { "$PYTHON" -m benchmarks.gpu.measure "$@" --out "$OUT" ${DRY:-}; }
machine() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv 2>&1
    measure machine
    nvcc --version 2>/dev/null | tail -2; nproc; free -g | head -2
}
# warm_all: compiles every kernel that the timed parts launch, side by side; each takes seconds
warm_all() {
    local jobs=() code=0 i
    for i in float32 bfloat16 float16; do measure warm --dtype "$i" & jobs+=($!); done
    for i in "${jobs[@]}"; do wait "$i" || code=1; done
    return $code
}
# matrix BACKEND DTYPE: the whole matrix of cases, four processes at once
matrix() {
    export OMP_NUM_THREADS=2
    local jobs=() code=0 i
    for i in 0 1 2 3; do measure matrix --backend "$1" --dtype "$2" --share "$i/4" & jobs+=($!); done
    for i in "${jobs[@]}"; do wait "$i" || code=1; done
    return $code
}
# mamba_loads: whether mamba-ssm's kernels are there and run; its __init__ wants packages that its kernels do not
mamba_loads() {
    printf '__version__ = "2.3.2.post1"\n' >"$1/mamba_ssm/__init__.py"
    "$PYTHON" -c 'import torch, selective_scan_cuda
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
x = torch.ones(1, 8, 16, device="cuda"); B = torch.ones(1, 16, 16, device="cuda")
print(selective_scan_fn(x, x, -torch.ones(8, 16, device="cuda"), B, B).sum().item())'
}
finish() {
    tail -n 60 "$WORK"/*.log >"$OUT/logs.txt" 2>/dev/null
    cat "$OUT/parts.txt"
    echo "all: $((SECONDS - BEGUN)) s"
    ls -la "$OUT"
}
export -f install_wheels measure machine warm_all matrix mamba_loads
export OUT WORK PYTHON DRY=${DRY:-}
