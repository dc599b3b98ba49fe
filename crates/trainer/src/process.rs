//! What a process that trains sets up before anything else runs.

/// Sets up allocation and candle's threads; to be called first in `main`, while there is one thread.
pub fn prepare() {
    keep_freed_memory();
    outlive_file_limits();
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: nothing else runs yet, so no other thread reads or writes the environment.
        //
        // candle's own pool waits at spinning barriers, which takes the cores from the loops that train (measured: a
        // quarter of the time). Parallel work is ours to share out; candle reads this once, on its first operation.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
}

/// glibc returns blocks above 128 KiB to the system when they are freed, and takes a page fault for each page when the next
/// operation asks for them again (measured: a third more training tokens a second of the embedded policy without that). No size
/// is exempt: an activation of a long sequence has hundreds of MiB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    // SAFETY: no other thread allocates yet; the parameters are those of mallopt(3): no blocks from mmap, and no trimming but by
    // [`return_freed_memory`]. A refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

/// Gives memory that is free to the system, wherever it lies. What is kept for the next operation lies between what is in use,
/// and over many steps of different lengths there would be ever more of it; to be called once a step, which costs less than a
/// hundredth of it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn return_freed_memory() {
    // SAFETY: malloc_trim(3) touches free memory only and may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A file that may not grow further (`ulimit -f`) is then an error of the write, as on a full disk, and not the end of the
/// program.
#[cfg(unix)]
fn outlive_file_limits() {
    // SAFETY: no other thread runs yet, and ignoring a signal runs no code of ours.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

#[cfg(not(unix))]
fn outlive_file_limits() {}

/// Calls `listen`, which takes over the signals that ask a program to stop, and gives those back that were ignored when it
/// started: what runs under `nohup` outlives its terminal.
#[cfg(unix)]
pub fn but_for_ignored<T>(listen: impl FnOnce() -> T) -> T {
    let ignored = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM].map(|signal| {
        // SAFETY: sigaction(2) with no new action only fills in the old one, which is plain data.
        let ignored = unsafe {
            let mut now: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
        };
        (signal, ignored)
    });
    let listening = listen();
    for (signal, _) in ignored.into_iter().filter(|(_, ignored)| *ignored) {
        // SAFETY: ignoring a signal runs no code of ours, and signal(2) may be called at any time.
        unsafe {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
    listening
}

/// Elsewhere nothing is ignored from the start.
#[cfg(not(unix))]
pub fn but_for_ignored<T>(listen: impl FnOnce() -> T) -> T {
    listen()
}

/// Elsewhere the allocator does so by itself.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn return_freed_memory() {}
