"""Pressure: each figure against its two thresholds, and the sensors on machines made of files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_cluster.config import PressureConfig
from rl_cluster.control import RUN_MARK
from rl_cluster.others_cpu import OthersCpu, marked_with
from rl_cluster.sensors import Sensors, memory_available_share, memory_stall_share
from rl_cluster.supervision.pressure import Level, Reading, judge

AT = PressureConfig()
CALM = Reading(
    memory_available_share=0.5,
    memory_stall_share=0.0,
    store_used_share=0.5,
    gpu_memory_free_share=0.5,
    disk_free_bytes=10**11,
    temperature_c=50.0,
    others_cpu_share=0.1,
)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("name", "value", "level", "reason"),
    [
        ("memory_available_share", 0.07, "high", "memory available is 7.0 %, at most 7.0 %"),
        ("memory_available_share", 0.08, "between", "memory available is 8.0 %, below 20.0 %"),
        ("memory_available_share", 0.20, "low", ""),
        ("memory_stall_share", 0.2, "high", "waits for memory is 20.0 %, at least 20.0 %"),
        ("memory_stall_share", 0.02, "between", "waits for memory is 2.0 %, not below 2.0 %"),
        ("memory_stall_share", 0.01, "low", ""),
        ("store_used_share", 0.99, "high", "object store in use is 99.0 %, at least 98.5 %"),
        ("store_used_share", 0.97, "between", "object store in use is 97.0 %, not below 96.0 %"),
        ("gpu_memory_free_share", 0.0, "high", "GPU memory free is 0.0 %, at most 3.0 %"),
        ("gpu_memory_free_share", 0.1, "between", "GPU memory free is 10.0 %, below 15.0 %"),
        ("disk_free_bytes", 400_000_000, "high", "disk free is 0.40 GB, at most 0.50 GB"),
        ("disk_free_bytes", 10**9, "between", "disk free is 1.00 GB, below 3.00 GB"),
        ("temperature_c", 95.0, "high", "hottest sensor is 95.0 °C, at least 92.0 °C"),
        ("temperature_c", 85.0, "between", "hottest sensor is 85.0 °C, not below 80.0 °C"),
        ("others_cpu_share", 1.0, "between", "by other programs is 100.0 %, not below 40.0 %"),
        ("others_cpu_share", 0.5, "between", "by other programs is 50.0 %, not below 40.0 %"),
    ],
)
def test_each_figure_is_judged_by_its_own_thresholds(
    name: str, value: float, level: Level, reason: str
) -> None:
    found = judge(replace(CALM, **{name: value}), AT)
    assert found.level == level
    assert reason in str(found)
    assert len(found.reasons) == (level != "low")


def test_every_figure_past_its_threshold_is_named() -> None:
    found = judge(replace(CALM, temperature_c=95.0, memory_available_share=0.01), AT)
    assert [reason.split(" is ")[0] for reason in found.reasons] == [
        "memory available",
        "hottest sensor",
    ]


def test_what_cannot_be_read_is_no_pressure() -> None:
    for field in fields(Reading):
        assert judge(replace(CALM, **{field.name: None}), AT).level == "low"


def test_where_nothing_can_be_read_the_load_does_not_grow() -> None:
    found = judge(Reading(), AT)
    assert (found.level, str(found)) == ("between", "no figure of the machine can be read")


shares = st.none() | st.floats(0, 1)
readings = st.builds(
    Reading, shares, shares, shares, shares, st.none() | st.integers(0, 10**12),
    st.none() | st.floats(1, 120), shares,
)  # fmt: skip


@given(readings)
def test_the_worst_figure_decides(reading: Reading) -> None:
    """Against a reading of which only one figure is not calm, in turn."""
    order: list[Level] = ["low", "between", "high"]
    alone = [
        judge(replace(CALM, **{field.name: getattr(reading, field.name)}), AT).level
        for field in fields(Reading)
    ]
    if reading != Reading():
        assert judge(reading, AT).level == max(alone, key=order.index)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:       1000 kB\nMemFree:         10 kB\nMemAvailable:    400 kB\n"
V2 = {
    "proc/meminfo": MEMINFO,
    "proc/self/cgroup": "0::/a/b\n",
    "sys/fs/cgroup/a/memory.max": "1000000",
    "sys/fs/cgroup/a/memory.current": "950000",
    "sys/fs/cgroup/a/memory.stat": "anon 700000\ninactive_file 100000\nactive_file 50000\n",
    "sys/fs/cgroup/a/b/memory.max": "max",
    "sys/fs/cgroup/a/b/memory.current": "950000",
}
V1 = {
    "proc/meminfo": MEMINFO,
    "proc/self/cgroup": "4:memory:/docker/abc\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "900000",
    "sys/fs/cgroup/memory/memory.stat": (
        "inactive_file 1\nactive_file 1\ntotal_inactive_file 5000\ntotal_active_file 2000\n"
    ),
}


@pytest.mark.parametrize(
    ("files", "share"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param({"proc/meminfo": MEMINFO}, 0.4, id="host alone"),
        pytest.param(V2, 0.2, id="v2, the parent is tighter, its file cache can be had"),
        pytest.param(V1, 0.107, id="v1, with the file cache of its children"),
        pytest.param(
            {**V2, "sys/fs/cgroup/a/memory.max": "9000000"}, 0.4, id="the host is tighter"
        ),
        pytest.param({**V2, "sys/fs/cgroup/a/memory.max": "500000"}, 0.0, id="over the limit"),
        pytest.param(
            {**V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"},
            0.4,
            id="v1, no limit",
        ),
        pytest.param({"proc/meminfo": "MemTotal:\nrubbish\n"}, None, id="rubbish"),
    ],
)
def test_memory_available_is_the_least_of_host_and_cgroups(
    tmp_path: Path, files: dict[str, str], share: float | None
) -> None:
    assert memory_available_share(write(tmp_path, files)) == (share and pytest.approx(share))


def test_memory_stalls_are_those_of_ten_seconds_in_which_somebody_waited(tmp_path: Path) -> None:
    assert memory_stall_share(tmp_path) is None
    text = "some avg10=12.50 avg60=1.00 avg300=0.10 total=1\nfull avg10=3.00 avg60=0 total=1\n"
    write(tmp_path, {"proc/pressure/memory": text})
    assert memory_stall_share(tmp_path) == 0.125


def test_a_reading_of_a_machine_made_of_files(tmp_path: Path) -> None:
    machine = write(
        tmp_path / "machine",
        {
            **V2,
            "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
            "sys/class/thermal/thermal_zone0/temp": "45000\n",
            "sys/class/thermal/thermal_zone1/temp": "-274000\n",
            "sys/class/hwmon/hwmon0/temp1_input": "61500\n",
            "sys/class/hwmon/hwmon0/temp2_input": "255000\n",
            "sys/class/hwmon/hwmon0/temp3_input": "broken\n",
        },
    )
    reading = Sensors(tmp_path, lambda pid: False, machine).read(store_used_share=0.25)
    assert reading.memory_available_share == pytest.approx(0.2)
    assert reading.memory_stall_share == 0.0
    assert reading.store_used_share == 0.25
    assert reading.temperature_c is not None and reading.temperature_c >= 61.5
    assert reading.disk_free_bytes is not None and reading.disk_free_bytes > 0
    assert reading.others_cpu_share is None


def test_this_machine_can_be_read_and_a_disk_that_is_gone_cannot(tmp_path: Path) -> None:
    reading = Sensors(tmp_path, marked_with(tmp_path)).read(None)
    assert reading.memory_available_share is not None
    assert 0 < reading.memory_available_share <= 1
    gone = Sensors(tmp_path / "gone", marked_with(tmp_path)).read(None)
    assert gone.disk_free_bytes is None


class FakeHost:
    """A host's CPU accounts as files: processes burn ticks, all else is idle."""

    def __init__(self, root: Path, cores: int = 2) -> None:
        self.root, self.cores = root, cores
        self.total = self.busy = self.steal = 0
        self.ticks: dict[int, int] = {}
        self.waited: dict[int, int] = {}
        self.parents: dict[int, int] = {}

    def process(self, pid: int, parent: int = 1) -> None:
        self.ticks[pid], self.waited[pid], self.parents[pid] = 0, 0, parent

    def end(self, pid: int) -> None:
        """The process goes; its parent, where it is there, gets its ticks."""
        (self.root / "proc" / str(pid) / "stat").unlink()
        parent = self.parents.pop(pid)
        ticks = self.ticks.pop(pid) + self.waited.pop(pid)
        if parent in self.waited:
            self.waited[parent] += ticks

    def run(self, seconds: float, steal: int = 0, **burnt: int) -> None:
        self.total += round(seconds * self.cores * TICKS_PER_S)
        self.busy += sum(burnt.values())
        self.steal += steal
        for name, ticks in burnt.items():
            pid = int(name.removeprefix("p"))
            if pid in self.ticks:
                self.ticks[pid] += ticks
        self.write()

    def write(self) -> None:
        idle = self.total - self.busy - self.steal
        lines = [f"cpu  {self.busy} 0 0 {idle} 0 0 0 {self.steal} 0 0"]
        lines += [f"cpu{core} 0 0 0 0 0 0 0 0 0 0" for core in range(self.cores)]
        files = {"proc/stat": "\n".join([*lines, "intr 5", "ctxt 7"])}
        for pid, ticks in self.ticks.items():
            head = f"{pid} (a (b) c) S {self.parents[pid]} 1 1 0 -1 0 0 0 0 0"
            files[f"proc/{pid}/stat"] = f"{head} {ticks} 0 {self.waited[pid]} 0 20 0 1 0 {pid} 0"
        write(self.root, files)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    fake = FakeHost(tmp_path)
    fake.process(10)
    fake.process(11, parent=10)
    fake.process(99)
    fake.write()
    yield fake


