"""Exceptions as data."""

from __future__ import annotations

import traceback

from lora_doctor.results.error_report import ErrorReport
from lora_doctor.text import one_line, single_line, where
from lora_doctor.tiny_model.faults_of_code import missing_attribute

_TRACEBACK_LINES = 60


def library_error(error: BaseException) -> ErrorReport:
    """An exception as data; ``where`` is the deepest frame, so in the library that refused."""
    frames = traceback.extract_tb(error.__traceback__)
    deepest = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return ErrorReport(
        type(error).__name__,
        single_line(str(error)),
        deepest,
        "\n".join(lines.splitlines()[-_TRACEBACK_LINES:]),
    )


def model_error(error: BaseException) -> ErrorReport:
    """What a model raised, as data."""
    return ErrorReport(
        type(error).__name__, one_line(error), where(error), lacks=missing_attribute(error)
    )
