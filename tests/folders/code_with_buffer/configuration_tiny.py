from transformers import PretrainedConfig


class TinyConfig(PretrainedConfig):
    model_type = "tiny_with_buffer"

    def __init__(
        self,
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        rope_theta=10000.0,
        rope_scaling=None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        super().__init__(**kwargs)
