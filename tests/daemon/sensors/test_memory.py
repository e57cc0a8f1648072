"""Memory that is available, with and without limits of cgroups of both versions."""

from __future__ import annotations

from pathlib import Path

from edgepd_daemon.sensors.memory import Memory
from tests.daemon.fake_machines import ANY, plant

MIB = 2**20
V2_MOUNT = "30 23 0:27 {top} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "34 31 0:31 {top} /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
OTHERS = "23 1 8:1 / / rw - ext4 /dev/sda1 rw\n32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\nbroken\n"
SERVICE = "/user.slice/user-1000.slice/user@1000.service/app.slice/edgepd.service"


def available(root: Path, *contents: dict[str, str]) -> float | None:
    plant(root, ANY)
    for each in contents:
        plant(root, each)
    return Memory(root).available_mb()


def group(path: str, maximum: str, high: str, current_mib: int, inactive_mib: int = 0) -> dict[str, str]:
    directory = f"sys/fs/cgroup{path}"
    return {
        f"{directory}/memory.max": maximum,
        f"{directory}/memory.high": high,
        f"{directory}/memory.current": str(current_mib * MIB),
        f"{directory}/memory.stat": f"anon 5\nactive_file 123456789\ninactive_file {inactive_mib * MIB}\nfile 7",
    }


def in_group(mount: str, path: str, top: str = "/", number: str = "0::") -> dict[str, str]:
    return {
        "proc/self/mountinfo": OTHERS + mount.format(top=top),
        "proc/self/cgroup": f"1:name=systemd:/a\n{number}{path}",
    }


def test_the_machine_alone(tmp_path: Path) -> None:
    assert available(tmp_path) == 2000


def test_nothing_known(tmp_path: Path) -> None:
    assert Memory(tmp_path).available_mb() is None
    assert Memory(tmp_path).sources() == []


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    assert available(tmp_path, in_group(V2_MOUNT, SERVICE), group(SERVICE, "max", "max", 7000)) == 2000


def test_the_lower_of_two_limits_counts_with_what_can_be_dropped(tmp_path: Path) -> None:
    files = group(SERVICE, str(1000 * MIB), str(800 * MIB), current_mib=500, inactive_mib=50)
    assert available(tmp_path, in_group(V2_MOUNT, SERVICE), files) == 350


def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    own = group(SERVICE, str(1000 * MIB), "max", 500)
    above = group("/user.slice/user-1000.slice", str(4000 * MIB), "max", 3900, 20)
    assert available(tmp_path, in_group(V2_MOUNT, SERVICE), own, above) == 120


def test_a_limit_does_not_make_more_of_the_machine(tmp_path: Path) -> None:
    assert available(tmp_path, in_group(V2_MOUNT, SERVICE), group(SERVICE, str(9000 * MIB), "max", 1)) == 2000


def test_above_the_limit_there_is_nothing(tmp_path: Path) -> None:
    assert available(tmp_path, in_group(V2_MOUNT, SERVICE), group(SERVICE, "max", str(100 * MIB), 150)) == 0


def test_a_container_with_its_own_namespace_sees_its_limit_at_the_top(tmp_path: Path) -> None:
    assert available(tmp_path, in_group(V2_MOUNT, "/"), group("", str(512 * MIB), "max", 112)) == 400


def test_a_container_without_one_sees_its_path_in_the_mount(tmp_path: Path) -> None:
    files = group("/inner", str(512 * MIB), "max", 112)
    assert available(tmp_path, in_group(V2_MOUNT, "/docker/a b/inner", top="/docker/a\\040b"), files) == 400


def test_a_group_outside_of_the_namespace_counts_from_the_mount(tmp_path: Path) -> None:
    top, not_ours = group("", str(512 * MIB), "max", 112), group("/../other", str(2 * MIB), "max", 1)
    assert available(tmp_path, in_group(V2_MOUNT, "/../other"), top, not_ours) == 400


def test_version_1(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(600 * MIB),
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(500 * MIB),
        "sys/fs/cgroup/memory/box/memory.stat": f"inactive_file 1\ntotal_inactive_file {200 * MIB}",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",  # what says: none
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "9223372036854771000",
    }
    assert available(tmp_path, in_group(V1_MOUNT, "/box", number="4:memory:"), files) == 300
    assert Memory(tmp_path).sources() == [
        tmp_path / "proc/meminfo",
        tmp_path / "sys/fs/cgroup/memory/box/memory.limit_in_bytes",
    ]


def test_without_a_list_of_mounts_the_usual_place_counts(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/box", **group("/box", str(512 * MIB), "max", 112)}
    assert available(tmp_path, files) == 400


def test_a_use_that_cannot_be_read_is_no_limit(tmp_path: Path) -> None:
    files = {**group(SERVICE, str(100 * MIB), "max", 90), f"sys/fs/cgroup{SERVICE}/memory.current": "?"}
    assert available(tmp_path, in_group(V2_MOUNT, SERVICE), files) == 2000
