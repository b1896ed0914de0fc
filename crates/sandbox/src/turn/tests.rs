//! Turns among tasks of one process, and between processes that are killed.

use std::{cell::RefCell, os::unix::fs::PermissionsExt, rc::Rc, time::Instant};

use casemate_linux::process::{Birth, Child, spawn};
use nix::libc;
use tokio::{
    sync::oneshot,
    task::{LocalSet, spawn_local},
};

use super::*;

/// Longer than anything that is waited for here.
const PATIENCE: Duration = Duration::from_secs(20);

/// Short enough to be waited for.
const SOON: Duration = Duration::from_millis(200);

fn turns(folder: &tempfile::TempDir, slots: u32, limit: Duration) -> Turns {
    Turns {
        directory: folder.path().join("turns"),
        slots,
        limit,
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("t").tempdir().unwrap()
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(PATIENCE, test).await.unwrap() })
}

/// Whether there is no turn to be had at once.
async fn is_full(turns: &Turns) -> bool {
    timeout(SOON, turns.next()).await.is_err()
}

/// A process that has a turn when this returns, until it is killed.
fn other_process(turns: &Turns) -> Child {
    let (read, write) = nix::unistd::pipe().unwrap();
    let child = spawn(Birth::default(), || {
        run(async {
            let _slot = turns.next().await.unwrap();
            nix::unistd::write(&write, b"!").unwrap();
            std::future::pending::<i32>().await
        })
    });
    assert_eq!(nix::unistd::read(&read, &mut [0]).unwrap(), 1);
    child.unwrap()
}

/// How many wait to be the next, as the kernel tells.
fn in_line(turns: &Turns) -> usize {
    let Ok(line) = fs::metadata(turns.directory.join("line")) else {
        return 0;
    };
    let line = format!(":{} ", line.ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let waits = |lock: &&str| lock.contains("-> FLOCK") && lock.contains(&line);
    locks.lines().filter(waits).count()
}

#[test]
fn as_many_have_a_turn_as_there_are_slots() {
    let folder = folder();
    run(async {
        let turns = turns(&folder, 2, PATIENCE);
        let first = turns.wait().await.unwrap();
        let _second = turns.wait().await.unwrap();
        assert!(is_full(&turns).await);
        drop(first);
        let _third = turns.wait().await.unwrap();
        assert!(is_full(&turns).await);
    });
    let mut left: Vec<_> = fs::read_dir(folder.path().join("turns")).unwrap().collect();
    let left = left.drain(..).map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, ["0", "1", "line"]);
}

#[test]
fn turns_come_in_the_order_of_the_line() {
    let folder = folder();
    run(async {
        let turns = Rc::new(turns(&folder, 1, PATIENCE));
        let first = turns.wait().await.unwrap();
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut waiting = Vec::new();
        for number in 0..6 {
            let (own, order) = (Rc::clone(&turns), Rc::clone(&order));
            waiting.push(spawn_local(async move {
                let turn = own.wait().await;
                assert!(turn.is_some());
                order.borrow_mut().push(number);
            }));
            while in_line(&turns) < number {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        assert!(order.borrow().is_empty());
        drop(first);
        for one in waiting {
            one.await.unwrap();
        }
        assert_eq!(*order.borrow(), [0, 1, 2, 3, 4, 5]);
    });
}

#[test]
fn a_turn_ends_with_the_process_that_has_it() {
    let folder = folder();
    let turns = turns(&folder, 2, PATIENCE);
    let holders = [other_process(&turns), other_process(&turns)];
    run(async {
        let (gone, over) = oneshot::channel::<()>();
        let begin = Instant::now();
        let killer = spawn_local(async move {
            assert!(timeout(SOON, over).await.is_err());
            holders[1].signal(libc::SIGKILL).unwrap();
            holders
        });
        let turn = turns.wait().await;
        assert!(turn.is_some());
        assert!(begin.elapsed() >= SOON);
        drop(gone);
        for holder in killer.await.unwrap() {
            holder.signal(libc::SIGKILL).unwrap();
            holder.wait().unwrap();
        }
    });
}

#[test]
fn a_place_in_the_line_ends_with_its_process_and_with_who_waits() {
    let folder = folder();
    let turns = turns(&folder, 1, PATIENCE);
    let holder = other_process(&turns);
    let next = spawn(Birth::default(), || {
        run(async { turns.next().await.map_or(1, |_| 0) })
    });
    let next = next.unwrap();
    run(async {
        // The other process is the next, and this one behind it gives up.
        tokio::time::sleep(SOON).await;
        assert!(is_full(&turns).await);
        next.signal(libc::SIGKILL).unwrap();
        next.wait().unwrap();
        assert!(is_full(&turns).await);
        holder.signal(libc::SIGKILL).unwrap();
        holder.wait().unwrap();
        assert!(!is_full(&turns).await);
    });
}

#[test]
fn nobody_waits_or_has_a_turn_for_longer_than_the_limit() {
    let folder = folder();
    run(async {
        let holder = turns(&folder, 1, PATIENCE);
        let first = holder.wait().await.unwrap();
        let turns = turns(&folder, 1, SOON);
        let begin = Instant::now();
        // One waits for a slot, the other in the line.
        let waited = tokio::join!(turns.wait(), turns.wait());
        assert!(waited.0.is_none() && waited.1.is_none());
        assert!(begin.elapsed() >= SOON);
        drop(first);
        let _hung = turns.wait().await.unwrap();
        let begin = Instant::now();
        assert!(holder.wait().await.is_some());
        assert!(begin.elapsed() >= SOON / 2);
    });
}

#[test]
fn what_is_wrong_with_the_folder_fails_no_start() {
    let folder = folder();
    run(async {
        let turns = turns(&folder, 1, PATIENCE);
        fs::create_dir(&turns.directory).unwrap();
        let all = fs::Permissions::from_mode(0o777);
        fs::set_permissions(&turns.directory, all).unwrap();
        assert!(turns.wait().await.is_none());
        let own = fs::Permissions::from_mode(0o700);
        fs::set_permissions(&turns.directory, own).unwrap();
        fs::write(turns.directory.join("0"), "no pipe").unwrap();
        assert!(turns.wait().await.is_none());
        fs::remove_dir_all(&turns.directory).unwrap();
        fs::write(&turns.directory, "no folder").unwrap();
        assert!(turns.wait().await.is_none());
    });
}

#[test]
fn there_are_turns_where_they_are_wanted() {
    let slots = |processors, each| Turns::of_host(processors, each).map(|turns| turns.slots);
    assert_eq!(slots(4, 2), Some(8));
    assert_eq!(slots(4, 0), None);
}
