"""A SLURM of two nodes on this machine: real munged, slurmctld and slurmd, started once and stopped at the end."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
INSTALL = "apt-get install -y -qq --no-install-recommends slurm-wlm munge"

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=0
KillWait=30
ReturnToService=2
SlurmdTimeout=30
InactiveLimit=0
MinJobAge=3600
DefMemPerCPU=500
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""

# What a user's launch/site.sh would say on this cluster; both nodes are this machine, so their names do not resolve.
SITE = """\
export PATH={python}:$PATH ACCELERATE_USE_CPU=yes OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export MAIN_PROCESS_IP=127.0.0.1 SBATCH_PARTITION=debug
"""


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def install() -> None:
    """SLURM and munge from the distribution, or skip with the reason."""
    if all(shutil.which(program) for program in ("slurmctld", "slurmd", "munged", "sbatch")):
        return
    if not shutil.which("apt-get"):
        pytest.skip("no SLURM here, and no apt-get to install it")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (INSTALL, "apt-get update -qq", INSTALL):
        result = subprocess.run(command.split(), env=environment, capture_output=True, text=True, timeout=200)
        if command == INSTALL and result.returncode == 0:
            return
    pytest.skip(f"SLURM cannot be installed ({INSTALL}): {result.stderr.strip()[-200:]}")


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "site.sh").write_text(SITE.format(python=Path(sys.executable).parent))
        (folder / "state").mkdir()
        for name in ("n1", "n2"):
            (folder / f"spool-{name}").mkdir()
            for gpu in range(2):
                (folder / f"gpu{gpu}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
        config = CONFIG.format(host=socket.gethostname(), folder=folder, ports=free_ports(4))
        (folder / "slurm.conf").write_text(config)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        drop = ("SLURM", "SBATCH", "NPROC")
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(drop)},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "SITE": str(folder / "site.sh"),
            "PYTHONPATH": str(REPO),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.daemons: list[subprocess.Popen] = []
        self.hurried: set[str] = set()

    def start(self) -> None:
        munge = [f"--{name}={self.folder}/munge.{name.removesuffix('-file')}" for name in
                 ("socket", "key-file", "pid-file", "log-file", "seed-file")]  # fmt: skip
        self._daemon("munged", "--foreground", "--force", *munge)
        self._until(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._daemon("slurmctld", "-D")
        for name in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", name)
        self._until(lambda: self("sinfo", "-h", "-o", "%D %t", check=False).strip() == "2 idle", "two idle nodes")

    def _daemon(self, *command: str) -> None:
        with open(self.folder / "daemons.log", "a", encoding="utf-8") as log:
            self.daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def _until(self, ready, what: str, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            if time.monotonic() > deadline or any(d.poll() is not None for d in self.daemons):
                logs = "\n".join(f"{p}:\n{p.read_text()[-1500:]}" for p in sorted(self.folder.glob("*.log")))
                raise AssertionError(f"{what} did not come up:\n{logs}")
            time.sleep(0.1)

    def stop(self) -> None:
        self("scancel", "--user", "root", check=False)
        deadline = time.monotonic() + 30
        while self("squeue", "-h", check=False).strip() and time.monotonic() < deadline:
            time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def __call__(self, *command: str, check: bool = True, **environment: str) -> str:
        """Run a command (a SLURM client, or launch/paper.sh) from the repository; its output."""
        shared = {**self.environment, **environment}
        done = subprocess.run(command, cwd=REPO, env=shared, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def sbatch(self, *arguments: str, **environment: str) -> str:
        """Submit, as a user would who sourced launch/site.sh; the job id."""
        command = 'source "$SITE"; exec sbatch --parsable "$@"'
        return self("bash", "-c", command, "sbatch", *arguments, **environment).strip()

    def show(self, job: str) -> dict[str, str]:
        text = self("scontrol", "show", "job", "--oneliner", job)
        return dict(field.split("=", 1) for field in text.split() if "=" in field)

    def log(self, job: str) -> str:
        path = Path(self.show(job).get("StdOut", "/nonexistent"))
        return f"{path}:\n{path.read_text(encoding='utf-8')[-3000:]}" if path.exists() else f"{job} wrote nothing"

    def wait(self, job: str, state: str = "COMPLETED", timeout: float = 150) -> dict[str, str]:
        """Until the job is in `state`; it may not end in another."""
        deadline = time.monotonic() + timeout
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
        while (shown := self.show(job))["JobState"] != state:
            ended = shown["JobState"] in over
            assert not ended and time.monotonic() < deadline, f"job {job}, {state} wanted: {shown}\n{self.log(job)}"
            if (shown["JobState"], shown["Reason"]) == ("PENDING", "BeginTime") and job not in self.hurried:
                # A requeued job waits two minutes. Not "now": what starts in the second in which the first start's
                # credential was revoked is taken for that start and killed.
                self("scontrol", "update", f"JobId={job}", "StartTime=now+3")
                self.hurried.add(job)
            time.sleep(0.3)
        return shown


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if os.geteuid() != 0:
        pytest.skip("starting SLURM's daemons needs root")
    install()
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
