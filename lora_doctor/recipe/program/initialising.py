"""Whether a program makes an initialisation that PEFT leaves to it."""

from __future__ import annotations

from lora_doctor.recipe.program.objects import model_of, top
from lora_doctor.recipe.program.setup import Setup

#: Libraries that make none by themselves: PEFT's functions are called by their names.
_LIBRARIES = frozenset({"accelerate", "bitsandbytes", "peft", "torch", "transformers", "trl"})


def may_initialise(setup: Setup, function: str) -> bool:
    """Whether the program or a file beside it calls this function of PEFT, or hands the model to a
    package that was not read and may do so."""
    program = setup.program
    if any(function in unit.text for unit in program.units):
        return True
    packages = {top(one.module) for one in program.imports} - _LIBRARIES
    return any(
        call.method == function
        or (
            top(call.name) in packages
            and any(model_of(one.value) for one in (*call.positional, *call.keywords.values()))
        )
        for call in program.calls
    )
