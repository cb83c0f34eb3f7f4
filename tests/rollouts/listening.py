"""What processes of this host listen on."""

import os
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """The process and all that it started, directly or not."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listened_on(pids: set[int]) -> set[str]:
    """TCP addresses, as the kernel writes them: 0100007F is 127.0.0.1."""
    sockets = set()
    for pid in pids:
        try:
            sockets |= {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
        except (FileNotFoundError, ProcessLookupError):
            continue
    tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
