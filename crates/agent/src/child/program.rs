//! The program of a process: its environment, where it is found, its
//! execution. Texts are runc's, for the clients that look into them.

use std::{convert::Infallible, fs, io, os::unix::fs::PermissionsExt};

use casemate_linux::process::exec;
use nix::{
    fcntl::{AT_FDCWD, AtFlags},
    unistd::{AccessFlags, faccessat},
};

use super::credentials::{Confined, home};
use crate::error::{Error, Result, reason};

/// A program that can be executed, as far as can be told without doing it.
pub(super) struct Program<'a> {
    path: String,
    env: Vec<Vec<u8>>,
    confined: Confined<'a>,
}

impl<'a> Program<'a> {
    /// Finds the program with the rights that it will have.
    pub(super) fn find(confined: Confined<'a>) -> Result<Self> {
        let process = confined.process;
        let env = environment(&process.env, || home(process.uid));
        let path = look_up(&process.args[0], value(&env, "PATH").unwrap_or_default())?;
        // Permission bits do not tell everything (noexec, other users).
        faccessat(
            AT_FDCWD,
            path.as_str(),
            AccessFlags::X_OK,
            AtFlags::AT_EACCESS,
        )
        .map_err(|errno| failed_exec(&path, &errno.into()))?;
        Ok(Self {
            path,
            env: env.into_iter().map(String::into_bytes).collect(),
            confined,
        })
    }

    /// Becomes the program.
    pub(super) fn execute(self) -> Result<Infallible> {
        let args = &self.confined.process.args;
        let args: Vec<Vec<u8>> = args.iter().map(|arg| arg.clone().into_bytes()).collect();
        self.confined.install_filter()?;
        exec(self.path.as_bytes(), &args, &self.env)
            .map_err(|error| failed_exec(&self.path, &error))
    }
}

fn failed_exec(path: &str, error: &io::Error) -> Error {
    Error::Program(format!("exec {path}: {}", reason(error)))
}

/// Variables with the last value of each, and HOME in any case.
fn environment(given: &[String], home: impl FnOnce() -> String) -> Vec<String> {
    let mut env: Vec<String> = Vec::with_capacity(given.len() + 1);
    for variable in given {
        let name = name(variable);
        match env.iter_mut().find(|other| self::name(other) == name) {
            Some(other) => other.clone_from(variable),
            None => env.push(variable.clone()),
        }
    }
    if value(&env, "HOME").is_none_or(str::is_empty) {
        env.retain(|variable| name(variable) != "HOME");
        env.push(format!("HOME={}", home()));
    }
    env
}

fn name(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

fn value<'a>(env: &'a [String], wanted: &str) -> Option<&'a str> {
    env.iter()
        .filter_map(|variable| variable.split_once('='))
        .find_map(|(name, value)| (name == wanted).then_some(value))
}

/// Path of a program: as it is given when it holds a slash, else from the first
/// directory of PATH that has it.
fn look_up(program: &str, path: &str) -> Result<String> {
    let fault = |why: String| Error::Program(format!("exec: {program:?}: {why}"));
    if program.contains('/') {
        return match executable(program) {
            Ok(()) => Ok(program.to_owned()),
            Err(Unfit::Missing(error)) => Err(fault(format!("stat {program}: {}", reason(&error)))),
            Err(Unfit::Forbidden) => Err(fault("permission denied".into())),
        };
    }
    path.split(':')
        // An empty PATH is no directory, an empty part of one is the current.
        .filter(|_| !path.is_empty())
        .map(|directory| match directory {
            "" => format!("./{program}"),
            directory => format!("{}/{program}", directory.trim_end_matches('/')),
        })
        .find(|candidate| executable(candidate).is_ok())
        .ok_or_else(|| fault("executable file not found in $PATH".into()))
}

enum Unfit {
    Missing(io::Error),
    Forbidden,
}

fn executable(path: &str) -> std::result::Result<(), Unfit> {
    let metadata = fs::metadata(path).map_err(Unfit::Missing)?;
    match metadata.is_dir() || metadata.permissions().mode() & 0o111 == 0 {
        true => Err(Unfit::Forbidden),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(path: &std::path::Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let given = ["A=1", "B=2", "A=3", "HOME="].map(str::to_owned);
        let env = environment(&given, || "/home/x".into());
        assert_eq!(env, ["A=3", "B=2", "HOME=/home/x"]);
        let env = environment(&["HOME=/y".to_owned()], || unreachable!());
        assert_eq!(env, ["HOME=/y"]);
    }

    #[test]
    fn programs_are_found_as_runc_finds_them() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("one/tool")).unwrap();
        fs::create_dir(at("two")).unwrap();
        fs::write(at("two/tool"), "").unwrap();
        set(&at("two/tool"), 0o755);
        fs::write(at("two/text"), "").unwrap();
        set(&at("two/text"), 0o644);
        let path = format!("{}:{}/", at("one").display(), at("two").display());
        let found = look_up("tool", &path).unwrap();
        assert_eq!(found, at("two/tool").to_str().unwrap());

        let text = |program: &str| look_up(program, &path).unwrap_err().to_string();
        let prefix = "unable to start container process: exec: ";
        let missing = "executable file not found in $PATH";
        for name in ["text", "nothing", ""] {
            assert_eq!(text(name), format!("{prefix}{name:?}: {missing}"));
        }
        let plain = at("two/text").display().to_string();
        assert_eq!(
            text(&plain),
            format!("{prefix}{plain:?}: permission denied")
        );
        let missing = "/no/such/file";
        let why = "no such file or directory";
        assert_eq!(
            text(missing),
            format!("{prefix}{missing:?}: stat {missing}: {why}")
        );
        assert!(look_up("tool", "").is_err());
    }
}
