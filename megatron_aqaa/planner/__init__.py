"""What a run needs of a cluster: bytes per rank, seconds per step, and which parallel layout suits it.

Does not import Megatron, so that planning starts in two seconds and works on a laptop. Bytes of parameters,
gradients and optimizer state are exact, by Megatron-Core 0.16.1's own rules; times are a model, whose constants stand
in the cluster's YAML, each with its source.
"""
