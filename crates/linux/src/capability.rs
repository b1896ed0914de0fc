//! Capability sets of the calling thread, as bit masks (bit n = capability n).

use std::io;

use crate::check;

/// Layout of capset(2) with 64-bit sets (`_LINUX_CAPABILITY_VERSION_3`).
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The three sets that capset(2) changes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sets {
    /// Checked by the kernel now.
    pub effective: u64,
    /// May be made effective.
    pub permitted: u64,
    /// Kept across exec of a file that has them as inheritable.
    pub inheritable: u64,
}

/// The calling thread's sets.
///
/// # Errors
/// None known.
pub fn get() -> io::Result<Sets> {
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut halves = [Half::default(); 2];
    // SAFETY: the header names the version whose data are two halves.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, halves.as_mut_ptr()) })?;
    let join = |of: fn(&Half) -> u32| u64::from(of(&halves[1])) << 32 | u64::from(of(&halves[0]));
    Ok(Sets {
        effective: join(|half| half.effective),
        permitted: join(|half| half.permitted),
        inheritable: join(|half| half.inheritable),
    })
}

/// Replaces the calling thread's sets.
///
/// # Errors
/// EPERM for what is not permitted already.
pub fn set(sets: Sets) -> io::Result<()> {
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| Half {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let halves = [half(0), half(32)];
    // SAFETY: the header names the version whose data are two halves.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) })?;
    Ok(())
}

/// Takes everything but `keep` out of the bounding set.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn limit_bounding(keep: u64) -> io::Result<()> {
    for capability in 0..u64::BITS {
        // SAFETY: prctl with integers only.
        match unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability)) } {
            // Beyond the last capability of this kernel.
            -1 => break,
            1 if keep & 1 << capability == 0 => {
                // SAFETY: as above.
                check(i64::from(unsafe {
                    libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability))
                }))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Makes the ambient set exactly `ambient`.
///
/// # Errors
/// EPERM for what is not both permitted and inheritable.
pub fn set_ambient(ambient: u64) -> io::Result<()> {
    // SAFETY: prctl with integers only.
    check(i64::from(unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
            0,
            0,
            0,
        )
    }))?;
    for capability in (0..u64::BITS).filter(|bit| ambient & 1 << bit != 0) {
        // SAFETY: as above.
        check(i64::from(unsafe {
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
                libc::c_ulong::from(capability),
                0,
                0,
            )
        }))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Birth, Exit, spawn};

    #[test]
    fn dropped_capabilities_are_gone() {
        let before = get().unwrap();
        let child = spawn(Birth::default(), || {
            let some = before.permitted & 0b111;
            set(Sets {
                effective: some & 1,
                permitted: some,
                inheritable: 0,
            })
            .unwrap();
            let after = get().unwrap();
            i32::from(after.permitted == some && after.effective == some & 1)
        })
        .unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(1));
    }

    #[test]
    fn the_bounding_set_keeps_what_is_named() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: the bounding set needs CAP_SETPCAP");
            return;
        }
        let child = spawn(Birth::default(), || {
            limit_bounding(0b1).unwrap();
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            i32::from(status.contains("CapBnd:\t0000000000000001"))
        })
        .unwrap();
        assert_eq!(child.wait().unwrap(), Exit::Code(1));
    }
}
