"""Audio tokens → speech: acoustic model (regression and flow matching), waveform generator, streaming."""
