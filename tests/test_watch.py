"""The watch page: what it says of a fleet in each state, and what it answers to whom."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from telemetry_samples import NOW_S, run_summary, task_summary

from rl_cluster.field_report import FieldScores, file_name, save_view, write_status
from rl_cluster.policy_shelf import PolicyShelf
from rl_cluster.streams.episodes import FinishedEpisode
from rl_cluster.streams.fleet import RoverStatus
from rl_cluster.streams.source import SourceStatus
from rl_cluster.telemetry.summary import Stream, write_summary
from rl_cluster.telemetry.watch import WatchServer
from rl_cluster.telemetry.watch_files import find_fleet, read_files
from rl_cluster.telemetry.watch_page import CONTENT_SECURITY_POLICY, PAGE
from rl_cluster.telemetry.watch_view import POLICY_HEADS, View, view_of

URL = "nats://127.0.0.1:4222"
SOURCE = SourceStatus(
    connected=True, reconnects=0, delivered=10, redelivered=0, quarantined=0, buffered=0,
    buffered_bytes=0, pending=0, expired=0, silent_s=0.5, trouble="",
)  # fmt: skip
ROVER = RoverStatus(
    rover="r1", messages=34, repeated=0, steps=2176, eval_steps=0, refused_steps=0, gaps=0,
    lost_messages=0, restarts=0, episodes=4, eval_episodes=1, broken_episodes=0, mean_return=9.9,
    mean_eval_return=12.0, episode_steps=376, episode_return=36.7, last_seen_age_s=1.5,
    policy_version=2, clock_skew_s=-0.002,
)  # fmt: skip
STREAM = Stream(
    url=URL, connected=True, trouble="", messages=34, messages_per_s=1.3, newest_age_s=1.0,
    silent_s=0.5, quarantined=0, doubles=0, sent_version=2, held_back=1, rovers={},
)  # fmt: skip


def report(task_dir: Path, *rovers: RoverStatus, age_s: float = 0.0, **source: Any) -> None:
    """What the reader wrote so long before NOW_S."""
    status = {**dataclasses.asdict(SOURCE), **source}
    scores = FieldScores(task_dir)
    scores.add([FinishedEpisode("r1", 12.0, 10, True, 2, True)])
    stream = {"source": status, "messages": 34, "over_quota": 0, "newest_published_s": NOW_S - 1}
    write_status(task_dir, rovers, stream, scores)
    written = task_dir / "rovers" / "status.json"
    os.utime(written, (NOW_S - age_s, NOW_S - age_s))


def summarize(run: Path, run_state: str = "running", **changes: Any) -> None:
    """What the supervisor wrote at NOW_S, with changes of the fleet's part."""
    tasks = {"field": task_summary(stream=STREAM, **changes), "Pong": task_summary()}
    write_summary(run, run_summary(state=run_state, tasks=tasks))


@pytest.fixture
def task_dir(tmp_path: Path) -> Path:
    """A fleet at work: one rover, two policies sent."""
    summarize(tmp_path)
    task_dir = tmp_path / "field"
    report(task_dir, ROVER)
    save_view(task_dir, "r1", np.zeros(2 * 128 * 128 + 6, np.float16))
    shelf = PolicyShelf(task_dir / "policies", keep=20)
    for version, reason in ((1, "new"), (2, "rollback of 1")):
        shelf.add(
            b"onnx", version=version, policy_version=version, learner_updates=100 * version,
            mean_return=None if version == 1 else 35.1, episodes=4, reason=reason,
            time_s=NOW_S - 60 / version,
        )  # fmt: skip
    return task_dir


def view(task_dir: Path, now_s: float = NOW_S) -> View:
    return view_of(read_files(task_dir, now_s))


def notices(task_dir: Path, now_s: float = NOW_S) -> list[tuple[str, str]]:
    return [(notice["kind"], notice["text"]) for notice in view(task_dir, now_s)["notices"]]


def facts(task_dir: Path) -> dict[str, tuple[str, str, str]]:
    """Of the only rover."""
    (card,) = view(task_dir)["rovers"]
    return {fact["label"]: (fact["value"], fact["note"], fact["kind"]) for fact in card["facts"]}


