//! What a process finds itself with: identity, rights, limits, environment.

use casemate_protocol::agent::{Capabilities, IoPriority, Process, Rlimit, Scheduler, Seccomp};

use crate::guest::{Guest, command, shell};

const SHOW: &str =
    "id -u; id -g; id -G; umask; pwd; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status";

async fn stdout(guest: &Guest, process: Process) -> String {
    let mut spec = guest.spec("");
    spec.process = Some(process).into();
    let (status, stdout, stderr) = guest.run(spec).await;
    assert_eq!(status, 0, "{stderr}");
    stdout
}

#[tokio::test]
async fn user_groups_umask_and_directory_are_set() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let process = Process {
        uid: 33,
        gid: 44,
        additional_gids: vec![5, 6],
        umask: Some(0o27),
        cwd: "/srv/not/there/yet".into(),
        ..shell(SHOW)
    };
    let text = stdout(&guest, process).await;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..5],
        ["33", "44", "44 5 6", "0027", "/srv/not/there/yet"]
    );
    // A user other than root keeps none of what exec does not give back.
    assert!(text.contains("CapEff:\t0000000000000000"));
    assert!(text.contains("CapPrm:\t0000000000000000"));
    assert!(text.contains("CapBnd:\t00000000a80425fb"));
    let text = stdout(&guest, shell(SHOW)).await;
    assert!(text.contains("CapEff:\t00000000a80425fb"), "{text}");
    assert_eq!(text.lines().nth(3), Some("0022"));
}

#[tokio::test]
async fn ambient_capabilities_survive_a_change_of_user() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let net_bind = 1 << 10;
    let process = Process {
        uid: 33,
        no_new_privileges: true,
        capabilities: Some(Capabilities {
            bounding: net_bind,
            effective: net_bind,
            permitted: net_bind,
            inheritable: net_bind,
            ambient: net_bind,
            ..Default::default()
        })
        .into(),
        ..shell(SHOW)
    };
    let text = stdout(&guest, process).await;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(
            text.contains(&format!("{set}:\t0000000000000400")),
            "{text}"
        );
    }
    assert!(text.contains("NoNewPrivs:\t1"));
}

#[tokio::test]
async fn the_environment_is_the_given_one_and_a_home() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let process = |uid, env: &[&str]| Process {
        uid,
        env: env.iter().map(|variable| (*variable).into()).collect(),
        ..command(&["/bin/env"])
    };
    let text = stdout(&guest, process(33, &["A=1", "B=2", "A=3"])).await;
    assert_eq!(text, "A=3\nB=2\nHOME=/var/www\n");
    let text = stdout(&guest, process(0, &["HOME=/given"])).await;
    assert_eq!(text, "HOME=/given\n");
    let text = stdout(&guest, process(1234, &[])).await;
    assert_eq!(text, "HOME=/\n");
}

#[tokio::test]
async fn limits_and_priorities_are_set() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let script = "ulimit -c; ulimit -n; ulimit -Hn; cut -d' ' -f19 /proc/self/stat; cat /proc/self/oom_score_adj; ionice";
    let limit = |resource, soft, hard| Rlimit {
        resource,
        soft,
        hard,
        ..Default::default()
    };
    let process = Process {
        rlimits: vec![
            limit(libc::RLIMIT_CORE, 0, 0),
            limit(libc::RLIMIT_NOFILE, 100, 200),
            // Too little for the agent's own work, were it set too early.
            limit(libc::RLIMIT_FSIZE, 0, 0),
        ],
        oom_score_adj: Some(321),
        scheduler: Some(Scheduler {
            nice: 7,
            ..Default::default()
        })
        .into(),
        io_priority: Some(IoPriority {
            class: 2,
            priority: 6,
            ..Default::default()
        })
        .into(),
        ..shell(script)
    };
    let text = stdout(&guest, process.clone()).await;
    assert_eq!(text, "0\n100\n200\n7\n321\nbest-effort: prio 6\n");
    // An added process gets its own, not those of the first one.
    guest.create("box", guest.spec("sleep 1000")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    assert_eq!(guest.exec("box", process).await.1, text);
}

/// Instructions of a filter: code, jump if true, jump if false, value.
fn filter(instructions: &[(u32, u8, u8, u32)]) -> Seccomp {
    let mut program = Vec::new();
    for &(code, jt, jf, k) in instructions {
        program.extend((code as u16).to_ne_bytes());
        program.extend([jt, jf]);
        program.extend(k.to_ne_bytes());
    }
    Seccomp {
        program,
        ..Default::default()
    }
}

#[tokio::test]
async fn the_seccomp_filter_is_in_force() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    // uname answers ENOLINK, everything else is allowed.
    let refused = libc::SECCOMP_RET_ERRNO | libc::ENOLINK as u32;
    let program = filter(&[
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        (
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_uname as u32,
        ),
        (libc::BPF_RET | libc::BPF_K, 0, 0, refused),
        (libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]);
    for (uid, no_new_privileges) in [(0, true), (0, false), (33, true), (33, false)] {
        let process = Process {
            uid,
            no_new_privileges,
            seccomp: Some(program.clone()).into(),
            ..shell(&format!("uname -s || {SHOW}"))
        };
        let text = stdout(&guest, process).await;
        assert!(text.contains("Seccomp:\t2"), "{text}");
        // What was needed to install it has not stayed.
        let permitted = if uid == 0 {
            "00000000a80425fb"
        } else {
            "0000000000000000"
        };
        assert!(text.contains(&format!("CapPrm:\t{permitted}")), "{text}");
        assert!(
            text.contains(&format!("NoNewPrivs:\t{}", u8::from(no_new_privileges))),
            "{text}"
        );
    }
}

#[tokio::test]
async fn nothing_of_the_agent_is_inherited() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let script = "ls /proc/self/fd; grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ps -o sid | tail -n 1 | tr -d ' '";
    let expected = "0\n1\n2\n3\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\n";
    let text = stdout(&guest, shell(script)).await;
    // 3 is the directory that ls reads.
    assert!(text.starts_with(expected), "{text}");
    guest.create("box", guest.spec("sleep 1000")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    let (_, text, _) = guest.exec("box", shell(script)).await;
    assert!(text.starts_with(expected), "{text}");
}

#[tokio::test]
async fn a_user_can_reopen_its_streams() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let process = Process {
        uid: 33,
        ..shell("echo again > /dev/stdout; echo err > /dev/stderr; cat /dev/stdin")
    };
    assert_eq!(stdout(&guest, process).await, "again\n");
}
