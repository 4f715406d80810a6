"""Which of two installed packages that do not fit each other is too old, and what pip is told."""

from __future__ import annotations

import functools
import importlib.metadata
import re
from itertools import islice

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from lora_doctor.limits import INSTALLED_FILES
from lora_doctor.static.installed.environment import (
    installed_text,
    installed_version,
    package_folder,
)
from lora_doctor.static.installed.import_chain import MissingImport
from lora_doctor.static.installed.refused_versions import refused_versions

_NUMBER = r"[\"'](\d+\.\d+[\w.]*)[\"']"


def pip_lines(missing: MissingImport) -> tuple[str, ...]:
    """What repairs the pair, the likeliest first; each is a whole pip command."""
    importer, provider = missing.importer, missing.provider
    wanted = [refused.wanted for refused in refused_versions()
              if refused.package.replace("-", "_") in (importer, provider)]  # fmt: skip
    if wanted:
        return tuple(f"pip install {_quoted(one)}" for one in dict.fromkeys(wanted))
    stated = _requirement(importer, provider)
    if package_folder(provider) is None:
        # A part of another distribution, such as pkg_resources, is a matter of its age.
        needed = _quoted(str(stated)) if stated is not None else f"--upgrade {importer}"
        return (f"pip install {needed}",)
    installed = installed_version(provider)
    fits = stated is None or stated.specifier.contains(installed or "", prereleases=True)
    if stated is not None and installed is not None and not fits:
        return (f"pip install --upgrade {importer}", f"pip install {_quoted(str(stated))}")
    older = older_of(importer, provider)
    if older is None:
        return (f"pip install --upgrade {importer} {provider}",)
    newer = provider if older == importer else importer
    version = installed_version(newer)
    return (
        f"pip install --upgrade {older}",
        f"pip install '{newer}<{version}'" if version else f"pip install --upgrade {newer}",
    )


@functools.cache
def older_of(importer: str, provider: str) -> str | None:
    """The package that knows less of the other's time; None where nothing tells.

    The importer compares the provider's version with others in its sources: one that is newer than
    the installed one was written for a newer provider.
    """
    known, installed = _newest_known(importer, provider), installed_version(provider)
    if known is None or installed is None:
        return None
    try:
        return provider if known > Version(installed) else importer
    except InvalidVersion:
        return None


def _newest_known(importer: str, provider: str) -> Version | None:
    """The newest version of a package that the sources of another compare with."""
    folder = package_folder(importer)
    if folder is None:
        return None
    compared = re.compile(rf"^.*\b\w*{re.escape(provider)}.*?{_NUMBER}.*$", re.MULTILINE)
    numbers = [
        number
        for file in islice(sorted(folder.rglob("*.py")), INSTALLED_FILES)
        for line in compared.finditer(installed_text(file))
        if "ersion" in line[0]
        for number in re.findall(_NUMBER, line[0])
    ]
    versions = [version for number in numbers if (version := _version(number)) is not None]
    return max(versions, default=None)


def _version(number: str) -> Version | None:
    try:
        return Version(number)
    except InvalidVersion:
        return None


def _requirement(importer: str, provider: str) -> Requirement | None:
    """What the metadata of a package says of another that it always needs."""
    try:
        stated = importlib.metadata.requires(importer) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for text in stated:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        plain = re.sub(r"[-_.]+", "_", requirement.name).lower()
        if plain == provider.lower() and requirement.marker is None:
            return requirement
    return None


def _quoted(requirement: str) -> str:
    return f"'{requirement}'" if re.search(r"[<>!~= ]", requirement) else requirement
