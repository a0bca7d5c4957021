"""The server as any HTTP client meets it: errors, limits, keys, a full queue, clients that leave, and the end."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from lmx.serve.app import Access
from lmx.serve.deploy import Deployment

Eventually = Callable[..., None]
PROMPT = {"prompt": "hi", "max_tokens": 3}


def error_of(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return response.status_code, body["error"]["message"]


@pytest.fixture
def plain(serve_scripted: Any, scripted: Any) -> Any:
    return serve_scripted(scripted())


@pytest.fixture
def gated(serve_scripted: Any, scripted: Any) -> tuple[Any, Any]:
    """A server whose engine takes no step until it is let."""
    engine = scripted(allowed=threading.Semaphore(0))
    return serve_scripted(engine), engine


def test_a_completion_has_openais_form(plain: Any) -> None:
    body = plain.post("/v1/completions", PROMPT | {"model": "scripted", "user": "me"}).json()
    assert (body["object"], body["model"]) == ("text_completion", "scripted") and body["id"].startswith("cmpl-")
    assert body["choices"] == [{"index": 0, "text": "abc", "logprobs": None, "finish_reason": "length"}]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}  # BOS counts


def test_health_and_models_are_told(plain: Any) -> None:
    assert httpx.get(plain.url + "/health").json() == {"status": "ok", "taken": 0, "places": 4}
    listed = httpx.get(plain.url + "/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["scripted"]
    assert httpx.get(plain.url + "/v1/models/scripted").json() == listed["data"][0]
    status, message = error_of(httpx.get(plain.url + "/v1/models/other"))
    assert status == 404 and "'other' does not exist" in message


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff{}", "the body is not UTF-8: invalid start byte at byte 0"),
        (b"[1]", "the body must be a JSON object, found an array"),
        (b'{"prompt": "a", "temperature": NaN}', "NaN is no JSON number"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested more than 64 deep"),
        (b'{"prompt": ' + b"[" * 70 + b"]" * 70 + b"}", "nested more than 64 deep"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"prompt": "\\ud800"}', "lone surrogate"),
    ],
)
def test_a_body_that_is_no_request_gets_one_sentence(plain: Any, body: bytes, sentence: str) -> None:
    response = httpx.post(plain.url + "/v1/completions", content=body, headers={"Content-Type": "application/json"})
    status, message = error_of(response)
    assert status == 400 and sentence in message


def test_only_json_is_read(plain: Any) -> None:
    response = httpx.post(plain.url + "/v1/completions", data={"prompt": "a"})
    assert error_of(response)[0] == 415 and "application/json" in error_of(response)[1]
    assert error_of(httpx.post(plain.url + "/v1/completions", content=b"{}"))[0] == 415


def test_unknown_paths_and_methods_are_answered_in_the_same_form(plain: Any) -> None:
    assert error_of(httpx.get(plain.url + "/v1/embeddings")) == (404, "there is nothing at '/v1/embeddings'")
    assert error_of(httpx.get(plain.url + "/v1/completions")) == (405, "GET is not allowed here")
    assert "access-control-allow-origin" not in httpx.get(plain.url + "/health", headers={"Origin": "http://a.example"}).headers


def test_a_large_body_is_refused_by_what_it_says_and_by_what_it_sends(serve_scripted: Any, scripted: Any) -> None:
    server = serve_scripted(scripted(), Access(max_body_bytes=1000))
    status, message = error_of(server.post("/v1/completions", {"prompt": "a" * 1000}))
    assert status == 413 and "larger than 1000 bytes" in message

    sent: list[int] = []

    def endless() -> Iterator[bytes]:  # chunked: no header tells the length
        yield b'{"prompt": "'
        for number in range(10_000):
            sent.append(number)
            yield b"a" * 500

    with contextlib.suppress(httpx.WriteError):  # the server closes before all is sent
        response = httpx.post(server.url + "/v1/completions", content=endless(), headers={"Content-Type": "application/json"})
        assert error_of(response)[0] == 413
    assert len(sent) < 10_000
    assert server.post("/v1/completions", PROMPT).status_code == 200


def test_a_body_that_does_not_arrive_is_given_up(serve_scripted: Any, scripted: Any) -> None:
    server = serve_scripted(scripted(), Access(body_seconds=0.2))
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        client.sendall(head)
        assert client.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_the_key_is_asked_for_everywhere_but_at_health(serve_scripted: Any, scripted: Any) -> None:
    server = serve_scripted(scripted(), Access(api_key="s3cret-é"))
    assert httpx.get(server.url + "/health").status_code == 200
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic s3cret-é".encode()},
        {"Authorization": b"\xff"},
    ):
        response = httpx.get(server.url + "/v1/models", headers=headers)  # type: ignore[arg-type]
        status, message = error_of(response)
        assert status == 401 and "s3cret" not in response.text and "Bearer KEY" in message
    right: Any = {"Authorization": "Bearer s3cret-é".encode()}
    assert httpx.get(server.url + "/v1/models", headers=right).status_code == 200
    assert server.post("/v1/completions", PROMPT, headers=right).status_code == 200
    assert error_of(server.post("/v1/completions", PROMPT))[0] == 401
    assert "s3cret" not in repr(Access(api_key="s3cret")) + repr(Deployment(host="localhost", name="a", api_key="s3cret"))


def test_a_web_page_whose_name_points_here_is_refused(serve_scripted: Any, scripted: Any) -> None:
    access = Deployment(host="127.0.0.1", name="a").access()
    server = serve_scripted(scripted(), access)
    assert error_of(httpx.get(server.url + "/v1/models", headers={"Host": "evil.example"}))[0] == 403
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "LOCALHOST"):
        assert httpx.get(server.url + "/v1/models", headers={"Host": host}).status_code == 200
    assert Deployment(host="0.0.0.0", name="a").access().hosts is None
    allowed = Deployment(host="127.0.0.1", name="a", allow_hosts=("lm.example",)).access().hosts
    assert allowed is not None and "lm.example" in allowed and "localhost" in allowed


def test_a_full_queue_answers_429_and_when_to_come_again(gated: tuple[Any, Any], eventually: Eventually) -> None:
    server, engine = gated
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(server.post("/v1/completions", PROMPT))) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: server.service.worker.taken == 4)
    response = server.post("/v1/completions", PROMPT)
    assert error_of(response)[0] == 429 and response.headers["retry-after"] == "1"
    assert httpx.get(server.url + "/health").json()["taken"] == 4
    engine.allowed.release(1000)
    for thread in threads:
        thread.join(10)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert server.post("/v1/completions", PROMPT).status_code == 200


def test_many_prompts_need_a_place_each(gated: tuple[Any, Any], eventually: Eventually) -> None:
    server, engine = gated
    thread = threading.Thread(target=lambda: server.post("/v1/completions", PROMPT | {"prompt": ["a", "b"]}))
    thread.start()
    eventually(lambda: server.service.worker.taken == 2)
    assert error_of(server.post("/v1/completions", PROMPT | {"prompt": ["a", "b", "c"]}))[0] == 429
    assert error_of(server.post("/v1/completions", PROMPT | {"n": 5}))[0] == 400
    engine.allowed.release(1000)
    thread.join(10)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slots(gated: tuple[Any, Any], eventually: Eventually, stream: bool) -> None:
    server, engine = gated
    body = json.dumps({"prompt": ["a", "b"], "max_tokens": 200, "stream": stream}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        eventually(lambda: engine.submitted == 2)
        engine.allowed.release(3)
        if stream:
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
    eventually(lambda: server.service.worker.taken == 0)
    assert engine.cancelled == [1, 2]
    engine.allowed.release(1000)
    assert server.post("/v1/completions", PROMPT).status_code == 200


def test_a_failed_engine_is_told_to_those_who_wait_and_to_health(gated: tuple[Any, Any], eventually: Eventually) -> None:
    server, engine = gated
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", PROMPT)))
    thread.start()
    eventually(lambda: engine.submitted == 1)
    engine.failing = RuntimeError("device lost")
    engine.allowed.release()
    thread.join(10)
    assert error_of(answers[0]) == (500, "the engine failed (RuntimeError); restart the server and see its log")
    health = httpx.get(server.url + "/health")
    assert health.status_code == 503 and health.json()["status"] == "failed"
    assert error_of(server.post("/v1/completions", PROMPT))[0] == 500


def test_a_stream_that_fails_says_so_and_has_no_done(gated: tuple[Any, Any], eventually: Eventually) -> None:
    server, engine = gated
    lines: list[str] = []

    def read() -> None:
        with httpx.stream("POST", server.url + "/v1/completions", json=PROMPT | {"stream": True}, timeout=20) as response:
            lines.extend(line for line in response.iter_lines() if line)

    thread = threading.Thread(target=read)
    thread.start()
    engine.allowed.release(1)
    eventually(lambda: len(lines) == 1)
    engine.failing = RuntimeError("device lost")
    engine.allowed.release(1)
    thread.join(10)
    first, last = (json.loads(line.removeprefix("data: ")) for line in lines)
    assert first["choices"][0]["text"] == "a" and last["error"]["type"] == "server_error"


def test_the_end_of_the_server_lets_short_answers_finish_and_ends_long_streams(
    gated: tuple[Any, Any], eventually: Eventually
) -> None:
    server, engine = gated
    lines: list[str] = []
    short: list[httpx.Response] = []

    def read() -> None:
        with httpx.stream("POST", server.url + "/v1/completions", json=PROMPT | {"max_tokens": 200, "stream": True}) as response:
            lines.extend(line for line in response.iter_lines() if line)

    threads = [threading.Thread(target=read), threading.Thread(target=lambda: short.append(server.post("/v1/completions", PROMPT)))]
    for thread in threads:
        thread.start()
    eventually(lambda: engine.submitted == 2)
    started = time.monotonic()
    server.server.should_exit = True
    eventually(lambda: server.service.worker.refusal is not None)
    engine.allowed.release(5)  # enough for the short one
    for thread in threads:
        thread.join(10)
    server.stop()
    assert time.monotonic() - started < 8
    assert short[0].json()["choices"][0]["text"] == "abc"
    assert "shutting down" in json.loads(lines[-1].removeprefix("data: "))["error"]["message"]
    assert server.service.worker.taken == 0


def test_a_key_of_white_space_is_no_key() -> None:
    for key in ("", " key", "key\n"):
        with pytest.raises(ValueError, match="the API key is empty or has white space around it"):
            Access(api_key=key)
