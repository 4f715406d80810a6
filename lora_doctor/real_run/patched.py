"""What a guest does in a process of a real run: the patches are in force before they are needed.

A patch is installed as soon as the library that it changes has been imported, so that launchers
and helpers that use neither PEFT nor transformers import nothing for it. What cannot be put in
force ends the process: it would go on as if there were no prescription.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from lora_doctor.guest.carried import Carried
from lora_doctor.guest.import_hooks import ImportHooks
from lora_doctor.prescription.patches import install as install_patch
from lora_doctor.prescription.patches import load_patch
from lora_doctor.recipe.edit import Patch

INSTALL = "lora_doctor.real_run.patched:install"
ANSWER = "lora_doctor.real_run.patched:answer"
#: The library whose import patches wait for, unless their module names another as ``LIBRARY``.
_LIBRARY = "peft"
#: Exit code of a process that is stopped, as that of a command which is refused.
_REFUSED = 2


def install(carried: Carried) -> None:
    """Prepare the patches; nothing is imported for it but their own files."""
    hooks = ImportHooks()
    for item in carried.options["patches"]:
        patch = Patch(str(item["name"]), dict(item["parameters"]))
        library = getattr(load_patch(patch.name), "LIBRARY", _LIBRARY)
        hooks.after(library, _installing(patch, carried.options["versions"]))
    hooks.install()


def _installing(patch: Patch, versions: Mapping[str, str]) -> Any:
    def act(module: ModuleType) -> None:
        other = other_versions(versions, installed_versions(versions))
        if other:
            _stop(f"the prescription was made for {other} in {sys.executable}")
        try:
            install_patch(patch)
        except Exception as error:  # noqa: BLE001 - whatever it is, the patch is not in force
            _stop(str(error))

    return act


def _stop(why: str) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(2, f"lora-doctor: run: {why}; stopped\n".encode(errors="replace"))
    os._exit(_REFUSED)


def answer(carried: Carried) -> None:
    """Say that a guest is in place, and which versions are installed for its interpreter."""
    names = carried.options["versions"]
    Path(carried.options["answer"]).write_text(
        json.dumps({"nonce": carried.options["nonce"], "versions": installed_versions(names)}),
        encoding="utf-8",
    )


def installed_versions(names: Mapping[str, str]) -> dict[str, str]:
    """Name to version of those packages that are installed for this interpreter."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def other_versions(wanted: Mapping[str, str], found: Mapping[str, str]) -> str:
    """What is another version, in words; empty where all are the same. Builds of one version for
    other devices (``2.9.0+cu128``) are the same."""
    return ", ".join(
        f"{name} {version}, and {found.get(name, 'none')} is installed"
        for name, version in wanted.items()
        if _public(version) != _public(found.get(name, ""))
    )


def _public(version: str) -> str:
    return version.partition("+")[0]
