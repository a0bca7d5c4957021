"""Records what transformers makes of small tokenizers, for `tests/tokenizer/test_goldens.py`.

Four tokenizers are trained on Python's own documentation, one of each foreign form: tiktoken ranks (Llama 3), a byte-level
`tokenizer.json` (Qwen 2), a SentencePiece model with user-defined pieces (Gemma) and one with a dummy prefix (Llama 2). Each folder
is read by lmx, written again as lmx exports it, and loaded by transformers' `AutoTokenizer`; its ids, texts and chat masks are the
goldens. Needs the extra `parity`:

    python tools/record_tokenizer_goldens.py

The files change only where the versions of the libraries do: sentencepiece 0.2.3, tokenizers 0.23.3, transformers 5.23.
"""

import base64
import io
import json
import os
import pydoc_data.topics
import shutil
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.normalizers
import tokenizers.pre_tokenizers
import tokenizers.trainers
import transformers

from lmx.tokenizer import foreign
from lmx.tokenizer.definition import byte_of_character
from lmx.tokenizer.tiktoken import LLAMA3_PATTERN, QWEN_PATTERN

GOLDENS = Path(__file__).parent.parent / "tests" / "tokenizer" / "goldens"
TEXTS = [
    "",
    " ",
    "Hello, world",
    "  two  spaces and a\ttab ",
    "\n\n\nlines\r\nand more\n \n",
    "日本語のテキスト。中文，한국어 العربية हिन्दी ไทย",
    "😀 👩‍👩‍👧‍👦 🇩🇪 é e\u0301 ﬁ Å \u0344",
    "\x00\x01\x7f\x1b[0m\ufeff\ufffd\u202e",
    "def f(x: int) -> int:\n\treturn x ** 2  # squared\n",
    "12345678901234567890 3.14159 0x1F",
    "a" * 300,
    "-" * 70 + "=" * 70,
    "I'll DON'T we'VE 'Tis",
    "▁a▁▁b",
    "<tool_call>{}</tool_call>",
]
SPECIAL_TEXTS = ["<|im_start|>user\nHi<|im_end|>\n", "<|eot_id|> a <|begin_of_text|>", "<start_of_turn>user\n<end_of_turn><bos>x"]
TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ open }}{{ tools | tojson }}{{ close }}{% endif %}{% for message in messages %}"
    "OPEN{{ message.role }}\n{% if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}CLOSE"
    "{% endgeneration %}"
    "{% else %}{{ message.content }}CLOSE{% endif %}\n{% endfor %}{% if add_generation_prompt %}OPENassistant\n{% endif %}"
)
CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "  Tell me <b>more</b> "}, {"role": "assistant", "content": " Text, 日本 and\n\nlines."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2 + 2?"},
        {"role": "assistant", "content": "4 😀"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "add", "description": 'a < b & "é"', "parameters": {"a": [1, None, True]}}}]


def corpus() -> list[str]:
    """Twenty topics of Python's documentation."""
    return [text for _, text in sorted(pydoc_data.topics.topics.items())][:20]


def byte_level(pattern: str, vocab_size: int, nfc: bool) -> tokenizers.Tokenizer:
    """A byte-level BPE trained by the `tokenizers` package."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    if nfc:
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def make_llama3(folder: Path) -> dict[str, Any]:
    """Meta's layout: a file of ranks."""
    vocabulary = byte_level(LLAMA3_PATTERN, 500, False).get_vocab()
    spelling = byte_of_character()
    lines = [
        base64.b64encode(bytes(spelling[character] for character in token)) + b" %d\n" % rank
        for token, rank in sorted(vocabulary.items(), key=lambda entry: entry[1])
    ]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return {"open": "<|start_header_id|>", "close": "<|eot_id|>", "config": {"eos_token": "<|eot_id|>"}}


def make_qwen2(folder: Path) -> dict[str, Any]:
    """Hugging Face's layout: a byte-level `tokenizer.json`."""
    tokenizer = byte_level(QWEN_PATTERN, 500, True)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in ("<tool_call>", "</tool_call>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return {"open": "<|im_start|>", "close": "<|im_end|>", "config": config}


def sentencepiece_model(**options: Any) -> bytes:
    """A SentencePiece BPE in the manner of Llama 2 and Gemma."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def make_gemma(folder: Path) -> dict[str, Any]:
    """A SentencePiece model without dummy prefix, turn tokens being user-defined pieces."""
    pieces = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "pad_piece": "<pad>", "eos_piece": "<eos>", "bos_piece": "<bos>"}
    defined = ["<start_of_turn>", "<end_of_turn>", "\n\n", "\n\n\n", "▁▁", "<b>", "</b>"]
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(add_dummy_prefix=False, user_defined_symbols=defined, **pieces))
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return {"open": "<start_of_turn>", "close": "<end_of_turn>", "config": config}


def make_llama2(folder: Path) -> dict[str, Any]:
    """A SentencePiece model with dummy prefix, turns ending in EOS."""
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(add_dummy_prefix=True))
    return {"open": "[INST]", "close": "</s>", "config": {"bos_token": "<s>", "eos_token": "</s>"}}


def expected(folder: Path, export: Path, template: str) -> dict[str, Any]:
    """What transformers makes of the export of a folder."""
    tokenizer, chat = foreign.read(folder)
    foreign.write(export, tokenizer, chat)
    (export / "config.json").write_text('{"model_type": "llama"}')
    reference: Any = transformers.AutoTokenizer.from_pretrained(export)
    chats = []
    for conversation in CONVERSATIONS:
        for prompt, tools in ((False, None), (True, None), (False, TOOLS)):
            options: dict[str, Any] = {"tools": tools, "add_generation_prompt": prompt, "chat_template": template}
            text = reference.apply_chat_template(conversation, tokenize=False, **options)
            encoded = reference.apply_chat_template(
                conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **options
            )
            chats.append(
                {
                    "messages": conversation,
                    "prompt": prompt,
                    "tools": tools,
                    "text": text,
                    "ids": encoded["input_ids"],
                    "mask": encoded["assistant_masks"],
                }
            )
    texts = [*TEXTS, *SPECIAL_TEXTS]
    plain = [reference(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in texts]
    return {
        "texts": texts,
        "plain": plain,
        "special": [reference(text, add_special_tokens=False)["input_ids"] for text in texts],
        "decoded": [reference.decode(ids, skip_special_tokens=True) for ids in plain],
        "chats": chats,
    }


def main() -> None:
    """Writes one folder for each form."""
    for name, make in (("llama3", make_llama3), ("qwen2", make_qwen2), ("gemma", make_gemma), ("llama2", make_llama2)):
        folder = GOLDENS / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = make(folder)
        template = TEMPLATE.replace("OPEN", made["open"]).replace("CLOSE", made["close"])
        (folder / "tokenizer_config.json").write_text(json.dumps({**made["config"], "chat_template": template}, indent=1) + "\n")
        with tempfile.TemporaryDirectory() as export:
            record = expected(folder, Path(export), template)
        (folder / "expected.json").write_text(json.dumps(record, ensure_ascii=True) + "\n")
        size = sum(os.path.getsize(path) for path in folder.iterdir())
        print(f"{name}: {len(record['texts'])} texts, {len(record['chats'])} chats, {size} bytes")


if __name__ == "__main__":
    main()
