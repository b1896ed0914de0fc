//! Tap devices: network interfaces whose other end is a descriptor (the
//! kernel's networking/tuntap.rst).

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use crate::check;

/// Where they are made.
pub const DEVICE: &str = "/dev/net/tun";

/// Makes a tap interface in this thread's network namespace. It carries whole
/// Ethernet frames with virtio's header in front, and goes with the last copy of
/// its descriptor.
///
/// # Errors
/// EBUSY when one of the name is in use, EINVAL when the name belongs to another
/// kind of interface, ENOENT without the driver.
pub fn create(name: &str) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open(DEVICE)?;
    // SAFETY: ifreq is plain data; zero is a valid value of every field.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes the request, which outlives the call.
    check(i64::from(unsafe {
        libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request)
    }))?;
    Ok(device.into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{interface, namespace::within_new_network};

    #[test]
    fn a_tap_lives_as_long_as_its_descriptor() {
        if !nix::unistd::geteuid().is_root() || !Path::new(DEVICE).exists() {
            println!("skipped: a tap needs root and {DEVICE}");
            return;
        }
        within_new_network(|| {
            let tap = create("test0").unwrap();
            interface::set_up("test0").unwrap();
            let twice = create("test0").unwrap_err();
            assert_eq!(twice.raw_os_error(), Some(libc::EBUSY));
            drop(tap);
            assert!(interface::set_up("test0").is_err());
            assert!(create("a-name-without-end").is_err());
        })
        .unwrap();
    }
}
