//! `install`: tells a client that this runtime is there, and takes it back.
//!
//! Clients that read drop-ins (Podman, CRI-O) get a file of our own. Docker has
//! one file for everything, of which only our keys are touched.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::arguments::{Client, Install};

/// The name under which clients know the runtime.
const NAME: &str = "casemate";

/// # Errors
/// When a file cannot be read, understood or replaced; it is as before then.
pub fn run(arguments: &Install) -> Result<ExitCode> {
    let binary = std::env::current_exe().context("path of this program")?;
    let plan = Plan::new(arguments, &binary)?;
    let before = read(&plan.path)?;
    let after = if arguments.undo {
        plan.without(before.as_deref())?
    } else {
        Some(plan.with(before.as_deref())?)
    };
    if after == before {
        let state = if arguments.undo {
            "not installed"
        } else {
            "installed already"
        };
        println!("{}: {state}", plan.path.display());
    } else {
        change(&plan.path, after.as_deref(), arguments.dry_run)?;
        if let Some(hint) = plan.next_step(before.as_deref(), arguments.undo)? {
            println!("then: {hint}");
        }
    }
    if !arguments.undo {
        println!("try: {}", plan.example);
        if let Some(remark) = plan.remark {
            println!("note: {remark}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is to be written where.
struct Plan {
    path: PathBuf,
    content: Content,
    /// How the client learns of it as a rule.
    reload: Option<&'static str>,
    example: String,
    /// What the client does without the runtime all the same.
    remark: Option<&'static str>,
}

enum Content {
    /// A file of our own.
    DropIn(String),
    /// Our keys in the file of another.
    Docker { binary: String, default: bool },
}

impl Plan {
    fn new(arguments: &Install, binary: &Path) -> Result<Self> {
        let text = binary
            .to_str()
            .context("the path of this program is not UTF-8")?;
        // It goes into quoted strings of three formats.
        ensure!(
            !text.contains(['"', '\\', '\n']),
            "{text:?}: move this program to a path without quotes"
        );
        let etc = &arguments.etc;
        let (default, image) = (arguments.default, "IMAGE uname -r");
        let runtime = |flag: &str| {
            if default {
                String::new()
            } else {
                format!("{flag} {NAME} ")
            }
        };
        Ok(match arguments.client {
            Client::Podman => Self {
                path: etc.join("containers/containers.conf.d/50-casemate.conf"),
                content: Content::DropIn(podman(text, default)),
                reload: None,
                example: format!(
                    "podman {}run --rm --network none {image}",
                    runtime("--runtime")
                ),
                remark: None,
            },
            Client::Docker => Self {
                path: etc.join("docker/daemon.json"),
                content: Content::Docker {
                    binary: text.to_owned(),
                    default,
                },
                reload: Some("systemctl reload docker (or send SIGHUP to dockerd)"),
                example: format!(
                    "docker run --rm {}--network none {image}",
                    runtime("--runtime")
                ),
                remark: Some(
                    "BuildKit runs the steps of a build with the runc in dockerd's PATH, not \
                     with this; docs/compatibility.md says what to do",
                ),
            },
            Client::Crio => Self {
                path: etc.join("crio/crio.conf.d/50-casemate.conf"),
                content: Content::DropIn(crio(text, default)),
                reload: Some("systemctl restart crio"),
                example: format!(
                    "a RuntimeClass with the handler {NAME:?}, and runtimeClassName in a pod"
                ),
                remark: None,
            },
        })
    }

    /// How the client learns of the change. Docker keeps a default runtime that is no longer
    /// named until it is started anew, and is of no use meanwhile.
    fn next_step(&self, before: Option<&str>, undo: bool) -> Result<Option<&'static str>> {
        if let Content::Docker { .. } = self.content
            && undo
            && is_default(&self.parse(before)?)
        {
            return Ok(Some("systemctl restart docker (or start dockerd anew)"));
        }
        Ok(self.reload)
    }

    /// The file with the runtime in it.
    fn with(&self, before: Option<&str>) -> Result<String> {
        match &self.content {
            Content::DropIn(text) => Ok(text.clone()),
            Content::Docker { binary, default } => {
                let mut root = self.parse(before)?;
                let runtimes = root.entry("runtimes").or_insert_with(|| json!({}));
                let runtimes = runtimes.as_object_mut();
                let runtimes = runtimes
                    .with_context(|| format!("{}: runtimes is no object", self.path.display()))?;
                runtimes.insert(NAME.to_owned(), json!({ "path": binary }));
                if *default {
                    root.insert("default-runtime".to_owned(), json!(NAME));
                }
                pretty(&root)
            }
        }
    }

    /// The file without it; none when nothing else is in it.
    fn without(&self, before: Option<&str>) -> Result<Option<String>> {
        match (&self.content, before) {
            (_, None) | (Content::DropIn(_), _) => Ok(None),
            (Content::Docker { .. }, Some(text)) => {
                let mut root = self.parse(before)?;
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
        }
    }

    fn parse(&self, text: Option<&str>) -> Result<Map<String, Value>> {
        let text = text.filter(|text| !text.trim().is_empty()).unwrap_or("{}");
        let context = || format!("{}: not changed", self.path.display());
        match serde_json::from_str(text).with_context(context)? {
            Value::Object(root) => Ok(root),
            _ => bail!("{}: not a JSON object", context()),
        }
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

fn podman(binary: &str, default: bool) -> String {
    let engine = match default {
        true => format!("[engine]\nruntime = \"{NAME}\"\n\n"),
        false => String::new(),
    };
    format!(
        "# Written by `casemate install podman`.\n{engine}[engine.runtimes]\n{NAME} = [\"{binary}\"]\n"
    )
}

fn crio(binary: &str, default: bool) -> String {
    let runtime = match default {
        true => format!("[crio.runtime]\ndefault_runtime = \"{NAME}\"\n\n"),
        false => String::new(),
    };
    format!(
        "# Written by `casemate install crio`.\n{runtime}[crio.runtime.runtimes.{NAME}]\n\
         runtime_path = \"{binary}\"\nruntime_type = \"oci\"\nruntime_root = \"/run/casemate/crio\"\n"
    )
}

fn pretty(root: &Map<String, Value>) -> Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(root)?))
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).with_context(|| path.display().to_string()),
    }
}

/// Replaces a file at one stroke, or removes it, and says so.
fn change(path: &Path, after: Option<&str>, dry_run: bool) -> Result<()> {
    let name = path.display();
    match (after, dry_run) {
        (Some(text), true) => println!("would write {name}:\n{text}"),
        (None, true) => println!("would remove {name}"),
        (None, false) => {
            fs::remove_file(path).with_context(|| name.to_string())?;
            println!("removed {name}");
        }
        (Some(text), false) => {
            let fresh = path.with_extension("casemate-new");
            let write = || {
                fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
                fs::write(&fresh, text)?;
                // The permissions of what is there stay.
                if let Ok(old) = fs::metadata(path) {
                    fs::set_permissions(&fresh, old.permissions())?;
                }
                fs::rename(&fresh, path)
            };
            write().with_context(|| name.to_string())?;
            println!("wrote {name}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(client: Client, default: bool) -> Plan {
        let arguments = Install {
            client,
            etc: "/etc".into(),
            default,
            undo: false,
            dry_run: false,
        };
        Plan::new(&arguments, Path::new("/usr/local/bin/casemate")).unwrap()
    }

    #[test]
    fn docker_starts_anew_to_forget_its_default() {
        let plan = plan(Client::Docker, true);
        let step = |before: &str, undo| {
            let step = plan.next_step(Some(before), undo).unwrap();
            step.unwrap().split(' ').nth(1).unwrap()
        };
        let runtimes = r#""runtimes": {"casemate": {"path": "/c"}}"#;
        let default = format!(r#"{{"default-runtime": "casemate", {runtimes}}}"#);
        assert_eq!(step("{}", false), "reload");
        assert_eq!(step(&format!("{{{runtimes}}}"), true), "reload");
        assert_eq!(step(&default, false), "reload");
        assert_eq!(step(&default, true), "restart");
    }

    #[test]
    fn docker_keeps_what_is_not_ours() {
        let before = r#"{"log-level": "warn", "runtimes": {"other": {"path": "/o"}}}"#;
        let plan = plan(Client::Docker, true);
        let after = plan.with(Some(before)).unwrap();
        let json: Value = serde_json::from_str(&after).unwrap();
        assert_eq!(
            json,
            json!({
                "log-level": "warn",
                "runtimes": {"other": {"path": "/o"}, "casemate": {"path": "/usr/local/bin/casemate"}},
                "default-runtime": "casemate",
            })
        );
        assert_eq!(plan.with(Some(&after)).unwrap(), after);
        let undone = plan.without(Some(&after)).unwrap().unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&undone).unwrap(),
            serde_json::from_str::<Value>(before).unwrap()
        );
        assert_eq!(plan.without(Some(before)).unwrap().as_deref(), Some(before));
    }

    #[test]
    fn docker_s_file_goes_when_it_was_ours_alone() {
        let plan = plan(Client::Docker, false);
        let after = plan.with(None).unwrap();
        assert_eq!(plan.without(Some(&after)).unwrap(), None);
        assert_eq!(plan.without(None).unwrap(), None);
        assert!(plan.with(Some("[]")).is_err());
        assert!(plan.with(Some("{")).is_err());
        assert!(plan.with(Some(r#"{"runtimes": 1}"#)).is_err());
    }

    #[test]
    fn drop_ins_name_this_program() {
        let podman = plan(Client::Podman, true).with(None).unwrap();
        assert!(podman.contains("runtime = \"casemate\"\n"));
        assert!(podman.contains("casemate = [\"/usr/local/bin/casemate\"]\n"));
        let crio = plan(Client::Crio, false).with(None).unwrap();
        assert!(crio.contains("[crio.runtime.runtimes.casemate]\n"));
        assert!(!crio.contains("default_runtime"));
    }
}
