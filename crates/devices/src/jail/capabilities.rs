//! Capabilities.

use casemate_linux::capability::{self, Sets};

use super::{Error, failed};
use crate::options::Inodes;

const CHOWN: u32 = 0;
const DAC_OVERRIDE: u32 = 1;
const DAC_READ_SEARCH: u32 = 2;
const FOWNER: u32 = 3;
const FSETID: u32 = 4;
const SETGID: u32 = 6;
const SETUID: u32 = 7;
const MKNOD: u32 = 27;
const SETFCAP: u32 = 31;

/// What a root file system shared with a guest takes: files of every owner and
/// mode, made by and changed for every user of the guest.
const FILE_SHARING: [u32; 8] = [
    CHOWN,
    DAC_OVERRIDE,
    FOWNER,
    FSETID,
    SETGID,
    SETUID,
    MKNOD,
    SETFCAP,
];

/// Leaves only these capabilities to this thread, for good.
pub(super) fn drop_all_but_file_sharing(inodes: Inodes) -> Result<(), Error> {
    let mut keep = FILE_SHARING
        .iter()
        .fold(0, |set, capability| set | 1u64 << capability);
    if inodes == Inodes::Handles {
        // open_by_handle_at(2) asks for it.
        keep |= 1 << DAC_READ_SEARCH;
    }
    capability::limit_bounding(keep).map_err(failed("limit the bounding set"))?;
    capability::set_ambient(0).map_err(failed("clear the ambient set"))?;
    let held = capability::get().map_err(failed("read the capabilities"))?;
    capability::set(Sets {
        effective: held.effective & keep,
        permitted: held.permitted & keep,
        inheritable: 0,
    })
    .map_err(failed("drop the capabilities"))
}
