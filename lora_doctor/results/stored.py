"""A stored diagnosis read again, so that it can be rendered in any format.

Reads what ``--output-format json`` writes, and what earlier versions wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_doctor.errors import InputError
from lora_doctor.results.diagnosis import SCHEMA_VERSION, Diagnosis
from lora_doctor.results.from_json import mismatch
from lora_doctor.results.version_1 import from_version_1


def read_diagnosis(path: str | Path) -> Diagnosis:
    """The diagnosis in a file.

    Raises:
        InputError: unreadable, no diagnosis, or of a schema that this version does not know.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise InputError(f"{path}: is not JSON: {error}") from None
    return parse_diagnosis(data, str(path))


def parse_diagnosis(data: Any, where: str) -> Diagnosis:
    """A checked diagnosis out of the content of its file. Raises InputError."""
    version = data.get("schema_version") if isinstance(data, Mapping) else None
    if version not in ("1", SCHEMA_VERSION):
        raise InputError(
            f"{where}: has schema_version {version!r:.40}, this lora-doctor reads '1' and "
            f"{SCHEMA_VERSION!r}; give what `--output-format json` wrote or update lora-doctor"
        )
    try:
        diagnosis = Diagnosis.from_json(from_version_1(data) if version == "1" else data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{where}: is not a result of lora-doctor ({reason})") from None
    wrong = mismatch(diagnosis)
    if wrong is not None:
        raise InputError(
            f"{where}: is not a result of lora-doctor ({wrong} has another type or value)"
        )
    return diagnosis
