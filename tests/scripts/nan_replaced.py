"""A composite speech model that hides its overflow; read by tests, never run."""

import logging

import torch
from torch import nn


class SpeechModel(nn.Module):
    def __init__(self, speech_encoder, language_model):
        super().__init__()
        self.speech_encoder = speech_encoder
        self.language_model = language_model
        self.projection = nn.Linear(1280, 2560)

    def forward(self, speech, input_ids, labels):
        speech_embeds = self.projection(self.speech_encoder(speech).last_hidden_state)
        text_embeds = self.language_model.get_input_embeddings()(input_ids)
        inputs_embeds = torch.cat([speech_embeds, text_embeds], dim=1)
        if torch.isnan(inputs_embeds).any():
            logging.error("NaN detected in inputs_embeds before forward pass")
            inputs_embeds = torch.clamp(inputs_embeds, -1e4, 1e4)
        outputs = self.language_model(inputs_embeds=inputs_embeds, labels=labels)
        loss = outputs.loss
        if torch.isnan(loss):
            logging.error("NaN loss detected!")
            loss = torch.tensor(0.001, device=loss.device, dtype=loss.dtype, requires_grad=True)
        return {"loss": loss}
