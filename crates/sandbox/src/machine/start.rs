//! The phases: a clone of a template where there is one, a boot where there is
//! none or the clone fails.

use std::{fs::File, future::ready, rc::Rc, sync::Arc};

use casemate_hypervisor::{BootSpec, Error as VmError, Hypervisor, Size, Vm};
use tokio::{sync::oneshot, time::timeout};

use super::{
    Devices, End, Error, LAST_WORDS, Options, Ready, Sockets, boot_spec, guest::greet, guest_cid,
    sockets::BackEnds,
};
use crate::{
    agent::Agent,
    cgroup::Cgroup,
    device_process::DeviceProcess,
    ledger::Ledger,
    network::{self, Claim, Namespace},
    settings::size_of,
    share::Share,
    template::{Choice, Found, Key, Store, choose},
    timeline::{Timeline, now_ns},
};

/// A sandbox without a machine.
#[derive(Debug)]
pub struct Prepared {
    options: Options,
    ledger: Ledger,
    share: Share,
    sockets: Sockets,
    /// What a clone that failed has left for the boot.
    group: Option<Cgroup>,
    namespace: Option<(Namespace, Claim)>,
}

/// A sandbox whose machine runs and whose guest is prepared.
pub struct Booted {
    prepared: Prepared,
    running: Running,
}

/// A machine whose agent answers.
struct Running {
    vm: Arc<dyn Vm>,
    devices: DeviceProcess,
    agent: Agent,
}

impl Prepared {
    /// Takes possession of the sandbox's directory.
    ///
    /// # Errors
    /// A full disk, missing rights.
    pub fn new(options: Options) -> Result<Self, Error> {
        let directory = options.directory.clone();
        let ledger = Ledger::create(&directory)?;
        let share = Share::open(&directory)?;
        let sockets = Sockets::make(&directory)?;
        Ok(Self {
            options,
            ledger,
            share,
            sockets,
            group: None,
            namespace: None,
        })
    }

    /// Brings the machine up. Where a template was missing, somebody makes it in
    /// the background from now on.
    ///
    /// # Errors
    /// When the machine does not come up.
    pub async fn boot(
        mut self,
        hypervisor: &dyn Hypervisor,
        timeline: &mut Timeline,
    ) -> Result<Booted, Error> {
        let running = match self.choose(hypervisor, timeline) {
            Choice::Clone(found) => self.clone_or_boot(*found, hypervisor, timeline).await?,
            Choice::Boot => self.attempt(None, hypervisor, timeline).await?,
            Choice::Missing(key) => {
                let running = self.attempt(None, hypervisor, timeline).await?;
                self.have_made(&key, timeline);
                running
            }
        };
        Ok(Booted {
            prepared: self,
            running,
        })
    }

    fn choose(&self, hypervisor: &dyn Hypervisor, timeline: &mut Timeline) -> Choice {
        let Some(templates) = &self.options.templates else {
            return Choice::Boot;
        };
        let begin = now_ns();
        let choice = choose(hypervisor, &self.options.config, templates.size);
        timeline.until_now("host", "look for a template", begin);
        choice
    }

    async fn clone_or_boot(
        &mut self,
        found: Found,
        hypervisor: &dyn Hypervisor,
        timeline: &mut Timeline,
    ) -> Result<Running, Error> {
        let key = found.header.key.clone();
        let error = match self.attempt(Some(found), hypervisor, timeline).await {
            Ok(running) => return Ok(running),
            Err(error) => error,
        };
        if !may_be_the_template_s(&error) {
            return Err(error);
        }
        tracing::warn!(template = %key, "booting, as no clone came up: {error}");
        let store = Store::at(&self.options.config.template.directory);
        if let Err(error) = store.remove(&key) {
            tracing::warn!(template = %key, "not removed: {error}");
        }
        self.sockets.hang_up()?;
        self.attempt(None, hypervisor, timeline).await
    }

    /// Starts device process and machine and prepares the guest.
    async fn attempt(
        &mut self,
        found: Option<Found>,
        hypervisor: &dyn Hypervisor,
        timeline: &mut Timeline,
    ) -> Result<Running, Error> {
        let (back_ends, file_share, vsock) = self.sockets.back_ends()?;
        let begins_as = self.begins_as(found.as_ref());
        let size = size_of(&self.options.config.machine);
        let (group_is_there, counted) = oneshot::channel();
        let spec = BootSpec {
            grown: found.is_some().then_some(size),
            counted: found.is_some().then_some(counted),
            file_share: Some(file_share),
            vsock: Some(vsock),
            ..boot_spec(
                &self.options.config,
                begins_as,
                found.is_some(),
                &self.options.directory,
            )?
        };
        let cloned = found.is_some();
        let name = match &found {
            Some(found) => format!("clone of {}", found.header.key),
            None => "start".to_owned(),
        };
        let begin = now_ns();
        let machine = async {
            match found {
                Some(found) => hypervisor.restore(found.files, spec).await,
                None => hypervisor.boot(spec).await,
            }
        };
        tokio::pin!(machine);
        // The VMM is on its way when its devices are made, and waits for them.
        let early = tokio::select! {
            biased;
            vm = &mut machine => Some(vm?),
            () = ready(()) => None,
        };
        let devices = self.devices(&back_ends, timeline)?;
        match self.account() {
            // Nobody waits where a machine boots.
            Some(procs) => drop(group_is_there.send(procs)),
            None => drop(group_is_there),
        }
        let vm = match early {
            Some(vm) => vm,
            None => tokio::select! {
                biased;
                vm = &mut machine => vm?,
                ended = devices.ended() => match End::of_devices(ended) {
                    // As the VMM has gone, which knows why.
                    End { line, killed: false } => match timeout(LAST_WORDS, machine).await {
                        Ok(vm) => vm?,
                        Err(_) => return Err(Error::Ended(End { line, killed: false })),
                    },
                    end => return Err(Error::Ended(end)),
                },
            },
        };
        let vm = Arc::<dyn Vm>::from(vm);
        let runs_since = now_ns();
        timeline.add("vmm", &name, begin, runs_since);
        for step in vm.steps() {
            timeline.add("vmm", step.name, step.begin_ns, step.end_ns);
        }
        if cloned {
            timeline.guest_stood_still_until(runs_since);
        }
        self.ledger.record_process("vmm", vm.pid())?;
        self.group
            .iter()
            .try_for_each(|group| group.add(vm.pid()))?;
        let machine = (vm.as_ref(), &devices);
        let agent = greet(&self.options, &self.sockets, machine, cloned, timeline).await?;
        Ok(Running { vm, devices, agent })
    }