def test_a_fleet_at_work(task_dir: Path) -> None:
    shown = view(task_dir)
    assert (shown["run"], shown["task"]) == ("quickstart", "field")
    assert shown["state"] == {"text": "running", "kind": "good"}
    assert shown["notices"] == []
    assert shown["returns"] == [-20.0, -19.0, -21.0, -18.0]
    (card,) = shown["rovers"]
    assert (card["name"], card["kind"], card["seen"]) == ("r1", "good", "seen 1.5 s ago")
    assert facts(task_dir)["return"] == ("9.9", "4 episodes", "")
    assert facts(task_dir)["policy"] == ("v2", "the newest", "")
    assert facts(task_dir)["clock"] == ("2 ms", "behind", "")
    assert "over quota" not in facts(task_dir)


def test_policies_are_shown_with_what_they_earned_and_who_has_them(task_dir: Path) -> None:
    rows = [dict(zip(POLICY_HEADS, row, strict=True)) for row in view(task_dir)["policies"]]
    assert [row["policy"] for row in rows] == ["v2", "v1"]
    assert [row["sent"] for row in rows] == ["30 s ago", "1 min 0 s ago"]
    assert [row["evaluation"] for row in rows] == ["35.1 (4)", "–"]
    assert [row["in the field"] for row in rows] == ["12.0 (1)", "–"]
    assert [row["on"] for row in rows] == ["1 rover", "–"]
    assert [row["why"] for row in rows] == ["rollback of 1", "new"]


@pytest.mark.parametrize(
    ("change", "label", "fact"),
    [
        ({"policy_version": -1}, "policy", ("none", "drives at random", "")),
        ({"policy_version": None}, "policy", ("–", "it names none", "")),
        ({"policy_version": 1}, "policy", ("v1", "1 behind", "")),
        ({"policy_version": 0}, "policy", ("v0", "2 behind", "warn")),
        ({"clock_skew_s": 86_400.0}, "clock", ("1 d 0 h", "ahead", "warn")),
        ({"clock_skew_s": 0.0004}, "clock", ("in step", "", "")),
        ({"clock_skew_s": None}, "clock", ("–", "it sends no time", "")),
        ({"lost_messages": 7, "gaps": 2}, "lost", ("7", "messages, 2 gaps", "warn")),
        ({"refused_steps": 64}, "over quota", ("64", "steps not learned from", "warn")),
        ({"mean_return": None, "episodes": 0}, "return", ("–", "0 episodes", "")),
    ],
)
def test_what_is_said_of_a_rover(
    task_dir: Path, change: dict[str, Any], label: str, fact: tuple[str, str, str]
) -> None:
    report(task_dir, dataclasses.replace(ROVER, **change))
    assert facts(task_dir)[label] == fact


@pytest.mark.parametrize(
    ("age_s", "kind", "seen"),
    [(9.0, "good", "seen 9.0 s ago"), (40.0, "warn", "silent for 40 s"),
     (90.0, "bad", "silent for 1 min 30 s")],
)  # fmt: skip
def test_a_rover_that_sends_nothing(task_dir: Path, age_s: float, kind: str, seen: str) -> None:
    report(task_dir, dataclasses.replace(ROVER, last_seen_age_s=age_s))
    (card,) = view(task_dir)["rovers"]
    assert (card["kind"], card["seen"]) == (kind, seen)


def test_a_reader_that_is_silent_is_said_and_its_news_grow_old(task_dir: Path) -> None:
    report(task_dir, ROVER, age_s=40.0)
    ((kind, text),) = notices(task_dir)
    assert kind == "bad"
    assert text.startswith("The reader is silent: it wrote nothing for 40 s")
    (card,) = view(task_dir)["rovers"]
    assert (card["kind"], card["seen"]) == ("", "last heard 42 s ago")


def test_the_reader_of_a_paused_task_may_be_silent(task_dir: Path) -> None:
    summarize(task_dir.parent, state="paused")
    report(task_dir, ROVER, age_s=40.0)
    ((kind, text),) = notices(task_dir)
    assert kind == ""
    assert text.endswith("The task is paused.")


