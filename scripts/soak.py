#!/usr/bin/env python3
"""Runs the trainer for hours and looks for what grows: memory, open files, threads.

    python3 scripts/soak.py --hours 2 --out /tmp/soak -- --set schedule.cycle_steps=4

What follows `--` goes to the trainer (`target/release/trainer`, or --program), which gets `--cycles` high enough not to
end. Every few seconds a line of `samples.csv` in the folder --out has the resident memory, the open files and the threads
of the process (from /proc, so Linux only) and the steps done. At the end the program is stopped by SIGTERM and has to
leave with a checkpoint (status 130). Exits 1 if memory after the first cycle grew by more than --growth percent (a line
through the samples, by least squares, so that single peaks do not count), or open files or threads are more at the end
than after the first cycle.
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
    """Resident bytes, open files and threads of a process."""
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    resident = int(re.sub(r"\D", "", fields["VmRSS"])) * 1024
    return resident, len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"])


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
    """Growth of the second value over the span of the first, in percent of where the line through the points begins."""
    count = len(points)
    mean_x, mean_y = (sum(point[i] for point in points) / count for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    first, last = points[0][0], points[-1][0]
    begin = mean_y + slope * (first - mean_x)
    return 100.0 * slope * (last - first) / begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples")
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
        writer.writerow(["seconds", "step", "cycle", "resident_bytes", "open_files", "threads"])
        while time.monotonic() - begun < 3600 * args.hours and process.poll() is None:
            try:
                resident, files, threads = sample(process.pid)
            except (OSError, KeyError):
                break
            step, cycle = last_row(os.path.join(run, "metrics.jsonl"))
            row = (round(time.monotonic() - begun, 1), step, cycle, resident, files, threads)
            samples.append(row)
            writer.writerow(row)
            file.flush()
            time.sleep(args.every)
    if process.poll() is not None:
        sys.exit(f"the program ended early, with status {process.returncode}; see {log.name}")
    process.send_signal(signal.SIGTERM)
    status = process.wait(timeout=600)

    later = [row for row in samples if row[2] > 1]
    if len(later) < 3:
        sys.exit("there is nothing after the first cycle; run longer, or with a lower schedule.cycle_steps")
    percent = growth([(row[0], row[3]) for row in later])
    # Files are opened for a moment while something is saved, so the least of the last samples counts.
    tenth = max(1, len(later) // 10)
    least = lambda rows, column: min(row[column] for row in rows)
    files = (least(later[:tenth], 4), least(later[-tenth:], 4))
    threads = (least(later[:tenth], 5), least(later[-tenth:], 5))
    print(f"{samples[-1][0] / 3600:.2f} hours, {samples[-1][1]} steps, {samples[-1][2]} cycles")
    print(f"resident memory {later[0][3] / 2**20:.1f} MiB after the first cycle, {later[-1][3] / 2**20:.1f} MiB at the end")
    print(f"growth after the first cycle {percent:+.2f}% (limit {args.growth}%)")
    print(f"open files {files[0]} and {files[1]}, threads {threads[0]} and {threads[1]}")
    print(f"exit status after SIGTERM {status}")
    faults = [
        ("memory grows", percent > args.growth),
        ("files are left open", files[1] > files[0]),
        ("threads are left", threads[1] > threads[0]),
        ("the status is not 130", status != 130),
    ]
    found = [name for name, holds in faults if holds]
    sys.exit("; ".join(found) if found else 0)


if __name__ == "__main__":
    main()
