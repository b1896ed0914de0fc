//! A container's life as a user of podman leads it: its words, signals and
//! ends, files that go in and out, what is made of it.

mod copy;
mod hooks;

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use casemate_e2e::podman::volume;
use casemate_e2e::wait::until_true;
use casemate_e2e::{BUSYBOX, Host, Podman, Scenario, scenarios};

pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = scenarios![
        logs_that_go_on,
        kill_by_name_and_number,
        stop_signal_of_its_own,
        first_process,
        first_process_with_init,
        ends_by_signals,
        orphans_without_init,
        restart_on_failure,
        wait_for_two,
        stop_when_paused,
        top_with_options,
        commit,
        health_of_a_container,
        share_of_a_processor,
    ];
    all.extend(copy::scenarios());
    all.extend(hooks::scenarios());
    all
}

const SOON: Duration = Duration::from_secs(30);

fn says(podman: &Podman<'_>, id: &str, word: &str) -> Result<()> {
    until_true(word, SOON, || {
        Ok(podman.command(["logs", id])?.run()?.text().contains(word))
    })
}

fn background(podman: &Podman<'_>, flags: &[&str], script: &str) -> Result<String> {
    podman.run_detached([flags, &[BUSYBOX, "sh", "-c", script]].concat())
}

fn remove(podman: &Podman<'_>, id: &str) -> Result<()> {
    podman
        .command(["rm", "--force", "--time=0", id])?
        .run()?
        .ok()?;
    Ok(())
}

/// Waits for the end and demands the exit code.
fn ends(podman: &Podman<'_>, id: &str, code: i32) -> Result<()> {
    let waited = podman.command(["wait", id])?.run()?.ok()?;
    ensure!(
        waited.text() == code.to_string(),
        "{code} was expected\n{waited}"
    );
    let told = podman.inspect(id, "{{.State.Status}} {{.State.ExitCode}}")?;
    ensure!(told == format!("exited {code}"), "{told}");
    Ok(())
}

/// `logs -f` shows what was, what comes, and ends with the container.
fn logs_that_go_on(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let script =
        "echo early; trap 'echo late; exit 0' USR1; echo ready; while :; do sleep 0.1; done";
    let id = background(&podman, &[], script)?;
    says(&podman, &id, "ready")?;
    let logs = podman.command(["logs", "--follow", &id])?.start()?;
    until_true("what was written before", SOON, || {
        Ok(logs.written() == b"early\nready\n")
    })?;
    podman
        .command(["kill", "--signal=USR1", &id])?
        .run()?
        .ok()?;
    let logs = logs.finish()?.ok()?;
    ensure!(logs.text() == "early\nready\nlate", "{logs}");
    remove(&podman, &id)
}

fn kill_by_name_and_number(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let script = "trap 'echo hup' HUP; trap 'echo usr2' USR2; trap 'echo cont' CONT; trap 'exit 9' ALRM; \
                  echo ready; while :; do sleep 0.1; done";
    let id = background(&podman, &[], script)?;
    says(&podman, &id, "ready")?;
    for (signal, word) in [("HUP", "hup"), ("12", "usr2"), ("SIGCONT", "cont")] {
        podman
            .command(["kill", "--signal", signal, &id])?
            .run()?
            .ok()?;
        says(&podman, &id, word)?;
    }
    let unknown = podman.command(["kill", "--signal=HOPE", &id])?.run()?;
    ensure!(unknown.exit.shell() == 125, "{unknown}");
    podman.command(["kill", "--signal=14", &id])?.run()?.ok()?;
    ends(&podman, &id, 9)?;
    remove(&podman, &id)
}

fn stop_signal_of_its_own(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let script = "trap 'exit 6' USR2; trap 'exit 1' TERM; echo ready; while :; do sleep 0.1; done";
    let id = background(
        &podman,
        &["--stop-signal=USR2", "--stop-timeout=30"],
        script,
    )?;
    says(&podman, &id, "ready")?;
    let stop = podman.command(["stop", &id])?.run()?.ok()?;
    ensure!(stop.took < Duration::from_secs(20), "{stop}");
    ends(&podman, &id, 6)?;
    remove(&podman, &id)
}

