//! The sandbox's network: every interface of its network namespace is connected
//! to a network card of the virtual machine.
//!
//! ```text
//!   eth0 (the client's) ⇄ TC redirect ⇄ cmtap<n> ── descriptor ── VMM ── eth0 in the guest
//! ```
//!
//! [`inventory`] reads what is there, [`redirect`] connects an interface, the
//! agent makes the guest's side like it. One task does all of it, one change
//! after the other: before a container is made, again before it starts, and
//! whenever the kernel reports a change. It always applies the newest inventory
//! and does nothing when that is the same as the last one.
//!
//! Name servers that run in the namespace itself are reached through [`names`],
//! and have a few ports of the interfaces to themselves ([`own_ports`]).
//!
//! The other way round, what is sent to 127.0.0.1 in the namespace reaches the
//! guest's loopback interface ([`loopback`]).
//!
//! Nothing here enters the namespace but a thread that lives for one call.

mod error;
mod inventory;
mod loopback;
mod names;
mod namespace;
mod own_ports;
mod redirect;

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use casemate_hypervisor::{Device, DeviceId, MacAddress, NetworkDevice, Vm};
use casemate_linux::{
    netlink::{Changes, Netlink},
    reactor::register_readable,
};
use casemate_protocol::agent::UpdateNetworkRequest;
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
    task::spawn_local,
    time::sleep,
};

use crate::{
    agent::Agent,
    ledger::{Ledger, Resource},
    timeline::{Timeline, now_ns},
};

pub use error::Error;
use inventory::{Down, Interface, Inventory};
use loopback::Loopback;
use names::Relay;
pub(crate) use namespace::{Claim, Namespace};
pub(crate) use own_ports::undo as undo_ports;
pub(crate) use redirect::undo;

/// The way to the task. Clones speak to the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Handle(Option<mpsc::UnboundedSender<Request>>);

struct Request {
    /// resolv.conf of a container, if the client has made one.
    resolver: Option<PathBuf>,
    timeline: Timeline,
    reply: oneshot::Sender<Result<Timeline, Error>>,
}

impl Handle {
    /// Returns when the guest has the network that the namespace has now, and
    /// the name servers that `resolver` names; the timeline says what that took.
    ///
    /// # Errors
    /// When something in the namespace cannot be taken in.
    pub(crate) async fn update(
        &self,
        resolver: Option<PathBuf>,
        timeline: Timeline,
    ) -> Result<Timeline, Error> {
        let Some(requests) = &self.0 else {
            return Ok(timeline);
        };
        let (reply, answer) = oneshot::channel();
        let request = Request {
            resolver,
            timeline,
            reply,
        };
        requests.send(request).map_err(|_| Error::Ended)?;
        answer.await.map_err(|_| Error::Ended)?
    }
}

/// What a network is kept with.
pub(crate) struct Start<'a> {
    /// Where the interfaces are; without one there are none.
    pub(crate) namespace: Option<Namespace>,
    /// The sandbox's directory, for its ledger.
    pub(crate) directory: &'a Path,
    /// Where the relay for name servers listens.
    pub(crate) names_socket: PathBuf,
    /// The hybrid socket, which leads to the guest.
    pub(crate) hybrid: PathBuf,
    /// How many cards the machine can have.
    pub(crate) slots: u32,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) agent: Agent,
}

/// Keeps the network; nothing is taken in before the first update.
///
/// # Errors
/// When the ledger cannot be opened.
pub(crate) fn keep(start: Start<'_>) -> Result<Handle, Error> {
    let Some(namespace) = start.namespace else {
        return Ok(Handle::default());
    };
    let Namespace {
        path,
        file,
        changes,
        netlink,
    } = namespace;
    let network = Network {
        changes: register_readable(changes.into()).map_err(failed("netlink"))?,
        netlink,
        path,
        namespace: file,
        ledger: Ledger::open(start.directory)?,
        slots: start.slots,
        vm: start.vm,
        agent: start.agent,
        names_socket: start.names_socket,
        hybrid: start.hybrid,
        resolvers: Vec::new(),
        relay: None,
        cards: Vec::new(),
        applied: UpdateNetworkRequest::default(),
        refused: Vec::new(),
        changed: true,
        unfinished: false,
        begun: false,
    };
    let (requests, queue) = mpsc::unbounded_channel();
    spawn_local(network.run(queue));
    Ok(Handle(Some(requests)))
}

/// An interface with its card.
struct Card {
    interface: Interface,
    id: DeviceId,
    /// The host's side has ports of its own.
    own_ports: bool,
}

