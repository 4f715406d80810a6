"""Rows by the processes of a Ray cluster, on as many machines as it has.

Each actor holds a child process of our own, as the local engine does: a model that takes its
process down takes neither the actor nor Ray down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from lora_doctor.census.pairs import Pair
from lora_doctor.census.row import Row


class Judge:
    """One process: makes rows, one after the other."""

    def __init__(self) -> None:
        from lora_doctor.sandbox.worker import Worker

        self.worker = Worker(threads=1)

    def row(self, pair: tuple[str, str], keep: str | None) -> dict[str, Any]:
        from lora_doctor.census.row import safely

        made = safely(Pair(*pair), self.worker, Path(keep) if keep else None)
        return made.to_json()

    def close(self) -> None:
        self.worker.close()


def spread_with_ray(pairs: Sequence[Pair], jobs: int, keep: Path | None) -> Iterator[Row]:
    """Rows as they are done, by ``jobs`` actors of one core each.

    Uses the cluster that this process is connected to or that ``RAY_ADDRESS`` names, else one on
    this machine. ``keep`` must be a folder that all machines share.
    """
    import ray
    from ray.util.actor_pool import ActorPool

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    actors = [ray.remote(Judge).options(num_cpus=1).remote() for _ in range(max(1, jobs))]
    folder = str(keep) if keep is not None else None
    pool = ActorPool(actors)
    try:
        for made in pool.map_unordered(
            lambda actor, pair: actor.row.remote(pair, folder), [astuple(pair) for pair in pairs]
        ):
            yield Row.from_json(made)
    finally:
        ray.get([actor.close.remote() for actor in actors])
