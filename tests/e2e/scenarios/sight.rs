//! What a container sees is what the image and the flags say: compared with
//! the same command under runc, and with the value that was asked for.

mod mount_table;

use std::fs;

use anyhow::{Result, ensure};
use casemate_e2e::expect::{contains, field, same};
use casemate_e2e::{BUSYBOX, DEBIAN, Host, Podman, Scenario, podman::volume, scenarios};

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![
        defaults,
        capabilities_by_name,
        mount_table,
        devices,
        user_by_number,
        user_by_name,
        environment,
        read_only_root,
        temporary_file_systems,
        volumes,
        dropped_capabilities,
        seccomp_profile,
        seccomp_off,
        no_new_privileges,
        limits,
        kernel_parameters,
        init,
        extra_devices,
        process_limit,
        memory_limit,
        hidden_paths,
        privileged,
    ]
}

/// The output of a command in a container; where runc is not the runtime, it
/// has to be what runc gives.
fn seen(host: &Host, flags: &[&str], command: &[&str]) -> Result<String> {
    let text = raw(&Podman::new(host)?, flags, command)?;
    if host.runtime.is_vm() {
        let reference = raw(&Podman::with(host, host.runc()?)?, flags, command)?;
        same(&text, &reference)?;
    }
    Ok(text)
}

fn raw(podman: &Podman<'_>, flags: &[&str], command: &[&str]) -> Result<String> {
    let arguments = ["--rm", "--hostname=fort"]
        .iter()
        .chain(flags)
        .chain(command);
    Ok(podman.run(arguments)?.run()?.ok()?.text())
}

/// The part of /proc/1/status that a configuration decides.
const STATUS: &str = "grep -E '^(Umask|Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp):' /proc/1/status";

fn defaults(host: &Host) -> Result<()> {
    let script = format!(
        "id; pwd; umask; hostname; env | sort; {STATUS}; cat /etc/hostname /etc/hosts; \
         cat /proc/1/oom_score_adj /proc/sys/kernel/hostname; tr '\\0' ' ' </proc/1/cmdline | head -c 20; \
         cat /proc/self/loginuid >/dev/null; ulimit -n; ulimit -u; stat -c '%n %a %F %u:%g' /* | grep -v ' /sys '"
    );
    // The name that is invented otherwise shows in /etc/hosts.
    let text = seen(host, &["--name=fort"], &[BUSYBOX, "sh", "-c", &script])?;
    contains(&text, "uid=0(root) gid=0(root)")?;
    ensure!(
        field(&text, "Seccomp:")? == "2",
        "no seccomp filter\n{text}"
    );
    ensure!(field(&text, "NoNewPrivs:")? == "0", "{text}");
    Ok(())
}

fn capabilities_by_name(host: &Host) -> Result<()> {
    let text = seen(host, &[], &[DEBIAN, "capsh", "--print"])?;
    contains(&text, "cap_chown")?;
    let bounding = field(&text, "Bounding set =")?;
    ensure!(!bounding.contains("cap_sys_admin"), "{text}");
    Ok(())
}

/// The mount table is the same but for what a file system is called.
fn mount_table(host: &Host) -> Result<()> {
    let data = host.new_folder("data")?;
    let bind = volume(&data, "/data:ro");
    let flags = [
        bind.as_str(),
        "--tmpfs=/scratch:size=1m,mode=0750",
        "--shm-size=2m",
    ];
    let ours = mount_table::seen(&Podman::new(host)?, &flags)?;
    ours.has("/data", &["ro"])?;
    ours.has("/proc", &["nosuid", "nodev", "noexec"])?;
    ours.has("/scratch", &["nosuid", "nodev", "size=1024k"])?;
    if host.runtime.is_vm() {
        let reference = mount_table::seen(&Podman::with(host, host.runc()?)?, &flags)?;
        ours.same_as(&reference)?;
    }
    Ok(())
}

fn devices(host: &Host) -> Result<()> {
    let script = "for f in /dev/*; do stat -c '%n %F %a %u:%g %t,%T' $f; readlink $f; done; \
                  echo x >/dev/full; echo $?; head -c 3 /dev/zero | xxd; head -c 8 /dev/urandom | wc -c; \
                  ls -ld /dev/pts /dev/shm /dev/mqueue | cut -c1-10";
    let text = seen(host, &[], &[BUSYBOX, "sh", "-c", script])?;
    contains(&text, "/dev/null character special file 666 0:0 1,3")
}

