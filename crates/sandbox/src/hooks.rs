//! OCI hooks on the host (runtime spec, "POSIX-platform Hooks").
//!
//! Each gets the container's state as JSON on its standard input. A hook that
//! fails, or does not end in time, fails the operation it belongs to; those
//! after the start (poststart, poststop) are only logged, as the spec has it.

use std::{path::Path, process::Stdio, time::Duration};

use oci_spec::runtime::Hook;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// A hook without a timeout of its own is killed after this long.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// How much of a hook's standard error goes into the message.
const MAX_STDERR: usize = 512;

/// A hook that did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("{list} hook {hook}: {source}")]
    Spawn {
        /// Name of the list it stands in.
        list: &'static str,
        /// Its program.
        hook: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("{list} hook {hook}: {status}{stderr}")]
    Failed {
        /// Name of the list it stands in.
        list: &'static str,
        /// Its program.
        hook: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// ": " and what it wrote, or nothing.
        stderr: String,
    },
    /// It ran too long and was killed.
    #[error("{list} hook {hook}: no end after {limit:?}")]
    Timeout {
        /// Name of the list it stands in.
        list: &'static str,
        /// Its program.
        hook: String,
        /// How long it had.
        limit: Duration,
    },
}

/// Runs the hooks of a list in order until one fails.
///
/// # Errors
/// That of the first hook that fails.
pub async fn run(
    list: &'static str,
    hooks: Option<&Vec<Hook>>,
    state: &[u8],
    bundle: &Path,
) -> Result<(), Error> {
    for hook in hooks.into_iter().flatten() {
        run_one(list, hook, state, bundle).await?;
    }
    Ok(())
}

async fn run_one(
    list: &'static str,
    hook: &Hook,
    state: &[u8],
    bundle: &Path,
) -> Result<(), Error> {
    let name = hook.path().display().to_string();
    let spawn_failed = |source| Error::Spawn {
        list,
        hook: name.clone(),
        source,
    };
    let mut command = Command::new(hook.path());
    if let Some((zero, rest)) = hook.args().as_deref().and_then(<[_]>::split_first) {
        command.arg0(zero).args(rest);
    }
    let pairs = hook.env().iter().flatten();
    command
        .env_clear()
        .envs(pairs.filter_map(|pair| pair.split_once('=')))
        .current_dir(bundle)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(spawn_failed)?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let limit = match hook.timeout() {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds as u64),
        _ => DEFAULT_TIMEOUT,
    };
    let work = async {
        // A hook that does not read its input is none the worse for it.
        let _ = stdin.write_all(state).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let output = match timeout(limit, work).await {
        Ok(output) => output.map_err(spawn_failed)?,
        Err(_) => {
            return Err(Error::Timeout {
                list,
                hook: name,
                limit,
            });
        }
    };
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(MAX_STDERR)]);
    let line = text.trim().replace('\n', "; ");
    Err(Error::Failed {
        list,
        hook: name,
        status: output.status,
        stderr: if line.is_empty() {
            line
        } else {
            format!(": {line}")
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::HookBuilder;

    fn shell(script: &str) -> Vec<Hook> {
        let arguments = ["sh", "-c", script].map(String::from).to_vec();
        vec![
            HookBuilder::default()
                .path("/bin/sh")
                .args(arguments)
                .env(vec!["NAME=value".to_owned()])
                .timeout(1)
                .build()
                .unwrap(),
        ]
    }

    async fn result_of(script: &str) -> Result<(), Error> {
        run(
            "prestart",
            Some(&shell(script)),
            b"{\"id\":\"web\"}",
            Path::new("/"),
        )
        .await
    }

    #[tokio::test]
    async fn the_state_is_on_stdin_and_the_environment_is_the_hooks_own() {
        result_of(
            "test \"$(cat)\" = '{\"id\":\"web\"}' && test $NAME = value && test -z \"$HOME\"",
        )
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn a_failure_says_which_hook_and_why() {
        let error = result_of("echo no network >&2; exit 3").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "prestart hook /bin/sh: exit status: 3: no network"
        );
        let error = result_of("sleep 60").await.unwrap_err();
        assert_eq!(error.to_string(), "prestart hook /bin/sh: no end after 1s");
    }
}
