//! Network interfaces (netdevice(7)).

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use crate::check;

/// Brings an interface of this network namespace up, with its addresses.
///
/// # Errors
/// ENODEV when there is none of the name.
pub fn set_up(name: &str) -> io::Result<()> {
    // SAFETY: integers only.
    let fd = check(i64::from(unsafe {
        libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    }))?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    // SAFETY: ifreq is plain data; zero is a valid value of every field.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of the request.
    check(i64::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request)
    }))?;
    // SAFETY: SIOCGIFFLAGS has filled the flags member of the union.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: SIOCSIFFLAGS reads name and flags of the request.
    check(i64::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    }))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Birth, Exit, Namespaces, spawn};

    #[test]
    fn loopback_of_a_new_namespace_comes_up() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: a network namespace needs root");
            return;
        }
        let birth = Birth {
            namespaces: Some(Namespaces::CLONE_NEWNET),
            ..Birth::default()
        };
        let child = spawn(birth, || {
            let bind = || std::net::TcpListener::bind("127.0.0.1:0").map(drop);
            let down = bind()
                .and_then(|()| std::net::UdpSocket::bind("127.0.0.1:0")?.connect("127.0.0.1:9"));
            set_up("lo").unwrap();
            bind().unwrap();
            std::net::UdpSocket::bind("127.0.0.1:0")
                .unwrap()
                .connect("127.0.0.1:9")
                .unwrap();
            i32::from(down.is_err() && set_up("none").is_err())
        })
        .unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(1));
    }
}
