//! `monitor`: the process that owns one sandbox.

use std::{fs::File, io::Write, process::ExitCode, rc::Rc};

use anyhow::{Context, Result};
use casemate_config::Config;
use casemate_hypervisor::qemu::{Qemu, Settings};
use casemate_linux::{descriptor, socket};
use casemate_sandbox::{
    Handle, Id, Options,
    stand_in::{self, ATTACH_SOCKET},
    timeline::Timeline,
};
use casemate_shim::CONTROL_SOCKET;
use tokio::{net::UnixListener, task::LocalSet};

use crate::{arguments::Monitor, launch::READY, log};

/// Where the command line has put things.
const CONFIG_FD: i32 = 3;
const READINESS_FD: i32 = 4;

/// # Errors
/// When the sandbox cannot begin; the same line goes to the command line.
pub fn run(arguments: Monitor) -> Result<ExitCode> {
    let config = File::from(descriptor::inherited(CONFIG_FD).context("configuration")?);
    let mut readiness = File::from(descriptor::inherited(READINESS_FD).context("readiness")?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("runtime")?;
    let result = LocalSet::new().block_on(&runtime, serve(arguments, config, &mut readiness));
    if let Err(error) = &result {
        // The command line shows it; without one the log has it.
        let _ = writeln!(readiness, "{}", log::one_line(error));
    }
    result.map(|()| ExitCode::SUCCESS)
}

async fn serve(arguments: Monitor, config: File, readiness: &mut File) -> Result<()> {
    let mut timeline = Timeline::default();
    timeline.until_now("host", "command line", arguments.begun_ns);
    let config: Config = serde_json::from_reader(config).context("configuration")?;
    let control = listen(&arguments, CONTROL_SOCKET)?;
    let attach = listen(&arguments, ATTACH_SOCKET)?;
    let begin = casemate_sandbox::timeline::now_ns();
    let hypervisor = Qemu::open(&Settings::from(&config))?;
    timeline.until_now("host", "choose the hypervisor", begin);
    let options = Options {
        id: Id::new(&arguments.id)?,
        directory: arguments.directory,
        root: arguments.root,
        netns: Some(arguments.netns),
        hostname: arguments.hostname,
        cgroup: arguments.cgroup,
        config,
    };
    let (handle, owner) = casemate_sandbox::open(options, Rc::new(hypervisor), timeline)?;
    let mut server = casemate_shim::serve(control, handle.clone()).await?;
    tokio::task::spawn_local(take_attachments(attach, handle));
    readiness.write_all(READY).context("readiness")?;
    owner.await;
    server.shutdown().await.context("control socket")
}

fn listen(arguments: &Monitor, name: &str) -> Result<UnixListener> {
    let path = arguments.directory.join(name);
    let bind = || {
        let listener = socket::listen(&path)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    };
    bind().with_context(|| path.display().to_string())
}

/// Takes the stand-ins that the command line brings.
async fn take_attachments(listener: UnixListener, sandbox: Handle) {
    loop {
        let taken = async {
            let (connection, _) = listener.accept().await?;
            take_attachment(connection, &sandbox).await
        };
        if let Err(error) = taken.await {
            tracing::warn!("{}", log::one_line(&error));
        }
    }
}

async fn take_attachment(connection: tokio::net::UnixStream, sandbox: &Handle) -> Result<()> {
    let attachment = stand_in::receive(&connection).await?;
    sandbox.attach(attachment).await?;
    let connection = connection.into_std()?;
    connection.set_nonblocking(false)?;
    stand_in::accept(connection.into())?;
    Ok(())
}
