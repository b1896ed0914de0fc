//! What is asked from inside a network namespace, and of a web server there.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// Does `work` in a thread of its own, which is in that network namespace.
pub fn inside<T: Send>(
    namespace: impl AsRef<Path>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let path = namespace.as_ref();
    let namespace = File::open(path).with_context(|| path.display().to_string())?;
    let working = || {
        setns(namespace, CloneFlags::CLONE_NEWNET).with_context(|| path.display().to_string())?;
        work()
    };
    thread::scope(|scope| scope.spawn(working).join())
        .map_err(|_| anyhow!("a thread in {} panicked", path.display()))?
}

/// What a web server says to who asks for `/` there, without the end of its last line.
pub fn http_get(address: &str) -> Result<String> {
    const SLOW: Option<Duration> = Some(Duration::from_secs(20));
    let mut connection = TcpStream::connect(address).with_context(|| address.to_owned())?;
    connection.set_read_timeout(SLOW)?;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok(body.trim_end().to_owned())
}
