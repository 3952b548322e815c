"""The released tokenizer of Step-Audio, read from its own files."""
