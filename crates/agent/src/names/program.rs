//! Address programs that lead the port of a name server to another one.
//!
//! The server of the host has 127.0.0.x:53 there; here that port may be wanted
//! by a container (a name server that binds every address), so what is passed on
//! is received at a port that the kernel chose. The programs change the port in
//! connect(2) and sendto(2), and change it back in what recvfrom(2) and
//! getpeername(2) tell, so that nobody sees a difference. They look at the
//! agent's own network namespace alone: a container may have more of them.

use std::{
    fs::File,
    io,
    net::SocketAddrV4,
    os::fd::{AsFd, OwnedFd},
};

use casemate_linux::bpf::{AddressHook, instruction, link_address_program};
use casemate_protocol::names::PORT;

/// The root of the hierarchy: every process is below it.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Opcodes, as in <linux/bpf.h>.
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x63;
const LOAD_NUMBER: u8 = 0x18;
const MOVE_REGISTER: u8 = 0xbf;
const MOVE: u8 = 0xb7;
const JUMP_IF_DIFFERENT: u8 = 0x5d;
/// Compares 32 bits with an immediate value.
const JUMP_IF_NOT_32: u8 = 0x56;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// bpf_get_netns_cookie().
const GET_NETNS_COOKIE: u32 = 122;

/// Members of `struct bpf_sock_addr`; both are in network order.
const USER_IP4: i16 = 4;
const USER_PORT: i16 = 24;

/// Puts the programs for `server`:53 in force, which lead to `here` until the
/// links are closed.
///
/// # Errors
/// When the kernel does not have such programs.
pub(super) fn lead(here: SocketAddrV4, netns_cookie: u64) -> io::Result<Vec<OwnedFd>> {
    let cgroup = File::open(CGROUPS)?;
    let there = compile(here, PORT, here.port(), netns_cookie);
    let back = compile(here, here.port(), PORT, netns_cookie);
    let programs = [
        (AddressHook::Connect4, &there),
        (AddressHook::SendMessage4, &there),
        (AddressHook::ReceiveMessage4, &back),
        (AddressHook::PeerName4, &back),
    ];
    programs
        .into_iter()
        .map(|(hook, program)| link_address_program(hook, program, cgroup.as_fd()))
        .collect()
}

/// A program that makes port `to` of port `from` at one address.
fn compile(address: SocketAddrV4, from: u16, to: u16, netns_cookie: u64) -> Vec<u64> {
    let ip = u32::from_ne_bytes(address.ip().octets());
    vec![
        instruction(MOVE_REGISTER, 6, 1, 0, 0),
        instruction(LOAD_WORD, 0, 6, USER_IP4, 0),
        instruction(JUMP_IF_NOT_32, 0, 0, 9, ip),
        instruction(LOAD_WORD, 0, 6, USER_PORT, 0),
        instruction(JUMP_IF_NOT_32, 0, 0, 7, from.to_be().into()),
        instruction(MOVE_REGISTER, 1, 6, 0, 0),
        instruction(CALL, 0, 0, 0, GET_NETNS_COOKIE),
        // One instruction in two.
        instruction(LOAD_NUMBER, 1, 0, 0, netns_cookie as u32),
        instruction(0, 0, 0, 0, (netns_cookie >> 32) as u32),
        instruction(JUMP_IF_DIFFERENT, 0, 1, 2, 0),
        instruction(MOVE, 1, 0, 0, to.to_be().into()),
        instruction(STORE_WORD, 6, 1, USER_PORT, 0),
        instruction(MOVE, 0, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}