def test_a_stream_that_is_away_or_silent_is_said_with_its_reason(task_dir: Path) -> None:
    report(task_dir, ROVER, connected=False, trouble="connection refused")
    away = ("bad", "There is no connection to the server: connection refused.")
    assert notices(task_dir) == [away]
    report(task_dir, ROVER, silent_s=65.0)
    assert notices(task_dir) == [("warn", "No message came for 1 min 5 s.")]


def test_it_works_before_the_first_rover_and_writes_nothing(tmp_path: Path) -> None:
    task_dir = tmp_path / "field"
    assert notices(task_dir) == [
        ("", "The run has no summary.json that can be read: it may have just begun."),
        ("", "The reader has written nothing yet."),
        ("", "No rover was heard of yet."),
    ]
    summarize(tmp_path)
    assert notices(task_dir)[-1] == ("", f"No rover was heard of yet. They join at {URL}.")
    assert not task_dir.exists()
    report(task_dir)
    assert notices(task_dir) == [("", f"No rover was heard of yet. They join at {URL}.")]
    assert view(task_dir)["rovers"] == view(task_dir)["policies"] == []


def test_a_run_that_has_ended_shows_its_last_state(task_dir: Path) -> None:
    summarize(task_dir.parent, run_state="completed")
    assert notices(task_dir, NOW_S + 7200) == [
        ("", "The run ended 2 h 0 min ago: completed. This was its last state.")
    ]
    (card,) = view(task_dir, NOW_S + 7200)["rovers"]
    assert (card["kind"], card["seen"]) == ("", "last heard 2 h 0 min ago")


def test_a_run_that_died_and_a_task_that_is_parked(task_dir: Path) -> None:
    assert view(task_dir, NOW_S + 600)["state"] == {"text": "no sign of life", "kind": "bad"}
    ((kind, text),) = notices(task_dir, NOW_S + 600)
    assert kind == "bad"
    assert f"--run {task_dir.parent} --resume" in text
    summarize(task_dir.parent, state="failed", failure="reader-0 died 6 times")
    assert ("bad", "The task is parked: reader-0 died 6 times") in notices(task_dir)


def test_damaged_files_are_as_missing_ones(task_dir: Path) -> None:
    (task_dir.parent / "summary.json").write_text("{")
    (task_dir / "rovers" / "status.json").write_text("[")
    (task_dir / "policies" / "2.json").write_text("{}")
    shown = view(task_dir)
    assert (shown["rovers"], shown["learning"]) == ([], [])
    assert [row[0] for row in shown["policies"]] == ["v1"]


def test_the_fleet_is_found_or_it_is_said_why_not(task_dir: Path) -> None:
    run = task_dir.parent
    assert find_fleet(run, None) == find_fleet(run, "field") == task_dir
    with pytest.raises(FileNotFoundError, match="no task 'Pong' with rovers; there are: field"):
        find_fleet(run, "Pong")
    with pytest.raises(FileNotFoundError, match="no task '../field'"):
        find_fleet(run, "../field")
    report(run / "meadow")
    with pytest.raises(ValueError, match="name one: field, meadow"):
        find_fleet(run, None)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_fleet(run / "elsewhere", None)