fn user_by_number(host: &Host) -> Result<()> {
    let script = format!("id -u; id -g; id -G; {STATUS}; echo $HOME; touch /etc/x 2>&1");
    let flags = ["--user=1234:2345", "--group-add=777"];
    let text = seen(
        host,
        &flags,
        &[DEBIAN, "sh", "-c", &format!("{script} || true")],
    )?;
    contains(&text, "1234\n2345\n2345 777")?;
    ensure!(field(&text, "CapEff:")? == "0000000000000000", "{text}");
    contains(&text, "Permission denied")
}

fn user_by_name(host: &Host) -> Result<()> {
    let flags = ["--user=www-data:mail", "--group-add=tty"];
    let text = seen(
        host,
        &flags,
        &[DEBIAN, "sh", "-c", "id; echo $HOME; whoami"],
    )?;
    contains(&text, "uid=33(www-data) gid=8(mail)")?;
    contains(&text, "5(tty)")
}

fn environment(host: &Host) -> Result<()> {
    let flags = [
        "--env=LETTER=ä b\"c",
        "--env=EMPTY=",
        "--workdir=/var/tmp",
        "--umask=0027",
        "--entrypoint=/bin/sh",
    ];
    let script = "env | sort; pwd; umask; touch /f; stat -c %a /f; hostname; cat /proc/sys/kernel/domainname; echo $0 $@";
    let text = seen(
        host,
        &flags,
        &[BUSYBOX, "-c", script, "zero", "one two", ""],
    )?;
    contains(&text, "LETTER=ä b\"c")?;
    contains(&text, "/var/tmp\n0027\n640\nfort")?;
    contains(&text, "zero one two")
}

fn read_only_root(host: &Host) -> Result<()> {
    let script = "touch /x /etc/x /usr/x 2>&1; touch /tmp/x /run/x /dev/shm/x && echo written";
    let text = seen(host, &["--read-only"], &[BUSYBOX, "sh", "-c", script])?;
    ensure!(text.matches("Read-only file system").count() == 3, "{text}");
    contains(&text, "written")
}

fn temporary_file_systems(host: &Host) -> Result<()> {
    let script = "stat -c '%a %u:%g %n' /scratch; df -k /scratch /dev/shm | awk 'NR>1{print $2, $6}'; \
                  head -c 3000000 /dev/zero >/scratch/f; stat -c %s /scratch/f; stat -f -c %T /scratch; \
                  head -c 3000000 /dev/zero >/dev/shm/f; stat -c %s /dev/shm/f";
    let flags = ["--tmpfs=/scratch:size=1m,mode=0750", "--shm-size=2m"];
    let text = seen(host, &flags, &[BUSYBOX, "sh", "-c", script])?;
    contains(
        &text,
        "750 0:0 /scratch\n1024 /scratch\n2048 /dev/shm\n1048576\ntmpfs\n2097152",
    )
}

/// Host folders, host files and named volumes, writable or not.
fn volumes(host: &Host) -> Result<()> {
    let data = host.new_folder("data")?;
    fs::write(data.join("greeting"), "from the host\n")?;
    let file = volume(data.join("greeting"), "/etc/greeting:ro");
    let flags = [
        volume(&data, "/data"),
        volume(&data, "/fixed:ro"),
        file,
        volume("cellar", "/cellar"),
    ];
    let script = "cat /data/greeting /fixed/greeting /etc/greeting; echo back >/data/answer; \
                  touch /fixed/x 2>&1; (echo x >/etc/greeting) 2>&1; echo wine >/cellar/bottle; rm /data/greeting";
    let podman = Podman::new(host)?;
    let arguments = ["--rm"].into_iter().chain(flags.iter().map(String::as_str));
    let run = podman
        .run(arguments.clone().chain([BUSYBOX, "sh", "-c", script]))?
        .run()?
        .ok()?;
    ensure!(run.text().matches("from the host").count() == 3, "{run}");
    ensure!(
        run.text().matches("Read-only file system").count() == 2,
        "{run}"
    );
    ensure!(fs::read_to_string(data.join("answer"))? == "back\n");
    ensure!(!data.join("greeting").exists());
    let again = podman
        .run(["--rm", &flags[3], BUSYBOX, "cat", "/cellar/bottle"])?
        .run()?
        .ok()?;
    ensure!(again.text() == "wine", "{again}");
    podman.command(["volume", "rm", "cellar"])?.run()?.ok()?;
    Ok(())
}

