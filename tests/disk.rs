//! Disks that are full, too small or read-only: no good checkpoint is lost, what happens is said, and the run goes on
//! when there is room again.
//!
//! A file that may not grow (`ulimit -f`) needs no rights. A small disk of its own needs a mount namespace; where there is
//! none to be had, those tests say so and pass.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::kill::{assert_same, settings};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a script of `sh` with the program as `$0`, and the settings of the run as its arguments.
fn shell(script: &str, out: &Path, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_trainer")]).args(settings()).env("OUT", out);
    command.envs(environment.iter().copied()).output().expect("sh starts")
}

/// The run that was left alone.
fn whole(out: &Path) {
    let output = shell(r#""$0" "$@" --out "$OUT""#, out, &[]);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_run_outlives_checkpoints_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let (expected, out) = (folder.path().join("whole"), folder.path().join("run"));
    whole(&expected);
    // Three steps of it, then a limit of a mebibyte a file: rows can be written, weights cannot.
    let first = r#""$0" "$@" --out "$OUT" & P=$!
        while ! [ -e "$OUT/checkpoints/step-000003" ]; do sleep 0.01; done; kill -9 $P; wait $P"#;
    shell(first, &out, &[]);
    // The kill may come a step late on a busy machine.
    let newest = |step: &usize| out.join(format!("checkpoints/step-{step:06}/state.json")).exists();
    let last = (3..8).rev().find(newest).expect("a checkpoint of a step");
    let state = out.join(format!("checkpoints/step-{last:06}/state.json"));
    let good = fs::read(&state).unwrap();
    let limited = shell(r#"ulimit -f 2048; exec "$0" "$@" --out "$OUT" --resume auto"#, &out, &[]);
    let said = text(&limited);
    assert_eq!(limited.status.code(), Some(1), "{said}");
    let missed = format!("no checkpoint after step {}: ", last + 1);
    assert!(said.contains(&missed) && said.contains("the run goes on"), "{said}");
    assert!(said.contains("step 8/8"), "{said}");
    let end = said.lines().last().unwrap();
    assert!(
        end.starts_with("error: the checkpoint of the last step cannot be written; the last good one is "),
        "{said}"
    );
    assert!(end.contains("File too large") && !said.contains("panicked"), "{said}");
    assert_eq!(fs::read(&state).unwrap(), good);
    let entries = fs::read_dir(out.join("checkpoints")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(entries.into_iter().all(|name| !name.to_string_lossy().starts_with('.')), "something half-written is left");

    let again = shell(r#"exec "$0" "$@" --out "$OUT" --resume auto"#, &out, &[]);
    assert!(again.status.success(), "{}", text(&again));
    assert_same(&expected, &out);
}

/// Runs a script with a disk of its own, of `size`, at `/mnt`; `None` where that is not allowed.
fn on_a_disk(script: &str, size: &str, out: &Path, environment: &[(&str, &str)]) -> Option<Output> {
    let allowed = Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: no mount namespace is to be had here, so there is no small disk to fill");
        return None;
    }
    let script = format!("mount -t tmpfs -o size={size} none /mnt || exit 99\n{script}");
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", &script, env!("CARGO_BIN_EXE_trainer")]).args(settings()).env("OUT", out);
    Some(command.envs(environment.iter().copied()).output().expect("unshare starts"))
}

/// Fills the disk to `LEFT` bytes when `MOMENT` is there, lets the run end, makes room, and lets it go on.
const FILL: &str = r#"
    "$0" "$@" --out /mnt/run 2>"$OUT.said" & P=$!
    while ! ls -d /mnt/run/$MOMENT >/dev/null 2>&1 && kill -0 $P 2>/dev/null; do sleep 0.005; done
    head -c 1000000000 /dev/zero >/mnt/ballast 2>/dev/null
    SIZE=$(stat -c %s /mnt/ballast); KEPT=$((SIZE > LEFT ? SIZE - LEFT : 0))
    truncate -s $KEPT /mnt/ballast
    wait $P; STATUS=$?
    cat "$OUT.said" >&2
    rm /mnt/ballast
    echo "-- $STATUS, room again" >&2
    "$0" "$@" --out /mnt/run --resume auto || exit 3
    cp -r /mnt/run "$OUT"; exit 0"#;

#[test]
fn a_disk_that_fills_up_loses_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let expected = folder.path().join("whole");
    let moments = [
        ("config.toml", 0),
        ("eval.jsonl", 4096),
        ("checkpoints/.tmp-step-000001", 0),
        ("checkpoints/step-000001", 2 << 20),
        ("checkpoints/.tmp-step-000002", 1 << 20),
        ("checkpoints/step-000002", 5 << 20),
        ("checkpoints/.tmp-cycle-1-low", 0),
        ("checkpoints/cycle-1-low", 0),
        ("checkpoints/best", 9 << 20),
        ("checkpoints/step-000005", 100),
        ("checkpoints/.tmp-step-000007", 0),
        ("checkpoints/step-000008", 0),
    ];
    let mut failed = 0;
    for (number, (moment, left)) in moments.into_iter().enumerate() {
        let out = folder.path().join(number.to_string());
        let left = left.to_string();
        let Some(output) = on_a_disk(FILL, "100m", &out, &[("MOMENT", moment), ("LEFT", &left)]) else { return };
        if number == 0 {
            whole(&expected);
        }
        let said = text(&output);
        assert!(output.status.success(), "{moment}: {said}");
        assert!(!said.contains("panicked"), "{moment}: {said}");
        let (before, _) = said.split_once("-- ").unwrap();
        let status = said.split_once("-- ").unwrap().1.split(',').next().unwrap().to_owned();
        match status.as_str() {
            "0" => {}
            "1" => {
                failed += 1;
                let last = before.lines().last().unwrap();
                assert!(last.starts_with("error: ") && last.contains("No space left"), "{moment}: {said}");
            }
            other => panic!("{moment}: it ended with {other}: {said}"),
        }
        assert_same(&expected, &out);
        fs::remove_dir_all(&out).unwrap();
    }
    // How many moments the shell catches is a matter of the machine's speed; most of them here.
    assert!(failed >= 3, "only {failed} of the runs noticed");
}

#[test]
fn a_disk_without_room_is_told_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("none");
    let script = r#""$0" "$@" --out /mnt/run; S=$?; [ -e /mnt/run ] && exit 98; exit $S"#;
    let Some(output) = on_a_disk(script, "12m", &out, &[]) else { return };
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with("error: /mnt/run: disk: ") && said.contains("make room"), "{said}");
    let script = format!("mount -o remount,ro /mnt || exit 97\n{script}");
    let Some(output) = on_a_disk(&script, "100m", &out, &[]) else { return };
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("Read-only file system") && said.lines().count() == 1, "{said}");
}
