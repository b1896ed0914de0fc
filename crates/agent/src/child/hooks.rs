//! startContainer hooks (runtime spec, "POSIX-platform Hooks"): run by the first
//! process of a container right before its program, and with no other rights.

use std::{
    io::{self, Read, Seek, Write},
    os::fd::AsFd,
    time::Duration,
};

use casemate_linux::{
    deadline,
    descriptor::memory_file,
    process::{Birth, Exit, exec, spawn},
};
use casemate_protocol::agent::Hook;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::error::{Error, Result, reason};

/// How much of a hook's standard error goes into the message.
const MAX_STDERR: u64 = 512;

/// Exit code of a hook that could not be executed; it says why on its standard
/// error.
const NOT_EXECUTED: i32 = 127;

/// Runs hooks in order until one fails.
pub(super) fn run(hooks: &[Hook], state: &[u8]) -> Result<()> {
    hooks.iter().try_for_each(|hook| {
        run_one(hook, state)
            .map_err(|why| Error::Hook(format!("startContainer hook {}: {why}", hook.path)))
    })
}

fn run_one(hook: &Hook, state: &[u8]) -> std::result::Result<(), String> {
    let system = |error: io::Error| reason(&error);
    // Files, not pipes: a hook that does not read, or writes a lot, hinders
    // nobody.
    let mut input = memory_file("hook-state").map_err(system)?;
    input.write_all(state).map_err(system)?;
    input.rewind().map_err(system)?;
    let mut output = memory_file("hook-output").map_err(system)?;
    let child = spawn(Birth::default(), || {
        let attempt = || {
            dup2_stdin(input.as_fd())?;
            dup2_stdout(output.as_fd())?;
            dup2_stderr(output.as_fd())?;
            let bytes =
                |texts: &[String]| texts.iter().map(|text| text.clone().into_bytes()).collect();
            let mut args: Vec<Vec<u8>> = bytes(&hook.args);
            if args.is_empty() {
                args.push(hook.path.clone().into_bytes());
            }
            let env: Vec<Vec<u8>> = bytes(&hook.env);
            exec(hook.path.as_bytes(), &args, &env)
        };
        let Err(error) = attempt();
        let _ = (&output).write_all(reason(&error).as_bytes());
        NOT_EXECUTED
    })
    .map_err(system)?;
    let limit = Duration::from_secs(hook.timeout_s.into());
    match deadline::wait_or_kill(&child, limit).map_err(system)? {
        Some(Exit::Code(0)) => Ok(()),
        Some(exit) => {
            let mut said = Vec::new();
            output.rewind().map_err(system)?;
            let read = output.take(MAX_STDERR).read_to_end(&mut said);
            read.map_err(system)?;
            let said = String::from_utf8_lossy(&said).trim().replace('\n', " ");
            Err(match said.is_empty() {
                true => exit.to_string(),
                false => format!("{exit}: {said}"),
            })
        }
        None => Err(format!("no end after {limit:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str) -> Hook {
        Hook {
            path: "/bin/sh".into(),
            args: ["sh", "-c", script].map(str::to_owned).into(),
            env: vec!["A=b".into()],
            timeout_s: 1,
            ..Default::default()
        }
    }

    #[test]
    fn a_hook_gets_the_state_and_nothing_of_ours() {
        let script = "read line; test \"$line\" = state && test $A = b && test -z \"$HOME\"";
        run(&[hook(script), hook("exit 0")], b"state\n").unwrap();
    }

    #[test]
    fn the_first_that_fails_ends_the_row() {
        let failed = run(&[hook("echo why >&2; exit 3"), hook("exit 4")], b"").unwrap_err();
        let text = failed.to_string();
        assert!(text.starts_with("startContainer hook /bin/sh: "), "{text}");
        assert!(text.ends_with(": why"), "{text}");
    }

    #[test]
    fn a_hook_that_does_not_end_is_killed() {
        let late = run(&[hook("exec sleep 1000")], b"").unwrap_err();
        assert_eq!(
            late.to_string(),
            "startContainer hook /bin/sh: no end after 1s"
        );
    }

    #[test]
    fn a_missing_program_is_said() {
        let missing = Hook {
            path: "/no/such/hook".into(),
            timeout_s: 1,
            ..Default::default()
        };
        let text = run(&[missing], b"").unwrap_err().to_string();
        assert!(text.ends_with("no such file or directory"), "{text}");
    }
}
