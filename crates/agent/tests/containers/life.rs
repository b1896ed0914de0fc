//! From create to remove, and what happens when somebody ends it early.

use casemate_protocol::agent::{ContainerRef, Empty, SignalProcessRequest};
use ttrpc::Code;

use crate::guest::{Guest, command, limit, outputs, reference, shell, status, within};

async fn signal(guest: &Guest, exec: &str, signal: i32, all: bool) -> ttrpc::Result<()> {
    let request = SignalProcessRequest {
        container_id: "box".into(),
        exec_id: exec.into(),
        signal: signal as u32,
        all,
        ..Default::default()
    };
    guest
        .agent
        .signal_process(limit(), &request)
        .await
        .map(drop)
}

fn code(error: ttrpc::Error) -> Code {
    status(error).0
}

#[tokio::test]
async fn a_container_runs_and_tells_its_exit_code() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let (status, stdout, stderr) = guest
        .run(guest.spec("echo out; echo err >&2; exit 7"))
        .await;
    assert_eq!(
        (status, stdout.as_str(), stderr.as_str()),
        (7, "out\n", "err\n")
    );
    // Nothing is left: the same id and cgroup can be used again.
    let (status, stdout, _) = guest.run(guest.spec("echo again")).await;
    assert_eq!((status, stdout.as_str()), (0, "again\n"));
    assert!(!guest.cgroup().join("pod/box").exists());
}

#[tokio::test]
async fn nothing_runs_before_the_start() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let marker = guest.rootfs().join("marker");
    guest
        .create("box", guest.spec("touch /marker"))
        .await
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!marker.exists());
    guest.start_process("box", "").await.unwrap();
    assert_eq!(guest.wait("box", "").await.exit_status, 0);
    assert!(marker.exists());
    assert_eq!(
        code(guest.start_process("box", "").await.unwrap_err()),
        Code::FAILED_PRECONDITION
    );
}

#[tokio::test]
async fn a_created_container_can_be_told_to_end() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest.create("box", guest.spec("true")).await.unwrap();
    signal(&guest, "", libc::SIGTERM, false).await.unwrap();
    assert_eq!(guest.wait("box", "").await.exit_status, 143);
    assert_eq!(
        code(signal(&guest, "", libc::SIGTERM, false).await.unwrap_err()),
        Code::NOT_FOUND
    );
    guest.remove("box").await.unwrap();
}

#[tokio::test]
async fn signals_reach_the_process_they_are_for() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest
        .create(
            "box",
            guest.spec("trap 'exit 9' TERM; while :; do sleep 0.01; done"),
        )
        .await
        .unwrap();
    guest.start_process("box", "").await.unwrap();
    let sleep = || command(&["sleep", "1000"]);
    guest.add("box", "one", sleep(), outputs()).await.unwrap();
    guest.start_process("box", "one").await.unwrap();
    signal(&guest, "one", libc::SIGTERM, false).await.unwrap();
    assert_eq!(guest.wait("box", "one").await.exit_status, 143);

    guest.add("box", "two", sleep(), outputs()).await.unwrap();
    guest.start_process("box", "two").await.unwrap();
    signal(&guest, "", libc::SIGUSR1, true).await.unwrap();
    // The shell is PID 1 and has no handler for it.
    assert_eq!(guest.wait("box", "two").await.exit_status, 138);
    // The handler must be there: signals before that are lost on a PID 1.
    let ended = async {
        loop {
            let _ = signal(&guest, "", libc::SIGTERM, false).await;
            let wait = guest.wait("box", "");
            let patience = std::time::Duration::from_millis(200);
            if let Ok(ended) = tokio::time::timeout(patience, wait).await {
                return ended;
            }
        }
    };
    assert_eq!(within(ended).await.exit_status, 9);
}

