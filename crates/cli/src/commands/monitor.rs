//! `monitor`: the process that owns one sandbox.

mod pod;

use std::{
    fs::File, io::Write, os::unix::net::UnixListener as StdListener, process::ExitCode, rc::Rc,
    sync::Arc,
};

use anyhow::{Context, Result};
use casemate_config::{Config, Ksm};
use casemate_hypervisor::{
    Size,
    qemu::{Qemu, Settings},
};
use casemate_linux::{descriptor, ksm, socket, view::View};
use casemate_sandbox::{
    Client, Handle, Id, Inbox, Options,
    processes::READY,
    stand_in::{self, ATTACH_SOCKET},
    template::Templates,
    timeline::Timeline,
};
use casemate_shim::{
    CONTROL_SOCKET,
    containerd::{self, Door},
};
use tokio::{net::UnixListener, task::LocalSet};

use crate::{arguments::Monitor, log};

/// Where the command line has put things.
const CONFIG_FD: i32 = 3;
const READINESS_FD: i32 = 4;
const CONTROL_FD: i32 = 5;

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
    for warning in &arguments.warning {
        tracing::warn!("{warning}");
    }
    let mut timeline = Timeline::default();
    let (begun, spawned) = (arguments.begun_ns, arguments.spawned_ns);
    timeline.add("host", "command line", begun, spawned);
    let config: Config = serde_json::from_reader(config).context("configuration")?;
    merge_memory(&config)?;
    let door = door(&arguments)?;
    let control = match door {
        Some(_) => inherited()?,
        None => listen(&arguments, CONTROL_SOCKET)?,
    };
    let attach = listen(&arguments, ATTACH_SOCKET)?;
    timeline.until_now("host", "monitor begins", spawned);
    let (handle, inbox) = Inbox::new();
    if let (Some(door), true) = (&door, arguments.pod) {
        tokio::task::spawn_local(take_attachments(attach, handle.clone()));
        let pod = pod::Monitor {
            control,
            readiness,
            door,
            handle,
        };
        return pod
            .serve(options(&arguments, config, Some(door))?, inbox, timeline)
            .await;
    }
    let begin = casemate_sandbox::timeline::now_ns();
    let hypervisor = Qemu::open(&Settings::from(&config))?;
    timeline.until_now("host", "choose the hypervisor", begin);
    let mut options = options(&arguments, config, door.as_deref())?;
    if let Some(door) = &door {
        options.netns = Some(door.begin(arguments.netns.as_deref())?);
    }
    let owner = inbox.open(options, Rc::new(hypervisor), timeline)?;
    // The machine's processes are on their way before anybody is answered.
    tokio::task::yield_now().await;
    let mut server = casemate_shim::serve(control, handle.clone(), door.clone(), None).await?;
    tokio::task::spawn_local(take_attachments(attach, handle));
    readiness.write_all(READY).context("readiness")?;
    owner.await;
    server.shutdown().await.context("control socket")?;
    if let Some(door) = door {
        door.close().await;
    }
    Ok(())
}

/// Has the host's kernel merge equal pages, if that is wanted: those of this process
/// and of all that it starts.
fn merge_memory(config: &Config) -> Result<()> {
    if config.vmm.ksm == Ksm::Off {
        return Ok(());
    }
    ksm::merge_process().context(
        "vmm.ksm = \"on\": this host's kernel cannot merge memory (Linux 6.4 with KSM can)",
    )?;
    if !ksm::is_running().unwrap_or(false) {
        tracing::warn!("vmm.ksm: nothing is merged until 1 is written to /sys/kernel/mm/ksm/run");
    }
    Ok(())
}

/// What the sandbox starts from, as far as the command line says it.
fn options(arguments: &Monitor, config: Config, door: Option<&Door>) -> Result<Options> {
    Ok(Options {
        id: Id::new(&arguments.id)?,
        directory: arguments.directory.clone(),
        root: arguments.root.clone(),
        netns: arguments.netns.clone(),
        hostname: arguments.hostname.clone(),
        cgroup: arguments.cgroup.clone(),
        config,
        client: door.map_or(Client::CommandLine, Door::client),
        pod: None,
        templates: Some(Templates {
            size: Size {
                vcpus: arguments.template_vcpus,
                memory_mib: arguments.template_memory_mib,
            },
            // The sandbox takes this process into a mount namespace of its own.
            view: Arc::new(View::own().context("mount namespace")?),
        }),
    })
}

/// What containerd needs, when it is the client.
fn door(arguments: &Monitor) -> Result<Option<Arc<Door>>> {
    let (Some(namespace), Some(bundle)) = (&arguments.containerd_namespace, &arguments.bundle)
    else {
        return Ok(None);
    };
    let settings = containerd::Settings {
        id: Id::new(&arguments.id)?,
        root: arguments.root.clone(),
        sandbox: arguments.directory.clone(),
        namespace: namespace.clone(),
        events: arguments.containerd_events.clone(),
        bundle: bundle.clone(),
        pod: arguments.pod,
    };
    Door::open(settings).map(Some)
}

/// The socket that containerd has been told of.
fn inherited() -> Result<UnixListener> {
    let inherit = || {
        let listener = StdListener::from(descriptor::inherited(CONTROL_FD)?);
        // Who connects is told of this process, and not of the one that began.
        socket::take_over(&listener)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    };
    inherit().context("control socket")
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
