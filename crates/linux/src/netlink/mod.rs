//! Network configuration (rtnetlink(7)): one socket that asks and waits for the
//! kernel's answer, and one that hears of changes.
//!
//! The kernel answers while it takes the request, so nothing here waits for
//! long. A socket belongs to the network namespace in which it was opened.

pub mod constants;
mod headers;
mod message;

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt::RcvBuf,
};

pub use headers::{
    ADDRESS_HEADER, LINK_HEADER, NEIGHBOUR_HEADER, ROUTE_HEADER, RULE_HEADER, address_header,
    link_header, neighbour_header, route_header, traffic_header,
};
pub use message::{Attributes, Message, Request, attributes};

/// The kernel fills no more than this at once (netlink(7), "NLMSG_GOODSIZE" and
/// af_netlink.c: 32 KiB).
const BUFFER: usize = 32 << 10;

/// A change while a list was read makes the list useless; it is read again this
/// often.
const ATTEMPTS: usize = 16;

/// A socket for requests.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens one in this thread's network namespace.
    ///
    /// # Errors
    /// EMFILE.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            fd: open(SockProtocol::NetlinkRoute, 0, SockFlag::empty())?,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Has the kernel do something.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn execute(&mut self, request: Request) -> io::Result<()> {
        self.send(request, libc::NLM_F_ACK as u16)?;
        self.answers(|_| {}).map(drop)
    }

    /// Reads a list.
    ///
    /// # Errors
    /// What the kernel says; EINTR when the list keeps changing.
    pub fn dump(&mut self, request: &Request) -> io::Result<Vec<Message>> {
        for _ in 0..ATTEMPTS {
            let mut list = Vec::new();
            self.send(request.clone(), libc::NLM_F_DUMP as u16)?;
            if self.answers(|message| list.push(message))? {
                return Ok(list);
            }
        }
        Err(io::Error::from(io::ErrorKind::Interrupted))
    }

    fn send(&mut self, request: Request, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.finish(flags, self.sequence);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// Reads until the end of the answer; says whether a list is of one piece.
    fn answers(&mut self, mut take: impl FnMut(Message)) -> io::Result<bool> {
        let mut whole = true;
        loop {
            let count = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            let mut rest = &self.buffer[..count];
            while let Some((header, body)) = message::split(&mut rest) {
                if header.sequence != self.sequence {
                    continue;
                }
                whole &= header.flags & libc::NLM_F_DUMP_INTR as u16 == 0;
                match i32::from(header.kind) {
                    libc::NLMSG_DONE => return Ok(whole),
                    libc::NLMSG_ERROR => return message::verdict(body).map(|()| whole),
                    _ => take(Message {
                        kind: header.kind,
                        body: body.to_vec(),
                    }),
                }
            }
        }
    }
}

/// Hears of changes, without their content: who wants to know reads anew.
#[derive(Debug)]
pub struct Changes(OwnedFd);

impl Changes {
    /// Subscribes to what the kernel tells of devices (NETLINK_KOBJECT_UEVENT):
    /// they come, go, get a driver or lose it.
    ///
    /// # Errors
    /// EMFILE.
    pub fn of_devices() -> io::Result<Self> {
        /// The group that the kernel itself speaks to.
        const KERNEL: u32 = 1;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        open(protocol, KERNEL, SockFlag::SOCK_NONBLOCK).map(Self)
    }

    /// Subscribes to groups (RTMGRP_*, bit n - 1 for group n) in this thread's
    /// network namespace.
    ///
    /// # Errors
    /// EMFILE.
    pub fn subscribe(groups: u32) -> io::Result<Self> {
        let fd = open(SockProtocol::NetlinkRoute, groups, SockFlag::SOCK_NONBLOCK)?;
        // One that overflows says so (ENOBUFS), and that is a change as well.
        setsockopt(&fd, RcvBuf, &BUFFER)?;
        Ok(Self(fd))
    }

    /// Takes what has come over a subscribed descriptor and shows it, message by
    /// message and each as far as a kilobyte; says whether nothing was lost.
    pub fn take(subscribed: &impl AsRawFd, mut show: impl FnMut(&[u8])) -> bool {
        let mut buffer = [0; 1024];
        let mut whole = true;
        loop {
            match recv(subscribed.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(count) => show(&buffer[..count]),
                Err(nix::errno::Errno::EAGAIN) => return whole,
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::ENOBUFS) => whole = false,
                Err(_) => return false,
            }
        }
    }

    /// Takes what has come over a subscribed descriptor; says whether there was
    /// anything.
    pub fn drain(subscribed: &impl AsRawFd) -> bool {
        let mut buffer = [0; 64];
        let mut any = false;
        loop {
            // A longer message is cut: its content is not looked at.
            match recv(subscribed.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EAGAIN) => return any,
                Err(nix::errno::Errno::ENOBUFS | nix::errno::Errno::EINTR) | Ok(_) => any = true,
                Err(_) => return true,
            }
        }
    }
}

impl From<Changes> for OwnedFd {
    fn from(changes: Changes) -> Self {
        changes.0
    }
}

fn open(protocol: SockProtocol, groups: u32, flags: SockFlag) -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | flags,
        protocol,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        namespace::within_new_network,
        netlink::{LINK_HEADER, constants::*, link_header},
    };

    fn names(netlink: &mut Netlink) -> Vec<String> {
        let list = Request::new(RTM_GETLINK, 0).header(&link_header(0, 0, 0));
        let mut names = Vec::new();
        for message in netlink.dump(&list).unwrap() {
            assert_eq!(message.kind, RTM_NEWLINK);
            let name = message
                .attributes(LINK_HEADER)
                .find(|(kind, _)| *kind == IFLA_IFNAME)
                .map(|(_, name)| {
                    String::from_utf8_lossy(name)
                        .trim_end_matches('\0')
                        .to_owned()
                });
            names.extend(name);
        }
        names
    }

    #[test]
    fn interfaces_are_made_listed_and_heard_of() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a network namespace needs root");
            return;
        }
        let (before, after, heard, refused) = within_new_network(|| {
            let changes = Changes::subscribe(RTMGRP_LINK).unwrap();
            let shown = Changes::subscribe(RTMGRP_LINK).unwrap();
            let mut netlink = Netlink::open().unwrap();
            let before = names(&mut netlink);
            assert!(!Changes::drain(&changes.0));
            let create = NLM_F_CREATE | NLM_F_EXCL;
            let bridge = Request::new(RTM_NEWLINK, create)
                .header(&link_header(0, 0, 0))
                .attribute(IFLA_IFNAME, b"test0\0")
                .nested(IFLA_LINKINFO, |info| {
                    info.attribute(IFLA_INFO_KIND, b"bridge")
                });
            netlink.execute(bridge.clone()).unwrap();
            let refused = netlink.execute(bridge).unwrap_err();
            let mut named = false;
            let whole = Changes::take(&shown.0, |message| {
                named |= message.windows(5).any(|part| part == b"test0");
            });
            assert!(named && whole);
            assert!(Changes::take(&shown.0, |_| panic!("shown twice")));
            (
                before,
                names(&mut netlink),
                Changes::drain(&changes.0),
                refused,
            )
        })
        .unwrap();
        assert!(!before.contains(&"test0".to_owned()) && before.contains(&"lo".to_owned()));
        assert!(after.contains(&"test0".to_owned()), "{after:?}");
        assert!(heard);
        assert_eq!(refused.raw_os_error(), Some(libc::EEXIST));
    }
}
