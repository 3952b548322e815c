"""Training loops, steps, optimizer and what keeps a long run alive."""
