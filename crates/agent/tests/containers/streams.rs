//! Bytes in and out: nothing lost, nothing held back, pressure passed on.

use std::time::Duration;

use casemate_protocol::{
    agent::{AddProcessRequest, Streams},
    stream::Stream,
};
use protobuf::MessageField;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::guest::{Guest, command, limit, outputs, read_all, shell, within, write_all};

fn all() -> Streams {
    Streams {
        stdin: true,
        ..outputs()
    }
}

#[tokio::test]
async fn a_lot_of_bytes_pass_unchanged() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut spec = guest.spec("cat");
    spec.streams = Some(all()).into();
    guest.create("box", spec).await.unwrap();
    let stdin = guest.stream("box", "", Stream::STDIN).await.unwrap();
    let mut stdout = guest.stream("box", "", Stream::STDOUT).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    let sent: Vec<u8> = (0..16_u32 << 20)
        .map(|n| (n.wrapping_mul(2654435761) >> 13) as u8)
        .collect();
    let mut received = Vec::new();
    let (written, read) =
        within(async { tokio::join!(write_all(stdin, &sent), stdout.read_to_end(&mut received)) })
            .await;
    written.unwrap();
    read.unwrap();
    assert!(
        sent == received,
        "{} bytes sent, {} received",
        sent.len(),
        received.len()
    );
    assert_eq!(guest.wait("box", "").await.exit_status, 0);
}

#[tokio::test]
async fn a_host_that_does_not_read_stops_the_writer() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let counting = "while :; do head -c 4096 /dev/zero; echo x >> /count; done";
    guest.create("box", guest.spec(counting)).await.unwrap();
    let mut stdout = guest.stream("box", "", Stream::STDOUT).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    let path = guest.rootfs().join("count");
    let count = || std::fs::metadata(&path).map_or(0, |file| file.len());
    // It stops when all buffers are full.
    let stopped = async {
        loop {
            let before = count();
            tokio::time::sleep(Duration::from_millis(300)).await;
            if before > 0 && count() == before {
                return before;
            }
        }
    };
    let stopped = within(stopped).await;
    stdout.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
    within(async {
        while count() == stopped {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_host_that_goes_away_is_a_broken_pipe() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest
        .create(
            "box",
            guest.spec("while echo tick; do sleep 0.01; done; exit 3"),
        )
        .await
        .unwrap();
    let mut stdout = guest.stream("box", "", Stream::STDOUT).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    let mut some = [0; 5];
    stdout.read_exact(&mut some).await.unwrap();
    drop(stdout);
    // echo is a builtin: PID 1 gets SIGPIPE, which it ignores, and EPIPE.
    assert_eq!(guest.wait("box", "").await.exit_status, 3);
}

#[tokio::test]
async fn a_half_close_of_an_output_by_the_host_changes_nothing() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest
        .create("box", guest.spec("sleep 0.1; echo late"))
        .await
        .unwrap();
    let mut stdout = guest.stream("box", "", Stream::STDOUT).await.unwrap();
    stdout.shutdown().await.unwrap();
    guest.start_process("box", "").await.unwrap();
    assert_eq!(read_all(stdout).await, "late\n");
}

#[tokio::test]
async fn streams_may_be_attached_after_the_end() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest.create("box", guest.spec("echo early")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    assert_eq!(guest.wait("box", "").await.exit_status, 0);
    let stdout = guest.stream("box", "", Stream::STDOUT).await.unwrap();
    assert_eq!(read_all(stdout).await, "early\n");
    // Each is there once, and only what was asked for.
    assert!(guest.stream("box", "", Stream::STDOUT).await.is_err());
    assert!(guest.stream("box", "", Stream::STDIN).await.is_err());
}

/// The host asks for the streams while the guest is still making the process.
#[tokio::test]
async fn streams_may_be_attached_before_the_process_is_made() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest.create("box", guest.spec("sleep 1000")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    let early = guest.stream("box", "late", Stream::STDOUT);
    let made = async {
        // The question is in the guest by then.
        tokio::time::sleep(Duration::from_millis(100)).await;
        guest
            .add("box", "late", shell("echo here"), all())
            .await
            .unwrap();
        guest.start_process("box", "late").await.unwrap();
    };
    let (stdout, ()) = tokio::join!(early, made);
    assert_eq!(read_all(stdout.unwrap()).await, "here\n");
    // For a process that never comes it waits as long as the host does.
    let never = guest.stream("box", "never", Stream::STDOUT);
    let waited = tokio::time::timeout(Duration::from_millis(200), never).await;
    assert!(waited.is_err());
}

#[tokio::test]
async fn an_added_process_may_start_at_once() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest.create("box", guest.spec("sleep 1000")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    let add = |exec: &str, args: &[&str]| AddProcessRequest {
        container_id: "box".into(),
        exec_id: exec.into(),
        process: MessageField::some(command(args)),
        streams: MessageField::some(outputs()),
        start: true,
        ..Default::default()
    };
    let request = add("one", &["echo", "at once"]);
    let started = guest.agent.add_process(limit(), &request);
    let (stdout, started) = tokio::join!(guest.stream("box", "one", Stream::STDOUT), started);
    started.unwrap();
    assert_eq!(read_all(stdout.unwrap()).await, "at once\n");
    assert_eq!(guest.wait("box", "one").await.exit_status, 0);
    // One that cannot leaves nothing: its id is free.
    for _ in 0..2 {
        let request = add("two", &["no-such-program"]);
        let refused = guest.agent.add_process(limit(), &request).await;
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("executable file not found"), "{text}");
    }
}

