"""Decoder configurations by family: `qwen2`, `afm`, `gemma2`, `llama3`, and CPU-sized ones in `tiny`."""
