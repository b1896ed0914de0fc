//! Processes with a terminal.

use casemate_protocol::{
    agent::{Process, ResizeTerminalRequest, Streams},
    stream::Stream,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::guest::{Guest, limit, read_all, shell, within};

fn with_terminal(script: &str) -> Process {
    Process {
        terminal: true,
        columns: 101,
        rows: 37,
        ..shell(script)
    }
}

fn streams() -> Streams {
    Streams {
        stdin: true,
        stdout: true,
        ..Default::default()
    }
}

async fn resize(guest: &Guest, exec: &str, columns: u32, rows: u32) -> ttrpc::Result<()> {
    let request = ResizeTerminalRequest {
        container_id: "box".into(),
        exec_id: exec.into(),
        columns,
        rows,
        ..Default::default()
    };
    guest
        .agent
        .resize_terminal(limit(), &request)
        .await
        .map(drop)
}

#[tokio::test]
async fn a_container_with_a_terminal_has_a_console() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let script =
        "tty; stty size; ls -l /dev/console | cut -c1-10; exec 3<>/dev/tty && echo controlling";
    let mut spec = guest.spec("");
    spec.process = Some(with_terminal(script)).into();
    spec.streams = Some(streams()).into();
    guest.create("box", spec).await.unwrap();
    let stdout = guest.stream("box", "", Stream::STDOUT).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    let text = read_all(stdout).await;
    assert_eq!(
        text,
        "/dev/pts/0\r\n37 101\r\ncrw--w----\r\ncontrolling\r\n"
    );
    assert_eq!(guest.wait("box", "").await.exit_status, 0);
}

#[tokio::test]
async fn no_last_bytes_of_a_terminal_are_lost() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest.create("box", guest.spec("sleep 1000")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    for n in 0..20 {
        let exec = format!("e{n}");
        let script = "yes | head -n 5000; (sleep 1000) & echo last";
        guest
            .add("box", &exec, with_terminal(script), streams())
            .await
            .unwrap();
        let stdout = guest.stream("box", &exec, Stream::STDOUT).await.unwrap();
        guest.start_process("box", &exec).await.unwrap();
        let text = read_all(stdout).await;
        assert_eq!(text.len(), 5000 * 3 + 6, "run {n}");
        assert!(text.ends_with("last\r\n"));
    }
}

#[tokio::test]
async fn a_terminal_is_typed_at_and_resized() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest.create("box", guest.spec("sleep 1000")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    let script = "stty -echo; trap 'stty size' WINCH; echo ready; read line; echo \"got $line\"; while :; do sleep 0.05; done";
    guest
        .add("box", "sh", with_terminal(script), streams())
        .await
        .unwrap();
    let mut stdin = guest.stream("box", "sh", Stream::STDIN).await.unwrap();
    let mut stdout = guest.stream("box", "sh", Stream::STDOUT).await.unwrap();
    guest.start_process("box", "sh").await.unwrap();
    let mut seen = String::new();
    let mut until = async |mark: &str| {
        let mut bytes = [0; 256];
        while !seen.contains(mark) {
            let count = within(stdout.read(&mut bytes)).await.unwrap();
            assert_ne!(count, 0, "{seen:?}");
            seen.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
    };
    until("ready").await;
    stdin.write_all(b"hello\n").await.unwrap();
    until("got hello").await;
    resize(&guest, "sh", 50, 20).await.unwrap();
    until("20 50").await;
    // Control-C from the terminal ends the foreground process.
    stdin.write_all(&[3]).await.unwrap();
    assert_eq!(guest.wait("box", "sh").await.exit_status, 130);
    assert!(resize(&guest, "", 50, 20).await.is_err());
    assert!(resize(&guest, "sh", 70_000, 20).await.is_err());
}

#[tokio::test]
async fn a_terminal_that_nobody_reads_any_more_hangs_up() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    guest.create("box", guest.spec("sleep 1000")).await.unwrap();
    guest.start_process("box", "").await.unwrap();
    let script = "trap 'exit 7' HUP; echo ready; while :; do sleep 0.05; done";
    guest
        .add("box", "sh", with_terminal(script), streams())
        .await
        .unwrap();
    let stdin = guest.stream("box", "sh", Stream::STDIN).await.unwrap();
    let mut stdout = guest.stream("box", "sh", Stream::STDOUT).await.unwrap();
    guest.start_process("box", "sh").await.unwrap();
    let mut shown = [0; 7];
    within(stdout.read_exact(&mut shown)).await.unwrap();
    assert_eq!(&shown, b"ready\r\n");
    // The end of input alone is none of the terminal.
    drop(stdin);
    resize(&guest, "sh", 50, 20).await.unwrap();
    drop(stdout);
    assert_eq!(guest.wait("box", "sh").await.exit_status, 7);
}
