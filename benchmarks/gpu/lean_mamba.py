"""Cuts an unpacked mamba-ssm 2.3.2.post1 down to what src/ops/selective_scan/cuda.py calls, for one GPU.

    python lean_mamba.py --arch 90 [--arch-only] FOLDER       --arch-only: all kernels (causal-conv1d too)

Real A, B and C that vary along the sequence: an eighth of the kernels for one GPU of nine. The packages' setup.py
names its GPUs itself, so TORCH_CUDA_ARCH_LIST does nothing.
"""

import argparse
import re
import sys
from pathlib import Path


def one_gpu(root: Path, arch: str) -> None:
    """Leaves one architecture of those that setup.py names."""
    text = (root / "setup.py").read_text()
    gencode = r'cc_flag\.append\("-gencode"\)\n\s+cc_flag\.append\("arch=compute_(?!%s)\d+,code=sm_\d+"\)'
    text = re.sub(gencode % arch, "pass", text)
    text = re.sub(r'\s+"csrc/selective_scan/selective_scan_bwd_\w+_complex\.cu",', "", text)
    (root / "setup.py").write_text(text)


def real_and_variable(sources: Path) -> None:
    """Drops complex A and the switches over constant B and C."""
    for file in sources.glob("selective_scan_fwd_*.cu"):
        file.write_text("\n".join(line for line in file.read_text().splitlines() if "complex_t" not in line) + "\n")
    switch = sources / "static_switch.h"
    always = "\n#define TRUE_SWITCH(NAME, ...) [&] { constexpr bool NAME = true; return __VA_ARGS__(); }()\n"
    switch.write_text(switch.read_text() + always)
    for file in sources.glob("selective_scan_?wd_kernel.cuh"):
        pattern = r"BOOL_SWITCH\(params\.is_variable_([BC]), kIsVariable[BC], "
        text, count = re.subn(pattern, r"TRUE_SWITCH(kIsVariable\1, ", file.read_text())
        assert count == 2, (file, count)
        file.write_text(text)
    file = sources / "selective_scan.cpp"
    branch = (
        r"    \} else if \(WTYPE == at::ScalarType::ComplexFloat\) \{[^\n]*\n[^\n]*\n[^\n]*__VA_ARGS__\(\);[^\n]*\n"
    )
    text, count = re.subn(branch, "", file.read_text())
    assert count == 1, count
    file.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--arch", default="90", help="compute capability without the dot")
    parser.add_argument("--arch-only", action="store_true")
    args = parser.parse_args()
    one_gpu(args.root, args.arch)
    if not args.arch_only:
        real_and_variable(args.root / "csrc/selective_scan")
    return 0


if __name__ == "__main__":
    sys.exit(main())
