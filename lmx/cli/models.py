"""The verbs of a trained model: generate, chat, serve, eval."""

import argparse
import importlib.util
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmx.cli.verb import add_verb

if TYPE_CHECKING:
    from lmx.sampling.request import Sampling
    from lmx.serve.checkpoint import Checkpoint

_NEW_TOKENS = 256  # where nothing is asked for; fewer if the context has less room


def add(verbs: Any) -> None:
    """Adds the verbs to the parser's subparsers."""
    _add_generate(_verb(verbs, "generate", _generate, "complete prompts with a trained model"))
    _add_chat(_verb(verbs, "chat", _chat, "talk to a trained model"))
    _add_serve(_verb(verbs, "serve", _serve, "answer OpenAI's HTTP API with a trained model"))
    _add_eval(_verb(verbs, "eval", _eval, "evaluate a trained model on tasks of the lm-evaluation-harness"))


# ----- verbs


def _generate(options: argparse.Namespace) -> None:
    if (options.input is None) == (not options.prompt):
        raise ValueError("lmx generate takes either --prompt TEXT (as often as you like) or --input FILE")
    if (options.input is None) != (options.output is None):
        raise ValueError("--input FILE and --output FILE go together")
    sampling = _sampling(options)
    checkpoint = _open(options)
    if options.input is not None:
        _generate_file(options, checkpoint, sampling)
    else:
        _generate_prompts(options, checkpoint, sampling)


def _generate_prompts(options: argparse.Namespace, checkpoint: "Checkpoint", sampling: "Sampling") -> None:
    import dataclasses

    from lmx.sampling import prompt as prompts
    from lmx.sampling.request import Request
    from lmx.serve import terminal

    loaded = checkpoint.loaded
    encoded = []
    for number, text in enumerate(options.prompt, start=1):
        try:
            if options.chat and text:
                encoded.append(prompts.encode_messages(loaded.tokenizer, loaded.chat, [{"role": "user", "content": text}]))
            else:
                encoded.append(prompts.encode_text(loaded.tokenizer, text))
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}" if len(options.prompt) > 1 else str(error)) from error
    longest = max(map(len, encoded))
    limit = checkpoint.context(options.max_length, least=longest + sampling.max_new_tokens)
    requests = []
    for ids in encoded:
        # Without a wish for a number of tokens an answer takes what room there is.
        fitting = sampling.max_new_tokens if options.max_new_tokens else max(1, min(sampling.max_new_tokens, limit - len(ids)))
        drawn = dataclasses.replace(sampling, max_new_tokens=fitting)
        requests.append(Request(prompt=ids, sampling=drawn, seed=options.seed, n=options.n))
    slots = min(options.slots, sum(request.n for request in requests))
    streams = len(requests) == 1 and options.n == 1 and sys.stdout.isatty()
    engine = checkpoint.engine(slots=slots, max_length=limit, kv_dtype=options.kv_dtype, decode_steps=1 if streams else 8)
    if streams:
        terminal.stream(engine, requests[0], sys.stdout)
        print()
    else:
        terminal.complete(engine, requests, options.prompt, sys.stdout)


def _generate_file(options: argparse.Namespace, checkpoint: "Checkpoint", sampling: "Sampling") -> None:
    from lmx.sampling import batch_file

    loaded = checkpoint.loaded
    batch = batch_file.BatchOptions(
        sampling=sampling,
        seed=options.seed,
        n=options.n,
        chat=options.chat,
        logprobs=options.logprobs,
        fit=options.max_new_tokens is None,
    )
    limit = loaded.model.config.max_length if options.max_length is None else checkpoint.context(options.max_length)
    reader = batch_file.Reader(loaded.tokenizer, loaded.chat, limit, loaded.model.config.vocab_size)
    lines = batch_file.read_lines(options.input, batch, reader)
    engine = checkpoint.engine(slots=options.slots, max_length=limit, kv_dtype=options.kv_dtype)
    more = {"kv_dtype": options.kv_dtype, "max_length": options.max_length, "chat_template": options.chat_template}
    job = batch_file.describe_job(options.input, batch, model=checkpoint.fingerprint, more=more)
    batch_file.run(engine, lines, options.output, job=job, logprobs=options.logprobs, slots=options.slots)


