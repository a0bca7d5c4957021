"""What the sides of `tools/bench_data.py` share in packing tokens: shapes, and the names of the files in the folder."""

BATCH, LENGTH = 8, 2048
SEED = 0  # of the order of rows
TEXT, WARM_UP = "text.jsonl", "warm_up.jsonl"  # one {"text"} a line; the second is read before the first turn
TOKENIZERS = {"sentencepiece": "SentencePiece BPE", "huggingface": "tokenizer.json, byte-level BPE"}
"""Kind of tokenizer, also the folder that holds it, and its title."""
START, END = "<|begin|>", "<|end|>"  # of the tokenizer.json; no document has them
DOCUMENTS = 1000  # of a batch of `datasets`' `map`, its default; each drops what is left over of a row
