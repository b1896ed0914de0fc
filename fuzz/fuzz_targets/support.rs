//! The model guest of the tests, as far as it needs no running process.

#[path = "../../crates/devices/tests/support/fuzzing.rs"]
pub mod fuzzing;
#[path = "../../crates/devices/tests/support/guest.rs"]
pub mod guest;
#[path = "../../crates/devices/tests/support/harness.rs"]
pub mod harness;
#[path = "../../crates/devices/tests/support/ring.rs"]
pub mod ring;
