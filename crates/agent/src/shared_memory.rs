//! File systems in memory that several containers have: the /dev/shm of a pod
//! is one tmpfs, as long as one of its containers is there.

use std::fs;

use casemate_protocol::agent::Mount;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::{
    console::say,
    error::{Doing, Result},
};

/// Where they are, each under a number of its own.
const FOLDER: &str = "/run/casemate/shared";

/// Those that there are.
#[derive(Debug, Default)]
pub(crate) struct SharedMemory {
    made: Vec<Shared>,
    numbered: u64,
}

#[derive(Debug)]
struct Shared {
    name: String,
    place: String,
    /// Ids of the containers that have it.
    users: Vec<String>,
}

impl SharedMemory {
    /// Makes what the mounts of a container name and nobody has made, and turns
    /// them into bind mounts of it.
    pub(crate) fn provide(&mut self, container: &str, mounts: &mut [Mount]) -> Result<()> {
        for wanted in mounts.iter_mut().filter(|mount| !mount.shared.is_empty()) {
            let known = self.made.iter().position(|one| one.name == wanted.shared);
            let n = match known {
                Some(n) => n,
                None => self.make(wanted)?,
            };
            self.made[n].users.push(container.to_owned());
            wanted.source.clone_from(&self.made[n].place);
            wanted.fstype = "bind".to_owned();
            wanted.flags |= libc::MS_BIND;
            wanted.data.clear();
        }
        Ok(())
    }

    fn make(&mut self, wanted: &Mount) -> Result<usize> {
        self.numbered += 1;
        let place = format!("{FOLDER}/{}", self.numbered);
        let what = || format!("make memory to share at {place}");
        fs::create_dir_all(&place).doing(what)?;
        mount(
            Some(wanted.source.as_str()),
            place.as_str(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(wanted.data.as_str()),
        )
        .doing(what)?;
        self.made.push(Shared {
            name: wanted.shared.clone(),
            place,
            users: Vec::new(),
        });
        Ok(self.made.len() - 1)
    }

    /// A container has gone, and with the last one its memory.
    pub(crate) fn release(&mut self, container: &str) {
        for shared in &mut self.made {
            shared.users.retain(|user| user != container);
        }
        let (used, unused) = std::mem::take(&mut self.made)
            .into_iter()
            .partition(|shared| !shared.users.is_empty());
        self.made = used;
        for Shared { place, .. } in unused {
            let removed = umount2(place.as_str(), MntFlags::MNT_DETACH)
                .map_err(std::io::Error::from)
                .and_then(|()| fs::remove_dir(&place));
            if let Err(error) = removed {
                say(format_args!("{place}: {error}"));
            }
        }
    }
}
