//! Namespaces set up by ip(8), as clients do it.

use std::process::Command;

use super::*;

/// Runs lines of ip(8) in a namespace of their own and reads what they made.
fn after(script: &str) -> Option<Inventory> {
    within(script, |netlink| read(netlink, Down::Any).unwrap())
}

fn links_after(script: &str) -> Option<Vec<Link>> {
    within(script, |netlink| links(netlink).unwrap())
}

fn within<T: Send>(script: &str, look: impl FnOnce(&mut Netlink) -> T + Send) -> Option<T> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a network namespace needs root");
        return None;
    }
    let made = casemate_linux::namespace::within_new_network(|| {
        for line in script
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
        {
            let output = Command::new("ip").args(line.split(' ')).output().unwrap();
            assert!(output.status.success(), "ip {line}: {output:?}");
        }
        look(&mut Netlink::open().unwrap())
    });
    Some(made.unwrap())
}

/// A container's end of a pair whose other end is elsewhere is like this, but
/// for the peer, which is renamed away from the rules of the test.
const PAIR: &str = "
    link add eth0 address 02:00:00:00:00:01 mtu 1400 type veth peer name peer0
    link set eth0 up
    link set peer0 up";

fn shown(bytes: &[u8]) -> String {
    let four: Result<[u8; 4], _> = bytes.try_into();
    match four {
        Ok(bytes) => std::net::IpAddr::from(bytes).to_string(),
        Err(_) => match <[u8; 16]>::try_from(bytes) {
            Ok(bytes) => std::net::IpAddr::from(bytes).to_string(),
            Err(_) => "-".to_owned(),
        },
    }
}

#[test]
fn an_empty_namespace_has_nothing() {
    let Some(inventory) = after("link set lo up\naddr add 10.9.9.9/32 dev lo") else {
        return;
    };
    assert_eq!(inventory, Inventory::default());
}

#[test]
fn a_usual_interface_is_read_whole() {
    let Some(inventory) = after(&format!(
        "{PAIR}
        addr add 10.88.0.5/16 brd 10.88.255.255 dev eth0
        addr add fd00::5/64 dev eth0
        addr add 10.1.1.1 peer 10.1.1.2/32 dev eth0
        route add default via 10.88.0.1 metric 100
        route add 10.99.0.0/16 dev eth0 src 10.88.0.5 table 77
        route add default via fe80::1 dev eth0
        route add 192.0.2.1 via 10.200.0.1 dev eth0 onlink mtu 1300
        route add blackhole 198.51.100.0/24
        neigh add 10.88.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent
        neigh add 10.88.0.10 lladdr 02:00:00:00:00:10 dev eth0 nud reachable
        rule add from 10.88.0.5 table 77 priority 1000
        -6 rule add iif eth0 table 78"
    )) else {
        return;
    };
    let position = |name: &str| {
        let all = &inventory.interfaces;
        all.iter().position(|one| one.name == name).unwrap()
    };
    let eth0 = &inventory.network.interfaces[position("eth0")];
    assert_eq!((eth0.mtu, eth0.up, eth0.no_arp), (1400, true, false));
    assert_eq!(eth0.mac, [2, 0, 0, 0, 0, 1]);
    let ipv6 = |name: &str| eth0.ipv6[name];
    assert_eq!(
        (ipv6("accept_ra"), ipv6("autoconf"), ipv6("disable_ipv6")),
        (1, 1, 0)
    );
    let addresses: Vec<_> = eth0
        .addresses
        .iter()
        .map(|one| {
            format!(
                "{}/{} {}",
                shown(&one.address),
                one.prefix,
                shown(&one.peer)
            )
        })
        .collect();
    for expected in [
        "10.88.0.5/16 -",
        "10.1.1.1/32 10.1.1.2",
        "fd00::5/64 -",
        "fe80::ff:fe00:1/64 -",
    ] {
        assert!(
            addresses.contains(&expected.to_owned()),
            "{expected}: {addresses:?}"
        );
    }
    let routes: Vec<_> = inventory
        .network
        .routes
        .iter()
        .map(|one| {
            let hop = one.hops.first().cloned().unwrap_or_default();
            let to = format!("{}/{}", shown(&one.destination), one.prefix);
            format!(
                "{to} {} {} {} {}",
                shown(&hop.gateway),
                hop.interface,
                one.table,
                one.metric
            )
        })
        .collect();
    let expected = [
        "10.99.0.0/16 - eth0 77 0",
        "198.51.100.0/24 -  254 0",
        "-/0 10.88.0.1 eth0 254 100",
        "192.0.2.1/32 10.200.0.1 eth0 254 0",
        "-/0 fe80::1 eth0 254 1024",
    ];
    for route in expected {
        assert!(routes.contains(&route.to_owned()), "{route}: {routes:?}");
    }
    assert_eq!(routes.len(), expected.len(), "{routes:?}");
    let on_link = |route: &NetworkRoute| route.hops.iter().all(|hop| hop.gateway.is_empty());
    assert!(
        inventory
            .network
            .routes
            .is_sorted_by_key(|route| !on_link(route))
    );
    let neighbours = &inventory.network.neighbours;
    assert_eq!(neighbours.len(), 1, "{neighbours:?}");
    assert_eq!(neighbours[0].address, [10, 88, 0, 9]);
    assert_eq!(inventory.network.rules.len(), 2);
}