def _chat(options: argparse.Namespace) -> None:
    from lmx.serve import terminal

    sampling = _sampling(options)
    checkpoint = _open(options)
    loaded = checkpoint.loaded
    if loaded.chat is None:
        raise ValueError(
            f"{options.checkpoint} has no chat template: pick one with --chat-template chatml, llama3 or gemma (or a file), or use "
            "lmx generate"
        )
    limit = checkpoint.context(options.max_length)
    session = terminal.Session(
        engine=checkpoint.engine(slots=1, max_length=limit, kv_dtype=options.kv_dtype, decode_steps=1),
        tokenizer=loaded.tokenizer,
        chat=loaded.chat,
        sampling=sampling,
        max_length=limit,
        seed=options.seed,
        system=options.system,
    )

    def notice(text: str) -> None:
        print(f"[{text}]", file=sys.stderr, flush=True)

    if sys.stdin.isatty():
        if importlib.util.find_spec("readline") is not None:
            import readline  # noqa: F401  importing it gives `input` history and editing
        notice(f"{checkpoint.name}: {terminal.HELP}")
        terminal.converse(session, terminal.typed_lines("> "), sys.stdout, notice)
    else:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # what is not UTF-8 is refused line by line
        terminal.converse(session, iter(sys.stdin), sys.stdout, notice)


def _serve(options: argparse.Namespace) -> None:
    _need("serve", "starlette", "uvicorn")
    from lmx.core import logging
    from lmx.serve import deploy, server

    logging.setup()
    key = _api_key(options.api_key_file)
    sock = server.listen(options.host, options.port)  # a taken port is known before the model is loaded
    try:
        checkpoint = _open(options)
        deploy.serve(
            checkpoint,
            sock,
            deploy.Deployment(
                host=options.host,
                api_key=key,
                name=options.name or checkpoint.name,
                allow_hosts=tuple(options.allow_host),
                slots=options.slots,
                max_queue=options.max_queue,
                max_length=options.max_length,
                kv_dtype=options.kv_dtype,
                max_body_bytes=options.max_body_bytes,
            ),
        )
    finally:
        sock.close()


def _eval(options: argparse.Namespace) -> None:
    _need("eval", "lm_eval")
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval's bootstrap would fork a process in which jax has threads
    from lmx.eval import harness, run_harness
    from lmx.pipeline import artifact

    checkpoint = _open(options)
    loaded = checkpoint.loaded
    limit = checkpoint.context(options.max_length, least=loaded.model.config.max_length)
    evaluated = harness.Evaluated(
        model=loaded.model,
        params=loaded.params,
        tokenizer=loaded.tokenizer,
        chat=loaded.chat,
        name=str(options.checkpoint),
        fingerprint=checkpoint.fingerprint,
    )
    lm = harness.LmxLM(
        evaluated,
        lambda: checkpoint.engine(slots=options.slots, max_length=limit, kv_dtype=options.kv_dtype),
        context=limit,
        batch_size=options.batch_size,
    )
    if options.apply_chat_template and loaded.chat is None:
        raise ValueError(f"{options.checkpoint} has no chat template: leave out --apply-chat-template, or add --chat-template NAME")
    results = run_harness.run_tasks(
        lm,
        [name.strip() for name in options.tasks.split(",") if name.strip()],
        include_path=options.include_path,
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
    )
    print(run_harness.table(results))
    if options.output is not None:
        run_harness.write_results(options.output, results, artifact.versions())


# ----- what they share


def _open(options: argparse.Namespace) -> "Checkpoint":
    from lmx.core import logging
    from lmx.serve import checkpoint
    from lmx.train import compile_cache

    logging.setup()
    compile_cache.enable_compile_cache()
    return checkpoint.open_checkpoint(options.checkpoint, mesh=options.mesh, chat_template=options.chat_template)


def _sampling(options: argparse.Namespace) -> "Sampling":
    from lmx.sampling.request import Sampling

    return Sampling(
        max_new_tokens=_NEW_TOKENS if options.max_new_tokens is None else options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        stop=tuple(options.stop),
    )