struct Network {
    path: PathBuf,
    namespace: File,
    netlink: Netlink,
    changes: AsyncFd<OwnedFd>,
    ledger: Ledger,
    slots: u32,
    vm: Arc<dyn Vm>,
    agent: Agent,
    names_socket: PathBuf,
    hybrid: PathBuf,
    /// Every resolv.conf that the client has made.
    resolvers: Vec<PathBuf>,
    relay: Option<Relay>,
    cards: Vec<Card>,
    /// What the guest has.
    applied: UpdateNetworkRequest,
    /// Interfaces that could not be connected when it was last looked.
    refused: Vec<String>,
    /// Something has changed, or is there, that the guest does not have.
    changed: bool,
    /// Interfaces are left out that may still be in the making.
    unfinished: bool,
    /// The first container has asked for the network.
    begun: bool,
}

/// How long an interface that comes while the sandbox lives may stay down before
/// it is taken as it is.
const MAKING: Duration = Duration::from_secs(1);

/// What is taken in of what there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Demand {
    /// All; an interface that cannot be connected is an error.
    Everything,
    /// All that can be connected.
    WhatWorks,
    /// Of that, what is finished.
    WhatIsFinished,
}

impl Network {
    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let vm = Arc::clone(&self.vm);
        let loopback = Loopback::open(&self.namespace, &self.hybrid);
        if let Err(error) = &loopback {
            tracing::warn!(%error, "ports of the guest's loopback interface cannot be reached");
        }
        loop {
            tokio::select! {
                biased;
                _ = vm.exited() => return,
                request = requests.recv() => {
                    let Some(request) = request else { return };
                    let Request { resolver, mut timeline, reply } = request;
                    self.resolvers.extend(resolver.filter(|new| !self.resolvers.contains(new)));
                    self.begun = true;
                    let updated = self.update(Demand::Everything, &mut timeline).await;
                    // Nobody is hurt when the one who asked has gone.
                    let _ = reply.send(updated.map(|()| timeline));
                }
                ready = self.changes.readable(), if self.begun => {
                    if let Ok(mut ready) = ready {
                        ready.clear_ready();
                    }
                    self.follow(Demand::WhatIsFinished).await;
                }
                () = sleep(MAKING), if self.unfinished => self.follow(Demand::WhatWorks).await,
            }
        }
    }

    /// Takes in a change that nobody waits for.
    async fn follow(&mut self, demand: Demand) {
        if let Err(error) = self.update(demand, &mut Timeline::default()).await {
            tracing::warn!(%error, "the network has changed, the guest's has not");
        }
    }

    async fn update(&mut self, demand: Demand, timeline: &mut Timeline) -> Result<(), Error> {
        self.changed |= Changes::drain(self.changes.get_ref());
        let servers = names::loopback_servers(&self.resolvers);
        let name_servers = servers.iter().map(|one| one.octets().to_vec()).collect();
        if !self.changed && self.applied.name_servers == name_servers {
            return Ok(());
        }
        let begin = now_ns();
        let mut inventory = self.look(demand)?;
        inventory.network.name_servers = name_servers;
        self.judge(demand, &inventory)?;
        let here = |card: &Card| {
            inventory
                .interfaces
                .iter()
                .any(|one| one.is(&card.interface))
        };
        let gone: Vec<DeviceId> = self
            .cards
            .iter()
            .filter(|card| !here(card))
            .map(|card| card.id.clone())
            .collect();
        if gone.is_empty() && inventory.network == self.applied {
            self.changed = self.lacks();
            return Ok(());
        }
        let new: Vec<Interface> = inventory
            .interfaces
            .iter()
            .filter(|one| !self.cards.iter().any(|card| one.is(&card.interface)))
            .cloned()
            .collect();
        timeline.until_now("host", "read the network", begin);
        // The guest lets go of a card only after seconds: that comes last, where
        // there is room, the guest can tell old from new by the address, and the
        // tap by the interface's number.
        let again = |card: &Card| new.iter().any(|one| one.shares(&card.interface));
        let crowded =
            self.cards.len() + new.len() > self.slots as usize || self.cards.iter().any(again);
        if crowded {
            self.unplug(&gone).await?;
        }
        for interface in new {
            let begin = now_ns();
            let name = format!("connect {}", interface.name);
            self.plug(interface).await?;
            timeline.until_now("host", &name, begin);
        }
        self.allow(servers)?;
        let begin = now_ns();
        let response = self.agent.update_network(&inventory.network).await?;
        timeline.add_guest("agent", &response.spans);
        timeline.until_now("host", "network in the guest", begin);
        tracing::info!(
            interfaces = inventory.interfaces.len(),
            "network is up to date"
        );
        self.applied = inventory.network;
        self.changed = self.lacks();
        if !crowded {
            self.unplug(&gone).await?;
        }
        Ok(())
    }

    /// Lets these name servers be asked from the guest, and ask others.
    fn allow(&mut self, servers: Vec<Ipv4Addr>) -> Result<(), Error> {
        if servers.is_empty() {
            self.relay = None;
            return Ok(());
        }
        if self.relay.is_none() {
            let relay = Relay::start(&self.names_socket, &self.namespace);
            self.relay = Some(relay.map_err(failed("relay for name servers"))?);
            own_ports::reserve(&self.path, &self.namespace, &mut self.ledger)?;
        }
        for card in self.cards.iter_mut().filter(|card| !card.own_ports) {
            own_ports::let_in(&mut self.netlink, &card.interface)?;
            card.own_ports = true;
        }
        if let Some(relay) = &self.relay {
            relay.allow(servers);
        }
        Ok(())
    }

    fn look(&mut self, demand: Demand) -> Result<Inventory, Error> {
        let known: Vec<u32> = self.cards.iter().map(|card| card.interface.index).collect();
        let down = match demand {
            Demand::WhatIsFinished => Down::Known(&known),
            Demand::Everything | Demand::WhatWorks => Down::Any,
        };
        let inventory = inventory::read(&mut self.netlink, down);
        let inventory = inventory.map_err(failed("read interfaces"))?;
        self.unfinished = inventory.unfinished;
        Ok(inventory)
    }

    /// Whether the guest lacks something that is there.
    fn lacks(&self) -> bool {
        self.unfinished || !self.refused.is_empty()
    }

    /// Whether one can work with what is there.
    fn judge(&mut self, demand: Demand, inventory: &Inventory) -> Result<(), Error> {
        if inventory.interfaces.len() > self.slots as usize {
            return Err(Error::Slots {
                interfaces: inventory.interfaces.len(),
                slots: self.slots,
            });
        }
        let names: Vec<String> = inventory
            .refused
            .iter()
            .map(|(interface, _)| interface.clone())
            .collect();
        for (interface, reason) in &inventory.refused {
            if demand == Demand::Everything {
                return Err(Error::Refused {
                    interface: interface.clone(),
                    reason,
                });
            }
            if !self.refused.contains(interface) {
                tracing::warn!(interface, reason, "a network interface is not taken in");
            }
        }
        self.refused = names;
        Ok(())
    }

    /// Connects an interface to a card of the machine.
    async fn plug(&mut self, interface: Interface) -> Result<(), Error> {
        let resource = self.resource(&interface)?;
        self.ledger.record(&resource)?;
        let tap = redirect::connect(self.namespace.as_fd(), &mut self.netlink, &interface)?;
        let card = Device::Network(NetworkDevice {
            tap_queues: vec![tap],
            mac: MacAddress(interface.mac),
        });
        match self.vm.plug(card).await {
            Ok(id) => {
                self.cards.push(Card {
                    interface,
                    id,
                    own_ports: false,
                });
                Ok(())
            }
            Err(error) => {
                redirect::disconnect(&mut self.netlink, interface.index);
                Err(match error {
                    casemate_hypervisor::Error::NoFreeSlot { slots } => Error::Slots {
                        interfaces: self.cards.len() + 1,
                        slots,
                    },
                    source => Error::Card {
                        interface: interface.name,
                        source,
                    },
                })
            }
        }
    }

    fn resource(&self, interface: &Interface) -> Result<Resource, Error> {
        let namespace = self.namespace.metadata();
        let namespace = namespace.map_err(failed("network namespace"))?;
        Ok(Resource::Redirect {
            namespace: self.path.clone(),
            device: namespace.dev(),
            inode: namespace.ino(),
            interface: interface.index,
        })
    }

    /// Takes cards out of the machine; their taps go with them.
    async fn unplug(&mut self, gone: &[DeviceId]) -> Result<(), Error> {
        for id in gone {
            let place = self.cards.iter().position(|card| card.id == *id);
            let Some(place) = place else { continue };
            // An interface may be there still, with another address.
            redirect::disconnect(&mut self.netlink, self.cards[place].interface.index);
            let unplugged = self.vm.unplug(id).await;
            let card = self.cards.swap_remove(place);
            unplugged.map_err(|source| Error::Card {
                interface: card.interface.name,
                source,
            })?;
        }
        Ok(())
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Kernel { what, source }
}
