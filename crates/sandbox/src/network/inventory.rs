//! What is in the network namespace: its interfaces, and all that a container
//! would find configured, in the form that the agent makes it from.

mod objects;

use std::{collections::HashMap, io};

use casemate_linux::netlink::{
    ADDRESS_HEADER, LINK_HEADER, Message, NEIGHBOUR_HEADER, Netlink, ROUTE_HEADER, RULE_HEADER,
    Request, attributes, constants::*, link_header,
};
use casemate_protocol::agent::{NetworkInterface, NetworkRoute, UpdateNetworkRequest};

use super::redirect::TAP;
use objects::{address, neighbour, number, route, rule, text};

/// An interface to be connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
}

impl Interface {
    /// Whether it can have the same card: names and MTU change on both sides.
    pub(super) fn is(&self, other: &Self) -> bool {
        (self.index, self.mac) == (other.index, other.mac)
    }

    /// Whether the two cannot be connected at the same time.
    pub(super) fn shares(&self, other: &Self) -> bool {
        self.index == other.index || self.mac == other.mac
    }
}

/// What is there.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Inventory {
    pub(super) interfaces: Vec<Interface>,
    /// What the guest has to have.
    pub(super) network: UpdateNetworkRequest,
    /// Interfaces that cannot be connected, with the reason.
    pub(super) refused: Vec<(String, &'static str)>,
    /// Interfaces were left out that may still be in the making.
    pub(super) unfinished: bool,
}

/// Which interfaces are taken that are down.
#[derive(Debug, Clone, Copy)]
pub(super) enum Down<'a> {
    /// All of them.
    Any,
    /// Those with these numbers. Who brings an interface names it, gives it its address and
    /// puts it up last: until then another one may still be in the making.
    Known(&'a [u32]),
}

/// Reads all of it.
pub(super) fn read(netlink: &mut Netlink, down: Down<'_>) -> io::Result<Inventory> {
    let mut inventory = choose(&links(netlink)?, down);
    if inventory.interfaces.is_empty() {
        return Ok(inventory);
    }
    let names: HashMap<u32, String> = inventory
        .interfaces
        .iter()
        .map(|one| (one.index, one.name.clone()))
        .collect();
    let mut list =
        |kind, header: usize| netlink.dump(&Request::new(kind, 0).header(&vec![0; header]));
    for message in list(RTM_GETADDR, ADDRESS_HEADER)? {
        inventory.add_address(&message);
    }
    let network = &mut inventory.network;
    let routes = list(RTM_GETROUTE, ROUTE_HEADER)?;
    network.routes = routes.iter().filter_map(|one| route(one, &names)).collect();
    let with_gateway = |route: &NetworkRoute| route.hops.iter().any(|hop| !hop.gateway.is_empty());
    network.routes.sort_by_key(with_gateway);
    let neighbours = list(RTM_GETNEIGH, NEIGHBOUR_HEADER)?;
    let neighbours = neighbours.iter();
    network.neighbours = neighbours
        .filter_map(|one| neighbour(one, &names))
        .collect();
    let rules = list(RTM_GETRULE, RULE_HEADER)?;
    network.rules = rules.iter().filter_map(rule).collect();
    Ok(inventory)
}

/// What the kernel says of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    hardware: u16,
    flags: u32,
    mac: Vec<u8>,
    mtu: u32,
    /// "veth", "macvlan" and so on; empty for one of a driver.
    kind: String,
    /// What it is stacked on, in the same namespace.
    lower: u32,
    master: u32,
    /// Parameters of IPv6 that decide whether it makes addresses by itself.
    ipv6: HashMap<String, i32>,
}

/// The parameters, and where in the kernel's list they are.
const IPV6: [(&str, usize); 3] = [
    ("accept_ra", DEVCONF_ACCEPT_RA),
    ("autoconf", DEVCONF_AUTOCONF),
    ("disable_ipv6", DEVCONF_DISABLE_IPV6),
];

/// Lists the interfaces.
pub(super) fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let request = Request::new(RTM_GETLINK, 0).header(&link_header(0, 0, 0));
    let messages = netlink.dump(&request)?;
    let mut links: Vec<Link> = messages.iter().filter_map(link).collect();
    links.sort_by_key(|link| link.index);
    Ok(links)
}

