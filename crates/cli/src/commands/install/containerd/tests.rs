//! The file with the runtime in it and without, for what administrators have.

use super::*;
use crate::arguments::Client;
use crate::commands::install::arguments;

const VERSION_2: &str = r#"# Of this node.
version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "local/pause" # not to be pulled

  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true

[metrics]
  address = "127.0.0.1:1338"
"#;

const VERSION_3: &str = r#"version = 3
imports = ["conf.d/*.toml"]

[plugins.'io.containerd.cri.v1.runtime']
  enable_selinux = false
"#;

fn with(text: Option<&str>, default: bool) -> String {
    let file = File::parse(Path::new("/etc/containerd/config.toml"), text).unwrap();
    file.with(default).unwrap()
}

fn without(text: &str) -> Option<String> {
    let file = File::parse(Path::new("/etc/containerd/config.toml"), Some(text)).unwrap();
    file.without(Some(text))
}

fn refusal(text: &str) -> String {
    let file = File::parse(Path::new("config.toml"), Some(text));
    let result = file.and_then(|file| file.with(false));
    format!("{:#}", result.unwrap_err())
}

#[test]
fn only_our_table_is_added_and_goes_again() {
    for text in [VERSION_2, VERSION_3] {
        let after = with(Some(text), false);
        assert_eq!(with(Some(&after), false), after, "twice is once");
        let comment = after.find(OURS).unwrap();
        let end = after[comment..].find("= true\n").unwrap() + comment + "= true\n".len();
        let rest = format!("{}{}", &after[..comment - 1], &after[end..]);
        assert_eq!(rest, text);
        assert_eq!(without(&after).as_deref(), Some(text));
        assert_eq!(without(text).as_deref(), Some(text));
    }
}

#[test]
fn the_table_is_what_containerd_reads() {
    for (text, plugin) in [
        (VERSION_2, "io.containerd.grpc.v1.cri"),
        (VERSION_3, "io.containerd.cri.v1.runtime"),
    ] {
        let document: DocumentMut = with(Some(text), false).parse().unwrap();
        let entry = &document["plugins"][plugin]["containerd"]["runtimes"][NAME];
        assert_eq!(
            entry["runtime_type"].as_str(),
            Some("io.containerd.casemate.v2")
        );
        assert_eq!(
            entry["privileged_without_host_devices"].as_bool(),
            Some(true)
        );
        let annotations = entry["pod_annotations"].as_array().unwrap();
        assert_eq!(
            annotations.to_string().trim(),
            r#"["casemate.io/*", "io.katacontainers.*"]"#
        );
    }
}

#[test]
fn the_default_before_comes_back() {
    let after = with(Some(VERSION_2), true);
    assert!(
        after.contains("default_runtime_name = \"casemate\" # casemate: before \"runc\"\n"),
        "{after}"
    );
    assert_eq!(with(Some(&after), true), after);
    assert_eq!(without(&after).as_deref(), Some(VERSION_2));

    let commented = VERSION_2.replace("\"runc\"\n", "'runc'  # as ever\n");
    let after = with(Some(&commented), true);
    assert_eq!(without(&after), Some(commented));

    let after = with(Some(VERSION_3), true);
    assert!(
        after.contains("default_runtime_name = \"casemate\" # casemate: before\n"),
        "{after}"
    );
    assert_eq!(without(&after).as_deref(), Some(VERSION_3));
}

/// In version 2, the built-in entry goes when another one is there.
#[test]
fn runc_stays() {
    let entry = "containerd.runtimes.runc]";
    let alone = with(Some("version = 2\n"), false);
    assert_eq!(alone.matches(entry).count(), 1, "{alone}");
    assert_eq!(without(&alone), None, "a file of ours alone goes");
    let others = with(
        Some(
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.crun]\nruntime_type = \"io.containerd.runc.v2\"\n",
        ),
        false,
    );
    assert_eq!(others.matches(entry).count(), 0, "{others}");
    assert_eq!(with(Some(VERSION_2), false).matches(entry).count(), 1);
    assert_eq!(with(Some("version = 3\n"), false).matches(entry).count(), 0);
}

#[test]
fn headers_of_others_stay() {
    let text = "version = 3\n\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes]\n";
    assert_eq!(without(text).as_deref(), Some(text));
    assert_eq!(without(&with(Some(text), false)).as_deref(), Some(text));
    let text = text.replace(".runtimes]", "]");
    assert_eq!(without(&text).as_deref(), Some(text.as_str()));
    assert_eq!(without(&with(Some(&text), false)), Some(text));
}

