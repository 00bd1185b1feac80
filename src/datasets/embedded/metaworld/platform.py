"""Drawing without a display: which of MuJoCo's ways works on this machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from src.utils.errors import UserError

_TRY = "import mujoco; context = mujoco.GLContext(64, 64); context.make_current(); context.free()"


def choose_platform() -> str:
    """Set MUJOCO_GL for this process and those it starts, before mujoco is imported; returns what was chosen.

    EGL comes first, OSMesa second; a value that is set already is kept. Raises UserError that says what to install.
    """
    missing = [name for name in ("metaworld", "mujoco") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} not installed: pip install -e '.[scenes]'")
    if "mujoco" in sys.modules:
        return os.environ.get("MUJOCO_GL", "")
    named = os.environ.get("MUJOCO_GL")
    tried = [named] if named else ["egl", "osmesa"] if sys.platform == "linux" else [""]
    for platform in tried:
        environment = os.environ | ({"MUJOCO_GL": platform} if platform else {})
        if subprocess.run([sys.executable, "-c", _TRY], env=environment, capture_output=True).returncode == 0:
            if platform:
                os.environ["MUJOCO_GL"] = platform
            return platform
    raise UserError(
        f"nothing can be rendered here ({' and '.join(name or 'the default' for name in tried)} tried): install Mesa, "
        "`apt install libegl1 libgl1-mesa-dri`, or libosmesa6; `conda install -c conda-forge libegl mesa-dri-drivers`"
    )
