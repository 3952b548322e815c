"""Answering: sampling under the group grammar, generation with a KV cache, and the whole spoken chain."""