fn link(message: &Message) -> Option<Link> {
    let body = &message.body;
    let mut link = Link {
        hardware: u16::from_ne_bytes(*body.get(2..)?.first_chunk()?),
        index: u32::from_ne_bytes(*body.get(4..)?.first_chunk()?),
        flags: u32::from_ne_bytes(*body.get(8..)?.first_chunk()?),
        ..Link::default()
    };
    let mut elsewhere = false;
    for (kind, payload) in message.attributes(LINK_HEADER) {
        match kind {
            IFLA_IFNAME => link.name = text(payload),
            IFLA_ADDRESS => link.mac = payload.to_owned(),
            IFLA_MTU => link.mtu = number(payload),
            IFLA_LINK => link.lower = number(payload),
            IFLA_LINK_NETNSID => elsewhere = true,
            IFLA_MASTER => link.master = number(payload),
            IFLA_AF_SPEC => link.ipv6 = ipv6(payload),
            IFLA_LINKINFO => {
                let mut info = attributes(payload);
                let kind = info.find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = kind.map(|(_, name)| text(name)).unwrap_or_default();
            }
            _ => {}
        }
    }
    if elsewhere || link.lower == link.index {
        link.lower = 0;
    }
    Some(link)
}

fn ipv6(families: &[u8]) -> HashMap<String, i32> {
    let find = |bytes, wanted| {
        let found = attributes(bytes).find(|(kind, _)| *kind == wanted);
        found.map(|(_, payload)| payload).unwrap_or_default()
    };
    let list = find(find(families, libc::AF_INET6 as u16), IFLA_INET6_CONF);
    let value = |place: usize| Some(i32::from_ne_bytes(*list.get(4 * place..)?.first_chunk()?));
    IPV6.iter()
        .filter_map(|(name, place)| Some(((*name).to_owned(), value(*place)?)))
        .collect()
}

/// What to do with an interface.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Take,
    Skip,
    Await,
    Refuse(&'static str),
}

impl Link {
    fn verdict(&self, down: Down<'_>) -> Verdict {
        let up = self.flags & IFF_UP != 0;
        let tap = self.kind == "tun" && self.name.starts_with(TAP);
        if self.flags & IFF_LOOPBACK != 0 || tap {
            return Verdict::Skip;
        }
        let ethernet = self.hardware == ARPHRD_ETHER && self.mac.len() == 6;
        // Some kernels put tunnels that nobody uses into every namespace.
        if !up && (!ethernet || self.mac == [0; 6]) {
            return Verdict::Skip;
        }
        if let Down::Known(known) = down
            && !up
            && !known.contains(&self.index)
        {
            return Verdict::Await;
        }
        if !ethernet {
            return Verdict::Refuse(
                "only Ethernet interfaces can be connected to a virtual machine",
            );
        }
        if self.master != 0 {
            return Verdict::Refuse("a port of a bridge or bond cannot be connected as well");
        }
        if self.lower != 0 && self.kind != "veth" {
            return Verdict::Refuse(
                "it is stacked on an interface that goes to the virtual machine itself; \
                 make it in the container",
            );
        }
        Verdict::Take
    }
}

/// Sorts out the interfaces.
fn choose(links: &[Link], down: Down<'_>) -> Inventory {
    let mut inventory = Inventory::default();
    for link in links {
        let verdict = match link.verdict(down) {
            Verdict::Take if inventory.has_mac(&link.mac) => {
                Verdict::Refuse("another interface has the same MAC address")
            }
            other => other,
        };
        match verdict {
            Verdict::Skip => {}
            Verdict::Await => inventory.unfinished = true,
            Verdict::Refuse(reason) => inventory.refused.push((link.name.clone(), reason)),
            Verdict::Take => inventory.take(link),
        }
    }
    inventory
}

impl Inventory {
    fn has_mac(&self, mac: &[u8]) -> bool {
        self.interfaces.iter().any(|one| one.mac == mac)
    }

    fn take(&mut self, link: &Link) {
        let Ok(mac) = link.mac.as_slice().try_into() else {
            return;
        };
        self.interfaces.push(Interface {
            index: link.index,
            name: link.name.clone(),
            mac,
            mtu: link.mtu,
        });
        self.network.interfaces.push(NetworkInterface {
            mac: link.mac.clone(),
            name: link.name.clone(),
            mtu: link.mtu,
            up: link.flags & IFF_UP != 0,
            no_arp: link.flags & IFF_NOARP != 0,
            ipv6: link.ipv6.clone(),
            ..NetworkInterface::default()
        });
    }

    fn add_address(&mut self, message: &Message) {
        let Some((index, address)) = address(message) else {
            return;
        };
        let place = self.interfaces.iter().position(|one| one.index == index);
        if let Some(place) = place {
            self.network.interfaces[place].addresses.push(address);
        }
    }
}

#[cfg(test)]
mod tests;
