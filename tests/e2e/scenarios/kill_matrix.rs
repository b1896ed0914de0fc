//! Signal 9 to every process of a sandbox at every stage of its life: whoever
//! waits for the container learns of its end at once, and `delete` clears up.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use casemate_e2e::container::create_command;
use casemate_e2e::expect::one_clear_line;
use casemate_e2e::processes::{self, Process};
use casemate_e2e::{BUSYBOX, Bundle, Container, Exit, Host, Podman, Scenario, wait};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Vmm,
    Devices,
    Monitor,
    StandIn,
}

#[derive(Clone, Copy, Debug)]
enum Moment {
    /// While `create` works.
    Creating,
    /// Between `create` and `start`.
    Created,
    Running,
    /// The container has been asked to end and takes its time.
    Ending,
    /// While `delete --force` works.
    Deleting,
    /// As podman's container, in the background.
    Podman,
}

pub(crate) fn scenarios() -> Vec<Scenario> {
    use Moment::{Created, Creating, Deleting, Ending, Podman, Running};
    use Victim::{Devices, Monitor, StandIn, Vmm};
    let mut all = Vec::new();
    for victim in [Vmm, Devices, Monitor, StandIn] {
        for moment in [Creating, Created, Running, Ending, Deleting, Podman] {
            let name = format!("{victim:?}_{moment:?}").to_lowercase();
            let scenario = Scenario::new(name, move |host| kill(host, victim, moment));
            all.push(scenario.only_vm("runc has no process besides the container's"));
        }
    }
    all
}

fn kill(host: &Host, victim: Victim, moment: Moment) -> Result<()> {
    match moment {
        Moment::Creating => while_creating(host, victim),
        Moment::Deleting => while_deleting(host, victim),
        Moment::Podman => under_podman(host, victim),
        Moment::Created | Moment::Running | Moment::Ending => {
            once(host, victim, moment, Container::delete)?;
            once(host, victim, moment, Container::delete_force)
        }
    }
}

/// "At once" for a client that waits: with room for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Ends slowly when it is asked to.
const SLOW: &str =
    "trap 'echo ending; sleep 30; exit 0' TERM; echo ready; while :; do sleep 0.1; done";

fn once<'h>(
    host: &'h Host,
    victim: Victim,
    moment: Moment,
    delete: impl FnOnce(&Container<'h>) -> Result<()>,
) -> Result<()> {
    let bundle = Bundle::new(host, &["sh", "-c", SLOW])?;
    let mut container = Container::create(host, &bundle)?;
    if !matches!(moment, Moment::Created) {
        container.start()?;
        written(&mut container, "ready\n")?;
    }
    if matches!(moment, Moment::Ending) {
        container.kill("TERM")?.ok()?;
        written(&mut container, "ready\nending\n")?;
    }
    strike(victim)?;
    learns_of_the_end(&container, victim)?;
    container.streams().output_ended()?;
    delete(&container)?;
    host.oci(&["state", &container.id]).run()?.exits(1)?;
    nobody_is_left()
}

fn written(container: &mut Container<'_>, text: &str) -> Result<()> {
    wait::until_true(text.trim(), Duration::from_secs(10), || {
        Ok(container.streams().written() == text.as_bytes())
    })
}

/// The container's process ends and `state` knows it.
fn learns_of_the_end(container: &Container<'_>, victim: Victim) -> Result<()> {
    let struck = Instant::now();
    let exit = container
        .wait(AT_ONCE)
        .with_context(|| format!("{victim:?} was killed"))?;
    ensure!(
        exit != Exit::Code(0),
        "{victim:?} was killed, and the container ended well"
    );
    wait::until_true("the status `stopped`", AT_ONCE, || {
        Ok(container.status()? == "stopped")
    })?;
    ensure!(
        struck.elapsed() < 2 * AT_ONCE,
        "it took {:?}",
        struck.elapsed()
    );
    Ok(())
}

