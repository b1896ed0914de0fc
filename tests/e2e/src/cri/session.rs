//! Who talks to a process of a container, or to a port of a pod, by streams.

use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::spdy::Spdy;
use crate::Size;
use crate::network::inside;

/// How long what is waited for may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which streams are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// An input.
    pub stdin: bool,
    /// A terminal: then stdout is all that is written.
    pub tty: bool,
}

/// The streams of a process: of a command that was added, or attached to a container.
pub struct Session {
    spdy: Spdy,
    error: u32,
    stdin: Option<u32>,
    stdout: u32,
    stderr: Option<u32>,
    resize: Option<u32>,
}

impl Session {
    pub(super) fn open(network: &Path, url: &str, wanted: Wanted) -> Result<Session> {
        let mut spdy = connect(network, url, "v4.channel.k8s.io")?;
        let mut open = |kind| spdy.open(&[("streamtype", kind)]);
        Ok(Session {
            error: open("error")?,
            stdin: wanted.stdin.then(|| open("stdin")).transpose()?,
            stdout: open("stdout")?,
            stderr: (!wanted.tty).then(|| open("stderr")).transpose()?,
            resize: wanted.tty.then(|| open("resize")).transpose()?,
            spdy,
        })
    }

    /// Writes to its input.
    pub fn type_text(&self, text: &str) -> Result<()> {
        let stdin = self.stdin.context("no input was wanted")?;
        self.spdy.send(stdin, text.as_bytes())
    }

    /// Ends its input.
    pub fn end_input(&self) -> Result<()> {
        self.spdy.end(self.stdin.context("no input was wanted")?)
    }

    /// Gives the terminal another size.
    pub fn resize(&self, size: Size) -> Result<()> {
        let resize = self.resize.context("no terminal was wanted")?;
        let size = json!({"Width": size.columns, "Height": size.rows});
        self.spdy.send(resize, format!("{size}\n").as_bytes())
    }

    /// Waits until it has written this.
    pub fn await_text(&self, text: &str) -> Result<()> {
        let there = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        let came = self.spdy.wait(self.stdout, PATIENCE, there)?;
        ensure!(came, "{text:?} did not come in {:?}", self.text());
        Ok(())
    }

    /// What it has written so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.spdy.received(self.stdout)).into_owned()
    }

    /// Waits for its end: exit code, output, errors.
    pub fn finish(self) -> Result<Ended> {
        let status = self.spdy.whole(self.error, PATIENCE)?;
        let errors = self.stderr.map(|id| self.spdy.whole(id, PATIENCE));
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ended {
            code: exit_code(&status)?,
            stdout: text(self.spdy.whole(self.stdout, PATIENCE)?),
            stderr: text(errors.transpose()?.unwrap_or_default()),
        })
    }
}

/// A command that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Ended {
    /// Demands this exit code, and gives what was written, without the end of the last line.
    pub fn exits(self, code: i32) -> Result<String> {
        ensure!(
            self.code == code,
            "exit code {code} was expected: {self:#?}"
        );
        Ok(self.stdout.trim_end().to_owned())
    }
}

/// The exit code in what comes on the error stream: a status of Kubernetes.
fn exit_code(status: &[u8]) -> Result<i32> {
    let text = String::from_utf8_lossy(status);
    let status: Value = serde_json::from_slice(status).map_err(|_| anyhow!("status: {text:?}"))?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    let cause = causes
        .into_iter()
        .flatten()
        .find(|cause| cause["reason"] == "ExitCode");
    let code = cause.and_then(|cause| cause["message"].as_str());
    code.with_context(|| text.into_owned())?
        .parse()
        .map_err(Into::into)
}

/// What who connects to `port` of a pod says, and what is said to that, by port-forward.
pub(super) fn forward(network: &Path, url: &str, port: u16, said: &str) -> Result<String> {
    let mut spdy = connect(network, url, "portforward.k8s.io")?;
    let port = port.to_string();
    let mut open = |kind| spdy.open(&[("streamtype", kind), ("port", &port), ("requestid", "0")]);
    let (error, data) = (open("error")?, open("data")?);
    spdy.end(error)?;
    spdy.send(data, said.as_bytes())?;
    spdy.end(data)?;
    let answer = spdy.whole(data, PATIENCE)?;
    let failed = spdy.whole(error, PATIENCE)?;
    ensure!(failed.is_empty(), "{}", String::from_utf8_lossy(&failed));
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Connects to the server of streams, which listens in the engine's network.
fn connect(network: &Path, url: &str, protocol: &str) -> Result<Spdy> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| url.to_owned())?;
    let (address, path) = rest.split_once('/').with_context(|| url.to_owned())?;
    let connection = inside(network, || {
        TcpStream::connect(address).with_context(|| address.to_owned())
    })?;
    Spdy::upgrade(connection, &format!("/{path}"), protocol)
}
