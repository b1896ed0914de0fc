//! The guest's half of both devices, for tests without a virtual machine.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

pub mod fuse;
pub mod fuzzing;
pub mod guest;
pub mod harness;
pub mod process;
pub mod ring;