/// `create` fails soon and says why, unless it had done its work already.
fn while_creating(host: &Host, victim: Victim) -> Result<()> {
    let bundle = Bundle::new(host, &["sh", "-c", SLOW])?;
    let id = host.new_id();
    let create = create_command(host, &bundle, &id)
        .limit(Duration::from_secs(15))
        .start()?;
    strike(victim)?;
    let created = create.exit()? == Exit::Code(0);
    let create = create.finish()?;
    if created {
        wait::until_true("the status `stopped`", AT_ONCE, || {
            let state = host.oci(&["state", &id]).run()?.ok()?;
            Ok(state.text().contains("\"stopped\""))
        })?;
    } else {
        one_clear_line(&create.exits(1)?)?;
    }
    host.oci(&["delete", "--force", &id]).run()?.ok()?;
    host.oci(&["state", &id]).run()?.exits(1)?;
    // The kernel kills the monitor's children when `create` has killed the monitor, and a
    // busy machine takes its time for that.
    wait::until("the end of all", AT_ONCE, || Ok(nobody_is_left().ok()))
        .or_else(|_| nobody_is_left())
}

/// Whatever `delete` could still do, the next one does the rest.
fn while_deleting(host: &Host, victim: Victim) -> Result<()> {
    let bundle = Bundle::new(host, &["sh", "-c", SLOW])?;
    let container = Container::run(host, &bundle)?;
    let targets = find(victim);
    let delete = host.oci(&["delete", "--force", &container.id]).start()?;
    for target in targets {
        // It may be gone already: then the stroke came too late.
        let _ = target.kill();
    }
    delete.finish()?;
    ensure!(container.wait(AT_ONCE)? != Exit::Code(0));
    container.delete_force()?;
    host.oci(&["state", &container.id]).run()?.exits(1)?;
    nobody_is_left()
}

fn under_podman(host: &Host, victim: Victim) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sh", "-c", SLOW])?;
    let waiting = podman.command(["wait", &id])?.start()?;
    strike(victim)?;
    let struck = Instant::now();
    let waited = waiting.finish()?.ok()?;
    ensure!(
        struck.elapsed() < 2 * AT_ONCE,
        "podman learned of it after {:?}",
        struck.elapsed()
    );
    ensure!(waited.text() != "0", "{waited}");
    ensure!(podman.inspect(&id, "{{.State.Status}}")? == "exited");
    podman.command(["rm", &id])?.run()?.ok()?;
    nobody_is_left()
}

/// Kills the victim, as soon as it is there.
fn strike(victim: Victim) -> Result<()> {
    let targets = wait::until(&format!("the {victim:?}"), Duration::from_secs(20), || {
        let found = find(victim);
        Ok((!found.is_empty()).then_some(found))
    })?;
    for target in targets {
        // One may have ended by another's death.
        let _ = target.kill();
    }
    Ok(())
}

/// The processes that play this part; the scenario has one sandbox only.
fn find(victim: Victim) -> Vec<Process> {
    let mut found = processes::ours();
    found.retain(|process| match victim {
        // The first sandbox of a machine asks the program for its version, too.
        Victim::Vmm => {
            process.program().starts_with("qemu-system") && process.has_word("-nodefaults")
        }
        Victim::Devices => process.has_word("devices"),
        Victim::Monitor => process.has_word("monitor"),
        Victim::StandIn => process.has_word("stand-in"),
    });
    found
}

/// No process of the sandbox outlives `delete`.
fn nobody_is_left() -> Result<()> {
    let everyone = [
        Victim::Vmm,
        Victim::Devices,
        Victim::Monitor,
        Victim::StandIn,
    ];
    let left: Vec<String> = everyone
        .into_iter()
        .flat_map(find)
        .map(|p| p.to_string())
        .collect();
    ensure!(
        left.is_empty(),
        "after delete there is still:\n{}",
        left.join("\n")
    );
    Ok(())
}
