"""Files of the kernel as machines of different kinds have them, planted under a temporary directory."""

from __future__ import annotations

from pathlib import Path

# What every machine has: 8 GiB, two processors, no pressure, this process in no cgroup with a limit.
ANY = {
    "proc/meminfo": "MemTotal:        8000000 kB\nMemFree:          500000 kB\nMemAvailable:    2048000 kB\n",
    "proc/stat": "cpu  200 0 0 200 0 0 0 0 0 0\ncpu0 100 0 0 100 0 0 0 0 0 0\ncpu1 100 0 0 100 0 0 0 0 0 0\nintr 1\n",
    "proc/self/stat": "10 (python) S 1 1 1 0 -1 0 0 0 0 0 20 10 5 5 20 0 1 0 1 1 1\n",
    "proc/self/cgroup": "0::/\n",
    "proc/pressure/memory": "some avg10=1.50 avg60=0.10 avg300=0.00 total=5\n"
    "full avg10=0.50 avg60=0.00 avg300=0.00 total=1\n",
    "proc/pressure/io": "some avg10=12.34 avg60=9.00 avg300=0.00 total=5\n"
    "full avg10=99.00 avg60=0.00 avg300=0.00 total=1\n",
}
BATTERY = {"type": "Battery", "scope": "System", "present": "1", "capacity": "63", "status": "Discharging"}
MOUSE = {"type": "Battery", "scope": "Device", "present": "1", "capacity": "5", "status": "Discharging"}


def plant(root: Path, contents: dict[str, str]) -> Path:
    """Write files below `root` and return it."""
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")
    return root


def supplies(**of: dict[str, str]) -> dict[str, str]:
    """Return the files of power supplies by their names."""
    return {f"sys/class/power_supply/{name}/{key}": text for name, keys in of.items() for key, text in keys.items()}


def zone(number: int, kind: str, thousandths: int | str) -> dict[str, str]:
    """Return the files of a thermal zone."""
    directory = f"sys/class/thermal/thermal_zone{number}"
    return {f"{directory}/type": kind, f"{directory}/temp": str(thousandths)}


def monitor(number: int, name: str, **temperatures: int | tuple[str, int]) -> dict[str, str]:
    """Return the files of a hardware monitor: temp1=45000, or with a label, temp1=("Tctl", 45000)."""
    directory = f"sys/class/hwmon/hwmon{number}"
    files = {f"{directory}/name": name}
    for key, value in temperatures.items():
        label, thousandths = value if isinstance(value, tuple) else ("", value)
        files[f"{directory}/{key}_input"] = str(thousandths)
        if label:
            files[f"{directory}/{key}_label"] = label
    return files


def process(
    pid: int, *, times: tuple[int, int, int, int] = (0, 0, 0, 0), pages: int = 0, name: str = "python"
) -> dict[str, str]:
    """Return the files of a process: utime, stime, cutime and cstime in ticks, and its resident pages."""
    return {
        f"proc/{pid}/stat": f"{pid} ({name}) S 1 1 1 0 -1 0 0 0 0 0 {' '.join(map(str, times))} 39 19 3 0 1 1 1",
        f"proc/{pid}/statm": f"5000 {pages} 10 1 0 100 0",
    }


def myself(*times: int) -> dict[str, str]:
    """Return the file of this process: utime, stime, cutime and cstime in ticks."""
    return {"proc/self/stat": f"10 (python) S 1 1 1 0 -1 0 0 0 0 0 {' '.join(map(str, times))} 20 0 1 0 1 1 1"}


def processors(*lines: str) -> dict[str, str]:
    """Return /proc/stat: per processor user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice."""
    rows = [f"cpu{number} {line}" for number, line in enumerate(lines)]
    return {"proc/stat": "\n".join(["cpu  9 9 9 9 9 9 9 9 9 9", *rows, "intr 5 0 1", "ctxt 7"])}


LAPTOP_ON_BATTERY = {
    **ANY,
    **supplies(AC={"type": "Mains", "online": "0"}, BAT0=BATTERY, hidpp_battery_0=MOUSE),
    **zone(0, "acpitz", 52000),
    **zone(1, "x86_pkg_temp", 61000),
    **zone(2, "iwlwifi_1", 71000),
    **monitor(0, "nvme", temp1=83000),
    **monitor(1, "coretemp", temp1=("Package id 0", 62000), temp2=("Core 0", 60000)),
    **monitor(2, "BAT0", temp1=90000),
}
LAPTOP_ON_MAINS = {
    **LAPTOP_ON_BATTERY,
    **supplies(AC={"type": "Mains", "online": "1"}, BAT0={**BATTERY, "status": "Charging", "capacity": "80"}),
}
RASPBERRY_PI = {**ANY, **zone(0, "cpu-thermal", 48312), **monitor(0, "cpu_thermal", temp1=48312)}
