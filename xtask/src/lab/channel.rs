//! The way into the lab: a secure shell over QEMU's user networking. What is run there has its
//! own time limit, and a host that no longer answers is told from a program that takes long.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

/// The host's side of the connection asks this often whether the other one is there …
const HEARTBEAT: Duration = Duration::from_secs(15);
/// … and after so many silences it is not.
const SILENCES: u32 = 8;

/// How long the channel may take beside what is run by it.
const GRACE: Duration = Duration::from_secs(60);

/// The exit code of ssh(1) for errors of its own.
const OWN_ERROR: i32 = 255;
/// That of timeout(1) when the time was up, and when the program had to be killed.
const TIMED_OUT: i32 = 124;
const KILLED: i32 = 137;

/// How something that was run in the lab ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With this code.
    Code(u8),
    /// Its time was up.
    Late,
    /// The host does not answer any more.
    Lost,
}

/// A channel to the host that listens at a port of this machine.
pub(super) struct Channel {
    pub(super) port: u16,
    pub(super) key: PathBuf,
}

impl Channel {
    /// Runs a line of the shell with the caller's streams.
    pub(super) fn run(&self, line: &str, limit: Duration) -> Result<End> {
        let status = self.limited(line, limit).status();
        Ok(judge(status.context("cannot run ssh")?))
    }

    /// Runs a line of the shell; each line that it prints is shown at once and kept.
    pub(super) fn run_logged(
        &self,
        line: &str,
        limit: Duration,
        log: &mut impl Write,
    ) -> Result<End> {
        let mut ssh = self.limited(&format!("exec 2>&1; {line}"), limit);
        let mut child = ssh
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run ssh")?;
        let output = child.stdout.take().context("ssh has an output")?;
        for chunk in BufReader::new(output).split(b'\n') {
            let text = String::from_utf8_lossy(&chunk?).into_owned();
            println!("{text}");
            writeln!(log, "{text}").context("the lab's log")?;
        }
        Ok(judge(child.wait()?))
    }

    /// Whether the host answers within `limit`.
    pub(super) fn answers(&self, limit: Duration) -> bool {
        let mut ssh = timeout(limit);
        ssh.arg("ssh").args(self.options()).arg("true");
        let silent = ssh
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        silent.status().is_ok_and(|status| status.success())
    }

    /// Runs a line of the shell and puts what it prints into a file.
    pub(super) fn run_kept(&self, line: &str, limit: Duration, file: &mut File) -> Result<End> {
        let mut ssh = self.limited(line, limit);
        ssh.stdin(Stdio::null()).stdout(file.try_clone()?);
        Ok(judge(ssh.status().context("cannot run ssh")?))
    }

    /// A shell on the caller's terminal; how its last command ended is nobody's business.
    pub(super) fn shell(&self) -> Result<()> {
        let mut ssh = Command::new("ssh");
        ssh.arg("-t").args(self.options());
        ssh.status().context("cannot run ssh")?;
        Ok(())
    }

    fn limited(&self, line: &str, limit: Duration) -> Command {
        let mut ssh = timeout(limit + GRACE);
        ssh.arg("ssh").args(self.options()).arg(remote(line, limit));
        ssh
    }

    fn options(&self) -> Vec<String> {
        let mut all = vec![
            "-F".to_owned(),
            "/dev/null".to_owned(),
            "-i".to_owned(),
            self.key.display().to_string(),
            "-p".to_owned(),
            self.port.to_string(),
        ];
        for option in [
            "BatchMode=yes".to_owned(),
            "LogLevel=ERROR".to_owned(),
            // It is a machine of this very checkout, at a port that nobody else can have.
            "StrictHostKeyChecking=no".to_owned(),
            "UserKnownHostsFile=/dev/null".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "ConnectTimeout=30".to_owned(),
            format!("ServerAliveInterval={}", HEARTBEAT.as_secs()),
            format!("ServerAliveCountMax={SILENCES}"),
        ] {
            all.extend(["-o".to_owned(), option]);
        }
        all.push("root@127.0.0.1".to_owned());
        all
    }
}

fn timeout(limit: Duration) -> Command {
    let mut timeout = Command::new("timeout");
    timeout.args([
        "--foreground",
        "--kill-after=5",
        &limit.as_secs().to_string(),
    ]);
    timeout
}

/// What the host's shell is given: the line, with a limit that ends all its processes. The code
/// that ssh has for itself must not be the line's.
fn remote(line: &str, limit: Duration) -> String {
    let line = line.replace('\'', r"'\''");
    let seconds = limit.as_secs().max(1);
    format!(
        "timeout --kill-after=10 {seconds} sh -c '{line}'; code=$?; \
         [ $code -ne {OWN_ERROR} ] || code=254; exit $code"
    )
}

fn judge(status: ExitStatus) -> End {
    match status.code() {
        Some(TIMED_OUT | KILLED) => End::Late,
        Some(OWN_ERROR) | None => End::Lost,
        Some(code) => End::Code(code as u8),
    }
}

/// A port of this machine that nobody has right now.
pub(super) fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).context("a port")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(line: &str, limit: u64) -> End {
        let line = remote(line, Duration::from_secs(limit));
        judge(Command::new("sh").args(["-c", &line]).status().unwrap())
    }

    #[test]
    fn what_the_host_runs_has_a_limit_and_keeps_its_code() {
        assert_eq!(ends("exit 0", 10), End::Code(0));
        assert_eq!(ends("test 'a b' = \"a b\"; exit 7", 10), End::Code(7));
        assert_eq!(ends("exit 255", 10), End::Code(254));
        assert_eq!(ends("sleep 100", 1), End::Late);
    }
}
