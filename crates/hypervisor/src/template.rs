//! What a machine is saved into.

use std::fs::File;

/// The files of a template, both opened for what is to be done with them.
#[derive(Debug)]
pub struct TemplateFiles {
    /// The state of processors and devices: a stream that only the program which
    /// wrote it understands.
    pub state: File,
    /// The guest's memory, as long as it; pages never used are holes.
    pub memory: File,
}
