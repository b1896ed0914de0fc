//! The guest is greeted and prepared.

use std::time::Duration;

use casemate_config::Config;
use casemate_hypervisor::Vm;
use casemate_protocol::{SHARE_TAG, agent as message, paths};
use tokio::time::timeout;
use ttrpc::asynchronous::transport::Socket;

use super::{
    Error, Options, Sockets, at, end_of, guest_cid,
    identity::{Wanted, realtime_ns},
};
use crate::{
    agent::{self, Agent},
    device_process::DeviceProcess,
    settings::size_of,
    timeline::{Timeline, now_ns},
};

/// How long a clone may take to call, which it does within a tenth of a second on a
/// quiet host: a boot is sooner there than what comes later.
pub(super) const CLONE_LIMIT: Duration = Duration::from_secs(30);

/// Waits for the call of a machine's agent.
///
/// # Errors
/// When nobody calls in time.
pub(crate) async fn called(
    config: &Config,
    sockets: &Sockets,
    cloned: bool,
) -> Result<Socket, Error> {
    let boot = Duration::from_secs(config.vmm.boot_timeout_s.into());
    let (limit, silent): (_, fn(Duration) -> Error) = match cloned {
        true => (boot.min(CLONE_LIMIT), Error::SilentClone),
        false => (boot, Error::Silent),
    };
    let called = timeout(limit, sockets.call()).await;
    called.map_err(|_| silent(limit))?
}

/// Waits for the call of the machine's agent, greets it and prepares the guest.
///
/// # Errors
/// When the machine ends or nobody calls in time; when the guest does not confirm
/// that it is unlike others.
pub(super) async fn greet(
    options: &Options,
    sockets: &Sockets,
    (vm, devices): (&dyn Vm, &DeviceProcess),
    cloned: bool,
    timeline: &mut Timeline,
) -> Result<Agent, Error> {
    let begin = now_ns();
    let config = &options.config;
    let connection = tokio::select! {
        called = called(config, sockets, cloned) => called?,
        end = end_of(vm, devices) => return Err(Error::Ended(end)),
    };
    timeline.until_now("host", "wait for the agent", begin);
    let begin = now_ns();
    let limit = Duration::from_secs(config.agent.timeout_s.into());
    let (agent, hello) = Agent::greet(connection, limit).await?;
    timeline.relate_guest(hello.now_ns, now_ns());
    timeline.answered("agent", "greet the agent", begin, &hello.spans);
    tracing::info!(
        kernel = agent::printable(&hello.kernel_release),
        agent = agent::printable(&hello.agent_version),
        "guest is up"
    );
    let begin = now_ns();
    let size = size_of(&config.machine);
    let wanted = Wanted::new(&options.hostname, size, guest_cid())
        .map_err(at("read", "/dev/urandom".as_ref()))?;
    let prepared = agent
        .prepare_sandbox(&preparation(options, &wanted))
        .await?;
    wanted.confirm(prepared.identity.as_ref(), realtime_ns())?;
    timeline.answered("agent", "prepare the guest", begin, &prepared.spans);
    Ok(agent)
}

fn preparation(options: &Options, wanted: &Wanted) -> message::PrepareSandboxRequest {
    message::PrepareSandboxRequest {
        sandbox_id: options.id.to_string(),
        mounts: vec![message::Mount {
            destination: paths::SHARE.to_owned(),
            fstype: "virtiofs".to_owned(),
            source: SHARE_TAG.to_owned(),
            ..Default::default()
        }],
        ..wanted.request()
    }
}
