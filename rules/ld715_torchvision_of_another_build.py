"""LD715: torchvision was built for another torch than the installed one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_doctor.rule_api import (
    Case,
    EvidenceError,
    Example,
    Finding,
    Fix,
    Location,
    Measurement,
    Proof,
    Rule,
    Symptom,
)

#: What transformers says when a module of its own could not be imported for whatever reason.
_NOT_IMPORTED = re.compile(r"Could not import module|Failed to import|torchvision")
#: Nothing of what follows can hold when the model's classes cannot be imported.
_CONSEQUENCES = (
    "builds", "attaches", "forward", "starts-at-base", "loss-finite", "gradients", "steps",
    "adapters-move", "loss-falls", "save-reload", "merge",
)  # fmt: skip


class TorchvisionOfAnotherBuild(Rule):
    """The installed torchvision was compiled for a torch with CUDA, and the installed torch has
    none.

    ## What happens
    Importing a model from transformers, text models included, ends at `RuntimeError: operator
    torchvision::nms does not exist`. What is shown is often only the last line: `Could not import
    module 'LlamaConfig'. Are this object's requirements defined correctly?`

    ## Why
    transformers imports torchvision where it is installed. The compiled part of torchvision asks
    for `libtorch_cuda.so`, which a torch for CPUs does not have, and without it torchvision has no
    operators. pip does not notice: both are of the version that the other asks for, and only the
    build differs (`2.13.0+cpu` with `0.28.0+cu130`). It happens when torch is installed from
    PyTorch's index for CPUs and torchvision from PyPI, mostly as a requirement of another package.

    ## Versions
    Any. Found on Linux with transformers 5.6; older ones import torchvision in fewer places. The
    libraries are read off the compiled file and compared with those of torch.

    ## Fix
    Install torchvision from where torch came from, or, for a model of text alone, uninstall it.

    ## Links
    https://github.com/pytorch/pytorch/issues/122494
    """

    code = "LD715"
    name = "torchvision-of-another-build"
    summary = "The installed torchvision was compiled for a torch with CUDA, and torch has none."
    depth = "static"
    about_environment = True
    symptoms = (
        Symptom(r"operator torchvision::\w+ does not exist"),
        Symptom(r"No such operator torchvision::\w+"),
        Symptom(
            r"Could not import module '\w+'\. Are this object's requirements defined correctly",
            weight=-1,
        ),
    )
    told_as = ("transformers cannot be imported, because torchvision does not fit torch.",)
    examples = (
        Example(
            "broken",
            "",
            installed="tests/installed/torchvision_for_cuda",
            depth="static",
            why="its compiled part asks for libtorch_cuda.so",
        ),
        Example(
            "healthy",
            "",
            installed="tests/installed/torchvision_for_cpus",
            depth="static",
            why="its compiled part asks for what every torch has",
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        from lora_doctor.static.installed.environment import installed_version
        from lora_doctor.static.installed.torch_builds import absent_libraries

        executed = _cannot_import(case)
        if not executed and case.source.kind != "environment":
            return
        absent = absent_libraries("torchvision")
        if not absent:
            return
        names = sorted({name for libraries in absent.values() for name in libraries})
        torch, vision = (installed_version(name) for name in ("torch", "torchvision"))
        yield self.finding(
            "error" if executed else "warning",
            f"torchvision {vision} was compiled for a torch with {', '.join(names)}, which torch "
            f"{torch} does not have: transformers "
            + ("cannot import the model's classes." if executed else "may fail to import models."),
            location=Location("environment", f"torch {torch}, torchvision {vision}"),
            evidence=tuple(
                Measurement(file, f"asks for {', '.join(libraries)}", "read from the file")
                for file, libraries in absent.items()
            ),
            proof=Proof("executed", "transformers was imported, and failed")
            if executed
            else Proof("inferred", "read from the installed files; nothing was imported"),
            fixes=(
                Fix(
                    "Install torchvision from the index that torch was installed from (for CPUs: "
                    "pip install --force-reinstall --no-deps torchvision --index-url "
                    "https://download.pytorch.org/whl/cpu).",
                    "manual",
                ),
                Fix("For models of text alone: pip uninstall -y torchvision", "manual"),
            ),
            explains=_CONSEQUENCES,
        )


def _cannot_import(case: Case) -> bool:
    """Whether a process of ours wanted the model's class, and an import failed."""
    if case.source.kind == "environment":
        return False
    if not case.reaches("meta"):
        raise EvidenceError("at depth static nothing is imported; run lora-doctor env --check")
    return not case.has("structure") and bool(_NOT_IMPORTED.search(case.why_not("structure")))
