"""What a pasted text is about where no rule knows it: failures of the machine, of a service or of
another program, which are no mistake in a LoRA set-up. They are told as what they are, with the
command that shows more where there is one."""

from __future__ import annotations

from dataclasses import dataclass

from lora_doctor.engine.rule import Symptom
from lora_doctor.engine.symptoms import Pasted
from lora_doctor.limits import LOG, bounded


@dataclass(frozen=True)
class OtherCause:
    """Messages that no rule is about."""

    symptom: Symptom
    #: What they are about: completes "it is about".
    about: str
    #: The command that shows more; empty: none does.
    command: str = ""


#: A download that broke off, not a process.
_OF_HTTP = (
    r"\bConnection aborted\b|\b(?:urllib3|requests|httpx|aiohttp)[\w.]*\.(?:\w*Error|\w*Timeout)\b"
)
#: The first that occurs counts: what a launcher says at the end stands last.
_CAUSES = (
    OtherCause(
        Symptom(
            r"CUDA Setup failed despite|libbitsandbytes_\w+|compiled without GPU support"
            r"|'NoneType' object has no attribute 'c(?:quantize|dequantize|get|gemm|igemm)\w*'"
            r"|no kernel image is available for execution|CUDA driver version is insufficient"
            r"|\.so\S*: undefined symbol|lib(?:cud|cus|nv)\w+\.so\S*: cannot open shared object"
            r"|CUDA_HOME does not exist|does not match the version torch was compiled with"
            r"|Error building extension '|'DeepSpeedCPUAdam' object has no attribute"
            r"|CUBLAS_STATUS_(?:NOT_INITIALIZED|ARCH_MISMATCH)|Torch not compiled with CUDA enabled"
            r"|Found no NVIDIA driver|No CUDA GPUs are available|operator wasn't built"
            r"|No operator found for `memory_efficient_attention"
            r"|not currently implemented for the MPS"
            r"|compiled using NumPy 1\.x cannot be run in"
        ),
        "a library that was built for another GPU, CUDA or Python package than there is here",
        "lora-doctor env",
    ),
    OtherCause(
        Symptom(
            r"torch\._(?:dynamo|inductor)\.exc\.\w+|Failed to find C compiler"
            r"|triton\.\S*OutOfResources"
        ),
        "torch.compile or a Triton kernel",
    ),
    OtherCause(
        Symptom(
            r"[Ww]atchdog (?:caught collective operation timeout|got stuck)|\bEADDRINUSE\b"
            r"|[Aa]ddress already in use|Connection (?:closed|reset) by peer|\bncclSystemError\b"
            r"|\bncclUnhandledCudaError\b|NCCL error in:|[Tt]imed out waiting for clients",
            unless=_OF_HTTP,
        ),
        "processes that do not reach each other, or that wait for one which is slow or has ended",
        "lora-doctor dry-run -- COMMAND",
    ),
    OtherCause(
        Symptom(
            r"gated repo|\b40[13] Client Error|Repository Not Found|api_key not configured"
            r"|couldn't connect to '?https?://|Max retries exceeded with url"
            r"|Couldn't reach '?[\w./-]+'? on the Hub|[Nn]ame or service not known"
            r"|Temporary failure in name resolution"
            rf"|{_OF_HTTP}"
        ),
        "access to a service or the network",
    ),
    OtherCause(
        Symptom(
            r"No space left on device|\bStorageFull\b|Disk quota exceeded|Read-only file system"
            r"|\bPermissionDenied\b|\bPermissionError\b"
        ),
        "a disk that is full, or a folder that must not be written to",
    ),
    OtherCause(
        Symptom(
            r"[\\/]vllm[\\/]|\bEngineCore\w*|\bmax_lora_rank\b|\b(?:lora|hf)-to-gguf\b"
            r"|\bllama_model_load\b|\bllama_load_model\w*|[\\/](?:llama\.cpp|mergekit)[\\/]"
            r"|does not contain `bitsandbytes__\*`"
            r"|(?i:[\\/](?:[\w.-]*webui|comfyui)[\w.-]*[\\/])",
            unless=r"[\\/]trl[\\/]trainer[\\/]",  # which has vLLM write the answers to train on
        ),
        "a program that serves, draws with or converts models, not training",
        "lora-doctor check MODEL --adapter DIR",
    ),
    OtherCause(
        Symptom(
            r"\b(?:Value|Type|NotImplemented)Error: \S",
            raised_in=r"peft[\\/](?:config|tuners[\\/]\w+[\\/]config)\.py",
            unless=r"\bin from_pretrained\b|Can't find ",
        ),
        "a value of the adapter config that PEFT refuses",
        "lora-doctor check MODEL",
    ),
    OtherCause(
        Symptom(
            r"Can't find '?adapter_config\.json|Can't find weights for \S+ in"
            r"|adapter model file not found in"
        ),
        "a folder that is no saved adapter, or not a whole one",
        "lora-doctor check MODEL --adapter DIR",
    ),
    OtherCause(
        Symptom(
            r"\bArrowInvalid\b|\bArrowTypeError\b|\bDatasetGenerationError\b|\bDatasetGenerationCastError\b"
            r"|\bDataFilesNotFoundError\b"
        ),
        "data files that cannot be read",
        "lora-doctor check MODEL --data FILE",
    ),
    OtherCause(
        Symptom(
            r"\bTypeError: \S+\(\) got an unexpected keyword argument"
            r"|module 'torch[\w.]*' has no attribute|cannot import name '\w+' from 'torch",
            raised_in=r"(?:site|dist)-packages[\\/](?:transformers|trl|peft|accelerate|datasets)[\\/]",
            unless=r"[\\/]peft[\\/]peft_model\.py",
        ),
        "two installed packages of releases that do not fit each other",
        "lora-doctor env --check",
    ),
    OtherCause(
        Symptom(r"Transformers does not recognize this architecture"),
        "a model type that the installed transformers does not have",
        "lora-doctor env",
    ),
    OtherCause(
        Symptom(
            r"(?:^|[\s|\]])Killed$|Signal 9 \(SIGKILL\)|exitcode:? -9\b"
            r"|[Oo]ut of memory: Killed process"
            r"|DataLoader worker \(pid.{1,40}?\) is killed by signal"
        ),
        "a process that the system ended, mostly for want of main memory (not of the GPU's)",
    ),
    OtherCause(Symptom(r"Segmentation fault|\bSIGSEGV\b|core dumped"), "a crash in compiled code"),
    OtherCause(
        Symptom(r"\bChildFailedError\b|returned non-zero exit status"),
        "the launcher's own summary: the error itself was printed above it, by the process that "
        "failed",
    ),
)


def find_other_cause(text: str) -> OtherCause | None:
    """What the text is about, if that is known and no LoRA set-up.

    Raises:
        LimitError: the text is one that the regular expressions take too long for.
    """
    with bounded(LOG):
        pasted = Pasted(text)
        start = pasted.last_step
        return next(
            (
                cause
                for cause in _CAUSES
                if any(hit.end() > start for hit in pasted.hits(cause.symptom))
            ),
            None,
        )
