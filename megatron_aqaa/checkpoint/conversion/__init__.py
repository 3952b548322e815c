"""Conversion between Hugging Face safetensors and `torch_dist`: a plan for each verb, and one way to carry it out."""
