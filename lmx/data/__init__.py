"""Text in, batches out: sources, tokenization, packing, mixing, and exact resume, on grain."""
