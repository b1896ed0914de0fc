//! What is measured: an installation of Casemate.

use std::path::PathBuf;

/// An installation of Casemate, and what a bare machine beside it is made of.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The program, absolute: engines take a relative path for a name.
    pub casemate: PathBuf,
    /// The ways in which it can start, each of which is measured.
    pub variants: Vec<Variant>,
    /// QEMU's program.
    pub qemu: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// MiB for translated code, where a machine is emulated; none with KVM.
    pub translation_buffer_mib: Option<u32>,
}

/// A way in which Casemate can start.
#[derive(Debug, Clone)]
pub struct Variant {
    /// By what it is called in tables: "casemate cold".
    pub name: String,
    /// A whole configuration file; none for the host's own.
    pub configuration: Option<String>,
    /// Arguments of the command that prepares it, once.
    pub prepare: Vec<String>,
    /// What the name of a span in the timeline of each of its starts begins with: it is not
    /// measured when it starts in another way.
    pub span: Option<&'static str>,
}
