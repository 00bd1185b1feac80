"""Outside of a launcher a process is alone; asked for company that does not come, it fails. See also test_launch.py."""

import socket

import pytest
import torch
import torch.distributed as dist

from src.utils import distributed
from src.utils.errors import UserError


@pytest.fixture(autouse=True)
def leave():
    yield
    distributed.shutdown()


def test_alone():
    rank, world_size, device = distributed.current()
    assert (rank, world_size, device) == (0, 1, distributed.default_device())
    assert distributed.is_main()
    distributed.barrier()
    assert torch.equal(distributed.all_reduce_mean(torch.ones(2)), torch.ones(2))
    assert distributed.all_reduce_max(3, True) == [3, 1]
    assert distributed.gather_objects("a") == ["a"]
    assert not dist.is_initialized()


def test_init_and_shutdown():
    assert distributed.init_distributed(device="cpu") == (0, 1, torch.device("cpu"))
    assert distributed.current().device == torch.device("cpu")
    distributed.shutdown()
    distributed.shutdown()


def test_a_rank_outside_the_world():
    with pytest.raises(ValueError, match="rank 2 is not in a run of 2 processes"):
        distributed.init_distributed(2, 2, port=1)


def test_missing_peers_are_an_error_not_a_run_of_one():
    with pytest.raises(dist.DistError):
        distributed.init_distributed(0, 2, port=0, device="cpu", timeout_s=1)
    assert not dist.is_initialized()
    assert distributed.current().world_size == 1


def test_the_time_out_comes_from_the_environment(monkeypatch):
    for text in ("soon", "0", "-3", "nan"):
        monkeypatch.setenv("COLLECTIVE_TIMEOUT_S", text)
        with pytest.raises(UserError, match=f"COLLECTIVE_TIMEOUT_S={text}: expected a number of seconds above 0"):
            distributed.init_distributed(0, 2, port=0, device="cpu")
    monkeypatch.setenv("COLLECTIVE_TIMEOUT_S", "1")
    with pytest.raises(dist.DistError):
        distributed.init_distributed(0, 2, port=0, device="cpu")


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on this machine is taken"):
            distributed.init_distributed(0, 2, port=port, device="cpu", timeout_s=2)
