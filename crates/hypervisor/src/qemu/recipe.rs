//! What machines that share a template have in common.

use std::{fmt::Write, io, path::Path};

use super::{
    Qemu,
    command_line::{self, Sockets},
    open::unreadable_host,
};
use crate::{
    BootSpec, Error,
    facts::{boot_id, identity},
    processor::Processor,
};

impl Qemu {
    /// Line by line: the program, its firmware, the host as far as a guest sees
    /// it, and the command line without what is one machine's own.
    pub(super) fn recipe_of(&self, spec: &BootSpec) -> Result<String, Error> {
        let own = Sockets {
            control: 0,
            console: 0,
            file_share: None,
            vsock: None,
        };
        let mut plan = self.plan(spec, own, false);
        // Its presence counts. Measured twice it is not the same, and a guest that
        // is restored goes on with what it was told; elsewhere, or after the host
        // has started anew, that could be wrong.
        let counter = self.counter_khz.map_or("measured by the guest", |_| "told");
        plan.parameters = self.parameters(spec, self.counter_khz.map(|_| 0));
        let program = &self.installation.program;
        let mut files = vec![program.clone()];
        files.extend(plan.firmware.files());
        let described = self.describe(&files, counter);
        let mut text = described.map_err(unreadable_host)?;
        for argument in command_line::arguments(&plan) {
            // Whatever bytes a path has, it shows as one line.
            let _ = writeln!(text, "{argument:?}");
        }
        Ok(text)
    }

    fn describe(&self, files: &[impl AsRef<Path>], counter: &str) -> io::Result<String> {
        let mut text = format!("{}\n", self.capabilities.program);
        for file in files {
            let file = file.as_ref();
            let _ = writeln!(text, "{file:?} {}", identity(file)?);
        }
        let processor = Processor::read()?;
        let _ = writeln!(text, "host {} {processor}", boot_id()?);
        let _ = writeln!(text, "rate of the time stamp counter: {counter}");
        Ok(text)
    }
}
