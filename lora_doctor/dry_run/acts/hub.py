"""Nothing goes up to a hub, and no weights come down."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from lora_doctor.dry_run.acts.acting import Acting

#: Patterns of files with weights.
WEIGHTS = (
    "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx",
    "*.tflite",
)  # fmt: skip
_UPLOADS = (
    "upload_file", "upload_folder", "upload_large_folder", "create_commit", "create_branch",
    "create_tag", "delete_repo", "delete_file", "delete_folder", "super_squash_history",
)  # fmt: skip


def prepare(acting: Acting) -> None:
    """Switch off what writes to a hub."""
    acting.after("huggingface_hub.hf_api", lambda m: _api(acting, m))
    acting.after("huggingface_hub._login", lambda m: _login(acting, m))
    acting.after("huggingface_hub._snapshot_download", lambda m: _snapshot(acting, m))
    acting.after("transformers.utils.hub", lambda m: _mixin(acting, m))
    acting.after("transformers.trainer", lambda m: _trainer(acting, m))


def _not_uploaded(acting: Acting) -> Any:
    def call(original: Any, *arguments: Any, **named: Any) -> None:
        name = getattr(original, "__name__", "upload")
        acting.note("redirected", f"{name} of a hub was left out", once=name)

    return call


def _api(acting: Acting, module: ModuleType) -> None:
    left_out = _not_uploaded(acting)
    for name in _UPLOADS:
        if name in vars(module.HfApi):
            acting.replaced.around(module.HfApi, name, left_out)

    def create_repo(original: Any, api: Any, repo_id: str, *arguments: Any, **named: Any) -> Any:
        left_out(original)
        return module.RepoUrl(f"{module.constants.ENDPOINT}/{repo_id}")

    def whoami(original: Any, api: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return original(api, *arguments, **named)
        except Exception as error:  # noqa: BLE001 - no network, no token: a name does for a dry run
            acting.note("redirected", f"whoami of a hub: {type(error).__name__}", once="whoami")
            return {"type": "user", "name": "dry-run", "fullname": "dry-run", "orgs": []}

    acting.replaced.around(module.HfApi, "create_repo", create_repo)
    acting.replaced.around(module.HfApi, "whoami", whoami)
    # Functions of the package are bound methods of one instance, made from the class before.
    for name in (*_UPLOADS, "create_repo", "whoami"):
        if name in vars(module) and name in vars(module.HfApi):
            acting.replaced.put(module, name, getattr(module.api, name))


def _login(acting: Acting, module: ModuleType) -> None:
    """It asks the hub, or somebody at a terminal, and writes the token into the user's files."""
    for name in ("login", "interpreter_login", "notebook_login", "logout"):
        if name in vars(module):
            acting.replaced.around(module, name, _not_uploaded(acting))


def _snapshot(acting: Acting, module: ModuleType) -> None:
    def without_weights(original: Any, *arguments: Any, **named: Any) -> Any:
        if named.get("repo_type") in (None, "model"):
            ignored = named.get("ignore_patterns") or []
            ignored = [ignored] if isinstance(ignored, str) else list(ignored)
            named["ignore_patterns"] = [*ignored, *WEIGHTS]
        return original(*arguments, **named)

    acting.replaced.around(module, "snapshot_download", without_weights)


def _mixin(acting: Acting, module: ModuleType) -> None:
    acting.replaced.around(module.PushToHubMixin, "push_to_hub", _not_uploaded(acting))


def _trainer(acting: Acting, module: ModuleType) -> None:
    acting.replaced.around(module.Trainer, "push_to_hub", _not_uploaded(acting))
    for name in ("init_hf_repo", "_push_from_checkpoint"):
        if name in vars(module.Trainer):
            acting.replaced.around(module.Trainer, name, _not_uploaded(acting))
