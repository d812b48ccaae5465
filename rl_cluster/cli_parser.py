"""What the command line understands: its commands and their arguments, and what each is for.

Invariant: nothing heavy is imported here, so that help and wrong usage answer at once.
"""

from __future__ import annotations

import argparse
import getpass
import math
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """Of all commands; each one's name is in `command`."""
    parser = argparse.ArgumentParser(
        prog="rl-cluster", description="Continuous actor/learner reinforcement learning on Ray."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train what a configuration names")
    _add_configuration(train)
    train.add_argument(
        "--run", type=_directory, metavar="DIR", help="run directory (runs/NAME-TIME)"
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in --run")
    train.add_argument("--detach", action="store_true", help="leave the run alone once started")

    _add_windows(commands)
    _add_levers(commands)

    fetch = commands.add_parser("fetch", help="bring an uploaded checkpoint into a run directory")
    fetch.add_argument("url", metavar="URL/RUN/TASK", help="as `checkpoint.upload` has it")
    fetch.add_argument("run", type=_directory, metavar="RUN", help="where it is trained on")
    fetch.add_argument("task", metavar="TASK")
    fetch.add_argument("--best", action="store_true", help="the best one, not the newest")

    evaluate = commands.add_parser("evaluate", help="play whole games with a checkpoint")
    evaluate.add_argument("path", type=_directory, metavar="RUN|CHECKPOINT")
    evaluate.add_argument("--episodes", type=int, metavar="N", help="games per task")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    report = commands.add_parser("report", help="write report.html for a run")
    report.add_argument("run", type=_directory, metavar="RUN")
    report.add_argument("--hourly", type=_positive, metavar="PRICE", help="of the machine")

    _add_experiments(commands)

    doctor = commands.add_parser("doctor", help="check this machine, and say what would run")
    _add_configuration(doctor, optional=True)
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_windows(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = commands.add_parser("status", help="show a run, live or past")
    status.add_argument("run", type=_directory, metavar="RUN")
    status.add_argument("--json", action="store_true", help="print summary.json's object")
    status.add_argument("--watch", action="store_true", help="go on showing until it ends")

    watch = commands.add_parser("watch", help="show a fleet's rovers on a page, on loopback")
    watch.add_argument("run", type=_directory, metavar="RUN")
    watch.add_argument("task", nargs="?", metavar="TASK", help="the fleet (the only one)")
    watch.add_argument("--port", type=int, default=0, metavar="PORT", help="of the page (any)")

    dashboards = commands.add_parser(
        "dashboards", help="configure Prometheus and Grafana for a run, and say how to start them"
    )
    dashboards.add_argument("run", type=Path, metavar="RUN")
    dashboards.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (RUN/dashboards)"
    )


def _add_levers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def lever(name: str, text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=text)
        parser.add_argument("run", type=_directory, metavar="RUN")
        return parser

    tier = lever("tier", "let a live run take more or less of the machine")
    tier.add_argument("tier", metavar="light|medium|heavy|auto|custom", help="or one's own")
    for name, text in (
        ("pause", "let a live run, or one of its tasks, rest"),
        ("resume", "let it go on, and try parked tasks again"),
    ):
        lever(name, text).add_argument("task", nargs="?", metavar="TASK", help="one (all of them)")
    change = lever("set", "change live settings, such as learner.learning_rate=5e-5")
    change.add_argument("settings", nargs="+", metavar="A.B=VALUE")
    change.add_argument("--task", metavar="TASK", help="of one task (all of them)")
    add = lever("add", "take a task, such as a game, into a live run")
    add.add_argument("task", metavar="TASK")
    add.add_argument("--set", dest="settings", nargs="+", default=[], metavar="A.B=VALUE")
    lever("remove", "let a task save and leave a live run").add_argument("task", metavar="TASK")
    rollback = lever("rollback", "send rovers an earlier policy, as a new version")
    rollback.add_argument("task", metavar="TASK")
    rollback.add_argument(
        "version", nargs="?", type=int, metavar="VERSION", help="(the one before)"
    )
    lever("stop", "save everything and end a live run")
    lever("keep", "resume a run that was cut off, and keep it: for the host's start-up")
    service = lever("install-service", "let systemd do that at every boot")
    service.add_argument("--user", default=getpass.getuser(), help="who it runs as")


def _directory(text: str) -> Path:
    """In the entry point of a job no shell has made a home of `~`."""
    return Path(text).expanduser()


def _add_experiments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sweep = commands.add_parser("sweep", help="train with several seeds, one after the other")
    _add_configuration(sweep)
    sweep.add_argument("--seeds", type=int, nargs="+", required=True, metavar="SEED")
    sweep.add_argument(
        "--sweep", type=_directory, metavar="DIR", help="its directory (runs/NAME-sweep)"
    )

    compare = commands.add_parser("compare", help="put groups of runs beside each other")
    compare.add_argument("runs", type=_directory, nargs="+", metavar="RUN|SWEEP")
    compare.add_argument(
        "--out", type=_directory, metavar="DIR", help="write page, CSV and JSON there"
    )
    compare.add_argument("--json", action="store_true", help="print one JSON object")

    forecast = commands.add_parser("forecast", help="measure here; hours and money to the end")
    _add_configuration(forecast)
    forecast.add_argument("--seconds", type=_positive, default=60.0, help="to measure for (60)")
    forecast.add_argument("--hourly", type=_positive, metavar="PRICE", help="of this machine")
    forecast.add_argument(
        "--env-frames",
        type=_positive,
        metavar="N",
        help="of each game (max_env_steps, else 200 million)",
    )
    forecast.add_argument(
        "--tiers", nargs="+", metavar="TIER", help="each measured by itself (load.tier)"
    )
    forecast.add_argument("--json", action="store_true", help="print one JSON object")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _add_configuration(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", nargs="?" if optional else None)
    parser.add_argument(
        "--set",
        dest="overrides",
        action="extend",
        nargs="+",
        default=[],
        metavar="A.B=VALUE",
        help="override settings, such as max_seconds=60",
    )