#[test]
fn what_an_administrator_adds_to_our_table_stays_until_it_goes() {
    let after = with(Some(VERSION_2), false);
    let edited = after.replace(
        "runtime_type = \"io.containerd.casemate.v2\"\n",
        "runtime_type = \"wrong\"\nsnapshotter = \"native\"\n",
    );
    let again = with(Some(&edited), false);
    assert!(again.contains("snapshotter = \"native\"\n"), "{again}");
    assert!(!again.contains("wrong"), "{again}");
    assert_eq!(without(&again).as_deref(), Some(VERSION_2));
}

#[test]
fn inline_tables_and_dotted_keys_are_tables_as_well() {
    let text =
        "version = 3\nplugins.'io.containerd.cri.v1.runtime'.containerd = { runtimes = {} }\n";
    let document: DocumentMut = with(Some(text), false).parse().unwrap();
    let containerd = &document["plugins"]["io.containerd.cri.v1.runtime"]["containerd"];
    let entry = &containerd["runtimes"][NAME];
    assert_eq!(
        entry["runtime_type"].as_str(),
        Some("io.containerd.casemate.v2")
    );
}

#[test]
fn a_file_that_is_not_understood_is_left_alone() {
    for (text, expected) in [
        ("disabled_plugins = [\"cri\"]\n", "has no `version = 2`"),
        ("version = 1\n", "has no `version = 2`"),
        ("version = 4\n", "none of 2 and 3"),
        ("version = \"2\"\n", "none of 2 and 3"),
        ("version = \n", "not valid TOML"),
        ("version = 2\nplugins = 3\n", "plugins is not a table"),
        (
            "version = 3\nplugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes = 3\n",
            "runtimes is not a table",
        ),
    ] {
        let said = refusal(text);
        assert!(said.starts_with("config.toml: not changed: "), "{said}");
        assert!(said.contains(expected) && !said.contains('\n'), "{said}");
    }
}

#[test]
fn the_version_is_that_of_the_installed_containerd() {
    for (told, expected) in [
        (
            "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
            2,
        ),
        (
            "containerd github.com/containerd/containerd/v2 2.1.9+unknown \n",
            3,
        ),
        ("containerd containerd.io v2.2.0 abc", 3),
        ("", 2),
    ] {
        assert_eq!(version_for(told), expected, "{told}");
    }
}

/// The whole plan on a disk: files, link, and both taken back.
#[test]
fn files_and_link_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let etc = folder.path();
    let binary = Path::new("/usr/local/bin/casemate");
    let main = etc.join("containerd/config.toml");
    let drop_in = etc.join("containerd/conf.d/50-casemate.toml");
    let link = etc.join("bin").join(SHIM);
    let install = arguments(Client::Containerd, etc, true);
    let undo = Install {
        undo: true,
        ..arguments(Client::Containerd, etc, true)
    };
    let carry_out = |arguments: &Install| {
        let plan = plan(arguments, binary).unwrap();
        let needed: Vec<Change> = plan.changes.into_iter().filter(Change::is_needed).collect();
        for change in &needed {
            change.make(false).unwrap();
        }
        needed.len()
    };
    std::fs::create_dir(etc.join("containerd")).unwrap();
    for (text, ours) in [(VERSION_2, &main), (VERSION_3, &drop_in)] {
        std::fs::write(&main, text).unwrap();
        assert_eq!(carry_out(&install), 2);
        assert_eq!(carry_out(&install), 0);
        let written = std::fs::read_to_string(ours).unwrap();
        assert!(
            written.contains("default_runtime_name = \"casemate\""),
            "{written}"
        );
        assert!(written.contains("runtimes.casemate]"), "{written}");
        assert_eq!(std::fs::read_link(&link).unwrap(), binary);
        assert_eq!(carry_out(&undo), 2);
        assert_eq!(carry_out(&undo), 0);
        assert_eq!(std::fs::read_to_string(&main).unwrap(), text);
        assert!(!drop_in.exists() && std::fs::symlink_metadata(&link).is_err());
    }
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    std::fs::write(&link, "a file of somebody else").unwrap();
    assert!(plan(&install, binary).is_err());
}
