//! Work that can wait.

use std::{fs, io};

use crate::check;

/// As nice(1) knows it: a ninth of what others get of a busy processor. With
/// less, nothing comes to an end on a host that is busy for long.
const NICE: i32 = 10;

/// Lets others go before this process, which has one thread, and its children.
///
/// # Errors
/// Those of setpriority(2).
pub fn lower() -> io::Result<()> {
    lower_thread()?;
    // Where the kernel groups processes by session, a process's own number counts
    // within its session only (sched(7), autogroup).
    match fs::write("/proc/self/autogroup", NICE.to_string()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The priority of its reading and writing follows from it (ioprio_set(2)).
fn lower_thread() -> io::Result<()> {
    // SAFETY: integers only.
    check(i64::from(unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICE)
    }))
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_than_others() {
        let thread = std::thread::spawn(|| {
            lower_thread().unwrap();
            fs::read_to_string("/proc/thread-self/stat").unwrap()
        });
        let stat = thread.join().unwrap();
        // After the name in parentheses: proc_pid_stat(5), field 19.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        assert_eq!(fields.split(' ').nth(16), Some("10"));
    }
}
