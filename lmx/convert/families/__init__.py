"""The model families of Hugging Face checkpoints that lmx knows: for each a table of names, and its config both ways."""
