"""What is read about a case and never run: files, package metadata, a script, an optimizer.

And what is asked about any evidence: whether it can be had, and why not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lora_doctor.engine.evidence_store import EvidenceStore, evidence
from lora_doctor.engine.settings import Settings
from lora_doctor.errors import Cause, EvidenceError
from lora_doctor.results.depth import DEPTHS, Depth
from lora_doctor.results.diagnosis import Gathered
from lora_doctor.static.model_source import ModelSource

if TYPE_CHECKING:
    from lora_doctor.evidence.optimizer import OptimizerState
    from lora_doctor.recipe.recipe import Recipe
    from lora_doctor.results.dry_run import DryRun
    from lora_doctor.static.adapter_files import AdapterFiles
    from lora_doctor.static.installed.environment import Environment
    from lora_doctor.static.model_files import StaticEvidence
    from lora_doctor.static.remote_code.remote_code import RemoteCode


class ReadEvidence:
    """The part of a :class:`~lora_doctor.engine.case.Case` that no recipe changes and no child
    process is started for."""

    #: The recipe as it was asked for: of the case that this is a part of.
    asked: Recipe

    def __init__(
        self, source: ModelSource, settings: Settings, progress: Callable[[str], None]
    ) -> None:
        self.source = source
        self.settings = settings
        self.store = EvidenceStore(str(source))
        self._progress = progress

    # --- what can be known ---------------------------------------------------------------------

    @evidence(of_recipe=False)
    def environment(self) -> Environment:
        """Installed versions; nothing is imported."""
        from lora_doctor.static.installed.environment import gather_environment

        origin = "installed package metadata"
        return self.store.timed("environment", origin, gather_environment)

    @evidence(of_recipe=False)
    def static(self) -> StaticEvidence:
        """The small files of the model: configs, tokenizer, safetensors headers."""
        from lora_doctor.engine.model_files import read_files, require_files

        require_files(self.source)
        self._progress(f"reading the files of {self.source}")
        return read_files(self.source, self.store)

    @evidence(of_recipe=False)
    def remote_code(self) -> RemoteCode:
        """The Python of the model's repository, read and never run."""
        static = self.static
        if not static.python_files:
            raise EvidenceError("the model's repository has no Python files")
        from lora_doctor.static.remote_code.remote_code import read_remote_code

        origin = f"{len(static.python_files)} Python files of {static.source}, read with ast"
        return self.store.timed(
            "remote_code", origin, lambda: read_remote_code(static.folder, static)
        )

    @evidence(of_recipe=False)
    def dry_run(self) -> DryRun:
        """What the user's own command did; raises where none was run. Whoever runs one keeps it,
        with the training contract, the optimizer and the structure that it saw."""
        raise EvidenceError("no command was run: lora-doctor dry-run -- COMMAND")

    @evidence(of_recipe=False)
    def adapter(self) -> AdapterFiles:
        """The files of the saved adapter that was given; raises without one."""
        adapter = self.settings.adapter
        if adapter is None:
            raise EvidenceError("no saved adapter was given (--adapter)")
        seconds = 0.0 if adapter.snapshot is None else round(adapter.snapshot.seconds, 4)
        origin = f"{adapter.place}: its config, and the header of its weights"
        self.store.gathered.append(Gathered("adapter", origin, seconds))
        return adapter

    @evidence(of_recipe=False)
    def optimizer(self) -> OptimizerState:
        """What the user's optimizer holds of a loaded module; raises without an optimizer."""
        from lora_doctor.evidence.optimizer import read_optimizer

        given = self.settings
        if given.optimizer is None:
            raise EvidenceError(
                "no optimizer was given: lora_doctor.check(model, optimizer=optimizer)"
            )
        return self.store.timed(
            "optimizer",
            "the optimizer's groups, a scheduler on a copy",
            lambda: read_optimizer(
                self.source.module, given.optimizer, given.scheduler, given.planned_steps
            ),
        )

    # --- what is asked about the evidence ------------------------------------------------------

    @property
    def gathered(self) -> Sequence[Gathered]:
        """The evidence so far, in the order in which it was gathered: origin and cost."""
        return self.store.gathered

    def reaches(self, depth: Depth) -> bool:
        """Whether this run goes as deep as ``depth``."""
        deepest = "static" if self.source.kind == "script" else self.settings.depth
        return DEPTHS.index(deepest) >= DEPTHS.index(depth)

    def goes_to(self, depth: Depth) -> bool:
        """Whether the user asked for a run as deep as this, though the model may be out of reach:
        enough for what needs the installed libraries only."""
        return DEPTHS.index(self.settings.depth) >= DEPTHS.index(depth)

    def too_shallow(self, depth: Depth) -> str:
        """Why there is no evidence of this depth; empty when the run reaches it."""
        if self.reaches(depth):
            return ""
        if self.source.kind == "script":
            from lora_doctor.engine.program import why_only_read

            return why_only_read(self.source, self.asked) or (
                "MODEL is a training script, which is only read; give the model that it trains"
            )
        return f"needs --depth {depth}; this run stops at {self.settings.depth}"

    def has(self, name: str) -> bool:
        """Whether this evidence can be had; gathers it."""
        try:
            getattr(self, name)
        except EvidenceError:
            return False
        return True

    def why_not(self, name: str) -> str:
        """The reason why this evidence cannot be had; empty when it can."""
        error = None if self.has(name) else self.store.error(name)
        return "" if error is None else str(error)

    def cause_of(self, name: str) -> Cause | None:
        """What a library or the model's code raised, where this evidence cannot be had for it."""
        error = None if self.has(name) else self.store.error(name)
        return None if error is None else error.cause

    # --- gathering -----------------------------------------------------------------------------

    def _require(self, depth: Depth) -> None:
        """Raises EvidenceError where a run as deep as this cannot be had."""
        from lora_doctor.engine.model_files import needs_remote_code

        if not self.reaches(depth):
            raise EvidenceError(self.too_shallow(depth))
        if self.source.out_of_reach:
            raise EvidenceError(self.source.out_of_reach, remedy="hub")
        if self.source.kind not in ("folder", "hub", "arch"):
            return
        # Bad input is told from the files, before anything heavy is started.
        if self.has("static") and needs_remote_code(self.static, self.source):
            raise EvidenceError(
                "the model's classes are code of its repository, which is not run without "
                "--trust-remote-code",
                remedy="trust",
            )
