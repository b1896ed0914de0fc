//! Pods and shared namespaces as clients ask for them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use casemate_e2e::cgroups;
use casemate_e2e::expect::contains;
use casemate_e2e::wait::{until, until_true};
use casemate_e2e::{BUSYBOX, DEBIAN, Host, Podman, Scenario, processes, scenarios};
use nix::sched::{CloneFlags, unshare};

use super::SOON;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut all = scenarios![
        podman_pod,
        podman_pod_stops_and_starts,
        podman_pod_infra_killed,
        podman_play,
        podman_of_another,
        podman_not_its_own,
    ];
    let one = scenarios![one_machine];
    all.extend(one.into_iter().map(|one| one.only_vm("runc has none")));
    all
}

/// Podman's bridges and ports are in a network of the scenario's own.
fn isolate(host: &Host) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    host.command("ip")
        .args(["link", "set", "lo", "up"])
        .run()?
        .ok()?;
    Ok(())
}

/// A pod, and what is done with it.
struct Pod<'h> {
    host: &'h Host,
    podman: Podman<'h>,
}

impl<'h> Pod<'h> {
    fn create(host: &'h Host, flags: &[&str]) -> Result<Pod<'h>> {
        isolate(host)?;
        let podman = Podman::new(host)?;
        let parent = format!("--cgroup-parent=/{}", host.cgroup);
        let create = ["pod", "create", "--name=pod", &parent];
        podman.command([&create[..], flags].concat())?.run()?.ok()?;
        Ok(Pod { host, podman })
    }

    fn podman(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.podman.command(arguments)?.run()?.ok()?.text())
    }

    fn add(&self, name: &str, image: &str, script: &str) -> Result<String> {
        let name = format!("--name={name}");
        self.podman(&[
            "run",
            "--detach",
            "--pod=pod",
            &name,
            image,
            "sh",
            "-c",
            script,
        ])
    }

    fn exec(&self, name: &str, script: &str) -> Result<String> {
        self.podman(&["exec", name, "sh", "-c", script])
    }

    fn status(&self) -> Result<String> {
        self.podman(&["pod", "ps", "--format={{.Status}}"])
    }

    /// Waits until all three containers, infra among them, are in a state.
    fn all_are(&self, state: &str) -> Result<()> {
        let filter = format!("--filter=status={state}");
        until_true(state, SOON, || {
            let listed = self.podman(&["ps", "--all", "--quiet", &filter])?;
            Ok(listed.lines().count() == 3)
        })
    }

    fn end(self) -> Result<()> {
        self.podman(&["pod", "rm", "--force", "--time=0", "pod"])?;
        self.podman(&["rmi", "--all", "--force"])?;
        let left = self.podman(&["ps", "--all", "--quiet"])?;
        ensure!(left.is_empty(), "{left}");
        match self.host.runtime.is_vm() {
            true => Ok(()),
            false => remove_groups(self.host),
        }
    }
}

/// Podman removes the pod's group where it knows the hierarchy; in the others
/// runc has made it and leaves it.
fn remove_groups(host: &Host) -> Result<()> {
    let parent = host.cgroup.as_str();
    let of_pod = |path: &Path| path.parent().is_some_and(|above| above.ends_with(parent));
    for group in cgroups::find(of_pod)
        .iter()
        .filter(|group| !group.ends_with("conmon"))
    {
        fs::remove_dir(group)?;
    }
    Ok(())
}

const SERVE: &str = "while :; do echo hello from alpha | nc -l -p 80; done";

/// What a reader of an address gets from a busy `nc`.
fn asked(address: &str) -> Result<String> {
    use std::io::Read;
    until(address, SOON, || {
        let mut text = String::new();
        let read = std::net::TcpStream::connect(address)
            .and_then(|mut connection| connection.read_to_string(&mut text));
        Ok(read.ok().filter(|count| *count > 0).map(|_| text.clone()))
    })
}

