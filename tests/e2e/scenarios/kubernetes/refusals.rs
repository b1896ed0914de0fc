//! What cannot be: refused with the reason, and nothing is left of it.

use anyhow::{Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::cri::messages::{
    Empty, ImageStatusRequest, ImageStatusResponse, ListImagesResponse,
};
use casemate_e2e::cri::messages::{StatusResponse, VersionResponse};
use casemate_e2e::cri::{Cri, refusal};
use casemate_e2e::expect::contains;
use casemate_e2e::{BUSYBOX, PAUSE};

use super::{Body, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![the_engine_itself, no_such_thing, programs_that_cannot_run]
}

pub(super) fn only_vm() -> Vec<(&'static str, Body, &'static str)> {
    vec![("annotations", annotations, "runc has no annotations")]
}

/// It is ready, and knows its images.
fn the_engine_itself(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let version: VersionResponse = cri.runtime("Version", &Empty::new())?;
    ensure!(version.runtime_name == "containerd" && version.runtime_api_version == "v1");
    let status: StatusResponse = cri.runtime("Status", &Empty::new())?;
    for condition in &status.status.conditions {
        let wanted = ["RuntimeReady", "NetworkReady"].contains(&&*condition.type_);
        ensure!(condition.status || !wanted, "{status}");
    }
    let images: ListImagesResponse = cri.image("ListImages", &Empty::new())?;
    let has = |name: &str| {
        let mut tags = images.images.iter().flat_map(|image| &image.repo_tags);
        tags.any(|tag| tag == name)
    };
    ensure!(has(BUSYBOX) && has(PAUSE), "{images}");
    let mut request = ImageStatusRequest::new();
    request.image.mut_or_insert_default().image = BUSYBOX.to_owned();
    let found: ImageStatusResponse = cri.image("ImageStatus", &request)?;
    ensure!(found.image.is_some());
    request.image.mut_or_insert_default().image = "localhost/none:latest".to_owned();
    let none: ImageStatusResponse = cri.image("ImageStatus", &request)?;
    ensure!(none.image.is_none());
    Ok(())
}

fn no_such_thing(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let refused = refusal(cri.pod("unknown").handler("nothing").run().map(|_| ()))?;
    contains(&refused.message, "nothing")?;
    cri.nothing_left()?;
    let pod = cri.pod("known").run()?;
    let image = pod.idle("image").image("localhost/none:latest");
    let refused = refusal(image.create().map(|_| ()))?;
    contains(&refused.message, "localhost/none")?;
    // Below a file there is nothing; what is only not there is made by the engine.
    let folder = cri.host.new_folder("absent")?;
    std::fs::write(folder.join("file"), "")?;
    let below = pod.idle("below").mount(&folder.join("file/below"), "/at");
    contains(
        &refusal(below.create().map(|_| ()))?.message,
        "not a directory",
    )?;
    // The name of a container that is there.
    let main = pod.idle("main").start()?;
    let refused = refusal(pod.idle("main").create().map(|_| ()))?;
    contains(&refused.message, "reserved")?;
    let refused = refusal(main.start())?;
    contains(&refused.message, "state")?;
    main.sh("true")?;
    main.stop(0)?;
    ensure!(main.exec(&["true"]).is_err());
    main.remove()?;
    pod.end()
}

/// The reason reaches who asked, and the pod stays good.
fn programs_that_cannot_run(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("programs").run()?;
    for (name, word, reason) in [
        (
            "missing",
            "no-such-program",
            "executable file not found in $PATH",
        ),
        ("absent", "/no/such/program", "no such file or directory"),
        ("folder", "/etc", "permission denied"),
    ] {
        let container = pod.container(name, &[word]).create()?;
        let refused = refusal(container.start())?;
        contains(&refused.message.to_lowercase(), &reason.to_lowercase())?;
        let status = container.status()?;
        ensure!(
            status.exit_code == 128 && status.reason == "StartError",
            "{status}"
        );
        container.remove()?;
    }
    let folder = pod.container("cwd", &["true"]).edit(|config| {
        config.working_dir = "/etc/passwd".to_owned();
    });
    let folder = folder.create()?;
    contains(
        &refusal(folder.start())?.message.to_lowercase(),
        "not a directory",
    )?;
    let user = pod.container("user", &["true"]).security(|security| {
        security.run_as_username = "nobody-knows".to_owned();
    });
    ensure!(user.start().is_err());
    pod.container("good", &["true"]).start()?.exits(0)?;
    pod.end()
}

/// A value that means nothing, a key that nobody has allowed, one that there is not;
/// and what is good is followed.
fn annotations(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    for (key, value) in [
        ("casemate.io/machine.vcpus", "many"),
        ("casemate.io/machine.memory_mib", "-1"),
        ("casemate.io/guest.kernel", "/boot/vmlinuz"),
        ("casemate.io/no-such-key", "1"),
    ] {
        let refused = refusal(
            cri.pod("annotated")
                .annotation(key, value)
                .run()
                .map(|_| ()),
        )?;
        contains(&refused.message, key)?;
        cri.nothing_left()?;
    }
    let pod = cri
        .pod("sized")
        .annotation("casemate.io/machine.vcpus", "2");
    let pod = pod.annotation("io.katacontainers.config.hypervisor.default_memory", "300");
    let pod = pod.run()?;
    let main = pod.idle("main").start()?;
    ensure!(main.sh("nproc")? == "2");
    let total = main.sh("awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo")?;
    // What a clone gets more than its template is in steps of 128 MiB.
    ensure!((200..428).contains(&total.parse::<u32>()?), "{total}");
    pod.end()
}