@pytest.fixture
def server(task_dir: Path) -> Iterator[WatchServer]:
    with WatchServer(task_dir, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: WatchServer, path: str, method: str = "GET", host: str | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def test_the_server_answers_with_page_figures_and_pictures(
    server: WatchServer, task_dir: Path
) -> None:
    assert ask(server, "/")[1].decode() == PAGE
    shown = json.loads(ask(server, "/status.json")[1])
    assert shown["rovers"][0]["name"] == "r1"
    answer, picture = ask(server, "/" + shown["rovers"][0]["view"])
    assert answer.getheader("Content-Type") == "image/png"
    assert picture == (task_dir / "rovers" / "r1.png").read_bytes()


def test_a_new_picture_has_a_new_address(task_dir: Path) -> None:
    addresses = set()
    for written_s in (NOW_S, NOW_S + 0.25):
        os.utime(task_dir / "rovers" / "r1.png", (written_s, written_s))
        addresses.add(view(task_dir)["rovers"][0]["view"])
    assert len(addresses) == 2


def test_a_rover_of_any_name_has_its_picture(server: WatchServer, task_dir: Path) -> None:
    name = "../r 2%?#"
    report(task_dir, dataclasses.replace(ROVER, rover=name))
    save_view(task_dir, name, np.ones(2 * 128 * 128 + 6, np.float16))
    address = view(task_dir)["rovers"][0]["view"]
    assert (
        ask(server, f"/{address}")[1]
        == (task_dir / "rovers" / f"{file_name(name)}.png").read_bytes()
    )


@pytest.mark.parametrize(
    "path",
    ["/rovers/r2.png", "/rovers/status.json", "/rovers/../rovers/r1.png", "/rovers/..%2Fr1.png",
     "/rovers/%2e%2e/summary.json", "/../summary.json", "/etc/passwd", "/rovers/r1.png/", "//["],
)  # fmt: skip
def test_no_other_file_is_served(server: WatchServer, task_dir: Path, path: str) -> None:
    save_view(task_dir, "r2", np.zeros(2 * 128 * 128 + 6, np.float16))  # the reader names no r2
    assert ask(server, path)[0].status == 404


def test_a_picture_that_is_gone_is_not_found(server: WatchServer, task_dir: Path) -> None:
    (task_dir / "rovers" / "r1.png").unlink()
    assert ask(server, "/rovers/r1.png")[0].status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_answers_to_get_only(server: WatchServer, method: str) -> None:
    assert ask(server, "/", method)[0].status == 501


def test_a_name_of_another_host_is_refused(server: WatchServer) -> None:
    port = server.server_address[1]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert ask(server, "/status.json", host=host)[0].status == 403
    for host in (f"localhost:{port}", "127.0.0.1:9000"):
        assert ask(server, "/status.json", host=host)[0].status == 200


def test_it_listens_on_one_address_of_loopback(server: WatchServer) -> None:
    elsewhere = http.client.HTTPConnection("127.0.0.2", server.server_address[1], timeout=60)
    with pytest.raises(ConnectionRefusedError):
        elsewhere.request("GET", "/")


@pytest.mark.parametrize("path", ["/", "/status.json", "/rovers/r1.png", "/nothing"])
def test_every_answer_tells_the_browser_what_it_may_load(server: WatchServer, path: str) -> None:
    headers = ask(server, path)[0].headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_the_policy_allows_the_page_s_own_script_and_style_and_no_other() -> None:
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}';" in CONTENT_SECURITY_POLICY
    assert not re.search(r"\b(src|href|on\w+|style)=", PAGE)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", PAGE)


def test_it_needs_no_cluster_no_server_and_no_networks() -> None:
    code = (
        "import sys, rl_cluster.telemetry.watch\n"
        "print(sorted({'nats', 'nkeys', 'onnx', 'onnxruntime', 'ray', 'torch'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def watch(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rl_cluster.cli", "watch", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_command_serves_until_it_is_interrupted(task_dir: Path) -> None:
    with watch(task_dir.parent) as process:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        assert found is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        connection.request("GET", "/status.json")
        assert json.load(connection.getresponse())["task"] == "field"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130


def test_the_command_says_what_it_cannot_watch(server: WatchServer, task_dir: Path) -> None:
    run, taken = task_dir.parent, server.server_address[1]
    for arguments, said in (
        ([run, "Pong"], "no task 'Pong' with rovers"),
        ([run, "--port", taken], "Address already in use"),
        ([run, "--port", 70_000], "0-65535"),
    ):
        with watch(*arguments) as process:
            assert said in process.communicate(timeout=60)[1]
        assert process.returncode == 1


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no browser here")
def test_a_browser_shows_it_and_runs_nothing_that_came_with_a_name(
    server: WatchServer, task_dir: Path, tmp_path: Path
) -> None:
    name = "<img src=x onerror=document.title='ran'>"
    summarize(task_dir.parent, failure=name, state="failed")
    report(task_dir, dataclasses.replace(ROVER, rover=name))
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000",
         f"--user-data-dir={tmp_path}/browser", "--dump-dom", server.url],
        capture_output=True, text=True, check=True, timeout=150,
    )  # fmt: skip
    assert "<title>field · quickstart</title>" in done.stdout
    assert f"<div>{name.replace('<', '&lt;').replace('>', '&gt;')}</div>" in done.stdout
    assert done.stdout.count("<img") == 1
    assert "v2" in done.stdout