def is_root(pid: int) -> bool:
    return pid == 10


def test_the_cpu_of_others_is_the_hosts_without_that_of_our_tree(host: FakeHost) -> None:
    cpu = OthersCpu(is_root, host.root)
    host.run(10.0, p10=20 * TICKS_PER_S // 4, p11=20 * TICKS_PER_S // 4, p99=20 * TICKS_PER_S // 5)
    assert cpu.share() == pytest.approx(0.2)


def test_what_a_hypervisor_takes_is_others(host: FakeHost) -> None:
    cpu = OthersCpu(is_root, host.root)
    host.run(10.0, steal=20 * TICKS_PER_S // 2, p10=20 * TICKS_PER_S // 2)
    assert cpu.share() == pytest.approx(0.5)


@settings(max_examples=100)
@given(own=st.lists(st.floats(0, 1), min_size=1, max_size=6), theirs=st.floats(0, 1))
def test_our_own_use_never_is_pressure(
    tmp_path_factory: pytest.TempPathFactory, own: list[float], theirs: float
) -> None:
    """Whatever we burn of what others leave, the figure is theirs alone (L19)."""
    host = FakeHost(tmp_path_factory.mktemp("host"))
    for pid in (10, 11, 99):
        host.process(pid, parent=10 if pid == 11 else 1)
    host.write()
    cpu = OthersCpu(is_root, host.root)
    ticks = 20 * TICKS_PER_S
    for share in own:
        others = round(ticks * theirs)
        ours = round((ticks - others) * share)
        host.run(10.0, p10=ours // 2, p11=ours - ours // 2, p99=others)
        found = cpu.share()
        assert found == pytest.approx(others / ticks)
        assert judge(Reading(others_cpu_share=found), AT).level == "low" or theirs >= 0.39


def test_a_process_of_ours_that_starts_counts_as_ours(host: FakeHost) -> None:
    cpu = OthersCpu(is_root, host.root)
    host.process(12, parent=11)
    host.run(10.0, p12=20 * TICKS_PER_S)
    assert cpu.share() == 0.0


def test_a_process_of_ours_that_came_and_went_between_two_looks_counts_as_ours(
    host: FakeHost,
) -> None:
    cpu = OthersCpu(is_root, host.root)
    host.process(12, parent=11)
    host.run(5.0, p12=10 * TICKS_PER_S)
    host.end(12)
    host.run(5.0, p99=4 * TICKS_PER_S)
    assert cpu.share() == pytest.approx(0.2)


@pytest.mark.parametrize("pid", [11, 10])
def test_an_interval_in_which_a_process_of_ours_ended_says_nothing(
    host: FakeHost, pid: int
) -> None:
    """Its last ticks are gone; they must not look like somebody else's."""
    cpu = OthersCpu(is_root, host.root)
    host.run(10.0, p99=4 * TICKS_PER_S)
    assert cpu.share() == pytest.approx(0.2)
    host.run(5.0, **{f"p{pid}": 10 * TICKS_PER_S})
    host.end(pid)
    host.run(5.0)
    assert cpu.share() is None
    host.run(10.0, p99=6 * TICKS_PER_S)
    assert cpu.share() == pytest.approx(0.3)


def test_the_figure_stands_until_an_interval_is_whole(host: FakeHost) -> None:
    """A moment in which somebody starts a program is no pressure."""
    cpu = OthersCpu(is_root, host.root)
    host.run(1.0, p99=2 * TICKS_PER_S)
    assert cpu.share() is None
    host.run(9.0)
    assert cpu.share() == pytest.approx(0.1)
    host.run(5.0, p99=10 * TICKS_PER_S)
    assert cpu.share() == pytest.approx(0.1)
    host.run(5.0, p99=10 * TICKS_PER_S)
    assert cpu.share() == 1.0


def test_where_the_kernel_tells_no_cpu_there_is_no_figure(tmp_path: Path) -> None:
    cpu = OthersCpu(is_root, tmp_path)
    assert cpu.share() is None
    write(tmp_path, {"proc/stat": "cpu  0 0 0 0 0 0 0 0 0 0\n"})
    assert cpu.share() is None
    assert cpu.share() is None


def test_the_mark_in_the_environment_tells_our_processes(tmp_path: Path) -> None:
    """Two processes of this machine that live until their input ends, one of them marked."""
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    ours, theirs = (
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, RUN_MARK: str(run_dir)},
        )
        for run_dir in (tmp_path, tmp_path / "other")
    )
    for process in (ours, theirs):
        assert process.stdout is not None and process.stdout.readline()
    is_ours = marked_with(tmp_path)
    assert is_ours(ours.pid)
    assert not is_ours(theirs.pid)
    for process in (ours, theirs):
        process.communicate()
    assert not is_ours(ours.pid)
