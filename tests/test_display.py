import io

import pytest
from rich.console import Console
from telemetry_samples import NOW_S, fresh_task_summary, run_summary, task_summary

from rl_cluster.telemetry.display import Display, final_table, picture, plain_lines
from rl_cluster.telemetry.formatting import count, data_size, duration, number, percent, score


def drawn(renderable, width=100):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def plain_console():
    return Console(file=io.StringIO(), force_terminal=False)


def test_picture_shows_every_figure_of_a_game_in_100_columns():
    text = drawn(picture(run_summary(), NOW_S))
    for figure in (
        "quickstart", "running", "2 min 11 s of 3 min 0 s", "medium (asked for auto)", "1.23 GB",
        "incidents 1", "Pong", "5,321 frames", "10,642 samples", "7.98", "of 8", "p50 1", "p95 3",
        "86 %", "611 MB", "0.0123", "v775", "-19.5", "44 games", "-19 -21 -18", "-17.2",
        "random -20.7", "9.9 % human", "1.24 M frames", "MontezumaRevenge", "warming up", "not yet",
    ):  # fmt: skip
        assert figure in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_final_table_shows_totals_and_the_best_in_100_columns():
    text = drawn(final_table(run_summary(state="completed")))
    for figure in ("completed", "310,000 steps", "38,750 updates", "-16.9", "step 270,000",
                   "restarts 0", "skipped 0"):  # fmt: skip
        assert figure in text
    assert "…" not in text


def test_wide_figures_still_fit():
    task = task_summary(
        env_frames=10**10,
        env_frames_per_s=123_456.0,
        learner_samples_per_s=123_456.0,
        returns={"last": [11_250.0, 12_340.0, 9_340.0], "mean": 12_345.6, "episodes": 1234},
    )
    text = drawn(picture(run_summary(tasks={"MontezumaRevenge": task}), NOW_S))
    assert "…" not in text
    assert "11,250 12,340 9,340" in text


def test_failure_is_shown_as_written():
    failed = fresh_task_summary(state="failed", failure="learner-0: [Errno 12] out of memory")
    for renderable in (picture, lambda summary, now_s: final_table(summary)):
        text = drawn(renderable(run_summary(tasks={"Pong": failed}), NOW_S))
        assert "Pong: learner-0: [Errno 12] out of memory" in text


def test_run_that_died_without_a_word_is_shown_as_such():
    text = drawn(picture(run_summary(), NOW_S + 3_600))
    assert "no sign of life, last written 1 h 0 min ago" in text


def test_plain_line_has_every_figure_and_no_colour():
    pong, other = plain_lines(run_summary())
    assert pong == (
        "[2 min 11 s] Pong running | 1.24 M frames (5,321/s) | learner 10,642 samples/s | "
        "samples/insert 7.98 of 8 | lag 1/3 | replay 86 % | loss 0.0123 | return -19.5 | "
        "evaluation -17.2 (random -20.7, 9.9 % human) | incidents 1"
    )
    assert "evaluation –" in other


def test_without_a_terminal_lines_come_once_in_a_period_and_unbroken():
    console = plain_console()
    with Display(console, line_period_s=3_600) as display:
        display.update(run_summary())
        display.update(run_summary())
    assert console.file.getvalue().splitlines() == plain_lines(run_summary())


def test_without_a_terminal_a_period_of_zero_prints_every_update():
    console = plain_console()
    with Display(console, line_period_s=0) as display:
        display.update(run_summary())
        display.update(run_summary())
    assert len(console.file.getvalue().splitlines()) == 4


def test_on_a_terminal_the_picture_is_wiped_and_the_final_table_stays():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with Display(console) as display:
        display.update(run_summary())
        display.finish(run_summary(state="completed"), ["report: runs/quickstart/report.html"])
    shown = console.file.getvalue()
    assert shown.index("v775") < shown.index("completed")
    assert shown.rstrip().endswith("report: runs/quickstart/report.html")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")


def test_terminal_is_given_back_after_an_error():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with pytest.raises(RuntimeError), Display(console) as display:
        display.update(run_summary())
        raise RuntimeError
    assert "\x1b[?25h" in console.file.getvalue()


def test_final_table_without_a_terminal_is_not_cut():
    console = plain_console()
    with Display(console) as display:
        display.finish(run_summary(state="completed"))
    assert "step 270,000" in console.file.getvalue()
    assert "…" not in console.file.getvalue()


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (count(12_345), "12,345"),
        (count(999_999), "999,999"),
        (count(1_234_567), "1.23 M"),
        (count(None), "–"),
        (data_size(7_056_000_000), "7.06 GB"),
        (data_size(999_700), "1 MB"),
        (number(0.012345), "0.0123"),
        (number(-20.44), "-20.4"),
        (number(1_234.5), "1,234"),
        (number(0.0), "0"),
        (score(12_345.6), "12,346"),
        (percent(0.0), "0 %"),
        (percent(0.0391), "3.9 %"),
        (percent(12.3), "1,230 %"),
        (duration(59.7), "1 min 0 s"),
        (duration(0.2), "0 s"),
        (duration(187_500), "2 d 4 h"),
    ],
)
def test_figures_read_as_people_write_them(shown, text):
    assert shown == text
