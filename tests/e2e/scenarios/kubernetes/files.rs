//! Volumes: what the kubelet prepares on the host and changes while pods run.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::cri::Cri;
use casemate_e2e::cri::messages::MountPropagation;
use casemate_e2e::expect::contains;
use casemate_e2e::wait::until_true;

use super::{Body, SOON, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![changing_values, shared_volumes, mounts_that_come_later]
}

/// Writes the values of a ConfigMap as a kubelet does: each change is a new
/// folder and one rename.
fn publish(volume: &Path, generation: &str, values: &[(&str, &str)]) -> Result<()> {
    let folder = volume.join(generation);
    fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
    for (name, value) in values {
        fs::write(folder.join(name), value)?;
    }
    symlink(generation, volume.join("..data_tmp"))?;
    let old = fs::read_link(volume.join("..data"));
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    for (name, _) in values {
        let link = volume.join(name);
        if !link.is_symlink() {
            symlink(Path::new("..data").join(name), link)?;
        }
    }
    if let Ok(old) = old {
        fs::remove_dir_all(volume.join(old))?;
    }
    Ok(())
}

/// ConfigMap, Secret and projected volumes: a later change is seen, whole.
fn changing_values(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("values").run()?;
    let volume = cri.host.new_folder("config")?;
    publish(&volume, "..1", &[("key", "old\n"), ("other", "same\n")])?;
    let single = volume.join("key");
    let main = pod.idle("main").mount_read_only(&volume, "/config");
    // A single file of it (subPath) stays what it was at the start.
    let main = main.mount_read_only(&single, "/single").start()?;
    ensure!(main.sh("cat /config/key /config/other /single")? == "old\nsame\nold");
    let written = main.exec(&["sh", "-c", "echo x >/config/key"])?;
    contains(&written.stderr, "Read-only file system")?;
    for generation in ["..2", "..3"] {
        let value = format!("new {generation}\n");
        publish(
            &volume,
            generation,
            &[("key", &value), ("other", &value), ("added", "more\n")],
        )?;
        until_true("the new value", SOON, || {
            let seen = main.exec(&["cat", "/config/key", "/config/other", "/config/added"])?;
            Ok(seen.stdout == format!("{value}{value}more\n"))
        })?;
    }
    ensure!(main.sh("cat /single")? == "old");
    ensure!(main.sh("ls /config")? == "added\nkey\nother");
    pod.end()
}

/// emptyDir and hostPath: what one container or the host writes, the others see at once.
fn shared_volumes(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("volumes").run()?;
    let (empty, path) = (cri.host.new_folder("empty")?, cri.host.new_folder("path")?);
    fs::set_permissions(&empty, fs::Permissions::from_mode(0o2770))?;
    // What fsGroup has a kubelet do.
    chown(&empty, None, Some(2000))?;
    fs::write(path.join("from-host"), "host\n")?;
    let writer = pod
        .idle("writer")
        .mount(&empty, "/data")
        .mount(&path, "/host");
    let writer = writer.security(|security| {
        security.run_as_user.mut_or_insert_default().value = 1000;
        security.supplemental_groups.push(2000);
    });
    let writer = writer.start()?;
    let reader = pod.idle("reader").mount(&empty, "/data");
    let reader = reader.mount_read_only(&path, "/host").start()?;
    writer.sh("echo word >/data/file; mkdir /data/folder")?;
    ensure!(reader.sh("cat /data/file /host/from-host")? == "word\nhost");
    // The group is the volume's, the user the container's.
    ensure!(reader.sh("stat -c '%u %g' /data/file")? == "1000 2000");
    reader.sh("mv /data/file /data/folder/moved")?;
    ensure!(writer.sh("cat /data/folder/moved")? == "word");
    ensure!(fs::read_to_string(empty.join("folder/moved"))? == "word\n");
    let refused = reader.exec(&["touch", "/host/new"])?;
    contains(&refused.stderr, "Read-only file system")?;
    fs::write(path.join("later"), "later\n")?;
    ensure!(reader.sh("cat /host/later")? == "later");
    // A volume outlives the container.
    writer.remove()?;
    let third = pod.container("third", &["cat", "/data/folder/moved"]);
    ensure!(third.mount(&empty, "/data").start()?.exits(0)? == "word");
    pod.end()
}

/// A volume that is mounted on the host while the pod runs is there for the
/// next container; with propagation also for one that runs.
fn mounts_that_come_later(containerd: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let volume = cri.host.new_folder("volume")?;
    let volume_name = volume.to_str().context("a path in UTF-8")?;
    let mount = |words: &[&str]| -> Result<()> {
        containerd.beside("mount").args(words).run()?.ok()?;
        Ok(())
    };
    mount(&["--bind", volume_name, volume_name])?;
    mount(&["--make-shared", volume_name])?;
    for name in ["early", "late"] {
        fs::create_dir(volume.join(name))?;
    }
    let pod = cri.pod("later").run()?;
    let follower = pod.idle("follower").mount_as(&volume, "/volume", |mount| {
        mount.propagation = MountPropagation::PROPAGATION_HOST_TO_CONTAINER.into();
    });
    let follower = follower.start()?;
    let late = volume.join("late");
    let late_name = late.to_str().context("a path in UTF-8")?;
    mount(&["-t", "tmpfs", "tmpfs", late_name])?;
    let file = format!("{late_name}/file");
    let write = ["-c", &format!("echo mounted >{file}")];
    containerd.beside("sh").args(write).run()?.ok()?;
    let next = pod.container("next", &["cat", "/late/file", "/volume/late/file"]);
    let next = next.mount(&late, "/late").mount(&volume, "/volume");
    ensure!(next.start()?.exits(0)? == "mounted\nmounted");
    until_true("the mount in a container that runs", SOON, || {
        Ok(follower.exec(&["cat", "/volume/late/file"])?.stdout == "mounted\n")
    })?;
    pod.end()?;
    for place in [late_name, volume_name] {
        containerd.beside("umount").arg(place).run()?.ok()?;
    }
    Ok(())
}
