"""The name in `app:` finds its schema and its training."""

import sys
from types import SimpleNamespace

import pytest

from app import scaffold
from app.vjepa.config import PretrainConfig
from src.utils.errors import UserError

VM_TINY = "configs/pretrain/vm_tiny.yaml"


def test_load():
    name, cfg = scaffold.load(VM_TINY, ["optimization.lr=3e-4"])
    assert name == "vjepa"
    assert isinstance(cfg, PretrainConfig)
    assert cfg.optimization.lr == 3e-4


def test_unknown_app():
    with pytest.raises(
        UserError, match=r"vm_tiny.yaml: app: there is no app 'vjepaa'; apps: vjepa; did you mean vjepa\?"
    ):
        scaffold.load(VM_TINY, ["app=vjepaa"])


@pytest.mark.parametrize("as_dict", [False, True])
def test_main_calls_the_apps_train(monkeypatch, as_dict):
    calls = []
    stand_in = SimpleNamespace(main=lambda args, resume_preempt: calls.append((args, resume_preempt)))
    monkeypatch.setitem(sys.modules, "app.vjepa.train", stand_in)
    _, cfg = scaffold.load(VM_TINY)
    scaffold.main("vjepa", cfg.model_dump() if as_dict else cfg, resume_preempt=True)
    assert calls == [(cfg, True)]
