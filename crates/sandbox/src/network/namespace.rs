//! The namespace that has the sandbox's interfaces, and the claim to it.

use std::{
    fs::File,
    io,
    os::{
        fd::AsFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::{Path, PathBuf},
};

use casemate_linux::{
    namespace::within_network,
    netlink::{Changes, Netlink, constants::*},
};

use super::Error;

/// What is watched: interfaces, and all that the inventory has of them.
const GROUPS: u32 = RTMGRP_LINK
    | RTMGRP_NEIGH
    | RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV4_RULE
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV6_ROUTE
    | RTMGRP_IPV6_RULE;

/// A network namespace, held open.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) changes: Changes,
    pub(super) netlink: Netlink,
}

/// The right to connect the interfaces of a namespace, which only one sandbox
/// can have at a time: a name in it that can be taken once. No kill leaves it
/// behind.
#[derive(Debug)]
pub(crate) struct Claim {
    _socket: UnixDatagram,
}

/// The name: an abstract one, which belongs to the namespace (unix(7)).
const CLAIM: &[u8] = b"casemate/sandbox";

impl Claim {
    /// Takes it in this thread's namespace.
    ///
    /// # Errors
    /// EADDRINUSE when another sandbox has it.
    pub(super) fn here() -> io::Result<Self> {
        let name = SocketAddr::from_abstract_name(CLAIM)?;
        let _socket = UnixDatagram::bind_addr(&name)?;
        Ok(Self { _socket })
    }
}

impl Namespace {
    /// Claims the one at `path` and begins to listen there.
    ///
    /// # Errors
    /// When there is none, or another sandbox has it.
    pub(crate) fn claim(path: &Path) -> Result<(Self, Claim), Error> {
        let path = path.to_owned();
        let opened = File::open(&path).and_then(|file| {
            let sockets = || -> io::Result<_> {
                Ok((
                    Claim::here()?,
                    Changes::subscribe(GROUPS)?,
                    Netlink::open()?,
                ))
            };
            let sockets = within_network(file.as_fd(), sockets)??;
            Ok((file, sockets))
        });
        match opened {
            Ok((file, (claim, changes, netlink))) => {
                let namespace = Self {
                    path,
                    file,
                    changes,
                    netlink,
                };
                Ok((namespace, claim))
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(Error::Taken { path }),
            Err(source) => Err(Error::Namespace { path, source }),
        }
    }
}
