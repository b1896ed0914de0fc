//! Feeding the kernel's random pool (random(4)).

use std::{fs::File, io, os::fd::AsRawFd};

use crate::check;

/// RNDADDENTROPY: _IOW('R', 0x03, int[2]).
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// RNDRESEEDCRNG: _IO('R', 0x07).
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Most bytes that are taken at once.
pub const MAX: usize = 256;

/// Struct rand_pool_info with room for [`MAX`] bytes.
#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    buffer_size: libc::c_int,
    buffer: [u8; MAX],
}

/// Adds bytes of full entropy to the pool and has the generator take them in
/// now, so that what is drawn afterwards is unlike any other machine's. Says how
/// many bits the pool was credited with.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; invalid input for more than [`MAX`] bytes; ENODATA
/// when the generator has never had enough.
pub fn add(bytes: &[u8]) -> io::Result<u32> {
    if bytes.len() > MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let bits = bytes.len() as u32 * 8;
    let mut info = PoolInfo {
        entropy_count: bits as libc::c_int,
        buffer_size: bytes.len() as libc::c_int,
        buffer: [0; MAX],
    };
    info.buffer[..bytes.len()].copy_from_slice(bytes);
    let pool = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the structure states the size of its buffer.
    check(i64::from(unsafe {
        libc::ioctl(pool.as_raw_fd(), RNDADDENTROPY, &raw const info)
    }))?;
    // SAFETY: no argument.
    check(i64::from(unsafe {
        libc::ioctl(pool.as_raw_fd(), RNDRESEEDCRNG)
    }))?;
    Ok(bits)
}
