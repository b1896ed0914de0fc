//! Machines that go on from where they were saved.

use std::{
    fs::File,
    io::{self, Read},
};

use casemate_linux::process;
use tokio::io::AsyncWriteExt;

use super::{Qemu, commands::MigrateIncoming, machine::Machine, migration::End};
use crate::{
    BootSpec, Device, Error, Exit, Step, TemplateFiles, Vm,
    memory::{Copying, Zeroes},
    vm::now_ns,
};

/// No honest state comes near this: memory is not in it.
const MAX_STATE: u64 = 256 << 20;

impl Qemu {
    /// Starts QEMU and fills its memory meanwhile.
    pub(super) async fn restored(
        &self,
        template: TemplateFiles,
        mut spec: BootSpec,
    ) -> Result<Machine, Error> {
        let state = read_state(&template.state)?;
        check_memory(&template.memory, &spec)?;
        let share = spec.file_share.take().map(Device::FileShare);
        let vsock = spec.vsock.take().map(Device::Vsock);
        let size = spec.grown.take();
        let counted = spec.counted.take();
        let mut start = self.prepare(spec, true)?;
        // This machine is not saved again, and its memory goes with it.
        let memory = start.memory.take();
        let begin = now_ns();
        let filled = async {
            let memory = memory.as_ref().ok_or(io::ErrorKind::NotFound);
            let group = match counted {
                Some(counted) => counted.await.ok(),
                None => None,
            };
            let begin = now_ns();
            let copying =
                Copying::start(&template.memory, memory?, Zeroes::Copied, group.as_ref())?;
            copying.finish().await?;
            Ok::<_, io::Error>(Step::until_now("copy memory", begin))
        };
        let filled = async {
            filled
                .await
                .map_err(|error| broken(format!("memory: {error}")))
        };
        let started = async {
            let machine = start.run().await?;
            Ok((machine, Step::until_now("start the VMM", begin)))
        };
        let ((machine, started), filled) = tokio::try_join!(started, filled)?;
        let mut steps = vec![started, filled];
        let begin = now_ns();
        machine.receive(state).await?;
        steps.push(Step::until_now("restore", begin));
        if let Some(size) = size.filter(|size| *size != machine.size()) {
            let begin = now_ns();
            machine.grow(size).await?;
            steps.push(Step::until_now("plug processors and memory", begin));
        }
        let begin = now_ns();
        for device in [share, vsock].into_iter().flatten() {
            machine.plug(device).await?;
        }
        steps.push(Step::until_now("plug files and sockets", begin));
        let begin = now_ns();
        machine.resume().await?;
        steps.push(Step::until_now("resume", begin));
        Ok(machine.with_steps(steps))
    }
}

impl Machine {
    /// Gives QEMU the state that it waits for.
    async fn receive(&self, state: Vec<u8>) -> Result<(), Error> {
        let mut events = self.qmp().events();
        let mut ours = self.lend_stream().await?;
        self.execute(&MigrateIncoming::from_fd()).await?;
        let sent = async {
            // When QEMU refuses it, it says so itself.
            let _ = ours.write_all(&state).await;
            let _ = ours.shutdown().await;
        };
        let ((), ended) = tokio::join!(sent, self.migrated(&mut events));
        match ended {
            Ok(End::Completed) => Ok(()),
            // It ends itself when it cannot make sense of the state, and says why.
            Ok(End::Failed) => Err(refused(self.ended().await)),
            Err(Error::Ended(exit)) => Err(refused(exit)),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn broken(problem: String) -> Error {
    Error::Template { problem }
}

/// Why QEMU ended: on its own accord only if the state is to blame.
fn refused(exit: Exit) -> Error {
    match exit.status {
        process::Exit::Code(_) => broken(format!("state: {exit}")),
        process::Exit::Signal(_) => Error::Ended(exit),
    }
}

fn read_state(file: &File) -> Result<Vec<u8>, Error> {
    let mut state = Vec::new();
    let read = file.take(MAX_STATE + 1).read_to_end(&mut state);
    read.map_err(|error| broken(format!("state: {error}")))?;
    match state.len() as u64 {
        0 => Err(broken("state: it is empty".to_owned())),
        1..=MAX_STATE => Ok(state),
        _ => Err(broken(format!("state: it has more than {MAX_STATE} bytes"))),
    }
}

fn check_memory(file: &File, spec: &BootSpec) -> Result<(), Error> {
    if !spec.template {
        return Err(broken("the machine is not one for templates".to_owned()));
    }
    let wanted = u64::from(spec.memory_mib) << 20;
    match file.metadata() {
        Ok(metadata) if metadata.len() == wanted => Ok(()),
        Ok(metadata) => Err(broken(format!(
            "memory: the image has {} bytes, the machine {wanted}",
            metadata.len()
        ))),
        Err(error) => Err(broken(format!("memory: {error}"))),
    }
}
