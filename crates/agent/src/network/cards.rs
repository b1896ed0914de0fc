//! Network cards, found by their hardware address.

use std::collections::HashMap;

use casemate_linux::{
    netlink::{Changes, LINK_HEADER, Message, Netlink, Request, constants::*, link_header},
    reactor::register_readable,
};
use casemate_protocol::agent::NetworkInterface;
use tokio::time::{Instant, timeout_at};

use crate::{
    arrival,
    error::{Doing, Error, Result},
};

/// An interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Card {
    pub(super) index: u32,
    pub(super) name: String,
    mac: Vec<u8>,
}

/// The cards of these interfaces, in their order; waits for those that are on
/// their way.
pub(super) async fn arrived(
    netlink: &mut Netlink,
    wanted: &[NetworkInterface],
    known: &HashMap<Vec<u8>, u32>,
) -> Result<Vec<Card>> {
    let found = |cards: &[Card]| -> std::result::Result<Vec<Card>, String> {
        let of = |one: &NetworkInterface| pick(cards, &one.mac, known).ok_or(one.name.clone());
        wanted.iter().map(of).collect()
    };
    if let Ok(cards) = found(&list(netlink)?) {
        return Ok(cards);
    }
    let changes = Changes::subscribe(RTMGRP_LINK).doing(|| "watch for network cards".into())?;
    let changes = register_readable(changes.into()).doing(|| "watch for network cards".into())?;
    let deadline = Instant::now() + arrival::LIMIT;
    loop {
        // After the subscription: what comes now is heard of.
        let missing = match found(&list(netlink)?) {
            Ok(cards) => return Ok(cards),
            Err(missing) => missing,
        };
        let Ok(ready) = timeout_at(deadline, changes.readable()).await else {
            return Err(Error::NoCard {
                interface: missing,
                limit: arrival::LIMIT,
            });
        };
        let mut ready = ready.doing(|| "watch for network cards".into())?;
        Changes::drain(ready.get_inner());
        ready.clear_ready();
    }
}

/// One that was found before stays what it is. Interfaces that a container has
/// stacked on a card may have its address; they are younger.
fn pick(cards: &[Card], mac: &[u8], known: &HashMap<Vec<u8>, u32>) -> Option<Card> {
    let known = known.get(mac);
    let old = cards.iter().find(|card| Some(&card.index) == known);
    let oldest = || {
        let same = cards.iter().filter(|card| card.mac == mac);
        same.min_by_key(|card| card.index)
    };
    old.or_else(oldest).cloned()
}

/// The interface that has a name, if any.
pub(super) fn find_name(netlink: &mut Netlink, name: &str) -> Result<Option<u32>> {
    let cards = list(netlink)?;
    let holder = cards.iter().find(|card| card.name == name);
    Ok(holder.map(|card| card.index))
}

/// All interfaces.
fn list(netlink: &mut Netlink) -> Result<Vec<Card>> {
    let request = Request::new(RTM_GETLINK, 0).header(&link_header(0, 0, 0));
    let links = netlink
        .dump(&request)
        .doing(|| "list network interfaces".into())?;
    Ok(links.iter().filter_map(card).collect())
}

fn card(message: &Message) -> Option<Card> {
    let index = message.body.get(4..8)?.first_chunk()?;
    let of = |wanted| {
        let mut attributes = message.attributes(LINK_HEADER);
        attributes
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, payload)| payload)
    };
    let name = of(IFLA_IFNAME)?.strip_suffix(b"\0")?;
    Some(Card {
        index: u32::from_ne_bytes(*index),
        name: String::from_utf8_lossy(name).into_owned(),
        mac: of(IFLA_ADDRESS).unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_an_address_is_the_card() {
        let card = |index, mac: &[u8]| Card {
            index,
            name: format!("eth{index}"),
            mac: mac.to_owned(),
        };
        let cards = [card(7, &[1; 6]), card(3, &[1; 6]), card(4, &[2; 6])];
        let nothing = HashMap::new();
        assert_eq!(pick(&cards, &[1; 6], &nothing).unwrap().index, 3);
        assert_eq!(pick(&cards, &[3; 6], &nothing), None);
        // A container has changed the address of a card.
        let known = HashMap::from([(vec![3; 6], 4)]);
        assert_eq!(pick(&cards, &[3; 6], &known).unwrap().index, 4);
        // It is gone, and another came.
        let known = HashMap::from([(vec![2; 6], 9)]);
        assert_eq!(pick(&cards, &[2; 6], &known).unwrap().index, 4);
    }
}