fn dropped_capabilities(host: &Host) -> Result<()> {
    let flags = ["--cap-drop=ALL", "--cap-add=NET_RAW,CHOWN"];
    let script = format!(
        "{STATUS}; capsh --print; touch /tmp/f; chown 7 /tmp/f && echo owned; chroot / true 2>&1"
    );
    let text = seen(
        host,
        &flags,
        &[DEBIAN, "sh", "-c", &format!("{script} || true")],
    )?;
    ensure!(field(&text, "CapEff:")? == "0000000000002001", "{text}");
    contains(&text, "owned")?;
    contains(&text, "Operation not permitted")
}

/// A profile with plain rules, an error number of its own and a condition on
/// an argument.
fn seccomp_profile(host: &Host) -> Result<()> {
    let profile = host.dir.join("profile.json");
    fs::write(
        &profile,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            {"names": ["rmdir", "unlinkat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13,
             "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]},
            {"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#,
    )?;
    let option = format!("--security-opt=seccomp={}", profile.display());
    let script = format!(
        "{STATUS}; mkdir /m 2>&1; rmdir /tmp 2>&1; sleep 9 & kill -USR1 $! 2>&1 | sed 's/pid [0-9]*/pid/'; kill -0 $! && echo alive; \
         kill $!; sh -c 'ln -s /a /b'; echo $?"
    );
    let text = seen(host, &[&option], &[BUSYBOX, "sh", "-c", &script])?;
    contains(&text, "Operation not permitted")?;
    contains(&text, "Function not implemented")?;
    contains(&text, "Permission denied\nalive")?;
    ensure!(text.ends_with("159"), "31 (SIGSYS) was expected\n{text}");
    Ok(())
}

fn seccomp_off(host: &Host) -> Result<()> {
    let flags = ["--security-opt=seccomp=unconfined"];
    let text = seen(host, &flags, &[BUSYBOX, "sh", "-c", STATUS])?;
    ensure!(field(&text, "Seccomp:")? == "0", "{text}");
    Ok(())
}

fn no_new_privileges(host: &Host) -> Result<()> {
    let flags = ["--security-opt=no-new-privileges", "--user=1000"];
    let text = seen(host, &flags, &[BUSYBOX, "sh", "-c", STATUS])?;
    ensure!(field(&text, "NoNewPrivs:")? == "1", "{text}");
    Ok(())
}

fn limits(host: &Host) -> Result<()> {
    let flags = [
        "--ulimit=nofile=512:1024",
        "--ulimit=nproc=3000:4000",
        "--ulimit=core=0",
        "--ulimit=cpu=77",
    ];
    let script = "grep -E 'open files|processes|core file|cpu time' /proc/self/limits; ulimit -n; ulimit -Hn";
    let text = seen(host, &flags, &[BUSYBOX, "sh", "-c", script])?;
    ensure!(text.ends_with("512\n1024"), "{text}");
    Ok(())
}

fn kernel_parameters(host: &Host) -> Result<()> {
    let flags = [
        "--sysctl=net.ipv4.ip_forward=1",
        "--sysctl=kernel.msgmax=4242",
        "--sysctl=net.core.somaxconn=333",
    ];
    let script = "cd /proc/sys; cat net/ipv4/ip_forward kernel/msgmax net/core/somaxconn";
    let text = seen(host, &flags, &[BUSYBOX, "sh", "-c", script])?;
    ensure!(text == "1\n4242\n333", "{text}");
    Ok(())
}

/// An init of its own reaps what the container's process does not know.
fn init(host: &Host) -> Result<()> {
    let script = "tr '\\0' '\\n' </proc/1/cmdline | head -n 1; sh -c 'sleep 0.2 &'; sleep 1; ps -o stat,comm | grep -c '^Z'; exit 5";
    let podman = Podman::new(host)?;
    let run = podman
        .run(["--rm", "--init", BUSYBOX, "sh", "-c", script])?
        .run()?
        .exits(5)?;
    ensure!(run.text() == "/run/podman-init\n0", "{run}");
    Ok(())
}

/// A device under another name, and one that may only be read.
fn extra_devices(host: &Host) -> Result<()> {
    let flags = [
        "--device=/dev/zero:/dev/nought",
        "--device=/dev/kmsg:/dev/messages:r",
    ];
    let script = "head -c 2 /dev/nought | xxd -p; (echo x >/dev/messages) 2>&1; \
                  stat -c '%n %F %t,%T' /dev/nought /dev/messages";
    let text = seen(host, &flags, &[BUSYBOX, "sh", "-c", script])?;
    contains(&text, "0000\n")?;
    contains(&text, "Operation not permitted")?;
    contains(&text, "/dev/messages character special file 1,b")
}

/// The first of the files that exists: cgroup v2 and v1 name it differently.
fn limit_of(host: &Host, flags: &[&str], files: [&str; 2], script: &str) -> Result<String> {
    let [v2, v1] = files;
    let script =
        format!("cat /sys/fs/cgroup/{v2} 2>/dev/null || cat /sys/fs/cgroup/{v1}; {script}");
    let arguments = ["--rm"]
        .iter()
        .chain(flags)
        .copied()
        .chain([BUSYBOX, "sh", "-c", &script]);
    let run = Podman::new(host)?.run(arguments)?.run()?.ok()?;
    Ok(format!("{}\n{}", run.text(), run.errors()))
}

fn process_limit(host: &Host) -> Result<()> {
    let script = "sh -c 'for i in $(seq 40); do sleep 3 & done' || true";
    let text = limit_of(
        host,
        &["--pids-limit=20"],
        ["pids.max", "pids/pids.max"],
        script,
    )?;
    ensure!(text.starts_with("20\n"), "{text}");
    contains(&text, "can't fork")
}

fn memory_limit(host: &Host) -> Result<()> {
    let files = ["memory.max", "memory/memory.limit_in_bytes"];
    let script = "head -c 200m /dev/zero | tail -c 200m >/dev/null; echo $?";
    let flags = ["--memory=64m", "--memory-swap=64m"];
    let text = limit_of(host, &flags, files, script)?;
    ensure!(text.starts_with("67108864\n137"), "{text}");
    Ok(())
}

/// What a container should not read or change of its kernel.
fn hidden_paths(host: &Host) -> Result<()> {
    let script = "for f in /proc/kcore /proc/keys /proc/timer_list; do [ -e $f ] && wc -c <$f; done; \
                  for f in /proc/acpi /proc/scsi /sys/firmware; do ls $f 2>/dev/null; done; \
                  for f in /proc/sys/kernel/panic /proc/sysrq-trigger /sys/kernel/uevent_helper; do \
                  (echo 1 >$f) 2>&1 | grep -o 'Read-only file system'; done; mount -t tmpfs none /tmp 2>&1 | grep -c denied";
    let run = Podman::new(host)?
        .run(["--rm", BUSYBOX, "sh", "-c", script])?
        .run()?;
    let text = run.text();
    ensure!(text.matches("Read-only").count() >= 2, "{run}");
    ensure!(
        text.lines()
            .all(|line| matches!(line, "0" | "1" | "Read-only file system")),
        "{run}"
    );
    Ok(())
}

/// All capabilities that the client asks for, no filter, nothing hidden.
fn privileged(host: &Host) -> Result<()> {
    let script = format!(
        "{STATUS}; mount -t tmpfs none /tmp && echo mounted; \
                          echo 1 >/proc/sys/net/ipv4/ip_forward && echo set; test -w /sys && echo writable"
    );
    let text = seen(host, &["--privileged"], &[BUSYBOX, "sh", "-c", &script])?;
    ensure!(field(&text, "Seccomp:")? == "0", "{text}");
    ensure!(text.ends_with("mounted\nset\nwritable"), "{text}");
    Ok(())
}
