//! Containers of one machine end and are deleted in every order.

use anyhow::{Result, ensure};
use casemate_e2e::container::create_command;
use casemate_e2e::processes;
use casemate_e2e::wait::until_true;
use casemate_e2e::{Bundle, Container, Exit, Host, Scenario, scenarios};

use super::{SOON, STAY, exec, member, running};

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut all = scenarios![
        first_goes_first,
        members_go_first,
        deleted_together,
        again_while_a_member_lives,
    ];
    let killed = scenarios![
        vm_killed,
        devices_killed,
        monitor_killed,
        stand_in_killed,
        create_killed
    ];
    let reason = "runc has no process besides the container's";
    all.extend(killed.into_iter().map(|one| one.only_vm(reason)));
    all
}

const SHARED: &[&str] = &["network", "ipc", "uts"];

/// One container and two that are in its namespaces.
fn three(host: &Host) -> Result<[Container<'_>; 3]> {
    let first = running(host, &Bundle::new(host, STAY)?)?;
    let second = running(host, &member(host, &first, SHARED, STAY)?)?;
    let third = running(host, &member(host, &second, SHARED, STAY)?)?;
    Ok([first, second, third])
}

fn is_gone(host: &Host, container: &str) -> Result<()> {
    host.oci(&["state", container]).run()?.exits(1)?;
    Ok(())
}

/// The container that has made the machine ends and is deleted; the others do
/// not notice.
fn first_goes_first(host: &Host) -> Result<()> {
    let [first, second, third] = three(host)?;
    first.kill("KILL")?.ok()?;
    ensure!(first.wait(SOON)?.shell() == 137);
    until_true("its end", SOON, || Ok(first.status()? == "stopped"))?;
    ensure!(exec(host, &second, "echo one")? == "one");
    let id = first.id.clone();
    first.delete()?;
    is_gone(host, &id)?;
    ensure!(exec(host, &third, "echo two")? == "two");
    // A new one can still join.
    let fourth = member(host, &third, SHARED, &["echo", "three"])?;
    ensure!(Container::run(host, &fourth)?.end(0)? == "three\n");
    second.delete_force()?;
    ensure!(exec(host, &third, "echo four")? == "four");
    third.delete_force()
}

fn members_go_first(host: &Host) -> Result<()> {
    let [first, second, third] = three(host)?;
    third.kill("KILL")?.ok()?;
    ensure!(third.wait(SOON)?.shell() == 137);
    let id = third.id.clone();
    third.delete()?;
    is_gone(host, &id)?;
    second.delete_force()?;
    ensure!(exec(host, &first, "echo alone")? == "alone");
    first.delete_force()
}

/// All at a time, as a client does that removes a pod.
fn deleted_together(host: &Host) -> Result<()> {
    let all = three(host)?;
    let delete = |container: &Container<'_>| {
        let id = container.id.clone();
        host.oci(&["delete", "--force", &id]).start()
    };
    let deletes: Vec<_> = all.iter().map(delete).collect::<Result<_>>()?;
    for delete in deletes {
        delete.finish()?.ok()?;
    }
    for container in &all {
        is_gone(host, &container.id)?;
    }
    Ok(())
}

/// The id of the first container is free when it is deleted.
fn again_while_a_member_lives(host: &Host) -> Result<()> {
    let bundle = Bundle::new(host, STAY)?;
    let first = running(host, &bundle)?;
    let second = running(host, &member(host, &first, SHARED, STAY)?)?;
    let id = first.id.clone();
    first.delete_force()?;
    let mut again = create_command(host, &bundle, &id).start()?;
    ensure!(again.exit()? == Exit::Code(0));
    host.oci(&["start", &id]).run()?.ok()?;
    ensure!(exec(host, &second, "echo still")? == "still");
    second.delete_force()?;
    let echo = host.oci(&["exec", &id, "echo", "new"]).run()?.ok()?;
    ensure!(echo.text() == "new");
    host.oci(&["delete", "--force", &id]).run()?.ok()?;
    again.output_ended()
}

fn vm_killed(host: &Host) -> Result<()> {
    machine_is_lost(host, |process| process.program().starts_with("qemu"))
}

fn devices_killed(host: &Host) -> Result<()> {
    machine_is_lost(host, |process| process.has_word("devices"))
}

fn monitor_killed(host: &Host) -> Result<()> {
    machine_is_lost(host, |process| process.has_word("monitor"))
}

/// Every container ends with its machine, and each `delete` removes its own.
fn machine_is_lost(host: &Host, victim: impl Fn(&processes::Process) -> bool) -> Result<()> {
    let all = three(host)?;
    for process in processes::ours().iter().filter(|process| victim(process)) {
        process.kill()?;
    }
    for container in &all {
        ensure!(container.wait(SOON)?.shell() == 137);
        until_true("the status `stopped`", SOON, || {
            Ok(container.status()? == "stopped")
        })?;
    }
    let [first, second, third] = all;
    let ids = [&first, &second, &third].map(|container| container.id.clone());
    second.delete()?;
    ensure!(first.status()? == "stopped" && third.status()? == "stopped");
    first.delete_force()?;
    third.delete()?;
    ids.iter().try_for_each(|id| is_gone(host, id))
}

/// With its stand-in a container is killed, and no other.
fn stand_in_killed(host: &Host) -> Result<()> {
    let [first, second, third] = three(host)?;
    second.kill_process()?;
    ensure!(second.wait(SOON)?.shell() == 137);
    until_true("the status `stopped`", SOON, || {
        Ok(second.status()? == "stopped")
    })?;
    ensure!(exec(host, &third, "echo one")? == "one");
    first.kill_process()?;
    ensure!(first.wait(SOON)?.shell() == 137);
    ensure!(exec(host, &third, "echo two")? == "two");
    second.delete()?;
    first.delete_force()?;
    third.delete_force()
}

/// A `create` that is killed half-way leaves what `delete` removes.
fn create_killed(host: &Host) -> Result<()> {
    let first = running(host, &Bundle::new(host, STAY)?)?;
    for pause in [0, 5, 20, 60, 150] {
        let bundle = member(host, &first, SHARED, STAY)?;
        let id = host.new_id();
        let create = create_command(host, &bundle, &id).start()?;
        std::thread::sleep(std::time::Duration::from_millis(pause));
        // It may have done its work already.
        let _ = create.signal(nix::sys::signal::Signal::SIGKILL);
        create.exit()?;
        host.oci(&["delete", "--force", &id]).run()?.ok()?;
        is_gone(host, &id)?;
        ensure!(exec(host, &first, "echo alive")? == "alive");
    }
    first.delete_force()
}