#[tokio::test]
async fn what_runs_on_in_the_background_does_not_hold_an_added_process() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest.create("box", guest.spec("sleep 1000")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    let script = "head -c 40000 /dev/zero | tr '\\0' x; (sleep 1000; echo never) & exit 4";
    let (status, stdout, _) = guest.exec("box", shell(script)).await;
    assert_eq!((status, stdout.len()), (4, 40000));
    let endless = "(while :; do echo y; done) & exit 5";
    let (status, _, _) = guest.exec("box", shell(endless)).await;
    assert_eq!(status, 5);
}

#[tokio::test]
async fn input_of_an_added_process_ends_with_the_hosts() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest.create("box", guest.spec("sleep 1000")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    guest
        .add("box", "sum", shell("wc -c"), all())
        .await
        .unwrap();
    let stdin = guest.stream("box", "sum", Stream::STDIN).await.unwrap();
    let stdout = guest.stream("box", "sum", Stream::STDOUT).await.unwrap();
    guest.start_process("box", "sum").await.unwrap();
    write_all(stdin, &[b'x'; 100_000]).await.unwrap();
    assert_eq!(read_all(stdout).await, "100000\n");
    // Input that nobody reads does not hang the host.
    guest
        .add("box", "deaf", shell("exec sleep 0.1"), all())
        .await
        .unwrap();
    let mut stdin = guest.stream("box", "deaf", Stream::STDIN).await.unwrap();
    guest.start_process("box", "deaf").await.unwrap();
    within(async { while stdin.write_all(&[0; 4096]).await.is_ok() {} }).await;
}

#[tokio::test]
async fn a_waiting_container_does_not_keep_others_streams_open() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let mut spec = guest.spec("cat");
    spec.streams = Some(all()).into();
    guest.create("box", spec).await.unwrap();
    let mut second = guest.spec("true");
    second.cgroup.mut_or_insert_default().path = "pod/other".into();
    guest.create("other", second).await.unwrap();
    let stdin = guest.stream("box", "", Stream::STDIN).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    write_all(stdin, b"").await.unwrap();
    assert_eq!(guest.wait("box", "").await.exit_status, 0);
}