def _need(extra: str, *modules: str) -> None:
    """Refuses a verb whose optional packages are missing, in one sentence."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"lmx {extra} needs {' and '.join(missing)}, which is not installed: pip install 'lmx[{extra}]'")


def _api_key(file: Path | None) -> str | None:
    """The key from a file, or from LMX_API_KEY, without the line end; no message ever shows it."""
    if file is not None:
        key = file.read_text(encoding="utf-8").strip()
        if not key:
            raise ValueError(f"the API key file {file} is empty")
        return key
    return os.environ.get("LMX_API_KEY", "").strip() or None


# ----- options


def _verb(verbs, name, function, summary) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    parser = add_verb(verbs, name, function, summary)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="folder of a stage of a run, or of a converted model")
    parser.add_argument("--chat-template", metavar="NAME", help="chatml, llama3, gemma or a file of Jinja, in place of the model's")
    parser.add_argument("--slots", metavar="N", type=int, default=8, help="rows that are decoded together (default: %(default)s)")
    parser.add_argument(
        "--max-length", metavar="N", type=int, help="tokens of a prompt and its answer (default: the model's, to 8192)"
    )
    parser.add_argument("--kv-dtype", choices=["int8"], help="keep keys and values in 8 bits")
    parser.add_argument(
        "--mesh", metavar="AXIS=N,...", help="spread the model, such as data=1,fsdp=2,tensor=4 (default: one device)"
    )
    return parser


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-new-tokens", metavar="N", type=int, help=f"most tokens of an answer (default: {_NEW_TOKENS})")
    parser.add_argument("--temperature", metavar="X", type=float, default=1.0, help="0 = greedy (default: %(default)s)")
    parser.add_argument("--top-k", metavar="K", type=int, help="draw among the K most likely tokens")
    parser.add_argument("--top-p", metavar="P", type=float, help="draw from the nucleus of this probability")
    parser.add_argument("--min-p", metavar="P", type=float, help="draw among tokens at least P times as likely as the best")
    parser.add_argument("--repetition-penalty", metavar="X", type=float, default=1.0, help="above 1 = fewer repeats (default: off)")
    parser.add_argument("--stop", metavar="TEXT", action="append", default=[], help="end an answer before this text; repeatable")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the randomness (default: %(default)s)")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", metavar="TEXT", action="append", default=[], help="text to go on with; repeatable")
    parser.add_argument(
        "--input", metavar="FILE", type=Path, help='JSON lines, {"prompt": ...}, {"messages": ...} or {"prompt_ids": ...}'
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="JSON lines, one for each of --input; an interrupted run goes on"
    )
    parser.add_argument("--chat", action="store_true", help="a prompt is a user's message: ask by the chat template")
    parser.add_argument("--n", metavar="N", type=int, default=1, help="answers to each prompt (default: %(default)s)")
    parser.add_argument("--logprobs", action="store_true", help="write token ids and log-probabilities to --output too")
    _add_sampling(parser)


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="the system's message")
    _add_sampling(parser)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 = any free one (default: %(default)s)")
    parser.add_argument("--name", help="id of the model in the API (default: the folder's name)")
    parser.add_argument("--api-key-file", metavar="FILE", type=Path, help="ask for the key in this file (also: LMX_API_KEY)")
    parser.add_argument(
        "--allow-host", metavar="NAME", action="append", default=[], help="answer under this host name too, as behind a proxy"
    )
    parser.add_argument("--max-queue", metavar="N", type=int, default=256, help="answers that may wait (default: %(default)s)")
    parser.add_argument("--max-body-bytes", metavar="N", type=int, default=4 * 2**20, help="largest request (default: %(default)s)")


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", metavar="NAME[,NAME...]", required=True, help="tasks, groups or tags, or YAML files")
    parser.add_argument("--include-path", metavar="DIR", type=Path, help="folder with YAML tasks of your own")
    parser.add_argument("--limit", metavar="N", type=float, help="documents of each task, or a share below 1 (default: all)")
    parser.add_argument("--num-fewshot", metavar="N", type=int, help="examples before a question (default: as the task says)")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the results as JSON")
    parser.add_argument("--apply-chat-template", action="store_true", help="ask in the model's chat format")
    parser.add_argument("--batch-size", metavar="N", type=int, default=32, help="most rows scored at once (default: %(default)s)")
