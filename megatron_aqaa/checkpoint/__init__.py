"""Checkpoints: saving and loading at any parallel layout."""
