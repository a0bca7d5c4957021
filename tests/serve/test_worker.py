"""The engine's thread: places, cancelling, failing and stopping."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from lmx.sampling.request import Event, Request, Sampling
from lmx.serve.worker import EngineFailedError, FullError, StoppedError, Worker

Eventually = Callable[..., None]


def request(count: int = 3, n: int = 1) -> Request:
    return Request(prompt=[5, 6], sampling=Sampling(max_new_tokens=count), n=n)


class Heard(list[tuple[int, Any]]):
    """What a listener heard."""

    def __call__(self, place: int, news: Event | Exception) -> None:
        self.append((place, news))

    def completed(self) -> list[tuple[int, int, list[int]]]:
        return [(place, news.sample, news.completion.tokens) for place, news in self if news.completion is not None]


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make(engine: Any, max_queue: int = 2) -> Worker:
        workers.append(Worker(engine, slots=engine.slots, max_queue=max_queue))
        workers[-1].start()
        return workers[-1]

    yield make
    for worker in workers:
        worker.stop()


def test_every_sample_of_every_request_comes_back_with_its_place(start: Any, scripted: Any, eventually: Eventually) -> None:
    worker, heard = start(scripted()), Heard()
    worker.submit([request(2), request(3, n=2)], heard)
    eventually(lambda: worker.taken == 0)
    letters = [3 + ord(letter) for letter in "abc"]
    assert sorted(heard.completed()) == [(0, 0, letters[:2]), (1, 0, letters), (1, 1, letters)]


def test_a_full_worker_refuses_and_takes_on_again_when_there_is_room(start: Any, scripted: Any, eventually: Eventually) -> None:
    engine = scripted(allowed=threading.Semaphore(0))
    worker = start(engine)
    heard = Heard()
    worker.submit([request(n=3)], heard)
    assert (worker.places, worker.taken) == (4, 3)
    with pytest.raises(FullError, match="3 of its 4 places are taken"):
        worker.submit([request(), request()], heard)
    worker.submit([request()], heard)
    engine.allowed.release(1000)
    eventually(lambda: worker.taken == 0)
    assert len(heard.completed()) == 4


def test_what_can_never_be_served_is_a_mistake_of_the_caller(start: Any, scripted: Any) -> None:
    worker = start(scripted())
    with pytest.raises(ValueError, match="5 completions in one request are more than the 4"):
        worker.submit([request(n=5)], Heard())
    with pytest.raises(ValueError, match="max_length=256"):
        worker.submit([request(), request(500)], Heard())
    assert worker.taken == 0


def test_cancelling_frees_the_places(start: Any, scripted: Any, eventually: Eventually) -> None:
    engine = scripted(allowed=threading.Semaphore(0))
    worker, heard = start(engine), Heard()
    ticket = worker.submit([request(100), request(100, n=2)], heard)
    eventually(lambda: engine.submitted == 2)
    worker.cancel(ticket)
    eventually(lambda: worker.taken == 0)
    assert engine.cancelled == [1, 2] and not engine.busy
    worker.cancel(ticket)  # it has ended: nothing more happens
    worker.call(lambda: None).result(5)
    assert engine.cancelled == [1, 2]


def test_a_call_runs_in_the_engines_thread_and_its_error_is_the_callers(start: Any, scripted: Any, eventually: Eventually) -> None:
    worker = start(scripted())
    assert worker.call(threading.current_thread).result(5).name == "lmx engine"
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0).result(5)
    eventually(lambda: worker.taken == 0)
    assert worker.refusal is None


def test_a_failed_engine_tells_those_who_wait_and_takes_nothing_on(start: Any, scripted: Any, eventually: Eventually) -> None:
    engine = scripted(failing=RuntimeError("out of memory"), allowed=threading.Semaphore(0))
    worker, heard = start(engine), Heard()
    worker.submit([request(), request()], heard)
    engine.allowed.release()
    eventually(lambda: worker.refusal is not None)
    assert isinstance(worker.refusal, EngineFailedError) and worker.taken == 0
    assert len(heard) == 1 and isinstance(heard[0][1], EngineFailedError)
    with pytest.raises(EngineFailedError, match=r"the engine failed \(RuntimeError\)"):
        worker.submit([request()], heard)
    with pytest.raises(EngineFailedError):
        worker.call(lambda: 1)


def test_stopping_ends_what_runs_and_what_has_not_begun(start: Any, scripted: Any) -> None:
    engine = scripted(allowed=threading.Semaphore(0))
    worker, heard = start(engine), Heard()
    worker.submit([request()], heard)
    worker.refuse()
    with pytest.raises(StoppedError, match="shutting down"):
        worker.submit([request()], heard)
    worker.stop()
    assert [type(news) for _, news in heard] == [StoppedError] and worker.taken == 0


def test_a_queue_without_room_for_one_request_is_refused(scripted: Any) -> None:
    with pytest.raises(ValueError, match="max_queue=0 must be at least 1"):
        Worker(scripted(), slots=2, max_queue=0)


def test_requests_from_many_threads_all_end(start: Any, scripted: Any, eventually: Eventually) -> None:
    worker, heard = start(scripted(), max_queue=100), Heard()
    requests: Sequence[Request] = [request(4)]
    threads = [threading.Thread(target=lambda: worker.submit(requests, heard)) for _ in range(20)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(heard.completed()) == 20)
    assert worker.taken == 0
