//! `exec -it`: more terminals in a running container.

use anyhow::{Result, ensure};
use casemate_e2e::expect::{contains, counted};
use casemate_e2e::{BUSYBOX, Host, Podman, Scenario, Size, scenarios};

use super::{
    CTRL_C, CTRL_Z, SOON, WIDER, WINDOW, ask, comes_to_answer, exec_shell, foreground,
    kill_the_job, remove, repeated, signalled,
};

pub(super) fn scenarios() -> Vec<Scenario> {
    scenarios![added_shell, added_shells_at_once, last_words_of_added_ones]
}

fn added_shell(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    let mut typist = exec_shell(&podman, &id)?;
    contains(&ask(&mut typist, "tty")?, "/dev/pts/")?;
    comes_to_answer(&mut typist, "stty size", "30 100")?;
    typist.resize(WIDER)?;
    comes_to_answer(&mut typist, "stty size", "50 132")?;
    foreground(&mut typist, "sleep 1000")?;
    signalled(&mut typist, CTRL_C, 130)?;
    foreground(&mut typist, "cat")?;
    repeated(&mut typist, "before")?;
    typist.type_text(CTRL_Z)?;
    typist.await_text("Stopped", SOON)?;
    contains(&ask(&mut typist, "jobs")?, "Stopped")?;
    kill_the_job(&mut typist)?;
    typist.type_text("exit 9\r")?;
    typist.finish()?.exits(9)?;
    remove(&podman, &id)
}

/// Each has its own terminal, and size.
fn added_shells_at_once(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    let mut shells = Vec::new();
    for number in 0..4_u16 {
        let typist = exec_shell(&podman, &id)?;
        typist.resize(Size {
            rows: 40 + number,
            columns: 80,
        })?;
        shells.push(typist);
    }
    let mut terminals = Vec::new();
    for (number, typist) in shells.iter_mut().enumerate() {
        comes_to_answer(typist, "stty size", &format!("{} 80", 40 + number))?;
        terminals.push(ask(typist, "tty")?);
    }
    terminals.sort();
    terminals.dedup();
    ensure!(terminals.len() == 4, "{terminals:?}");
    for (number, typist) in shells.into_iter().enumerate() {
        typist.type_text(&format!("exit {number}\r"))?;
        typist.finish()?.exits(number as i32)?;
    }
    remove(&podman, &id)
}

fn last_words_of_added_ones(host: &Host) -> Result<()> {
    let podman = Podman::new(host)?;
    let id = podman.run_detached([BUSYBOX, "sleep", "1000"])?;
    for _ in 0..20 {
        let exec = podman.command(["exec", "-t", &id, "seq", "1", "20000"])?;
        counted(&exec.on_terminal(WINDOW)?.finish()?.ok()?.stdout, true)?;
    }
    remove(&podman, &id)
}
