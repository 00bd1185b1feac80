"""Meta-World as video: scripted robot manipulation in pairs of classes that differ in the order of time.

Needs the extra `scenes` (metaworld and mujoco). `python -m src.datasets.embedded.metaworld --help`.
"""
