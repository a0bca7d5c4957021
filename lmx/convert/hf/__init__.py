"""Hugging Face directories: `config.json`, safetensors files with or without an index, tokenizer files; in and out."""
