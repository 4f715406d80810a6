"""What is read of the file that holds the recipe: a framework's set-up, a script, a notebook.

A fix may rewrite that file, so this is evidence of one recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_doctor.engine.evidence_store import evidence
from lora_doctor.engine.read_evidence import ReadEvidence
from lora_doctor.errors import EvidenceError

if TYPE_CHECKING:
    from lora_doctor.recipe.files.side_files import SideFiles
    from lora_doctor.recipe.program.launch import Launch
    from lora_doctor.recipe.program.setup import Setup
    from lora_doctor.recipe.set_up import SetUp
    from lora_doctor.static.script.training_script import TrainingScript


class WrittenEvidence(ReadEvidence):
    """The part of a :class:`~lora_doctor.engine.case.Case` that is read anew when a fix has changed
    the user's file; nothing of it is run."""

    @evidence(of_recipe=True)
    def set_up(self) -> SetUp:
        """The framework's file that the recipe is from; raises where it is from no such file."""
        if self.asked.set_up is None:
            raise EvidenceError("the recipe is not in the file of a training framework")
        return self.asked.set_up

    @evidence(of_recipe=True)
    def side_files(self) -> SideFiles:
        """The files that the set-up names, and the packages that are pinned beside it."""
        from lora_doctor.recipe.files.side_files import read_side_files

        set_up = self.set_up
        origin = "files that the set-up names, or that lie beside it"
        return self.store.timed("side_files", origin, lambda: read_side_files(set_up))

    @evidence(of_recipe=True)
    def script(self) -> TrainingScript:
        """The training script that is MODEL, or that holds the recipe; read and never run."""
        written = self.asked.written
        path = Path(self.source.name if self.source.kind == "script" else self.source.script)
        if not path.name and written is not None and self.asked.file is not None:
            path = self.asked.file
        if path.suffix != ".py":
            raise EvidenceError("no training script is given")
        from lora_doctor.static.script.training_script import read_training_script

        data = written.data if written is not None else None
        origin = f"{path}, read with ast"
        return self.store.timed("script", origin, lambda: read_training_script(path, data))

    @evidence(of_recipe=True)
    def program(self) -> Setup:
        """The calls of the training script or notebook that holds the recipe, read and not run."""
        from lora_doctor.recipe.program.read_setup import setup_of

        if self.asked.written is None:
            raise EvidenceError("the recipe is not in a training script or notebook")
        origin = f"{self.asked.file}, read with libcst"
        found = self.store.timed("program", origin, lambda: setup_of(self.asked))
        assert found is not None
        return found

    @evidence(of_recipe=True)
    def launches(self) -> tuple[Launch, ...]:
        """What starts the training script: commands beside it or in its comments, read, not run."""
        from lora_doctor.recipe.files.launches import launches

        program = self.program
        origin = f"shell files and configs of accelerate beside {self.asked.file}"
        return self.store.timed("launches", origin, lambda: launches(program))