#[test]
fn a_route_over_two_paths_has_two_hops() {
    let Some(inventory) = after(&format!(
        "{PAIR}
        addr add 10.1.0.2/24 dev eth0
        addr add 10.2.0.2/24 dev peer0
        route add default nexthop via 10.1.0.1 weight 3 nexthop via 10.2.0.1"
    )) else {
        return;
    };
    let [route] = inventory.network.routes.as_slice() else {
        panic!("{:?}", inventory.network.routes)
    };
    let hops: Vec<_> = route
        .hops
        .iter()
        .map(|hop| (hop.interface.as_str(), shown(&hop.gateway), hop.weight))
        .collect();
    assert_eq!(
        hops,
        [
            ("eth0", "10.1.0.1".into(), 2),
            ("peer0", "10.2.0.1".into(), 0)
        ]
    );
}

#[test]
fn what_cannot_be_connected_is_refused_by_name() {
    let Some(inventory) = after(&format!(
        "{PAIR}
        link add br0 type bridge
        link set peer0 master br0
        link add link eth0 name mac0 type macvlan
        tuntap add tun0 mode tun
        link set tun0 up
        tuntap add tun1 mode tun"
    )) else {
        return;
    };
    let taken: Vec<_> = inventory
        .interfaces
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(taken, ["eth0", "br0"]);
    let refused: Vec<_> = inventory
        .refused
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(refused, ["peer0", "mac0", "tun0"]);
}

#[test]
fn verdicts_rest_on_the_kind_of_interface() {
    let sound = Link {
        index: 2,
        name: "eth0".into(),
        hardware: ARPHRD_ETHER,
        mac: vec![2; 6],
        kind: "veth".into(),
        ..Link::default()
    };
    assert_eq!(sound.verdict(Down::Any), Verdict::Take);
    type Change = fn(&mut Link);
    let cases: [(Change, bool); 6] = [
        (|link| link.flags = IFF_LOOPBACK, false),
        (
            |link| (link.kind, link.name) = ("tun".into(), "cmtap2".into()),
            false,
        ),
        (|link| link.mac = vec![0; 6], false),
        (|link| link.hardware = 768, false),
        (|link| (link.hardware, link.flags) = (768, IFF_UP), true),
        (|link| link.master = 9, true),
    ];
    for (n, (change, refused)) in cases.iter().enumerate() {
        let mut link = sound.clone();
        change(&mut link);
        match link.verdict(Down::Any) {
            Verdict::Skip => assert!(!refused, "case {n}"),
            Verdict::Refuse(_) => assert!(refused, "case {n}"),
            other => panic!("case {n}: {other:?}"),
        }
    }
    // Two of one address cannot be told apart in the guest.
    let mut other = sound.clone();
    (other.index, other.name) = (3, "eth1".into());
    let chosen = choose(&[sound, other], Down::Any);
    assert_eq!((chosen.interfaces.len(), chosen.refused.len()), (1, 1));
}

/// One that its maker may not be done with is not taken before it is up.
#[test]
fn who_is_down_may_be_unfinished() {
    let script = format!("{PAIR}\nlink add eth1 type veth peer name peer1");
    let Some(links) = links_after(&script) else {
        return;
    };
    let index = |name: &str| links.iter().find(|link| link.name == name).unwrap().index;
    let taken = |down| {
        let chosen = choose(&links, down);
        let has = |name: &str| chosen.interfaces.iter().any(|one| one.name == name);
        (has("eth0"), has("eth1"), chosen.unfinished)
    };
    assert_eq!(taken(Down::Any), (true, true, false));
    assert_eq!(taken(Down::Known(&[])), (true, false, true));
    let pair = [index("eth1"), index("peer1")];
    assert_eq!(taken(Down::Known(&pair)), (true, true, false));
}
