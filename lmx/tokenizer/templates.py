"""The chat formats that lmx has built in, as Jinja of its own: ChatML, Llama 3 and Gemma.

Their text is that of the families' published formats; content may also be a list of text parts, as OpenAI's clients send it.
"""

_CONTENT = """\
{%- macro text_of(message) -%}
{%- if message.content is string -%}{{ message.content }}
{%- elif message.content is sequence and message.content -%}
{%- for part in message.content -%}
{%- if part.type == "text" -%}{{ part.text }}
{%- else -%}{{ raise_exception("this format knows content parts of type text only, not " ~ part.type) }}
{%- endif -%}
{%- endfor -%}
{%- else -%}{{ raise_exception("a message of role " ~ message.role ~ " has no text as its content") }}
{%- endif -%}
{%- endmacro -%}
"""

CHATML = (
    _CONTENT
    + """\
{%- for message in messages -%}
{%- if message.role not in ["system", "user", "assistant", "tool"] -%}
{{ raise_exception("ChatML knows the roles system, user, assistant and tool, not " ~ message.role) }}
{%- endif -%}
{{ "<|im_start|>" ~ message.role ~ "\\n" }}
{%- if message.role == "assistant" -%}
{%- generation -%}{{ text_of(message) ~ "<|im_end|>" }}{%- endgeneration -%}
{%- else -%}{{ text_of(message) ~ "<|im_end|>" }}
{%- endif -%}
{{ "\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\\n" }}{%- endif -%}
"""
)

LLAMA3 = (
    _CONTENT
    + """\
{{ bos_token }}
{%- for message in messages -%}
{%- if message.role not in ["system", "user", "assistant", "tool", "ipython"] -%}
{{ raise_exception("Llama 3 knows the roles system, user, assistant and tool, not " ~ message.role) }}
{%- endif -%}
{%- set role = "ipython" if message.role == "tool" else message.role -%}
{{ "<|start_header_id|>" ~ role ~ "<|end_header_id|>\\n\\n" }}
{%- if message.role == "assistant" -%}
{%- generation -%}{{ text_of(message) | trim ~ "<|eot_id|>" }}{%- endgeneration -%}
{%- else -%}{{ text_of(message) | trim ~ "<|eot_id|>" }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}{%- endif -%}
"""
)

GEMMA = (
    _CONTENT
    + """\
{{ bos_token }}
{%- for message in messages -%}
{%- if message.role not in ["user", "assistant"] -%}
{{ raise_exception("Gemma knows the roles user and assistant, not " ~ message.role ~ "; instructions belong to the first user") }}
{%- elif (message.role == "user") != (loop.index0 % 2 == 0) -%}
{{ raise_exception("Gemma's roles must alternate, user first; message " ~ loop.index0 ~ " is again of role " ~ message.role) }}
{%- endif -%}
{{ "<start_of_turn>" ~ ("model" if message.role == "assistant" else "user") ~ "\\n" }}
{%- if message.role == "assistant" -%}
{%- generation -%}{{ text_of(message) | trim ~ "<end_of_turn>" }}{%- endgeneration -%}
{%- else -%}{{ text_of(message) | trim ~ "<end_of_turn>" }}
{%- endif -%}
{{ "\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<start_of_turn>model\\n" }}{%- endif -%}
"""
)

BUILT_IN = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA}
# Ends of a turn, for tokenizers that have these specials.
TURN_ENDS = {"chatml": ("<|im_end|>",), "llama3": ("<|eot_id|>", "<|eom_id|>"), "gemma": ("<end_of_turn>",)}
