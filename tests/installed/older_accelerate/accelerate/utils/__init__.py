"""Without ``is_npu_available``, ``clear_device_cache`` and what else came later."""


def extract_model_from_parallel(model: object) -> object:
    return model