/// Members see each other as in any pod, and the world sees their ports.
fn podman_pod(host: &Host) -> Result<()> {
    let pod = Pod::create(host, &["--publish=18081:80"])?;
    pod.add("alpha", BUSYBOX, SERVE)?;
    pod.add("beta", DEBIAN, "ipcmk -M 4096 > /dev/null; exec sleep 1000")?;
    pod.add("gamma", DEBIAN, "exec sleep 1000")?;
    let over_lo = "until nc -w 5 127.0.0.1 80; do sleep 0.1; done";
    ensure!(pod.exec("alpha", over_lo)? == "hello from alpha");
    ensure!(asked("127.0.0.1:18081")? == "hello from alpha\n");
    until_true("memory that beta has made", SOON, || {
        Ok(pod.exec("gamma", "ipcs -m")?.contains("4096"))
    })?;
    let names = ["alpha", "beta", "gamma"].map(|name| pod.exec(name, "hostname"));
    for name in names {
        ensure!(name? == "pod");
    }
    // A pod shares no processes unless it is asked to.
    let seen = pod.exec("gamma", "cat /proc/[0-9]*/comm")?;
    ensure!(seen.matches("sleep").count() == 1, "{seen}");
    ensure!(pod.status()? == "Running");
    pod.podman(&["stop", "--time=0", "alpha"])?;
    ensure!(pod.status()? == "Degraded");
    ensure!(pod.exec("beta", "echo goes on")? == "goes on");
    pod.podman(&["start", "alpha"])?;
    ensure!(asked("127.0.0.1:18081")? == "hello from alpha\n");
    pod.podman(&["rm", "--force", "--time=0", "beta"])?;
    ensure!(pod.exec("gamma", "echo goes on")? == "goes on");
    pod.end()
}

fn podman_pod_stops_and_starts(host: &Host) -> Result<()> {
    let pod = Pod::create(host, &["--share=net,ipc,uts,pid"])?;
    pod.add("alpha", BUSYBOX, SERVE)?;
    pod.add("beta", BUSYBOX, "exec sleep 1000")?;
    let seen = pod.exec("beta", "ps -o args")?;
    contains(&seen, "catatonit")?;
    contains(&seen, "sleep 1000")?;
    pod.podman(&["pod", "stop", "--time=1", "pod"])?;
    ensure!(pod.status()? == "Exited");
    pod.all_are("exited")?;
    pod.podman(&["pod", "start", "pod"])?;
    pod.all_are("running")?;
    let over_lo = "until nc -w 5 127.0.0.1 80; do sleep 0.1; done";
    ensure!(pod.exec("beta", over_lo)? == "hello from alpha");
    pod.podman(&["pod", "pause", "pod"])?;
    ensure!(pod.status()? == "Paused");
    pod.podman(&["pod", "unpause", "pod"])?;
    pod.podman(&["pod", "restart", "pod"])?;
    pod.all_are("running")?;
    pod.podman(&["pod", "kill", "pod"])?;
    pod.all_are("exited")?;
    // While a pod restarts, the old machine and the new one both use its group,
    // and the one that made it is gone first.
    let host = pod.host;
    pod.end()?;
    remove_groups(host)
}

/// The first container of a pod is killed; the others go on.
fn podman_pod_infra_killed(host: &Host) -> Result<()> {
    let pod = Pod::create(host, &[])?;
    pod.add("alpha", BUSYBOX, "exec sleep 1000")?;
    let infra = pod.podman(&["pod", "inspect", "--format={{.InfraContainerID}}", "pod"])?;
    let infra = infra.trim_matches('"');
    pod.podman(&["kill", infra])?;
    until_true("its end", SOON, || {
        Ok(pod.podman.inspect(infra, "{{.State.Status}}")? == "exited")
    })?;
    ensure!(pod.exec("alpha", "echo goes on")? == "goes on");
    pod.end()
}

/// A small pod of Kubernetes' own words.
fn podman_play(host: &Host) -> Result<()> {
    isolate(host)?;
    let podman = Podman::new(host)?;
    let file = host.dir.join("pod.yaml");
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: yard\nspec:\n  restartPolicy: Never\n  \
         volumes:\n  - name: data\n    emptyDir: {{}}\n  containers:\n  \
         - name: alpha\n    image: {BUSYBOX}\n    command: [sh, -c, \"{SERVE}\"]\n    \
         ports:\n    - containerPort: 80\n      hostPort: 18082\n    \
         volumeMounts:\n    - {{name: data, mountPath: /data}}\n  \
         - name: beta\n    image: {BUSYBOX}\n    command: [sh, -c, \"hostname > /data/name; exec sleep 1000\"]\n    \
         volumeMounts:\n    - {{name: data, mountPath: /data}}\n"
    );
    fs::write(&file, text)?;
    // It loads the image into the storage, which `play` itself does not.
    podman.run(["--rm", BUSYBOX, "true"])?.run()?.ok()?;
    let play = podman.command(["play", "kube", "--network=podman"])?;
    play.arg(&file).run()?.ok()?;
    ensure!(asked("127.0.0.1:18082")? == "hello from alpha\n");
    until_true("a file in the volume", SOON, || {
        let read = podman
            .command(["exec", "yard-alpha", "cat", "/data/name"])?
            .run()?;
        Ok(read.exit.shell() == 0 && read.text() == "yard")
    })?;
    let down = podman.command(["play", "kube", "--down"])?;
    down.arg(&file).run()?.ok()?;
    podman
        .command(["volume", "rm", "--all", "--force"])?
        .run()?
        .ok()?;
    podman.command(["rmi", "--all", "--force"])?.run()?.ok()?;
    fs::remove_file(file)?;
    Ok(())
}

