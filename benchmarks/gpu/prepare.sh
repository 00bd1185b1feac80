#!/usr/bin/env bash
# Run in the repository's root, where there is a network: fills .gpu/whl (not for git) with the wheels that a GPU machine
# without one lacks beside torch, triton, numpy and scikit-learn. benchmarks/gpu.sh installs them there.
#   bash benchmarks/gpu/prepare.sh [PYTHON_VERSION]
set -euo pipefail
version=${1:-3.12}
[[ -f setup.py && -d src/ops ]] || { echo "error: run this in the repository's root" >&2; exit 2; }
exclude=$(git rev-parse --git-path info/exclude)
grep -qxF /.gpu/ "$exclude" 2>/dev/null || echo /.gpu/ >>"$exclude"
rm -rf .gpu/whl && mkdir -p .gpu/whl
wheel() {
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d .gpu/whl "$@"
}
pin() { sed -n "s/^$1==\([^ ;]*\).*/\1/p" constraints.txt | head -1; }
for name in pydantic annotated-types typing-inspection typing_extensions submitit webdataset braceexpand av; do
    wheel "$name==$(pin "$name")"
done
# pydantic and pydantic_core must fit each other: the first's metadata pins the second
wheel "pydantic-core==$(unzip -p .gpu/whl/pydantic-[0-9]*.whl '*/METADATA' | sed -n 's/^Requires-Dist: pydantic-core==//p')"
wheel einops
git rev-parse --short HEAD >.gpu/commit # a copy of the tree has no history; pass it on as COMMIT
du -sm --apparent-size .gpu
