"""Several processes of a dry run: what was asked of the launcher, and what met. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RankError:
    """What ended one of the processes."""

    #: Its rank, from 0.
    rank: int
    #: Class of the exception.
    type: str
    #: Its message on one line.
    message: str
    #: The innermost line of the user's own files; empty where there is none.
    file: str = ""
    #: Line of that file, from 1; 0 where there is none.
    line: int = 0
    #: Whether it only says that another process did not take part in a collective operation, or
    #: was gone.
    of_another: bool = False


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter that the command has saved, beside the one that trained."""

    #: Where it was to be written.
    path: str
    #: The call that was to write it, such as ``Trainer.save_model``.
    by: str
    #: Whether there is a file with weights of adapters.
    written: bool
    #: Tensors that the adapter has before it is cut into shards.
    expected: int
    #: Those of them in the file with their whole shape.
    whole: int = 0
    #: Names of those in the file without a value.
    empty: tuple[str, ...] = ()
    #: Names of those in the file with another shape: the shard of one process.
    partial: tuple[str, ...] = ()
    #: What the call raised instead.
    error: str = ""
    #: File of the user's in which it was called.
    file: str = ""
    #: Line of that file, from 1; 0 where it is not known.
    line: int = 0

    @property
    def good(self) -> bool:
        """Whether everything that trained is in the file."""
        return self.written and self.whole >= self.expected


@dataclass(frozen=True)
class EmptyWeights:
    """A model whose own ``save_pretrained`` has written tensors that have no values."""

    #: Where they were written.
    path: str
    #: Class of the model.
    model_class: str
    #: Tensors in the files.
    tensors: int
    #: Those of them with a size of 0.
    empty: int
    #: Some of their names.
    names: tuple[str, ...] = ()
    #: File of the user's in which it was called.
    file: str = ""
    #: Line of that file, from 1; 0 where it is not known.
    line: int = 0


@dataclass(frozen=True)
class Processes:
    """The processes that train, and how they share the model."""

    #: Processes that the launcher was asked for.
    asked: int = 1
    #: Processes that were started with a rank each.
    started: int = 0
    #: What accelerate chose where it started one process for several: ``--cpu``, or the
    #: ``distributed_type`` of its config; empty where it did not.
    simple_launcher: str = ""
    #: Processes that trained together: the size of their process group, 1 without one.
    met: int = 1
    #: Ranks that took optimizer steps.
    trained: tuple[int, ...] = ()
    #: What was asked for: ``FSDP``, ``FSDP2``, ``DeepSpeed``; empty where nothing but processes.
    asked_type: str = ""
    #: Where that stands: variables of the launcher, or arguments of the Trainer.
    asked_in: str = ""
    #: What the model was wrapped in: ``DDP``, ``FSDP``, ``FSDP2``, ``DeepSpeed``; empty: nothing.
    ran_type: str = ""
    #: How the processes talk, such as ``gloo``.
    backend: str = ""
    #: Class of module to how many of them are shards of their own.
    sharded: Mapping[str, int] = field(default_factory=dict)
    #: Kind of state dict that is saved under FSDP, such as ``SHARDED_STATE_DICT``.
    state_dict: str = ""
    #: Where the model was asked to be, as ``device_map``; empty where nothing was asked.
    device_map: str = ""
    #: File of the user's that loads the model.
    loaded_in: str = ""
    #: Line of that file, from 1; 0 where it is not known.
    loaded_line: int = 0
    #: Whether activations are recomputed by reentrant checkpointing; ``None``: no checkpointing.
    reentrant: bool | None = None
    #: ZeRO's stage; ``None`` without DeepSpeed.
    zero_stage: int | None = None
    #: Rank to the sum of the sizes of its trainable numbers after the last step of the dry run;
    #: empty where they are spread over processes, and where there was no such step.
    sums: Mapping[str, float] = field(default_factory=dict)
    #: Training batches, the first of the run, that were the same in all processes while those of
    #: one process differ; 0 where a process got rows of its own.
    same_batches: int = 0
    #: What ended processes, the first first.
    errors: tuple[RankError, ...] = ()
    #: Adapters that were saved, oldest first.
    saved: tuple[SavedAdapter, ...] = ()
    #: Models that were saved without the values of all weights.
    saved_empty: tuple[EmptyWeights, ...] = ()

    @property
    def apart(self) -> float:
        """By how much the trainable numbers of processes differ, relative to their size."""
        found = list(self.sums.values())
        if len(found) < 2 or not max(found):
            return 0.0
        return (max(found) - min(found)) / max(found)

    @property
    def waiting(self) -> tuple[RankError, ...]:
        """The processes that waited for others in vain, where no process failed by itself."""
        if any(not error.of_another for error in self.errors):
            return ()
        return self.errors
