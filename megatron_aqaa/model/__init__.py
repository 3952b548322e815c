"""The language model: Megatron-Core's GPT with square-root ALiBi, packed documents and the audio embedding stack."""

from megatron_aqaa.model.aqaa_model import AQAAModel, build_model
from megatron_aqaa.model.config import ModelConfig, to_transformer_config

__all__ = ["AQAAModel", "ModelConfig", "build_model", "to_transformer_config"]
