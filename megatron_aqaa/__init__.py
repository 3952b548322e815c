"""Megatron-AQAA: an open training system for speech-to-speech language models on Megatron-Core.

Shapes in docstrings use one legend:

    B  batch            S  tokens of a sequence       H  hidden size        V  vocabulary
    F  frames           M  mel bands                  N  waveform samples   L  layers

Megatron activations are ``[S, B, H]``, batches are ``[B, S]``. *Codes* are ids inside one codebook, from 0;
*token ids* are ids of the merged vocabulary (see ``megatron_aqaa.vocabulary``).
"""

import warnings

__version__ = "0.1.0"

# Megatron-Core says at import, once per module, that optional parts are missing (they are extras of this project),
# recommends an environment variable that only a GPU reads, uses names that torch 2.13 renames, and looks for gradients
# where there are none.
for _message in (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "When using (async grad allreduce|sequence parallelism)",
    "`torch.distributed.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
    "`load_state_dict` is deprecated",
    "Please use DTensor instead",
    "`torch.jit.script",
    "The .grad attribute of a Tensor that is not a leaf",
):
    warnings.filterwarnings("ignore", message=_message)
