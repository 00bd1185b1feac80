"""Installation. Tool settings live in pyproject.toml; pinned, tested versions in constraints.txt."""

from setuptools import find_packages, setup

setup(
    name="vjepa-mamba",
    version="0.1.0",
    description="V-JEPA pretraining of video encoders with state-space (VideoMamba) backbones",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["app*", "src*", "evals*"]),
    install_requires=[
        "torch>=2.4",
        "numpy>=1.26",
        "pyyaml>=6.0",
        "pydantic>=2.7",
        "pillow>=10.0",
        "decord>=0.6",
        "av>=12.0",
        "submitit>=1.5",
        "webdataset>=0.2.86",
        "scikit-learn>=1.3",
        "rich>=13.0",
    ],
    extras_require={
        "test": ["pytest>=8.0", "ruff>=0.6"],
        "timm": ["timm>=1.0"],
        "cuda": ["mamba-ssm>=2.2", "causal-conv1d>=1.4"],
    },
)
