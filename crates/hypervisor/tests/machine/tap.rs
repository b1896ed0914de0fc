//! A tap device, which lives as long as somebody holds its descriptor.

use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::libc::{IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, ifreq};

nix::ioctl_write_ptr_bad!(tun_set_interface, nix::libc::TUNSETIFF, ifreq);

pub(crate) fn open(name: &str) -> OwnedFd {
    let mut options = File::options();
    let device = options
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("/dev/net/tun");
    // SAFETY: plain data; zero is a valid value of every field.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as i8;
    }
    request.ifr_ifru.ifru_flags = (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) as i16;
    // SAFETY: the request is valid for the call.
    unsafe { tun_set_interface(device.as_raw_fd(), &raw const request) }.expect("a tap");
    device.into()
}
