//! Processes are made and let go: hooks, the guest's part, the streams.

use std::{path::PathBuf, sync::Arc, time::Duration};

use casemate_hypervisor::{DeviceId, Vm};
use casemate_protocol::agent as message;
use oci_spec::runtime::Hooks;
use tokio::{sync::mpsc::UnboundedSender, task::spawn_local};

use super::{life::spawn_kill, removal::unplug, report};
use crate::{
    agent::Agent,
    container::Reply,
    disk::RootDisk,
    error::Error,
    facade::Facade,
    hooks,
    key::Key,
    network,
    owner::Event,
    spec::GuestSpec,
    state::State,
    stdio::{self, Input, Outputs, Stdio},
    timeline::{Timeline, now_ns},
};

/// A process that the guest has made.
pub(crate) struct Made {
    pub(crate) outputs: Outputs,
    pub(crate) input: Option<Input>,
    /// What the machine was given for it.
    pub(crate) disk: Option<DeviceId>,
    pub(crate) timeline: Timeline,
}

/// What a container is made from.
pub(crate) struct Creation {
    pub(crate) key: Key,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) disk: Option<RootDisk>,
    pub(crate) agent: Agent,
    pub(crate) hybrid: PathBuf,
    pub(crate) network: network::Handle,
    pub(crate) resolver: Option<PathBuf>,
    pub(crate) guest: GuestSpec,
    pub(crate) facade: Option<Facade>,
    pub(crate) stdio: Stdio,
    pub(crate) hooks: Hooks,
    pub(crate) bundle: PathBuf,
    pub(crate) state: State,
    pub(crate) timeline: Timeline,
}

/// The disk, then hooks, then the guest's part, then the streams.
pub(crate) fn spawn_create(creation: Creation, events: UnboundedSender<Event>) {
    spawn_local(async move {
        let key = creation.key.clone();
        let result = create_on_disk(creation).await;
        report(&events, Event::Made(key, Box::new(result)));
    });
}

/// Plugs the disk of the root file system, if there is one: it is on its way to
/// the guest while the rest goes on.
async fn create_on_disk(mut creation: Creation) -> Result<Made, Error> {
    let Some(disk) = creation.disk.take() else {
        return create(creation).await;
    };
    let begin = now_ns();
    let vm = Arc::clone(&creation.vm);
    let (disk, device) = disk.plug(vm.as_ref()).await?;
    creation.timeline.until_now("host", "plug the disk", begin);
    creation.guest.disk = protobuf::MessageField::some(disk);
    match create(creation).await {
        Ok(made) => Ok(Made {
            disk: Some(device),
            ..made
        }),
        Err(error) => {
            unplug(vm.as_ref(), &device).await;
            Err(error)
        }
    }
}

async fn create(mut creation: Creation) -> Result<Made, Error> {
    let begin = now_ns();
    let state = creation.state.to_oci_json();
    for (list, hooks) in [
        ("prestart", deprecated_prestart(&creation.hooks)),
        ("createRuntime", creation.hooks.create_runtime().as_ref()),
    ] {
        hooks::run(list, hooks, &state, &creation.bundle).await?;
    }
    let mut timeline = creation.timeline;
    if has_hooks(&creation.hooks) {
        timeline.until_now("host", "hooks", begin);
    }
    // Hooks may have set it up.
    let resolver = creation.resolver.clone();
    let begin = now_ns();
    let mut timeline = creation.network.update(resolver, timeline).await?;
    timeline.until_now("host", "look at the network", begin);
    let begin = now_ns();
    let request = message::CreateContainerRequest {
        container_id: creation.key.container.to_string(),
        spec: protobuf::MessageField::some(std::mem::take(&mut creation.guest)),
        ..Default::default()
    };
    let stdio = std::mem::take(&mut creation.stdio);
    let attached = attach(&creation.key, &creation.hybrid, stdio);
    let made = creation.agent.create_container(&request);
    let (response, attached) = together(made, attached).await?;
    timeline.answered("agent", "create in the guest", begin, &response.spans);
    let (outputs, input) = match attached {
        Ok(attached) => attached,
        Err(error) => {
            // The guest has the container already.
            let _ = creation
                .agent
                .remove_container(&creation.key.container())
                .await;
            return Err(error);
        }
    };
    let begin = now_ns();
    if let Some(Err(error)) = creation.facade.map(|facade| facade.show()) {
        tracing::warn!(container = %creation.key, %error, "clients do not see its files");
    }
    timeline.until_now("host", "show its files", begin);
    Ok(Made {
        outputs,
        input,
        disk: None,
        timeline,
    })
}

