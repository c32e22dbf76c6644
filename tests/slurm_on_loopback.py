"""A real SLURM on this machine: munged, slurmctld and slurmd of Debian's packages, on loopback, with a key of their own.

    with LoopbackSlurm(folder) as slurm:
        job = slurm.run("sbatch", "--parsable", "job.sbatch")
        slurm.wait(job)

Two nodes, which are two slurmd on this machine; jobs run as the user who starts it, who has to be root, since slurmd
starts jobs of others. Credentials live for 10 s, since SLURM lets a job that is queued again wait for so long.
"""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
NODES = ("node1", "node2")
CORES = 4
"""Of each node, as SLURM counts them."""
START_SECONDS = 60.0

CONFIG = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={munge},cred_expire=10
CryptoType=crypto/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,requeue_setup_env_fail
JobRequeue=1
KillWait=5
MinJobAge=3600
OverTimeLimit=0
MailProg=/bin/true
PluginDir={plugins}
PlugStackConfig=/dev/null
NodeName={names[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cores} RealMemory=4096 State=UNKNOWN
NodeName={names[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cores} RealMemory=4096 State=UNKNOWN
PartitionName=short Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why a SLURM cannot be started here; None where it can."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if lacking:
        return f"there is no {', '.join(lacking)}: install slurm-wlm and munge"
    return None if os.geteuid() == 0 else "slurmd starts jobs as root only"


class LoopbackSlurm:
    """A SLURM with two nodes, from `__enter__` on to `__exit__`."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path is short
        self._stack = ExitStack()
        self._daemons: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """For commands that speak to it."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.root / "slurm.conf"), "PATH": _path()}

    def __enter__(self) -> "LoopbackSlurm":
        try:
            self._begin()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(self, *words: object, cwd: Path | None = None) -> str:
        """What a command prints on stdout, without the newline at its end."""
        done = subprocess.run(
            list(map(str, words)),
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def facts(self, job: str) -> list[dict[str, str]]:
        """What SLURM says of a job, one record for each task of an array."""
        told = self.run("scontrol", "--oneliner", "show", "job", job)
        return [dict(pair.partition("=")[::2] for pair in line.split()) for line in told.splitlines()]

    def wait(self, job: str, seconds: float = 300.0) -> list[dict[str, str]]:
        """What is said of a job once it is over, each task of an array included."""
        return self.wait_until(job, lambda facts: all(_is_over(fact) for fact in facts), seconds)

    def wait_until(self, job: str, true: object, seconds: float = 300.0) -> list[dict[str, str]]:
        """What is said of a job once `true` of it."""
        assert callable(true)
        until = time.monotonic() + seconds
        while not true(facts := self.facts(job)):
            assert time.monotonic() < until, f"job {job} after {seconds} s: {facts}\n{self.logs()}"
            time.sleep(0.2)
        return facts

    def logs(self) -> str:
        """The last lines of every daemon."""
        files = sorted(self.root.glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text('utf-8', 'replace')[-2000:]}" for path in files)

    def _begin(self) -> None:
        (self.root / "state").mkdir()
        key = self.root / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        munge = self.root / "munge.socket"
        text = CONFIG.format(
            host=socket.gethostname().partition(".")[0],
            root=self.root,
            munge=munge,
            ports=_free_ports(3),
            names=NODES,
            cores=CORES,
            plugins=next(str(path) for path in Path("/usr/lib").glob("*/slurm*") if (path / "auth_munge.so").exists()),
        )
        (self.root / "slurm.conf").write_text(text)
        names = ("socket", "key-file", "pid-file", "log-file", "seed-file")
        files = (munge, key, self.root / "munge.pid", self.root / "munged.log", self.root / "munge.seed")
        self._start("munged", "--foreground", "--force", *(f"--{n}={f}" for n, f in zip(names, files, strict=True)))
        self._until(munge.exists)
        self._start("slurmctld", "-D", "-c")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        self._until(self._is_up)

    def _start(self, *words: str) -> None:
        with (self.root / f"{words[0]}.out.log").open("ab") as said:
            daemon = subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        self._daemons.append(daemon)

    def _is_up(self) -> bool:
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%t %D"], env=self.environment, capture_output=True, text=True, check=False
        )
        return done.stdout.split() == ["idle", str(len(NODES))]

    def _until(self, true: object) -> None:
        assert callable(true)
        until = time.monotonic() + START_SECONDS
        while not true():
            ended = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            assert not ended, f"{ended} ended\n{self.logs()}"
            assert time.monotonic() < until, self.logs()
            time.sleep(0.1)

    def _end(self) -> None:
        if len(self._daemons) > 1:
            subprocess.run(["scancel", "--user", "root"], env=self.environment, capture_output=True, check=False)
            time.sleep(1)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.root, ignore_errors=True)


def _is_over(fact: dict[str, str]) -> bool:
    return fact["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE")


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/sbin"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
