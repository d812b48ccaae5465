"""Rovers as a process that speaks the rovers' wire protocol: `python -m envs.rover.process --help`.

Invariant: on SIGTERM or SIGINT the steps driven so far are sent, the last ones as a shorter
message; exit code 0 means that the server acknowledged all of them. At the end one JSON line on
standard output tells the counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict

from envs.base import MAX_SEED
from envs.rover.credentials import add_arguments, connection_of
from envs.rover.link import PayloadLimitError
from envs.rover.rover import Rover, RoverSettings, count, make_rovers

_MIB = 2**20

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run rovers until SIGTERM or SIGINT.

    Returns:
        0: every message was acknowledged; 1: some were not, or the server cannot be used;
        2: wrong usage.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        rovers = _rovers(arguments)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    connected = True
    try:
        asyncio.run(_run(rovers))
    except* PayloadLimitError as errors:
        _log.error("%s", _first(errors))
        connected = False
    counts = count(rovers)
    print(json.dumps(asdict(counts)), flush=True)
    _log.info("%d of %d messages acknowledged", counts.acknowledged, counts.batches)
    return 0 if connected and counts.acknowledged == counts.batches else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m envs.rover.process",
        description="Simulated rovers that stream experience over NATS and run the policies sent.",
    )
    add_arguments(parser)
    group = parser.add_argument_group("rovers")
    group.add_argument("--rover-id", required=True, type=_rover_id)
    group.add_argument("--rovers", type=_positive, default=1, metavar="N", help="named ID-0, ...")
    group.add_argument("--seed", type=int, default=0, help="rover k gets SEED + k")
    group.add_argument("--hz", type=float, default=30.0, help="steps per second; 0: no limit")
    group.add_argument(
        "--synthetic", action="store_true", help="made-up messages, no policies: loads the stream"
    )
    group.add_argument("--hold-mib", type=_positive, default=256, help="unacknowledged, each")
    group.add_argument("--drain-s", type=float, default=10.0, help="for the rest, at the end")
    return parser


def _rover_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: want 1 to 64 of A-Z a-z 0-9 _ . -")
    return text


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: want 1 or more")
    return number


def _rovers(arguments: argparse.Namespace) -> list[Rover]:
    if not 0 <= arguments.seed <= MAX_SEED - arguments.rovers:
        raise ValueError(f"--seed {arguments.seed} is not within 0..{MAX_SEED - arguments.rovers}")
    if not 0 <= arguments.hz < float("inf"):
        raise ValueError(f"--hz {arguments.hz} is no rate; 0 means as fast as it can")
    settings = RoverSettings(
        connection=connection_of(arguments),
        hz=arguments.hz,
        hold_bytes=arguments.hold_mib * _MIB,
        drain_s=arguments.drain_s,
        synthetic=arguments.synthetic,
    )
    return make_rovers(arguments.rover_id, arguments.rovers, arguments.seed, settings)


async def _run(rovers: Sequence[Rover]) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as tasks:
        for rover in rovers:
            tasks.create_task(rover.run(stop))


def _first(errors: BaseException) -> BaseException:
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors


if __name__ == "__main__":
    sys.exit(main())
