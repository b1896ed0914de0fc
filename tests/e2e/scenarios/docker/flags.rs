//! The flags of `run` that make the container what it is.

use std::fs;

use anyhow::{Result, ensure};
use casemate_e2e::expect::contains;
use casemate_e2e::{BUSYBOX, Docker};

use super::{Body, bodies};

pub(super) fn scenarios() -> Vec<(&'static str, Body)> {
    bodies![flags, rights]
}

pub(super) fn only_vm() -> (&'static str, Body, &'static str) {
    let why = "it needs every capability, also where the machine does not have them all";
    ("privileged", privileged, why)
}

fn flags(docker: &Docker<'_>) -> Result<()> {
    let data = docker.host.new_folder("data")?;
    fs::write(data.join("file"), "from the host\n")?;
    let volume = format!("{}:/data:ro", data.display());
    let script = "id -u; id -g; pwd; echo $A; hostname; cat /data/file; \
                  touch /x /data/x 2>&1 | grep -c Read-only; touch /scratch/x && echo tmpfs; \
                  grep CapEff /proc/self/status; ulimit -n; cat /proc/sys/net/ipv4/ip_forward; \
                  df -k /dev/shm | awk 'END { print $2 }'; grep -c 10.1.2.3 /etc/hosts";
    let run = docker
        .run(["--rm", "--user=1:2", "--workdir=/tmp", "--env=A=b"])
        .args(["--hostname=tower", "--read-only", "--shm-size=3m"])
        .args(["--tmpfs=/scratch:mode=777", "--ulimit=nofile=99:99"])
        .args(["--cap-drop=ALL", "--add-host=there:10.1.2.3"])
        .args(["--sysctl=net.ipv4.ip_forward=1", "--volume", &volume])
        .args([BUSYBOX, "sh", "-c", script])
        .run()?
        .ok()?;
    let expected = "1\n2\n/tmp\nb\ntower\nfrom the host\n2\ntmpfs\n\
                    CapEff:\t0000000000000000\n99\n1\n3072\n1";
    ensure!(run.text() == expected, "{run}");
    let init = docker.run(["--rm", "--init", BUSYBOX, "ps"]).run()?.ok()?;
    let first = init.text().lines().nth(1).unwrap_or_default().to_owned();
    ensure!(
        first.trim_start().starts_with("1 ") && first.contains("init"),
        "{init}"
    );
    Ok(())
}

/// Capabilities, and the system calls that a profile lets through.
fn rights(docker: &Docker<'_>) -> Result<()> {
    // CAP_CHOWN and CAP_NET_ADMIN: capability.h.
    let script = "grep CapEff /proc/self/status; grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; \
                  unshare -m true 2>&1; chown 1 /tmp && echo chown";
    let run = docker
        .run([
            "--rm",
            "--cap-drop=ALL",
            "--cap-add=NET_ADMIN",
            "--cap-add=CHOWN",
        ])
        .args([
            "--security-opt=no-new-privileges",
            BUSYBOX,
            "sh",
            "-c",
            script,
        ])
        .run()?
        .ok()?;
    let expected = "CapEff:\t0000000000001001\nNoNewPrivs:\t1\nSeccomp:\t2\n\
                    unshare: unshare(0x20000): Operation not permitted\nchown";
    ensure!(run.text() == expected, "{run}");
    let profile = docker.host.new_folder("profile")?.join("no-folders.json");
    let rules = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13 }],
    });
    fs::write(&profile, rules.to_string())?;
    let profile = format!("--security-opt=seccomp={}", profile.display());
    let script = "mkdir /new 2>&1; touch /file && echo touched";
    let run = docker
        .run(["--rm", &profile, BUSYBOX, "sh", "-c", script])
        .run()?
        .ok()?;
    contains(
        &run.text(),
        "mkdir: can't create directory '/new': Permission denied\ntouched",
    )?;
    let script = "grep '^Seccomp:' /proc/self/status; mkdir /new";
    let free = "--security-opt=seccomp=unconfined";
    let run = docker
        .run(["--rm", free, BUSYBOX, "sh", "-c", script])
        .run()?
        .ok()?;
    ensure!(run.text() == "Seccomp:\t0", "{run}");
    Ok(())
}

/// Everything is allowed, of the virtual machine.
fn privileged(docker: &Docker<'_>) -> Result<()> {
    let script = "mkdir /new && mount -t tmpfs none /new && echo mounted; hostname changed && hostname; \
                  grep -E '^(CapEff|Seccomp):' /proc/self/status; echo 7 >/proc/sys/vm/swappiness && echo set; \
                  ip link add spare type dummy && echo linked";
    let run = docker
        .run(["--rm", "--privileged", BUSYBOX, "sh", "-c", script])
        .run()?
        .ok()?;
    let text = run.text();
    for part in ["mounted\nchanged\n", "Seccomp:\t0\n", "set"] {
        contains(&text, part)?;
    }
    Ok(())
}
