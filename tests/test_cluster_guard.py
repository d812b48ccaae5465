"""Whether a control store answers: one that takes the call and is silent, and one that refuses."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent import futures

import grpc  # type: ignore[import-untyped]
import pytest

from rl_cluster.cluster.cluster_guard import ClusterGuard, gcs_answers
from rl_cluster.control import ProcessId
from rl_cluster.run_directory import ClusterAddress


@pytest.fixture
def refusing() -> Iterator[str]:
    """Address of a server that knows none of the control store's calls."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_a_refusal_is_an_answer(refusing: str) -> None:
    """As of one that does not know our token: it lives, and another of it would refuse, too."""
    assert gcs_answers(refusing, 20.0)


def test_a_proxy_of_the_environment_is_not_asked(
    refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert gcs_answers(refusing, 20.0)


def test_one_that_takes_the_call_and_says_nothing_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not gcs_answers(f"127.0.0.1:{silent.getsockname()[1]}", 0.3)


def test_one_that_is_not_there_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert not gcs_answers(address, 5.0)


def test_the_cluster_of_others_is_not_watched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        guard = ClusterGuard(ClusterAddress(address, "mine", ()))
        assert all(guard.lost_because(float(now_s)) is None for now_s in range(100))
        silent.settimeout(0.5)
        with pytest.raises(TimeoutError):  # nobody called
            silent.accept()


def test_the_process_that_stands_still_is_named(refusing: str) -> None:
    daemons = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    try:
        ids = tuple(ProcessId.of(daemon.pid) for daemon in daemons)
        guard = ClusterGuard(ClusterAddress(refusing, "mine", ids))
        assert guard.lost_because(0.0) is None
        daemons[1].send_signal(signal.SIGSTOP)
        while not ids[1].stopped:
            pass
        assert guard.lost_because(1.0) is None
        cause = guard.lost_because(7.0)
        assert cause is not None and f"raylet (process {ids[1].pid})" in cause
        assert "gcs_server" not in cause
    finally:
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