/// A first process is not ended by a signal that it has no handler for, be it
/// its own or the client's: pid_namespaces(7).
fn first_process(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let script = "kill -TERM $$; kill -KILL $$; echo lives; exec sleep 1000";
    let id = background(&podman, &[], script)?;
    says(&podman, &id, "lives")?;
    for signal in ["TERM", "ABRT", "HUP"] {
        podman
            .command(["kill", "--signal", signal, &id])?
            .run()?
            .ok()?;
    }
    podman.command(["exec", &id, "true"])?.run()?.ok()?;
    ensure!(podman.inspect(&id, "{{.State.Status}}")? == "running");
    podman.command(["kill", &id])?.run()?.ok()?;
    ends(&podman, &id, 137)?;
    remove(&podman, &id)
}

/// Behind an init it is a process like others.
fn first_process_with_init(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let id = background(&podman, &["--init"], "echo ready; exec sleep 1000")?;
        says(&podman, &id, "ready")?;
        podman
            .command(["kill", "--signal", signal, &id])?
            .run()?
            .ok()?;
        ends(&podman, &id, code)?;
        remove(&podman, &id)?;
    }
    Ok(())
}

/// The end of a process by a signal, as its parent and as `exec` see it.
fn ends_by_signals(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = background(&podman, &[], "exec sleep 1000")?;
    for (signal, code) in [("SEGV", 139), ("TERM", 143), ("KILL", 137), ("PIPE", 141)] {
        let script = format!("sh -c 'kill -{signal} $$'; echo $?; kill -{signal} $$; sleep 9");
        let exec = podman
            .command(["exec", &id, "sh", "-c", &script])?
            .run()?
            .exits(code)?;
        ensure!(exec.text() == code.to_string(), "{exec}");
    }
    remove(&podman, &id)
}

/// What nobody waits for stays until the first process ends.
fn orphans_without_init(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = background(&podman, &[], "(sleep 0.5 & sleep 0.5 &); exec sleep 1000")?;
    until_true("two dead orphans", SOON, || {
        let ps = podman
            .command(["exec", &id, "ps", "-o", "ppid,stat"])?
            .run()?
            .ok()?;
        let dead = |line: &&str| line.split_whitespace().eq(["1", "Z"]);
        Ok(ps.text().lines().filter(dead).count() == 2)
    })?;
    remove(&podman, &id)
}

/// Two more tries, each with the same files.
fn restart_on_failure(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let data = host.new_folder("data")?;
    let id = background(
        &podman,
        &["--restart=on-failure:2", &volume(&data, "/data")],
        "echo try >>/data/tries; echo try >>/tries; cp /tries /data/kept; exit 3",
    )?;
    let tries = || fs::read_to_string(data.join("tries")).unwrap_or_default();
    until_true("three tries", Duration::from_secs(60), || {
        Ok(tries().lines().count() == 3)
    })?;
    until_true("the last end", SOON, || {
        Ok(podman.inspect(&id, "{{.State.Status}} {{.RestartCount}}")? == "exited 2")
    })?;
    ends(&podman, &id, 3)?;
    ensure!(fs::read_to_string(data.join("kept"))? == "try\n".repeat(3));
    ensure!(tries().lines().count() == 3, "{}", tries());
    remove(&podman, &id)?;
    // A good end is no failure.
    let id = background(&podman, &["--restart=on-failure"], "exit 0")?;
    ends(&podman, &id, 0)?;
    ensure!(podman.inspect(&id, "{{.RestartCount}}")? == "0");
    remove(&podman, &id)
}

fn wait_for_two(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let script = "trap 'exit $CODE' USR1; echo ready; while :; do sleep 0.1; done";
    let one = background(&podman, &["--env=CODE=4"], script)?;
    let two = background(&podman, &["--env=CODE=5"], script)?;
    let waiting = podman.command(["wait", &one, &two])?.start()?;
    for id in [&two, &one] {
        says(&podman, id, "ready")?;
        podman.command(["kill", "--signal=USR1", id])?.run()?.ok()?;
    }
    let waited = waiting.finish()?.ok()?;
    ensure!(waited.text() == "4\n5", "{waited}");
    remove(&podman, &one)?;
    remove(&podman, &two)
}

