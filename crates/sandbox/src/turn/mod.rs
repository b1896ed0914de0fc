//! Turns: no more machines of this host start at once than its processors can
//! take to. What is started beyond that only takes time from what is nearly
//! there: a guest that gets no processor still hears its timer, and the more
//! machines share a processor, the less finds each of it in the caches.
//!
//! ```text
//! /run/casemate/turns/line    locked by who is next
//!                     0 … n   slots, each locked by who has a turn
//! ```
//!
//! There is nobody who hands turns out. All of it is in the kernel's locks, which
//! end with the processes that have them however these end: [`line`](mod@line) is
//! where one waits to be the next, [`slot`] what the next waits for.

mod line;
mod slot;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

use line::Line;
use slot::Slot;

/// Where the turns of this host are.
const DIRECTORY: &str = "/run/casemate/turns";

/// How long one waits for a turn, and starts without one then; and how long one is
/// kept by a start that does not get on.
const LIMIT: Duration = Duration::from_secs(30);

/// The turns of a host.
#[derive(Debug)]
pub(crate) struct Turns {
    directory: PathBuf,
    slots: u32,
    limit: Duration,
}

/// The right to start now. It ends when this is dropped, or after a time.
#[derive(Debug)]
pub(crate) struct Turn {
    _held: oneshot::Sender<()>,
}

impl Turns {
    /// Those of this host, which has `processors`, each good for so many starts at
    /// once; none where that is 0.
    pub(crate) fn of_host(processors: u32, starts_per_processor: u32) -> Option<Self> {
        let slots = processors.saturating_mul(starts_per_processor);
        (slots > 0).then(|| Self {
            directory: DIRECTORY.into(),
            slots,
            limit: LIMIT,
        })
    }

    /// Waits for a turn. None after a time, or where turns cannot be had, which is
    /// in the log: no start fails because of that. Whoever is dropped while it
    /// waits is not in the line any more.
    pub(crate) async fn wait(&self) -> Option<Turn> {
        match timeout(self.limit, self.next()).await {
            Ok(Ok(slot)) => Some(Turn::keep(slot, self.limit)),
            Ok(Err(error)) => {
                let directory = self.directory.display();
                tracing::warn!("started without a turn: {directory}: {error}");
                None
            }
            Err(_) => {
                tracing::info!("started without a turn after {:?}", self.limit);
                None
            }
        }
    }

    async fn next(&self) -> io::Result<Slot> {
        self.make()?;
        // Whoever comes later is behind us until we have a slot.
        let _next = Line::at(&self.directory.join("line"))?.wait().await?;
        let slots = (0..self.slots).map(|number| self.directory.join(number.to_string()));
        slot::any_of(&slots.collect::<Vec<_>>()).await
    }

    fn make(&self) -> io::Result<()> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.directory)?;
        no_one_else_writes(&self.directory)
    }
}

/// In a folder of somebody else's, a start could be made to wait for anything.
fn no_one_else_writes(directory: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(directory)?;
    match found.is_dir()
        && found.uid() == nix::unistd::geteuid().as_raw()
        && found.mode() & 0o22 == 0
    {
        true => Ok(()),
        false => Err(io::Error::other("others can write to it")),
    }
}

impl Turn {
    /// Holds the slot until the turn is over.
    fn keep(slot: Slot, limit: Duration) -> Self {
        let (held, over) = oneshot::channel();
        tokio::task::spawn_local(async move {
            // Dropped, or hung.
            let _ = timeout(limit, over).await;
            drop(slot);
        });
        Self { _held: held }
    }
}

#[cfg(test)]
mod tests;
