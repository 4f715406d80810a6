"""Names of the parts of a memory plan that reports add up or look for; as people read them."""

from __future__ import annotations

QUANTIZED_WEIGHTS = "weights, quantized"
QUANTIZATION_CONSTANTS = "quantization constants"
OTHER_WEIGHTS = "weights, not quantized"
ACTIVATIONS = "activations"
LOSS_AND_BACKWARD = "logits, loss, backward"
#: Only of 8-bit layers.
OUTLIERS = "outliers of 8-bit layers"
#: Only with several processes.
SHARDING = "buffers of communication"
#: Only of 8-bit layers, in a loop that holds the loss for longer than the Trainer does.
HELD = "held by the last loss"

#: The frozen weights, in whatever form they lie on the device.
WEIGHTS = (QUANTIZED_WEIGHTS, QUANTIZATION_CONSTANTS, OTHER_WEIGHTS)
#: What a training step takes beyond what stays from step to step.
STEP = (ACTIVATIONS, LOSS_AND_BACKWARD)
