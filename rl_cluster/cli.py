"""The command line: thin; each command reads its arguments, calls one function, prints.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted with everything saved.
Invariant: with `--json` a command prints one JSON object and nothing else on standard output. Heavy
imports happen inside commands, after signals were made to wait, since they start threads.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rl_cluster import cli_experiments
from rl_cluster.cli_parser import make_parser
from rl_cluster.exit_codes import DONE, FAILED, INTERRUPTED, WRONG_USAGE
from rl_cluster.exit_codes import complain as _complain
from rl_cluster.extras import how_to_install
from rl_cluster.signals import StopFlag

if TYPE_CHECKING:
    from rl_cluster.config import RunConfig
    from rl_cluster.preparation import PreparedRun
    from rl_cluster.run_directory import RunDirectory


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    arguments = make_parser().parse_args(argv)
    stop = StopFlag()
    until_stopped = {
        "train": _train,
        "watch": _watch,
        "sweep": cli_experiments.sweep,
        "forecast": cli_experiments.forecast,
    }
    if arguments.command in until_stopped:
        stop.install()
        return until_stopped[arguments.command](arguments, stop)
    commands = {
        "status": _status,
        "tier": _steer,
        "pause": _steer,
        "resume": _steer,
        "set": _steer,
        "add": _steer,
        "remove": _steer,
        "rollback": _steer,
        "stop": _stop,
        "keep": _keep,
        "install-service": _install_service,
        "fetch": _fetch,
        "evaluate": _evaluate,
        "report": _report,
        "compare": cli_experiments.compare,
        "dashboards": _dashboards,
        "doctor": _doctor,
    }
    try:
        return commands[arguments.command](arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def _train(arguments: argparse.Namespace, stop: StopFlag) -> int:
    from rl_cluster.cluster.training import with_cluster_found
    from rl_cluster.config import ConfigError
    from rl_cluster.config_file import load
    from rl_cluster.preparation import prepare
    from rl_cluster.run_directory import RunDirectory, RunDirectoryError
    from rl_cluster.run_path import run_path
    from rl_cluster.supervision.admission import AdmissionError

    if arguments.resume and arguments.run is None:
        return _complain("--resume needs --run: which run?", WRONG_USAGE)
    try:
        directory = RunDirectory(run_path(arguments.run, arguments.config))
        config = with_cluster_found(load(arguments.config, arguments.overrides))
        prepared = prepare(config)
        directory.take(arguments.resume)
    except (ConfigError, RunDirectoryError) as error:
        return _complain(str(error), WRONG_USAGE)
    except AdmissionError as error:
        return _complain(str(error), FAILED)
    except OSError as error:
        return _complain(f"cannot use {directory.path}: {error}", FAILED)
    if stop:
        directory.release()
        return INTERRUPTED
    return _run(config, prepared, directory, stop, arguments.detach)


def _run(
    config: RunConfig,
    prepared: PreparedRun,
    directory: RunDirectory,
    stop: StopFlag,
    detach: bool,
) -> int:
    from rl_cluster.cli_display import announce, report_note, showing
    from rl_cluster.cluster import training
    from rl_cluster.config import ConfigError
    from rl_cluster.supervision.admission import AdmissionError
    from rl_cluster.telemetry.display import Display

    announce(prepared, directory.path)
    try:
        training.start(config, prepared, directory)
    except (OSError, AdmissionError, ConfigError) as error:  # the latter: of tasks added live
        directory.release()
        failed = isinstance(error, OSError)
        said = f"cannot write to {directory.path}: {error}" if failed else str(error)
        return _complain(said, FAILED)
    if detach:
        print(f"it trains; to watch it: rl-cluster status {directory.path} --watch")
        return DONE
    with Display() as display:
        try:
            summary = training.watch(directory, stop, showing(display))
        except training.Interrupted:
            return INTERRUPTED
        except training.RunFailed as error:
            return _complain(str(error), FAILED)
        # Reading weeks of figures takes longer than an interrupted program may stay.
        note = report_note(directory.path) if summary["state"] == "completed" else (
            f"report: rl-cluster report {directory.path}")  # fmt: skip
        display.finish(summary, [note])
    codes = {"completed": DONE, "interrupted": INTERRUPTED}
    return codes.get(summary["state"], FAILED)


def _status(arguments: argparse.Namespace) -> int:
    from rl_cluster.telemetry.display import Display
    from rl_cluster.telemetry.summary import SummaryError, is_stale, read_summary

    try:
        summary = read_summary(arguments.run)
        if arguments.json:
            print(json.dumps(summary))
            return DONE
        with Display(line_period_s=0.0) as display:
            while arguments.watch and summary["state"] == "running":
                display.update(summary)
                time.sleep(1.0)
                summary = read_summary(arguments.run)
                if is_stale(summary, time.time()):
                    break
            display.finish(summary, _stale_note(is_stale(summary, time.time()), arguments.run))
    except (FileNotFoundError, SummaryError) as error:
        return _complain(str(error), FAILED)
    return DONE


def _watch(arguments: argparse.Namespace, stop: StopFlag) -> int:
    try:
        from rl_cluster.telemetry.watch import WatchServer
        from rl_cluster.telemetry.watch_files import find_fleet

        server = WatchServer(find_fleet(arguments.run, arguments.task), arguments.port)
    except ModuleNotFoundError as error:
        return _complain(f"{error.name} is not installed: {how_to_install('rovers')}", FAILED)
    except (OSError, OverflowError, ValueError) as error:
        return _complain(str(error), FAILED)
    with server:
        print(f"the fleet is shown at {server.url} until Ctrl-C", flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        while not stop.wait(1.0):
            continue
        server.shutdown()
    return INTERRUPTED


def _stale_note(stale: bool, run: Path) -> list[str]:
    text = "nothing was heard of it for a minute: it died, or its machine hangs. To go on:"
    return [f"{text} rl-cluster train CONFIG --run {run} --resume"] if stale else []


def _steer(arguments: argparse.Namespace) -> int:
    from rl_cluster.cluster.handle import RunHandle, RunUnreachable, attach
    from rl_cluster.config import ConfigError
    from rl_cluster.config_file import parse_setting, tree_of
    from rl_cluster.run_directory import RunDirectoryError
    from rl_cluster.supervision.admission import AdmissionError

    commands: dict[str, Callable[[RunHandle], str | None]] = {
        "tier": lambda handle: handle.tier(arguments.tier),
        "pause": lambda handle: handle.pause(arguments.task),
        "resume": lambda handle: handle.resume(arguments.task),
        "set": lambda handle: handle.change(
            dict(map(parse_setting, arguments.settings)), arguments.task
        ),
        "add": lambda handle: handle.add(arguments.task, tree_of(arguments.settings)),
        "remove": lambda handle: handle.remove(arguments.task),
        "rollback": lambda handle: (
            f"sent as version {handle.rollback(arguments.task, arguments.version)}"
        ),
    }
    try:
        if answer := commands[arguments.command](attach(arguments.run)):
            print(answer)
    except ConfigError as error:
        return _complain(str(error), WRONG_USAGE)
    except (AdmissionError, RunDirectoryError, RunUnreachable, ValueError) as error:
        return _complain(str(error), FAILED)
    return DONE


def _stop(arguments: argparse.Namespace) -> int:
    from rl_cluster.cluster.stopping import stop_run
    from rl_cluster.run_directory import RunDirectoryError

    try:
        stop_run(arguments.run)
    except RunDirectoryError as error:
        return _complain(str(error), FAILED)
    return DONE


def _keep(arguments: argparse.Namespace) -> int:
    from rl_cluster.cluster import keeper

    return keeper.main([str(arguments.run.absolute())])


def _install_service(arguments: argparse.Namespace) -> int:
    from rl_cluster.service import ServiceError, install

    try:
        print(install(arguments.run, arguments.user))
    except ServiceError as error:
        return _complain(str(error), FAILED)
    return DONE


def _fetch(arguments: argparse.Namespace) -> int:
    from rl_cluster.checkpoint import CheckpointError, CheckpointStore
    from rl_cluster.remote import RemoteError, download
    from rl_cluster.run_directory import is_in_use

    if is_in_use(arguments.run):
        stop = f"stop it with `rl-cluster stop {arguments.run}`, or name another directory"
        return _complain(f"{arguments.run} is in use by a live run: {stop}", FAILED)
    store = CheckpointStore(arguments.run / arguments.task / "checkpoints", keep=1)
    try:
        print(download(arguments.url, store, arguments.best).path)
    except (RemoteError, CheckpointError) as error:
        return _complain(str(error), FAILED)
    return DONE


def _evaluate(arguments: argparse.Namespace) -> int:
    from rl_cluster.checkpoint import CheckpointError
    from rl_cluster.config import ConfigError
    from rl_cluster.offline_evaluation import evaluate_path

    try:
        results = evaluate_path(arguments.path, arguments.episodes)
    except (CheckpointError, ConfigError, FileNotFoundError, ValueError) as error:
        return _complain(str(error), FAILED)
    if arguments.json:
        print(json.dumps(results))
        return DONE
    for task, result in results.items():
        human = result["human_normalized"]
        print(
            f"{task}: mean return {result['mean_return']:.2f} ± {result['std_return']:.2f} over "
            f"{result['episodes']} games (random {result['random_mean_return']:.2f}"
            + (f", human-normalized {human:.3f})" if human is not None else ")")
        )
    return DONE


def _report(arguments: argparse.Namespace) -> int:
    from rl_cluster.telemetry.report import write_report

    try:
        print(write_report(arguments.run, arguments.hourly))
    except (OSError, ValueError) as error:
        return _complain(str(error), FAILED)
    return DONE


def _dashboards(arguments: argparse.Namespace) -> int:
    from rl_cluster.telemetry.provisioning import provision

    try:
        for line in provision(arguments.run, arguments.out):
            print(line)
    except OSError as error:
        return _complain(str(error), FAILED)
    return DONE


def _doctor(arguments: argparse.Namespace) -> int:
    from rl_cluster import doctor
    from rl_cluster.config import ConfigError
    from rl_cluster.config_file import load
    from rl_cluster.preparation import what_would_run
    from rl_cluster.supervision.admission import AdmissionError

    try:
        rows = (
            what_would_run(load(arguments.config, arguments.overrides)) if arguments.config else []
        )
    except (ConfigError, AdmissionError) as error:
        return _complain(str(error), WRONG_USAGE)
    return doctor.report(
        doctor.diagnose(), [doctor.Setting(*row) for row in rows], as_json=arguments.json
    )


if __name__ == "__main__":
    sys.exit(main())
