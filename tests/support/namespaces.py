"""Run a command in namespaces of its own (Linux), where its network or its file systems can be set up for it alone."""

import os
import shlex
import shutil
import subprocess

import pytest

from support.peers import SECONDS

#: 192.0.2.2 has a link, but no host: what is sent there is neither answered nor refused.
SILENT_HOST = (
    "ip link set lo up",
    "ip link add near type veth peer name far",
    "ip addr add 192.0.2.1/24 dev near",
    "ip link set near up",
    "ip link set far up",
    "ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 nud permanent dev near",
)


def mounted(folder, access):
    """Return the shell command that makes a folder read-only ("ro") or writable ("rw"), for root too.

    What was mounted in it before is hidden.
    """
    name = shlex.quote(str(folder))
    return f"mount --bind {name} {name} && mount -o remount,bind,{access} {name}"


def inside(*setup, network=False, mounts=False):
    """Return a prelude of Command that runs it in new namespaces, after the shell commands ``setup``.

    Skips the test where that is not possible.
    """
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    kinds = [option for option, wanted in (("--net", network), ("--mount", mounts)) if wanted]
    if os.geteuid() != 0:
        kinds.append("--map-root-user")
    script = "".join(f"{command} || exit 77; " for command in setup) + 'exec "$@"'
    prelude = f'exec unshare {" ".join(kinds)} /bin/sh -c {shlex.quote(script)} sh "$@"'
    probe = subprocess.run(
        ["/bin/sh", "-c", prelude, "sh", "true"], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if probe.returncode:
        pytest.skip(f"no such namespaces: {probe.stderr.strip()}")
    return prelude
