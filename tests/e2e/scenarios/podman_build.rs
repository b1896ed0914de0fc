//! Images whose `RUN` steps are containers of the runtime: with podman, and
//! with buildah, which polls `state` and deletes without force.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::{BUSYBOX, Command, Host, Podman, Scenario, Skip, scenarios};

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![
        podman_build,
        podman_build_that_fails,
        buildah_bud,
        buildah_run,
        buildah_run_on_a_terminal,
    ]
}

/// A build of some steps takes as many machines.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is built: files of steps, a user, a folder, and what the steps saw.
fn recipe(host: &Host, steps: &str) -> Result<PathBuf> {
    let folder = host.new_folder("recipe")?;
    fs::write(folder.join("letter"), "from the host\n")?;
    fs::write(
        folder.join("Containerfile"),
        format!("FROM {BUSYBOX}\n{steps}"),
    )?;
    Ok(folder)
}

const STEPS: &str = "COPY letter /srv/letter\n\
    RUN uname -r >/kernel; cat /srv/letter >/srv/copy; chown 1000:1000 /srv/copy; mkdir /work\n\
    WORKDIR /work\n\
    ENV COLOUR=red\n\
    USER 1000:1000\n\
    RUN test \"$(pwd)\" = /work && test $COLOUR = red && id -u >>/srv/copy\n\
    CMD [\"cat\", \"/srv/copy\", \"/kernel\"]\n";

const IMAGE: &str = "localhost/built:1";

fn build<'h>(host: &Host, program: Command<'h>, verb: &str, folder: &PathBuf) -> Command<'h> {
    let runtime = host.runtime.path.to_string_lossy().into_owned();
    let flags = [
        "--isolation=oci",
        "--network=none",
        "--no-cache",
        "--runtime",
        &runtime,
        "--tag",
        IMAGE,
    ];
    program.arg(verb).args(flags).arg(folder).limit(PATIENCE)
}

/// Podman with the image that is built upon.
fn engine(host: &Host) -> Result<Podman<'_>> {
    let podman = Podman::new(host)?;
    let exists = podman.command(["image", "exists", BUSYBOX])?;
    exists.run()?.ok()?;
    Ok(podman)
}

/// The image is what the steps have made, by the runtime.
fn check_image(host: &Host, engine: &Podman<'_>) -> Result<()> {
    let run = engine.run(["--rm", IMAGE])?.run()?.ok()?;
    let text = run.text();
    let lines: Vec<&str> = text.lines().collect();
    ensure!(
        lines.len() == 3 && lines[..2] == ["from the host", "1000"],
        "{run}"
    );
    let own_kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(
        (lines[2] == own_kernel.trim()) != host.runtime.is_vm(),
        "{run}"
    );
    engine.command(["rmi", "--force", IMAGE])?.run()?.ok()?;
    Ok(())
}

fn podman_build(host: &Host) -> Result<()> {
    let engine = engine(host)?;
    build(
        host,
        engine.command_as_configured::<&str>([]),
        "build",
        &recipe(host, STEPS)?,
    )
    .run()?
    .ok()?;
    check_image(host, &engine)
}

/// A step that fails ends the build, and what it says is shown.
fn podman_build_that_fails(host: &Host) -> Result<()> {
    let engine = engine(host)?;
    let folder = recipe(
        host,
        "RUN echo the moat is dry >&2; exit 9\nRUN echo never\n",
    )?;
    let failed = build(
        host,
        engine.command_as_configured::<&str>([]),
        "build",
        &folder,
    )
    .run()?;
    ensure!(failed.exit.shell() != 0, "{failed}");
    contains(&failed.errors(), "the moat is dry")?;
    contains(&failed.errors(), "exit status 9")?;
    ensure!(!failed.text().contains("never\n"), "{failed}");
    Ok(())
}

/// Buildah with the storage that podman has here.
fn buildah<'h>(host: &'h Host) -> Result<Command<'h>> {
    if !["/usr/bin/buildah", "/usr/local/bin/buildah"]
        .iter()
        .any(|path| fs::exists(path).unwrap_or(false))
    {
        return Err(Skip("buildah is not installed".to_owned()).into());
    }
    let set = |command: Command<'h>, name: &str, file: &str| command.env(name, host.dir.join(file));
    let command = set(
        host.command("buildah"),
        "CONTAINERS_CONF",
        "containers.conf",
    );
    Ok(set(command, "CONTAINERS_STORAGE_CONF", "storage.conf"))
}

fn buildah_bud(host: &Host) -> Result<()> {
    let engine = engine(host)?;
    build(host, buildah(host)?, "bud", &recipe(host, STEPS)?)
        .run()?
        .ok()?;
    check_image(host, &engine)
}

/// A working container, in which `buildah run` runs commands.
fn working_container(host: &Host) -> Result<String> {
    engine(host)?;
    let from = buildah(host)?.args(["from", BUSYBOX]).run()?.ok()?;
    from.text()
        .lines()
        .last()
        .map(str::to_owned)
        .context("the container's name")
}

fn run<'h>(host: &'h Host, flags: &[&str], name: &str, program: &[&str]) -> Result<Command<'h>> {
    let runtime = host.runtime.path.to_string_lossy().into_owned();
    let run = buildah(host)?.args([
        "run",
        "--isolation=oci",
        "--network=none",
        "--runtime",
        &runtime,
    ]);
    Ok(run
        .args(flags)
        .arg("--")
        .arg(name)
        .args(program)
        .limit(PATIENCE))
}

fn buildah_run(host: &Host) -> Result<()> {
    let name = working_container(host)?;
    let script = "cat; echo error >&2; uname -r; echo kept >/kept; exit 7";
    let first = run(host, &[], &name, &["sh", "-c", script])?
        .input("in\n")
        .run()?
        .exits(7)?;
    ensure!(first.text().starts_with("in\n"), "{first}");
    contains(&first.errors(), "error")?;
    // The runtime's own container is new, its files are not.
    let flags = ["--user=1000", "--env=COLOUR=red", "--workingdir=/tmp"];
    let script = "cat /kept; id -u; echo $COLOUR; pwd";
    let second = run(host, &flags, &name, &["sh", "-c", script])?
        .run()?
        .ok()?;
    ensure!(second.text() == "kept\n1000\nred\n/tmp", "{second}");
    buildah(host)?.args(["rm", &name]).run()?.ok()?;
    Ok(())
}

fn buildah_run_on_a_terminal(host: &Host) -> Result<()> {
    use casemate_e2e::Size;
    const SOON: Duration = Duration::from_secs(30);
    let name = working_container(host)?;
    let script = "tty; stty size; read line; echo \"<$line>\"; exit 5";
    let run = run(host, &["--terminal"], &name, &["sh", "-c", script])?;
    let mut typist = run.on_terminal(Size {
        rows: 31,
        columns: 101,
    })?;
    typist.await_text("/dev/pts/0\r\n31 101\r\n", SOON)?;
    typist.type_text("word\r")?;
    typist.await_text("<word>", SOON)?;
    typist.finish()?.exits(5)?;
    buildah(host)?.args(["rm", &name]).run()?.ok()?;
    Ok(())
}
