//! Docker: our keys of `daemon.json`, which has everything else as well.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::{Change, NAME, Plan, read};
use crate::arguments::Install;

const RELOAD: &str = "systemctl reload docker (or send SIGHUP to dockerd)";
const RESTART: &str = "systemctl restart docker (or start dockerd anew)";

pub(super) fn plan(arguments: &Install, binary: &str) -> Result<Plan> {
    let path = arguments.etc.join("docker/daemon.json");
    let before = read(&path)?;
    let text = before.as_deref();
    let undo = arguments.undo;
    let runtime = match arguments.default {
        true => String::new(),
        false => format!("--runtime {NAME} "),
    };
    Ok(Plan {
        next_step: Some(next_step(&path, text, undo)?),
        changes: vec![Change::File {
            after: match undo {
                true => without(&path, text)?,
                false => Some(with(&path, text, binary, arguments.default)?),
            },
            before,
            path,
        }],
        example: format!("docker run --rm {runtime}--network none IMAGE uname -r"),
        remarks: vec![
            "BuildKit runs the steps of a build with the runc in dockerd's PATH, not \
             with this; docs/compatibility.md says what to do",
        ],
    })
}

/// How the client learns of the change. Docker keeps a default runtime that is no longer
/// named until it is started anew, and is of no use meanwhile.
fn next_step(path: &Path, before: Option<&str>, undo: bool) -> Result<&'static str> {
    Ok(match undo && is_default(&parse(path, before)?) {
        true => RESTART,
        false => RELOAD,
    })
}

/// The file with the runtime in it.
fn with(path: &Path, before: Option<&str>, binary: &str, default: bool) -> Result<String> {
    let mut root = parse(path, before)?;
    let runtimes = root.entry("runtimes").or_insert_with(|| json!({}));
    let runtimes = runtimes.as_object_mut();
    let runtimes =
        runtimes.with_context(|| format!("{}: runtimes is no object", path.display()))?;
    runtimes.insert(NAME.to_owned(), json!({ "path": binary }));
    if default {
        root.insert("default-runtime".to_owned(), json!(NAME));
    }
    pretty(&root)
}

/// The file without it; none when nothing else is in it.
fn without(path: &Path, before: Option<&str>) -> Result<Option<String>> {
    let Some(text) = before else { return Ok(None) };
    let mut root = parse(path, before)?;
    if !mentions(&root) {
        return Ok(Some(text.to_owned()));
    }
    if let Some(runtimes) = root.get_mut("runtimes").and_then(Value::as_object_mut) {
        runtimes.remove(NAME);
        if runtimes.is_empty() {
            root.remove("runtimes");
        }
    }
    if is_default(&root) {
        root.remove("default-runtime");
    }
    match root.is_empty() {
        true => Ok(None),
        false => pretty(&root).map(Some),
    }
}

fn parse(path: &Path, text: Option<&str>) -> Result<Map<String, Value>> {
    let text = text.filter(|text| !text.trim().is_empty()).unwrap_or("{}");
    let context = || format!("{}: not changed", path.display());
    match serde_json::from_str(text).with_context(context)? {
        Value::Object(root) => Ok(root),
        _ => bail!("{}: not a JSON object", context()),
    }
}

fn mentions(root: &Map<String, Value>) -> bool {
    let named = root
        .get("runtimes")
        .is_some_and(|runtimes| runtimes.get(NAME).is_some());
    named || is_default(root)
}

fn is_default(root: &Map<String, Value>) -> bool {
    root.get("default-runtime") == Some(&json!(NAME))
}

fn pretty(root: &Map<String, Value>) -> Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(root)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINARY: &str = "/usr/local/bin/casemate";

    fn path() -> &'static Path {
        Path::new("/etc/docker/daemon.json")
    }

    #[test]
    fn docker_starts_anew_to_forget_its_default() {
        let step = |before: &str, undo| next_step(path(), Some(before), undo).unwrap();
        let runtimes = r#""runtimes": {"casemate": {"path": "/c"}}"#;
        let default = format!(r#"{{"default-runtime": "casemate", {runtimes}}}"#);
        assert_eq!(step("{}", false), RELOAD);
        assert_eq!(step(&format!("{{{runtimes}}}"), true), RELOAD);
        assert_eq!(step(&default, false), RELOAD);
        assert_eq!(step(&default, true), RESTART);
    }

    #[test]
    fn docker_keeps_what_is_not_ours() {
        let before = r#"{"log-level": "warn", "runtimes": {"other": {"path": "/o"}}}"#;
        let after = with(path(), Some(before), BINARY, true).unwrap();
        let json: Value = serde_json::from_str(&after).unwrap();
        assert_eq!(
            json,
            json!({
                "log-level": "warn",
                "runtimes": {"other": {"path": "/o"}, "casemate": {"path": "/usr/local/bin/casemate"}},
                "default-runtime": "casemate",
            })
        );
        assert_eq!(with(path(), Some(&after), BINARY, true).unwrap(), after);
        let undone = without(path(), Some(&after)).unwrap().unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&undone).unwrap(),
            serde_json::from_str::<Value>(before).unwrap()
        );
        assert_eq!(
            without(path(), Some(before)).unwrap().as_deref(),
            Some(before)
        );
    }

    #[test]
    fn docker_s_file_goes_when_it_was_ours_alone() {
        let after = with(path(), None, BINARY, false).unwrap();
        assert_eq!(without(path(), Some(&after)).unwrap(), None);
        assert_eq!(without(path(), None).unwrap(), None);
        for broken in ["[]", "{", r#"{"runtimes": 1}"#] {
            assert!(with(path(), Some(broken), BINARY, false).is_err());
        }
    }
}
