"""The courier without a learner: what is on the shelf goes to the rovers, and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from nats_server import NatsServer
from onnx_policies import sound
from ray.exceptions import RayError
from reading_task import CONFIG, TIMEOUT_S, kill, local_cluster, until
from rover_messages import stream_messages

from rl_cluster.cluster.actors import Actor, read, spawn
from rl_cluster.cluster.courier_actor import CourierActor, CourierStatus
from rl_cluster.courier import KEPT_POLICIES
from rl_cluster.fence import Fence, advance
from rl_cluster.field_report import FieldScores, write_status
from rl_cluster.policy_shelf import PolicyShelf
from rl_cluster.streams.codec import decode_metadata, decode_update
from rl_cluster.streams.episodes import FinishedEpisode
from rl_cluster.streams.models import ModelPublisher
from rl_cluster.streams.nats_settings import METADATA, MODELS, StreamSettings

EPISODES = 4


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_cluster("test-courier"):
        yield


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        yield server


@pytest.fixture
def courier(server: NatsServer, tmp_path: Path) -> Iterator[Actor]:
    stream = replace(
        CONFIG.stream,
        url=server.url,
        policy_period_s=0.1,
        judged_in="field",
        gate_episodes=EPISODES,
    )
    fence = Fence(tmp_path / "epoch", advance(tmp_path / "epoch", 1.0))
    arguments = ("task", replace(CONFIG, stream=stream), str(tmp_path), "no-replay", 0.0, fence)
    shelve(tmp_path, 1, 2)
    actor = spawn(CourierActor, f"{tmp_path}-courier", *arguments, max_concurrency=4)
    yield actor
    kill(actor)


def policy(number: int) -> bytes:
    return sound((number / 1000, 0.0))


def shelve(directory: Path, *versions: int) -> None:
    """As if an earlier courier had sent them."""
    shelf = PolicyShelf(directory / "task" / "policies", KEPT_POLICIES)
    for version in versions:
        shelf.add(
            policy(version),
            version=version,
            policy_version=10 * version,
            learner_updates=100 * version,
            mean_return=None,
            episodes=0,
            reason="new",
            time_s=float(version),
        )


def drive(directory: Path, returns: dict[int, float], episodes: int = EPISODES) -> None:
    """As the reader writes down what rovers returned in evaluation episodes, by version."""
    scores = FieldScores(directory / "task")
    for version, total in returns.items():
        scores.add([FinishedEpisode("r", total, 10, True, version, True)] * episodes)
    write_status(directory / "task", (), {}, scores)


def told(courier: Actor, version: int) -> list[str]:
    """Wait until rovers were told of a version; kinds of the notices on the way."""
    kinds: list[str] = []

    def look() -> bool:
        status: CourierStatus = read(courier.status.remote(), TIMEOUT_S)
        kinds.extend(said["kind"] for said in status.notices)
        return status.sent_version == version

    until(look, f"version {version}")
    return kinds


def stays_at(courier: Actor, version: int) -> None:
    """It looks at the field a few times, and does nothing."""
    time.sleep(2.0)
    assert "policy_taken_back" not in told(courier, version)
    assert read(courier.health.remote(), TIMEOUT_S).failure is None


def published(server: NatsServer) -> dict[int, bytes]:
    """Every policy by version, each of which was announced after it was there."""

    async def read_all() -> dict[int, bytes]:
        client = await server.client()
        messages = await stream_messages(client, MODELS.name)
        await client.close()
        found: dict[int, bytes] = {}
        for message in messages:
            if message.subject == METADATA:
                assert decode_metadata(message.data).latest_version in found
            else:
                update = decode_update(message.data)
                assert update.version > max(found, default=0)
                found[update.version] = update.onnx_bytes
        return found

    return asyncio.run(read_all())


def test_a_policy_that_rovers_drive_worse_with_is_taken_back(
    server: NatsServer, courier: Actor, tmp_path: Path
) -> None:
    told(courier, 2)
    drive(tmp_path, {1: 10.0, 2: 3.0}, EPISODES - 1)
    stays_at(courier, 2)  # too few episodes to judge by
    drive(tmp_path, {1: 10.0, 2: 3.0})
    assert "policy_taken_back" in told(courier, 3)
    found = published(server)
    assert list(found) == [2, 3] and found[3] == policy(1)

    drive(tmp_path, {1: 10.0, 2: 3.0, 3: 4.0})
    stays_at(courier, 3)  # the very policy of the best version: there is none to go back to


def test_a_better_policy_that_is_not_kept_any_more_is_not_gone_back_to(
    server: NatsServer, courier: Actor, tmp_path: Path
) -> None:
    told(courier, 2)
    (tmp_path / "task" / "policies" / "1.json").unlink()
    drive(tmp_path, {1: 10.0, 2: 3.0})
    stays_at(courier, 2)


def test_a_person_goes_back_to_the_policy_before_or_to_a_named_one(
    server: NatsServer, courier: Actor
) -> None:
    assert read(courier.rollback.remote(None), TIMEOUT_S) == 3
    assert read(courier.rollback.remote(2), TIMEOUT_S) == 4
    with pytest.raises(RayError, match="no policy of version 9 is kept; there are: 1, 2, 3, 4"):
        read(courier.rollback.remote(9), TIMEOUT_S)
    found = published(server)
    assert list(found) == [2, 3, 4]
    assert (found[3], found[4]) == (policy(1), policy(2))


def test_versions_go_on_above_those_that_others_sent(server: NatsServer, courier: Actor) -> None:
    """Such as a run whose directory is gone."""
    told(courier, 2)
    asyncio.run(publish(server, version=40))
    assert read(courier.rollback.remote(1), TIMEOUT_S) == 41
    assert list(published(server)) == [2, 40, 41]


async def publish(server: NatsServer, version: int) -> None:
    publisher = ModelPublisher(StreamSettings(server.url))
    await publisher.open()
    await publisher.publish(policy(version), version)
    await publisher.close()