/// `--network`, `--ipc` and `--pid container:…`.
fn podman_of_another(host: &Host) -> Result<()> {
    isolate(host)?;
    let podman = Podman::new(host)?;
    let parent = format!("--cgroup-parent=/{}", host.cgroup);
    let run = |flags: Vec<&str>| -> Result<String> {
        let run = podman.command([&["run", parent.as_str()], &flags[..]].concat())?;
        Ok(run.run()?.ok()?.text())
    };
    for network in ["--network=none", "--network=bridge"] {
        let flags = [
            "--detach",
            "--name=other",
            network,
            "--ipc=shareable",
            BUSYBOX,
            "sh",
            "-c",
            SERVE,
        ];
        run(flags.to_vec())?;
        // Between two answers there is no server for a moment.
        let look = "until nc -w 5 127.0.0.1 80; do sleep 0.1; done; ls /sys/class/net | tr '\\n' ' '; \
            until ps -o comm | grep -c ^nc; do sleep 0.1; done | tail -n 1; \
            touch /dev/mqueue/x /dev/shm/y";
        let flags = ["--rm", "--network=container:other", "--ipc=container:other"];
        let flags = [
            &flags[..],
            &["--pid=container:other", BUSYBOX, "sh", "-c", look],
        ]
        .concat();
        let told = run(flags)?;
        let cards = if network == "--network=none" {
            "lo"
        } else {
            "eth0 lo"
        };
        ensure!(told == format!("hello from alpha\n{cards} 1"), "{told}");
        let left = podman.command(["exec", "other", "ls", "/dev/mqueue", "/dev/shm"])?;
        let left = left.run()?.ok()?.text();
        ensure!(left.contains('x') && left.contains('y'), "{left}");
        podman
            .command(["rm", "--force", "--time=0", "other"])?
            .run()?
            .ok()?;
    }
    Ok(())
}

/// What a client says of a container that does not run any more.
fn podman_not_its_own(host: &Host) -> Result<()> {
    isolate(host)?;
    let podman = Podman::new(host)?;
    podman.run(["--name=over", BUSYBOX, "true"])?.run()?.ok()?;
    let refused = podman
        .run(["--rm", "--network=container:over", BUSYBOX, "true"])?
        .run()?;
    ensure!(refused.exit.shell() != 0, "{refused}");
    podman.command(["rm", "over"])?.run()?.ok()?;
    Ok(())
}

/// All of a pod is in one machine, which lets go what a member had.
fn one_machine(host: &Host) -> Result<()> {
    let pod = Pod::create(host, &[])?;
    pod.add("alpha", BUSYBOX, "exec sleep 1000")?;
    let one = |word: &str| -> Result<processes::Process> {
        let mut all = processes::ours();
        all.retain(|process| process.has_word(word));
        ensure!(all.len() == 1, "{} {word} processes", all.len());
        all.pop().context("counted")
    };
    let devices = one("devices")?;
    let open =
        || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{}/fd", devices.pid))?.count()) };
    let before = open()?;
    pod.add("beta", BUSYBOX, "exec sleep 1000")?;
    pod.exec("beta", "find / -xdev > /dev/null")?;
    ensure!(open()? > before + 100, "files of beta are open");
    ensure!(one("monitor").is_ok() && one("devices")?.pid == devices.pid);
    pod.podman(&["rm", "--force", "--time=0", "beta"])?;
    until_true("the files of beta to be closed", SOON, || {
        Ok(open()? < before + 20)
    })?;
    let stand_ins = processes::ours();
    let stand_ins = stand_ins
        .iter()
        .filter(|process| process.has_word("stand-in"));
    ensure!(stand_ins.count() == 2);
    pod.end()
}
