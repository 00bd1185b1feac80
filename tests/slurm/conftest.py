"""A real SLURM of two nodes on this machine, for the tests beside this file.

It has its own munge, its own ports and one folder, and is stopped without a trace. It needs root, and slurm-wlm
and munge of Debian or Ubuntu.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from src.datasets.embedded.generate import write_motion
from tests.small_recipe import small_recipe

NODES, CPUS = ("n0", "n1"), 2
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel")
_PATIENCE_S = 300.0  # for what takes moments on an idle machine
_BEGUN = "Job is no longer pending execution"  # what scontrol says of a job that has started meanwhile

# `low` gives way to `high`: its jobs have some seconds' grace and are queued again. Preemption is announced by SIGTERM
# alone, which submitit ignores; sites that set preempt_send_user_signal send what announces a time limit too.
# Every time-out is long: none is waited for in full, and on a busy machine a short one would end what only is slow.
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdParameters=config_overrides
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=120
MessageTimeout=100
BatchStartTimeout=300
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=4000
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=4000
PartitionName=low Nodes=n0,n1 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=high Nodes=n0,n1 PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """Use as a context manager. Raises RuntimeError where it cannot be started, saying why."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise RuntimeError("a SLURM cluster of our own can only be started by root")
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
        if missing:
            raise RuntimeError(f"{missing[0]} is not installed (apt-get install slurm-wlm munge)")

    def __enter__(self) -> Cluster:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-test-", dir="/run"))  # munge wants no one else to write here
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        conf = self.folder / "slurm.conf"
        host = socket.gethostname().split(".")[0]
        conf.write_text(_CONF.format(folder=self.folder, host=host, ports=_free_ports(3), cpus=CPUS))
        self.env = {**os.environ, "SLURM_CONF": str(conf)}
        try:
            self._start(conf)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, conf: Path) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"key-file": "munge.key", "log-file": "munge.log", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        places = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self.run("munged", f"--socket={self.folder}/munge.socket", *places)
        self.run("slurmctld", "-f", str(conf))
        for node in NODES:
            (self.folder / f"spool-{node}").mkdir()
            self.run("slurmd", "-f", str(conf), "-N", node)
        deadline = time.monotonic() + _PATIENCE_S
        while self.run("sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N", check=False).split() != list(NODES):
            if time.monotonic() > deadline:
                logs = "".join(path.read_text() for path in self.folder.glob("*.log"))
                errors = [line for line in logs.splitlines() if "error" in line or "fatal" in line]
                raise RuntimeError(f"SLURM did not start: {errors[-1] if errors else 'its logs name no error'}")
            time.sleep(0.2)

    def run(self, *words: str, check: bool = True) -> str:
        """A command of this cluster; its output."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=_PATIENCE_S)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def state(self, job: str) -> str:
        """SLURM's word for the state of a job, empty when it has forgotten it."""
        return self.run("squeue", "-h", "-j", job, "-o", "%T", check=False).strip()

    def start_now(self, job: str) -> None:
        """A requeued job waits for two minutes; not this one. Returns when it has begun, by this or by itself.

        It may not start in the second in which its last run was ended: SLURM would call its credential revoked, and
        drop it. Two seconds from now is another second.
        """
        deadline = time.monotonic() + _PATIENCE_S
        try:
            self.run("scontrol", "update", f"JobId={job}", "StartTime=now+2")
        except RuntimeError as error:
            if _BEGUN not in str(error):
                raise
        while self.state(job) == "PENDING":
            if time.monotonic() > deadline:
                raise RuntimeError(f"job {job} does not start: {self.show(job)}")
            time.sleep(0.2)

    @contextmanager
    def queueing_only(self, partition: str) -> Iterator[None]:
        """Inside, jobs of this partition are queued and none starts."""
        self.run("scontrol", "update", f"PartitionName={partition}", "State=DOWN")
        try:
            yield
        finally:
            self.run("scontrol", "update", f"PartitionName={partition}", "State=UP")

    def minutes_run(self, job: str) -> int:
        """Whole minutes that a job has been running, which is how SLURM counts its time limit."""
        hours, minutes, _ = map(int, self.show(job)["RunTime"].split("-")[-1].split(":"))
        return 60 * hours + minutes

    def show(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job, ended ones included."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", job)))

    def clear(self) -> None:
        """End every job: one that a failed test left behind would keep its nodes."""
        self.run("scancel", "--state=PENDING", "--me", check=False)
        self.run("scancel", "--state=RUNNING", "--me", check=False)
        deadline = time.monotonic() + _PATIENCE_S
        while self.run("squeue", "-h", check=False).strip() and time.monotonic() < deadline:
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self.clear()
        for name in (*(f"slurmd-{node}.pid" for node in NODES), "slurmctld.pid", "munge.pid"):
            _end(self.folder / name)
        shutil.rmtree(self.folder, ignore_errors=True)


def _end(pid_file: Path) -> None:
    """End the daemon that wrote this file."""
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, signum)
            for _ in range(300):
                os.kill(pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            return


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="session")
def started_cluster():
    try:
        started = Cluster()
        with started:
            yield started
    except RuntimeError as reason:
        pytest.skip(str(reason))


@pytest.fixture
def cluster(started_cluster):
    """The cluster, without jobs."""
    yield started_cluster
    started_cluster.clear()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    """A pretraining file that trains in moments: ViT-Tiny on four frames of 32 pixels."""
    root = tmp_path_factory.mktemp("slurm")
    write_motion(root / "motion", train=32, val=16, workers=1)
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe(root / "motion", root / "unused", ipe=50)))
    return path
