"""From recordings and tokens to training batches: documents, conversations, datasets and the loader."""