/// A paused container hears nothing and can be removed by force.
fn stop_when_paused(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = background(&podman, &[], "exec sleep 1000")?;
    podman.command(["pause", &id])?.run()?.ok()?;
    let exec = podman.command(["exec", &id, "true"])?.run()?;
    ensure!(exec.exit.shell() != 0, "{exec}");
    podman.command(["unpause", &id])?.run()?.ok()?;
    podman.command(["exec", &id, "true"])?.run()?.ok()?;
    podman.command(["pause", &id])?.run()?.ok()?;
    remove(&podman, &id)
}

/// With options for ps(1) it is the container's own that is asked.
fn top_with_options(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = background(&podman, &[], "sleep 1001 & exec sleep 1002")?;
    until_true("both processes", SOON, || {
        let top = podman
            .command(["top", &id, "-o", "pid,args"])?
            .run()?
            .ok()?;
        let text = top.text();
        let mut lines = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let header = lines.next().unwrap_or_default();
        ensure!(header == "PID COMMAND", "{top}");
        Ok(lines.any(|line| line == "1 sleep 1002") && text.contains("sleep 1001"))
    })?;
    remove(&podman, &id)
}

/// What a container has changed becomes an image, which runs.
fn commit(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = background(
        &podman,
        &[],
        "echo changed >/etc/motto; rm /etc/passwd; echo ready; exec sleep 1000",
    )?;
    says(&podman, &id, "ready")?;
    let image = "localhost/changed:1";
    let flags = [
        "commit",
        "--quiet",
        "--change=CMD [\"cat\", \"/etc/motto\"]",
        &id,
        image,
    ];
    podman.command(flags)?.run()?.ok()?;
    let run = podman.run(["--rm", image])?.run()?.ok()?;
    ensure!(run.text() == "changed", "{run}");
    podman
        .run(["--rm", image, "test", "-e", "/etc/passwd"])?
        .run()?
        .exits(1)?;
    remove(&podman, &id)?;
    podman.command(["rmi", image])?.run()?.ok()?;
    Ok(())
}

/// Checks that fail often enough make a container unhealthy, and one that
/// succeeds makes it healthy again.
fn health_of_a_container(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let flags = [
        "--health-cmd=test -e /well",
        "--health-interval=disable",
        "--health-retries=2",
        "--health-start-period=0s",
    ];
    let id = background(&podman, &flags, "exec sleep 1000")?;
    let check = || podman.command(["healthcheck", "run", &id])?.run();
    for _ in 0..2 {
        check()?.exits(1)?;
    }
    let health = || podman.inspect(&id, "{{.State.Health.Status}} {{len .State.Health.Log}}");
    ensure!(health()? == "unhealthy 2", "{}", health()?);
    podman
        .command(["exec", &id, "touch", "/well"])?
        .run()?
        .ok()?;
    check()?.ok()?;
    ensure!(health()?.starts_with("healthy "), "{}", health()?);
    remove(&podman, &id)
}

/// A fifth of a processor is what `--cpus` gives, and what the container reads.
fn share_of_a_processor(host: &Host) -> Result<()> {
    let script = "cat /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us; \
                  cut -d' ' -f1 /proc/uptime; timeout 5 sh -c 'while :; do :; done'; \
                  cut -d' ' -f1 /proc/uptime; times";
    let run = Podman::new(host)?
        .run(["--rm", "--cpus=0.2", BUSYBOX, "sh", "-c", script])?
        .run()?
        .ok()?;
    let text = run.text();
    let lines: Vec<&str> = text.lines().collect();
    ensure!(matches!(lines[0], "20000" | "20000 100000"), "{run}");
    let lasted = lines[2].parse::<f64>()? - lines[1].parse::<f64>()?;
    // The last line of times(1) is what ended children have taken.
    let used: f64 = lines[4].split_whitespace().map(seconds).sum();
    ensure!(
        lasted >= 5.0 && used < 0.3 * lasted,
        "{used} s of {lasted} s\n{run}"
    );
    Ok(())
}

/// Seconds of a time as the shell writes it: `0m1.230s`.
fn seconds(time: &str) -> f64 {
    let (minutes, seconds) = time
        .trim_end_matches('s')
        .split_once('m')
        .unwrap_or(("0", time));
    minutes.parse::<f64>().unwrap_or(f64::NAN) * 60.0 + seconds.parse::<f64>().unwrap_or(f64::NAN)
}
