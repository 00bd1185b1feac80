#!/usr/bin/env bash
# Builds mamba-ssm and causal-conv1d into $WORK/mamba for the GPU at hand alone: real A, and B and C that vary along the
# sequence, an eighth of mamba-ssm's kernels. Run by benchmarks/gpu.sh; $PYTHON needs torch, setuptools, wheel, ninja.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
src=$WORK/mamba-src
mkdir -p "$src" "$WORK/mamba"
for source in mamba-ssm==2.3.2.post1 causal-conv1d==1.7.0; do
    # pip asks the sources for their metadata, which must not start a build
    MAMBA_SKIP_CUDA_BUILD=TRUE CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE "$PYTHON" -m pip download -q --no-deps \
        --no-binary :all: --no-build-isolation -d "$src" "$source"
done
for archive in "$src"/*.tar.gz; do tar xzf "$archive" -C "$src"; done
arch=${ARCH:-$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')}
"$PYTHON" "$here/lean_mamba.py" --arch "$arch" "$src"/mamba_ssm-*/
"$PYTHON" "$here/lean_mamba.py" --arch "$arch" --arch-only "$src"/causal_conv1d-*/
# Without *_FORCE_BUILD pip downloads a wheel instead; main of mamba-ssm wants MAMBA_KEEP_CUDA_BUILD besides.
export MAX_JOBS=${MAX_JOBS:-8} MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE
export CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")}
# Headers of cuBLAS and the like may lie in torch's own packages: those alone that the toolkit lacks.
mkdir -p "$WORK/include"
packaged=$("$PYTHON" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1] / "nvidia/cu13/include")')
for file in "$packaged"/*; do [[ -e $CUDA_HOME/include/${file##*/} ]] || ln -sf "$file" "$WORK/include/"; done
export CPATH=$WORK/include
for package in "$src"/*/; do
    (cd "$package" && "$PYTHON" -m pip wheel -q --no-build-isolation --no-deps -w "$WORK/mamba-wheels" .)
done
"$PYTHON" -m pip install -q --no-deps --upgrade --target "$WORK/mamba" "$WORK"/mamba-wheels/*.whl
"$PYTHON" -m pip install -q --upgrade --target "$WORK/mamba" einops
printf '__version__ = "2.3.2.post1"\n' >"$WORK/mamba/mamba_ssm/__init__.py" # its own wants packages its kernels do not
