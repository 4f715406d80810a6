"""Connections: what is put among token embeddings and fed to a language model, and its size."""

from __future__ import annotations

from typing import ClassVar

from lora_doctor.observations import ConnectionReading
from lora_doctor.observing import Observer


class Connections(Observer):
    """Fills ``Observations.connections``."""

    field: ClassVar[str] = "connections"

    def readings(self) -> tuple[ConnectionReading, ...]:
        return ()
