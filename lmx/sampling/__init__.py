"""Row 3: sampling from a model (filters of logits, batched generation) and scoring of given tokens."""
