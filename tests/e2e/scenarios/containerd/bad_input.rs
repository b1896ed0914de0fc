//! What a shim refuses, and that nothing is left of it.

use std::fs;

use anyhow::{Context, Result, ensure};
use casemate_e2e::containerd::Shim;
use casemate_e2e::expect::{contains, one_clear_line};
use casemate_e2e::protos::protobuf::Message;
use casemate_e2e::protos::protobuf::well_known_types::any::Any;
use casemate_e2e::protos::ttrpc::Code;
use casemate_e2e::wait::until_true;
use casemate_e2e::{Bundle, Containerd};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use super::service::{created, ended, program, refused};
use super::{Body, SOON, bodies};

pub(super) fn of_one_engine() -> Vec<(&'static str, Body)> {
    bodies![no_specification, bad_creates, refused_by_the_client]
}

pub(super) fn only_vm() -> [(&'static str, Body, &'static str); 2] {
    [
        ("options", options, "runc's shim knows other options"),
        (
            "unopened_fifos",
            unopened_fifos,
            "runc's shim waits for half a minute",
        ),
    ]
}

/// `start` needs `config.json` in its folder.
fn no_specification(containerd: &Containerd<'_>) -> Result<()> {
    for content in [None, Some("{"), Some("[]")] {
        let folder = containerd.host.new_folder("bundle")?;
        if let Some(content) = content {
            fs::write(folder.join("config.json"), content)?;
        }
        let shim = Shim::new(containerd, &folder)?;
        let start = shim.verb("start", &[]).run()?;
        ensure!(
            start.exit.shell() != 0 && start.text().is_empty(),
            "{start}"
        );
        if containerd.host.runtime.is_vm() {
            contains(&one_clear_line(&start)?, "config.json")?;
        }
        // The engine has it clean up whatever happened.
        let deleted = shim.delete()?;
        ensure!(deleted.exit_status == 137, "{deleted:?}");
    }
    Ok(())
}

/// A container that cannot be made leaves a shim that ends when it is told.
fn bad_creates(containerd: &Containerd<'_>) -> Result<()> {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 4] = [
        ("args", |spec| spec["process"]["args"] = json!([])),
        ("root", |spec| spec["root"]["path"] = json!("nowhere")),
        ("cwd", |spec| spec["process"]["cwd"] = json!("relative")),
        ("mount", |spec| {
            let mount = json!({"destination": "/x", "type": "bind", "source": "/no/such/source",
                "options": ["rbind"]});
            if let Some(mounts) = spec["mounts"].as_array_mut() {
                mounts.push(mount);
            }
        }),
    ];
    for (what, change) in changes {
        let bundle = Bundle::new(containerd.host, &["true"])?.edit(change)?;
        refuses_to_create(containerd, &bundle, None)
            .with_context(|| format!("a specification with a bad {what}"))?;
    }
    let bundle = Bundle::new(containerd.host, &["true"])?;
    refuses_to_create(containerd, &bundle, Some("/no/such/bundle")).context("no bundle")
}

fn refuses_to_create(
    containerd: &Containerd<'_>,
    bundle: &Bundle,
    other_path: Option<&str>,
) -> Result<()> {
    let shim = Shim::new(containerd, &bundle.dir)?;
    // A shim that has read the specification may refuse it at once.
    let start = shim.verb("start", &[]).run()?;
    if start.exit.shell() != 0 {
        ensure!(containerd.host.runtime.is_vm(), "{start}");
        one_clear_line(&start)?;
        shim.delete()?;
        return Ok(());
    }
    let task = shim.task(&start.text())?;
    let created = task.create(other_path.unwrap_or(shim.path()));
    let refusal = created.err().context("it was created")?;
    if containerd.host.runtime.is_vm() {
        let codes = [
            Code::INVALID_ARGUMENT,
            Code::NOT_FOUND,
            Code::FAILED_PRECONDITION,
        ];
        ensure!(codes.contains(&refusal.code), "{refusal}");
        ensure!(!refusal.text.contains('\n'), "{refusal}");
    }
    refused(Code::NOT_FOUND, task.delete(""))?;
    let _ = task.shutdown(true);
    shim.delete()?;
    Ok(())
}

