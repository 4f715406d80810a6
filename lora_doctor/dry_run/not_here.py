"""Exceptions that say what this machine lacks (a package, a GPU, the network), not what is wrong
with the command: the question stays open then."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from lora_doctor.results.dry_run import ScriptError

_PACKAGES = ("ModuleNotFoundError", "ImportError", "PackageNotFoundError")
_NO_GPU = re.compile(
    r"not compiled with CUDA|no NVIDIA driver|No CUDA GPUs|CUDA is not available|needs? a GPU"
    r"|requires? (a )?(GPU|CUDA)|no available devices found|(GPU|CUDA) (is )?(required|needed)"
    r"|no (CUDA )?GPU (was |is )?(found|available|detected)|torch\._C' has no attribute '_cuda"
    r"|non-CPU accelerator|CUDA (driver|error)|no accelerator|dummy base class (Event|Stream)"
    # A kernel of Triton on a CPU, or none; a name with Triton in it says nothing of this machine.
    r"|cannot be accessed from Triton|working triton installation|\d active drivers"
    r"|\btriton\b.{0,30}\b(not (installed|available|supported|found)|unavailable|only supports?)"
    r"|\b(requires?|needs?|install|without) triton\b|\btriton (is )?(required|needed|missing)",
    re.IGNORECASE,
)
#: Classes of HTTP clients and hubs; their messages differ.
_NETWORK = (
    "ConnectError", "ConnectTimeout", "ConnectionError", "NewConnectionError", "ReadTimeout",
    "MaxRetryError", "NameResolutionError", "ProxyError", "gaierror", "URLError",
    "LocalEntryNotFoundError", "OfflineModeIsEnabled", "CommError",
)  # fmt: skip
_NO_NETWORK = re.compile(
    r"Name or service not known|Temporary failure in name resolution|Max retries exceeded"
    r"|Failed to establish a new connection|Network is unreachable|couldn't connect to"
    r"|offline mode is enabled|nodename nor servname|Couldn't reach |NLTK Downloader",
    re.IGNORECASE,
)
#: What a script asks before it gives up without a GPU.
_ASKS_FOR_GPU = re.compile(r"cuda\.is_available|device_count|is_cuda_available|is_gpu_available")
#: Bytes of the user's file that are read for that.
_MOST_BYTES = 4 << 20


def is_about_here(error: ScriptError) -> bool:
    """Whether an exception says nothing about the user's command, but about this machine."""
    if error.type.endswith(_PACKAGES):
        return not _asks_for_a_name(error)
    if _NO_GPU.search(error.message):
        return True
    if error.type.rpartition(".")[2] in _NETWORK or _NO_NETWORK.search(error.message):
        return True
    return bool(error.file) and _gives_up_without_gpu(Path(error.file), error.line)


def _asks_for_a_name(error: ScriptError) -> bool:
    """Whether the user's own line imports a name that the package, which is there, does not have:
    of another release. What a library imports in turn may be missing here."""
    own = error.raised_in == f"{error.file}:{error.line}"
    return own and error.message.startswith("cannot import name")


def _gives_up_without_gpu(file: Path, line: int) -> bool:
    """Whether this line raises because the user's own code found no GPU: ``assert
    torch.cuda.is_available()``, or a ``raise`` below such an ``if``."""
    try:
        if file.stat().st_size > _MOST_BYTES:
            return False
        text = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return any(
        _ASKS_FOR_GPU.search(ast.get_source_segment(text, test) or "")
        for test in _tests_above(tree, line)
    )


def _tests_above(tree: ast.Module, line: int) -> Iterator[ast.expr]:
    """Conditions that decide whether a statement at this line raises."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and _has(node, line):
            yield node.test
        elif isinstance(node, ast.If):
            below = [one for one in (*node.body, *node.orelse) if _has(one, line)]
            if any(isinstance(one, ast.Raise) for one in below):
                yield node.test


def _has(node: ast.stmt, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or node.lineno)