    fn begins_as(&self, found: Option<&Found>) -> Size {
        match found {
            Some(Found { header, .. }) => Size {
                vcpus: header.vcpus,
                memory_mib: header.memory_mib,
            },
            None => size_of(&self.options.config.machine),
        }
    }

    fn devices(
        &mut self,
        back_ends: &BackEnds,
        timeline: &mut Timeline,
    ) -> Result<DeviceProcess, Error> {
        let begin = now_ns();
        let devices = self.sockets.serve(
            back_ends,
            &Devices {
                share: self.share.path(),
                guest_cid: guest_cid(),
                cache: self.options.config.share.cache,
            },
        )?;
        self.ledger.record_process("devices", devices.pid())?;
        self.join_group(devices.pid())?;
        if let (None, Some(netns)) = (&self.namespace, &self.options.netns) {
            self.namespace = Some(Namespace::claim(netns)?);
        }
        timeline.until_now("host", "device process", begin);
        Ok(devices)
    }

    /// One that was made for a clone may have gone with its first process.
    fn join_group(&mut self, pid: u32) -> Result<(), Error> {
        let Some(path) = &self.options.cgroup else {
            return Ok(());
        };
        let joined = self
            .group
            .as_ref()
            .is_some_and(|group| group.add(pid).is_ok());
        if !joined {
            self.group = Some(Cgroup::make(path, pid, &mut self.ledger)?);
        }
        Ok(())
    }

    /// Where a clone's memory is counted, as that of a machine that boots is.
    fn account(&self) -> Option<File> {
        let procs = self.group.as_ref()?.memory()?.join("cgroup.procs");
        File::options().write(true).open(procs).ok()
    }

    /// Has the template made that was missing, unless that has failed lately.
    fn have_made(&self, key: &Key, timeline: &mut Timeline) {
        let Some(templates) = &self.options.templates else {
            return;
        };
        let config = &self.options.config;
        let store = Store::at(&config.template.directory);
        let begin = now_ns();
        match store.failure(key) {
            Some(failure) if !failure.is_over() => {
                tracing::info!(template = %key, "could not be made: {}", failure.reason);
            }
            _ => {
                let started = store
                    .make()
                    .map_err(|error| error.to_string())
                    .and_then(|()| {
                        let started = templates.make_in_background(config);
                        started.map_err(|error| error.to_string())
                    });
                if let Err(error) = started {
                    tracing::warn!(template = %key, "is not made: {error}");
                }
            }
        }
        timeline.until_now("host", "have the template made", begin);
    }
}

/// Whether a boot may come up where a clone has not.
fn may_be_the_template_s(error: &Error) -> bool {
    match error {
        Error::Hypervisor(VmError::Ended(exit)) => !End::from(exit.clone()).killed,
        Error::Hypervisor(error) => !matches!(error, VmError::File { .. }),
        Error::Ended(end) => !end.killed,
        Error::Agent(_) | Error::SilentClone(_) => true,
        _ => false,
    }
}

impl Booted {
    /// Has the network kept from now on.
    ///
    /// # Errors
    /// When the namespace cannot be watched.
    pub fn settle(self) -> Result<Ready, Error> {
        let Self {
            prepared,
            running: Running { vm, devices, agent },
        } = self;
        let (namespace, claim) = prepared.namespace.unzip();
        let network = network::keep(network::Start {
            namespace,
            directory: &prepared.options.directory,
            names_socket: prepared.sockets.names(),
            hybrid: prepared.sockets.hybrid(),
            slots: prepared.options.config.machine.hotplug_slots,
            vm: Arc::clone(&vm),
            agent: agent.clone(),
        })?;
        Ok(Ready {
            ledger: prepared.ledger,
            share: Rc::new(prepared.share),
            vm,
            devices: Rc::new(devices),
            agent,
            hybrid: prepared.sockets.hybrid(),
            network,
            _claim: claim,
        })
    }
}
