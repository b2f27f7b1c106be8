"""A real SLURM cluster on this one machine: munged, slurmctld, and a slurmd for every "node", over loopback.

Each node has its own PID, mount and UTS namespaces: `hostname` prints n1 there, and killing the process that holds the
namespaces acts like a power cut, after which nothing is left running. Needs root (namespaces) and Debian's or Ubuntu's
packages slurmctld, slurmd, slurm-client and munge. Nothing outside the cluster's folder is changed, free ports are
used, and `stop` leaves no process behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare", "setpriv")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL")

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/log/%n.log
SlurmdSpoolDir={folder}/%n
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=3
SlurmdTimeout=5
SlurmctldTimeout=10
MessageTimeout=5
UnkillableStepTimeout=20
MinJobAge=3600
"""
# The init process of a node: it never restarts slurmd, and keeps the namespaces until it is killed from outside.
NODE = """\
hostname {name}; mount --bind {folder}/hosts /etc/hosts
slurmd -D -N {name} -f {folder}/slurm.conf & wait $!
while :; do sleep 1; done
"""


def missing() -> str | None:
    """The reason why no cluster can be started here, or None."""
    absent = [program for program in PROGRAMS if not find_program(program)]
    if absent:
        return f"needs {', '.join(absent)} (apt-get install slurmctld slurmd slurm-client munge)"
    return "needs root, for namespaces" if os.geteuid() else None


def find_program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
    """`with Cluster(nodes=2) as cluster:` boots one in about two seconds and takes it down again."""

    def __init__(self, nodes: int = 2, cpus: int = 4, gpus: int = 0) -> None:
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        self.cpus, self.gpus = cpus, gpus
        # It contains Unix sockets, so its name must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.environment["SLURM_CONF"] = str(self.folder / "slurm.conf")

    def __enter__(self) -> Cluster:
        try:
            self._write_files()
            self._start("munged", *self._munged())
            wait_for((self.folder / "munge" / "socket").exists, 20)
            self._start("slurmctld", "slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
            for name in self.names:
                self.start_node(name)
            wait_for(lambda: self.idle() == self.names, 60)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process, beginning with the nodes and all that runs on them."""
        for name in [*self.names, "slurmctld", "munged"]:
            process = self.processes.pop(name, None)
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGKILL if name in self.names else signal.SIGTERM)
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- nodes ---------------------------------------------------------------------------------------

    def start_node(self, name: str) -> None:
        script = NODE.format(name=name, folder=self.folder)
        options = ["--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", "--uts"]
        self._start(name, "unshare", *options, "bash", "-c", script)

    def kill_node(self, name: str) -> None:
        """A power cut: every process of the node is gone at once."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def idle(self) -> list[str]:
        done = self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False)
        return sorted(set(done.split()))

    # --- jobs ----------------------------------------------------------------------------------------

    def run(self, *command: str | Path, check: bool = True, cwd: Path | None = None) -> str:
        """Run a command on the login node and return its stdout."""
        words = [str(word) for word in command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=self.environment, cwd=cwd)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def submit(self, *command: str | Path) -> str:
        """Run `sbatch --parsable ...` and return the job's id."""
        return self.run("sbatch", "--parsable", *command).strip()

    def show(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`; for an array, those of its first task."""
        text = self.run("scontrol", "--oneliner", "show", "job", job).splitlines()[0]
        return dict(re.findall(r"(\w[\w:/]*)=(\S*)", text))

    def nodes_of(self, job: str) -> list[str]:
        """The nodes on which a job runs or ran; its script is on the first one."""
        return self.run("scontrol", "show", "hostnames", self.show(job)["NodeList"]).split()

    def states(self, job: str) -> list[str]:
        """The state of the job, or of every task of an array."""
        return re.findall(r"JobState=(\w+)", self.run("scontrol", "--oneliner", "show", "job", job))

    def wait(self, *jobs: str, seconds: float = 120) -> None:
        """Wait until all jobs have ended. Jobs that SLURM would hold for two minutes after a requeue are started at
        once.
        """

        def over() -> bool:
            states = {job: self.states(job) for job in jobs}
            for job in jobs:
                self.release(job)
            return all(state in OVER for found in states.values() for state in found)

        wait_for(over, seconds, every=0.5)

    def release(self, job: str) -> None:
        """Let a requeued job, or requeued tasks of an array, start now."""
        for line in self.run("scontrol", "--oneliner", "show", "job", job).splitlines():
            if "JobState=PENDING Reason=BeginTime" in line:
                one = line.split()[0].removeprefix("JobId=")
                self.run("scontrol", "update", f"jobid={one}", "StartTime=now", check=False)

    def suspend(self, job: str, node: str) -> int:
        """Suspend the job's ranks on `node` and return their number."""
        ranks = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                told = process.environ()
                if (told.get("SLURM_JOB_ID"), told.get("SLURMD_NODENAME")) == (job, node) and "LOCAL_RANK" in told:
                    ranks.append(process)
        for process in ranks:
            process.suspend()
        return len(ranks)

    # --- inside --------------------------------------------------------------------------------------

    def _start(self, name: str, program: str, *arguments: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                # However this process ends, the daemons end, too.
                ["setpriv", "--pdeathsig=KILL", find_program(program) or program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd="/",
                start_new_session=True,
            )

    def _munged(self) -> list[str]:
        munge = self.folder / "munge"
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        return ["munged", "--foreground", *(f"--{option}={munge / name}" for option, name in files.items())]

    def _write_files(self) -> None:
        self.folder.chmod(0o755)
        for name in ("munge", "state", "log", "dev"):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        host = socket.gethostname().split(".")[0]
        lines = [f"127.0.0.1 localhost {host}", *(f"127.0.0.1 {name}" for name in self.names)]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        ports = free_ports(1 + len(self.names))
        text = CONF.format(host=host, port=ports[0], folder=self.folder)
        gres = f" Gres=gpu:fake:{self.gpus}" if self.gpus else ""
        for name, port in zip(self.names, ports[1:], strict=True):
            text += (
                f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
                f"RealMemory=16000{gres}\n"
            )
        every = f"n[1-{len(self.names)}]"
        text += f"PartitionName=main Nodes={every} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30\n"
        text += f"PartitionName=urgent Nodes={every} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF\n"
        (self.folder / "slurm.conf").write_text(text)
        if self.gpus:
            for number in range(self.gpus):
                # Copies of /dev/null: slurmd refuses plain files.
                os.mknod(self.folder / "dev" / f"nvidia{number}", 0o20666, os.makedev(1, 3))
            devices = f"{self.folder}/dev/nvidia[0-{self.gpus - 1}]"
            line = f"NodeName={every} Name=gpu Type=fake File={devices} Flags=nvidia_gpu_env\n"
            (self.folder / "gres.conf").write_text(line)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(condition: Callable[[], object], seconds: float, every: float = 0.1) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(every)