#[tokio::test]
async fn removal_kills_what_is_left() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest
        .create("box", guest.spec("sleep 1000 & sleep 1000 & wait"))
        .await
        .unwrap();
    guest.start_process("box", "").await.unwrap();
    guest
        .add("box", "one", command(&["sleep", "1000"]), outputs())
        .await
        .unwrap();
    guest.start_process("box", "one").await.unwrap();
    let request = ContainerRef {
        container_id: "box".into(),
        ..Default::default()
    };
    let listed = within(async {
        loop {
            let listed = guest
                .agent
                .list_processes(limit(), &request)
                .await
                .unwrap()
                .processes;
            if listed.len() == 4 {
                return listed;
            }
        }
    })
    .await;
    assert_eq!(listed[0].exec_id.as_deref(), Some(""));
    let added: Vec<_> = listed
        .iter()
        .filter_map(|process| process.exec_id.as_deref())
        .collect();
    assert_eq!(added, ["", "one"]);

    let one = reference("box", "one");
    let error = guest.agent.remove_process(limit(), &one).await.unwrap_err();
    assert_eq!(code(error), Code::FAILED_PRECONDITION);
    let waiting = reference("box", "");
    let waiting = guest.agent.wait_process(limit(), &waiting);
    let (ended, removed) = tokio::join!(waiting, guest.remove("box"));
    removed.unwrap();
    assert_eq!(ended.unwrap().exit_status, 137);
    assert!(!guest.cgroup().join("pod/box").exists());
    assert_eq!(
        code(guest.remove("box").await.unwrap_err()),
        Code::NOT_FOUND
    );
}

#[tokio::test]
async fn orphans_are_reaped() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut spec = guest.spec("exec sleep 1000");
    // Without a PID namespace of its own its orphans come to the agent.
    spec.namespaces.remove(0);
    guest.create("box", spec).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    let orphan = shell("(exec sleep 0.05) & echo $!");
    let (_, pid, _) = guest.exec("box", orphan).await;
    let gone = format!(
        "while [ -e /proc/{} ]; do sleep 0.01; done; echo gone",
        pid.trim()
    );
    let (_, stdout, _) = guest.exec("box", shell(&gone)).await;
    assert_eq!(stdout, "gone\n");
}

#[tokio::test]
async fn the_end_of_the_host_is_the_end_of_everything() {
    let Some(mut guest) = Guest::start().await else {
        return;
    };
    guest
        .create("box", guest.spec("trap '' TERM; sleep 1000"))
        .await
        .unwrap();
    guest.start_process("box", "").await.unwrap();
    // The only control connection goes away.
    let (replacement, _) = tokio::net::UnixStream::pair().unwrap();
    guest.agent = casemate_protocol::agent_ttrpc::AgentClient::new(
        ttrpc::asynchronous::Client::new(ttrpc::asynchronous::transport::Socket::new(replacement)),
    );
    guest.ended().await;
    assert!(!guest.cgroup().join("pod/box").exists());
}

#[tokio::test]
async fn a_shutdown_ends_everything_and_is_answered() {
    let Some(mut guest) = Guest::start().await else {
        return;
    };
    guest.create("box", guest.spec("sleep 1000")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    guest.agent.shutdown(limit(), &Empty::new()).await.unwrap();
    assert!(!guest.cgroup().join("pod/box").exists());
    let late = guest.create("late", guest.spec("true")).await.unwrap_err();
    assert_eq!(code(late), Code::FAILED_PRECONDITION);
    guest.ended().await;
}

#[tokio::test]
async fn many_containers_leave_nothing() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let descriptors = || {
        let pid = std::fs::read_to_string(guest.cgroup().join("agent/cgroup.procs")).unwrap();
        let agent = pid.lines().find(|pid| {
            std::fs::read_link(format!("/proc/{pid}/exe"))
                .is_ok_and(|exe| exe.ends_with("casemate-agent"))
        });
        std::fs::read_dir(format!("/proc/{}/fd", agent.unwrap()))
            .unwrap()
            .count()
    };
    let (_, _, _) = guest.run(guest.spec("true")).await;
    let before = descriptors();
    for n in 0..30 {
        let (status, stdout, _) = guest.run(guest.spec(&format!("echo {n}"))).await;
        assert_eq!((status, stdout), (0, format!("{n}\n")));
    }
    // Streams end a moment after the container.
    within(async {
        while descriptors() > before {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}
