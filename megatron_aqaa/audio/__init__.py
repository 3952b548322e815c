"""Waveforms: reading and writing, mel spectrograms, pitch, synthetic speech."""
