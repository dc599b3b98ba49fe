#!/usr/bin/env python3
"""Runs the trainer for hours and looks for what grows: memory, open files, threads.

    python3 scripts/soak.py --hours 2 --out /tmp/soak -- --set schedule.cycle_steps=4

What follows `--` goes to the trainer (`target/release/trainer`, or --program), which gets `--cycles` high enough not to
end. Every second a line of `samples.csv` in the folder --out has the resident memory of the process, the highest that it was
since the line before, the open files and the threads (from /proc, so Linux only), and the step and cycle at work. At the end
the program is stopped by SIGTERM and has to leave with a checkpoint (status 130).

Resident memory goes up and down within each step, so whole cycles are compared: the lowest and the highest of each, from the
second cycle to the last whole one. Exits 1 if a line through either, by least squares, rises by more than --growth percent,
or if open files or threads are more at the end than after the first cycle.
"""

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time


def sample(pid):
    """Resident bytes, the most since the last call, open files and threads of a process."""
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    with open(f"/proc/{pid}/clear_refs", "w") as peak:
        peak.write("5")
    resident, highest = (int(re.sub(r"\D", "", fields[name])) * 1024 for name in ("VmRSS", "VmHWM"))
    return resident, highest, len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"])


def last_row(path):
    """The step and the cycle of the last whole row of metrics.jsonl."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            lines = file.read().decode(errors="replace").split("\n")[:-1]
        row = json.loads(lines[-1])
        return row["step"], row["cycle"]
    except (OSError, IndexError, ValueError):
        return 0, 0


def growth(points):
    """Growth of the second value over the span of the first, with its standard error, both in percent of where the line
    through the points begins."""
    count = len(points)
    mean_x, mean_y = (sum(point[i] for point in points) / count for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    left = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    error = (left / (count - 2) / spread) ** 0.5
    first, last = points[0][0], points[-1][0]
    begin = mean_y + slope * (first - mean_x)
    return tuple(100.0 * value * (last - first) / begin for value in (slope, error))


def by_cycle(samples):
    """The samples of each whole cycle after the first."""
    cycles = {}
    for row in samples:
        cycles.setdefault(row[2], []).append(row)
    return [cycles[cycle] for cycle in sorted(cycles)[:-1] if cycle > 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between samples")
    parser.add_argument("--growth", type=float, default=2.0, help="percent that memory may grow after the first cycle")
    parser.add_argument("--out", required=True, help="a new folder for the run and samples.csv")
    parser.add_argument("--program", default="target/release/trainer")
    parser.add_argument("arguments", nargs="*", help="for the trainer")
    args = parser.parse_args()

    os.makedirs(args.out, exist_ok=True)
    run = os.path.join(args.out, "run")
    command = [args.program, "--cycles", "100000", "--out", run, *args.arguments]
    log = open(os.path.join(args.out, "stderr.txt"), "w")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    samples, begun = [], time.monotonic()
    with open(os.path.join(args.out, "samples.csv"), "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seconds", "step", "cycle", "resident_bytes", "highest_bytes", "open_files", "threads"])
        while time.monotonic() - begun < 3600 * args.hours and process.poll() is None:
            try:
                now = sample(process.pid)
            except (OSError, KeyError):
                break
            step, cycle = last_row(os.path.join(run, "metrics.jsonl"))
            row = (round(time.monotonic() - begun, 1), step, cycle, *now)
            samples.append(row)
            writer.writerow(row)
            file.flush()
            time.sleep(args.every)
    if process.poll() is not None:
        sys.exit(f"the program ended early, with status {process.returncode}; see {log.name}")
    process.send_signal(signal.SIGTERM)
    status = process.wait(timeout=600)

    cycles = by_cycle(samples)
    if len(cycles) < 3:
        sys.exit("there are not three whole cycles after the first; run longer, or with a lower schedule.cycle_steps")
    lowest = [(rows[0][0], min(row[3] for row in rows)) for rows in cycles]
    highest = [(rows[0][0], max(row[4] for row in rows)) for rows in cycles]
    mean = [(rows[0][0], sum(row[3] for row in rows) / len(rows)) for rows in cycles]
    rises = {name: growth(points) for name, points in (("lowest", lowest), ("highest", highest), ("mean", mean))}
    # Files are opened for a moment while something is saved, so the least of the last samples counts.
    later = [row for rows in cycles for row in rows]
    tenth = max(1, len(later) // 10)
    least = lambda rows, column: min(row[column] for row in rows)
    files = (least(later[:tenth], 5), least(later[-tenth:], 5))
    threads = (least(later[:tenth], 6), least(later[-tenth:], 6))
    print(f"{samples[-1][0] / 3600:.2f} hours, {samples[-1][1]} steps, {len(cycles)} whole cycles after the first")
    for (name, (percent, error)), points in zip(rises.items(), (lowest, highest, mean)):
        middle = sorted(value for _, value in points)[len(points) // 2] / 2**20
        print(f"resident memory, {name} of a cycle: {middle:.1f} MiB (median), growth {percent:+.2f}% ± {error:.2f}")
    print(f"open files {files[0]} and {files[1]}, threads {threads[0]} and {threads[1]}")
    print(f"exit status after SIGTERM {status}")
    faults = [
        *((f"the {name} memory of a cycle grows", rises[name][0] > args.growth) for name in ("lowest", "highest")),
        ("files are left open", files[1] > files[0]),
        ("threads are left", threads[1] > threads[0]),
        ("the status is not 130", status != 130),
    ]
    found = [name for name, holds in faults if holds]
    sys.exit("; ".join(found) if found else 0)


if __name__ == "__main__":
    main()
