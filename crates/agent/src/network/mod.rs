//! The sandbox's network: what the host found in the sandbox's namespace, made
//! again in the guest's own first one, which all containers share.
//!
//! A call says how everything has to be. What the last call made and this one
//! does not name goes first; then everything is set, whether or not it is there:
//! an interface that was renamed or an address that was taken away has lost more
//! than itself.

mod cards;
mod limits;
mod objects;

use std::{collections::HashMap, fs, io};

use casemate_linux::netlink::{Netlink, Request, constants::*, link_header};
use casemate_protocol::agent::{NetworkInterface, NetworkRoute, Span, UpdateNetworkRequest};

use crate::{
    error::{Doing, Result},
    names::Names,
    timeline::{Timeline, now},
    transport::Transport,
};

use cards::Card;

/// What the last call has made.
#[derive(Debug)]
pub(crate) struct Network {
    applied: UpdateNetworkRequest,
    /// Numbers of the interfaces, by name.
    numbers: HashMap<String, u32>,
    names: Names,
}

impl Network {
    pub(crate) fn new(transport: Transport) -> Self {
        Self {
            applied: UpdateNetworkRequest::default(),
            numbers: HashMap::new(),
            names: Names::new(transport),
        }
    }

    /// Makes the network what the request says.
    pub(crate) async fn update(&mut self, request: UpdateNetworkRequest) -> Result<Vec<Span>> {
        let servers = limits::check(&request)?;
        let mut timeline = Timeline::since(now());
        let mut netlink = Netlink::open().doing(|| "open a netlink socket".into())?;
        let known = self.known();
        let cards = cards::arrived(&mut netlink, &request.interfaces, &known).await?;
        timeline.mark("network cards");
        self.retire(&mut netlink, &request);
        // From here on there may be a part of everything.
        self.numbers = numbers(&request.interfaces, &cards);
        let before = std::mem::replace(&mut self.applied, request);
        self.rename(&mut netlink, &cards)?;
        for (interface, card) in self.applied.interfaces.iter().zip(&cards) {
            let fresh = known.get(&interface.mac) != Some(&card.index);
            let mut earlier = before.interfaces.iter();
            let earlier = earlier.find(|one| !fresh && one.mac == interface.mac);
            set_up(&mut netlink, interface, card.index, earlier)
                .doing(|| format!("set up interface {}", interface.name))?;
        }
        self.fill(&mut netlink, &before.routes)?;
        timeline.mark("network");
        if self.names.update(&servers).await? {
            timeline.mark("name servers");
        }
        Ok(timeline.into_spans())
    }

    /// The cards that an earlier call has found, by their address.
    fn known(&self) -> HashMap<Vec<u8>, u32> {
        let interfaces = self.applied.interfaces.iter();
        interfaces
            .filter_map(|known| Some((known.mac.clone(), *self.numbers.get(&known.name)?)))
            .collect()
    }

    /// Removes what is not wanted any more. Much of it goes with something else
    /// before its turn has come, so nobody looks at the answers.
    fn retire(&self, netlink: &mut Netlink, wanted: &UpdateNetworkRequest) {
        let mut remove = |request: Option<Request>| {
            let _ = request.map(|request| netlink.execute(request));
        };
        let old = &self.applied;
        for rule in old.rules.iter().filter(|old| !wanted.rules.contains(old)) {
            remove(Some(objects::rule(RTM_DELRULE, 0, rule)));
        }
        for route in old.routes.iter().filter(|old| !wanted.routes.contains(old)) {
            remove(objects::route(RTM_DELROUTE, 0, route, &self.numbers));
        }
        let neighbours = old.neighbours.iter();
        for neighbour in neighbours.filter(|old| !wanted.neighbours.contains(old)) {
            remove(objects::neighbour(
                RTM_DELNEIGH,
                0,
                neighbour,
                &self.numbers,
            ));
        }
        for interface in &old.interfaces {
            let Some(&index) = self.numbers.get(&interface.name) else {
                continue;
            };
            let stays = wanted
                .interfaces
                .iter()
                .find(|one| one.mac == interface.mac);
            let kept = stays.map_or(&[][..], |one| &one.addresses);
            let addresses = interface.addresses.iter();
            for address in addresses.filter(|old| !kept.contains(old)) {
                remove(Some(objects::address(RTM_DELADDR, 0, address, index)));
            }
            if stays.is_none() {
                // Its name may be wanted while the card is on its way out.
                remove(Some(link(index, 0, IFF_UP)));
                remove(Some(named(index, &format!("gone{index}"))));
            }
        }
    }

