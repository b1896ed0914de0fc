//! What sandboxes weigh, for people and for programs.

use casemate_sandbox::memory::{Amount, Kind, Process, Weight};
use serde_json::{Value, json};

use super::Sandbox;

/// The heads of a table's columns: kinds, and what follows them.
const HEADS: [&str; 9] = [
    "GUEST",
    "TRANSLATED",
    "PRIVATE",
    "COPIED",
    "SHARED",
    "CACHE",
    "PSS",
    "RSS",
    "MERGED",
];

/// One sandbox for programs; everything in KiB.
pub(super) fn json(sandbox: &Sandbox) -> Value {
    let memory = &sandbox.memory;
    let processes: Vec<_> = memory.processes.iter().map(process).collect();
    let mut all = weight(&memory.sum());
    all["unmapped"] = json!(memory.unmapped());
    json!({
        "containers": sandbox.containers,
        "guest": memory.guest.map(|guest| json!({
            "size": guest.size,
            "allocated": guest.allocated,
        })),
        "processes": processes,
        "all": all,
    })
}

fn process(process: &Process) -> Value {
    let mut shown = json!({ "role": process.role, "pid": process.pid });
    if let (Value::Object(shown), Value::Object(weight)) = (&mut shown, weight(&process.weight)) {
        shown.extend(weight);
    }
    shown
}

fn weight(weight: &Weight) -> Value {
    let amount = |amount: Amount| json!({ "rss": amount.rss, "pss": amount.pss });
    let kinds = Kind::ALL.map(|kind| (kind.name().to_owned(), amount(weight.of(kind))));
    let all = weight.all();
    json!({
        "pss": all.pss,
        "rss": all.rss,
        "merged": weight.merged,
        "kinds": Value::Object(kinds.into_iter().collect()),
    })
}

/// All sandboxes for people, in MiB: every kind by its proportional size.
pub(super) fn table(sandboxes: &[Sandbox]) -> String {
    let mut text = String::new();
    for sandbox in sandboxes {
        if !text.is_empty() {
            text.push('\n');
        }
        text += &one(sandbox);
    }
    if let [_, _, ..] = sandboxes {
        let mut sum = Weight::default();
        for sandbox in sandboxes {
            sum += &sandbox.memory.sum();
        }
        text += &format!("\n{} sandboxes\n{}", sandboxes.len(), line("all", "", &sum));
    }
    text
}

fn one(sandbox: &Sandbox) -> String {
    let memory = &sandbox.memory;
    let heads: String = HEADS.iter().map(|head| format!("{head:>11}")).collect();
    let mut text = format!(
        "{} (MiB)\n{:<10}{:>8}{heads}\n",
        sandbox.containers.join(", "),
        "PROCESS",
        "PID"
    );
    for process in &memory.processes {
        text += &line(&process.role, &process.pid.to_string(), &process.weight);
    }
    text += &line("all", "", &memory.sum());
    if let Some(guest) = memory.guest {
        text += &format!(
            "guest memory: {} of {} MiB on the host, {} MiB of it mapped by nobody\n",
            mib(guest.allocated),
            mib(guest.size),
            mib(memory.unmapped()),
        );
    }
    text
}

fn line(name: &str, pid: &str, weight: &Weight) -> String {
    let all = weight.all();
    let kinds = Kind::ALL.map(|kind| weight.of(kind).pss);
    let cells = kinds.into_iter().chain([all.pss, all.rss, weight.merged]);
    let cells: String = cells.map(|kib| format!("{:>11}", mib(kib))).collect();
    format!("{name:<10}{pid:>8}{cells}\n")
}

fn mib(kib: u64) -> String {
    format!("{:.1}", kib as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use casemate_sandbox::memory;

    use super::*;

    fn sandbox() -> Sandbox {
        let process = |role: &str, pid| Process {
            role: role.to_owned(),
            pid,
            weight: Weight::default(),
        };
        let memory = memory::Sandbox {
            processes: vec![process("vmm", 7), process("monitor", 8)],
            guest: Some(memory::GuestMemory {
                size: 262_144,
                allocated: 1536,
            }),
        };
        Sandbox {
            containers: vec!["web".to_owned(), "db".to_owned()],
            memory,
        }
    }

    #[test]
    fn every_process_has_its_line_and_every_kind_its_column() {
        let text = table(&[sandbox()]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 6, "{text}");
        assert!(lines[0].starts_with("web, db"), "{text}");
        assert!(
            lines[2].starts_with("vmm") && lines[2].contains(" 7 "),
            "{text}"
        );
        assert!(lines[5].contains("1.5 of 256.0 MiB"), "{text}");
        assert_eq!(lines[1].len(), lines[4].len(), "{text}");
        assert!(table(&[sandbox(), sandbox()]).contains("2 sandboxes"));
        assert_eq!(table(&[]), "");
        assert_eq!(HEADS.len(), Kind::ALL.len() + 3);
    }

    #[test]
    fn programs_find_every_process_and_kind() {
        let told = json(&sandbox());
        assert_eq!(told["processes"][1]["role"], "monitor");
        assert_eq!(told["all"]["unmapped"], 1536);
        for kind in Kind::ALL {
            assert_eq!(told["processes"][0]["kinds"][kind.name()]["pss"], 0);
        }
    }
}
