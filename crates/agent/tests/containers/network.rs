//! The sandbox's network. The cards are ends of veth pairs in the agent's
//! network namespace.

use std::process::Command;

use casemate_protocol::agent::{
    NetworkAddress, NetworkHop, NetworkInterface, NetworkNeighbour, NetworkRoute,
    UpdateNetworkRequest,
};
use ttrpc::Code;

use crate::guest::{Guest, limit, status};

const INET: u32 = libc::AF_INET as u32;

fn ip(guest: &Guest, line: &str) -> String {
    let words: Vec<_> = ["ip"].into_iter().chain(line.split(' ')).collect();
    in_network(guest, &words)
}

fn in_network(guest: &Guest, words: &[&str]) -> String {
    let output = Command::new("nsenter")
        .args(["--net", "--target", &guest.pid().to_string()])
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn add_card(guest: &Guest, n: u8) {
    let line = format!("link add card{n}x address 02:00:00:00:00:0{n} type veth peer name peer{n}");
    ip(guest, &line);
    ip(guest, &format!("link set peer{n} up"));
}

fn address(bytes: &[u8], prefix: u32) -> NetworkAddress {
    NetworkAddress {
        address: bytes.to_owned(),
        prefix,
        ..Default::default()
    }
}

fn interface(n: u8, name: &str) -> NetworkInterface {
    NetworkInterface {
        mac: vec![2, 0, 0, 0, 0, n],
        name: name.into(),
        mtu: 1400,
        up: true,
        addresses: vec![address(&[10, 0, n, 2], 24)],
        ..Default::default()
    }
}

fn route(interface: &str, gateway: &[u8]) -> NetworkRoute {
    NetworkRoute {
        family: INET,
        table: 254,
        protocol: 3,
        kind: 1,
        hops: vec![NetworkHop {
            interface: interface.into(),
            gateway: gateway.to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn usual() -> UpdateNetworkRequest {
    let mut eth0 = interface(1, "eth0");
    let mut six = [0; 16];
    (six[0], six[15]) = (0xfd, 5);
    eth0.addresses.push(address(&six, 64));
    eth0.ipv6.insert("accept_ra".into(), 0);
    eth0.ipv6.insert("disable_ipv6".into(), 0);
    UpdateNetworkRequest {
        interfaces: vec![eth0],
        routes: vec![route("eth0", &[10, 0, 1, 1])],
        neighbours: vec![NetworkNeighbour {
            interface: "eth0".into(),
            address: vec![10, 0, 1, 9],
            mac: vec![2; 6],
            ..Default::default()
        }],
        ..Default::default()
    }
}

async fn update(guest: &Guest, request: &UpdateNetworkRequest) -> ttrpc::Result<()> {
    guest.agent.update_network(limit(), request).await.map(drop)
}

#[tokio::test]
async fn a_card_becomes_the_interface() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    add_card(&guest, 1);
    update(&guest, &usual()).await.unwrap();
    let link = ip(&guest, "-o link show dev eth0");
    assert!(link.contains("mtu 1400") && link.contains(",UP"), "{link}");
    let addresses = ip(&guest, "-o addr show dev eth0");
    assert!(addresses.contains("inet 10.0.1.2/24"), "{addresses}");
    assert!(addresses.contains("inet6 fd00::5/64"), "{addresses}");
    assert!(!addresses.contains("tentative"), "{addresses}");
    assert!(!addresses.contains("fe80"), "made by itself: {addresses}");
    let routes = ip(&guest, "route");
    assert!(routes.contains("default via 10.0.1.1 dev eth0"), "{routes}");
    let neighbours = ip(&guest, "neigh show dev eth0");
    assert!(
        neighbours.contains("10.0.1.9 lladdr 02:02:02:02:02:02 PERMANENT"),
        "{neighbours}"
    );
    let path = "/proc/sys/net/ipv6/conf/eth0/accept_ra";
    assert_eq!(in_network(&guest, &["cat", path]), "0\n");
    // Once more is no other network.
    update(&guest, &usual()).await.unwrap();
    assert_eq!(ip(&guest, "route"), routes);
}

#[tokio::test]
async fn a_card_may_come_later() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    let request = usual();
    let later = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        add_card(&guest, 2);
        add_card(&guest, 1);
    };
    let (updated, ()) = tokio::join!(update(&guest, &request), later);
    updated.unwrap();
    assert!(ip(&guest, "-o addr").contains("eth0    inet 10.0.1.2/24"));
}

#[tokio::test]
async fn what_is_no_longer_named_goes() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    add_card(&guest, 1);
    add_card(&guest, 2);
    let mut request = usual();
    request.interfaces.push(interface(2, "eth1"));
    ip(&guest, "rule add from 10.0.0.1 table 77 priority 55");
    update(&guest, &request).await.unwrap();
    assert!(ip(&guest, "-o addr show dev eth1").contains("10.0.2.2/24"));
    // The names change places, an address and the default route change.
    request.interfaces[0].name = "eth1".into();
    request.interfaces[1].name = "eth0".into();
    request.interfaces[0].addresses[0].address = vec![10, 0, 1, 3];
    request.neighbours.clear();
    request.routes = vec![route("eth0", &[10, 0, 2, 1])];
    update(&guest, &request).await.unwrap();
    let addresses = ip(&guest, "-o addr");
    assert!(
        addresses.contains("eth1    inet 10.0.1.3/24"),
        "{addresses}"
    );
    assert!(
        addresses.contains("eth0    inet 10.0.2.2/24"),
        "{addresses}"
    );
    assert!(!addresses.contains("10.0.1.2/24"), "{addresses}");
    let routes = ip(&guest, "route");
    assert_eq!(routes.matches("default").count(), 1, "{routes}");
    assert!(routes.contains("default via 10.0.2.1 dev eth0"), "{routes}");
    assert!(!ip(&guest, "neigh").contains("PERMANENT"));
    // One card is on its way out, its name free for another.
    request.interfaces = vec![interface(1, "eth0")];
    request.routes.clear();
    update(&guest, &request).await.unwrap();
    let addresses = ip(&guest, "-o -4 addr");
    assert!(
        addresses.contains("eth0    inet 10.0.1.2/24"),
        "{addresses}"
    );
    assert!(!addresses.contains("10.0.2.2"), "{addresses}");
    // What the agent has not made is not its business.
    assert!(ip(&guest, "rule").contains("lookup 77"));
}

/// Linux keeps a route whose gateway has got out of reach.
#[tokio::test]
async fn a_gateway_may_be_out_of_reach() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    add_card(&guest, 1);
    let mut request = usual();
    request.interfaces[0]
        .addresses
        .insert(0, address(&[10, 0, 5, 2], 24));
    update(&guest, &request).await.unwrap();
    request.interfaces[0].addresses.truncate(1);
    request.neighbours.clear();
    update(&guest, &request).await.unwrap();
    request.routes.push(route("eth0", &[192, 0, 2, 1]));
    request.routes[1].metric = 7;
    update(&guest, &request).await.unwrap();
    let routes = ip(&guest, "route");
    assert!(routes.contains("default via 10.0.1.1 dev eth0"), "{routes}");
    assert!(
        routes.contains("default via 192.0.2.1 dev eth0"),
        "{routes}"
    );
    assert_eq!(routes.matches("default").count(), 2, "{routes}");
}

#[tokio::test]
async fn a_senseless_network_is_refused_and_changes_nothing() {
    let Some(guest) = Guest::start().await else {
        return;
    };
    add_card(&guest, 1);
    let mut request = usual();
    request.routes[0].hops[0].interface = "eth7".into();
    let refused = update(&guest, &request).await.unwrap_err();
    assert_eq!(status(refused).0, Code::INVALID_ARGUMENT);
    assert!(ip(&guest, "-o link").contains("card1x"));
    // The kernel's own refusal says what it was about.
    let mut request = usual();
    request.routes[0].preferred_source = vec![192, 0, 2, 1];
    let refused = update(&guest, &request).await.unwrap_err().to_string();
    assert!(refused.contains("add the route to default"), "{refused}");
}
