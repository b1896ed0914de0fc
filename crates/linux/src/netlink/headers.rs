//! The fixed part in front of the attributes, one for each kind of object
//! (rtnetlink(7)). Numbers are in the machine's byte order.

/// Length of `struct ifinfomsg`.
pub const LINK_HEADER: usize = 16;
/// Length of `struct ifaddrmsg`.
pub const ADDRESS_HEADER: usize = 8;
/// Length of `struct rtmsg`.
pub const ROUTE_HEADER: usize = 12;
/// Length of `struct ndmsg`.
pub const NEIGHBOUR_HEADER: usize = 12;
/// Length of `struct fib_rule_hdr`.
pub const RULE_HEADER: usize = 12;

/// `struct ifinfomsg`: an interface, and which of its IFF_* change to what.
pub fn link_header(index: u32, flags: u32, change: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// `struct ifaddrmsg`.
pub fn address_header(family: u8, prefix: u8, scope: u8, index: u32) -> [u8; ADDRESS_HEADER] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family, prefix, 0, scope, a, b, c, d]
}

/// `struct rtmsg`, without a source prefix; the table is an attribute.
pub fn route_header(
    family: u8,
    prefix: u8,
    tos: u8,
    [protocol, scope, kind]: [u8; 3],
) -> [u8; ROUTE_HEADER] {
    [family, prefix, 0, tos, 0, protocol, scope, kind, 0, 0, 0, 0]
}

/// `struct ndmsg`.
pub fn neighbour_header(family: u8, index: u32, state: u16) -> [u8; NEIGHBOUR_HEADER] {
    let mut header = [0; NEIGHBOUR_HEADER];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header
}

/// `struct tcmsg`.
pub fn traffic_header(index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&handle.to_ne_bytes());
    header[12..16].copy_from_slice(&parent.to_ne_bytes());
    header[16..20].copy_from_slice(&info.to_ne_bytes());
    header
}
