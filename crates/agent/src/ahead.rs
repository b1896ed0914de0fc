//! What a VM does before it is saved, so that none of those that are resumed from it
//! has to: whoever executes the guest by emulation translates in each of them anew
//! what they execute. Nothing of it is what one clone could tell from another.

use casemate_linux::interface;

use crate::{
    capacity::Zones,
    cgroup::Spare,
    error::{Doing, Result},
};

/// What has been done in advance.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// The loopback interface is up.
    connected: bool,
    /// A cgroup for the first container that may have it.
    spare: Option<Spare>,
    zones: Option<Zones>,
}

impl Ahead {
    /// Does all of it that has not been done yet.
    pub(crate) fn get(&mut self) -> Result<()> {
        self.connect()?;
        if self.spare.is_none() {
            self.spare = Some(Spare::make()?);
        }
        self.zones = Some(Zones::read()?);
        Ok(())
    }

    /// Brings the loopback interface up; tells whether it was down.
    pub(crate) fn connect(&mut self) -> Result<bool> {
        if self.connected {
            return Ok(false);
        }
        interface::set_up("lo").doing(|| "bring up lo".into())?;
        self.connected = true;
        Ok(true)
    }

    /// The cgroup for a container, if nobody has had it.
    pub(crate) fn spare(&mut self) -> Option<Spare> {
        self.spare.take()
    }

    /// How much memory there was.
    pub(crate) fn zones(&self) -> Option<Zones> {
        self.zones
    }
}
