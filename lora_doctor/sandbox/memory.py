"""How much memory a process and all that it started hold, and how much the machine has left."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether main memory ran out: torch and safetensors say it by text only."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - exceptions of remote code may not be printable
        return False
    return "DefaultCPUAllocator" in text or "Cannot allocate memory" in text


def available() -> int | None:
    """Main memory that a new process could still take, in bytes; ``None`` where nothing tells.

    In a container it is what the container has left, not the machine.
    """
    if sys.platform != "linux":
        return _available_by_psutil()
    left = [size for size in (_machine_has(), *_control_groups_have()) if size is not None]
    return min(left, default=None)


def _machine_has() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    left = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return next(left, None)


def _control_groups_have() -> Iterator[int | None]:
    """What each control group that this process is in, and each above it, has left."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = _CGROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = _CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # In a container the path may be that of the host, and the root is the container's group.
        parts = Path(path.lstrip("/")).parts
        for depth in range(len(parts), -1, -1):
            yield _group_has(root.joinpath(*parts[:depth]), *names)


def _group_has(folder: Path, limit: str, used: str) -> int | None:
    try:
        most = int((folder / limit).read_text(encoding="ascii"))
        held = int((folder / used).read_text(encoding="ascii"))
        statistics = (folder / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):  # ValueError: "max", for no limit
        return None
    # Pages of files are given back when somebody needs the memory.
    cached = sum(
        int(line.split()[1])
        for line in statistics.splitlines()
        if line.startswith(("inactive_file ", "active_file "))
    )
    return max(most - held + cached, 0)


def _available_by_psutil() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def resident(pid: int, limit: int | None = None, *, itself: bool = True) -> int:
    """Resident memory of a process and its descendants in bytes; 0 when it is gone.

    Forks share most of their pages. The sum in which shared pages count once is exact and slow, so
    it is made only where the plain sum is over ``limit`` and there is more than one process.

    Args:
        itself: whether the process counts, too, beside its descendants.
    """
    if sys.platform != "linux":
        return _by_psutil(pid, itself)
    tree = list(_tree(pid))
    counted = tree if itself else tree[1:]
    total = sum(_field(one) for one in counted)
    if limit is None or total <= limit or len(counted) < 2:
        return total
    return max(sum(_proportional(one) for one in counted), max(map(_field, counted)))


def process_tree(pid: int) -> list[int]:
    """The process and its descendants; cheap enough to be asked many times a second."""
    if sys.platform == "linux":
        return list(_tree(pid))
    return [pid, *_descendants_by_psutil(pid)]


def _tree(pid: int) -> Iterator[int]:
    """The process and its descendants, as the kernel lists them; each once."""
    waiting, seen = [pid], {pid}
    while waiting:
        one = waiting.pop()
        yield one
        for child in _children(one):
            if child not in seen:
                seen.add(child)
                waiting.append(child)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except FileNotFoundError:
        if not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
            return _children_by_psutil(pid)  # a kernel without the list
    except OSError:  # it ended meanwhile
        return found
    return found


def _field(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    """Resident memory in which a page that n processes share counts 1/n."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:"))
    except FileNotFoundError:
        return 0 if not Path(f"/proc/{pid}").exists() else _field(pid)  # before Linux 4.14
    except (OSError, StopIteration):
        return 0  # it ended meanwhile


def _descendants_by_psutil(pid: int) -> list[int]:
    try:
        import psutil
    except ImportError:
        return []
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def _children_by_psutil(pid: int) -> list[int]:
    try:
        import psutil
    except ImportError:
        return []
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


def _by_psutil(pid: int, itself: bool) -> int:
    try:
        import psutil
    except ImportError:  # then the memory limit is not watched; accelerate and peft require psutil
        return 0
    try:
        process = psutil.Process(pid)
        tree = [process] * itself + process.children(recursive=True)
    except psutil.Error:
        return 0
    total = 0
    for one in tree:
        try:
            total += int(one.memory_info().rss)
        except psutil.Error:
            continue  # it ended meanwhile
    return total
