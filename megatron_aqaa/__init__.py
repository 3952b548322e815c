"""Megatron-AQAA: an open training system for speech-to-speech language models on Megatron-Core.

Shapes in docstrings use one legend:

    B  batch            S  tokens of a sequence       H  hidden size        V  vocabulary
    F  frames           M  mel bands                  N  waveform samples   L  layers

Megatron activations are ``[S, B, H]``, batches are ``[B, S]``. *Codes* are ids inside one codebook, from 0;
*token ids* are ids of the merged vocabulary (see ``megatron_aqaa.vocabulary``).
"""

__version__ = "0.1.0"
