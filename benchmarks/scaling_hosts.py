"""Two hosts on one machine: network namespaces, joined by a link of limited bandwidth, between which Open MPI runs over TCP.

Needs root, iproute2 (``ip``, ``tc``) and Open MPI. Both hosts share the machine's cores, clock and files.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

HOSTS = {"vggnet0": "10.77.0.1", "vggnet1": "10.77.0.2"}  # namespaces, whose interfaces have the same names
NETWORK = "10.77.0.0/24"
# What mpirun starts a process on another host with, in place of ssh: options are none, the first argument is the host.
AGENT = """#!/bin/sh
name=vggnet$(( ${1##*.} - 1 ))
shift
exec ip netns exec $name unshare --uts sh -c "hostname $name; $*"
"""


@contextlib.contextmanager
def two_hosts(rate: str | None) -> Iterator[list[str]]:
    """Make the hosts; they are gone after the with-block.

    Parameters
    ----------
    rate : str, optional
        Of the link in either direction, as ``tc`` writes it ("1gbit"); None: as fast as the machine copies.

    Yields
    ------
    list of str
        What a command is put behind, so that it runs on both hosts, one process each, under MPI.

    Raises
    ------
    RuntimeError
        When a tool is missing.
    subprocess.CalledProcessError
        Without root's rights, or when there are such namespaces already.
    """
    for tool in ("ip", "tc", "mpirun", "unshare"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"no {tool}: two hosts need iproute2, util-linux and Open MPI")
    first, second = HOSTS
    with contextlib.ExitStack() as stack, tempfile.NamedTemporaryFile("w", delete=False) as agent:
        stack.callback(Path(agent.name).unlink)
        agent.write(AGENT)
        agent.close()
        Path(agent.name).chmod(0o700)
        for name in HOSTS:
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "delete", name)
        _run(
            "ip",
            "link",
            "add",
            first,
            "netns",
            first,
            "type",
            "veth",
            "peer",
            "name",
            second,
            "netns",
            second,
        )
        for name, address in HOSTS.items():
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", name)
            _run("ip", "-n", name, "link", "set", name, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            if rate is not None:
                bucket = ("tbf", "rate", rate, "burst", "1mb", "latency", "20ms")
                _run("tc", "-n", name, "qdisc", "add", "dev", name, "root", *bucket)
        yield [
            *(
                "ip",
                "netns",
                "exec",
                first,
                "unshare",
                "--uts",
                "sh",
                "-c",
                f'hostname {first}; exec "$@"',
                "sh",
            ),
            *(
                "mpirun",
                "--allow-run-as-root",
                "-n",
                "2",
                "--host",
                ",".join(HOSTS.values()),
                "--bind-to",
                "none",
            ),
            *(
                "--mca",
                "plm_rsh_agent",
                agent.name,
                "--mca",
                "plm_rsh_no_tree_spawn",
                "1",
                "--leave-session-attached",
            ),
            *("--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", NETWORK),
            *("--mca", "oob_tcp_if_include", NETWORK),
        ]


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