/// Makes a process and attaches its streams meanwhile: the guest answers them
/// when the process is there. Without it they are let go.
async fn together<T, E: Into<Error>>(
    made: impl Future<Output = Result<T, E>>,
    attached: impl Future<Output = Result<(Outputs, Option<Input>), Error>>,
) -> Result<(T, Result<(Outputs, Option<Input>), Error>), Error> {
    tokio::pin!(made, attached);
    tokio::select! {
        made = &mut made => Ok((made.map_err(E::into)?, attached.await)),
        attached = &mut attached => Ok((made.await.map_err(E::into)?, attached)),
    }
}

/// Deprecated by the spec, used by Docker and Podman.
fn deprecated_prestart(hooks: &Hooks) -> Option<&Vec<oci_spec::runtime::Hook>> {
    hooks.prestart().as_ref()
}

/// Whether programs of the client run before the guest makes a container.
pub(crate) fn has_hooks(hooks: &Hooks) -> bool {
    deprecated_prestart(hooks).is_some() || hooks.create_runtime().is_some()
}

async fn attach(
    key: &Key,
    hybrid: &std::path::Path,
    stdio: Stdio,
) -> Result<(Outputs, Option<Input>), Error> {
    Ok(stdio::attach(hybrid, key.container.as_str(), key.exec_id(), stdio).await?)
}

/// Adds a process to a container and lets it run; it is killed when its streams
/// cannot be attached.
pub(crate) fn spawn_exec(
    key: Key,
    agent: Agent,
    hybrid: PathBuf,
    process: message::Process,
    stdio: Stdio,
    mut timeline: Timeline,
    events: UnboundedSender<Event>,
) {
    let work = async move |key: &Key| {
        let begin = now_ns();
        let request = message::AddProcessRequest {
            container_id: key.container.to_string(),
            exec_id: key.exec_id().to_owned(),
            process: protobuf::MessageField::some(process),
            streams: protobuf::MessageField::some(stdio.wanted()),
            start: true,
            ..Default::default()
        };
        let attached = attach(key, &hybrid, stdio);
        let (response, attached) = together(agent.add_process(&request), attached).await?;
        timeline.answered("container", "exec in the guest", begin, &response.spans);
        let (outputs, input) = match attached {
            Ok(attached) => attached,
            Err(error) => {
                spawn_kill(key.clone(), agent);
                return Err(error);
            }
        };
        Ok(Made {
            outputs,
            input,
            disk: None,
            timeline,
        })
    };
    spawn_local(async move {
        let result = work(&key).await;
        report(&events, Event::Made(key, Box::new(result)));
    });
}

/// How long the hooks in the guest may take, in all.
pub(crate) fn hook_time(guest: &GuestSpec) -> Duration {
    let seconds = guest
        .start_hooks
        .iter()
        .map(|hook| u64::from(hook.timeout_s));
    Duration::from_secs(seconds.sum())
}

/// Lets a container's process run; its hooks have `hook_time` beside the agent's own limit.
pub(crate) fn spawn_start(
    key: Key,
    agent: Agent,
    hook_time: Duration,
    network: network::Handle,
    timeline: Timeline,
    reply: Reply<u32>,
    events: UnboundedSender<Event>,
) {
    let work = async move |key: &Key| {
        // Docker sets it up between create and start, since version 28.
        let begin = now_ns();
        let mut timeline = network.update(None, timeline).await?;
        timeline.until_now("host", "look at the network", begin);
        let begin = now_ns();
        let agent = agent.with_more_time(hook_time);
        let response = agent.start_process(&key.process()).await?;
        timeline.answered("container", "start in the guest", begin, &response.spans);
        Ok(timeline)
    };
    spawn_local(async move {
        let result = work(&key).await;
        report(&events, Event::Started(key, result, reply));
    });
}

/// Hooks after the start; what they do wrong is only logged.
pub(crate) fn spawn_poststart(hooks: Hooks, state: State) {
    spawn_local(async move {
        let json = state.to_oci_json();
        if let Err(error) = hooks::run(
            "poststart",
            hooks.poststart().as_ref(),
            &json,
            &state.bundle,
        )
        .await
        {
            tracing::warn!(container = state.id, %error, "after start");
        }
    });
}
