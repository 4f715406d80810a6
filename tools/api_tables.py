"""The tables of ``lora_doctor/static/installed/api_tables``: which arguments the classes of
transformers, PEFT and TRL took in which releases, for a set-up that pins another release than the
installed one. Made of the sources in wheels:

    pip download --no-deps -d WHEELS transformers==4.44.2    # and so on, one a release
    python -m tools.api_tables WHEELS
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from packaging.version import Version

from lora_doctor.static.installed.api_tables import table_path

#: Classes whose arguments people write: configs, arguments, trainers.
_CLASS = re.compile(r"^class (\w*(?:Config|Arguments|Trainer))\b", re.MULTILINE)
_WHEEL = re.compile(r"(transformers|peft|trl)-([\d.]+)-")
_SOURCES = {
    "transformers": ("*.py", "utils/*.py", "generation/*.py"),
    "trl": ("trainer/*.py", "*.py", "experimental/*/*.py"),
    "peft": ("*.py", "tuners/*/config.py", "utils/*.py"),
}
_READER = """
import functools, json, sys
sys.path.insert(0, sys.argv[1])
from lora_doctor.static.installed import signatures
signatures.installed_text = functools.cache(signatures.installed_text)
found = {}
for name in sys.argv[3].split(","):
    read = signatures.signature_of(f"{sys.argv[2]}.{name}")
    found[name] = None if read is None else [] if read.open else sorted(read.names)
print(json.dumps(found))
"""

Signatures = dict[str, list[str] | None]


def main() -> None:
    """Write the table of each package that has wheels in the folder."""
    releases: dict[str, dict[Version, Signatures]] = {}
    for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
        named = _WHEEL.match(wheel.name)
        if named:
            releases.setdefault(named[1], {})[Version(named[2])] = _read(wheel, named[1])
            print(wheel.name, flush=True)
    for package, found in releases.items():
        path = table_path(package)
        path.parent.mkdir(exist_ok=True)
        path.write_text(_table(found), encoding="utf-8")
        print(f"{path}: {len(found)} releases")


def _read(wheel: Path, package: str) -> Signatures:
    """Class to its arguments: ``[]`` where it takes any, ``None`` where that cannot be read."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        names = set()
        for name in archive.namelist():
            inside = PurePosixPath(name)
            patterns = [f"{package}/{pattern}" for pattern in _SOURCES[package]]
            depth = (inside.match(one) and len(inside.parts) == one.count("/") + 1
                     for one in patterns)  # fmt: skip
            if any(depth):
                archive.extract(name, folder)
                names.update(_CLASS.findall(archive.read(name).decode("utf-8", "replace")))
        done = subprocess.run(
            [sys.executable, "-c", _READER, folder, package, ",".join(sorted(names))],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    found: Signatures = json.loads(done.stdout)
    return found


def _table(found: dict[Version, Signatures]) -> str:
    """The releases, and of each class the arguments that not all of them take: each with the
    numbers of the releases from which, and up to which, it is taken."""
    releases = sorted(found)
    classes: dict[str, dict[str, list[list[int]]]] = {}
    for name in sorted({name for one in found.values() for name in one}):
        has = [number for number, one in enumerate(releases) if found[one].get(name)]
        arguments = sorted({key for number in has for key in found[releases[number]][name] or ()})
        changing = {}
        for key in arguments:
            taken = [number for number in has if key in (found[releases[number]][name] or ())]
            if taken != has:
                changing[key] = _runs(taken)
        if changing:
            classes[name] = {"": _runs(has), **changing}
    data = {"releases": [str(one) for one in releases], "classes": classes}
    text = json.dumps(data, indent=1)
    # One line for each list of numbers.
    return re.sub(r"\[[\s\d,\[\]]*\]", lambda one: re.sub(r"\s+", "", one[0]), text) + "\n"


def _runs(numbers: list[int]) -> list[list[int]]:
    """First and last of each run of numbers without a gap."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs


if __name__ == "__main__":
    main()
