//! The virtual machine of a sandbox, whatever program runs it.
//!
//! The sandbox sees two narrow interfaces: a [`Hypervisor`] starts machines, a
//! [`Vm`] is one of them. What differs between back ends is said beforehand in
//! [`Capabilities`], so no call answers "unsupported". [`qemu`] is the back end
//! for QEMU; [`fake`] runs no machine at all and fails where a test wants it to.
//!
//! [`tier`] finds out what this host can do: a program may open `/dev/kvm` and
//! still be unable to run a guest.
//!
//! The caller opens every socket that the machine is connected to and hands
//! over the descriptors, so the jailed program sees no paths but its own files.
//! Calls that make a process must come from a process with one thread.

#![forbid(unsafe_code)]

mod capabilities;
mod console;
mod device;
mod error;
mod exit;
mod facts;
pub mod fake;
mod jail;
mod kernel_image;
mod memory;
mod parameter;
mod printable;
mod processor;
pub mod qemu;
mod spec;
mod template;
pub mod tier;
mod vm;

use async_trait::async_trait;

pub use capabilities::{Capabilities, Size};
pub use casemate_config::Tier;
pub use device::{BlockDevice, Device, DeviceId, MacAddress, NetworkDevice};
pub use error::Error;
pub use exit::{Cause, Exit};
pub use parameter::{BadParameter, Parameter};
pub use spec::{BootSpec, ConsoleLog, FileShare, Identity, Vsock};
pub use template::TemplateFiles;
pub use vm::{Metrics, Step, Thread, ThreadRole};

/// A program that can run virtual machines.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// What it can do on this host.
    fn capabilities(&self) -> &Capabilities;

    /// All that a machine of this specification consists of besides the contents
    /// of its kernel and initrd: machines of equal recipes can share a template.
    /// It is text of many lines, equal from call to call until the host starts
    /// anew.
    ///
    /// # Errors
    /// When the host cannot be asked.
    fn recipe(&self, spec: &BootSpec) -> Result<String, Error>;

    /// Starts a machine. When this returns, the guest is already running.
    ///
    /// The program lives in the caller's cgroup and dies with the calling thread.
    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Vm>, Error>;

    /// Starts a machine as it was saved. The specification has the recipe of the
    /// one that was: only sockets, console and identity differ. Its file share, its
    /// sockets and what it grows by are plugged before the guest goes on, and when
    /// this returns it does.
    ///
    /// The program lives in the caller's cgroup and dies with the calling thread.
    ///
    /// # Errors
    /// [`Error::Template`] when the files are not those of such a machine.
    async fn restore(&self, template: TemplateFiles, spec: BootSpec) -> Result<Box<dyn Vm>, Error>;
}

/// A running virtual machine. Dropping it kills the machine.
#[async_trait]
pub trait Vm: Send + Sync {
    /// Process id of the program that runs the machine, in the caller's PID
    /// namespace.
    fn pid(&self) -> u32;

    /// What its start consisted of; nothing for one that simply booted.
    fn steps(&self) -> &[Step];

    /// Resolves when the program has ended and was reaped. Any number of callers
    /// may wait, before and after.
    async fn exited(&self) -> Exit;

    /// Adds a device to the machine, in a free hotplug slot.
    async fn plug(&self, device: Device) -> Result<DeviceId, Error>;

    /// Takes a plugged device out; returns when the guest has let it go.
    async fn unplug(&self, id: &DeviceId) -> Result<(), Error>;

    /// Stops the virtual processors.
    async fn pause(&self) -> Result<(), Error>;

    /// Lets the virtual processors run again.
    async fn resume(&self) -> Result<(), Error>;

    /// Stops the virtual processors for good and writes the machine into two
    /// empty files. What was plugged must have been taken out before.
    async fn snapshot(&self, into: &TemplateFiles) -> Result<(), Error>;

    /// The program's threads, with what each of them does.
    fn threads(&self) -> Result<Vec<Thread>, Error>;

    /// What the machine costs the host.
    fn metrics(&self) -> Result<Metrics, Error>;

    /// Ends the program at once, without asking the guest.
    fn kill(&self);
}
