"""GGUF files, llama.cpp's format: read in every type that the `gguf` package dequantises, written as F32, F16, BF16 or Q8_0."""
