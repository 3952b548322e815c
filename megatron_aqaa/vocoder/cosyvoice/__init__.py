"""The full-size vocoder of the CosyVoice-1 family, with the parameter names of its released checkpoints."""
