"""The parts of the audio loaders: records, the plan of batches, effects, features, DALI's pipeline."""
