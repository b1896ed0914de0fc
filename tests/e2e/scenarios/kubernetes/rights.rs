//! What a container may do: users, capabilities, seccomp, the parameters of its pod.

use std::fs;

use anyhow::{Result, ensure};
use casemate_e2e::Containerd;
use casemate_e2e::cri::messages::LinuxContainerSecurityContext;
use casemate_e2e::cri::messages::security_profile::ProfileType;
use casemate_e2e::cri::{Cri, Pod};
use casemate_e2e::expect::{contains, field};
use serde_json::json;

use super::{Body, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![
        users_and_capabilities,
        system_calls,
        parameters_of_the_pod,
        privileged
    ]
}

/// What a script prints in a container with these rights, which must succeed.
fn prints(
    pod: &Pod<'_, '_>,
    script: &str,
    change: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> Result<String> {
    let container = pod.container("prints", &["sh", "-c", script]);
    let container = container.security(change).start()?;
    let printed = container.exits(0)?;
    container.remove()?;
    Ok(printed)
}

/// Where Linux says what a process may do.
const STATUS: &str = "cat /proc/self/status";

fn users_and_capabilities(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("users").run()?;
    let ids = prints(&pod, "id -u; id -g; id -G", |security| {
        security.run_as_user.mut_or_insert_default().value = 1000;
        security.run_as_group.mut_or_insert_default().value = 1001;
        security.supplemental_groups = vec![2000, 2001];
    })?;
    ensure!(ids == "1000\n1001\n1001 2000 2001", "{ids}");
    let name = prints(&pod, "id -un; id -gn", |security| {
        security.run_as_username = "www-data".to_owned();
    })?;
    ensure!(name == "www-data\nwww-data", "{name}");
    let effective = |add: &[&str], drop: &[&str]| -> Result<u64> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let status = prints(&pod, STATUS, |security| {
            let capabilities = security.capabilities.mut_or_insert_default();
            capabilities.add_capabilities = owned(add);
            capabilities.drop_capabilities = owned(drop);
        })?;
        Ok(u64::from_str_radix(field(&status, "CapEff:")?, 16)?)
    };
    const CHOWN: u64 = 1 << 0;
    const NET_BIND_SERVICE: u64 = 1 << 10;
    const NET_ADMIN: u64 = 1 << 12;
    let usual = effective(&[], &[])?;
    ensure!(usual & (CHOWN | NET_ADMIN) == CHOWN, "{usual:x}");
    ensure!(effective(&["NET_ADMIN"], &["CHOWN"])? == (usual | NET_ADMIN) & !CHOWN);
    ensure!(effective(&["NET_BIND_SERVICE"], &["ALL"])? == NET_BIND_SERVICE);
    let written = "touch /new 2>&1; touch /tmp/new 2>&1; touch /dev/shm/new && echo shm";
    let written = prints(&pod, written, |security| security.readonly_rootfs = true)?;
    contains(&written, "/new: Read-only file system")?;
    contains(&written, "/tmp/new: Read-only file system\nshm")?;
    let status = prints(&pod, STATUS, |security| security.no_new_privs = true)?;
    ensure!(field(&status, "NoNewPrivs:")? == "1");
    ensure!(field(&prints(&pod, STATUS, |_| ())?, "NoNewPrivs:")? == "0");
    let hidden = "cat /proc/keys; ls /proc/acpi; echo 1 >/proc/sys/kernel/dmesg_restrict";
    let hidden = prints(&pod, &format!("{{ {hidden}; }} 2>&1; true"), |security| {
        security.masked_paths = vec!["/proc/keys".to_owned(), "/proc/acpi".to_owned()];
        security.readonly_paths = vec!["/proc/sys".to_owned()];
    })?;
    contains(&hidden, "Read-only file system")?;
    ensure!(hidden.lines().count() == 1, "{hidden}");
    pod.end()
}

/// Seccomp: none, containerd's own profile, one of the administrator's.
fn system_calls(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri.pod("calls").run()?;
    let profile = cri.host.new_folder("seccomp")?.join("no-folders.json");
    let rule = json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"});
    let text = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [rule],
    });
    fs::write(&profile, text.to_string())?;
    // What each forbids: to make a namespace, to make a folder.
    let script = "grep ^Seccomp: /proc/self/status; unshare -U true 2>/dev/null || echo no namespace; \
                  mkdir /new 2>/dev/null || echo no folder";
    let with = |kind: ProfileType, path: &str| {
        let printed = prints(&pod, script, |security| {
            let profile = security.seccomp.mut_or_insert_default();
            profile.profile_type = kind.into();
            profile.localhost_ref = path.to_owned();
        })?;
        Ok::<_, anyhow::Error>(printed.replace('\t', " "))
    };
    let free = with(ProfileType::Unconfined, "")?;
    contains(&free, "Seccomp: 0")?;
    ensure!(!free.contains("no folder"), "{free}");
    let usual = with(ProfileType::RuntimeDefault, "")?;
    ensure!(usual == "Seccomp: 2\nno namespace", "{usual}");
    let own = with(ProfileType::Localhost, &profile.to_string_lossy())?;
    contains(&own, "Seccomp: 2")?;
    contains(&own, "no folder")?;
    // A command that is added has the same.
    let main = pod.idle("main").security(|security| {
        let profile = security.seccomp.mut_or_insert_default();
        profile.profile_type = ProfileType::RuntimeDefault.into();
    });
    let main = main.start()?;
    ensure!(main.sh("grep ^Seccomp: /proc/self/status")?.ends_with('2'));
    pod.end()
}

/// Parameters of the kernel and the size of /dev/shm.
fn parameters_of_the_pod(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let pod = cri
        .pod("parameters")
        .sysctl("net.ipv4.ip_local_port_range", "2000 3000")
        .sysctl("kernel.shm_rmid_forced", "1")
        .run()?;
    let main = pod.idle("main").start()?;
    let seen =
        main.sh("cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced")?;
    ensure!(seen == "2000\t3000\n1", "{seen}");
    // What containerd gives every pod.
    let size = main.sh("df -k /dev/shm | awk 'END { print $2 }'")?;
    ensure!(size == "65536", "{size}");
    let full = main.exec(&["dd", "if=/dev/zero", "of=/dev/shm/big", "bs=1M", "count=65"])?;
    contains(&full.stderr, "No space left on device")?;
    pod.end()
}

/// Every capability that the engine has and no seccomp; of devices those that
/// containers have.
fn privileged(_: &Containerd<'_>, cri: &Cri<'_>) -> Result<()> {
    let engine = fs::read_to_string("/proc/self/status")?;
    let pod = cri.pod("privileged").edit(|config| {
        let linux = config.linux.mut_or_insert_default();
        linux.security_context.mut_or_insert_default().privileged = true;
    });
    let pod = pod.run()?;
    let script = "cat /proc/self/status; mount -t tmpfs none /tmp && echo mounted; ls /dev";
    let printed = prints(&pod, script, |security| security.privileged = true)?;
    let full = field(&printed, "CapEff:")?;
    ensure!(full == field(&engine, "CapEff:")?, "{full}");
    ensure!(field(&printed, "Seccomp:")? == "0");
    contains(&printed, "\nmounted\n")?;
    if cri.host.runtime.is_vm() {
        // `privileged_without_host_devices` in the engine's configuration.
        let (_, devices) = printed.split_once("\nmounted\n").unwrap_or_default();
        for disk in ["loop", "vda", "sda", "nvme"] {
            ensure!(!devices.contains(disk), "{devices}");
        }
    }
    pod.end()
}
