"""Trainers of the speech tokenizers and of the vocoder: batches, losses, one network or two against each other."""
