"""Which Ray does a run go to: one that runs already, or one that is started for it?

With an address, or where this process is connected already, the cluster is left as it was. Its nodes need avlens, and checkpoints
and clips under the paths that they have here.

Without, Ray is started on this machine, below a process of its own: it listens to this machine alone and to those who know a
token that is drawn for it (unless this process had imported Ray before), sends no statistics, and ends when the run does or
whoever started it, however that ends.
"""

import importlib
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from avlens.errors import ExperimentError

STARTS = 5
"""So often Ray is started: it gives its helpers 15 seconds, which may be too few on a busy machine."""

HOST = """
import os, signal, sys, threading
from ray.scripts.scripts import cli

def end():
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end, daemon=True).start()
cli(sys.argv[1:])
"""
"""`ray start`, as a process that ends when its input is closed."""

UP = "block forever until terminated by a signal"
"""What it says when it is up."""

PORTS = (
    "port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)
"""Given ports: two Rays on one machine then do not want the same."""

START = (
    "start", "--head", "--block", "--no-monitor", "--include-log-monitor=false", "--include-dashboard=false",
    "--disable-usage-stats", f"--object-store-memory={128 * 2**20}",
)  # fmt: skip
"""As little of Ray as workers need; items and records are small."""

PATIENCE = 10.0
"""Seconds that a cluster may take to answer."""

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_worker_niceness": "0",  # Workers are what the machine is there for.
}
"""Environment of a Ray on this machine."""

ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0 Ray listens on 127.0.0.1 alone, on Linux too. It is read when Ray is imported, and all its processes must agree."""

AUTH = "RAY_AUTH_MODE"
"""Whether processes must know a token to be let in; here one that this process draws. What holds for `ALONE` holds for it."""


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[Any]:
    """Ray, as this process is connected to it already, or to a cluster, or to one that is started here and ends after.

    Raises:
        ExperimentError: If Ray is missing, or cannot be reached or started.
    """
    given, address = address, address or os.environ.get("RAY_ADDRESS")
    ray = _imported(alone=address is None)
    if ray.is_initialized():
        if given:
            raise ExperimentError(
                f"address is {given!r}, but this process is connected to Ray already. Leave the address out to use that, or "
                "call ray.shutdown()."
            )
        yield ray
        return
    with nullcontext(address) if address else started(num_cpus=cpus) as where:
        _check_reachable(where)
        try:
            _join(ray, where)
            yield ray
        finally:
            ray.shutdown()


def _join(ray: Any, address: str) -> None:
    try:
        ray.init(address, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ExperimentError(f"no Ray was reached at {address!r}: {error} Check the address.") from error


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes.

    Raises:
        ExperimentError: If nothing listens at an address of host and port.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise ExperimentError(
            f"no Ray answers at {address!r} ({error}). Check the address, or leave it out to start Ray on this machine."
        ) from error


def _imported(alone: bool) -> Any:
    """Ray; if it is imported for the first time, and for this machine alone, with an environment that says so from then on.

    Raises:
        ExperimentError: If it is not installed.
    """
    if alone and "ray" not in sys.modules:
        for name, value in {ALONE: "0", AUTH: "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
            os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ExperimentError("Ray is not installed. Run pip install 'avlens[ray]', or use Processes.") from error


@contextmanager
def started(**resources: float) -> Iterator[str]:
    """The address of a Ray on this machine, which ends with the block, or with this process.

    Args:
        resources: `num_cpus` and `num_gpus` that it counts; by default those that there are.

    Raises:
        ExperimentError: If it does not start.
    """
    here = _imported(alone=True).util.get_node_ip_address()
    agreed = {ALONE: "0" if here == "127.0.0.1" else "1", AUTH: os.environ.get(AUTH, "disabled")}
    for _ in range(STARTS):
        ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        options = [f"--{name.replace('_', '-')}={value}" for name, value in {**ports, **resources}.items()]
        host = subprocess.Popen(
            [sys.executable, "-P", "-c", HOST, *START, *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **SETTINGS, **agreed},
            start_new_session=True,  # Ctrl-C is for this process.
        )  # fmt: skip
        with host:
            assert host.stdin is not None and host.stdout is not None
            try:
                said = []
                for line in host.stdout:
                    if UP in line:
                        yield f"{here}:{ports['port']}"
                        return
                    said.append(line.strip())
            finally:
                host.stdin.close()
    raise ExperimentError(
        f"Ray did not start, {STARTS} times: {' | '.join(said[-3:])} Its logs, in Ray's temporary "
        "folder, may say why; Processes need no Ray."
    )


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
