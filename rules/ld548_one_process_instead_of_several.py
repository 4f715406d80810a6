"""LD548: several processes were requested, and the launcher starts one."""

from __future__ import annotations

from collections.abc import Iterator

from lora_doctor.rule_api import Case, Example, Finding, Fix, Measurement, Proof, Rule, Symptom
from lora_doctor.rules._dry_run_script import LOOP, MODEL
from lora_doctor.rules._processes import at

_LAUNCHED = """
import subprocess, sys

if "--train" not in sys.argv:
    launch = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, __file__, "--train"]
    sys.exit(subprocess.run(launch).returncode)
"""


class OneProcessInsteadOfSeveral(Rule):
    """`accelerate launch` was asked for several processes, but starts one.

    ## What happens
    Nothing is raised. One process trains on one device, the other devices are idle, and the
    effective batch size is a fraction of the planned one.

    ## Why
    `num_processes` only takes effect with a distributed type: `--multi_gpu`, or `distributed_type:
    MULTI_GPU`, `FSDP` or `DEEPSPEED` in the config. With `--cpu`, or `distributed_type: 'NO'`,
    accelerate uses its simple launcher.

    Found by execution: how the launcher interpreted its options, and which processes it started.

    ## Versions
    All versions of accelerate.

    ## Fix
    `--multi_gpu`, or `distributed_type: MULTI_GPU` in the config. It changes the effective batch
    size.

    ## Links
    https://huggingface.co/docs/accelerate/package_reference/cli
    """

    code = "LD548"
    name = "one-process-instead-of-several"
    summary = "accelerate was asked for several processes, but starts one."
    depth = "static"
    descriptions = (
        Symptom(
            r"\baccelerate launch\b.{0,80}\b(?:only|just) (?:uses? )?(?:one|1|a single) (?:gpu"
            r"|process|device)"
        ),
    )
    examples = (
        Example(
            "broken",
            "",
            script=_LAUNCHED.replace("*LAUNCH", '"--cpu", "--num_processes", "2"') + MODEL + LOOP,
            processes=0,
        ),
        Example(
            "healthy",
            "",
            script=_LAUNCHED.replace("*LAUNCH", '"--cpu", "--num_processes", "1"') + MODEL + LOOP,
            processes=0,
        ),
    )

    def check(self, case: Case) -> Iterator[Finding]:
        found = case.dry_run.processes
        if found is None or found.asked < 2 or found.started > 1 or not found.simple_launcher:
            return
        yield self.finding(
            "warning",
            f"accelerate was asked for {found.asked} processes, but starts one.",
            location=at(case.dry_run, "", 0),
            evidence=(
                Measurement("num_processes", found.asked, "accelerate launch"),
                Measurement("distributed type", found.simple_launcher, "accelerate launch"),
                Measurement("processes with a rank", found.started, "the run"),
            ),
            proof=Proof("executed", "the launcher's own choice, and the processes that it started"),
            fixes=(
                Fix(
                    "accelerate launch --multi_gpu --num_processes "
                    f"{found.asked}, or distributed_type: MULTI_GPU in its config.",
                    "manual",
                ),
            ),
        )