    /// Gives the cards their names. Who has a name that another one gets moves
    /// out of the way first.
    fn rename(&self, netlink: &mut Netlink, cards: &[Card]) -> Result<()> {
        let wanted = self.applied.interfaces.iter().map(|one| &one.name);
        let moving: Vec<_> = cards
            .iter()
            .zip(wanted)
            .filter(|(card, name)| card.name != **name)
            .collect();
        for (_, name) in &moving {
            if let Some(index) = cards::find_name(netlink, name)? {
                give_name(netlink, index, &format!("card{index}"))
                    .doing(|| format!("rename interface {name} out of the way"))?;
            }
        }
        for (card, name) in moving {
            give_name(netlink, card.index, name)
                .doing(|| format!("rename interface {} to {name}", card.name))?;
        }
        Ok(())
    }

    /// Addresses, then what needs them.
    fn fill(&self, netlink: &mut Netlink, routes_before: &[NetworkRoute]) -> Result<()> {
        let made = NLM_F_CREATE | NLM_F_REPLACE;
        for interface in &self.applied.interfaces {
            let index = self.numbers[&interface.name];
            for address in &interface.addresses {
                netlink
                    .execute(objects::address(RTM_NEWADDR, made, address, index))
                    .doing(|| format!("add {} to {}", objects::show(address), interface.name))?;
            }
        }
        for neighbour in &self.applied.neighbours {
            let request = objects::neighbour(RTM_NEWNEIGH, made, neighbour, &self.numbers);
            execute(netlink, request)
                .doing(|| format!("add a neighbour to {}", neighbour.interface))?;
        }
        for route in &self.applied.routes {
            let known = routes_before.contains(route);
            self.add_route(netlink, route, known)
                .doing(|| format!("add the route to {}", objects::destination(route)))?;
        }
        for rule in &self.applied.rules {
            let request = objects::rule(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, rule);
            there(netlink.execute(request)).doing(|| "add a policy rule".into())?;
        }
        Ok(())
    }

    /// A gateway need not be within reach: the address that led to it may have
    /// been removed later, on the host as well.
    fn add_route(
        &self,
        netlink: &mut Netlink,
        route: &NetworkRoute,
        known: bool,
    ) -> io::Result<()> {
        let mut add = |route| {
            // One that is there already is the same in everything.
            let flags = NLM_F_CREATE | NLM_F_APPEND;
            let request = objects::route(RTM_NEWROUTE, flags, route, &self.numbers);
            there(execute(netlink, request))
        };
        match add(route) {
            Err(error) if is_out_of_reach(&error) && known => Ok(()),
            Err(error) if is_out_of_reach(&error) => add(&objects::on_link(route)),
            other => other,
        }
    }
}

fn is_out_of_reach(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH)
    )
}

fn numbers(interfaces: &[NetworkInterface], cards: &[Card]) -> HashMap<String, u32> {
    let pairs = interfaces.iter().zip(cards);
    pairs
        .map(|(one, card)| (one.name.clone(), card.index))
        .collect()
}

/// Sets what an interface itself has. A fresh one makes no address by itself:
/// those that the host's has come with the request.
fn set_up(
    netlink: &mut Netlink,
    interface: &NetworkInterface,
    index: u32,
    earlier: Option<&NetworkInterface>,
) -> io::Result<()> {
    let no_arp = if interface.no_arp { IFF_NOARP } else { 0 };
    let mut settings = link(index, no_arp, IFF_NOARP).number(IFLA_MTU, interface.mtu);
    if earlier.is_none() {
        settings = settings.nested(IFLA_AF_SPEC, |families| {
            families.nested(libc::AF_INET6 as u16, |inet6| {
                inet6.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE])
            })
        });
    }
    netlink.execute(settings)?;
    for (name, value) in &interface.ipv6 {
        let now = match earlier {
            Some(earlier) => earlier.ipv6.get(name),
            None => Some(if name == "disable_ipv6" { &0 } else { &1 }),
        };
        if now != Some(value) {
            let path = format!("/proc/sys/net/ipv6/conf/{}/{name}", interface.name);
            fs::write(path, value.to_string())?;
        }
    }
    // A message of its own: the kernel would bring it up before the rest.
    netlink.execute(link(index, if interface.up { IFF_UP } else { 0 }, IFF_UP))
}

/// An interface that is up cannot be renamed.
fn give_name(netlink: &mut Netlink, index: u32, name: &str) -> io::Result<()> {
    netlink.execute(link(index, 0, IFF_UP))?;
    netlink.execute(named(index, name))
}

fn link(index: u32, flags: u32, change: u32) -> Request {
    Request::new(RTM_SETLINK, 0).header(&link_header(index, flags, change))
}

fn named(index: u32, name: &str) -> Request {
    link(index, 0, 0).attribute(IFLA_IFNAME, format!("{name}\0").as_bytes())
}

/// Without a request the interface is not in the list, which was checked.
fn execute(netlink: &mut Netlink, request: Option<Request>) -> io::Result<()> {
    match request {
        Some(request) => netlink.execute(request),
        None => Err(io::Error::from_raw_os_error(libc::ENODEV)),
    }
}

fn there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}
