//! The command line that containerd gives a shim, in the form of Go's `flag`
//! package: `-name value`, `-name=value`, two dashes or one.

use std::{ffi::OsString, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// `start`.
    Start,
    /// `delete`.
    Delete,
    /// `-info`.
    Info,
    /// `-v`.
    Version,
}

/// The command line, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arguments {
    pub(super) action: Action,
    /// containerd's namespace.
    pub(super) namespace: String,
    /// containerd's socket (gRPC).
    pub(super) address: String,
    /// Id of the container.
    pub(super) id: String,
    /// Its bundle; the working directory without.
    pub(super) bundle: Option<PathBuf>,
    /// Log everything.
    pub(super) debug: bool,
}

/// Flags with a value that say nothing here: where to publish events by a
/// program, and where to listen.
const IGNORED: [&str; 2] = ["publish-binary", "socket"];

impl Arguments {
    pub(super) fn parse(words: impl Iterator<Item = OsString>) -> Result<Self> {
        let mut parsed = Self {
            action: Action::Version,
            namespace: String::new(),
            address: String::new(),
            id: String::new(),
            bundle: None,
            debug: false,
        };
        let mut words = words.map(|word| word.to_string_lossy().into_owned());
        let mut action = None;
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix('-') else {
                // What follows belongs to the action, and none takes anything.
                action = Some(word);
                break;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let on = inline.as_deref() != Some("false");
            match name {
                "v" | "version" if on => return Ok(parsed),
                "info" if on => {
                    parsed.action = Action::Info;
                    return Ok(parsed);
                }
                "debug" => parsed.debug = on,
                "v" | "version" | "info" => {}
                _ => {
                    let value = inline.or_else(|| words.next());
                    let value = value.with_context(|| format!("flag -{name} needs a value"))?;
                    parsed.set(name, value)?;
                }
            }
        }
        parsed.action = match action.as_deref() {
            Some("start") => Action::Start,
            Some("delete") => Action::Delete,
            Some(other) => bail!("unknown action {other:?}: start or delete is meant"),
            None => bail!("no action: start or delete is meant (containerd runs this program)"),
        };
        ensure!(!parsed.namespace.is_empty(), "flag -namespace is missing");
        ensure!(!parsed.id.is_empty(), "flag -id is missing");
        Ok(parsed)
    }

    fn set(&mut self, name: &str, value: String) -> Result<()> {
        match name {
            "namespace" => self.namespace = value,
            "address" => self.address = value,
            "id" => self.id = value,
            "bundle" => self.bundle = Some(value.into()),
            name if IGNORED.contains(&name) => {}
            other => bail!("unknown flag -{other}"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments> {
        Arguments::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn containerds_command_lines() {
        let start = parse(
            "-namespace k8s.io -address /run/containerd/containerd.sock \
             -publish-binary /usr/bin/containerd -id web -debug start",
        )
        .unwrap();
        assert_eq!(start.action, Action::Start);
        assert_eq!(
            (start.namespace.as_str(), start.id.as_str()),
            ("k8s.io", "web")
        );
        assert!(start.debug && start.bundle.is_none());
        let delete = parse("--namespace=moby -address= -id=web --bundle /b delete").unwrap();
        assert_eq!(delete.action, Action::Delete);
        assert_eq!(delete.bundle.unwrap(), PathBuf::from("/b"));
        assert_eq!(delete.address, "");
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
    }

    #[test]
    fn others_are_refused() {
        for (line, text) in [
            ("", "no action"),
            ("-id web -namespace x", "no action"),
            ("-id web -namespace x serve", "unknown action \"serve\""),
            ("-id web start", "-namespace is missing"),
            ("-namespace x start", "-id is missing"),
            ("-namespace", "needs a value"),
            ("-color red start", "unknown flag -color"),
        ] {
            let error = format!("{:#}", parse(line).unwrap_err());
            assert!(error.contains(text), "{line}: {error}");
        }
    }
}