/// Output that nobody has opened yet holds up the program alone, and only once
/// the pipe is full.
fn unopened_fifos(containerd: &Containerd<'_>) -> Result<()> {
    let fifo = |name: &str| -> Result<String> {
        let path = containerd.host.new_folder("fifo")?.join(name);
        mkfifo(&path, Mode::from_bits_truncate(0o700))?;
        Ok(path.to_string_lossy().into_owned())
    };
    for (script, code) in [("echo out; echo error >&2; exit 4", 4), ("yes", 137)] {
        let bundle = Bundle::new(containerd.host, &["sh", "-c", script])?;
        let shim = Shim::new(containerd, &bundle.dir)?;
        let task = shim.start()?;
        task.create_writing(shim.path(), &fifo("out")?, &fifo("err")?)?;
        task.start("")?;
        if code == 137 {
            std::thread::sleep(std::time::Duration::from_millis(500));
            task.kill("", 9, true)?;
        }
        let waited = task.wait("")?;
        ensure!(waited.exit_status == code, "{waited:?}");
        ended(&shim, &task)?;
    }
    let (shim, task) = created(containerd, &["sleep", "1000"])?;
    task.start("")?;
    let open = || -> Result<usize> {
        let folder = format!("/proc/{}/fd", task.connect()?.shim_pid);
        Ok(fs::read_dir(folder)?.count())
    };
    let before = open()?;
    task.exec_writing("added", program(&["yes"]), &fifo("out")?)?;
    task.start("added")?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    task.kill("added", 9, true)?;
    ensure!(task.wait("added")?.exit_status == 137);
    // What nobody has read goes with the process.
    task.delete("added")?;
    until_true("its streams to be closed", SOON, || Ok(open()? <= before))?;
    ended(&shim, &task)
}

/// What the client of an engine gets to read.
fn refused_by_the_client(containerd: &Containerd<'_>) -> Result<()> {
    let (host, ctr) = (containerd.host, containerd.ctr());
    let id = ctr.run_detached(&[], &["sleep", "1000"])?;
    let again = ctr.run_as(&id, &["--rm"], &["true"]).run()?;
    ensure!(again.exit.shell() != 0, "{again}");
    contains(&again.errors(), "already exists")?;
    let twice = ctr.command(["tasks", "start", &id]).run()?;
    ensure!(twice.exit.shell() != 0, "{twice}");
    let running = ctr.command(["tasks", "delete", &id]).run()?;
    ensure!(running.exit.shell() != 0, "{running}");
    ctr.exec(&id, &[], &["true"]).run()?.ok()?;
    ctr.remove(&id)?;
    let twice = ctr.command(["tasks", "delete", &id]).run()?;
    ensure!(twice.exit.shell() != 0, "{twice}");
    contains(&twice.errors(), "not found")?;
    let missing = "type=bind,src=/no/such/source,dst=/x,options=rbind:ro";
    for flags in [&["--mount", missing][..], &["--cwd", "relative"]] {
        let id = host.new_id();
        let run = ctr
            .run_as(&id, &[&["--rm"], flags].concat(), &["true"])
            .run()?;
        ensure!(run.exit.shell() != 0, "{run}");
        ensure!(run.errors().len() > 15, "{run}");
        super::forget(&ctr, &id)?;
    }
    Ok(())
}

/// Options name a configuration file, or what only another runtime has.
fn options(containerd: &Containerd<'_>) -> Result<()> {
    let (host, ctr) = (containerd.host, containerd.ctr());
    let file = host.new_folder("etc")?.join("own.toml");
    let path = file.to_string_lossy();
    let flags = ["--rm", "--runtime-config-path", &path];
    for (content, complaint) in [
        (None, "own.toml"),
        (Some("[vmm]\nno_such_key = 1\n"), "no_such_key"),
        (
            Some("[vmm]\nmin_tier = \"kvm\"\naccelerator = \"emulated\"\n"),
            "at least kvm is demanded",
        ),
    ] {
        if let Some(content) = content {
            fs::write(&file, content)?;
        }
        let id = host.new_id();
        let run = ctr.run_as(&id, &flags, &["true"]).run()?;
        ensure!(run.exit.shell() != 0, "{run}");
        contains(&run.errors(), complaint)?;
        super::forget(&ctr, &id)?;
    }
    fs::write(&file, "[vmm]\nmin_tier = \"emulated\"\n")?;
    let run = ctr.run(&flags, &["uname", "-r"]).run()?.ok()?;
    contains(&run.text(), "casemate")?;
    // The engine passes them on to `start`.
    let bundle = Bundle::new(host, &["true"])?;
    let shim = Shim::new(containerd, &bundle.dir)?;
    let unknown = Any {
        type_url: "example.Options".to_owned(),
        ..Any::default()
    };
    for (input, complaint) in [
        (unknown.write_to_bytes()?, "example.Options"),
        (b"\xff\xff\xff".to_vec(), "options"),
    ] {
        let start = shim.verb("start", &[]).input(input).run()?;
        ensure!(
            start.exit.shell() != 0 && start.text().is_empty(),
            "{start}"
        );
        contains(&one_clear_line(&start)?, complaint)?;
    }
    Ok(())
}
