//! Logging programs: a client may name one as the place for a container's
//! output (`binary:///path?name=value`). It reads standard output at descriptor
//! 3 and standard error at 4, and closes 5 when it is ready (containerd's
//! runtime/v2/README.md, "Logging").

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use casemate_linux::{
    process::Child,
    program::{self, Start},
    reactor,
};
use tokio::time::timeout;

/// How long a logging program may take to be ready.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the program writes what it has to say itself: nowhere. Its place is
/// its own business.
const NOWHERE: [Option<std::os::fd::BorrowedFd<'static>>; 3] = [None; 3];

/// For whom the program logs.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    /// containerd's namespace.
    pub(super) namespace: String,
    /// Id of the container.
    pub(super) container: String,
}

/// Starts the program that the rest of a `binary://` address names, and waits
/// until it is ready. Returns our ends of the two streams.
///
/// # Errors
/// When it cannot be executed, ends at once or is not ready in time.
pub(super) async fn start(address: &str, subject: &Subject) -> io::Result<[OwnedFd; 2]> {
    let (path, line) = command(address);
    let environment = [
        format!("CONTAINER_ID={}", subject.container),
        format!("CONTAINER_NAMESPACE={}", subject.namespace),
    ];
    let (output, to_output) = io::pipe()?;
    let (errors, to_errors) = io::pipe()?;
    let (ready, to_ready) = io::pipe()?;
    let child = {
        let descriptors = [output.as_fd(), errors.as_fd(), to_ready.as_fd()];
        let started = Start {
            stdio: NOWHERE,
            descriptors: &descriptors,
            environment: &environment,
            new_session: true,
            ..Start::default()
        };
        program::start(&path, &line, started)?
    };
    drop((output, errors, to_ready));
    await_readiness(ready, &child).await?;
    tokio::spawn(reap(child));
    Ok([to_output, to_errors].map(|end: PipeWriter| end.into()))
}

async fn await_readiness(ready: PipeReader, child: &Child) -> io::Result<()> {
    let ready = reactor::register_readable(ready.into())?;
    // It becomes readable when the other end is closed.
    let closed = timeout(PATIENCE, ready.readable()).await;
    if closed.is_err() {
        child.signal(libc::SIGKILL)?;
        child.wait()?;
        return Err(io::ErrorKind::TimedOut.into());
    }
    match child.try_wait()? {
        None => Ok(()),
        Some(exit) => Err(io::Error::other(format!("the program {exit} at once"))),
    }
}

async fn reap(child: Child) {
    let watch = || reactor::register_readable(child.pidfd().try_clone_to_owned()?);
    let ended: io::Result<()> = async {
        watch()?.readable().await?.retain_ready();
        let exit = child.try_wait()?;
        tracing::debug!(pid = child.pid(), ?exit, "a logging program has ended");
        Ok(())
    }
    .await;
    if let Err(error) = ended {
        tracing::warn!(pid = child.pid(), %error, "a logging program cannot be reaped");
    }
}

/// The program, and its arguments with its own name first: each `name=value` of
/// the address is two of them, a name alone is one.
fn command(address: &str) -> (String, Vec<String>) {
    let (path, query) = address.split_once('?').unwrap_or((address, ""));
    let path = decode(path);
    let mut line = vec![path.clone()];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        line.push(decode(name));
        if !value.is_empty() {
            line.push(decode(value));
        }
    }
    (path, line)
}

/// Takes back the escapes of an address (RFC 3986, section 2.1, and `+` for a
/// blank as forms have it).
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|_| first == b'%');
        let digits = escaped.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(if first == b'+' { b' ' } else { first });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn addresses_are_command_lines() {
        let (path, line) = command("/usr/bin/log?file=/var/log/a%20b&debug&empty=");
        assert_eq!(path, "/usr/bin/log");
        assert_eq!(
            line,
            ["/usr/bin/log", "file", "/var/log/a b", "debug", "empty"]
        );
        assert_eq!(decode("a+b%2Fc%zz%4"), "a b/c%zz%4");
    }

    fn script(folder: &std::path::Path, text: &str) -> String {
        let path = folder.join("logger");
        fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    fn subject() -> Subject {
        Subject {
            namespace: "default".into(),
            container: "web".into(),
        }
    }

    #[tokio::test]
    async fn a_program_gets_both_streams() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let text =
            "exec 5>&-; { echo $CONTAINER_NAMESPACE/$CONTAINER_ID $1; cat <&3; cat <&4; } >$2";
        let address = format!("{}?file={}", script(folder.path(), text), log.display());
        let [out, err] = start(&address, &subject()).await.unwrap();
        fs::File::from(out).write_all(b"out\n").unwrap();
        fs::File::from(err).write_all(b"err\n").unwrap();
        let expected = "default/web file\nout\nerr\n";
        for _ in 0..500 {
            if fs::read_to_string(&log).is_ok_and(|text| text == expected) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}", fs::read_to_string(&log));
    }

    #[tokio::test]
    async fn one_that_ends_at_once_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let address = script(folder.path(), "exit 3");
        let started = start(&address, &subject()).await;
        // It may be seen a moment before it has ended.
        if let Err(error) = started {
            assert!(error.to_string().contains("exited with code 3"), "{error}");
        }
        let error = start("/no/such/logger", &subject()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
