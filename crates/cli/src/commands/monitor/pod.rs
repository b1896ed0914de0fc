//! The monitor of a pod by containerd's Sandbox API, which describes the pod
//! after the monitor was made.

use std::{fs::File, io::Write, rc::Rc, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use casemate_hypervisor::qemu::{self, Qemu};
use casemate_sandbox::{
    Error, Handle, Inbox, Options,
    cgroup::Cgroup,
    ledger::Ledger,
    pod_files::PodFiles,
    processes::READY,
    settings::Settings,
    size::HostSize,
    spec::Split,
    template::Templates,
    timeline::{Timeline, now_ns},
};
use casemate_shim::{
    Order,
    containerd::{Door, Pod},
};
use tokio::{net::UnixListener, sync::mpsc, time::sleep};

/// How long containerd may take to describe the pod.
const DESERTION: Duration = Duration::from_secs(30);

/// One that does not know its pod yet.
pub(super) struct Monitor<'a> {
    pub(super) control: UnixListener,
    pub(super) readiness: &'a mut File,
    pub(super) door: &'a Arc<Door>,
    pub(super) handle: Handle,
}

impl Monitor<'_> {
    /// Serves until the pod has ended. `options` are its without what the pod
    /// says.
    pub(super) async fn serve(
        self,
        options: Options,
        mut inbox: Inbox,
        mut timeline: Timeline,
    ) -> Result<()> {
        let (orders, mut ordered) = mpsc::channel(1);
        let door = Some(Arc::clone(self.door));
        let mut server =
            casemate_shim::serve(self.control, self.handle, door, Some(orders)).await?;
        self.readiness.write_all(READY).context("readiness")?;
        let deserted = sleep(DESERTION);
        tokio::pin!(deserted);
        let (Order { pod, reply }, beginning) = loop {
            let order = tokio::select! {
                Some(order) = ordered.recv() => order,
                farewell = inbox.end_asked() => {
                    leave(&options)?;
                    farewell.say();
                    server.shutdown().await.context("control socket")?;
                    self.door.close().await;
                    return Ok(());
                }
                () = &mut deserted => {
                    tracing::warn!("nobody has described the pod, ending");
                    return leave(&options);
                }
            };
            match prepare(&order.pod, options.clone(), self.door, &mut timeline) {
                Ok(beginning) => break (order, beginning),
                Err(error) => {
                    tracing::error!(%error, "the pod cannot be");
                    // containerd asks for the end next.
                    let _ = order.reply.send(Err(error));
                }
            }
        };
        let (options, hypervisor) = beginning;
        let owner = inbox.open(options.clone(), Rc::new(hypervisor), timeline);
        let owner = match owner {
            Ok(owner) => owner,
            Err(error) => {
                let _ = reply.send(Err(error.clone()));
                leave(&options)?;
                return Err(error.into());
            }
        };
        // Who has gone will not ask for it either, and the pod is deserted.
        let _ = reply.send(Ok(pod.split));
        owner.await;
        server.shutdown().await.context("control socket")?;
        self.door.close().await;
        Ok(())
    }
}

/// All that can be wrong with a pod is, before its machine is made.
fn prepare(
    pod: &Pod,
    options: Options,
    door: &Door,
    timeline: &mut Timeline,
) -> Result<(Options, Qemu), Error> {
    let Split { host, .. } = &pod.split;
    if let Some(path) = &host.cgroups_path {
        Cgroup::check(path)?;
    }
    let Settings {
        config,
        template,
        warnings,
    } = Settings::new(options.config, host, HostSize::now())?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let begin = now_ns();
    let hypervisor = Qemu::open(&qemu::Settings::from(&config))
        .map_err(|error| Error::Host(error.to_string().into()))?;
    timeline.until_now("host", "choose the hypervisor", begin);
    let files = PodFiles::write(&options.directory, &pod.files)?;
    let netns = door
        .begin(pod.netns.as_deref())
        .map_err(|error| Error::Host(error.to_string().into()))?;
    let options = Options {
        netns: Some(netns),
        hostname: host.hostname.clone().unwrap_or(options.hostname),
        cgroup: host.cgroups_path.clone(),
        config,
        pod: Some(files),
        templates: options.templates.map(|templates| Templates {
            size: template,
            ..templates
        }),
        ..options
    };
    Ok((options, hypervisor))
}

/// Removes what `start` has made.
fn leave(options: &Options) -> Result<()> {
    Ledger::undo(&options.directory)?;
    Ledger::undo(&options.root.join(&options.id))?;
    Ok(())
}
