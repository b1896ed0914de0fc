//! A conversation with a QEMU that the test plays.

use std::os::unix::net::UnixStream as StdStream;

use proptest::prelude::*;
use tokio::io::AsyncReadExt;

use super::*;
use crate::qemu::commands::{AddFd, DeviceDel, Stop};

const LIMIT: Duration = Duration::from_secs(10);
const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;

/// The far side: greets at once.
struct Player {
    lines: Lines<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Player {
    async fn say(&mut self, line: &str) {
        let line = format!("{line}\r\n");
        self.writer.write_all(line.as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> serde_json::Value {
        let line = self.lines.next().await.unwrap().unwrap();
        serde_json::from_slice(&line).unwrap()
    }
}

async fn converse() -> (Qmp, mpsc::Receiver<String>, Player) {
    let (ours, theirs) = StdStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let (reader, writer) = UnixStream::from_std(theirs).unwrap().into_split();
    let mut player = Player {
        lines: Lines::new(reader),
        writer,
    };
    player.say(GREETING).await;
    let (told, shutdowns) = mpsc::channel(4);
    let qmp = Qmp::connect(ours, told).await.unwrap();
    (qmp, shutdowns, player)
}

#[tokio::test]
async fn a_command_gets_its_own_answer() {
    let (qmp, _, mut player) = converse().await;
    let play = async {
        let request = player.hear().await;
        assert_eq!(request["execute"], "stop");
        assert_eq!(request["arguments"], serde_json::json!({}));
        player
            .say(r#"{"event": "STOP", "timestamp": {"seconds": 1}}"#)
            .await;
        player.say(r#"{"return": {}, "id": 77}"#).await;
        player
            .say(&format!(r#"{{"return": {{}}, "id": {}}}"#, request["id"]))
            .await;
    };
    let (answer, ()) = tokio::join!(qmp.execute(&Stop {}, LIMIT), play);
    answer.unwrap();
}

#[tokio::test]
async fn a_refusal_is_told_in_qemus_words_and_fit_for_a_terminal() {
    let (qmp, _, mut player) = converse().await;
    for (class, missing) in [("GenericError", false), ("DeviceNotFound", true)] {
        let play = async {
            let id = player.hear().await["id"].clone();
            let error = format!(r#"{{"class": "{class}", "desc": "not\u001b[2J this"}}"#);
            player
                .say(&format!(r#"{{"id": {id}, "error": {error}}}"#))
                .await;
        };
        let command = DeviceDel { id: "plug0" };
        let (answer, ()) = tokio::join!(qmp.execute(&command, LIMIT), play);
        let failure = answer.unwrap_err();
        assert_eq!(matches!(failure, Failure::Missing(_)), missing);
        assert_eq!(failure.to_string(), "not\u{fffd}[2J this");
    }
}

#[tokio::test]
async fn a_late_answer_is_not_taken_for_the_next() {
    let (qmp, _, mut player) = converse().await;
    let short = Duration::from_millis(20);
    let failure = qmp.execute(&Stop {}, short).await.unwrap_err();
    assert!(matches!(failure, Failure::Deadline));
    let late = player.hear().await["id"].clone();
    let play = async {
        let id = player.hear().await["id"].clone();
        let refusal = r#"{"class": "GenericError", "desc": "late"}"#;
        player
            .say(&format!(r#"{{"id": {late}, "error": {refusal}}}"#))
            .await;
        player
            .say(&format!(r#"{{"id": {id}, "return": {{}}}}"#))
            .await;
    };
    let (answer, ()) = tokio::join!(qmp.execute(&Stop {}, LIMIT), play);
    answer.unwrap();
}

#[tokio::test]
async fn the_end_fails_what_waits_and_what_comes_later() {
    let (qmp, mut shutdowns, mut player) = converse().await;
    let play = async move {
        player.hear().await;
        let data = r#"{"guest": true, "reason": "guest-reset"}"#;
        player
            .say(&format!(r#"{{"event": "SHUTDOWN", "data": {data}}}"#))
            .await;
    };
    let (answer, ()) = tokio::join!(qmp.execute(&Stop {}, LIMIT), play);
    assert!(matches!(answer.unwrap_err(), Failure::Closed));
    assert_eq!(shutdowns.recv().await.as_deref(), Some("guest-reset"));
    assert_eq!(shutdowns.recv().await, None);
    let later = qmp.execute(&Stop {}, LIMIT).await.unwrap_err();
    assert!(matches!(later, Failure::Closed));
}

#[tokio::test]
async fn a_descriptor_goes_with_its_command() {
    let (ours, theirs) = StdStream::pair().unwrap();
    let mut far = theirs.try_clone().unwrap();
    std::io::Write::write_all(&mut far, format!("{GREETING}\n").as_bytes()).unwrap();
    let (told, _shutdowns) = mpsc::channel(4);
    let qmp = Qmp::connect(ours, told).await.unwrap();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let play = async {
        let socket = UnixStream::from_std(theirs).unwrap();
        let mut bytes = [0; 512];
        let (count, mut descriptors) = socket
            .async_io(Interest::READABLE, || {
                casemate_linux::socket::receive_with_descriptors(socket.as_fd(), &mut bytes)
            })
            .await
            .unwrap();
        let text = std::str::from_utf8(&bytes[..count]).unwrap();
        assert!(text.starts_with(r#"{"execute":"add-fd""#), "{text}");
        let answer = b"{\"return\": {\"fdset-id\": 5, \"fd\": 9}, \"id\": 1}\n";
        socket.try_write(answer).unwrap();
        descriptors.pop().unwrap()
    };
    let command = AddFd {};
    far.set_nonblocking(true).unwrap();
    let (answer, received) = tokio::join!(qmp.execute_with(&command, writer.as_fd(), LIMIT), play);
    assert_eq!(answer.unwrap().fdset_id, 5);
    nix::unistd::write(&received, b"through").unwrap();
    drop((writer, received));
    let mut text = String::new();
    let mut reader = tokio::net::unix::pipe::Receiver::from_owned_fd(reader).unwrap();
    reader.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "through");
}

#[tokio::test]
async fn a_stranger_is_not_taken_for_qemu() {
    for (words, kind) in [
        ("{\"hello\": 1}\n", io::ErrorKind::InvalidData),
        ("SSH-2.0\n", io::ErrorKind::InvalidData),
        ("{\"QMP\"", io::ErrorKind::UnexpectedEof),
    ] {
        let (ours, mut theirs) = StdStream::pair().unwrap();
        std::io::Write::write_all(&mut theirs, words.as_bytes()).unwrap();
        drop(theirs);
        let (told, _shutdowns) = mpsc::channel(4);
        let error = Qmp::connect(ours, told).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), kind, "{words}");
    }
}

/// What a QEMU that a guest has taken over may say.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,80}",
        Just(GREETING.to_owned()),
        (any::<u64>(), "[a-z]{0,8}")
            .prop_map(|(id, word)| format!(r#"{{"return": "{word}", "id": {id}}}"#)),
        (any::<i64>(), "[A-Za-z]{0,20}").prop_map(|(id, class)| format!(
            r#"{{"id": {id}, "error": {{"class": "{class}", "desc": ""}}}}"#
        )),
        ("[A-Z_]{0,20}", "[a-z-]{0,9}").prop_map(|(event, word)| format!(
            r#"{{"event": "{event}", "data": {{"reason": "{word}", "device": 1}}}}"#
        )),
        Just(r#"{"event": "SHUTDOWN", "data": {"reason": "guest-panic"}}"#.to_owned()),
        Just(
            r#"{"event": "DEVICE_DELETED", "data": {"device": "plug0", "path": "/x"}}"#.to_owned()
        ),
    ]
}

proptest! {
    /// Whatever comes, a command ends with an answer or a failure.
    #[test]
    fn no_line_confuses_the_client(lines in prop::collection::vec(line(), 0..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (qmp, mut shutdowns, mut player) = converse().await;
            let play = async move {
                player.hear().await;
                for line in lines {
                    player.say(&line).await;
                }
            };
            let (answer, ()) = tokio::join!(qmp.execute(&Stop {}, LIMIT), play);
            let deadline = matches!(answer, Err(Failure::Deadline));
            assert!(!deadline, "the client waits for a QEMU that is gone");
            while shutdowns.recv().await.is_some() {}
        });
    }
}
