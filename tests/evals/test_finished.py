"""When a sweep of evaluations takes one for done."""

import os

from evals.scaffold import load


def test_results_count_until_the_checkpoint_changes(tmp_path):
    _, config = load("configs/evals/vm_tiny_motion.yaml", [f"pretrain.folder={tmp_path}"])
    results = config.output_folder() / "jepa-results.json"
    results.parent.mkdir(parents=True)
    assert not config.finished()
    results.write_text("{}")
    assert not config.finished(), "results of a checkpoint that is gone say nothing"
    config.checkpoint_path().write_bytes(b"")
    os.utime(config.checkpoint_path(), (100, 100))
    assert config.finished()
    os.utime(results, (99, 99))
    assert not config.finished()
