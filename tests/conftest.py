"""Before torch is loaded: tests share their cores with the processes that they start."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
