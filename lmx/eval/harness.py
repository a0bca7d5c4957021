"""EleutherAI's lm-evaluation-harness over a model of lmx: its tasks, scored and generated here."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from tqdm import tqdm

from lmx.core.types import Params
from lmx.model.decoder import Model
from lmx.sampling import score
from lmx.sampling.engine import Engine
from lmx.sampling.request import Request, Sampling
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer, start_id
from lmx.tokenizer.text import flat

NEW_TOKENS = 256  # of an answer where a task sets no limit
_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DRAWN = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The model that is evaluated.

    Attributes:
      model: a language model.
      params: its parameters.
      tokenizer: its tokenizer.
      chat: its chat format, None where it has none.
      name: for people, for instance its folder.
      fingerprint: of the model, for the record.
      eos_ids: ids that end an answer.
    """

    model: Model
    params: Params = dataclasses.field(repr=False)
    tokenizer: Tokenizer
    chat: Chat | None = None
    name: str = "lmx"
    fingerprint: str = ""
    eos_ids: tuple[int, ...] = ()


class LmxLM(TemplateLM):
    """The harness's view of a model. Requests of any length and order; long ones are cut from the left, as the harness has it.

    The borders of context and continuation are the harness's own (`TemplateLM._encode_pair`), but for conversations that were
    rendered here: their ids are those of the chat format, and nothing that stands in a task's text becomes a special token.
    """

    def __init__(
        self, evaluated: Evaluated, engine: Callable[[], Engine], *, context: int | None = None, batch_size: int = 32
    ) -> None:
        """Wraps a model.

        Args:
          evaluated: the model.
          engine: makes the engine, when the first task generates; its rows hold `context` tokens.
          context: tokens that are read at once, prompt and answer together; None = the model's max_length.
          batch_size: most rows that are scored at once.
        """
        super().__init__()
        self._evaluated, self._make_engine, self._batch_size = evaluated, engine, batch_size
        self._context = context or evaluated.model.config.max_length
        self._engine: Engine | None = None
        self._rendered: dict[str, list[int]] = {}  # conversations as texts, which is all that the harness hands on
        self._lengths: set[int] = set()  # of them, in characters

    # ----- what the harness asks about the model

    @property
    def eot_token_id(self) -> int:
        """Id that ends a text."""
        return self._evaluated.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Id that a text begins after: BOS, or EOS where the vocabulary has none."""
        return start_id(self._evaluated.tokenizer)

    @property
    def max_length(self) -> int:
        """Tokens that are read at once."""
        return self._context

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer where a task sets no limit."""
        return NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """What cached requests depend on."""
        chat = self._evaluated.chat
        template = "" if chat is None else f"_{hashlib.sha256(chat.source.encode()).hexdigest()[:16]}"
        return f"lmx_{self._evaluated.tokenizer.fingerprint[:16]}{template}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the chat template, for the record; None when none is applied."""
        if not chat_template:
            return None
        return self._chat().source

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one text, whose ids `tok_encode` knows.

        Without a generation prompt the harness means to have the last message, the assistant's, gone on with: it stays open.
        """
        prefill = "" if add_generation_prompt else chat_history[-1]["content"]
        history = chat_history if add_generation_prompt else chat_history[:-1]
        rendered = self._chat().encode(self._evaluated.tokenizer, history, add_generation_prompt=True)
        self._rendered[rendered.text] = rendered.ids
        self._lengths.add(len(rendered.text))
        return rendered.text + prefill

    def get_model_info(self) -> dict[str, Any]:
        """What the results say about the model."""
        return {
            "lmx_checkpoint": self._evaluated.name,
            "lmx_fingerprint": self._evaluated.fingerprint,
            "model_num_parameters": self._evaluated.model.num_params(),
            "max_length": self.max_length,
        }

    # ----- text to ids

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text, BOS in front unless told otherwise; of a conversation, those of the chat format."""
        tokenizer = self._evaluated.tokenizer
        conversation = self._conversation_in(string)
        if conversation is not None:
            rest = string[len(conversation) :]
            return self._rendered[conversation] + (tokenizer.encode(rest) if rest else [])
        if add_special_tokens is False or tokenizer.bos_id is None:
            return tokenizer.encode(string)
        return flat(tokenizer.encode_parts([tokenizer.bos_id, string]))

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and of its continuation."""
        if self._conversation_in(context) is None:
            return super()._encode_pair(context, continuation)
        # The answer begins a turn, behind a special token or the line end that the template wrote: a border of tokens.
        return self.tok_encode(context), self._evaluated.tokenizer.encode(continuation)

    def _conversation_in(self, string: str) -> str | None:
        """The longest rendered conversation that a text begins with."""
        if string in self._rendered:
            return string
        lengths = sorted((length for length in self._lengths if length < len(string)), reverse=True)
        return next((string[:length] for length in lengths if string[:length] in self._rendered), None)

    def _chat(self) -> Chat:
        if self._evaluated.chat is None:
            raise ValueError(
                f"{self._evaluated.name} has no chat template; leave out --apply-chat-template, or pick one by --chat-template"
            )
        return self._evaluated.chat

    # ----- log-likelihoods

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy decoding would write it, in the order of the requests."""
        pairs = [self._fitting(texts, context, continuation) for texts, context, continuation in requests]
        scores = self._score(pairs, "loglikelihood", disable_tqdm)
        results = [(item.total, item.all_greedy) for item in scores]
        for (texts, _, _), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in windows where it is longer than the model reads."""
        pairs: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = score.rolling_windows(tokens, prefix_id=self.prefix_token_id, max_length=self.max_length)
            pairs += windows
            owners += [number] * len(windows)
        totals = [0.0] * len(requests)
        for owner, item in zip(owners, self._score(pairs, "loglikelihood_rolling", disable_tqdm), strict=True):
            totals[owner] += item.total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _fitting(self, texts: tuple[str, str], context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The pair with its context cut from the left to what the model reads (the last token it needn't read)."""
        if not continuation:
            raise ValueError(
                f"the continuation {texts[1]!r} has no token of its own behind {texts[0][-40:]!r}; check the task's choices"
            )
        if len(continuation) > self.max_length:
            raise ValueError(f"a continuation has {len(continuation)} tokens, more than the {self.max_length} that the model reads")
        return context[-(self.max_length + 1 - len(continuation)) :], continuation

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]], what: str, disable_tqdm: bool) -> list[score.Score]:
        evaluated = self._evaluated
        with tqdm(total=len(pairs), desc=what, disable=disable_tqdm or None) as bar:
            return score.score_continuations(
                evaluated.model,
                evaluated.params,
                pairs,
                pad_id=evaluated.tokenizer.pad_id,
                batch_size=self._batch_size,
                vocab_size=self._vocab_size,
                progress=bar.update,
            )

    @property
    def _vocab_size(self) -> int:
        return min(self._evaluated.tokenizer.vocab_size, self._evaluated.model.config.vocab_size)

    # ----- generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, each up to the first of its stop texts, in the order of the requests.

        Repeats of a request, which tasks that sample ask for, have seeds of their own.
        """
        if self._engine is None:
            self._engine = self._make_engine()
        seen: collections.Counter[str] = collections.Counter()
        asked = []
        for request in requests:
            context, options = request.args
            identity = json.dumps([context, options], sort_keys=True, default=str)
            asked.append(self._request(context, options, seed=seen[identity]))
            seen[identity] += 1
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm or None) as bar:

            def advance(count: int, total: int) -> None:
                bar.update(count - bar.n)

            done = self._engine.run(asked, progress=advance)
        texts = [completions[0].text or "" for completions in done]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _request(self, context: str, options: Mapping[str, Any], *, seed: int) -> Request:
        """What the engine is asked; the context is cut from the left to leave room for the answer."""
        sampling = _sampling(options, most=self.max_length - 1)
        prompt = self.tok_encode(context) if context else [self.prefix_token_id]
        return Request(prompt=prompt[-(self.max_length - sampling.max_new_tokens) :], sampling=sampling, seed=seed)


def _sampling(options: Mapping[str, Any], *, most: int) -> Sampling:
    """A task's `generation_kwargs` in the engine's terms; what would change the answers and isn't known is refused."""
    rest = {name: value for name, value in options.items() if value is not None}
    until = rest.pop("until", [])
    lengths = [rest.pop(name) for name in _LENGTH_NAMES if name in rest]
    drawn = {name: kind(rest.pop(name)) for name, kind in _DRAWN.items() if name in rest}
    do_sample = rest.pop("do_sample", drawn.get("temperature", 0.0) > 0)
    if rest.pop("num_beams", 1) != 1:
        raise ValueError("a task asks for beam search (num_beams), which lmx has not")
    rest.pop("seed", None)
    if rest:
        raise ValueError(
            f"a task's generation_kwargs have {', '.join(sorted(rest))}, which lmx does not know; known: {', '.join(_DRAWN)}"
        )
    if not do_sample:
        drawn = {"temperature": 0.0} | {name: value for name, value in drawn.items() if name == "repetition_penalty"}
    if drawn.get("top_k") == 0:  # how transformers spells "off"
        del drawn["top_k"]
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    return Sampling(max_new_tokens=min(int(lengths[0]) if lengths else NEW_TOKENS, most), stop=stop, **drawn)
