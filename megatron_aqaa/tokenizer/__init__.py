"""Text pieces, linguistic and semantic codes, the dual-codebook stream and the chat template."""
