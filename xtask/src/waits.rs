//! Nobody waits for time to pass where something could be waited for: what a
//! sandbox is made of starts without a sleep and is idle without a timer.

use std::fs;
use std::path::Path;

use crate::workspace::root;

/// What lets time pass.
const WAITS: [&str; 3] = ["sleep(", "interval(", "interval_at("];

/// Files that may, and why nothing else can be waited for there. None of them is
/// on the way of a start on a host without systemd, and none repeats while
/// nothing happens.
const ALLOWED: [(&str, &str); 18] = [
    ("agent/src/disks.rs", "a disk has no news of its last user"),
    ("agent/src/names/mod.rs", "after accept has failed"),
    (
        "agent/src/sandbox.rs",
        "once, behind an answer that is to leave first",
    ),
    ("agent/src/session.rs", "how long a hang-up is waited for"),
    (
        "cli/src/commands/delete.rs",
        "of a container that somebody is making",
    ),
    ("cli/src/commands/events.rs", "as often as the user says"),
    (
        "cli/src/commands/monitor/pod.rs",
        "how long a pod is waited for",
    ),
    (
        "hypervisor/src/console.rs",
        "holds up a guest that writes without end",
    ),
    ("linux/src/tsc.rs", "measures a clock, once on a host"),
    (
        "sandbox/src/cgroup.rs",
        "rmdir has no news of the last process",
    ),
    (
        "sandbox/src/cgroup/scope.rs",
        "systemd answers before it has done it",
    ),
    ("sandbox/src/network/loopback.rs", "after accept has failed"),
    (
        "sandbox/src/network/mod.rs",
        "how long an interface may be unfinished",
    ),
    ("sandbox/src/network/names.rs", "after accept has failed"),
    (
        "sandbox/src/oom/kernel.rs",
        "the kernel tells nobody at its limit",
    ),
    (
        "sandbox/src/tasks/machine.rs",
        "how long a container is waited for",
    ),
    ("shim/src/containerd/events.rs", "while containerd is away"),
    (
        "shim/src/sandbox/end.rs",
        "of a container that somebody is making",
    ),
];

/// The text of a file without its comments and its tests.
fn program(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = text.lines().map(|line| line.split("//").next());
    lines.map(Option::unwrap_or_default).collect()
}

fn waits(text: &str) -> bool {
    let text = program(text);
    WAITS.iter().any(|wait| text.contains(wait))
}

/// Calls `look` with each source file of the crates that sandboxes are made of.
fn each_source(folder: &Path, look: &mut impl FnMut(&str, &str)) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            if name != "tests" && name != "bench" {
                each_source(&path, look);
            }
        } else if path.extension().is_some_and(|kind| kind == "rs") && name != "tests.rs" {
            let place = path.strip_prefix(root().join("crates")).unwrap();
            look(place.to_str().unwrap(), &fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn time_passes_only_where_nothing_else_can_be_waited_for() {
    let mut wrong = Vec::new();
    each_source(&root().join("crates"), &mut |place, text| {
        let allowed = ALLOWED.iter().any(|(file, _)| *file == place);
        match (waits(text), allowed) {
            (true, false) => wrong.push(format!("{place} waits for time to pass")),
            (false, true) => wrong.push(format!("{place} has no need to be allowed to wait")),
            _ => {}
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn comments_and_tests_may_speak_of_it() {
    assert!(waits("fn f() {\n    tokio::time::sleep(LIMIT).await;\n}"));
    assert!(!waits(
        "// sleep(1)\n#[cfg(test)]\nmod tests { fn f() { sleep(1) } }"
    ));
}
